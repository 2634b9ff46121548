"""What goes wrong with pools and nodes, and how a test has it go wrong: quota, capacity, start tasks, lost nodes."""

from __future__ import annotations

import datetime
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from azure.batch import models
from emulator_lab import Lab, alive_with, until

from joblib_azure.emulator import BatchEmulator, EmulatorError

Start = Callable[..., Lab]


@pytest.fixture
def started() -> Iterator[Start]:
    """Starts an emulator that behaves in some way, and gives a lab on it."""
    with ExitStack() as stack:
        yield lambda **behaviour: Lab(stack.enter_context(BatchEmulator(**behaviour)))


def resize_errors(lab: Lab, pool: str) -> list[str]:
    until(lambda: lab.client.get_pool(pool).allocation_state == "steady")
    return [error.code for error in lab.client.get_pool(pool).resize_errors or ()]


def resize(lab: Lab, pool: str, dedicated: int, spot: int = 0, **more: Any) -> None:
    options = models.BatchPoolResizeOptions(target_dedicated_nodes=dedicated, target_low_priority_nodes=spot, **more)
    lab.client.begin_resize_pool(pool, options, polling_interval=0.02)


def states(lab: Lab, pool: str) -> list[str]:
    return sorted(node.state for node in lab.nodes(pool))


def test_core_quotas_end_a_resize_early(started: Start) -> None:
    lab = started(dedicated_core_quota=8, spot_core_quota=4)
    pool = lab.pool(nodes=3, size="Emulated_C4", target_low_priority_nodes=2, wait=False)
    assert resize_errors(lab, pool) == ["AccountCoreQuotaReached", "AccountLowPriorityCoreQuotaReached"]
    found = lab.client.get_pool(pool)
    assert (found.current_dedicated_nodes, found.target_dedicated_nodes) == (2, 3)
    assert (found.current_low_priority_nodes, found.target_low_priority_nodes) == (1, 2)
    other = lab.pool(nodes=1, wait=False)
    assert resize_errors(lab, other) == ["AccountCoreQuotaReached"]
    assert lab.nodes(other) == []
    resize(lab, pool, 1, 1)
    assert resize_errors(lab, pool) == []
    resize(lab, other, 1)
    lab.wait_idle(other, 1)


def test_sizes_that_cannot_be_had(started: Start) -> None:
    lab = started(failing_sizes={"Emulated_C2": 1}, timing_out_sizes={"emulated_c3": 1}, clock_rate=300)
    failing = lab.pool(nodes=3, size="Emulated_C2", wait=False)
    began = time.monotonic()
    late = lab.pool(nodes=2, size="Emulated_C3", wait=False, resize_timeout=datetime.timedelta(minutes=10))
    assert resize_errors(lab, failing) == ["AllocationFailed"]
    assert len(lab.nodes(failing)) == 1
    assert lab.client.get_pool(late).allocation_state == "resizing"
    assert resize_errors(lab, late) == ["AllocationTimedout"]
    assert time.monotonic() - began >= 2
    assert len(lab.nodes(late)) == 1
    lab.wait_idle(lab.pool(nodes=2), 2)


def test_a_resize_that_is_stopped(started: Start) -> None:
    lab = started(timing_out_sizes={"Emulated_C1": 0})
    pool = lab.pool(nodes=2, wait=False)
    until(lambda: lab.client.get_pool(pool).allocation_state == "resizing")
    again = models.BatchPoolResizeOptions(target_dedicated_nodes=1)
    lab.refused(409, "PoolBeingResized", lab.client.begin_resize_pool, pool, again, polling_interval=0.02)
    lab.client.begin_stop_pool_resize(pool, polling_interval=0.02).result()
    assert resize_errors(lab, pool) == ["ResizeStopped"]
    assert lab.nodes(pool) == []


def test_nodes_leave_together_and_in_time(started: Start) -> None:
    lab = started(clock_rate=300)
    pool = lab.pool(nodes=3)
    job = lab.job(pool)
    tasks = [lab.task(job, "sleep 30") for _ in range(3)]
    for task in tasks:
        lab.state(job, task, "running")
    minutes = datetime.timedelta(minutes=5)
    resize(lab, pool, 1, node_deallocation_option="taskcompletion", resize_timeout=minutes)
    until(lambda: states(lab, pool) == ["leavingpool", "leavingpool", "running"])
    assert resize_errors(lab, pool) == ["AllocationTimedout"]
    resize(lab, pool, 0, node_deallocation_option="terminate")
    until(lambda: "completed" in [lab.client.get_task(job, task).state for task in tasks])
    for task in tasks:
        if lab.client.get_task(job, task).state != "completed":
            lab.client.terminate_task(job, task)
    until(lambda: states(lab, pool) == [])


