"""Nodes without processes: what a task does is a function of somebody else's, which is called here.

Pools of a thousand nodes hold the control plane (the scheduler, the lists, whoever is its client) on a small machine.
Pools, nodes, jobs, tasks, their states and times, start and preparation tasks are the same code as with processes; only
what `execution` asks of `processes` is answered here::

    execution ──Launch──► SimulatedProcesses ──SimulatedTask──► the executor ──exit code──► execution

The executor is an asynchronous function. It is given each command line with its environment and its resource files,
start, preparation and release tasks too, and says how long it takes by awaiting `SimulatedTask.sleep`, on the
service's clock. It must not block: all nodes and the service itself share its event loop. Nothing of it is on a disk,
so tasks have no files, resource files are not fetched and output files are not stored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .executors import load
from .processes import Launch, LaunchFailed

_log = logging.getLogger(__name__)

#: What the exit code of a task is whose executor raised, or that was told to fail.
_FAILED = 1
#: As a shell has it for what SIGKILL ended.
_KILLED = 137
_NODE = "AZ_BATCH_NODE_ID"


@dataclass(frozen=True, kw_only=True)
class SimulatedTask:
    """What an executor is given.

    Parameters
    ----------
    command_line : str
    environment : mapping of str to str
        The whole of it, as a process would have it.
    resource_files : sequence of mapping
        As the service has them: ``httpUrl`` and ``filePath``, or ``storageContainerUrl``.
    rate : float
        How many times faster than real time the service's clock goes.
    """

    command_line: str
    environment: Mapping[str, str]
    resource_files: Sequence[Mapping[str, Any]]
    rate: float

    def __repr__(self) -> str:
        return f"SimulatedTask({self.command_line!r} of {self.environment.get('AZ_BATCH_TASK_ID', 'a start task')})"

    async def sleep(self, seconds: float) -> None:
        """Let so many seconds pass on the service's clock."""
        await asyncio.sleep(seconds / self.rate)


#: Runs a task and returns its exit code. Where it is cancelled, the task is killed.
Executor = Callable[[SimulatedTask], Awaitable[int]]


class SimulatedProcess:
    """A task that an executor runs."""

    def __init__(self, running: asyncio.Future[int], node: str, environment: Mapping[str, str]) -> None:
        self._running = running
        self.node = node
        self.environment = environment

    async def wait(self) -> int:
        """Return its exit code once it has ended."""
        await asyncio.wait([self._running])
        return _KILLED if self._running.cancelled() else self._running.result()

    def kill(self) -> None:
        """End it."""
        self._running.cancel()


class SimulatedProcesses:
    """In place of `processes.Processes`, with the same methods.

    Parameters
    ----------
    executor : str
        As `executors.load` takes it.
    rate : float
        Of the service's clock.
    """

    #: Nothing is on a disk.
    has_disk = False

    def __init__(self, executor: str, rate: float) -> None:
        self._executor: Executor = load(executor)
        self._rate = rate
        #: By node, since that is what is asked for.
        self._living: dict[str, set[SimulatedProcess]] = {}
        self._closing = False

    async def start(self, launch: Launch) -> SimulatedProcess:
        """Have the executor run what is to be launched. :raises LaunchFailed: at the end."""
        if self._closing:
            raise LaunchFailed("The emulator is shutting down.")
        task = SimulatedTask(
            command_line=launch.command_line,
            environment=launch.environment,
            resource_files=launch.resource_files,
            rate=self._rate,
        )
        running = asyncio.ensure_future(self._run(task, fails=launch.replaced))
        process = SimulatedProcess(running, launch.environment.get(_NODE, ""), launch.environment)
        self._living.setdefault(process.node, set()).add(process)
        running.add_done_callback(lambda _: self._ended(process))
        return process

    async def _run(self, task: SimulatedTask, *, fails: bool) -> int:
        if fails:
            return _FAILED
        try:
            return await self._executor(task)
        except Exception:
            _log.exception("%r", task)
            return _FAILED

    def _ended(self, process: SimulatedProcess) -> None:
        living = self._living.get(process.node, set())
        living.discard(process)
        if not living:
            self._living.pop(process.node, None)

    async def kill_tree(self, process: SimulatedProcess, identity: Mapping[str, str]) -> None:
        """End a task."""
        process.kill()
        await process.wait()

    async def sweep(self, identity: Mapping[str, str]) -> None:
        """End every task whose environment holds all of `identity`."""
        given = identity.items()
        found = [each for each in self._living.get(identity.get(_NODE, ""), ()) if given <= each.environment.items()]
        for process in found:
            process.kill()
        for process in found:
            await process.wait()

    async def close(self) -> None:
        """End all tasks; nothing can be started afterwards."""
        self._closing = True
        for process in [each for living in self._living.values() for each in living]:
            process.kill()
