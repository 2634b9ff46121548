"""Starts the supervisor of a code folder, out of a Batch task and so that it outlives the task.

What a task leaves running is not safe from Batch's clean-up. Where the start task found systemd it has left a unit for
supervisors (`joblib_azure.cluster.supervision`), which starts those that are asked for by a file in its folder; where
not, the supervisor is a daemon in a session of its own. Either way it holds no file of Batch's, and nothing of the
task's environment but what is the node's.
"""

from __future__ import annotations

import _socket
import contextlib
import fcntl
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from .client import SOCKET
from .limits import THREAD_VARIABLES, WORKERS_VARIABLE

#: Below `place`'s first folder; the start task makes it where there is systemd.
REQUESTS = "requests"
#: Left in a code folder once it is whole.
READY = "ready"
#: Held by the supervisor of a code folder.
LOCK = "supervisor.lock"
#: Tasks that may wait for a supervisor which is starting: more than a node has slots.
_BACKLOG = 512
#: What systemd runs, in the code folder.
START = "start"
#: Seconds that systemd may take.
_SYSTEMD_SECONDS = 5.0
_LOOK = 0.02
#: Variables of a task's that are the node's.
_NODE = ("AZ_BATCH_NODE_", "AZ_BATCH_POOL_", "AZ_BATCH_ACCOUNT_")


def begin(folder: Path, environ: Mapping[str, str]) -> None:
    """Start a supervisor, which ends at once where one is there; does nothing where the job wants no warm runners.

    Parameters
    ----------
    folder : Path
        The code folder.
    environ : mapping
        Of a Batch task.
    """
    if "JOBLIB_AZURE_RUNNERS" not in environ or not (folder / READY).exists():
        return
    try:
        _begin(folder, environ)
    except OSError as exc:
        # Warmth is no condition: neither the preparation nor a task fails for it.
        sys.stderr.write(f"joblib_azure: no supervisor of warm runners could be started: {exc}\n")


def _begin(folder: Path, environ: Mapping[str, str]) -> None:
    settings = {
        "runners": int(environ["JOBLIB_AZURE_RUNNERS"]),
        "workers": int(environ["JOBLIB_AZURE_SLOT_WORKERS"]),
    }
    command = [sys.executable, str(folder), "supervise", json.dumps(settings)]
    # <base>/<uid>/code/<key>
    root = folder.parent.parent
    environment = _environment(environ, root)
    lock = take_lock(folder)
    if lock is None:
        return
    requests = root.parent / REQUESTS
    if requests.is_dir():
        with contextlib.suppress(FileNotFoundError):
            (folder / SOCKET).unlink()  # of one that has died
        os.close(lock)
        if _ask_systemd(folder, requests, command, environment):
            return
        lock = take_lock(folder)
        if lock is None:
            return
    # Made here, so that the task which comes next finds it although the supervisor is only starting.
    listener = listen(folder)
    subprocess.Popen(
        [*command, str(lock), str(listener.fileno())],
        cwd="/",
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(lock, listener.fileno()),
        start_new_session=True,
    )
    os.close(lock)
    listener.close()


def take_lock(folder: Path) -> int | None:
    """Return the file descriptor of the supervisor's lock; None where one is running."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def listen(folder: Path) -> _socket.socket:
    """Return a socket on which clients of this user alone can connect; to be called with the lock held."""
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    with contextlib.suppress(FileNotFoundError):
        (folder / SOCKET).unlink()
    at = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    before = os.umask(0o177)
    try:
        listener.bind(f"/proc/self/fd/{at}/{SOCKET}")  # see `client.connect`
    finally:
        os.umask(before)
        os.close(at)
    listener.listen(_BACKLOG)
    return listener


def _environment(environ: Mapping[str, str], root: Path) -> dict[str, str]:
    ours = ("AZ_BATCH_", "JOBLIB_AZURE_")
    not_the_nodes = {"PWD", "OLDPWD", WORKERS_VARIABLE, *THREAD_VARIABLES}
    found = {
        name: value
        for name, value in environ.items()
        if name.startswith(_NODE) or not (name.startswith(ours) or name in not_the_nodes)
    }
    return {**found, "HOME": str(root), "JOBLIB_AZURE_NODE": "1"}


def _ask_systemd(folder: Path, requests: Path, command: list[str], environment: dict[str, str]) -> bool:
    """Have systemd start it; False where it does not."""
    words = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *command]
    (folder / START).write_text(f"exec {' '.join(map(shlex.quote, words))}\n")
    try:
        (requests / folder.name).touch()
    except OSError:
        return False
    end = time.monotonic() + _SYSTEMD_SECONDS
    while time.monotonic() < end:
        if (folder / SOCKET).exists():
            return True
        time.sleep(_LOOK)
    return False
