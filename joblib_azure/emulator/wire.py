"""The JSON of what is returned: one function for each shape. A property that has no value is left out, as the
service does."""

from __future__ import annotations

from typing import Any

from . import nodes, times
from .scheduler import affinity_id
from .state import Job, Node, Pool, Preparation, Progress, Resource, Schedule, Task

_TASK_ALSO = (
    "displayName",
    "commandLine",
    "resourceFiles",
    "outputFiles",
    "environmentSettings",
    "affinityInfo",
    "exitConditions",
    "dependsOn",
    "applicationPackageReferences",
)
_JOB_ALSO = (
    "displayName",
    "jobManagerTask",
    "jobPreparationTask",
    "jobReleaseTask",
    "commonEnvironmentSettings",
    "poolInfo",
    "networkConfiguration",
    "metadata",
)
_POOL_ALSO = (
    "displayName",
    "virtualMachineConfiguration",
    "networkConfiguration",
    "startTask",
    "applicationPackageReferences",
    "metadata",
    "mountConfiguration",
    "upgradePolicy",
)
_SECRETS = frozenset({"accountKey", "sasKey", "password"})
DEFAULT_IDENTITY = {"autoUser": {"scope": "task", "elevationLevel": "nonadmin"}}


def pool_url(base: str, pool_id: str) -> str:
    return f"{base}/pools/{pool_id}"


def node_url(base: str, node: Node) -> str:
    return f"{pool_url(base, node.pool.id)}/nodes/{node.id}"


def job_url(base: str, job: Job) -> str:
    return f"{base}/jobs/{job.id}"


def schedule_url(base: str, item: Schedule) -> str:
    return f"{base}/jobschedules/{item.id}"


def task_url(base: str, task: Task) -> str:
    return f"{job_url(base, task.job)}/tasks/{task.id}"


def _resource(item: Resource, url: str) -> dict[str, Any]:
    found = {
        "id": item.id,
        "url": url,
        "eTag": item.etag,
        "lastModified": times.iso(item.modified),
        "creationTime": times.iso(item.created),
        "state": item.state,
        "stateTransitionTime": times.iso(item.state_since),
    }
    if item.previous_state is not None and item.previous_since is not None:
        found["previousState"] = item.previous_state
        found["previousStateTransitionTime"] = times.iso(item.previous_since)
    return found


