"""Tasks on nodes: from the slot that the scheduler gave, over the way there and the job's preparation, to the end.

Each assigned task has one coroutine (`Task.driver`) that takes it through its states; whoever wants to end it early
stops its execution with a reason, and waits for the driver.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from . import nodes, times
from .execution import KILLED, UNSEEN, Command, Execution, Stopped, failure
from .state import Job, Node, Preparation, Progress, Task

if TYPE_CHECKING:
    from .engine import Engine

_log = logging.getLogger(__name__)

# reasons to stop a task
TERMINATE = "terminate"  # it completes as a failure
REQUEUE = "requeue"  # it becomes active again
DELETE = "delete"  # nobody will look at it any more
LOST = UNSEEN  # it becomes active again, and its processes go on where nobody sees them

_DEFAULT_RETENTION = timedelta(days=7)  # documented at BatchTaskConstraints.retentionTime
_RELEASE_LIMIT = timedelta(minutes=15)  # documented default of jobReleaseTask.maxWallClockTime


class _NodeBarred(Exception):
    """The job's preparation failed on the node: the task goes back to active, to be tried elsewhere."""


class Runner:
    """Runs tasks, preparation tasks and release tasks."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # -- tasks --------------------------------------------------------------------------------------------------------

    def start(self, task: Task, node: Node) -> None:
        """Take slots of a node for a task, and set it going."""
        job = task.job
        node.take(task)
        job.busy += 1
        node.move("running")
        command = self._command(
            task.spec, node, job, task.id, constraints=task.spec.get("constraints") or job.spec.get("constraints", {})
        )
        if "constraints" not in task.spec:  # the job's wall clock is the job's
            command = Command(**{**vars(command), "max_wall_clock": None})
        latency = self._engine.latency
        task.execution = Execution(self._engine.processes, command, task.progress, report=latency.report())
        seconds = self._engine.options.dispatch_seconds + latency.dispatch()
        wait_for = self._arrive(task, node) if not seconds else None
        task.driver = self._engine.spawn(self._drive(task, node, task.execution, seconds, wait_for))

    def _arrive(self, task: Task, node: Node) -> Preparation | None:
        """The node hears of the task; what the task must wait for there."""
        task.node = node
        task.directory = nodes.task_directory(node, task.job, task.id)
        node.recent.append(task)
        preparation = self._preparation(node, task.job)
        ready = preparation is None or (preparation.ended.is_set() and not preparation.barred)
        task.move("running" if ready else "preparing")
        return None if ready else preparation

    async def _drive(
        self, task: Task, node: Node, execution: Execution, seconds: float, wait_for: Preparation | None
    ) -> None:
        job = task.job
        reason = None
        try:
            if seconds:
                await execution.pause(seconds)
                wait_for = self._arrive(task, node)
            if wait_for is not None:
                await self._prepared(wait_for, execution)
                task.move("running")
            await execution.run()
        except Stopped as exc:
            reason = exc.reason
        except _NodeBarred:
            reason = "barred"
        except Exception:
            _log.exception("task %s of job %s", task.id, job.id)
            task.progress.finish(None, failure("Unknown", "The emulator failed to run the task.", "servererror"))
        task.execution = task.driver = None
        job.busy -= 1
        node.give_back(task)
        if not node.assigned and node.state == "running":
            node.move("idle")
        if reason in (REQUEUE, LOST, "barred"):
            # one that had not arrived was active all the time
            self._requeue(task, counted=reason != "barred" and task.node is not None)
        elif reason != DELETE:
            if reason is not None:
                started = task.progress.start is not None
                task.progress.finish(KILLED if started else None, ended_by_request())
            self._complete(task, node)
        self._engine.scheduler.poke()

    @staticmethod
    async def _prepared(preparation: Preparation, execution: Execution) -> None:
        ended = asyncio.ensure_future(preparation.ended.wait())
        waiting: set[asyncio.Future[Any]] = {ended, execution.stopped}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if execution.stopped.done():
            raise Stopped(execution.stopped.result())
        if preparation.barred:
            raise _NodeBarred

    def _requeue(self, task: Task, *, counted: bool) -> None:
        task.progress.interrupt(counted=counted)
        task.node = task.directory = None
        task.move("active")
        self._engine.scheduler.enqueue(task)

    def _complete(self, task: Task, node: Node) -> None:
        task.move("completed")
        node.total_run += 1
        if task.progress.result == "success":
            node.total_succeeded += 1
        self._keep(task)
        self._engine.jobs.task_completed(task)

    def _keep(self, task: Task) -> None:
        """Have the task's folder removed once its retention time is over."""
        given = task.spec.get("constraints", {}).get("retentionTime")
        span = times.parse_duration(given) if given else None
        if span is not None and span < _DEFAULT_RETENTION:  # nothing here lives for a week
            loop = asyncio.get_running_loop()
            loop.call_later(span.total_seconds(), self._clean_up, task, task.progress)

    def _clean_up(self, task: Task, progress: Progress) -> None:
        job = self._engine.account.jobs.get(task.job.id.lower())
        same = job is not None and job.tasks.get(task.id.lower()) is task and task.progress is progress
        if same and task.directory is not None:  # neither reactivated nor deleted, with another in its place
            self._engine.spawn(asyncio.to_thread(shutil.rmtree, task.directory, ignore_errors=True))

    async def stop(self, tasks: Iterable[Task], reason: str) -> None:
        """Stop running tasks, and wait until each is what the reason makes of it."""
        drivers = []
        for task in list(tasks):
            if task.execution is not None and task.driver is not None:
                task.execution.stop(reason)
                drivers.append(task.driver)
        if drivers:
            await asyncio.wait(drivers)

    # -- preparation and release --------------------------------------------------------------------------------------

    def _preparation(self, node: Node, job: Job) -> Preparation | None:
        """What the job's tasks must wait for on the node; started with the first of them."""
        spec = job.spec.get("jobPreparationTask")
        if spec is None:
            return None
        found = node.preparations.get(job)
        if found is None:
            found = Preparation(job, node)
            node.preparations[job] = job.preparations[node.id] = found
            command = self._command(spec, node, job, nodes.preparation_id(job), constraints=spec.get("constraints", {}))
            mishaps = self._engine.mishaps
            found.running = Execution(
                self._engine.processes, command, found.progress, lambda: mishaps.in_its_place("preparation")
            )
            self._engine.spawn(self._prepare(found, found.running, wait=spec.get("waitForSuccess", True)))
        return found if spec.get("waitForSuccess", True) else None

    async def _prepare(self, preparation: Preparation, execution: Execution, *, wait: bool) -> None:
        progress = preparation.progress
        try:
            await execution.run()
        except Stopped:
            preparation.interrupted = True
            progress.finish(KILLED, ended_by_request())
        except Exception:
            _log.exception("preparation of job %s", preparation.job.id)
            progress.finish(None, failure("Unknown", "The emulator failed to run the task.", "servererror"))
        preparation.running = None
        preparation.barred = wait and progress.result == "failure"
        preparation.ended.set()
        self._engine.scheduler.poke()

    async def stop_preparation(self, preparation: Preparation) -> None:
        if preparation.running is not None:
            preparation.running.stop(TERMINATE)
            await preparation.ended.wait()

    async def release(self, preparation: Preparation) -> None:
        """Run the job's release task on a node that ran its preparation."""
        job, node = preparation.job, preparation.node
        spec = job.spec.get("jobReleaseTask")
        if spec is None or preparation.release is not None or node.state in ("leavingpool", "starttaskfailed"):
            return
        preparation.release = Progress()
        limit = spec.get("maxWallClockTime")
        constraints = {"maxWallClockTime": limit} if limit else {}
        command = self._command(spec, node, job, nodes.release_id(job), constraints=constraints)
        if command.max_wall_clock is None:
            command = Command(**{**vars(command), "max_wall_clock": _RELEASE_LIMIT})
        preparation.running = Execution(self._engine.processes, command, preparation.release)
        try:
            await preparation.running.run()
        except Stopped:
            preparation.release.finish(KILLED, ended_by_request())
        finally:
            preparation.running = None

    def _command(
        self, spec: dict[str, Any], node: Node, job: Job, task_id: str, *, constraints: dict[str, Any]
    ) -> Command:
        directory = nodes.task_directory(node, job, task_id)
        limit = constraints.get("maxWallClockTime")
        return Command(
            command_line=spec["commandLine"],
            directory=directory,
            environment=self._engine.environment(
                node, directory, settings=spec.get("environmentSettings", []), job=job, task_id=task_id
            ),
            cpus=node.cpus,
            resource_files=spec.get("resourceFiles", []),
            output_files=spec.get("outputFiles", []),
            max_retries=constraints.get(
                "maxTaskRetryCount", job.spec.get("constraints", {}).get("maxTaskRetryCount", 0)
            ),
            max_wall_clock=times.parse_duration(limit) if limit else None,
        )


def ended_by_request() -> dict[str, Any]:
    return failure("TaskEnded", "Task Was Ended by User Request", Message="Task Was Ended by User Request")
