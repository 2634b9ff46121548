"""What goes wrong on nodes when the control routes ask for it: lost nodes, full disks, tasks that fail, clocks."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import psutil
import pytest
from azure.batch import models
from azure.core.exceptions import HttpResponseError
from emulator_lab import Lab, until

from joblib_azure.emulator import EmulatorError


def test_what_ran_on_a_lost_node_goes_on_unseen_while_its_task_runs_elsewhere(lab: Lab, tmp_path: Path) -> None:
    pool = lab.pool(nodes=2)
    job = lab.job(pool)
    task = lab.task(job, f"sh -c 'echo $$ >> {tmp_path}/pids; exec sleep 60'")
    lab.state(job, task, "running")
    (first,) = until(lambda: _pids(tmp_path))
    before = lab.client.get_task(job, task).node_info.node_id
    lab.emulator.control(f"pools/{pool}/nodes/{before}/lose")
    assert lab.client.get_node(pool, before).state == "unknown"
    until(lambda: len(_pids(tmp_path)) == 2, say="the task runs again")
    found = lab.client.get_task(job, task)
    assert found.node_info.node_id != before
    assert found.execution_info.requeue_count == 1
    assert psutil.pid_exists(first)
    lab.emulator.restore_node(pool, before)
    until(lambda: lab.client.get_node(pool, before).state == "idle", say="it is back")
    until(lambda: not psutil.pid_exists(first), say="what ran there has ended with the machine's restart")
    lab.client.terminate_task(job, task)


def test_a_lost_node_comes_back_by_itself(lab: Lab) -> None:
    pool = lab.pool(nodes=1)
    (node,) = lab.nodes(pool)
    lab.emulator.control(f"pools/{pool}/nodes/{node.id}/lose?seconds=0.2")
    with pytest.raises(EmulatorError, match="OperationInvalidForCurrentState"):
        lab.emulator.control(f"pools/{pool}/nodes/{node.id}/lose")
    lab.wait_idle(pool, 1)


def test_a_full_disk_takes_no_writes_and_then_the_node(lab: Lab, tmp_path: Path) -> None:
    pool = lab.pool(nodes=1)
    job = lab.job(pool)
    said = tmp_path / "said"
    said.touch()
    script = f"while :; do echo x > here 2>> /dev/null || mkdir {tmp_path}/full; sleep 0.02; done"
    task = lab.task(job, f"sh -c 'trap \"\" XFSZ; {script}'")
    lab.state(job, task, "running")
    (node,) = lab.nodes(pool)
    lab.emulator.control(f"pools/{pool}/nodes/{node.id}/fill?seconds=1")
    until((tmp_path / "full").exists, say="the task cannot write")
    full = until(lambda: lab.client.get_node(pool, node.id).errors)
    assert full[0].code == "DiskFull"
    assert lab.client.get_node(pool, node.id).state == "unusable"
    lab.state(job, task, "active")
    lab.state(job, task, "running")  # somebody has freed space and rebooted it
    lab.client.terminate_task(job, task)


def test_tries_of_preparation_tasks_fail_as_often_as_was_asked(lab: Lab) -> None:
    pool = lab.pool(nodes=1)
    preparation = models.BatchJobPreparationTask(
        command_line="true", constraints=models.BatchTaskConstraints(max_task_retry_count=2), wait_for_success=True
    )
    lab.emulator.control("tasks/preparation/fail?count=2")
    job = lab.job(pool, job_preparation_task=preparation)
    task = lab.task(job, "true")
    lab.state(job, task, "completed")
    (status,) = lab.client.list_job_preparation_and_release_task_status(job)
    info = status.job_preparation_task_execution_info
    assert (info.result, info.retry_count) == ("success", 2)


@pytest.mark.parametrize("how", ["reboot", "unusable"])
def test_a_preparation_that_a_reboot_interrupts_runs_again(lab: Lab, tmp_path: Path, how: str) -> None:
    """As the service documents it at rerunOnNodeRebootAfterSuccess; the node is not lost to the job."""
    pool = lab.pool(nodes=1)
    (node,) = lab.nodes(pool)
    script = f"sh -c 'echo $$ >> {tmp_path}/pids; [ $(wc -l < {tmp_path}/pids) -gt 1 ] || exec sleep 60'"
    job = lab.job(pool, job_preparation_task=models.BatchJobPreparationTask(command_line=script))
    task = lab.task(job, "true")
    until(lambda: _pids(tmp_path))
    if how == "reboot":
        lab.client.begin_reboot_node(pool, node.id, {"nodeRebootOption": "requeue"}, polling_interval=0.02).result()
    else:
        lab.emulator.mark_node_unusable(pool, node.id, seconds=0.1)
    lab.state(job, task, "completed")
    assert len(_pids(tmp_path)) == 2
    (status,) = lab.client.list_job_preparation_and_release_task_status(job)
    assert status.job_preparation_task_execution_info.result == "success"


def test_start_tasks_fail_as_often_as_was_asked(lab: Lab) -> None:
    start = models.BatchStartTask(command_line="true", wait_for_success=True)
    pool = lab.pool(nodes=1, start_task=start)
    (node,) = lab.nodes(pool)
    lab.emulator.control("tasks/start/fail")
    lab.client.begin_reboot_node(pool, node.id, {"nodeRebootOption": "requeue"}, polling_interval=0.02).result()
    until(lambda: lab.client.get_node(pool, node.id).state == "starttaskfailed")
    lab.client.begin_reboot_node(pool, node.id, {"nodeRebootOption": "requeue"}, polling_interval=0.02).result()
    lab.wait_idle(pool, 1)


def test_the_service_s_clock_may_be_off(lab: Lab, pool: str) -> None:
    try:
        lab.emulator.control("clock?ahead=-600")
        job = lab.job(pool)
        created = lab.client.get_job(job).creation_time
        behind = datetime.datetime.now(datetime.timezone.utc) - created
        assert 595 < behind.total_seconds() < 605
        lab.emulator.control("clock?ahead=1000")
        with pytest.raises(HttpResponseError, match="AuthenticationFailed"):
            lab.client.get_job(job)
    finally:
        lab.emulator.control("clock?ahead=0")
    for bad in ("clock?ahead=x", "tasks/start/fail?count=-1", "tasks/other/fail", "clock/x"):
        with pytest.raises(EmulatorError):
            lab.emulator.control(bad)


def _pids(folder: Path) -> list[int]:
    time.sleep(0.01)
    file = folder / "pids"
    return [int(line) for line in file.read_text().split()] if file.exists() else []
