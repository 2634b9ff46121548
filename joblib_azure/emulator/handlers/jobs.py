"""Operations of jobs."""

from __future__ import annotations

from typing import Any

from .. import checks, errors, odata, wire
from ..calls import Answer, Call, handles
from ..jobs import OVER
from ..state import Job

FIELDS = {
    "id": odata.text(lambda job: job.id),
    "state": odata.state(lambda job: job.state),
    "stateTransitionTime": odata.moment(lambda job: job.state_since),
    "creationTime": odata.moment(lambda job: job.created),
    "lastModified": odata.moment(lambda job: job.modified),
    "priority": odata.number(lambda job: job.priority),
    "executionInfo/startTime": odata.moment(lambda job: job.progress.start),
    "executionInfo/endTime": odata.moment(lambda job: job.progress.end),
    "executionInfo/poolId": odata.text(lambda job: job.pool_id),
}
_PREPARATION_FIELDS = {
    "poolId": odata.text(lambda each: each.node.pool.id),
    "nodeId": odata.text(lambda each: each.node.id),
    "jobPreparationTaskExecutionInfo/state": odata.state(lambda each: each.progress.state),
    "jobPreparationTaskExecutionInfo/result": odata.state(lambda each: each.progress.result),
    "jobPreparationTaskExecutionInfo/startTime": odata.moment(lambda each: each.progress.start),
    "jobPreparationTaskExecutionInfo/endTime": odata.moment(lambda each: each.progress.end),
    "jobPreparationTaskExecutionInfo/exitCode": odata.number(lambda each: each.progress.exit_code),
    "jobReleaseTaskExecutionInfo/state": odata.state(lambda each: each.release and each.release.state),
    "jobReleaseTaskExecutionInfo/result": odata.state(lambda each: each.release and each.release.result),
    "jobReleaseTaskExecutionInfo/exitCode": odata.number(lambda each: each.release and each.release.exit_code),
}
_UPDATABLE = (
    "priority",
    "maxParallelTasks",
    "constraints",
    "poolInfo",
    "onAllTasksComplete",
    "onTaskFailure",
    "metadata",
    "networkConfiguration",
)


def find(call: Call) -> Job:
    job = call.engine.account.jobs.get(call.params["jobId"].lower())
    if job is None:
        raise errors.job_not_found()
    return job


def _find_for_update(call: Call) -> Job:
    job = find(call)
    call.check_conditions(job)
    if job.state in OVER:
        raise errors.job_in_state(job.state)
    return job


@handles("create_job")
async def create_job(call: Call) -> Answer:
    body = call.body
    checks.identifier(body["id"])
    checks.refuse(body, "jobManagerTask")
    _check_common(body)
    for name in ("jobPreparationTask", "jobReleaseTask"):
        if name in body:
            checks.runnable(body[name], f"{name}.")
            checks.constraints(body[name], f"{name}.constraints")
            checks.identifier(body[name].get("id", "x"), f"{name}.id")
    if "jobReleaseTask" in body and "jobPreparationTask" not in body:
        reason = "A job release task needs a job preparation task."
        raise errors.invalid_property("jobReleaseTask", body["jobReleaseTask"].get("id", ""), reason)
    for name in ("maxWallClockTime", "retentionTime"):
        checks.duration(body.get("jobReleaseTask", {}).get(name), f"jobReleaseTask.{name}")
    job = call.engine.jobs.add(body)
    url = wire.job_url(call.base, job)
    return call.done(job, url, Location=url)


def _check_common(body: dict[str, Any]) -> None:
    checks.display_name(body)
    checks.metadata(body)
    checks.between(body, "priority", -1000, 1000)
    checks.constraints(body)
    if body.get("maxParallelTasks", -1) == 0 or body.get("maxParallelTasks", -1) < -1:
        raise errors.invalid_property("maxParallelTasks", body["maxParallelTasks"], "-1, or above 0.")
    if body.get("allowTaskPreemption"):
        raise errors.not_implemented("allowTaskPreemption")
    if "poolInfo" in body:
        if "autoPoolSpecification" in body["poolInfo"]:
            raise errors.not_implemented("autoPoolSpecification: create the pool, and give its poolId")
        if not body["poolInfo"].get("poolId"):
            raise errors.missing_property("poolInfo.poolId")