def test_start_tasks_that_fail_on_some_nodes(started: Start) -> None:
    lab = started(failing_start_tasks=1)
    start = models.BatchStartTask(command_line="sh -c 'echo fine'", wait_for_success=True)
    pool = lab.pool(nodes=2, start_task=start, wait=False)
    until(lambda: states(lab, pool) == ["idle", "starttaskfailed"])
    failed = next(node for node in lab.nodes(pool) if node.state == "starttaskfailed")
    assert failed.start_task_info.exit_code == 1
    assert failed.errors[0].code == "StartTaskFailed"
    text = b"".join(lab.client.download_node_file(pool, failed.id, "startup/stderr.txt")).decode()
    assert text == "this start task fails, as the emulator was told\n"
    lab.client.begin_reboot_node(pool, failed.id, {"nodeRebootOption": "requeue"}, polling_interval=0.02).result()
    lab.wait_idle(pool, 2)


def test_unusable_nodes(started: Start) -> None:
    lab = started(unusable_nodes=1)
    pool = lab.pool(nodes=2, wait=False)
    until(lambda: states(lab, pool) == ["idle", "unusable"])
    lost = next(node.id for node in lab.nodes(pool) if node.state == "unusable")
    assert lab.client.get_node(pool, lost).errors
    restart = {"nodeRebootOption": "requeue"}
    lab.refused(409, "NodeStateUnusable", lab.client.begin_reboot_node, pool, lost, restart, polling_interval=0.02)
    resize(lab, pool, 1)
    assert [node.id for node in lab.wait_idle(pool, 1)] != [lost]
    job = lab.job(pool)
    task = lab.task(job, "sleep 30")
    lab.state(job, task, "running")
    node = lab.nodes(pool)[0].id
    lab.emulator.mark_node_unusable(pool, node)
    lab.state(job, task, "active")
    assert lab.client.get_node(pool, node).errors[0].code == "NodeNotReady"
    lab.emulator.restore_node(pool, node)
    lab.state(job, task, "running")
    assert lab.client.get_node(pool, node).errors is None


def test_preempted_nodes_stay_listed_and_come_back(lab: Lab) -> None:
    start = models.BatchStartTask(command_line="sh -c 'echo x >> $AZ_BATCH_NODE_SHARED_DIR/starts'")
    start.wait_for_success = True
    pool = lab.pool(nodes=1, target_low_priority_nodes=1, start_task=start)
    spot = next(node for node in lab.nodes(pool) if not node.is_dedicated)
    dedicated = next(node for node in lab.nodes(pool) if node.is_dedicated)
    job = lab.job(pool)
    tasks = [lab.task(job, "sleep 30") for _ in range(2)]
    for task in tasks:
        lab.state(job, task, "running")
    there = next(task for task in tasks if lab.client.get_task(job, task).node_info.node_id == spot.id)
    with pytest.raises(EmulatorError, match="OperationNotValidOnNode"):
        lab.emulator.preempt_node(pool, dedicated.id)
    lab.emulator.preempt_node(pool, spot.id)
    lab.state(job, there, "active")
    assert lab.client.get_task(job, there).execution_info.requeue_count == 1
    found = lab.client.get_pool(pool)
    assert (found.current_low_priority_nodes, found.target_low_priority_nodes) == (1, 1)
    counts = next(iter(lab.client.list_pool_node_counts(filter=f"poolId eq '{pool}'")))
    assert (counts.low_priority.preempted, counts.low_priority.total) == (1, 1)
    lab.refused(409, "OperationInvalidForCurrentState", lambda: list(lab.client.list_node_files(pool, spot.id)))
    with pytest.raises(EmulatorError, match="OperationInvalidForCurrentState"):
        lab.emulator.preempt_node(pool, spot.id)
    lab.emulator.restore_node(pool, spot.id)
    lab.state(job, there, "running")
    assert lab.client.get_task(job, there).node_info.node_id == spot.id
    text = b"".join(lab.client.download_node_file(pool, spot.id, "shared/starts")).decode()
    assert text == "x\n"
    for task in tasks:
        lab.client.terminate_task(job, task)


