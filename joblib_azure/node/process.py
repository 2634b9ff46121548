"""The runner as the task sees it: a process in a group of its own, a pipe in, a pipe out."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from .limits import runner_variables

#: Seconds that a runner may take to close its pool before it is killed. The outcomes are stored by then.
_CLOSE_SECONDS = 2.0
#: What a runner ends its answer to a request with.
_LAST = frozenset(("idle", "broken", "restored"))


class _Copy:
    """A forked process, as `subprocess.Popen` has one that was started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return its exit code, the negative of a signal; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. :raises subprocess.TimeoutExpired:"""
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("runner", timeout or 0.0)
            time.sleep(0.005)
        return code


class Process(Protocol):
    """What of a process is asked here."""

    @property
    def pid(self) -> int:
        """Its id, and that of its group."""

    def poll(self) -> int | None:
        """Return its exit code, the negative of a signal; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. :raises subprocess.TimeoutExpired:"""


class RunnerProcess:
    """Starts, asks and ends the process that runs user code.

    Parameters
    ----------
    workers : int
        Cores of the task's slots: what ``n_jobs=-1`` means in the runner.
    width : int
        Chunks that run at once; each has ``workers // width`` cores, at least 1.
    threads : int or None
        ``inner_max_num_threads``, where the user set it.
    """

    def __init__(self, workers: int, width: int, threads: int | None) -> None:
        #: What the bundle's pickles refer to.
        self.modules: Sequence[str] = ()
        self._workers = workers
        self._variables = runner_variables(workers, width, threads)
        self._process: Process | None = None
        self._requests = self._reports = -1
        self._interrupted = False

    def fork(self) -> tuple[int, int] | None:
        """Start the runner as a copy of this process, which saves it an interpreter's start and half of its imports.

        To be called while this process has one thread, has loaded no library that minds, and knows no secret.

        Returns
        -------
        tuple of int or None
            In the copy, the pipes that `runner.main` takes; None in this process.
        """
        requests_read, self._requests = os.pipe()
        self._reports, reports_write = os.pipe()
        pid = os.fork()
        # Both do it, so that the group is there for whoever of them is first.
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        if pid == 0:
            for fd in (self._requests, self._reports):
                os.close(fd)
            with open(os.devnull) as nothing:
                os.dup2(nothing.fileno(), 0)
            os.environ.update(self._variables)
            return requests_read, reports_write
        self._process = _Copy(pid)
        os.close(requests_read)
        os.close(reports_write)
        return None

    def _start(self) -> None:
        self._spawn()

    def _spawn(self, cwd: str | None = None, stdout: int | None = None, stderr: int | None = None) -> None:
        requests_read, self._requests = os.pipe()
        self._reports, reports_write = os.pipe()
        program = str(Path(sys.argv[0]).resolve())
        self._process = subprocess.Popen(
            [sys.executable, program, "runner", str(requests_read), str(reports_write)],
            env={**os.environ, **self._variables},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            pass_fds=(requests_read, reports_write),
            start_new_session=True,
        )
        os.close(requests_read)
        os.close(reports_write)

    def ask(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Send one request; yield reports until the runner ends it, or ends itself."""
        if self._process is None:
            self._start()
        if self._interrupted:
            self.interrupt()
        data = json.dumps({**request, "workers": self._workers}).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._requests, data) :]
        except BrokenPipeError:
            return
        pending = b""
        while more := self._read():
            *lines, pending = (pending + more).split(b"\n")
            for line in lines:
                report = json.loads(line)
                yield report
                if not _LAST.isdisjoint(report):
                    return

    def _read(self) -> bytes:
        """Return what the runner says next; nothing once it has ended.

        A process that the user's code forked may hold the runner's end of the pipe open, so that the
        pipe's end alone does not tell.
        """
        while not select.select([self._reports], [], [], 0.5)[0]:
            ended = self._process is None or self._process.poll() is not None
            if ended and not select.select([self._reports], [], [], 0)[0]:
                return b""
        return os.read(self._reports, 65536)

    def close(self) -> None:
        """Tell the runner that there is nothing more to do; `kill` follows."""
        if self._process is not None:
            os.close(self._requests)
            self._requests = -1

    def interrupt(self) -> None:
        """Kill it from another thread than the one that asks it, which sees its end and calls `kill`.

        Where it is only being started, or leased, it is killed when it is there; it is not to be asked any more.
        """
        self._interrupted = True
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def kill(self) -> str:
        """End the runner and its whole process group; return how it ended."""
        process = self._process
        if process is None:
            return "it was not running"
        self._process = None
        if self._requests < 0:  # closed in peace: the pool shuts itself down and leaves no semaphores
            try:
                process.wait(_CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                pass
        else:
            os.close(self._requests)
        try:
            os.killpg(process.pid, signal.SIGKILL)  # a dead leader's group lives on in its children
        except ProcessLookupError:
            pass
        code = process.wait()
        os.close(self._reports)
        if code < 0:
            return f"the process that ran it was killed by signal {-code} ({signal.Signals(-code).name})"
        return f"the process that ran it ended with exit code {code}"
