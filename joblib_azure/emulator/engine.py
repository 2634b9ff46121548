"""The service behind the API: puts account, scheduler, runner, allocation and processes together.

    handlers ─► schedules, jobs, autoscaler ─► allocation ─► nodelife ─► scheduler ─► runner ─► execution ─► processes
                      state (account, pools, nodes, jobs, tasks) beneath all of them

Where an executor is given, `simulated` has the place of `processes`.
Everything runs on one event loop; processes are started, files moved and the machine scanned in threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from . import nodes
from .allocation import Allocation
from .autoscaler import Autoscaler
from .jobs import Jobs
from .latency import Latency
from .mishaps import Mishaps
from .nodelife import NodeLives
from .options import Options
from .processes import Machine, Processes
from .runner import Runner
from .scheduler import Scheduler
from .schedules import Schedules
from .simulated import SimulatedProcesses
from .state import Account, Job, Node

_log = logging.getLogger(__name__)


class Engine:
    """One Batch account. Create it in a running event loop, in the main thread."""

    def __init__(
        self,
        *,
        account_name: str,
        endpoint: str,
        root: Path,
        run_id: str,
        options: Options,
    ) -> None:
        self.account = Account(account_name)
        self.endpoint = endpoint
        self.root = root
        self.run_id = run_id
        self.options = options
        self.latency = Latency(options.latency, options.clock_rate, options.latency_seed)
        self.cpus = nodes.CpuAllotment()
        self.processes: Machine = (
            Processes(run_id) if options.executor is None else SimulatedProcesses(options.executor, options.clock_rate)
        )
        self.mishaps = Mishaps(self)
        self.runner = Runner(self)
        self.jobs = Jobs(self)
        self.schedules = Schedules(self)
        self.lives = NodeLives(self)
        self.allocation = Allocation(self)
        self.scheduler = Scheduler(self.account, self.runner.start)
        self.autoscaler = Autoscaler(self)
        self._background: set[asyncio.Task[None]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine on its own; a failure of it is logged, never lost."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            _log.error("a background activity failed", exc_info=exc)

    def environment(
        self,
        node: Node,
        directory: Path,
        *,
        settings: list[dict[str, Any]],
        job: Job | None = None,
        task_id: str | None = None,
    ) -> dict[str, str]:
        """The environment of a process on a node."""
        return nodes.environment(
            node,
            directory,
            account_name=self.account.name,
            endpoint=self.endpoint,
            run_id=self.run_id,
            settings=settings,
            job=job,
            task_id=task_id,
        )

    async def close(self) -> None:
        """Kill every process of every node; nothing can be started afterwards."""
        self.autoscaler.close()
        self.schedules.close()
        await self.processes.close()
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
