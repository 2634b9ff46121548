"""Runs Batch tasks for their clients: forked by the supervisor with all imports done.

It holds the job's secrets, as the task's own process would, and no user code. It ends at once where a client does
before its task, and takes the calls along. After a task it waits a while for the next of the same job, with its
connections to storage open.
"""

from __future__ import annotations

import _socket
import contextlib
import io
import json
import os
import secrets
import shutil
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from .baseline import CALLS, DIRTY
from .client import Channel
from .lease import LeasedRunner
from .proc import leave_no_core, resident
from .settings import TaskSettings
from .storage import TaskStorage
from .task import Task

#: Below the package's root on the node: a folder for each task that runs.
LEASES = "leases"
#: Seconds that a client may take to end once its task is over.
_CLIENT_SECONDS = 10.0
#: Bytes above which it ends with its task, and what it fetched and sent with it.
MOST_MEMORY = 300 << 20


def main(client: Channel, supervisor: Channel, request: dict[str, Any]) -> None:
    """Run the task of a client's request, and those that the supervisor sends after it; does not return.

    Parameters
    ----------
    client, supervisor : Channel
    request : dict
        As `client.main` sends it.
    """
    leave_no_core()
    before = set(sys.modules)
    storage: TaskStorage | None = None
    while True:
        storage = _run(client, supervisor, request, storage)
        client.close()
        if resident(os.getpid()) > MOST_MEMORY:
            os._exit(0)
        try:
            supervisor.send({"free": True, "imported": sorted(set(sys.modules) - before)})
            client, request = _next(supervisor)
        except (EOFError, OSError):
            os._exit(0)


def _next(supervisor: Channel) -> tuple[Channel, dict[str, Any]]:
    """Return the next client and its request. :raises EOFError: where the supervisor sends no more."""
    while True:
        for message, fds in supervisor.messages():
            if "task" in message:
                return Channel(_socket.socket(fileno=fds[0])), message["task"]
        if not supervisor.read():
            raise EOFError


def _run(client: Channel, supervisor: Channel, request: dict[str, Any], storage: TaskStorage | None) -> TaskStorage:
    """Run a task; return its storage, for the next one."""
    _write_to(client)
    os.environ.clear()
    os.environ.update(request["environment"])
    settings = TaskSettings.read(os.environ, io.StringIO(request["secrets"].decode()))
    if storage is not None and storage.serves(settings.inputs, settings.outputs, settings.workers):
        storage = storage.renewed(settings.task)
    else:
        storage = TaskStorage(settings.inputs, settings.outputs, settings.task, settings.workers)
    runner = LeasedRunner(
        settings.workers,
        settings.width,
        settings.threads,
        supervisor=supervisor,
        client=client,
        job=settings.job,
        cwd=request["cwd"],
    )
    folder = settings.root / LEASES / f"{os.getpid()}-{secrets.token_hex(4)}"
    over = threading.Event()

    def end(code: int) -> None:
        """Let the task end; for the service it is over then."""
        over.set()
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError):  # the client may be gone already
            client.send({"end": code})

    def leave(code: int) -> None:
        end(code)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    def watch() -> None:
        while client.read():
            pass
        if over.is_set():
            return
        task.give_up()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    folder.mkdir(mode=0o700, parents=True)
    # For the calls, which run in a process of another environment and folder.
    calls = {"environment": {**request["environment"], **runner.variables}, "cwd": request["cwd"]}
    (folder / CALLS).write_text(json.dumps(calls))
    task = Task(settings, runner, request["begun"], folder, lease=True, finish=leave, storage=storage)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        code = task.run()
    except BaseException:
        traceback.print_exc()
        runner.interrupt()
        leave(1)
    end(code)
    runner.hand_back(_read(folder / DIRTY), task.calls)
    shutil.rmtree(folder, ignore_errors=True)
    watcher.join(_CLIENT_SECONDS)
    if watcher.is_alive():
        os._exit(0)
    return storage


def _write_to(client: Channel) -> None:
    """Let what this process says come out of the client."""
    reads, writes = os.pipe()
    client.send({"streams": (2,)}, [reads])
    os.dup2(writes, 1)
    os.dup2(writes, 2)
    os.close(reads)
    os.close(writes)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
