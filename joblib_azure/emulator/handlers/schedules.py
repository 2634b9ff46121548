"""Operations of job schedules."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from .. import checks, errors, odata, times, wire
from ..calls import Answer, Call, handles
from ..state import Schedule
from . import jobs

FIELDS = {
    "id": odata.text(lambda schedule: schedule.id),
    "state": odata.state(lambda schedule: schedule.state),
    "stateTransitionTime": odata.moment(lambda schedule: schedule.state_since),
    "creationTime": odata.moment(lambda schedule: schedule.created),
    "lastModified": odata.moment(lambda schedule: schedule.modified),
    "executionInfo/endTime": odata.moment(lambda schedule: schedule.end),
    "schedule/doNotRunUntil": odata.moment(lambda schedule: _time(schedule.spec, "doNotRunUntil")),
    "schedule/doNotRunAfter": odata.moment(lambda schedule: _time(schedule.spec, "doNotRunAfter")),
}
_LEAST = timedelta(minutes=1)
_UPDATABLE = ("schedule", "jobSpecification", "metadata")


def _time(spec: dict[str, Any], name: str) -> Any:
    text = spec.get("schedule", {}).get(name)
    return times.parse_datetime(text) if text else None


def find(call: Call) -> Schedule:
    schedule = call.engine.account.schedules.get(call.params["jobScheduleId"].lower())
    if schedule is None:
        raise errors.schedule_not_found()
    call.check_conditions(schedule)
    return schedule


def _find_living(call: Call) -> Schedule:
    schedule = find(call)
    if schedule.state not in ("active", "disabled"):
        raise errors.schedule_in_state(schedule.state)
    return schedule


def _check(call: Call) -> None:
    body = call.body
    checks.metadata(body)
    given = body.get("schedule", {})
    for name in ("startWindow", "recurrenceInterval"):
        checks.duration(given.get(name), f"schedule.{name}", least=_LEAST)
    begin, end = (_time(body, name) for name in ("doNotRunUntil", "doNotRunAfter"))
    if begin is not None and end is not None and end <= begin:
        reason = "The time must lie after doNotRunUntil."
        raise errors.invalid_property("schedule.doNotRunAfter", given["doNotRunAfter"], reason)
    if "jobSpecification" in body:
        checks.display_name(body["jobSpecification"])
        jobs.check_specification(call, body["jobSpecification"])


@handles("create_job_schedule")
async def create_job_schedule(call: Call) -> Answer:
    body = call.body
    checks.identifier(body["id"])
    checks.display_name(body)
    _check(call)
    end = _time(body, "doNotRunAfter")
    if end is not None and end <= times.now():
        raise errors.invalid_property("schedule.doNotRunAfter", times.iso(end), "The time lies in the past.")
    schedule = call.engine.schedules.add(body)
    url = wire.schedule_url(call.base, schedule)
    return call.done(schedule, url, Location=url)


@handles("list_job_schedules")
async def list_job_schedules(call: Call) -> Answer:
    return call.listing(
        list(call.engine.account.schedules.values()),
        lambda schedule: wire.schedule(schedule, call.base),
        metadata="jobschedules",
        key=lambda schedule: schedule.sequence,
        fields=FIELDS,
        type_name="BatchJobSchedule",
    )


@handles("list_jobs_from_schedule")
async def list_jobs_from_schedule(call: Call) -> Answer:
    return jobs.listing(call, list(find(call).jobs), jobs.FIELDS_IN_SCHEDULE)


@handles("get_job_schedule")
async def get_job_schedule(call: Call) -> Answer:
    schedule = find(call)
    shape = wire.schedule(schedule, call.base)
    return call.single(shape, schedule, "BatchJobSchedule", "jobschedules/@Element")


@handles("job_schedule_exists")
async def job_schedule_exists(call: Call) -> Answer:
    return call.done(find(call))


@handles("update_job_schedule")
async def update_job_schedule(call: Call) -> Answer:
    schedule = _find_living(call)
    _check(call)
    call.engine.schedules.update(schedule, {**schedule.spec, **call.body})
    return call.done(schedule)


@handles("replace_job_schedule")
async def replace_job_schedule(call: Call) -> Answer:
    schedule = _find_living(call)
    if "jobSpecification" not in call.body:
        raise errors.missing_property("jobSpecification")
    _check(call)
    kept = {name: value for name, value in schedule.spec.items() if name not in _UPDATABLE}
    given = {name: value for name, value in call.body.items() if name in _UPDATABLE}
    call.engine.schedules.update(schedule, {**kept, **given})
    return call.done(schedule)


@handles("disable_job_schedule")
async def disable_job_schedule(call: Call) -> Answer:
    schedule = _find_living(call)
    if schedule.state == "active":
        call.engine.schedules.disable(schedule)
    return call.done(schedule)


@handles("enable_job_schedule")
async def enable_job_schedule(call: Call) -> Answer:
    schedule = _find_living(call)
    if schedule.state == "disabled":
        call.engine.schedules.enable(schedule)
    return call.done(schedule)


@handles("terminate_job_schedule")
async def terminate_job_schedule(call: Call) -> Answer:
    call.flag("force")
    schedule = _find_living(call)
    call.engine.schedules.terminate(schedule)
    return call.done(schedule)


@handles("delete_job_schedule")
async def delete_job_schedule(call: Call) -> Answer:
    call.flag("force")
    schedule = find(call)
    if schedule.state == "deleting":
        raise errors.schedule_in_state(schedule.state)
    call.engine.schedules.delete(schedule)
    return call.done()