def test_a_preempted_node_comes_back_by_itself(lab: Lab) -> None:
    pool = lab.pool(nodes=0, target_low_priority_nodes=2)
    first, second = (node.id for node in lab.nodes(pool))
    lab.emulator.preempt_node(pool, first, seconds=0.3)
    assert lab.client.get_node(pool, first).state == "preempted"
    lab.wait_idle(pool, 2)
    lab.emulator.preempt_node(pool, second)
    resize(lab, pool, 0, 1)
    assert [node.id for node in lab.wait_idle(pool, 1)] == [first]


#: Leaves a process in a session of its own, of whose environment only the node's id is left, and a file of its own on
#: the node's disk.
DAEMON = """
import os, pathlib, sys
own = pathlib.Path(os.environ["AZ_BATCH_NODE_ROOT_DIR"]).parents[1] / "own"
own.mkdir(exist_ok=True)
(own / sys.argv[1]).touch()
end, started = os.pipe()
if os.fork() == 0:
    os.setsid()
    os.execve("/bin/sleep", ["sleep", "301"], {"AZ_BATCH_NODE_ID": os.environ["AZ_BATCH_NODE_ID"]})
os.close(started)
os.read(end, 1)  # until execve has closed the other end
"""


@pytest.mark.parametrize("how", ["reboot", "reimage", "remove", "preempt"])
def test_daemons_end_with_their_node_and_not_with_their_task(lab: Lab, tmp_path: Path, how: str) -> None:
    script = tmp_path / "daemon.py"
    script.write_text(DAEMON)
    pool = lab.pool(nodes=0, target_low_priority_nodes=1)
    node = lab.nodes(pool)[0].id
    preparation = models.BatchJobPreparationTask(command_line=f"{sys.executable} {script} preparation")
    job = lab.job(pool, job_preparation_task=preparation)
    # what carries its task's id is swept when the task has ended: where that is gone, the sweep is over
    lab.run(job, f"sh -c 'setsid sleep 302 & {sys.executable} {script} task'")
    until(lambda: not alive_with("AZ_BATCH_JOB_ID", job))
    assert [process.cmdline() for process in alive_with("AZ_BATCH_NODE_ID", node)] == [["sleep", "301"]] * 2
    (machine,) = lab.emulator.root.glob(f"{pool[:16]}-*")
    assert {path.name for path in (machine / "own").iterdir()} == {"preparation", "task"}
    assert not [each for each in lab.client.list_node_files(pool, node, recursive=True) if "own" in each.name]

    if how == "reboot":
        lab.client.begin_reboot_node(pool, node, {"nodeRebootOption": "requeue"}, polling_interval=0.02).result()
    elif how == "reimage":
        lab.client.begin_reimage_node(pool, node, {"nodeReimageOption": "requeue"}, polling_interval=0.02).result()
    elif how == "remove":
        resize(lab, pool, 0, 0)
        until(lambda: not lab.nodes(pool))
    else:
        lab.emulator.preempt_node(pool, node)
        until(lambda: not machine.exists())
        lab.emulator.restore_node(pool, node)
    assert alive_with("AZ_BATCH_NODE_ID", node) == []
    if how == "remove":
        assert not machine.exists()
    else:
        lab.wait_idle(pool, 1)
        assert (machine / "own").exists() is (how == "reboot")
        assert (machine / "batch" / "tasks" / "workitems").is_dir()


def test_a_node_that_comes_back_at_once_keeps_its_new_folders(lab: Lab) -> None:
    pool = lab.pool(nodes=0, target_low_priority_nodes=1)
    (machine,) = lab.emulator.root.glob(f"{pool[:16]}-*")
    for number in range(3000):  # so that emptying the disk takes a while
        (machine / f"file-{number}").touch()
    lab.emulator.preempt_node(pool, lab.nodes(pool)[0].id, seconds=0)
    lab.wait_idle(pool, 1)
    assert [path.name for path in machine.iterdir()] == ["batch"]
    assert lab.run(lab.job(pool), "true").execution_info.exit_code == 0


def test_control_needs_the_key(lab: Lab, pool: str) -> None:
    url = f"{lab.emulator.endpoint}/_emulator/pools/{pool}/nodes/{lab.nodes(pool)[0].id}/unusable"
    for headers in ({}, {"x-emulator-key": "d3Jvbmc="}):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(url, b"", headers, method="POST"))
        assert caught.value.code == 403
        caught.value.close()
    with pytest.raises(EmulatorError, match="NodeNotFound"):
        lab.emulator.restore_node(pool, "tvmps_none")
    with pytest.raises(EmulatorError, match="PoolNotFound"):
        lab.emulator.restore_node("none", "tvmps_none")


