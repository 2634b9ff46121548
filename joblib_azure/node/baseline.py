"""What a task's calls change of a warm process, put back before the next task's first call.

::

    capture() ── once, when the process is ready ──► Baseline
    enter(lease) ── before a chunk: of a new task? put everything back, then take on that task's environment
    leave() ── after a chunk: out of the task's folder, which is Batch's

From one call of a task to the next all of it stays, as in a worker of loky at home. Modules that calls imported or
patched stay too; the supervisor gives a runner to the tasks of one job only. What cannot be put back (a thread that
still runs, a priority) is left in the file `DIRTY` of the lease: the runner ends with its task.
"""

from __future__ import annotations

import contextlib
import decimal
import gc
import json
import locale
import logging
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: The file of a lease that says what its calls find: their environment and folder.
CALLS = "calls.json"
#: The file of a lease that says why its runner cannot be used again.
DIRTY = "dirty"
#: Where a process is while no call runs: in nobody's way.
_NOWHERE = "/"


class Baseline:
    """A process as it was before its first call."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._path, self._hooks = list(sys.path), (sys.excepthook, sys.displayhook, threading.excepthook)
        self._argv = list(sys.argv)
        self._filters, self._show = list(warnings.filters), warnings.showwarning
        self._handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._files = {fd: os.dup(fd) for fd in (0, 1, 2)}
        self._streams = (sys.stdin, sys.stdout, sys.stderr)
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        self._nice = 0
        self._affinity = os.sched_getaffinity(0)
        self._temporary = tempfile.tempdir
        self._locale = locale.setlocale(locale.LC_ALL)
        self._decimal = decimal.getcontext().copy()
        root = logging.getLogger()
        self._logging = root.level, list(root.handlers), logging.root.manager.disable
        self._limits = {limit: resource.getrlimit(limit) for limit in _LIMITS}
        self._recursion, self._collection = sys.getrecursionlimit(), (gc.isenabled(), gc.get_threshold())
        self._timeout = socket.getdefaulttimeout()
        self._threads = threading.active_count()
        self._lease: str | None = None
        self._folder = _NOWHERE

    def enter(self, lease: str) -> bool:
        """Be in the task of a lease: its folder, environment and output; True where it is a new one."""
        new = lease != self._lease
        if new:
            self.restore()
            calls = json.loads((Path(lease) / CALLS).read_text())
            _set_environment(calls["environment"])
            self._lease, self._folder = lease, calls["cwd"]
            self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        with contextlib.suppress(OSError):  # a call removed it
            os.chdir(self._folder)
        return new

    def leave(self) -> None:
        """Leave the task's folder until its next call."""
        try:
            self._folder = os.getcwd()
        except OSError:
            pass
        os.chdir(_NOWHERE)
        if threading.active_count() > self._threads:
            self._dirty("a thread that a call started still runs")
        elif os.getpriority(os.PRIO_PROCESS, 0) != self._nice:
            self._dirty("a call changed its priority")
        elif any(resource.getrlimit(limit)[1] != hard for limit, (_, hard) in self._limits.items()):
            self._dirty("a call lowered a limit of its resources")

    def adopt(self, before: list[Any]) -> None:
        """Keep the warnings filters that imports have set since `before`: modules set them once."""
        kept = self._filters
        kept[:0] = [filter for filter in warnings.filters if filter not in before and filter not in kept]

    def _dirty(self, why: str) -> None:
        if self._lease is not None:
            with contextlib.suppress(OSError):
                (Path(self._lease) / DIRTY).write_text(why)

    def restore(self) -> None:
        """Put everything back."""
        self._lease = None
        os.chdir(_NOWHERE)
        os.umask(self._umask)
        _set_environment(self._environment)
        self._restore_files()
        self._restore_signals()
        sys.path[:], sys.argv[:] = self._path, self._argv
        sys.excepthook, sys.displayhook, threading.excepthook = self._hooks
        sys.settrace(None)
        sys.setprofile(None)
        # What was warned of once is to be warned of again: modules remember it for a version of the filters, and any
        # change through the front door makes a new one.
        warnings.simplefilter("default", append=True)
        warnings.filters[:] = self._filters  # type: ignore[index]
        warnings.showwarning = self._show
        self._restore_logging()
        decimal.setcontext(self._decimal.copy())
        locale.setlocale(locale.LC_ALL, self._locale)
        socket.setdefaulttimeout(self._timeout)
        sys.setrecursionlimit(self._recursion)
        enabled, threshold = self._collection
        (gc.enable if enabled else gc.disable)()
        gc.set_threshold(*threshold)
        tempfile.tempdir = self._temporary
        with contextlib.suppress(OSError):  # cores may have been taken from the process meanwhile
            os.sched_setaffinity(0, self._affinity)
        self._restore_limits()
        # Each task seeds anew, as a process that had just been started would.
        random.seed()
        numpy: Any = sys.modules.get("numpy")
        if numpy is not None:
            if "numpy.random" in sys.modules:
                numpy.random.seed()
            numpy.seterr(divide="warn", over="warn", under="ignore", invalid="warn")

    def _restore_files(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        for fd, saved in self._files.items():
            os.dup2(saved, fd)
        sys.stdin, sys.stdout, sys.stderr = self._streams
        if not _usable(sys.stdin):
            sys.stdin = open(os.devnull)  # noqa: SIM115
        if not _usable(sys.stdout):
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        if not _usable(sys.stderr):
            sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115

    def _restore_signals(self) -> None:
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        for number, handler in self._handlers.items():
            if handler is not None and signal.getsignal(number) != handler:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)

    def _restore_logging(self) -> None:
        level, handlers, disabled = self._logging
        root = logging.getLogger()
        root.handlers[:] = handlers
        root.manager.disable = disabled
        root.setLevel(level)  # loggers remember what they are enabled for, and forget it here

    def _restore_limits(self) -> None:
        for limit, (soft, _) in self._limits.items():
            now, hard = resource.getrlimit(limit)
            if now != soft:
                with contextlib.suppress(ValueError, OSError):
                    resource.setrlimit(limit, (soft, hard))


_LIMITS = (
    resource.RLIMIT_AS,
    resource.RLIMIT_CORE,
    resource.RLIMIT_CPU,
    resource.RLIMIT_DATA,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_NOFILE,
    resource.RLIMIT_STACK,
)
_baseline: Baseline | None = None


def capture() -> None:
    """Take this process as it is for what it goes back to."""
    global _baseline
    _baseline = Baseline()


def enter(lease: str | None) -> bool:
    """Be in the task of a lease before one of its chunks; True where it is another one than before."""
    if lease is None or _baseline is None:
        return False
    return _baseline.enter(lease)


def leave(lease: str | None) -> None:
    """Leave it after the chunk."""
    if lease is not None and _baseline is not None:
        _baseline.leave()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Within it what calls refer to is imported; what that sets once is not put back."""
    before = list(warnings.filters)
    yield
    if _baseline is not None:
        _baseline.adopt(before)


def restore() -> None:
    """Put this process back."""
    if _baseline is not None:
        _baseline.restore()


def _set_environment(environment: dict[str, str]) -> None:
    if environment != dict(os.environ):
        os.environ.clear()
        os.environ.update(environment)
        time.tzset()


def _usable(stream: Any) -> bool:
    try:
        return not stream.closed
    except ValueError:  # a call detached its buffer
        return False
