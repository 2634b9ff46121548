"""Keeps warm runners on a node, and gives them to one task at a time.

::

    clients of tasks ──socket──► supervisor ──forks──► hosts, each with one task at a time
                                   │  ▲                  │ want, back
                                   ▼  └──────────────────┘
                                 runners: starting ──► idle ──► leased ──► idle … ──► ended

One process for each lock and version of the node code, started by the job preparation task or by the first task that
finds none (`begin`). It has one thread, so that it may fork, and imports what a task's process needs, so that a host
starts with all of it; it holds no secrets and runs no user code. It ends when no task came for a while.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import gc
import importlib
import os
import selectors
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .begin import listen, take_lock
from .client import SOCKET, Channel, peer_user
from .warm import IDLE_SECONDS, WarmRunner, WarmRunners, read_names, write_names

#: What it has to say, in the code folder.
LOG = "supervisor.log"
#: What hosts were seen to import after their fork; the next supervisor of the folder begins with it.
_IMPORTS = "imports.json"
#: Seconds that a host waits for the next task of its job.
_FREE_SECONDS = 60.0
#: Seconds between two looks at what is idle.
_LOOK = 1.0


@dataclass(eq=False)
class _Host:
    """A forked process that runs the tasks of a job, one after the other."""

    pid: int
    channel: Channel
    job: str = ""
    most_calls: int | None = None  #: that a worker may run, by its job's configuration
    runner: WarmRunner | None = None
    free: bool = False
    since: float = 0.0


def main(folder: Path, settings: dict[str, Any], fds: list[int]) -> int:
    """Supervise until no task came for a while; not at all where somebody else does.

    Parameters
    ----------
    folder : Path
        Of the node code.
    settings : dict
        ``runners`` and ``workers`` of each.
    fds : list of int
        The lock, which is held, and the socket, on which clients may wait already; empty where neither is there.
    """
    lock, listening = fds or (take_lock(folder), None)
    if lock is None:
        return 0
    os.set_inheritable(lock, False)
    _detach(folder)
    listener = listen(folder) if listening is None else _socket.socket(fileno=listening)
    os.set_inheritable(listener.fileno(), False)
    listener.setblocking(False)
    try:
        Supervisor(folder, listener, settings).run()
    finally:
        (folder / SOCKET).unlink(missing_ok=True)
        listener.close()
    return 0


def _detach(folder: Path) -> None:
    """Hold nothing that is Batch's: no folder, no file."""
    os.chdir("/")
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)


