"""Operations of jobs."""

from __future__ import annotations

from typing import Any

from .. import autopools, checks, errors, odata, outputfiles, wire
from ..calls import Answer, Call, handles
from ..jobs import OVER
from ..state import Job

#: https://learn.microsoft.com/rest/api/batchservice/odata-filters-in-batch, as the tables of the other resources.
FIELDS_IN_SCHEDULE = {
    "state": odata.state(lambda job: job.state),
    "stateTransitionTime": odata.moment(lambda job: job.state_since),
    "creationTime": odata.moment(lambda job: job.created),
    "lastModified": odata.moment(lambda job: job.modified),
    "executionInfo/startTime": odata.moment(lambda job: job.progress.start),
    "executionInfo/endTime": odata.moment(lambda job: job.progress.end),
    "executionInfo/poolId": odata.text(lambda job: job.pool_id),
}
FIELDS = {"id": odata.text(lambda job: job.id), **FIELDS_IN_SCHEDULE}
_PREPARATION_FIELDS = {
    "poolId": odata.equal(lambda each: each.node.pool.id),
    "nodeId": odata.equal(lambda each: each.node.id),
    "jobPreparationTaskExecutionInfo/state": odata.state(lambda each: each.progress.state),
    "jobPreparationTaskExecutionInfo/result": odata.state(lambda each: each.progress.result),
    "jobPreparationTaskExecutionInfo/startTime": odata.moment(lambda each: each.progress.start),
    "jobPreparationTaskExecutionInfo/endTime": odata.moment(lambda each: each.progress.end),
    "jobPreparationTaskExecutionInfo/exitCode": odata.number(lambda each: each.progress.exit_code),
    "jobReleaseTaskExecutionInfo/state": odata.state(lambda each: each.release and each.release.state),
    "jobReleaseTaskExecutionInfo/result": odata.state(lambda each: each.release and each.release.result),
    "jobReleaseTaskExecutionInfo/startTime": odata.moment(lambda each: each.release and each.release.start),
    "jobReleaseTaskExecutionInfo/endTime": odata.moment(lambda each: each.release and each.release.end),
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
    checks.display_name(body)
    check_specification(call, body)
    job = call.engine.jobs.add(body)
    url = wire.job_url(call.base, job)
    return call.done(job, url, Location=url)


def check_specification(call: Call, body: dict[str, Any]) -> None:
    """What is asked of a new job, be it added or made by a schedule."""
    _check_common(body)
    autopools.check(body["poolInfo"], token=call.principal.token)
    for name in ("jobManagerTask", "jobPreparationTask", "jobReleaseTask"):
        if name in body:
            checks.runnable(body[name], f"{name}.")
            checks.constraints(body[name], f"{name}.constraints")
            checks.identifier(body[name].get("id", "x"), f"{name}.id")
    if "jobManagerTask" in body:
        _check_manager(body)
    if "jobReleaseTask" in body and "jobPreparationTask" not in body:
        reason = "A job release task needs a job preparation task."
        raise errors.invalid_property("jobReleaseTask", body["jobReleaseTask"].get("id", ""), reason)
    for name in ("maxWallClockTime", "retentionTime"):
        checks.duration(body.get("jobReleaseTask", {}).get(name), f"jobReleaseTask.{name}")


def _check_manager(body: dict[str, Any]) -> None:
    manager = body["jobManagerTask"]
    checks.display_name(manager)
    checks.packages(manager)
    outputfiles.check(manager.get("outputFiles", []), "jobManagerTask.outputFiles")
    checks.between(manager, "requiredSlots", 1, 256)
    checks.other_id(body, manager["id"])


def _check_common(body: dict[str, Any]) -> None:
    checks.metadata(body)
    checks.between(body, "priority", -1000, 1000)
    checks.constraints(body)
    if body.get("maxParallelTasks", -1) == 0 or body.get("maxParallelTasks", -1) < -1:
        raise errors.invalid_property("maxParallelTasks", body["maxParallelTasks"], "-1, or above 0.")
    if body.get("allowTaskPreemption"):
        raise errors.not_implemented("allowTaskPreemption")


@handles("list_jobs")
async def list_jobs(call: Call) -> Answer:
    return listing(call, list(call.engine.account.jobs.values()), FIELDS)


def listing(call: Call, jobs: list[Job], fields: dict[str, odata.Field]) -> Answer:
    """Some of the account's jobs."""
    return call.listing(
        jobs,
        lambda job: wire.job(job, call.base),
        metadata="jobs",
        key=lambda job: job.sequence,
        fields=fields,
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
    _check_ending(job, call.body.get("onAllTasksComplete", "terminatejob"))
    if "poolInfo" in call.body and job.state != "disabled":
        raise _pool_stays()
    return _apply(call, job, {**job.spec, **_writable(job, call.body)})


@handles("replace_job")
async def replace_job(call: Call) -> Answer:
    job = _find_for_update(call)
    if "poolInfo" not in call.body:
        raise errors.missing_property("poolInfo")
    _check_common(call.body)
    _check_ending(job, call.body.get("onAllTasksComplete", "noaction"))
    # a client has to send the pool here, so sending what there is changes nothing
    if not _same_pool(job.spec["poolInfo"], call.body["poolInfo"]) and job.state != "disabled":
        raise _pool_stays()
    kept = {name: value for name, value in job.spec.items() if name not in _UPDATABLE or name == "onTaskFailure"}
    return _apply(call, job, {**kept, **_writable(job, call.body)})


def _writable(job: Job, body: dict[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in body.items() if name in _UPDATABLE and name != "onTaskFailure"}
    if "poolInfo" in found:
        found["poolInfo"] = _new_pool(job, found["poolInfo"])
    return found


def _new_pool(job: Job, wanted: dict[str, Any]) -> dict[str, Any]:
    """The pool of a job that is disabled; of one that was made for it, only whether it stays can be changed."""
    auto = job.spec["poolInfo"].get("autoPoolSpecification")
    given = wanted.get("autoPoolSpecification")
    if auto is None and given is None and wanted.get("poolId"):
        return wanted
    if auto is None or given is None or (job.shares_pool and given != auto):
        reason = "Only keepAlive of an auto pool with the lifetime of the job can be changed."
        raise errors.invalid_property("poolInfo", "autoPoolSpecification", reason)
    return {"autoPoolSpecification": {**auto, "keepAlive": given.get("keepAlive", False)}}


def _same_pool(has: dict[str, Any], wanted: dict[str, Any]) -> bool:
    if "autoPoolSpecification" in has:
        keeps = [info.get("autoPoolSpecification", {}).get("keepAlive", False) for info in (has, wanted)]
        return "autoPoolSpecification" in wanted and keeps[0] == keeps[1]
    return str(wanted.get("poolId", "")).lower() == str(has["poolId"]).lower()


def _pool_stays() -> errors.BatchError:
    return errors.invalid_for_state("The pool of a job can be changed only while the job is disabled.")


def _check_ending(job: Job, wanted: str) -> None:
    if job.spec.get("onAllTasksComplete") == "terminatejob" and wanted == "noaction":
        reason = "A job that ends with its tasks (terminatejob) cannot be changed back."
        raise errors.invalid_property("onAllTasksComplete", wanted, reason)


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