def test_slow_nodes_and_slow_deletion(started: Start) -> None:
    lab = started(boot_seconds=0.4, pool_deletion_seconds=0.6, pool_quota=1)
    pool = lab.pool(nodes=1, wait=False)
    until(lambda: states(lab, pool) == ["starting"])
    began = time.monotonic()
    lab.wait_idle(pool, 1)
    deleting = time.monotonic()
    assert deleting - began > 0.2
    lab.client.begin_delete_pool(pool, polling_interval=0.02)
    assert lab.client.get_pool(pool).state == "deleting"
    given: dict[str, Any] = {
        "vm_size": "Emulated_C1",
        "virtual_machine_configuration": lab.machine(),
        "target_dedicated_nodes": 0,
    }
    create = lab.client.create_pool
    lab.refused(409, "PoolBeingDeleted", create, models.BatchPoolCreateOptions(id=pool, **given))
    lab.refused(409, "PoolQuotaReached", create, models.BatchPoolCreateOptions(id="other", **given))
    lab.refused(409, "PoolBeingDeleted", lab.client.update_pool, pool, models.BatchPoolUpdateOptions(metadata=[]))
    until(lambda: not list(lab.client.list_pools()))
    assert time.monotonic() - deleting > 0.5
    create(models.BatchPoolCreateOptions(id=pool, **given))


# -- the service's own latency ----------------------------------------------------------------------------------------


def test_tasks_take_a_while_to_their_nodes(started: Start) -> None:
    lab = started(dispatch_seconds=0.6)
    pool = lab.pool(nodes=1, slots=2)
    preparation = models.BatchJobPreparationTask(command_line="sleep 0.5")
    job = lab.job(pool, job_preparation_task=preparation)
    began = datetime.datetime.now(datetime.timezone.utc)
    first, second, third = (lab.task(job, "true") for _ in range(3))
    until(lambda: lab.nodes(pool)[0].running_task_slots_count == 2, say="the slots are taken")
    waiting = lab.client.get_task(job, first)
    assert (waiting.state, waiting.execution_info.start_time, waiting.node_info) == ("active", None, None)
    assert (lab.client.get_job_task_counts(job).task_counts.active, lab.nodes(pool)[0].state) == (3, "running")
    lab.refused(409, "TaskFilesUnavailable", lab.text, job, first)
    seen = lab.state(job, first, "preparing")
    assert (seen.execution_info.start_time, seen.node_info.node_id) == (None, lab.nodes(pool)[0].id)
    for task in (first, second):
        found = lab.done(job, task)
        # the first waited for the preparation too, which had no latency of its own
        assert (found.execution_info.start_time - began).total_seconds() >= 1.1
        assert found.execution_info.exit_code == 0
    assert (lab.done(job, third).execution_info.start_time - began).total_seconds() >= 1.7


def test_what_happens_to_tasks_on_their_way(started: Start) -> None:
    lab = started(dispatch_seconds=30)
    pool = lab.pool(nodes=0, target_low_priority_nodes=1, size="Emulated_C4", slots=4)
    node = lab.nodes(pool)[0].id
    job = lab.job(pool)
    began = time.monotonic()
    terminated, deleted, queued = (lab.task(job, "true") for _ in range(3))
    until(lambda: lab.nodes(pool)[0].running_task_slots_count == 3)
    lab.client.terminate_task(job, terminated)
    info = lab.client.get_task(job, terminated).execution_info
    assert (info.failure_info.code, info.start_time, info.exit_code) == ("TaskEnded", None, None)
    lab.client.delete_task(job, deleted)
    lab.refused(404, "TaskNotFound", lab.client.get_task, job, deleted)
    assert lab.nodes(pool)[0].running_task_slots_count == 1
    lab.emulator.preempt_node(pool, node)
    until(lambda: lab.nodes(pool)[0].running_task_slots_count == 0)
    assert lab.client.get_task(job, queued).state == "active"
    assert not lab.client.get_task(job, queued).execution_info.requeue_count  # it has not been anywhere
    lab.emulator.restore_node(pool, node)
    until(lambda: lab.nodes(pool)[0].running_task_slots_count == 1)
    lab.client.begin_terminate_job(job, {"terminateReason": "over"}, polling_interval=0.02).result()
    assert time.monotonic() - began < 20
    lab.wait_idle(pool, 1)


