"""Pools and their nodes: resizing, booting, start tasks, rebooting, leaving."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from . import errors, nodes, times
from .execution import KILLED, Command, Execution, Stopped, failure
from .runner import REQUEUE, TERMINATE, ended_by_request
from .state import Node, Pool, Progress

if TYPE_CHECKING:
    from .engine import Engine

_log = logging.getLogger(__name__)


class Allocation:
    """Brings pools to their targets."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, pool: Pool) -> None:
        """Take a new pool into the account and start its first resize.

        Raises
        ------
        BatchError
            409 `PoolExists`, `PoolQuotaReached`.
        """
        pools = self._engine.account.pools
        if pool.id.lower() in pools:
            raise errors.pool_exists()
        if len(pools) >= self._engine.pool_quota:
            raise errors.pool_quota(self._engine.pool_quota)
        pools[pool.id.lower()] = pool
        self._begin(pool, "requeue", None)

    def resize(self, pool: Pool, dedicated: int, spot: int, option: str) -> None:
        pool.target_dedicated, pool.target_spot = dedicated, spot
        pool.touch()
        self._begin(pool, option, None)

    def remove(self, pool: Pool, leaving: list[Node], option: str) -> None:
        """Take these nodes out, and the targets down with them."""
        pool.target_dedicated -= sum(node.dedicated for node in leaving)
        pool.target_spot -= sum(not node.dedicated for node in leaving)
        pool.touch()
        self._begin(pool, option, leaving)

    def stop_resize(self, pool: Pool) -> None:
        if pool.allocation_state == "resizing":
            pool.stop_resize = True
            pool.allocate("stopping")
            pool.touch()

    def delete(self, pool: Pool) -> None:
        pool.move("deleting")
        pool.touch()
        self._engine.spawn(self._delete(pool))

    async def _delete(self, pool: Pool) -> None:
        pool.stop_resize = True
        if pool.resizing is not None and not pool.resizing.done():
            await asyncio.wait([pool.resizing])
        pool.target_dedicated = pool.target_spot = 0
        pool.allocate("resizing")
        await asyncio.gather(*(self._leave(node, "requeue") for node in list(pool.nodes.values())))
        self._engine.account.pools.pop(pool.id.lower(), None)

    # -- resizing -----------------------------------------------------------------------------------------------------

    def _begin(self, pool: Pool, option: str, leaving: list[Node] | None) -> None:
        pool.allocate("resizing")
        pool.resize_errors = []
        pool.stop_resize = False
        pool.resizing = self._engine.spawn(self._resize(pool, option, leaving))

    async def _resize(self, pool: Pool, option: str, leaving: list[Node] | None) -> None:
        await asyncio.sleep(0)  # the answer to the request shows the pool resizing
        try:
            for node in self._surplus(pool) if leaving is None else leaving:
                if pool.stop_resize or not await self._leave_in_time(pool, node, option):
                    return
            for dedicated, target in ((True, pool.target_dedicated), (False, pool.target_spot)):
                have = sum(node.dedicated is dedicated for node in pool.live_nodes())
                for _ in range(target - have):
                    if pool.stop_resize:
                        return
                    self._add_node(pool, dedicated)
        finally:
            pool.allocate("steady")
            pool.touch()

    @staticmethod
    def _surplus(pool: Pool) -> Iterable[Node]:
        surplus: list[Node] = []
        for dedicated, target in ((True, pool.target_dedicated), (False, pool.target_spot)):
            live = [node for node in pool.live_nodes() if node.dedicated is dedicated]
            # nodes that run nothing go first, the youngest of them before the others
            live.sort(key=lambda node: (len(node.assigned), -node.sequence))
            surplus += live[: max(0, len(live) - target)]
        return surplus

    async def _leave_in_time(self, pool: Pool, node: Node, option: str) -> bool:
        leaving = self._engine.spawn(self._leave(node, option))
        done, _ = await asyncio.wait([leaving], timeout=pool.resize_timeout.total_seconds())
        if not done:
            text = "Desired number of nodes could not be reached as the resize timeout was reached"
            pool.resize_errors = [{"code": "AllocationTimedOut", "message": text}]
        return bool(done)

    def _add_node(self, pool: Pool, dedicated: bool) -> None:
        node = nodes.new_node(pool, self._engine.root, self._engine.cpus.take(pool.cores), dedicated=dedicated)
        pool.nodes[node.id] = node
        node.booting = self._engine.spawn(self._boot(node))

    # -- nodes --------------------------------------------------------------------------------------------------------

    async def _boot(self, node: Node) -> None:
        node.move("starting")
        node.boot_time = times.now()
        await asyncio.to_thread(nodes.make_folders, node)
        spec = node.pool.spec.get("startTask")
        if node.state == "leavingpool":
            return
        if spec is None:
            node.move("idle")
            self._engine.scheduler.poke()
            return
        waits = spec.get("waitForSuccess", True)
        node.move("waitingforstarttask" if waits else "idle")
        if not waits:
            self._engine.scheduler.poke()
        succeeded = await self._run_start_task(node, spec)
        if waits and node.state == "waitingforstarttask":
            node.move("idle" if succeeded else "starttaskfailed")
            if not succeeded:
                node.errors = [{"code": "StartTaskFailed", "message": "The start task failed on the node."}]
            self._engine.scheduler.poke()

    async def _run_start_task(self, node: Node, spec: dict[str, Any]) -> bool:
        progress = node.start_task = Progress()
        directory = node.root / "startup"
        command = Command(
            command_line=spec["commandLine"],
            directory=directory,
            environment=self._engine.environment(node, directory, settings=spec.get("environmentSettings", [])),
            cpus=node.cpus,
            resource_files=spec.get("resourceFiles", []),
            max_retries=spec.get("maxTaskRetryCount", 0),
        )
        node.running_start_task = Execution(self._engine.processes, command, progress)
        try:
            await node.running_start_task.run()
        except Stopped:
            progress.finish(KILLED, ended_by_request())
        except Exception:
            _log.exception("start task on %s", node.id)
            progress.finish(None, failure("Unknown", "The emulator failed to run the task.", "ServerError"))
        node.running_start_task = None
        return progress.result == "success"

    async def _leave(self, node: Node, option: str) -> None:
        pool = node.pool
        node.move("leavingpool")
        await self._clear(node, option)
        for job in list(node.preparations):
            job.preparations.pop(node.id, None)
        await asyncio.to_thread(shutil.rmtree, node.root, ignore_errors=True)
        pool.nodes.pop(node.id, None)

    async def _clear(self, node: Node, option: str) -> None:
        """End everything that runs on a node, its tasks as the option says."""
        if option in ("taskcompletion", "retaineddata"):
            drivers = [task.driver for task in node.assigned if task.driver is not None]
            if drivers:
                await asyncio.wait(drivers)
        else:
            await self._engine.runner.stop(node.assigned, TERMINATE if option == "terminate" else REQUEUE)
        if node.running_start_task is not None:
            node.running_start_task.stop(TERMINATE)
        if node.booting is not None and not node.booting.done():
            await asyncio.wait([node.booting])
        for preparation in list(node.preparations.values()):
            await self._engine.runner.stop_preparation(preparation)
        await self._engine.processes.sweep({"AZ_BATCH_NODE_ID": node.id})

    def reboot(self, node: Node, option: str, *, reimage: bool) -> None:
        """Boot a node again; with `reimage` it also loses its disk."""
        self._check_restartable(node)
        node.move("reimaging" if reimage else "rebooting")
        self._engine.spawn(self._reboot(node, option, reimage))

    @staticmethod
    def _check_restartable(node: Node) -> None:
        if node.state not in ("idle", "running", "starttaskfailed"):
            codes = {
                "creating": ("NodeBeingCreated", "The specified node is being created."),
                "starting": ("NodeBeingStarted", "The specified node is being started."),
                "waitingforstarttask": ("NodeBeingStarted", "The specified node is being started."),
                "rebooting": ("NodeBeingRebooted", "The specified node is being rebooted."),
                "reimaging": ("NodeBeingReimaged", "The specified node is being reimaged."),
                "unusable": ("NodeStateUnusable", "The specified node is unusable."),
            }
            default = ("OperationInvalidForCurrentState", "The node is not in a state to be restarted.")
            raise errors.conflict(*codes.get(node.state, default), {"NodeState": node.state})

    async def _reboot(self, node: Node, option: str, reimage: bool) -> None:
        await self._clear(node, option)
        for job, preparation in list(node.preparations.items()):
            again = job.spec["jobPreparationTask"].get("rerunOnNodeRebootAfterSuccess", True)
            if reimage or (not preparation.barred and again):
                del node.preparations[job]
        lost = node.root if reimage else node.root / "volatile"
        await asyncio.to_thread(shutil.rmtree, lost, ignore_errors=True)
        node.errors, node.start_task = [], None
        if node.state != "leavingpool":
            node.booting = self._engine.spawn(self._boot(node))

    # -- scheduling ---------------------------------------------------------------------------------------------------

    def set_scheduling(self, node: Node, enabled: bool, option: str) -> None:
        if node.scheduling_enabled is enabled:
            text = "The specified node is already in the target scheduling state."
            raise errors.conflict("NodeAlreadyInTargetSchedulingState", text)
        node.scheduling_enabled = enabled
        if enabled:
            if node.state == "offline":
                node.move("running" if node.assigned else "idle")
            self._engine.scheduler.poke()
        else:
            self._engine.spawn(self._take_offline(node, option))

    async def _take_offline(self, node: Node, option: str) -> None:
        if option == "taskcompletion":
            drivers = [task.driver for task in node.assigned if task.driver is not None]
            if drivers:
                await asyncio.wait(drivers)
        else:
            await self._engine.runner.stop(node.assigned, TERMINATE if option == "terminate" else REQUEUE)
        if not node.scheduling_enabled and node.state in ("idle", "running"):
            node.move("offline")
