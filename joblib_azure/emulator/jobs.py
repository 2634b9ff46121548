"""The lives of jobs: quota, wall clock, ending, disabling, dependencies, and what a task's end means for its job."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import autopools, errors, times
from .runner import DELETE, REQUEUE, TERMINATE, ended_by_request
from .state import Job, Schedule, Task

if TYPE_CHECKING:
    from .engine import Engine

#: Jobs in these states take no more tasks and no updates.
OVER = ("terminating", "completed", "deleting")


class Jobs:
    """What happens to jobs as wholes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, spec: dict[str, Any], schedule: Schedule | None = None) -> Job:
        """A new, active job, with its job manager task if it has one.

        Raises
        ------
        BatchError
            409 `JobExists`, `JobScheduleWithSameIdExists`, `ActiveJobAndScheduleQuotaReached`.
        """
        jobs = self._engine.account.jobs
        if spec["id"].lower() in jobs:
            raise errors.job_exists()
        if spec["id"].lower() in self._engine.account.schedules:
            raise errors.conflict("JobScheduleWithSameIdExists", "A job schedule with the same id exists.")
        self.check_quota()
        late = self._engine.latency.counts()
        job = Job(id=spec["id"], state="active", spec=spec, schedule=schedule, late_counts=late)
        job.progress.start = job.created
        jobs[job.id.lower()] = job
        try:
            autopools.provide(self._engine, job)
        except errors.BatchError as exc:  # the job is there, and over
            code, text = "AutoPoolCreationFailedWithQuotaReached", f"The pool of the job cannot be made: {exc.message}"
            job.scheduling_error = {"category": "usererror", "code": code, "message": text}
            job.progress.end = times.now()
            job.move("completed")
            return job
        if "jobManagerTask" in spec:
            self.add_task(job, spec["jobManagerTask"], manager=True)
        self.updated(job)
        return job

    def check_quota(self) -> None:
        """Refuse one more active job or schedule where the account has no room: 409."""
        account, quota = self._engine.account, self._engine.options.active_job_quota
        active = [each for each in (*account.jobs.values(), *account.schedules.values()) if each.state != "completed"]
        if len(active) >= quota:
            raise errors.job_quota(quota)

    def resume(self, job: Job) -> None:
        """Have a job that was restored go on."""
        if job.state == "deleting":
            self.delete(job)
        elif job.state == "terminating":
            self.terminate(job, job.ending_for)
        elif job.state == "disabling":  # what it waited for runs no more
            job.move("disabled")
        if job.state not in OVER:
            for task in job.tasks.values():
                if task.state == "active":
                    self._queue(task)
            self.updated(job)

    def updated(self, job: Job) -> None:
        """Act on a job's (new) constraints and actions."""
        if job.deadline is not None:
            job.deadline.cancel()
            job.deadline = None
        limit = job.spec.get("constraints", {}).get("maxWallClockTime")
        duration = times.parse_duration(limit) if limit else None
        if duration is not None and limit != times.UNLIMITED and job.state not in OVER:
            # measured from the job's creation, so a later update moves the end, not the start
            left = duration.total_seconds() - (times.now() - job.created).total_seconds()
            if left < 10_000_000:  # a timer's own limit; nothing here lives for months
                loop = asyncio.get_running_loop()
                job.deadline = loop.call_later(max(0.0, left), self._overrun, job)
        self._end_if_all_complete(job)
        self._engine.scheduler.poke()

    def _overrun(self, job: Job) -> None:
        if job.state not in OVER:
            self.terminate(job, "MaxWallClockTimeExpiry")

    # -- ending -------------------------------------------------------------------------------------------------------

    def terminate(self, job: Job, reason: str) -> None:
        """Kill what runs, run the release tasks, complete. Active tasks stay active, as the service leaves them."""
        job.move("terminating")
        job.touch()
        job.ending_for = reason
        if job.deadline is not None:
            job.deadline.cancel()
        job.ending = self._engine.spawn(self._terminate(job, reason))

    async def _terminate(self, job: Job, reason: str) -> None:
        await self._stop_all(job, TERMINATE)
        job.terminate_reason = reason
        job.progress.end = times.now()
        if job.state == "terminating":
            job.move("completed")
            job.touch()
            autopools.job_over(self._engine, job)
            self._engine.schedules.job_over(job)

    def delete(self, job: Job) -> None:
        job.move("deleting")
        job.touch()
        if job.deadline is not None:
            job.deadline.cancel()
        job.ending = self._engine.spawn(self._delete(job, job.ending))

    async def _delete(self, job: Job, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None and not earlier.done():
            await asyncio.wait([earlier])
        await self._stop_all(job, DELETE)
        touched = {task.node for task in job.tasks.values() if task.node is not None}
        touched.update(preparation.node for preparation in job.preparations.values())
        for node in touched:
            node.preparations.pop(job, None)
            folder = node.root / job.folder
            await asyncio.to_thread(_remove, folder)
        self._engine.account.jobs.pop(job.id.lower(), None)
        autopools.job_over(self._engine, job)
        self._engine.schedules.job_gone(job)

    async def _stop_all(self, job: Job, reason: str) -> None:
        await self._engine.runner.stop(job.tasks.values(), reason)
        preparations = list(job.preparations.values())
        for preparation in preparations:
            await self._engine.runner.stop_preparation(preparation)
        await asyncio.gather(*(self._engine.runner.release(preparation) for preparation in preparations))

    # -- disabling ----------------------------------------------------------------------------------------------------

    def disable(self, job: Job, how: str) -> None:
        job.move("disabling")
        job.touch()
        self._engine.spawn(self._disable(job, how))

    async def _disable(self, job: Job, how: str) -> None:
        if how == "wait":
            drivers = [task.driver for task in job.tasks.values() if task.driver is not None]
            if drivers:
                await asyncio.wait(drivers)
        else:
            await self._engine.runner.stop(job.tasks.values(), REQUEUE if how == "requeue" else TERMINATE)
        if job.state == "disabling":
            job.move("disabled")
            job.touch()

    def enable(self, job: Job) -> None:
        job.move("enabling")
        job.move("active")
        job.touch()
        self.updated(job)

    # -- tasks --------------------------------------------------------------------------------------------------------

    def add_task(self, job: Job, spec: dict[str, Any], *, manager: bool = False) -> Task:
        """Add a checked task to a job that takes tasks; it starts as soon as a slot is free.

        Raises
        ------
        BatchError
            409 `TaskExists`.
        """
        key = spec["id"].lower()
        if key in job.tasks:
            raise errors.task_exists()
        slots = spec.get("requiredSlots", 1)
        task = Task(id=spec["id"], state="active", job=job, spec=spec, slots=slots, manager=manager)
        job.tasks[key] = task
        job.count(task, +1)
        self._queue(task)
        return task

    def _queue(self, task: Task) -> None:
        if "dependsOn" in task.spec and not dependencies_met(task):
            task.job.blocked[task] = None
        else:
            self._engine.scheduler.enqueue(task)

    def reactivate(self, task: Task) -> None:
        task.move("active")
        task.progress = type(task.progress)()
        task.node = task.directory = None
        task.touch()
        self._queue(task)

    async def end_task(self, task: Task) -> None:
        """Terminate a task that is not complete."""
        if task.execution is not None:
            await self._engine.runner.stop([task], TERMINATE)
            return
        task.ticket = 0
        task.job.blocked.pop(task, None)
        task.progress.finish(None, ended_by_request())
        task.move("completed")
        self.task_completed(task)

    async def delete_task(self, task: Task) -> None:
        await self._engine.runner.stop([task], DELETE)
        job = task.job
        if task.deleted:
            return
        task.deleted = True
        task.ticket = 0
        job.blocked.pop(task, None)
        job.count(task, -1)
        job.tasks.pop(task.id.lower(), None)
        if task.directory is not None:
            await asyncio.to_thread(shutil.rmtree, task.directory, ignore_errors=True)
        self._end_if_all_complete(job)

    def task_completed(self, task: Task) -> None:
        """Let a completed task's dependents go, take its exit condition's action, end the job if it was the last."""
        job = task.job
        for blocked in [each for each in job.blocked if dependencies_met(each)]:
            del job.blocked[blocked]
            self._engine.scheduler.enqueue(blocked)
        if job.state == "active" and job.spec.get("onTaskFailure") == "performexitoptionsjobaction":
            action = exit_options(task).get("jobAction", "none" if task.progress.result == "success" else "terminate")
            if action == "terminate" and "exitConditions" in task.spec:
                self.terminate(job, "TaskFailed")
            elif action == "disable" and "exitConditions" in task.spec:
                self.disable(job, "requeue")
        if task.manager and task.spec.get("killJobOnCompletion", True) and job.state not in OVER:
            self.terminate(job, "JMComplete")
        self._end_if_all_complete(job)

    def _end_if_all_complete(self, job: Job) -> None:
        # true for a job without tasks: https://learn.microsoft.com/rest/api/batchservice/job/add, onAllTasksComplete
        complete = job.counts["completed"][0] == len(job.tasks)
        if complete and job.state == "active" and job.spec.get("onAllTasksComplete") == "terminatejob":
            self.terminate(job, "AllTasksComplete")


def _remove(folder: Path) -> None:
    """Remove a job's folder, and that of its schedule after the last of its jobs."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def exit_options(task: Task) -> dict[str, Any]:
    """The exit options that apply to a completed task: the most specific wins."""
    conditions: dict[str, Any] = task.spec.get("exitConditions", {})
    progress = task.progress
    code = progress.exit_code
    found: dict[str, Any] | None = None
    if code is None:
        found = conditions.get("preProcessingError")
    else:
        for mapping in conditions.get("exitCodes", []):
            if mapping["code"] == code:
                found = mapping["exitOptions"]
        for mapping in conditions.get("exitCodeRanges", []) if found is None else []:
            if mapping["start"] <= code <= mapping["end"]:
                found = mapping["exitOptions"]
        if found is None and progress.failure is not None and progress.failure["code"].startswith("FileUpload"):
            return dict(conditions.get("fileUploadError") or conditions.get("default") or {})
    if found is None and (code != 0 or conditions.get("default") is None):
        found = conditions.get("default")
    return found or {}


def dependencies_met(task: Task) -> bool:
    wanted = task.spec["dependsOn"]
    ids = list(wanted.get("taskIds", []))
    for each in wanted.get("taskIdRanges", []):
        ids += [str(number) for number in range(each["start"], each["end"] + 1)]
    return all(_satisfies(task.job.tasks.get(each.lower())) for each in ids)


def _satisfies(task: Task | None) -> bool:
    if task is None or task.state != "completed":
        return False
    default = "satisfy" if task.progress.result == "success" else "block"
    return bool(exit_options(task).get("dependencyAction", default) == "satisfy")