def _constraints(given: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    return {**defaults, **given}


def progress(item: Progress, *, requeues: bool = False, state: bool = False) -> dict[str, Any]:
    """An `executionInfo`; tasks have requeues, start and job tasks a state."""
    found: dict[str, Any] = {"retryCount": item.retry_count}
    if requeues:
        found["requeueCount"] = item.requeue_count
    if state:
        found["state"] = item.state
    moments = {
        "startTime": item.start,
        "endTime": item.end,
        "lastRetryTime": item.last_retry,
        "lastRequeueTime": item.last_requeue if requeues else None,
    }
    found.update({name: times.iso(moment) for name, moment in moments.items() if moment is not None})
    for name, value in (("exitCode", item.exit_code), ("failureInfo", item.failure), ("result", item.result)):
        if value is not None:
            found[name] = value
    return found


def pool(item: Pool, base: str) -> dict[str, Any]:
    spec = item.spec
    found = _resource(item, pool_url(base, item.id))
    for name in ("previousState", "previousStateTransitionTime"):
        found.pop(name, None)  # pools have none
    found |= {
        "allocationState": item.allocation_state,
        "allocationStateTransitionTime": times.iso(item.allocation_since),
        "vmSize": spec["vmSize"].lower(),
        "resizeTimeout": times.duration(item.resize_timeout),
        "currentDedicatedNodes": sum(node.dedicated for node in item.nodes.values()),
        "currentLowPriorityNodes": sum(not node.dedicated for node in item.nodes.values()),
        "targetDedicatedNodes": item.target_dedicated,
        "targetLowPriorityNodes": item.target_spot,
        "enableAutoScale": item.autoscale is not None,
        "enableInterNodeCommunication": spec.get("enableInterNodeCommunication", False),
        "taskSlotsPerNode": item.slots,
        "taskSchedulingPolicy": {"nodeFillType": item.fill_type},
    }
    if item.autoscale is not None:
        found["autoScaleFormula"] = item.autoscale.formula.text
        found["autoScaleEvaluationInterval"] = times.duration(item.autoscale.interval)
        if item.autoscale.run is not None:
            found["autoScaleRun"] = item.autoscale.run
    if item.resize_errors:
        found["resizeErrors"] = item.resize_errors
    if "userAccounts" in spec:  # passwords are never returned
        found["userAccounts"] = [
            {name: value for name, value in account.items() if name in ("name", "elevationLevel")}
            for account in spec["userAccounts"]
        ]
    return found | {name: _without_secrets(spec[name]) for name in _POOL_ALSO if name in spec}


def _without_secrets(value: Any) -> Any:
    """Keys and passwords go in and never come out."""
    if isinstance(value, dict):
        return {name: _without_secrets(item) for name, item in value.items() if name not in _SECRETS}
    return [_without_secrets(item) for item in value] if isinstance(value, list) else value


def node(item: Node, base: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": item.id,
        "url": node_url(base, item),
        "state": item.state,
        "schedulingState": "enabled" if item.scheduling_enabled else "disabled",
        "stateTransitionTime": times.iso(item.state_since),
        "lastBootTime": times.iso(item.boot_time),
        "allocationTime": times.iso(item.created),
        "ipAddress": item.ip_address,
        "ipv6Address": "",
        "affinityId": affinity_id(item),
        "vmSize": item.pool.spec["vmSize"].lower(),
        "totalTasksRun": item.total_run,
        "runningTasksCount": len(item.assigned),
        "runningTaskSlotsCount": item.slots_used,
        "totalTasksSucceeded": item.total_succeeded,
        "isDedicated": item.dedicated,
        "nodeAgentInfo": {"version": "1.0.0", "lastUpdateTime": times.iso(item.boot_time)},
        "virtualMachineInfo": {"imageReference": item.pool.spec["virtualMachineConfiguration"]["imageReference"]},
    }
    if item.recent:
        found["recentTasks"] = [_recent(task, base) for task in reversed(item.recent)]
    if "startTask" in item.pool.spec:
        found["startTask"] = _without_secrets(item.pool.spec["startTask"])
    if item.start_task is not None:
        found["startTaskInfo"] = progress(item.start_task, state=True)
    if item.errors:
        found["errors"] = item.errors
    return found


def _recent(task: Task, base: str) -> dict[str, Any]:
    return {
        "taskUrl": task_url(base, task),
        "jobId": task.job.id,
        "taskId": task.id,
        "taskState": task.state,
        "executionInfo": progress(task.progress, requeues=True),
    }


def _job_settings(spec: dict[str, Any]) -> dict[str, Any]:
    """What a job and the specification of a schedule's jobs have in common, with the service's defaults."""
    found = {
        "usesTaskDependencies": spec.get("usesTaskDependencies", False),
        "priority": spec.get("priority", 0),
        "allowTaskPreemption": False,
        "maxParallelTasks": spec.get("maxParallelTasks", -1),
        "constraints": _constraints(spec.get("constraints", {}), maxWallClockTime=times.UNLIMITED, maxTaskRetryCount=0),
        "onAllTasksComplete": spec.get("onAllTasksComplete", "noaction"),
        "onTaskFailure": spec.get("onTaskFailure", "noaction"),
    }
    return found | {name: _without_secrets(spec[name]) for name in _JOB_ALSO if name in spec}


def job(item: Job, base: str) -> dict[str, Any]:
    found = _resource(item, job_url(base, item)) | _job_settings(item.spec)
    execution: dict[str, Any] = {"poolId": item.pool_id}
    if item.progress.start is not None:
        execution["startTime"] = times.iso(item.progress.start)
    if item.progress.end is not None:
        execution["endTime"] = times.iso(item.progress.end)
    if item.terminate_reason is not None:
        execution["terminateReason"] = item.terminate_reason
    if item.scheduling_error is not None:
        execution["schedulingError"] = item.scheduling_error
    return found | {"executionInfo": execution}


def schedule(item: Schedule, base: str) -> dict[str, Any]:
    spec = item.spec
    found = _resource(item, schedule_url(base, item))
    found |= {"schedule": spec.get("schedule", {}), "jobSpecification": _job_settings(spec["jobSpecification"])}
    found |= {name: spec[name] for name in ("displayName", "metadata") if name in spec}
    execution: dict[str, Any] = {}
    if item.due is not None:
        execution["nextRunTime"] = times.iso(item.due)
    if item.recent_job:
        execution["recentJob"] = {"id": item.recent_job, "url": f"{base}/jobs/{item.recent_job}"}
    if item.end is not None:
        execution["endTime"] = times.iso(item.end)
    return found | {"executionInfo": execution}


def task(item: Task, base: str) -> dict[str, Any]:
    spec = item.spec
    found = _resource(item, task_url(base, item))
    found |= {name: spec[name] for name in _TASK_ALSO if name in spec}
    found |= {
        "constraints": _constraints(
            spec.get("constraints", {}),
            maxWallClockTime=times.UNLIMITED,
            retentionTime="P7D",
            maxTaskRetryCount=item.job.spec.get("constraints", {}).get("maxTaskRetryCount", 0),
        ),
        "requiredSlots": item.slots,
        "userIdentity": spec.get("userIdentity", DEFAULT_IDENTITY),
        "executionInfo": progress(item.progress, requeues=True),
    }
    if item.node is not None:
        found["nodeInfo"] = _node_info(item, item.node, base)
    return found


def _node_info(item: Task, where: Node, base: str) -> dict[str, Any]:
    folder = f"{item.job.folder}/{item.id}"
    return {
        "affinityId": affinity_id(where),
        "nodeUrl": node_url(base, where),
        "poolId": where.pool.id,
        "nodeId": where.id,
        "taskRootDirectory": folder,
        "taskRootDirectoryUrl": f"{node_url(base, where)}/files/{folder}",
    }


def task_counts(item: Job) -> dict[str, Any]:
    """Tasks and slots by state; the service counts `preparing` as running."""

    counts = item.shown_counts()

    def at(index: int) -> dict[str, int]:
        return {
            "active": counts["active"][index],
            "running": counts["running"][index] + counts["preparing"][index],
            "completed": counts["completed"][index],
            "succeeded": counts["succeeded"][index],
            "failed": counts["failed"][index],
        }

    return {"taskCounts": at(0), "taskSlotCounts": at(1)}


def preparation(item: Preparation, base: str) -> dict[str, Any]:
    def info(which: Progress, task_id: str) -> dict[str, Any]:
        folder = f"{item.job.folder}/{task_id}"
        return progress(which, state=True) | {
            "taskRootDirectory": folder,
            "taskRootDirectoryUrl": f"{node_url(base, item.node)}/files/{folder}",
        }

    found: dict[str, Any] = {
        "poolId": item.node.pool.id,
        "nodeId": item.node.id,
        "nodeUrl": node_url(base, item.node),
        "jobPreparationTaskExecutionInfo": info(item.progress, nodes.preparation_id(item.job)),
    }
    if item.release is not None:
        release = info(item.release, nodes.release_id(item.job))
        release.pop("retryCount")
        found["jobReleaseTaskExecutionInfo"] = release
    return found


#: Node states by the names that node counts have for them.
_COUNTED = {
    "starttaskfailed": "startTaskFailed",
    "leavingpool": "leavingPool",
    "waitingforstarttask": "waitingForStartTask",
    "upgradingos": "upgradingOS",
}
_COUNTS = [
    "creating",
    "idle",
    "offline",
    "preempted",
    "rebooting",
    "reimaging",
    "running",
    "starting",
    "startTaskFailed",
    "leavingPool",
    "unknown",
    "unusable",
    "waitingForStartTask",
    "deallocated",
    "deallocating",
    "upgradingOS",
]


def node_counts(item: Pool) -> dict[str, Any]:
    def of(dedicated: bool) -> dict[str, int]:
        states = [node.state for node in item.nodes.values() if node.dedicated is dedicated]
        counts = dict.fromkeys(_COUNTS, 0)
        for state in states:
            counts[_COUNTED.get(state, state)] += 1
        return counts | {"total": len(states)}

    return {"poolId": item.id, "dedicated": of(True), "lowPriority": of(False)}
