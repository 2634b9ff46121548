"""A warm runner as the host of a task sees it: leased from the supervisor, and handed back clean or not at all.

::

    host ──{"want": job}──► supervisor ──{"runner": pid} and its four pipes──► host ──chunks──► runner
    host ──{"restore": true}──► runner ──{"restored": …}──► host ──{"back": …}──► supervisor

Where the supervisor is gone or has none, the host starts one for itself, as a task without a supervisor does.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from .client import Channel
from .proc import ended
from .process import RunnerProcess

#: Seconds within which the supervisor has a runner: longer than the preparation of one may take.
_LEASE_SECONDS = 150.0
#: Seconds that putting a runner back may take; one that is in nobody's way does it in a few milliseconds.
_RESTORE_SECONDS = 10.0
#: Seconds that a process which was killed may take to be gone.
_KILL_SECONDS = 30.0
_LOOK = 0.005


class _Leased:
    """A leased process: not a child of this one."""

    def __init__(self, pid: int, lessor: _Lessor) -> None:
        self.pid = pid
        self._lessor = lessor
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return its exit code, the negative of a signal; None while it runs."""
        if self._code is None and ended(self.pid):
            self._code = self._lessor.exit_code(self.pid)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. :raises subprocess.TimeoutExpired:"""
        end = time.monotonic() + (_KILL_SECONDS if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("runner", timeout or _KILL_SECONDS)
            time.sleep(_LOOK)
        return code


class _Lessor:
    """The supervisor, as a host asks it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._codes: dict[int, int] = {}

    def lease(self, job: str, modules: Sequence[str]) -> tuple[int, list[int]] | None:
        """Return a runner's process id and pipes; None where there will be none."""
        try:
            self._channel.send({"want": job, "modules": list(modules)})
        except OSError:
            return None
        end = time.monotonic() + _LEASE_SECONDS
        while (rest := end - time.monotonic()) > 0:
            for message, fds in self._channel.messages():
                if "runner" in message:
                    return int(message["runner"]), fds
                if "none" in message:
                    sys.stderr.write(f"joblib_azure: no warm runner: {message['none']}\n")
                    return None
                self._take(message)
            if select.select([self._channel], [], [], rest)[0] and not self._channel.read():
                return None
        return None

    def exit_code(self, pid: int) -> int:
        """Return how a process ended that has; as killed where nobody can tell."""
        end = time.monotonic() + 1.0
        while pid not in self._codes and (rest := end - time.monotonic()) > 0:
            if select.select([self._channel], [], [], rest)[0] and not self._channel.read():
                break
            for message, _ in self._channel.messages():
                self._take(message)
        return self._codes.get(pid, -9)

    def _take(self, message: dict[str, Any]) -> None:
        if "ended" in message:
            self._codes[message["ended"]] = message["code"]

    def hand_back(self, **what: Any) -> None:
        """Hand the runner back."""
        with contextlib.suppress(OSError):
            self._channel.send({"back": what})


class LeasedRunner(RunnerProcess):
    """A runner that is leased when it is first asked, and anew after its death.

    Parameters
    ----------
    workers, width, threads
        As `RunnerProcess` takes them.
    supervisor, client : Channel
    job : str
        A runner that served one job serves no other.
    cwd : str
        Of the task.
    """

    def __init__(
        self, workers: int, width: int, threads: int | None, *, supervisor: Channel, client: Channel, job: str, cwd: str
    ) -> None:
        super().__init__(workers, width, threads)
        self._lessor = _Lessor(supervisor)
        self._client = client
        self._job = job
        self._cwd = cwd
        self._over = False

    @property
    def variables(self) -> dict[str, str]:
        """Variables for the calls: the limits of their libraries."""
        return dict(self._variables)

    def _start(self) -> None:
        found = self._lessor.lease(self._job, self.modules)
        if found is None:
            (out, out_write), (err, err_write) = os.pipe(), os.pipe()
            self._spawn(self._cwd, out_write, err_write)
            for fd in (out_write, err_write):
                os.close(fd)
            self._carry([out, err])
            return
        pid, (self._requests, self._reports, *streams) = found
        self._carry(streams)
        self._process = _Leased(pid, self._lessor)

    def _carry(self, streams: list[int]) -> None:
        """Have the client write to the task's own files what comes out of the runner."""
        self._client.send({"streams": (1, 2)}, streams)
        for fd in streams:
            os.close(fd)

    def close(self) -> None:
        """Tell the runner that there is nothing more to do; `kill` or `hand_back` follows."""
        if isinstance(self._process, _Leased):
            self._over = True
        else:
            super().close()

    def kill(self) -> str:
        """End the runner, unless it was closed in peace; return how it ended."""
        return "it goes on" if self._over and self._process is not None else super().kill()

    def hand_back(self, dirty: str, calls: int) -> None:
        """Put the runner back and hand it to the supervisor, or end it.

        Parameters
        ----------
        dirty : str
            Why it cannot be used again; empty where it can.
        calls : int
            Delayed calls that it ran.
        """
        if not isinstance(self._process, _Leased):
            self.kill()
            return
        restored = None if dirty else self._restore()
        if restored is None or restored["strays"]:
            self._over = False
            self.kill()
            return
        for fd in (self._requests, self._reports):
            os.close(fd)
        self._lessor.hand_back(memory=restored["memory"], calls=calls)

    def _restore(self) -> dict[str, Any] | None:
        timer = threading.Timer(_RESTORE_SECONDS, self.interrupt)
        timer.daemon = True
        timer.start()
        try:
            for report in self.ask({"restore": True}):
                if "restored" in report:
                    return dict(report["restored"])
            return None
        finally:
            timer.cancel()
