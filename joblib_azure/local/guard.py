"""The guard: one small process a local cluster, which starts its servers and outlives everything but them.

::

    client ──stdin: one JSON request, then kept open──► guard ──► Batch emulator ──► tasks …
       ▲                                                  │  └──► Azurite
       └──────stdout: {"ready": …}, later {"ended": …}────┘

It owns the lives of these processes: it ends them all when its stdin closes, when the client's process is
gone (a forked child of the client may hold the pipe open), on SIGTERM, and when one of its servers dies.
Whatever dies, somebody is left who cleans up:

- the client: the guard sees it at once (pidfd, or its parent's pid) and stops everything;
- the emulator or Azurite: their orphans become the guard's children (subreaper), and it stops everything;
- the guard: the kernel signals its servers (PR_SET_PDEATHSIG), the emulator then ends its tasks itself, and
  the client, if it lives, looks for what is left (`host.py`).

"Everything" is known by a mark: every process carries the cluster's run id in its environment, and the
kernel shows a process's environment to its owner. The last resort is SIGKILL to all that carry the mark.

The file is run by its path (``python -I -S guard.py``), not as a module, since importing the package would
cost more than all it does; so it imports the standard library only. POSIX only, made for Linux.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

__all__ = ["RUN_ID_VARIABLE", "processes_of"]

RUN_ID_VARIABLE = "BATCH_EMULATOR_RUN_ID"
"""Environment variable that marks every process of a local cluster; the emulator hands it on to its tasks."""

HOST_SUFFIX = ".host"
"""Behind the run id of the guard and Azurite: at its end the emulator kills all that carry the bare one."""

EXIT_ASKED = 0
EXIT_SERVER_DIED = 3
"""The two exit codes after which nothing is left; any other means that somebody has to look."""

_PROC = Path("/proc")
# Both numbers are the kernel's ABI (linux/prctl.h).
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Servers print their endpoint once; 10 ms of a start that takes a second is nothing.
_READY_POLL = 0.01
# Only where there is no pidfd does the guard learn of its client's death by looking for it.
_PARENT_POLL = 0.5
KILL_DEADLINE = 10.0
_TAIL_BYTES = 4000


def pids_of(run_id: str) -> set[int]:
    """The ids of all live processes on this machine that carry a run id (zombies do not count)."""
    if not (_PROC / "self" / "environ").exists():
        return _pids_of_by_psutil(run_id)
    marks = {f"{RUN_ID_VARIABLE}={value}".encode() for value in (run_id, run_id + HOST_SUFFIX)}
    pids = set()
    for pid in _all_pids():
        try:
            environ = (_PROC / str(pid) / "environ").read_bytes()
        except OSError:  # gone meanwhile, or another user's
            continue
        if not marks.isdisjoint(environ.split(b"\0")):
            pids.add(pid)
    return pids


def processes_of(run_id: str) -> list[psutil.Process]:
    """All live processes that carry a run id: guard, emulator, Azurite, tasks and their workers.

    Parameters
    ----------
    run_id : str
        `LocalHost.run_id` of a local cluster, running or not.

    Returns
    -------
    list of psutil.Process
        Empty when nothing of the cluster is left.
    """
    import psutil

    found = []
    for pid in sorted(pids_of(run_id)):
        try:
            found.append(psutil.Process(pid))
        except psutil.NoSuchProcess:
            pass
    return found


def kill_all(
    run_id: str,
    *,
    root: int | None = None,
    deadline: float = KILL_DEADLINE,
    reap: Callable[[], None] | None = None,
) -> set[int]:
    """SIGKILL everything that carries a run id, but not the process that asks; return what is left.

    With `root`, its descendants are killed too, in case one has cleared its environment. `reap` is called
    after each round to collect the dead that are the caller's children. Nothing is left unless the
    deadline (in seconds) passed.
    """
    end = time.monotonic() + deadline
    empty = 0
    while True:
        left = pids_of(run_id) | (_descendants(root) if root is not None else set())
        left.discard(os.getpid())
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        if reap is not None:
            reap()
        # Twice, since a process in the middle of execve shows an empty environment for a moment.
        empty = 0 if left else empty + 1
        if empty == 2 or time.monotonic() > end:
            return left
        time.sleep(0.01)


def remove_folder(folder: str | Path) -> None:
    """Remove a cluster's folder, without an error if some of it cannot be removed."""
    import shutil  # 10 ms that a start need not pay

    for _ in range(3):  # a process that was just killed may still have been writing
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
        time.sleep(0.05)


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir(_PROC) if name.isdigit()]


