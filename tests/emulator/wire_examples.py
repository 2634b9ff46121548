"""A body for each operation that takes one, with nearly all that it may hold: what the fuzz tests change a part of."""

from __future__ import annotations

from typing import Any

_COMMAND: dict[str, Any] = {
    "commandLine": "true",
    "environmentSettings": [{"name": "COLOUR", "value": "red"}, {"name": "EMPTY"}],
    "resourceFiles": [
        {"httpUrl": "http://127.0.0.1:1/a", "filePath": "a/b", "fileMode": "0770"},
        {"storageContainerUrl": "http://127.0.0.1:1/c", "blobPrefix": "x/", "filePath": "d"},
    ],
    "userIdentity": {"autoUser": {"scope": "pool", "elevationLevel": "nonadmin"}},
}
_CONSTRAINTS = {"maxWallClockTime": "PT1H", "retentionTime": "P1D", "maxTaskRetryCount": 1}
_START = {**_COMMAND, "maxTaskRetryCount": 2, "waitForSuccess": True}
_MACHINE = {
    "imageReference": {"publisher": "canonical", "offer": "ubuntu-24_04-lts", "sku": "server", "version": "latest"},
    "nodeAgentSKUId": "batch.node.ubuntu 24.04",
    "dataDisks": [{"lun": 0, "diskSizeGB": 10, "caching": "none"}],
    "osDisk": {"ephemeralOSDiskSettings": {"placement": "cachedisk"}},
}
_MOUNTS = [
    {
        "azureFileShareConfiguration": {
            "accountName": "a",
            "azureFileUrl": "https://a.file.core.windows.net/s",
            "accountKey": "a2V5",
            "relativeMountPath": "files",
        }
    },
    {"nfsMountConfiguration": {"source": "10.0.0.1:/x", "relativeMountPath": "nfs/x", "mountOptions": "-o ro"}},
]
_POOL: dict[str, Any] = {
    "displayName": "a pool",
    "vmSize": "Emulated_C1",
    "taskSlotsPerNode": 2,
    "taskSchedulingPolicy": {"nodeFillType": "pack"},
    "resizeTimeout": "PT10M",
    "virtualMachineConfiguration": _MACHINE,
    "startTask": _START,
    "metadata": [{"name": "a", "value": "b"}],
    "mountConfiguration": _MOUNTS,
    "userAccounts": [{"name": "u", "password": "p", "elevationLevel": "nonadmin"}],
    "networkConfiguration": {"dynamicVNetAssignmentScope": "none"},
    "enableInterNodeCommunication": False,
}
_FORMULA = "$TargetDedicatedNodes = min(3, $PendingTasks.GetSample(1)); $NodeDeallocationOption = taskcompletion;"
_JOB: dict[str, Any] = {
    "priority": 5,
    "maxParallelTasks": 10,
    "constraints": {"maxWallClockTime": "PT1H", "maxTaskRetryCount": 1},
    "poolInfo": {"poolId": "fuzz"},
    "onAllTasksComplete": "noaction",
    "metadata": [{"name": "a", "value": "b"}],
}
_TASK: dict[str, Any] = {
    **_COMMAND,
    "displayName": "a task",
    "constraints": _CONSTRAINTS,
    "requiredSlots": 1,
    "affinityInfo": {"affinityId": "x"},
    "exitConditions": {
        "exitCodes": [{"code": 1, "exitOptions": {"dependencyAction": "block"}}],
        "exitCodeRanges": [{"start": 2, "end": 5, "exitOptions": {"jobAction": "none"}}],
        "default": {"dependencyAction": "satisfy"},
    },
    "dependsOn": {"taskIds": ["1"], "taskIdRanges": [{"start": 1, "end": 3}]},
}

#: By the operation's id: bodies that the emulator takes, the ids aside.
BODIES: dict[str, list[dict[str, Any]]] = {
    "create_pool": [
        {"id": "{new}", **_POOL, "targetDedicatedNodes": 1, "targetLowPriorityNodes": 1},
        {
            "id": "{new}",
            **_POOL,
            "enableAutoScale": True,
            "autoScaleFormula": _FORMULA,
            "autoScaleEvaluationInterval": "PT10M",
        },
    ],
    "update_pool": [
        {"displayName": "b", "startTask": _START, "metadata": [], "mountConfiguration": _MOUNTS, "taskSlotsPerNode": 3},
        {"virtualMachineConfiguration": _MACHINE, "vmSize": "Standard_D4s_v5"},
    ],
    "replace_pool_properties": [
        {"startTask": _START, "metadata": [{"name": "c", "value": "d"}], "applicationPackageReferences": []}
    ],
    "enable_pool_auto_scale": [{"autoScaleFormula": _FORMULA, "autoScaleEvaluationInterval": "PT5M"}],
    "evaluate_pool_auto_scale": [{"autoScaleFormula": _FORMULA}],
    "resize_pool": [
        {
            "targetDedicatedNodes": 1,
            "targetLowPriorityNodes": 1,
            "resizeTimeout": "PT5M",
            "nodeDeallocationOption": "requeue",
        }
    ],
    "remove_nodes": [{"nodeList": ["x"], "resizeTimeout": "PT5M", "nodeDeallocationOption": "requeue"}],
    "create_job": [
        {
            "id": "{new}",
            **_JOB,
            "displayName": "a job",
            "usesTaskDependencies": True,
            "onTaskFailure": "performexitoptionsjobaction",
            "jobPreparationTask": {"id": "prep", **_COMMAND, "constraints": _CONSTRAINTS, "waitForSuccess": True},
            "jobReleaseTask": {"id": "release", **_COMMAND, "maxWallClockTime": "PT5M", "retentionTime": "P1D"},
            "commonEnvironmentSettings": [{"name": "A", "value": "b"}],
        }
    ],
    "update_job": [_JOB],
    "replace_job": [_JOB],
    "disable_job": [{"disableTasks": "requeue"}],
    "terminate_job": [{"terminateReason": "enough"}],
    "create_task": [{"id": "{new}", **_TASK}],
    "create_task_collection": [{"value": [{"id": "{new}", **_TASK}, {"id": "{new}b", "commandLine": "true"}]}],
    "replace_task": [{"constraints": _CONSTRAINTS}],
    "reboot_node": [{"nodeRebootOption": "requeue"}],
    "reimage_node": [{"nodeReimageOption": "requeue"}],
    "disable_node_scheduling": [{"nodeDisableSchedulingOption": "requeue"}],
}
