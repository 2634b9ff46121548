"""One command line on one node, with its tries: the same for tasks, start tasks, preparation and release tasks.

What passes through: a command line, its environment and resource files on the way to `processes`; its exit codes on
the way to a `Progress`, whose fields are the service's `executionInfo`.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from . import nodes, outputfiles, resourcefiles, times
from .processes import LAUNCH_ID_VARIABLE, Launch, LaunchFailed, Machine, ProgramNotFound
from .state import Progress

#: What the service reports when it ended a task itself: the operating system's code for SIGKILL.
KILLED = 137
#: The reason of a stop that leaves the process running: nobody can reach it.
UNSEEN = "unseen"


class Stopped(Exception):
    """The execution was stopped from outside; `reason` is the caller's own."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to run, where, and how often."""

    command_line: str
    directory: Path
    environment: dict[str, str]
    cpus: frozenset[int]
    resource_files: list[dict[str, Any]]
    output_files: list[dict[str, Any]] = field(default_factory=list)
    max_retries: int = 0
    max_wall_clock: timedelta | None = None


def failure(code: str, message: str, category: str = "usererror", **details: str) -> dict[str, Any]:
    """A `failureInfo`."""
    found: dict[str, Any] = {"category": category, "code": code, "message": message}
    if details:
        found["details"] = [{"name": name, "value": value} for name, value in details.items()]
    return found


