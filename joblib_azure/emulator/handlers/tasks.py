"""Operations of tasks."""

from __future__ import annotations

from typing import Any

from .. import checks, errors, odata, outputfiles, times, wire
from ..calls import Answer, Call, handles
from ..jobs import OVER
from ..state import Job, Task
from . import jobs

MOST_IN_COLLECTION = 100
_MOST_DEPENDENCIES = 64_000  # characters; documented at BatchTaskDependencies.taskIds
FIELDS = {
    "id": odata.text(lambda task: task.id),
    "state": odata.state(lambda task: task.state),
    "stateTransitionTime": odata.moment(lambda task: task.state_since),
    "creationTime": odata.moment(lambda task: task.created),
    "lastModified": odata.moment(lambda task: task.modified),
    "executionInfo/startTime": odata.moment(lambda task: task.progress.start),
    "executionInfo/endTime": odata.moment(lambda task: task.progress.end),
    "executionInfo/exitCode": odata.number(lambda task: task.progress.exit_code),
    "executionInfo/result": odata.state(lambda task: task.progress.result),
}


def find(call: Call) -> Task:
    task = jobs.find(call).tasks.get(call.params["taskId"].lower())
    if task is None:
        raise errors.task_not_found()
    return task


def _find_job_for_adding(call: Call) -> Job:
    job = jobs.find(call)
    if job.state in OVER:
        raise errors.job_in_state(job.state)
    return job


def _check(call: Call, job: Job, body: dict[str, Any]) -> None:
    checks.identifier(body["id"])
    checks.display_name(body)
    checks.runnable(body, "")
    checks.constraints(body)
    checks.packages(body)
    checks.refuse(body, "multiInstanceSettings")
    outputfiles.check(body.get("outputFiles", []), "outputFiles")
    pool = call.engine.account.pools.get(job.pool_id.lower())
    most = pool.slots if pool is not None else 256
    if not 1 <= body.get("requiredSlots", 1) <= most:
        reason = f"The value must lie between 1 and the pool's taskSlotsPerNode, {most}."
        raise errors.invalid_property("requiredSlots", body["requiredSlots"], reason)
    if pool is not None and "containerConfiguration" in pool.spec["virtualMachineConfiguration"]:
        # documented at BatchTaskCreateOptions.containerSettings; a task that has them is refused as not implemented
        reason = "The pool has a containerConfiguration, so its tasks must have containerSettings."
        raise errors.invalid_property("containerSettings", "", reason)
    if "dependsOn" in body and not job.spec.get("usesTaskDependencies"):
        text = "Task dependencies need a job with usesTaskDependencies set to true."
        raise errors.BatchError(400, "TaskDependenciesNotSpecifiedOnJob", text)
    if sum(map(len, body.get("dependsOn", {}).get("taskIds", []))) > _MOST_DEPENDENCIES:
        text = f"The ids that the task depends on have more than {_MOST_DEPENDENCIES} characters together."
        raise errors.BatchError(400, "TaskDependencyListTooLong", text)
    for each in body.get("dependsOn", {}).get("taskIdRanges", []):
        if each["end"] < each["start"]:
            raise errors.invalid_property("dependsOn.taskIdRanges", each, "The end lies before the start.")
    _check_exit_conditions(job, body)
    checks.other_id(job.spec, body["id"])


def _check_exit_conditions(job: Job, body: dict[str, Any]) -> None:
    conditions = body.get("exitConditions", {})
    options = [conditions[name] for name in ("preProcessingError", "fileUploadError", "default") if name in conditions]
    options += [each["exitOptions"] for name in ("exitCodes", "exitCodeRanges") for each in conditions.get(name, [])]
    if job.spec.get("onTaskFailure", "noaction") == "noaction" and any("jobAction" in each for each in options):
        reason = "The job's onTaskFailure is noaction, so jobAction cannot be set."
        raise errors.invalid_property("exitConditions", "jobAction", reason)


@handles("create_task")
async def create_task(call: Call) -> Answer:
    job = _find_job_for_adding(call)
    _check(call, job, call.body)
    task = call.engine.jobs.add_task(job, call.body)
    url = wire.task_url(call.base, task)
    return call.done(task, url, Location=url)


@handles("create_task_collection")
async def create_task_collection(call: Call) -> Answer:
    job = _find_job_for_adding(call)
    items = call.body["value"]
    if not 1 <= len(items) <= MOST_IN_COLLECTION:
        raise errors.invalid_property("value", len(items), f"Between 1 and {MOST_IN_COLLECTION} tasks a request.")
    results = []
    for item in items:
        try:
            _check(call, job, item)
            task = call.engine.jobs.add_task(job, item)
        except errors.BatchError as exc:
            blame = "servererror" if exc.status >= 500 else "clienterror"
            results.append({"status": blame, "taskId": item["id"], "error": exc.body()})
        else:
            results.append(
                {
                    "status": "success",
                    "taskId": task.id,
                    "eTag": task.etag,
                    "lastModified": times.iso(task.modified),
                    "location": wire.task_url(call.base, task),
                }
            )
    return call.json({"value": results}, metadata="taskaddresult")


@handles("list_tasks")
async def list_tasks(call: Call) -> Answer:
    return call.listing(
        list(jobs.find(call).tasks.values()),
        lambda task: wire.task(task, call.base),
        metadata="tasks",
        key=lambda task: task.sequence,
        fields=FIELDS,
        type_name="BatchTask",
    )


@handles("get_task")
async def get_task(call: Call) -> Answer:
    task = find(call)
    call.check_conditions(task)
    return call.single(wire.task(task, call.base), task, "BatchTask", "tasks/@Element")


@handles("replace_task")
async def replace_task(call: Call) -> Answer:
    task = find(call)
    call.check_conditions(task)
    if task.state == "completed":
        raise errors.task_completed()
    checks.constraints(call.body)
    spec = {name: value for name, value in task.spec.items() if name != "constraints"}
    task.spec = spec | ({"constraints": call.body["constraints"]} if "constraints" in call.body else {})
    task.touch()
    return call.done(task)


@handles("delete_task")
async def delete_task(call: Call) -> Answer:
    task = find(call)
    call.check_conditions(task)
    await call.engine.jobs.delete_task(task)
    return call.done()


@handles("terminate_task")
async def terminate_task(call: Call) -> Answer:
    task = find(call)
    call.check_conditions(task)
    if task.state == "completed":
        raise errors.task_completed()
    await call.engine.jobs.end_task(task)
    return call.done(task)


@handles("reactivate_task")
async def reactivate_task(call: Call) -> Answer:
    task = find(call)
    call.check_conditions(task)
    if task.state != "completed":
        raise errors.task_not_completed()
    if task.progress.result == "success":
        raise errors.task_succeeded()
    if task.job.state in OVER:
        raise errors.job_in_state(task.job.state)
    call.engine.jobs.reactivate(task)
    return call.done(task)


@handles("list_subtasks")
async def list_subtasks(call: Call) -> Answer:
    find(call)
    return call.json({"value": []}, metadata="subtasks")  # documented for tasks that are not multi-instance
