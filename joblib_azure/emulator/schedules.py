"""Job schedules: when their jobs are due, and what becomes of a schedule.

    spec ─► due ─► look ─► Jobs.add (``id:job-1``, …) ─► the job ends ─► look …

A schedule has at most one job that is not over. One that is due while another runs waits for its end, as long as the
start window and the next recurrence let it; an opportunity that is lost stays lost. Recurrences and windows pass with
the `clock_rate`; ``doNotRunUntil`` and ``doNotRunAfter`` are times of day and do not.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from . import autopools, errors, times
from .jobs import OVER
from .state import Job, Schedule

if TYPE_CHECKING:
    from .engine import Engine

_log = logging.getLogger(__name__)
#: Until a job that could not be made (the account's quota is reached) is tried again.
_RETRY = timedelta(seconds=30)
_LONGEST_TIMER = 10_000_000.0


class Schedules:
    """Takes job schedules through their states."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._rate = engine.options.clock_rate

    def add(self, spec: dict[str, Any]) -> Schedule:
        """A new, active schedule; its first job is made at once if it is due.

        Raises
        ------
        BatchError
            409 `JobScheduleExists`, `JobWithSameIdExists`, `ActiveJobAndScheduleQuotaReached`.
        """
        account = self._engine.account
        key = spec["id"].lower()
        if key in account.schedules:
            raise errors.schedule_exists()
        if key in account.jobs:
            raise errors.conflict("JobWithSameIdExists", "A job with the same id exists.")
        self._engine.jobs.check_quota()
        schedule = Schedule(id=spec["id"], state="active", spec=spec)
        account.schedules[key] = schedule
        self._plan(schedule)
        return schedule

    def update(self, schedule: Schedule, spec: dict[str, Any]) -> None:
        """Put another spec in the place of a schedule's; jobs that were made keep theirs."""
        planned = schedule.spec.get("schedule", {}) != spec.get("schedule", {})
        schedule.spec = spec
        schedule.touch()
        if planned:
            self._plan(schedule)

    def resume(self, schedule: Schedule) -> None:
        """Have a schedule that was restored go on."""
        if schedule.state == "deleting":
            self.delete(schedule)
        elif schedule.state == "terminating":
            self.terminate(schedule)
        else:
            self._look(schedule)

    def disable(self, schedule: Schedule) -> None:
        schedule.move("disabled")
        schedule.touch()
        self._cancel(schedule)

    def enable(self, schedule: Schedule) -> None:
        schedule.move("active")
        schedule.touch()
        self._look(schedule)

    def terminate(self, schedule: Schedule) -> None:
        """End a schedule, and the job that it has."""
        schedule.move("terminating")
        schedule.touch()
        self._cancel(schedule)
        schedule.ending = self._engine.spawn(self._terminate(schedule))

    async def _terminate(self, schedule: Schedule) -> None:
        for job in schedule.jobs:
            if job.state not in OVER:
                self._engine.jobs.terminate(job, "TerminateJobSchedule")
        await self._ended(schedule)
        if schedule.state == "terminating":
            self._complete(schedule)

    def delete(self, schedule: Schedule) -> None:
        """Remove a schedule with all jobs that it has made."""
        schedule.move("deleting")
        schedule.touch()
        self._cancel(schedule)
        schedule.ending = self._engine.spawn(self._delete(schedule, schedule.ending))

    async def _delete(self, schedule: Schedule, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            await asyncio.wait([earlier])
        for job in list(schedule.jobs):
            if job.state != "deleting":
                self._engine.jobs.delete(job)
        await self._ended(schedule)
        autopools.schedule_over(self._engine, schedule)
        self._engine.account.schedules.pop(schedule.id.lower(), None)

    @staticmethod
    async def _ended(schedule: Schedule) -> None:
        endings = [job.ending for job in schedule.jobs if job.ending is not None and not job.ending.done()]
        if endings:
            await asyncio.wait(endings)

    def job_over(self, job: Job) -> None:
        """Note the end of a job: the schedule's next one may start, or the schedule is complete."""
        if job.schedule is not None:
            self._look(job.schedule)

    def job_gone(self, job: Job) -> None:
        """Note that a job was deleted."""
        if job.schedule is not None:
            job.schedule.jobs.remove(job)
            self._look(job.schedule)

    def close(self) -> None:
        """Make no more jobs."""
        for schedule in self._engine.account.schedules.values():
            self._cancel(schedule)

    # -- when ---------------------------------------------------------------------------------------------------------

    def _plan(self, schedule: Schedule) -> None:
        """Find the first time that is due from now on, after the schedule was made or changed."""
        now, interval = times.now(), self._span(schedule, "recurrenceInterval")
        due = _moment(schedule, "doNotRunUntil") or schedule.due or now
        if schedule.jobs_made == 0:
            schedule.due = due
        elif interval is None:
            schedule.due = None
        else:  # what lies behind had its job
            schedule.due = due + ((now - due) // interval + 1) * interval if due <= now else due
        self._look(schedule)

    def _span(self, schedule: Schedule, name: str) -> timedelta | None:
        text = schedule.spec.get("schedule", {}).get(name)
        span = times.parse_duration(text) if text else None
        return span / self._rate if span is not None else None

    def _look(self, schedule: Schedule) -> None:
        """Do what the time asks for; a schedule with a job that is not over waits for that."""
        self._cancel(schedule)
        if schedule.state != "active" or any(job.state not in OVER for job in schedule.jobs):
            return
        if any(job.state == "terminating" for job in schedule.jobs):
            return  # it says when it is over
        now = times.now()
        last = _moment(schedule, "doNotRunAfter")
        self._skip_lost(schedule, now)
        if schedule.due is None or (last is not None and now >= last):
            self._complete(schedule)
        elif schedule.due <= now:
            self._make_job(schedule)
        else:
            self._wait(schedule, min(schedule.due, last) if last is not None else schedule.due)

    def _skip_lost(self, schedule: Schedule, now: datetime) -> None:
        """Move on to the last time that was due, or past it if its window is over."""
        interval, window = self._span(schedule, "recurrenceInterval"), self._span(schedule, "startWindow")
        if schedule.due is None:
            return
        if interval is not None and schedule.due < now:
            schedule.due += (now - schedule.due) // interval * interval
        if window is not None and schedule.due + window < now:
            schedule.due = schedule.due + interval if interval is not None else None

    def _make_job(self, schedule: Schedule) -> None:
        number = schedule.jobs_made + 1
        spec = {**schedule.spec["jobSpecification"], "id": f"{schedule.id}:job-{number}"}
        try:
            job = self._engine.jobs.add(spec, schedule)
        except errors.BatchError as exc:
            _log.warning("the schedule %s cannot make its job now: %s", schedule.id, exc)
            self._wait(schedule, times.now() + _RETRY / self._rate)
            return
        schedule.jobs_made = number
        interval = self._span(schedule, "recurrenceInterval")
        if schedule.due is not None:
            schedule.due = schedule.due + interval if interval is not None else None
        schedule.jobs.append(job)
        if job.state == "completed":  # it could not be given its pool
            self._look(schedule)

    def _wait(self, schedule: Schedule, moment: datetime) -> None:
        seconds = max(0.0, (moment - times.now()).total_seconds())
        loop = asyncio.get_running_loop()
        schedule.timer = loop.call_later(min(seconds, _LONGEST_TIMER), self._look, schedule)

    @staticmethod
    def _cancel(schedule: Schedule) -> None:
        if schedule.timer is not None:
            schedule.timer.cancel()
            schedule.timer = None

    def _complete(self, schedule: Schedule) -> None:
        autopools.schedule_over(self._engine, schedule)
        schedule.move("completed")
        schedule.end = times.now()
        schedule.due = None
        schedule.touch()


def _moment(schedule: Schedule, name: str) -> datetime | None:
    text = schedule.spec.get("schedule", {}).get(name)
    return times.parse_datetime(text) if text else None