def _pids_of_by_psutil(run_id: str) -> set[int]:
    try:
        import psutil
    except ImportError:  # part of joblib_azure[local]; without it the guard knows only its own children
        return set()
    return {
        process.pid
        for process in psutil.process_iter(["environ", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
        and (process.info["environ"] or {}).get(RUN_ID_VARIABLE) in (run_id, run_id + HOST_SUFFIX)
    }


def _descendants(root: int) -> set[int]:
    if not _PROC.is_dir():
        return set()
    children: dict[int, list[int]] = {}
    zombies = set()
    for pid in _all_pids():
        try:
            stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
        except OSError:
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]  # the name before it may hold anything
        children.setdefault(int(parent), []).append(pid)
        if state == "Z":
            zombies.add(pid)
    found: set[int] = set()
    todo = [root]
    while todo:
        for pid in children.get(todo.pop(), ()):
            if pid not in found:
                found.add(pid)
                todo.append(pid)
    return found - zombies


def _prctl() -> Callable[[int, int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return None
    return lambda option, value: int(prctl(option, value, 0, 0, 0))


def _tether(parent: int, command: list[str]) -> None:
    """Become a command that dies with its parent (the caller's thread, to be exact)."""
    if prctl := _prctl():
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == parent:  # else it died before the kernel knew
        os.execvp(command[0], command)


class _Server:
    """One server: what the client asked for, and its process."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.name: str = spec["name"]
        self.command: list[str] = spec["command"]
        self.environment: dict[str, str | None] = spec["environment"]
        self.folder: str = spec["folder"]
        self.log = Path(spec["log"])
        self.ready = re.compile(spec["ready"].encode(), re.MULTILINE)
        self.grace: float = spec["grace"]
        self.death_signal: int = spec["death_signal"]
        self.endpoint: str | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, prctl: Callable[[int, int], int] | None) -> None:
        environment = dict(os.environ)
        for key, value in self.environment.items():
            if value is None:
                environment.pop(key, None)
            else:
                environment[key] = value
        guard = os.getpid()

        def die_with_guard() -> None:
            # The guard has one thread, so forking is safe, and the signal means its death, not a thread's.
            if prctl is not None:
                prctl(_PR_SET_PDEATHSIG, self.death_signal)
            if os.getppid() != guard:
                os._exit(1)

        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,  # its end tells the emulator that the guard is gone
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environment,
                preexec_fn=die_with_guard,
            )

    def look(self) -> bool:
        """Whether the server has said in its log where it listens."""
        if self.endpoint is None and (match := self.ready.search(self.log.read_bytes())):
            self.endpoint = match.group(1).decode()
        return self.endpoint is not None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def end(self, number: int) -> None:
        if self.process is None or self.process.stdin is None:
            return
        if self.process.returncode is None:
            os.kill(self.process.pid, number)  # not reaped yet, so the id is still its own
        self.process.stdin.close()


class _Guard:
    def __init__(self, client: int, request: dict[str, Any]) -> None:
        self.client = client
        self.run_id: str = request["run_id"]
        self.folder: str = request["folder"]
        self.keep: bool = request["keep"]
        self.deadline: float = request["deadline"]
        self.servers = [_Server(spec) for spec in request["servers"]]
        self.asked: str | None = None
        self.failed: str | None = None
        self.poll = select.poll()
        self.poll.register(0, select.POLLIN)
        self.pidfd: int | None = None
        self.wakeup = -1

    def run(self) -> int:
        self._listen()
        try:
            self._start()
            while not self._over():
                self._wait(_PARENT_POLL if self.pidfd is None else None)
        finally:
            self._stop()
        return EXIT_ASKED if self.failed is None else EXIT_SERVER_DIED

    def _listen(self) -> None:
        # A signal that arrives just before poll() sleeps would be noticed only after it: the byte in this
        # pipe wakes it up.
        self.wakeup, write = os.pipe()
        os.set_blocking(self.wakeup, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write)
        self.poll.register(self.wakeup, select.POLLIN)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        if sys.platform == "linux":
            try:
                self.pidfd = os.pidfd_open(self.client)
                self.poll.register(self.pidfd, select.POLLIN)
            except OSError:  # an old kernel, or the client is gone already: getppid tells
                pass

    def _on_signal(self, number: int, frame: object) -> None:
        self.asked = self.asked or f"received {signal.Signals(number).name}"

    def _over(self) -> bool:
        return self.asked is not None or self.failed is not None

    def _start(self) -> None:
        prctl = _prctl()
        if prctl is not None:
            prctl(_PR_SET_CHILD_SUBREAPER, 1)
        for server in self.servers:
            try:
                server.start(prctl)
            except OSError as error:
                self.failed = f"{server.name} cannot be started: {error}"
                return
        end = time.monotonic() + self.deadline
        while not self._over():
            late = [server for server in self.servers if not server.look()]
            if not late:
                pids = [server.process.pid for server in self.servers if server.process is not None]
                self._tell({"ready": {server.name: server.endpoint for server in self.servers}, "pids": pids})
                return
            if time.monotonic() > end:
                names = " and ".join(server.name for server in late)
                self._fail(f"{names} did not say where it listens within {self.deadline:.0f} s", late)
            self._wait(_READY_POLL)

    def _wait(self, seconds: float | None) -> None:
        events = dict(self.poll.poll(None if seconds is None else seconds * 1000))
        # POLLHUP (a closed pipe) comes unasked; reading then gives the end of the file.
        if 0 in events and not os.read(0, 4096):
            self.asked = self.asked or "the client closed the pipe"
            self.poll.unregister(0)
        if self.pidfd in events or os.getppid() != self.client:
            self.asked = self.asked or "the client is gone"
        if self.wakeup in events:
            os.read(self.wakeup, 4096)
        self._reap()
        if self._over():
            return
        for server in self.servers:
            if server.process is not None and server.process.returncode is not None:
                self._fail(f"{server.name} {how_it_ended(server.process.returncode)}", [server])
                return

    def _fail(self, message: str, servers: Collection[_Server]) -> None:
        for server in servers:
            tail = server.log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace").strip()
            message += f"\n{server.log.name} ends with:\n{tail or '(nothing)'}"
        self.failed = message

    def _reap(self) -> None:
        """Collect the dead: the servers', and those that the subreaper inherited."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for server in self.servers:
                if server.process is not None and server.process.pid == pid:
                    server.process.returncode = os.waitstatus_to_exitcode(status)

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            os.write(1, json.dumps(message).encode() + b"\n")
        except OSError:  # the client is gone, as the next look at it will show
            pass

    def _stop(self) -> None:
        self._tell({"ended": self.failed or self.asked or "the guard failed", "failed": bool(self.failed)})
        os.close(1)  # from here on the client knows that the cluster is over
        for server in self.servers:
            end = time.monotonic() + server.grace
            server.end(signal.SIGTERM if server.grace > 0 else signal.SIGKILL)
            self._reap()
            while server.running and time.monotonic() < end:
                time.sleep(0.01)
                self._reap()
        kill_all(self.run_id, root=os.getpid(), reap=self._reap)
        if not self.keep:
            remove_folder(self.folder)


def how_it_ended(returncode: int) -> str:
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    return f"was killed by signal {-returncode} ({signal.strsignal(-returncode)})"


def _read_request(client: int) -> dict[str, Any] | None:
    data = b""
    while not data.endswith(b"\n"):
        if not select.select([0], [], [], _PARENT_POLL)[0]:
            if os.getppid() != client:  # dead, while a forked child of its holds the pipe open
                return None
            continue
        chunk = os.read(0, 65536)
        if not chunk:  # the client gave up, or died, before it asked for anything
            return None
        data += chunk
    request: dict[str, Any] = json.loads(data)
    return request


def main(arguments: list[str]) -> int:
    """Serve a client (``CLIENT_PID RUN_ID FOLDER``; the run id is there for people who read ``ps``), or become
    a command that dies with its parent (``tether PARENT_PID COMMAND …``)."""
    if arguments[0] == "tether":
        _tether(int(arguments[1]), arguments[2:])
        return 1
    client = int(arguments[0])
    request = _read_request(client)
    if request is None:
        remove_folder(arguments[2])
        return EXIT_ASKED
    return _Guard(client, request).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