class Supervisor:
    """The supervisor of one code folder.

    Parameters
    ----------
    folder : Path
    listener : socket
        Bound already: clients may wait while this loads what it needs.
    settings : dict
        As `main` takes them.
    """

    def __init__(self, folder: Path, listener: _socket.socket, settings: dict[str, Any]) -> None:
        self._folder = folder
        self._listener = listener
        self._hosts: dict[int, _Host] = {}  # by the file descriptor of their channel
        self._waiting: list[tuple[_Host, str]] = []
        self._asking: dict[int, Channel] = {}
        self._last_task = time.monotonic()
        self._selector = selectors.DefaultSelector()
        self._runners = WarmRunners(folder, settings, self._selector)

    def run(self) -> None:
        """Serve until no task came for a while."""
        wake, woken = os.pipe()
        for fd in (wake, woken):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        self._selector.register(wake, selectors.EVENT_READ, self._children)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._runners.fill(wanted=1)  # while this process imports, it starts
        self._import()
        try:
            while self._busy or time.monotonic() - self._last_task < IDLE_SECONDS:
                for key, _ in self._selector.select(_LOOK):
                    # One event may end what another of the same look is about, and its descriptor with it.
                    if self._selector.get_map().get(key.fd) is key:
                        key.data(key.fileobj)
                self._serve_waiting()
        finally:
            self._runners.close()

    @property
    def _busy(self) -> bool:
        """Whether there is a task."""
        return bool(self._asking) or any(not host.free for host in self._hosts.values())

    def _import(self) -> None:
        """Import what hosts need, so that they do not."""
        for name in read_names(self._folder / _IMPORTS):
            self._learn(name)
        from . import host, storage  # noqa: F401

        storage.load()
        gc.collect()
        gc.freeze()  # a collection would copy the pages that forks share

    @staticmethod
    def _learn(name: str) -> None:
        with contextlib.suppress(Exception):
            importlib.import_module(name)

    # clients --------------------------------------------------------------------------------------------

    def _accept(self, listener: _socket.socket) -> None:
        try:
            fd, _ = listener._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return
        channel = Channel(_socket.socket(fileno=fd))
        if peer_user(channel.socket) != os.getuid():
            channel.close()
            return
        channel.socket.setblocking(False)
        self._asking[channel.fileno()] = channel
        self._selector.register(channel, selectors.EVENT_READ, self._asked)

    def _asked(self, channel: Channel) -> None:
        goes_on = channel.read()
        try:
            request = next((message for message, _ in channel.messages()), None)
        except (EOFError, TypeError, ValueError):  # no client of ours
            request, goes_on = None, False
        if request is None and goes_on:
            return
        self._forget(channel)
        if request is not None:
            channel.socket.setblocking(True)
            self._serve(channel, request)
        channel.close()

    def _forget(self, channel: Channel) -> None:
        self._selector.unregister(channel)
        del self._asking[channel.fileno()]

    def _serve(self, client: Channel, request: dict[str, Any]) -> None:
        """Have a host run the client's task: one that served its job before, or a new one."""
        self._last_task = time.monotonic()
        environment = request["environment"]
        self._runners.at_least(int(environment.get("JOBLIB_AZURE_RUNNERS", "1")))
        job = environment.get("AZ_BATCH_JOB_ID", "")
        host = next((host for host in self._hosts.values() if host.free and host.job == job), None)
        if host is None or not self._tell(host, {"task": request}, (client.fileno(),)):
            host = self._fork(client, request)
        host.free, host.job = False, job
        host.most_calls = int(calls) if (calls := environment.get("JOBLIB_AZURE_MAX_CALLS")) else None

    def _fork(self, client: Channel, request: dict[str, Any]) -> _Host:
        mine, theirs = _pair()
        pid = os.fork()
        if pid == 0:
            try:
                _become_host(client, theirs)
                from .host import main as run

                run(client, theirs, request)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        theirs.close()
        host = self._hosts[mine.fileno()] = _Host(pid, mine)
        self._selector.register(mine, selectors.EVENT_READ, self._heard)
        return host

    # hosts ----------------------------------------------------------------------------------------------

    def _heard(self, channel: Channel) -> None:
        host = self._hosts[channel.fileno()]
        goes_on = channel.read()
        for message, _ in channel.messages():
            if "want" in message:
                self._runners.learn(message["modules"])
                self._waiting.append((host, message["want"]))
            elif "back" in message and host.runner is not None:
                self._runners.take_back(host.runner, **message["back"], most_calls=host.most_calls)
                host.runner = None
            elif "free" in message:
                host.free, host.since = True, time.monotonic()
                self._imported(message["imported"])
        if not goes_on:
            self._part(host)

    def _part(self, host: _Host) -> None:
        """A host has ended; its runner, where it still has one, ends too."""
        self._selector.unregister(host.channel)
        del self._hosts[host.channel.fileno()]
        host.channel.close()
        self._waiting = [(other, job) for other, job in self._waiting if other is not host]
        if host.runner is not None:
            self._runners.kill(host.runner)
        self._last_task = time.monotonic()

    def _imported(self, names: list[str]) -> None:
        """Have what a host imported after its fork for the next ones."""
        new = [name for name in names if name not in sys.modules and not name.startswith("__")]
        for name in new:
            self._learn(name)
        if new:
            gc.freeze()
            path = self._folder / _IMPORTS
            write_names(path, sorted({*read_names(path), *(name for name in new if name in sys.modules)}))

    def _serve_waiting(self) -> None:
        """Give idle runners to those that wait for them, and see to it that there are some."""
        for waiting in list(self._waiting):
            host, job = waiting
            runner = self._runners.take(job)
            if runner is None:
                reason = self._runners.hopeless()
                if reason is None:
                    continue
                self._waiting.remove(waiting)
                self._tell(host, {"none": reason})
                continue
            self._waiting.remove(waiting)
            host.runner = runner
            self._tell(host, {"runner": runner.pid}, runner.pipes)
        now = time.monotonic()
        for host in list(self._hosts.values()):
            if host.free and now - host.since > _FREE_SECONDS:
                self._part(host)  # which ends it
        idle = now - self._last_task > IDLE_SECONDS and not self._busy
        self._runners.fill(wanted=len(self._waiting), idle=idle)

    @staticmethod
    def _tell(host: _Host, message: dict[str, Any], fds: tuple[int, ...] = ()) -> bool:
        """Send a host a message; False where it has ended: its channel says so too, and then it is parted with."""
        try:
            host.channel.send(message, fds)
        except OSError as exc:
            if exc.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise
            return False
        return True

    # processes ------------------------------------------------------------------------------------------

    def _children(self, wake: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(wake, 4096):
                pass
        for runner, code in self._runners.reap():
            for host in self._hosts.values():
                if host.runner is runner:
                    host.runner = None
                    self._tell(host, {"ended": runner.pid, "code": code})
        _reap_hosts(self._runners)


def _reap_hosts(runners: WarmRunners) -> None:
    """Collect the hosts that have ended, and not the runners: their exit codes are asked for."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or runners.has(found.si_pid):
            return
        with contextlib.suppress(ChildProcessError):
            os.waitpid(found.si_pid, os.WNOHANG)


def _pair() -> tuple[Channel, Channel]:
    one, other = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
    return Channel(one), Channel(other)


def _become_host(client: Channel, supervisor: Channel) -> None:
    """In the fork: hold nothing but what this host needs."""
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    keep = {0, 1, 2, client.fileno(), supervisor.fileno()}
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(name))