@handles("list_jobs")
async def list_jobs(call: Call) -> Answer:
    return call.listing(
        list(call.engine.account.jobs.values()),
        lambda job: wire.job(job, call.base),
        metadata="jobs",
        key=lambda job: job.sequence,
        fields=FIELDS,
        type_name="BatchJob",
    )


@handles("get_job")
async def get_job(call: Call) -> Answer:
    job = find(call)
    call.check_conditions(job)
    return call.single(wire.job(job, call.base), job, "BatchJob", "jobs/@Element")


@handles("update_job")
async def update_job(call: Call) -> Answer:
    job = _find_for_update(call)
    _check_common(call.body)
    _check_pool_change(job, call.body)
    return _apply(call, job, {**job.spec, **_writable(call.body)})


@handles("replace_job")
async def replace_job(call: Call) -> Answer:
    job = _find_for_update(call)
    if "poolInfo" not in call.body:
        raise errors.missing_property("poolInfo")
    _check_common(call.body)
    _check_pool_change(job, call.body)
    kept = {name: value for name, value in job.spec.items() if name not in _UPDATABLE or name == "onTaskFailure"}
    return _apply(call, job, {**kept, **_writable(call.body)})


def _writable(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name in _UPDATABLE and name != "onTaskFailure"}


def _check_pool_change(job: Job, body: dict[str, Any]) -> None:
    wanted = body.get("poolInfo", {}).get("poolId", job.pool_id)
    if wanted.lower() != job.pool_id.lower() and job.state != "disabled":
        raise errors.invalid_for_state("The pool of a job can be changed only while the job is disabled.")


def _apply(call: Call, job: Job, spec: dict[str, Any]) -> Answer:
    job.spec = spec
    job.touch()
    answer = call.done(job)
    call.engine.jobs.updated(job)
    return answer


@handles("terminate_job")
async def terminate_job(call: Call) -> Answer:
    job = find(call)
    call.check_conditions(job)
    call.flag("force")
    if job.state in OVER:
        raise errors.job_in_state(job.state)
    call.engine.jobs.terminate(job, call.body.get("terminateReason", "UserTerminate"))
    return call.done(job)


@handles("delete_job")
async def delete_job(call: Call) -> Answer:
    job = find(call)
    call.check_conditions(job)
    call.flag("force")
    if job.state == "deleting":
        raise errors.job_in_state(job.state)
    call.engine.jobs.delete(job)
    return call.done()


@handles("disable_job")
async def disable_job(call: Call) -> Answer:
    job = find(call)
    call.check_conditions(job)
    if "disableTasks" not in call.body:
        raise errors.missing_property("disableTasks")
    if job.state not in ("active", "disabling", "disabled"):
        raise errors.job_in_state(job.state)
    if job.state != "disabled":
        call.engine.jobs.disable(job, call.body["disableTasks"])
    return call.done(job)


@handles("enable_job")
async def enable_job(call: Call) -> Answer:
    job = find(call)
    call.check_conditions(job)
    if job.state in OVER:
        raise errors.job_in_state(job.state)
    if job.state != "active":
        call.engine.jobs.enable(job)
    return call.done(job)


@handles("get_job_task_counts")
async def get_job_task_counts(call: Call) -> Answer:
    return call.json(wire.task_counts(find(call)), metadata="taskcounts/@Element")


@handles("list_job_preparation_and_release_task_status")
async def list_job_preparation_and_release_task_status(call: Call) -> Answer:
    job = find(call)
    if "jobPreparationTask" not in job.spec:
        text = "The specified job has no job preparation task."
        raise errors.conflict("JobPreparationTaskNotSpecified", text)
    return call.listing(
        list(job.preparations.values()),
        lambda each: wire.preparation(each, call.base),
        metadata="jobpreparationandreleasetaskstatuses",
        fields=_PREPARATION_FIELDS,
        type_name="BatchJobPreparationAndReleaseTaskStatus",
    )
