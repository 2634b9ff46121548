"""Lock files: what the processes of a node do one at a time.

The job preparation's program imports it too, under whatever Python the node has: the standard library of 3.8 only.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, deadline: float = 600.0) -> Iterator[None]:
    """Hold the lock file at `path`.

    Raises
    ------
    TimeoutError
        Where another process held it for `deadline` seconds.
    """
    with path.open("w") as file:
        end = time.monotonic() + deadline
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise TimeoutError(
                        f"waited {deadline:.0f} s for another process of this node that holds {path.name}"
                    ) from None
                time.sleep(0.02)
        yield
