"""Pools and their nodes."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
from azure.batch import models
from emulator_lab import Lab, until


def test_life_of_a_pool(lab: Lab) -> None:
    pool = lab.pool(nodes=2, metadata=[models.BatchMetadataItem(name="a", value="b")])
    found = lab.client.get_pool(pool)
    assert (found.state, found.allocation_state, found.current_dedicated_nodes) == ("active", "steady", 2)
    assert (found.target_dedicated_nodes, found.task_slots_per_node, found.vm_size) == (2, 1, "emulated_c1")
    assert found.task_scheduling_policy.node_fill_type == "spread"
    nodes = lab.nodes(pool)
    assert len({node.id for node in nodes}) == 2
    for node in nodes:
        assert node.id.startswith("tvmps_")
        assert node.id.endswith("_d")
        assert (node.is_dedicated, node.scheduling_state, node.total_tasks_run) == (True, "enabled", 0)
        assert node.virtual_machine_info.image_reference.offer == "ubuntu-24_04-lts"
    folders = list(lab.emulator.root.glob(f"{pool[:16]}-*"))
    assert len(folders) == 2
    for name in ("applications", "fsmounts", "shared", "startup/wd", "volatile", "workitems"):
        assert (folders[0] / "batch" / "tasks" / name).is_dir()
    lab.client.begin_delete_pool(pool, polling_interval=0.02).result()
    lab.refused(404, "PoolNotFound", lab.client.get_pool, pool)
    assert not any(folder.exists() for folder in folders)


def test_spot_nodes(lab: Lab) -> None:
    pool = lab.pool(nodes=1, target_low_priority_nodes=1)
    found = lab.client.get_pool(pool)
    assert (found.current_dedicated_nodes, found.current_low_priority_nodes) == (1, 1)
    spot = [node for node in lab.nodes(pool) if not node.is_dedicated]
    assert len(spot) == 1
    assert spot[0].id.endswith("_p")
    counts = next(iter(lab.client.list_pool_node_counts(filter=f"poolId eq '{pool}'")))
    assert (counts.dedicated.idle, counts.low_priority.idle, counts.dedicated.total) == (1, 1, 1)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"vm_size": "huge"}, "vmSize"),
        ({"task_slots_per_node": 5}, "taskSlotsPerNode"),
        ({"task_slots_per_node": 0}, "taskSlotsPerNode"),
        ({"target_dedicated_nodes": -1}, "targetDedicatedNodes"),
        ({"resize_timeout": "PT4M"}, "resizeTimeout"),
        ({"id": "a" * 65}, "id"),
        ({"id": "a/b"}, "id"),
    ],
)
def test_invalid_pools(lab: Lab, change: dict[str, Any], name: str) -> None:
    given = {
        "id": lab.name("bad"),
        "vm_size": "Emulated_C1",
        "virtual_machine_configuration": lab.machine(),
        "target_dedicated_nodes": 0,
        **change,
    }
    body = lab.refused(400, "InvalidPropertyValue", lab.client.create_pool, models.BatchPoolCreateOptions(**given))
    values = {item["key"]: item["value"] for item in body["values"]}
    assert values["PropertyName"] == name
    assert values["Reason"]


def test_pools_that_lack_something(lab: Lab) -> None:
    make = models.BatchPoolCreateOptions
    create = lab.client.create_pool
    machine = lab.machine()
    lab.refused(400, "MissingRequiredProperty", create, make(id="x", vm_size="Standard_F2", target_dedicated_nodes=1))
    given: dict[str, Any] = {"id": "x", "vm_size": "Standard_F2", "virtual_machine_configuration": machine}
    lab.refused(400, "MissingRequiredProperty", create, make(**given))
    body = lab.refused(400, "MissingRequiredProperty", create, make(enable_auto_scale=True, **given))
    assert body["values"][0]["value"] == "autoScaleFormula"


def test_a_pool_exists_once_whatever_its_case(lab: Lab, pool: str) -> None:
    given = models.BatchPoolCreateOptions(
        id=pool.upper(),
        vm_size="Standard_F2",
        virtual_machine_configuration=lab.machine(),
        target_dedicated_nodes=0,
    )
    lab.refused(409, "PoolExists", lab.client.create_pool, given)
    assert lab.client.get_pool(pool.upper()).id == pool


def test_resize(lab: Lab) -> None:
    pool = lab.pool(nodes=3)
    client = lab.client
    client.begin_resize_pool(
        pool, models.BatchPoolResizeOptions(target_dedicated_nodes=1), polling_interval=0.02
    ).result()
    assert len(lab.wait_idle(pool, 1)) == 1
    client.begin_resize_pool(
        pool, models.BatchPoolResizeOptions(target_dedicated_nodes=2), polling_interval=0.02
    ).result()
    left, removed = lab.wait_idle(pool, 2)
    client.begin_remove_nodes(
        pool, models.BatchNodeRemoveOptions(node_ids=[removed.id]), polling_interval=0.02
    ).result()
    assert [node.id for node in lab.wait_idle(pool, 1)] == [left.id]
    assert client.get_pool(pool).target_dedicated_nodes == 1
    gone = models.BatchNodeRemoveOptions(node_ids=[removed.id])
    lab.refused(404, "NodeNotFound", client.begin_remove_nodes, pool, gone, polling_interval=0.02)


def test_resizing_a_pool_that_is_not_steady(lab: Lab) -> None:
    pool = lab.pool(nodes=1)
    job = lab.job(pool)
    task = lab.task(job, "sleep 30")
    lab.state(job, task, "running")
    wait = models.BatchPoolResizeOptions(target_dedicated_nodes=0, node_deallocation_option="taskcompletion")
    lab.client.begin_resize_pool(pool, wait, polling_interval=0.02)
    assert lab.client.get_pool(pool).allocation_state == "resizing"
    again = models.BatchPoolResizeOptions(target_dedicated_nodes=2)
    lab.refused(409, "PoolBeingResized", lab.client.begin_resize_pool, pool, again, polling_interval=0.02)
    assert lab.nodes(pool)[0].state == "leavingpool"
    lab.client.terminate_task(job, task)  # the node leaves once its task is done
    until(lambda: lab.client.get_pool(pool).allocation_state == "steady")
    assert lab.nodes(pool) == []


def test_removing_a_node_requeues_its_tasks(lab: Lab) -> None:
    pool = lab.pool(nodes=1)
    job = lab.job(pool)
    task = lab.task(job, "sleep 30")
    lab.state(job, task, "running")
    resize = lab.client.begin_resize_pool
    resize(pool, models.BatchPoolResizeOptions(target_dedicated_nodes=0), polling_interval=0.02).result()
    found = lab.client.get_task(job, task)
    assert (found.state, found.execution_info.requeue_count, found.execution_info.retry_count) == ("active", 1, 0)
    assert found.node_info is None
    resize(pool, models.BatchPoolResizeOptions(target_dedicated_nodes=1), polling_interval=0.02).result()
    lab.state(job, task, "running")
    lab.client.terminate_task(job, task)


def test_start_task(lab: Lab) -> None:
    start = models.BatchStartTask(
        command_line="sh -c 'echo started $AZ_BATCH_NODE_ID $AZ_BATCH_JOB_ID; echo $GIVEN > ../../shared/x'",
        wait_for_success=True,
        environment_settings=[models.EnvironmentSetting(name="GIVEN", value="value")],
    )
    pool = lab.pool(nodes=1, start_task=start)
    node = lab.nodes(pool)[0]
    info = node.start_task_info
    assert (info.state, info.exit_code, info.result, info.retry_count) == ("completed", 0, "success", 0)

    def read(path: str) -> str:
        return b"".join(lab.client.download_node_file(pool, node.id, path)).decode()

    assert read("startup/stdout.txt").split() == ["started", node.id]
    assert read("shared/x") == "value\n"


def test_failing_start_task(lab: Lab) -> None:
    start = models.BatchStartTask(command_line="sh -c 'echo no >&2; exit 3'", wait_for_success=True)
    start.max_task_retry_count = 2
    pool = lab.pool(nodes=1, start_task=start, wait=False)
    until(lambda: [node.state for node in lab.nodes(pool)] == ["starttaskfailed"])
    info = lab.nodes(pool)[0].start_task_info
    assert (info.exit_code, info.result, info.retry_count) == (3, "failure", 2)
    assert info.failure_info.code == "FailureExitCode"
    job = lab.job(pool)
    task = lab.task(job, "true")
    counts = next(iter(lab.client.list_pool_node_counts(filter=f"poolId eq '{pool}'")))
    assert counts.dedicated.start_task_failed == 1
    assert lab.client.get_task(job, task).state == "active"


def test_start_task_that_nobody_waits_for(lab: Lab) -> None:
    start = models.BatchStartTask(command_line="false", wait_for_success=False)
    pool = lab.pool(nodes=1, start_task=start)
    assert lab.run(lab.job(pool), "true").execution_info.exit_code == 0


def test_tasks_wait_for_the_start_task(lab: Lab) -> None:
    start = models.BatchStartTask(command_line="sh -c 'sleep 0.3; date +%s.%N'", wait_for_success=True)
    pool = lab.pool(nodes=1, start_task=start, wait=False)
    job = lab.job(pool)
    found = lab.run(job, "true")
    node = lab.nodes(pool)[0]
    assert found.execution_info.start_time >= node.start_task_info.end_time


def test_reboot_runs_the_start_task_again_and_reimage_clears_the_disk(lab: Lab) -> None:
    start = models.BatchStartTask(command_line="sh -c 'echo x >> $AZ_BATCH_NODE_SHARED_DIR/starts'")
    start.wait_for_success = True
    pool = lab.pool(nodes=1, start_task=start)
    node = lab.nodes(pool)[0].id

    def starts() -> str:
        return b"".join(lab.client.download_node_file(pool, node, "shared/starts")).decode()

    lab.client.begin_reboot_node(pool, node, {"nodeRebootOption": "requeue"}, polling_interval=0.02).result()
    lab.wait_idle(pool, 1)
    assert starts() == "x\nx\n"
    lab.client.begin_reimage_node(pool, node, {"nodeReimageOption": "requeue"}, polling_interval=0.02).result()
    lab.wait_idle(pool, 1)
    assert starts() == "x\n"
    assert lab.nodes(pool)[0].id == node


def test_disabling_scheduling(lab: Lab) -> None:
    pool = lab.pool(nodes=1)
    node = lab.nodes(pool)[0].id
    job = lab.job(pool)
    running = lab.task(job, "sleep 30")
    lab.state(job, running, "running")
    lab.client.disable_node_scheduling(pool, node, {"nodeDisableSchedulingOption": "requeue"})
    until(lambda: lab.client.get_node(pool, node).state == "offline")
    assert lab.client.get_task(job, running).state == "active"
    lab.refused(
        409,
        "NodeAlreadyInTargetSchedulingState",
        lab.client.disable_node_scheduling,
        pool,
        node,
        {"nodeDisableSchedulingOption": "requeue"},
    )
    lab.client.enable_node_scheduling(pool, node)
    lab.state(job, running, "running")
    lab.client.terminate_task(job, running)


def test_updating_a_pool(lab: Lab) -> None:
    pool = lab.pool(nodes=1)
    update = models.BatchPoolUpdateOptions(metadata=[models.BatchMetadataItem(name="k", value="v")])
    lab.client.update_pool(pool, update)
    assert lab.client.get_pool(pool).metadata[0].name == "k"
    lab.refused(
        409,
        "OperationInvalidForCurrentState",
        lab.client.update_pool,
        pool,
        models.BatchPoolUpdateOptions(task_slots_per_node=2),
    )
    replace = models.BatchPoolReplaceOptions(metadata=[], application_package_references=[])
    lab.client.replace_pool_properties(pool, replace)
    assert not lab.client.get_pool(pool).metadata


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the platform has no CPU affinity")
def test_processes_run_on_the_node_s_cpus(lab: Lab) -> None:
    machine = os.sched_getaffinity(0)
    pool = lab.pool(nodes=len(machine))
    job = lab.job(pool)
    command = f'{sys.executable} -c "import os, time; print(*sorted(os.sched_getaffinity(0))); time.sleep(0.3)"'
    tasks = [lab.task(job, command) for _ in machine]
    for task in tasks:
        lab.done(job, task)
    used = [lab.text(job, task).split() for task in tasks]
    assert all(len(cpus) == 1 for cpus in used)
    assert {int(cpus[0]) for cpus in used} == machine
    wide = lab.pool(nodes=1, size="Emulated_C64")
    job = lab.job(wide)
    found = lab.run(job, command)
    assert {int(cpu) for cpu in lab.text(job, found.id).split()} == machine
