"""azure-batch 14.2: pools, nodes, jobs, tasks and files, there and back. Prints what it found as JSON."""

import datetime
import io
import json
import os
import time

from azure.batch import BatchServiceClient, models
from azure.batch.batch_auth import SharedKeyCredentials

credentials = SharedKeyCredentials(os.environ["AZURE_BATCH_ACCOUNT"], os.environ["AZURE_BATCH_ACCESS_KEY"])
client = BatchServiceClient(credentials, batch_url=os.environ["AZURE_BATCH_ENDPOINT"])
found = {}


def until(what):
    deadline = time.monotonic() + 60
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


image = models.ImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server")
machine = models.VirtualMachineConfiguration(image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04")
client.pool.add(
    models.PoolAddParameter(
        id="old",
        vm_size="Standard_D2s_v3",
        virtual_machine_configuration=machine,
        target_dedicated_nodes=1,
        task_slots_per_node=2,
        start_task=models.StartTask(command_line="echo up", wait_for_success=True),
        target_node_communication_mode="simplified",
    )
)
until(lambda: [node.state.value for node in client.compute_node.list("old")] == ["idle"])
found["pool"] = client.pool.get("old").allocation_state.value
found["pools"] = [pool.id for pool in client.pool.list()]
client.pool.update_properties(
    "old",
    models.PoolUpdatePropertiesParameter(
        start_task=None,
        certificate_references=[],
        application_package_references=[],
        metadata=[models.MetadataItem(name="a", value="b")],
    ),
)
client.pool.patch("old", models.PoolPatchParameter(metadata=[models.MetadataItem(name="a", value="c")]))
found["metadata"] = client.pool.get("old").metadata[0].value
found["counts"] = [each.dedicated.idle for each in client.account.list_pool_node_counts()]
node = next(iter(client.compute_node.list("old")))
found["node"] = client.compute_node.get("old", node.id).state.value
found["node file"] = b"".join(client.file.get_from_compute_node("old", node.id, "startup/stdout.txt")).decode()
client.compute_node.disable_scheduling("old", node.id)
client.compute_node.enable_scheduling("old", node.id)
client.job.add(models.JobAddParameter(id="old-job", pool_info=models.PoolInformation(pool_id="old")))
tasks = [models.TaskAddParameter(id=f"t{i}", command_line=f"echo {i}") for i in range(120)]
client.task.add_collection("old-job", tasks[:100])
client.task.add("old-job", tasks[100])
until(lambda: client.job.get_task_counts("old-job").task_counts.completed == 101)
listed = client.task.list("old-job", models.TaskListOptions(filter="state eq 'completed'", select="id", max_results=40))
found["tasks"] = len({task.id for task in listed})
task = client.task.get("old-job", "t7")
found["task"] = [task.state.value, task.execution_info.exit_code, task.execution_info.result.value]
content = io.BytesIO(b"".join(client.file.get_from_task("old-job", "t7", "stdout.txt")))
found["file"] = content.read().decode()
found["files"] = sorted(each.name for each in client.file.list_from_task("old-job", "t7", recursive=True))
headers = client.file.get_properties_from_task("old-job", "t7", "stdout.txt", raw=True).headers
found["size"] = headers["Content-Length"]
client.job.patch("old-job", models.JobPatchParameter(priority=5))
found["priority"] = client.job.get("old-job").priority
client.job.disable("old-job", "requeue")
client.job.enable("old-job")
client.job_schedule.add(
    models.JobScheduleAddParameter(
        id="old-schedule",
        schedule=models.Schedule(recurrence_interval=datetime.timedelta(hours=1)),
        job_specification=models.JobSpecification(pool_info=models.PoolInformation(pool_id="old")),
    )
)
found["schedule"] = [job.id for job in client.job.list_from_job_schedule("old-schedule")]
client.job_schedule.delete("old-schedule")
try:
    client.job.get("none")
except models.BatchErrorException as exc:
    found["error"] = [exc.error.code, exc.error.message.lang]
client.job.terminate("old-job", terminate_reason="done")
until(lambda: client.job.get("old-job").state.value == "completed")
client.job.delete("old-job")
client.pool.resize("old", models.PoolResizeParameter(target_dedicated_nodes=0))
until(lambda: not list(client.compute_node.list("old")))
client.pool.delete("old")
until(lambda: not [pool.id for pool in client.pool.list()])
print(json.dumps(found))