class Execution:
    """Runs a command to its end and writes into `progress` how it went.

    Parameters
    ----------
    processes : Machine
    command : Command
    progress : Progress
    in_its_place : callable
        Returns what a try runs in place of its command line, if anything.
    report : float, default 0
        Seconds that the word of its end is on its way to the service.
    """

    def __init__(
        self,
        processes: Machine,
        command: Command,
        progress: Progress,
        in_its_place: Callable[[], str | None] = lambda: None,
        *,
        report: float = 0.0,
    ) -> None:
        self._processes = processes
        self._command = command
        self._progress = progress
        self._in_its_place = in_its_place
        self._report = report
        self._stop: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._identity = nodes.identity(command.environment)

    def stop(self, reason: str) -> None:
        """End it soon: `run` raises `Stopped` once the process tree is gone. The first reason counts."""
        if not self._stop.done():
            self._stop.set_result(reason)

    @property
    def stopped(self) -> asyncio.Future[str]:
        """Done, with the reason, once `stop` was called."""
        return self._stop

    async def pause(self, seconds: float) -> None:
        """Wait for so long, or until it is stopped. :raises Stopped:"""
        await asyncio.wait([self._stop], timeout=seconds)
        if self._stop.done():
            raise Stopped(self._stop.result())

    async def run(self) -> None:
        """Run until the command succeeds, is out of tries, or is stopped.

        Raises
        ------
        Stopped
            After `stop`; `progress` then has a start but no end, which is the caller's to write.
        """
        progress, command = self._progress, self._command
        limit = command.max_wall_clock.total_seconds() if command.max_wall_clock else None
        deadline = asyncio.get_running_loop().time() + limit if limit is not None else None
        while True:
            progress.begin()
            code, problem = await self._try(deadline)
            upload = None if code is None else await self._upload(code)
            if code in (None, 0) or problem is not None or progress.retry_count >= command.max_retries >= 0:
                break
            progress.retry_count += 1
            progress.last_retry = times.now()
        if problem is None and code != 0:
            problem = failure(
                "FailureExitCode",
                "The task exited with an exit code representing a failure",
                Message="The task exited with an exit code representing a failure",
                AdditionalErrorCode="FailureExitCode",
            )
        ended = times.now()
        if self._report:  # what ends the task meanwhile finds it running
            await self.pause(self._report)
        # why the process failed says more than why its files are not there
        progress.finish(code, problem or upload, ended)

    async def _try(self, deadline: float | None) -> tuple[int | None, dict[str, Any] | None]:
        try:
            await self._make_ready(deadline)
        except resourcefiles.DownloadFailed as exc:
            return None, exc.failure
        except asyncio.TimeoutError:
            return None, self._overrun()
        except OSError as exc:
            text = f"The directory cannot be made: {exc}."
            return None, failure("ResourceDirectoryCreateFailed", text, "servererror")
        command = self._command
        # each try has its own, or the sweep after one would kill the next
        launch_id = uuid.uuid4().hex
        identity = {**self._identity, LAUNCH_ID_VARIABLE: launch_id}
        instead = self._in_its_place()
        launch = Launch(
            command_line=instead or command.command_line,
            environment={**command.environment, LAUNCH_ID_VARIABLE: launch_id},
            directory=command.directory / "wd",
            stdout=command.directory / "stdout.txt",
            stderr=command.directory / "stderr.txt",
            cpus=command.cpus,
            resource_files=command.resource_files,
            replaced=instead is not None,
        )
        try:
            process = await self._processes.start(launch)
        except ProgramNotFound as exc:
            return None, failure(
                "CommandProgramNotFound", "The specified command program is not found", Message=str(exc)
            )
        except LaunchFailed as exc:
            return None, failure("CommandLaunchFailed", "Failed to launch the specified command line", Message=str(exc))
        return await self._watch(process, identity, deadline)

    async def _make_ready(self, deadline: float | None) -> None:
        directory = self._command.directory
        if self._processes.has_disk:
            (directory / "wd").mkdir(parents=True, exist_ok=True)
        if self._stop.done():
            raise Stopped(self._stop.result())
        if self._command.resource_files and self._processes.has_disk:
            await self._in_thread(deadline, resourcefiles.download_all, self._command.resource_files, directory / "wd")

    async def _upload(self, code: int) -> dict[str, Any] | None:
        """Upload the output files whose condition the exit code meets; the failure where that fails.

        No wall clock runs any more: that is of the task's process.
        """
        command = self._command
        files = outputfiles.wanted(command.output_files, code)
        if not files or not self._processes.has_disk:
            return None
        try:
            await self._in_thread(None, outputfiles.upload_all, files, command.directory, command.environment)
        except outputfiles.UploadFailed as exc:
            return exc.failure
        return None

    async def _in_thread(self, deadline: float | None, function: Callable[..., None], *arguments: Any) -> None:
        """Run what blocks, and takes an event that ends it early as its last argument.

        Raises
        ------
        Stopped, asyncio.TimeoutError
            The thread ends at its next piece; nobody waits for what it says.
        """
        halt = threading.Event()
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(None, partial(function, *arguments, halt))
        waiting: set[asyncio.Future[Any]] = {work, self._stop}
        try:
            timeout = max(0.0, deadline - loop.time()) if deadline is not None else None
            done, _ = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            halt.set()
        if work in done:
            return work.result()
        work.add_done_callback(lambda future: future.exception() if not future.cancelled() else None)
        if self._stop.done():
            raise Stopped(self._stop.result())
        raise asyncio.TimeoutError

    async def _watch(
        self, process: Any, identity: dict[str, str], deadline: float | None
    ) -> tuple[int | None, dict[str, Any] | None]:
        loop = asyncio.get_running_loop()
        ended = loop.create_task(process.wait())
        waiting: set[asyncio.Future[Any]] = {ended, self._stop}
        timeout = max(0.0, deadline - loop.time()) if deadline is not None else None
        await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            self._sweep_later(identity)
            return ended.result(), None
        if self._stop.done() and self._stop.result() == UNSEEN:
            ended.cancel()
            raise Stopped(UNSEEN)
        await self._processes.kill_tree(process, identity)
        await ended
        if self._stop.done():
            raise Stopped(self._stop.result())
        return KILLED, self._overrun()

    def _sweep_later(self, identity: dict[str, str]) -> None:
        """Kill what a task left outside its group, without making its slot wait for it.

        A start task may leave services behind (it is the one place for them), if they leave its session.
        """
        if "AZ_BATCH_TASK_ID" in identity:
            sweep = asyncio.get_running_loop().create_task(self._processes.sweep(identity))
            _background.add(sweep)
            sweep.add_done_callback(_background.discard)

    @staticmethod
    def _overrun() -> dict[str, Any]:
        return failure("TaskEnded", "The task was ended because it exceeded its maximum wall clock time.")


#: The loop keeps weak references to tasks only.
_background: set[asyncio.Task[None]] = set()
