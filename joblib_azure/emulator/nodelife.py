"""The lives of nodes: booting, start tasks, rebooting, preemption and other loss, leaving, taking tasks or not."""

from __future__ import annotations

import asyncio
import logging
import shutil
from typing import TYPE_CHECKING, Any

from . import errors, nodes, times, usage
from .execution import KILLED, Command, Execution, Stopped, failure
from .runner import REQUEUE, TERMINATE, ended_by_request
from .state import Node, Progress

if TYPE_CHECKING:
    from .engine import Engine

_log = logging.getLogger(__name__)
#: States of nodes that are lost to their pool, and may come back.
_GONE = ("preempted", "unusable", "unknown")


class NodeLives:
    """Takes nodes through their states."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._to_be_unusable = engine.options.unusable_nodes

    # -- coming up ----------------------------------------------------------------------------------------------------

    def boot(self, node: Node) -> None:
        """Boot a node, with what it has on its disk."""
        node.booting = self._engine.spawn(self._boot(node))

    async def _boot(self, node: Node) -> None:
        node.move("starting")
        node.boot_time = times.now()
        if self._engine.processes.has_disk:
            await asyncio.to_thread(nodes.make_folders, node)
        await asyncio.sleep(self._engine.options.boot_seconds + self._engine.latency.boot())
        if node.state != "starting":
            return
        if self._to_be_unusable > 0:
            self._to_be_unusable -= 1
            self._unusable(node)
            return
        spec = node.pool.spec.get("startTask")
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
        instead = self._engine.mishaps.of_a_node()
        node.running_start_task = Execution(self._engine.processes, command, progress, instead)
        try:
            await node.running_start_task.run()
        except Stopped:
            progress.finish(KILLED, ended_by_request())
        except Exception:
            _log.exception("start task on %s", node.id)
            progress.finish(None, failure("Unknown", "The emulator failed to run the task.", "servererror"))
        node.running_start_task = None
        return progress.result == "success"

    # -- going --------------------------------------------------------------------------------------------------------

    async def leave(self, node: Node, option: str) -> None:
        """Take a node out of its pool; its tasks end as the deallocation option says."""
        pool = node.pool
        if node.state != "leavingpool":
            node.move("leavingpool")
        await self._clear(node, option)
        for job in list(node.preparations):
            job.preparations.pop(node.id, None)
        await asyncio.to_thread(nodes.wipe, node)
        if pool.nodes.pop(node.id, None) is not None:
            self._engine.account.usage.append(usage.of(node, times.now()))

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
        # daemons too, whatever tasks left them and whatever else they cleared from their environment
        await self._engine.processes.sweep({"AZ_BATCH_NODE_ID": node.id})

    # -- loss ---------------------------------------------------------------------------------------------------------

    def preempt(self, node: Node, seconds: float | None = None) -> None:
        """Take a spot node's machine away: it stays listed, loses its disk, its tasks are queued again.

        Parameters
        ----------
        seconds : float, optional
            When it comes back; by default with `restore`.

        Raises
        ------
        BatchError
            409 for a dedicated node, and for one that is not there to be taken.
        """
        if node.dedicated:
            raise errors.conflict("OperationNotValidOnNode", "Only spot nodes are preempted.", {"NodeId": node.id})
        if node.state in ("preempted", "leavingpool"):
            raise errors.invalid_for_state(f"The node is {node.state}.")
        node.move("preempted")
        node.losing = self._engine.spawn(self._lose(node))
        self.restore_later(node, seconds)

    def mark_unusable(self, node: Node) -> None:
        """Make a node unusable: it takes no tasks, and those that it ran are queued again."""
        if node.state in ("leavingpool", *_GONE):
            raise errors.invalid_for_state(f"The node is {node.state}.")
        self._unusable(node)
        self._engine.spawn(self._clear(node, REQUEUE))

    @staticmethod
    def _unusable(node: Node) -> None:
        node.move("unusable")
        text = "The node cannot be used: the emulator was told that its agent does not answer."
        node.errors = [{"code": "NodeNotReady", "message": text}]

    def restore(self, node: Node) -> None:
        """Bring a node that was preempted, unusable or lost back."""
        if node.state not in _GONE:
            raise errors.invalid_for_state(f"The node is {node.state}.")
        self._return(node)

    def restore_later(self, node: Node, seconds: float | None) -> None:
        """Bring it back after these seconds; None: only `restore` does."""
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, self._return, node)

    def _return(self, node: Node) -> None:
        if node.state in _GONE and node.id in node.pool.nodes:
            node.errors = []
            self._engine.spawn(self._again(node))

    async def _again(self, node: Node) -> None:
        await self._clear(node, REQUEUE)  # until what ended with the loss has ended
        if node.losing is not None:
            await asyncio.wait([node.losing])  # or it would take the folders of the node that boots
        if node.state in _GONE:
            self._have_prepared_again(node)
            self.boot(node)

    async def _lose(self, node: Node) -> None:
        await self._clear(node, REQUEUE)
        await self._wipe(node)

    async def _wipe(self, node: Node) -> None:
        for job in list(node.preparations):
            del node.preparations[job]
        node.errors, node.start_task = [], None
        await asyncio.to_thread(nodes.wipe, node)

    # -- again --------------------------------------------------------------------------------------------------------

    def reboot(self, node: Node, option: str, *, reimage: bool) -> None:
        """Boot a node again; with `reimage` it also loses its disk."""
        self._check_restartable(node)
        node.move("reimaging" if reimage else "rebooting")
        self._engine.spawn(self._reboot(node, option, reimage))

    def resume(self, node: Node) -> None:
        """Boot a node of an account that was restored: whatever it was doing, nothing of it runs any more."""
        if node.state in ("deallocating", "deallocated"):
            node.move("deallocated")
            return
        disk_goes = node.state in ("reimaging", "preempted")
        node.move("rebooting")
        self._engine.spawn(self._reboot(node, REQUEUE, disk_goes))

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
        if reimage:
            await self._wipe(node)
        else:
            self._have_prepared_again(node)
            await asyncio.to_thread(shutil.rmtree, node.root / "volatile", ignore_errors=True)
            node.errors, node.start_task = [], None
        if node.state in ("rebooting", "reimaging"):
            self.boot(node)

    @staticmethod
    def _have_prepared_again(node: Node) -> None:
        """Forget the preparations that a reboot has run again: after their success, and where it came in between."""
        for job, preparation in list(node.preparations.items()):
            again = job.spec["jobPreparationTask"].get("rerunOnNodeRebootAfterSuccess", True)
            if preparation.interrupted or (not preparation.barred and again):
                del node.preparations[job]
                job.preparations.pop(node.id, None)

    # -- its machine given back, and taken again ----------------------------------------------------------------------

    def deallocate(self, node: Node, option: str) -> None:
        """Give a node's machine back: it stays listed, loses its disk and takes no tasks until `start`."""
        if node.state not in ("idle", "running"):
            self._check_restartable(node)
            raise errors.invalid_for_state(f"The node is {node.state}, neither idle nor running.")
        node.move("deallocating")
        self._engine.spawn(self._deallocate(node, option))

    async def _deallocate(self, node: Node, option: str) -> None:
        await self._clear(node, option)
        await self._wipe(node)
        if node.state == "deallocating":
            node.move("deallocated")

    def start(self, node: Node) -> None:
        """Boot a node that was deallocated."""
        if node.state != "deallocated":
            raise errors.invalid_for_state(f"The node is {node.state}; a node can be started only if deallocated.")
        self.boot(node)

    # -- scheduling ---------------------------------------------------------------------------------------------------

    def set_scheduling(self, node: Node, enabled: bool, option: str) -> None:
        if node.scheduling_enabled is enabled:
            text = "The specified node is already in the target scheduling state."
            raise errors.conflict("NodeAlreadyInTargetSchedulingState", text)
        node.scheduling_enabled = enabled
        node.note()
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
