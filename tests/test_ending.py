"""Whether the interpreter is ending is known while its pools of threads still run."""

from __future__ import annotations

import subprocess
import sys

WAITS = """
import time
from concurrent.futures import ThreadPoolExecutor
from joblib_azure.ending import ending

def wait():
    end = time.monotonic() + 20
    while not ending() and time.monotonic() < end:
        time.sleep(0.01)
    print("the interpreter is ending:", ending(), flush=True)

print("before:", ending(), flush=True)
ThreadPoolExecutor(1).submit(wait)
"""


def test_a_pool_s_thread_is_told() -> None:
    """Python waits for it before it ends the main thread, which is therefore no sign of the end."""
    done = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["before: False", "the interpreter is ending: True"], done.stderr
