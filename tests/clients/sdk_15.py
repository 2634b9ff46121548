"""azure-batch 15.1, synchronous and asynchronous: the same there and back. Prints what each found as JSON."""

import asyncio
import json
import os
import time

from azure.batch import BatchClient, models
from azure.batch.aio import BatchClient as AsyncBatchClient
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import HttpResponseError

ENDPOINT = os.environ["AZURE_BATCH_ENDPOINT"]
KEY = AzureNamedKeyCredential(os.environ["AZURE_BATCH_ACCOUNT"], os.environ["AZURE_BATCH_ACCESS_KEY"])
FAST = {"polling_interval": 0.05}
SECONDS = 60


def pool_options(name):
    image = models.BatchVmImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server")
    machine = models.VirtualMachineConfiguration(image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04")
    return models.BatchPoolCreateOptions(
        id=name,
        vm_size="Standard_D2s_v3",
        virtual_machine_configuration=machine,
        target_dedicated_nodes=1,
        task_slots_per_node=2,
        start_task=models.BatchStartTask(command_line="echo up", wait_for_success=True),
    )


def job_options(pool):
    return models.BatchJobCreateOptions(id=f"{pool}-job", pool_info=models.BatchPoolInfo(pool_id=pool))


def tasks(count):
    return [models.BatchTaskCreateOptions(id=f"t{i}", command_line=f"echo {i}") for i in range(count)]


def synchronous(pool):
    found, job = {}, f"{pool}-job"
    with BatchClient(ENDPOINT, KEY) as client:

        def until(what):
            deadline = time.monotonic() + SECONDS
            while not what():
                if time.monotonic() > deadline:
                    raise TimeoutError
                time.sleep(0.05)

        client.create_pool(pool_options(pool))
        until(lambda: [node.state for node in client.list_nodes(pool)] == ["idle"])
        node = next(iter(client.list_nodes(pool))).id
        found["node file"] = b"".join(client.download_node_file(pool, node, "startup/stdout.txt")).decode()
        client.create_job(job_options(pool))
        client.create_tasks(job, tasks(120))
        until(lambda: client.get_job_task_counts(job).task_counts.completed == 120)
        listed = client.list_tasks(job, filter="state eq 'completed'", select=["id"], max_results=50)
        found["tasks"] = len({task.id for task in listed})
        task = client.get_task(job, "t7")
        found["task"] = [task.state, task.execution_info.exit_code, task.execution_info.result]
        found["file"] = b"".join(client.download_task_file(job, "t7", "stdout.txt")).decode()
        client.update_job(job, models.BatchJobUpdateOptions(priority=5))
        found["priority"] = client.get_job(job).priority
        try:
            client.get_job("none")
        except HttpResponseError as exc:
            found["error"] = exc.model.code
        client.begin_delete_job(job, **FAST).result()
        client.begin_delete_pool(pool, **FAST).result()
    return found


async def asynchronous(pool):
    found, job = {}, f"{pool}-job"
    async with AsyncBatchClient(ENDPOINT, KEY) as client:

        async def until(what):
            deadline = time.monotonic() + SECONDS
            while not await what():
                if time.monotonic() > deadline:
                    raise TimeoutError
                await asyncio.sleep(0.05)

        async def idle():
            return [node.state async for node in client.list_nodes(pool)] == ["idle"]

        async def completed():
            return (await client.get_job_task_counts(job)).task_counts.completed == 120

        await client.create_pool(pool_options(pool))
        await until(idle)
        node = await anext(node.id async for node in client.list_nodes(pool))
        pieces = [piece async for piece in await client.download_node_file(pool, node, "startup/stdout.txt")]
        found["node file"] = b"".join(pieces).decode()
        await client.create_job(job_options(pool))
        await client.create_tasks(job, tasks(120))
        await until(completed)
        listed = client.list_tasks(job, filter="state eq 'completed'", select=["id"], max_results=50)
        found["tasks"] = len({task.id async for task in listed})
        task = await client.get_task(job, "t7")
        found["task"] = [task.state, task.execution_info.exit_code, task.execution_info.result]
        pieces = [piece async for piece in await client.download_task_file(job, "t7", "stdout.txt")]
        found["file"] = b"".join(pieces).decode()
        await client.update_job(job, models.BatchJobUpdateOptions(priority=5))
        found["priority"] = (await client.get_job(job)).priority
        try:
            await client.get_job("none")
        except HttpResponseError as exc:
            found["error"] = exc.model.code
        await (await client.begin_delete_job(job, **FAST)).result()
        await (await client.begin_delete_pool(pool, **FAST)).result()
    return found


print(json.dumps([synchronous("new"), asyncio.run(asynchronous("new-async"))]))
