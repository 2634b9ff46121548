"""The warm runners of a supervisor: how many there are, who has which, and when one is at its end.

A runner that served a job serves no other: what its calls imported or patched stays among those who trust each other.
It is prepared as long as nobody waits for it at a lower priority, where that can be taken back: a user who is no
administrator may not raise a priority again unless the limit of the node says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .limits import runner_variables
from .proc import free_memory, set_priority, set_session_priority

#: Seconds that the preparation of a runner may take, its imports included.
_PREPARE_SECONDS = 120.0
#: Seconds that an idle runner stays, and a supervisor without a task.
IDLE_SECONDS = 600.0
#: Runners that may fail in a row before tasks run without one, and seconds until it is tried again.
_FAILURES, _RETRY_SECONDS = 3, 60.0
#: Bytes by which a worker may grow beyond what it had after its first task.
GROWTH = 512 << 20
#: The part of the node's memory below which no runner is prepared that nobody waits for, and none is kept.
_SPARE_MEMORY, _LEAST_MEMORY = 0.25, 0.10
#: Modules that are imported beforehand, at most, and their file for the next supervisor.
_MOST_MODULES, _MODULES = 300, "modules.json"
#: Niceness of a runner that is prepared while nobody waits for it.
_LOW = 19


@dataclass(eq=False)
class WarmRunner:
    """A process with an inner loky pool, started, and its imports done.

    Attributes
    ----------
    pid : int
        Its id, and that of its process group.
    state : str
        ``starting``, ``idle`` or ``leased``.
    job : str
        Whose tasks it runs; empty until its first.
    """

    process: subprocess.Popen[bytes]
    pipes: tuple[int, int, int, int]  #: requests, reports, its stdout and its stderr
    meeting: str
    low: bool
    state: str = "starting"
    job: str = ""
    since: float = field(default_factory=time.monotonic)
    said: bytes = b""
    calls: int = 0
    memory: int = 0  #: after its first task

    @property
    def pid(self) -> int:
        return self.process.pid


class WarmRunners:
    """All runners of one supervisor.

    Parameters
    ----------
    folder : Path
        Of the node code.
    settings : dict
        ``runners``: how many tasks compute at once; ``workers`` of each.
    selector : selectors.BaseSelector
        Of the supervisor.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], selector: selectors.BaseSelector) -> None:
        self._folder = folder
        self._target: int = settings["runners"]
        self._workers: int = settings["workers"]
        self._selector = selector
        self._all: list[WarmRunner] = []
        self._modules: list[str] = read_names(folder / _MODULES)
        self._failures, self._failed = 0, 0.0
        self._served = False

    # how many -------------------------------------------------------------------------------------------

    def at_least(self, runners: int) -> None:
        """Keep at least so many: another job of this lock and code has more slots."""
        self._target = max(self._target, runners)

    def fill(self, *, wanted: int, idle: bool = False) -> None:
        """Begin to prepare what lacks.

        Parameters
        ----------
        wanted : int
            Tasks that wait for a runner.
        idle : bool
            Whether there was no task for long: nothing is prepared then, and what is idle ends.
        """
        now = time.monotonic()
        for runner in list(self._all):
            overdue = runner.state == "starting" and now - runner.since > _PREPARE_SECONDS
            if overdue or (runner.state == "idle" and now - runner.since > IDLE_SECONDS):
                if overdue:
                    self._fail()
                self.kill(runner)
        if self._failures >= _FAILURES and now - self._failed < _RETRY_SECONDS:
            return
        starting = sum(runner.state == "starting" for runner in self._all)
        for _ in range(wanted - starting):
            self._make_room()
            self._start(low=False)
            starting += 1
        if wanted:
            for runner in self._all:
                if runner.state == "starting" and runner.low:
                    self._raise_priority(runner)
        # One more than tasks compute at once takes the place of one that ends; once there was a task that needs it.
        target = self._target + self._served
        if not (idle or starting) and len(self._all) < target and free_memory() > _SPARE_MEMORY:
            self._start(low=True)

    def _fail(self) -> None:
        self._failures, self._failed = self._failures + 1, time.monotonic()

    def _make_room(self) -> None:
        """End an idle runner of another job: one is needed."""
        idle = [runner for runner in self._all if runner.state == "idle"]
        if idle and len(self._all) > self._target:
            self.kill(min(idle, key=lambda runner: runner.since))

    def hopeless(self) -> str | None:
        """Return why there will be no runner, or None."""
        if self._failures >= _FAILURES:
            return f"{self._failures} in a row did not come up; see supervisor.log"
        return None

    def learn(self, modules: Iterable[str]) -> None:
        """Have these imported in the runners to come."""
        new = [name for name in modules if name not in self._modules]
        if new:
            self._modules = (self._modules + new)[:_MOST_MODULES]
            write_names(self._folder / _MODULES, self._modules)

    # one ------------------------------------------------------------------------------------------------

    def _start(self, *, low: bool) -> None:
        requests_read, requests = os.pipe()
        reports, reports_write = os.pipe()
        out, out_write = os.pipe()
        err, err_write = os.pipe()
        low = low and _may_rise()
        process = subprocess.Popen(
            [sys.executable, str(self._folder), "runner", str(requests_read), str(reports_write)],
            env={**os.environ, **runner_variables(self._workers, self._workers, None)},
            stdin=subprocess.DEVNULL,
            stdout=out_write,
            stderr=err_write,
            cwd="/",
            pass_fds=(requests_read, reports_write),
            start_new_session=True,
        )
        if low:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, _LOW)
            set_session_priority(process.pid, _LOW)
        for fd in (requests_read, reports_write, out_write, err_write):
            os.close(fd)
        runner = WarmRunner(process, (requests, reports, out, err), tempfile.mkdtemp(dir=self._folder), low)
        self._all.append(runner)
        prepare = {"workers": self._workers, "modules": self._modules, "meeting": runner.meeting}
        with contextlib.suppress(BrokenPipeError):
            os.write(requests, json.dumps({"prepare": prepare}).encode() + b"\n")
        for fd in (out, err):
            os.set_blocking(fd, False)
        self._selector.register(reports, selectors.EVENT_READ, lambda _: self._report(runner))

    def _report(self, runner: WarmRunner) -> None:
        data = os.read(runner.pipes[1], 4096)
        runner.said += data
        if not data or runner.said.endswith(b"\n"):
            self._selector.unregister(runner.pipes[1])
        if runner.said.endswith(b"\n"):
            self._failures = 0
            self._become_idle(runner)
            shutil.rmtree(runner.meeting, ignore_errors=True)

    @staticmethod
    def _become_idle(runner: WarmRunner) -> None:
        runner.state, runner.since = "idle", time.monotonic()

    def take(self, job: str) -> WarmRunner | None:
        """Lease a runner to a task of `job`; None where none is idle."""
        idle = [runner for runner in self._all if runner.state == "idle" and runner.job in ("", job)]
        if not idle:
            return None
        # One that knows the job has more of its imports done.
        runner = max(idle, key=lambda runner: (runner.job, runner.since))
        if runner.low:
            self._raise_priority(runner)
        _discard(runner.pipes[2:])
        runner.state, runner.job = "leased", job
        return runner

    @staticmethod
    def _raise_priority(runner: WarmRunner) -> None:
        set_priority(runner.pid, os.getpriority(os.PRIO_PROCESS, 0))
        set_session_priority(runner.pid, 0)
        runner.low = False

    def take_back(self, runner: WarmRunner, *, memory: int, calls: int, most_calls: int | None) -> None:
        """A task has handed its runner back, clean; whether it is used again is decided here.

        Parameters
        ----------
        runner : WarmRunner
        memory : int
            Bytes of its processes.
        calls : int
            That the task ran in it.
        most_calls : int or None
            That a worker may run.
        """
        self._served = True
        runner.calls += calls
        runner.memory = runner.memory or memory
        spent = most_calls is not None and runner.calls >= most_calls * self._workers
        grown = memory - runner.memory > GROWTH * self._workers
        if spent or grown or free_memory() < _LEAST_MEMORY:
            self.kill(runner)
        else:
            self._become_idle(runner)

    # the end --------------------------------------------------------------------------------------------

    def kill(self, runner: WarmRunner) -> None:
        """End a runner with its process group; `reap` finds it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(runner.pid, signal.SIGKILL)
        runner.state = "ending"

    def has(self, pid: int) -> bool:
        """Tell whether that process is one of them."""
        return any(runner.pid == pid for runner in self._all)

    def reap(self) -> Iterator[tuple[WarmRunner, int]]:
        """Yield the runners that have ended, each with its exit code, the negative of a signal."""
        for runner in list(self._all):
            # A zombie keeps its id: what is left of its group is killed before anybody else can be meant by it.
            if runner.state != "ending" and os.waitid(os.P_PID, runner.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(runner.pid, signal.SIGKILL)
            code = runner.process.poll()
            if code is None:
                continue
            if runner.state == "starting":
                self._fail()
                sys.stderr.write(f"a runner ended with {code} before it was ready\n{_discard(runner.pipes[2:])}\n")
                sys.stderr.flush()
            self._all.remove(runner)
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(runner.pipes[1])
            for fd in runner.pipes:
                os.close(fd)
            shutil.rmtree(runner.meeting, ignore_errors=True)
            yield runner, code

    def close(self) -> None:
        """End all of them, but those that run a task: they end with it."""
        for runner in self._all:
            if runner.state != "leased":
                self.kill(runner)


def _discard(pipes: Sequence[int]) -> str:
    """Empty pipes of what nobody is to see any more, and return its end."""
    found = b""
    for fd in pipes:
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(fd, 1 << 16):
                found += piece
    return found[-2000:].decode(errors="replace")


def _may_rise() -> bool:
    """Tell whether this user may take a lower priority back: Linux counts niceness 0 as the limit 20."""
    return os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_NICE)[0] in range(20, 41)


def read_names(path: Path) -> list[str]:
    """Return the names of modules that a file has; none where it is not there, or not whole."""
    try:
        return [str(name) for name in json.loads(path.read_text())]
    except (OSError, ValueError):
        return []


def write_names(path: Path, names: Sequence[str]) -> None:
    """Leave names of modules for the next supervisor; it does without where that fails."""
    with contextlib.suppress(OSError):
        path.write_text(json.dumps(names))