@pytest.mark.parametrize("value", [-1, "soon", float("nan"), float("inf"), None, True])
def test_options_out_of_range(value: Any) -> None:
    with pytest.raises(ValueError, match="dispatch_seconds is"):
        BatchEmulator(dispatch_seconds=value)


# -- what a pool is made of -------------------------------------------------------------------------------------------


def image(publisher: str, offer: str, sku: str, agent: str) -> models.VirtualMachineConfiguration:
    reference = models.BatchVmImageReference(publisher=publisher, offer=offer, sku=sku)
    return models.VirtualMachineConfiguration(image_reference=reference, node_agent_sku_id=agent)


HPC = ("microsoft-dsvm", "ubuntu-hpc", "2204", "batch.node.ubuntu 22.04")


def test_supported_images(lab: Lab) -> None:
    found = list(lab.client.list_supported_images())
    agents = {(each.image_reference.offer, each.image_reference.sku): each.node_agent_sku_id for each in found}
    assert agents["ubuntu-24_04-lts", "server"] == "batch.node.ubuntu 24.04"
    assert agents["0001-com-ubuntu-server-jammy", "22_04-lts"] == "batch.node.ubuntu 22.04"
    with_docker = [each for each in found if "DockerCompatible" in (each.capabilities or ())]
    assert {each.os_type for each in with_docker} == {"linux", "windows"}
    assert {each.verification_type for each in found} == {"verified", "unverified"}
    past = [each for each in found if each.batch_support_end_of_life]
    assert all(each.batch_support_end_of_life.tzinfo for each in past)
    condition = "osType eq 'linux' and verificationType eq 'verified' and nodeAgentSKUId eq 'batch.node.ubuntu 24.04'"
    named = {each.image_reference.offer for each in lab.client.list_supported_images(filter=condition)}
    assert named == {"ubuntu-24_04-lts", "ubuntu-hpc"}


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (image("canonical", "ubuntu-24_04-lts", "server", "batch.node.ubuntu 22.04"), "nodeAgentSKUId"),
        (image("canonical", "ubuntu-24_04-lts", "server", "batch.node.centos 7"), "nodeAgentSKUId"),
        (image("canonical", "ubuntu-26_04-lts", "server", "batch.node.ubuntu 24.04"), "imageReference"),
        (
            image("microsoft-azure-batch", "ubuntu-server-container", "20-04-lts", "batch.node.ubuntu 20.04"),
            "imageReference",
        ),
    ],
)
def test_images_that_are_not_supported(lab: Lab, machine: models.VirtualMachineConfiguration, name: str) -> None:
    given = models.BatchPoolCreateOptions(
        id="bad", vm_size="Standard_F2", virtual_machine_configuration=machine, target_dedicated_nodes=0
    )
    body = lab.refused(400, "InvalidPropertyValue", lab.client.create_pool, given)
    assert body["values"][0]["value"] == f"virtualMachineConfiguration.{name}"


def test_names_of_images_have_no_case_and_windows_does_not_run_here(lab: Lab) -> None:
    machine = image("Canonical", "Ubuntu-24_04-LTS", "Server", "batch.node.ubuntu 24.04")
    lab.pool(nodes=0, virtual_machine_configuration=machine)
    windows = image("MicrosoftWindowsServer", "WindowsServer", "2022-datacenter", "batch.node.windows amd64")
    given = models.BatchPoolCreateOptions(
        id="win", vm_size="Standard_F2", virtual_machine_configuration=windows, target_dedicated_nodes=0
    )
    lab.refused(501, "NotImplemented", lab.client.create_pool, given)


def test_container_pools(lab: Lab) -> None:
    registry = models.ContainerRegistryReference(registry_server="r.io", username="u", password="registry-secret")
    container = models.BatchContainerConfiguration(
        type="dockerCompatible", container_image_names=["python:3.12"], container_registries=[registry]
    )
    machine = image(*HPC)
    machine.container_configuration = container
    pool = lab.pool(nodes=0, virtual_machine_configuration=machine)
    status, _, body = lab.raw("GET", f"/pools/{pool}")
    assert status == 200
    assert b"python:3.12" in body
    assert b"registry-secret" not in body
    job = lab.job(pool)
    task = models.BatchTaskCreateOptions(id="t", command_line="true")
    lab.refused(400, "InvalidPropertyValue", lab.client.create_task, job, task)
    task.container_settings = models.BatchTaskContainerSettings(image_name="python:3.12")
    lab.refused(501, "NotImplemented", lab.client.create_task, job, task)
    plain = lab.machine()
    plain.container_configuration = container
    given = models.BatchPoolCreateOptions(
        id="bad", vm_size="Standard_F2", virtual_machine_configuration=plain, target_dedicated_nodes=0
    )
    body = lab.refused(400, "InvalidPropertyValue", lab.client.create_pool, given)
    assert "registry-secret" not in str(body)


def test_what_a_shared_key_may_not_ask_for(lab: Lab) -> None:
    def pool(**more: Any) -> models.BatchPoolCreateOptions:
        more.setdefault("virtual_machine_configuration", lab.machine())
        return models.BatchPoolCreateOptions(id="net", vm_size="Standard_F2", target_dedicated_nodes=0, **more)

    network = models.NetworkConfiguration(subnet_id="/subscriptions/s/resourceGroups/g/…/subnets/n")
    body = lab.refused(403, "AuthenticationFailed", lab.client.create_pool, pool(network_configuration=network))
    assert "external resources of type Network" in body["values"][0]["value"]
    own = models.VirtualMachineConfiguration(
        image_reference=models.BatchVmImageReference(virtual_machine_image_id="/subscriptions/s/…/images/i"),
        node_agent_sku_id="batch.node.ubuntu 24.04",
    )
    body = lab.refused(403, "AuthenticationFailed", lab.client.create_pool, pool(virtual_machine_configuration=own))
    assert "external resources of type Compute" in body["values"][0]["value"]
    # identities belong to Azure Resource Manager: the Batch API has no such property
    raw = b'{"id":"x","vmSize":"Standard_F2","targetDedicatedNodes":0,"identity":{"type":"UserAssigned"}}'
    assert lab.raw("POST", "/pools", raw)[0] == 400


def test_mounts_are_folders(lab: Lab) -> None:
    share = models.AzureFileShareConfiguration(
        account_name="a",
        azure_file_url="https://a.file.core.windows.net/s",
        account_key="mount-secret",
        relative_mount_path="data/in",
    )
    pool = lab.pool(nodes=1, mount_configuration=[models.MountConfiguration(azure_file_share_configuration=share)])
    found = lab.run(lab.job(pool), "sh -c 'test -d $AZ_BATCH_NODE_MOUNTS_DIR/data/in'")
    assert found.execution_info.exit_code == 0
    assert b"mount-secret" not in lab.raw("GET", f"/pools/{pool}")[2]
    assert "azureFileShareConfiguration is not mounted" in (lab.emulator.root / "emulator.log").read_text()
    blob = {"accountName": "a", "containerName": "c", "relativeMountPath": "../out", "sasKey": "?sig"}
    given: dict[str, Any] = {
        "id": "bad",
        "vm_size": "Standard_F2",
        "virtual_machine_configuration": lab.machine(),
        "target_dedicated_nodes": 0,
    }
    for change in ({}, {"relativeMountPath": "x", "accountKey": "k"}, {"relativeMountPath": "x", "sasKey": None}):
        mount = models.MountConfiguration(
            azure_blob_file_system_configuration=models.AzureBlobFileSystemConfiguration({**blob, **change})
        )
        options = models.BatchPoolCreateOptions(mount_configuration=[mount], **given)
        lab.refused(400, "InvalidPropertyValue", lab.client.create_pool, options)


def test_pools_are_found_by_name(lab: Lab) -> None:
    pool = lab.pool(nodes=0, metadata=[models.BatchMetadataItem(name="by", value="test")])
    found = list(lab.client.list_pools(filter=f"startswith(id,'{pool}')", select=["id", "state", "metadata"]))
    assert [each.id for each in found] == [pool]
    assert found[0].metadata[0].value == "test"
    assert found[0].vm_size is None


def test_files_of_a_node_in_ranges(lab: Lab) -> None:
    start = models.BatchStartTask(command_line="sh -c 'printf 0123456789'", wait_for_success=True)
    pool = lab.pool(nodes=1, start_task=start)
    node = lab.nodes(pool)[0].id
    names = {each.name for each in lab.client.list_node_files(pool, node, recursive=True)}
    assert {"startup", "startup/stdout.txt", "startup/wd"} <= names
    properties = lab.client.get_node_file_properties(pool, node, "startup/stdout.txt")
    assert int(properties.content_length) == 10
    part = lab.client.download_node_file(pool, node, "startup/stdout.txt", ocp_range="bytes=3-5")
    assert b"".join(part) == b"345"
    lab.refused(404, "FileNotFound", lambda: b"".join(lab.client.download_node_file(pool, node, "startup/none")))
