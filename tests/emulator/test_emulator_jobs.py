"""Jobs: their ends, counts and limits, preparation and release, and how their tasks are scheduled."""

from __future__ import annotations

import datetime
import itertools
import time
from pathlib import Path

import pytest
from azure.batch import models
from emulator_lab import Lab, alive_with, until

from joblib_azure.emulator import BatchEmulator

DONE = {"terminateReason": "done"}


def test_life_of_a_job(lab: Lab, pool: str) -> None:
    job = lab.job(pool, priority=7, metadata=[models.BatchMetadataItem(name="a", value="b")])
    found = lab.client.get_job(job)
    assert (found.state, found.priority, found.pool_info.pool_id) == ("active", 7, pool)
    assert (found.all_tasks_complete_mode, found.task_failure_mode) == ("noaction", "noaction")
    assert found.execution_info.pool_id == pool
    running, waiting = lab.task(job, "sleep 60"), lab.task(job, "true", required_slots=4)
    lab.state(job, running, "running")
    lab.client.begin_terminate_job(job, DONE, polling_interval=0.02).result()
    found = lab.client.get_job(job)
    assert (found.state, found.execution_info.termination_reason) == ("completed", "done")
    assert found.execution_info.end_time >= found.execution_info.start_time
    assert lab.client.get_task(job, running).execution_info.failure_info.code == "TaskEnded"
    assert lab.client.get_task(job, waiting).state == "active"  # as the service leaves them
    assert alive_with("AZ_BATCH_JOB_ID", job) == []
    lab.refused(409, "JobCompleted", lab.task, job, "true")
    lab.refused(409, "JobCompleted", lab.client.update_job, job, models.BatchJobUpdateOptions(priority=1))
    lab.refused(409, "JobCompleted", lab.client.begin_terminate_job, job, DONE, polling_interval=0.02)
    lab.client.begin_delete_job(job, polling_interval=0.02).result()
    lab.refused(404, "JobNotFound", lab.client.get_job, job)


def test_ids_are_compared_without_case(lab: Lab, pool: str) -> None:
    job = lab.job(pool)
    given = models.BatchJobCreateOptions(id=job.upper(), pool_info=models.BatchPoolInfo(pool_id=pool))
    lab.refused(409, "JobExists", lab.client.create_job, given)
    assert lab.client.get_job(job.upper()).id == job


def test_deleting_a_running_job(lab: Lab, pool: str, job: str) -> None:
    task = lab.task(job, "sleep 60")
    lab.state(job, task, "running")
    lab.client.begin_delete_job(job, polling_interval=0.02).result()
    assert alive_with("AZ_BATCH_JOB_ID", job) == []
    assert not list(lab.emulator.root.glob(f"*/batch/tasks/workitems/{job}"))


def test_a_job_without_its_pool_waits_for_it(lab: Lab) -> None:
    pool = lab.name("later")
    job = lab.job(pool)
    task = lab.task(job, "true")
    time.sleep(0.1)
    assert lab.client.get_task(job, task).state == "active"
    lab.client.create_pool(
        models.BatchPoolCreateOptions(
            id=pool, vm_size="Standard_F2", virtual_machine_configuration=lab.machine(), target_dedicated_nodes=1
        )
    )
    lab.done(job, task)


def test_terminate_when_all_tasks_complete(lab: Lab, pool: str) -> None:
    empty = lab.job(pool, all_tasks_complete_mode="terminatejob")  # the trap: it ends at once
    found = lab.job_state(empty, "completed")
    assert found.execution_info.termination_reason == "AllTasksComplete"
    job = lab.job(pool)
    task = lab.task(job, "sleep 0.3")
    lab.client.update_job(job, models.BatchJobUpdateOptions(all_tasks_complete_mode="terminatejob"))
    assert lab.client.get_job(job).state == "active"
    lab.done(job, task)
    lab.job_state(job, "completed")


def test_wall_clock_of_a_job_counts_from_its_creation_and_can_be_moved(lab: Lab, pool: str) -> None:
    def constraints(value: float) -> models.BatchJobConstraints:
        return models.BatchJobConstraints(max_wall_clock_time=datetime.timedelta(seconds=value))

    job = lab.job(pool, constraints=constraints(0.5))
    kept = lab.job(pool, constraints=constraints(0.5))
    task = lab.task(job, "sleep 60")
    lab.client.update_job(kept, models.BatchJobUpdateOptions(constraints=constraints(3600)))
    found = lab.job_state(job, "completed")
    assert found.execution_info.termination_reason == "MaxWallClockTimeExpiry"
    lifetime = found.execution_info.end_time - found.creation_time
    assert datetime.timedelta(seconds=0.5) <= lifetime < datetime.timedelta(seconds=3)
    assert lab.client.get_task(job, task).execution_info.result == "failure"
    assert lab.client.get_job(kept).state == "active"
    lab.client.update_job(kept, models.BatchJobUpdateOptions(constraints=constraints(0.1)))  # already over
    lab.job_state(kept, "completed")


def test_counts_in_tasks_and_slots(lab: Lab) -> None:
    pool = lab.pool(nodes=1, slots=4)
    job = lab.job(pool)
    lab.run(job, "true", required_slots=2)
    lab.run(job, "false")
    lab.state(job, lab.task(job, "sleep 60", required_slots=3), "running")
    lab.task(job, "sleep 60", required_slots=4)
    found = lab.client.get_job_task_counts(job)
    tasks, slots = found.task_counts, found.task_slot_counts
    assert (tasks.active, tasks.running, tasks.completed, tasks.succeeded, tasks.failed) == (1, 1, 2, 1, 1)
    assert (slots.active, slots.running, slots.completed, slots.succeeded, slots.failed) == (4, 3, 3, 2, 1)
    node = lab.nodes(pool)[0]
    assert (node.state, node.running_tasks_count, node.running_task_slots_count) == ("running", 1, 3)
    assert (node.total_tasks_run, node.total_tasks_succeeded) == (2, 1)
    assert node.recent_tasks[0].task_state == "running"
    lab.client.begin_terminate_job(job, DONE, polling_interval=0.02).result()


@pytest.mark.parametrize(
    ("how", "state", "result"), [("requeue", "active", None), ("terminate", "completed", "failure")]
)
def test_disabling(lab: Lab, pool: str, job: str, how: str, state: str, result: str | None) -> None:
    task = lab.task(job, "sleep 60")
    lab.state(job, task, "running")
    disable = models.BatchJobDisableOptions(disable_tasks=how)
    lab.client.begin_disable_job(job, disable, polling_interval=0.02).result()
    assert lab.client.get_job(job).state == "disabled"
    found = lab.client.get_task(job, task)
    assert (found.state, found.execution_info.result) == (state, result)
    later = lab.task(job, "true")  # accepted, but not started
    time.sleep(0.1)
    assert lab.client.get_task(job, later).state == "active"
    lab.client.begin_enable_job(job, polling_interval=0.02).result()
    lab.done(job, later)
    lab.client.begin_terminate_job(job, DONE, polling_interval=0.02).result()


def test_disabling_with_wait(lab: Lab, pool: str, job: str) -> None:
    task = lab.task(job, "sleep 0.4")
    lab.state(job, task, "running")
    disable = models.BatchJobDisableOptions(disable_tasks="wait")
    lab.client.begin_disable_job(job, disable, polling_interval=10)
    assert lab.client.get_job(job).state == "disabling"
    lab.job_state(job, "disabled")
    assert lab.client.get_task(job, task).execution_info.result == "success"


def test_quota(tmp_path: Path) -> None:
    with BatchEmulator(active_job_quota=2) as emulator:
        small = Lab(emulator)
        first, _ = small.job("p"), small.job("p")
        small.refused(409, "ActiveJobAndScheduleQuotaReached", small.job, "p")
        small.client.begin_terminate_job(first, DONE, polling_interval=0.02).result()  # completed ones do not count
        small.job("p")


def test_on_task_failure(lab: Lab, pool: str) -> None:
    job = lab.job(pool, task_failure_mode="performexitoptionsjobaction")
    conditions = models.ExitConditions(
        exit_codes=[models.ExitCodeMapping(code=3, exit_options=models.ExitOptions(job_action="none"))],
        default=models.ExitOptions(job_action="terminate"),
    )
    lab.run(job, "sh -c 'exit 3'", exit_conditions=conditions)
    assert lab.client.get_job(job).state == "active"
    lab.run(job, "sh -c 'exit 4'", exit_conditions=conditions)
    assert lab.job_state(job, "completed").execution_info.termination_reason == "TaskFailed"


# -- preparation and release ------------------------------------------------------------------------------------------


def preparation(command: str, **more: object) -> models.BatchJobPreparationTask:
    return models.BatchJobPreparationTask(command_line=command, **more)


def test_preparation_runs_once_on_each_node_before_its_first_task(lab: Lab) -> None:
    pool = lab.pool(nodes=2)
    job = lab.job(
        pool,
        job_preparation_task=preparation(
            "sh -c 'sleep 0.2; echo x >> $AZ_BATCH_NODE_SHARED_DIR/prepared; echo p > here'"
        ),
        job_release_task=models.BatchJobReleaseTask(command_line="sh -c 'echo released'"),
    )
    assert list(lab.client.list_job_preparation_and_release_task_status(job)) == []
    command = "sh -c 'cat $AZ_BATCH_NODE_SHARED_DIR/prepared $AZ_BATCH_JOB_PREP_WORKING_DIR/here'"
    tasks = [lab.task(job, command) for _ in range(6)]
    until(lambda: lab.client.get_task(job, tasks[0]).state == "preparing")
    done = [lab.done(job, task) for task in tasks]
    assert all(lab.text(job, task) == "x\np\n" for task in tasks)
    assert len({task.node_info.node_id for task in done}) == 2
    rows = list(lab.client.list_job_preparation_and_release_task_status(job))
    assert {row.node_id for row in rows} == {node.id for node in lab.nodes(pool)}
    for row in rows:
        info = row.job_preparation_task_execution_info
        assert (info.state, info.exit_code, info.result) == ("completed", 0, "success")
        assert row.job_release_task_execution_info is None
    lab.client.begin_terminate_job(job, DONE, polling_interval=0.02).result()
    for row in lab.client.list_job_preparation_and_release_task_status(job):
        assert row.job_release_task_execution_info.exit_code == 0
        text = lab.client.download_node_file(
            pool, row.node_id, f"{row.job_release_task_execution_info.task_root_directory}/stdout.txt"
        )
        assert b"".join(text) == b"released\n"


def test_failing_preparation_keeps_tasks_active(lab: Lab) -> None:
    pool = lab.pool(nodes=2)
    constraints = models.BatchTaskConstraints(max_task_retry_count=2)
    job = lab.job(pool, job_preparation_task=preparation("sh -c 'exit 5'", constraints=constraints))
    task = lab.task(job, "true")

    def failed() -> bool:
        rows = list(lab.client.list_job_preparation_and_release_task_status(job))
        return [row.job_preparation_task_execution_info.state for row in rows] == ["completed"] * 2

    until(failed)
    rows = list(lab.client.list_job_preparation_and_release_task_status(job))
    for row in rows:
        info = row.job_preparation_task_execution_info
        assert (info.exit_code, info.result, info.retry_count) == (5, "failure", 2)
    lab.state(job, task, "active")
    other = lab.job(pool)
    lab.run(other, "true")  # the nodes serve other jobs
    found = lab.client.get_task(job, task)
    assert (found.state, found.execution_info.requeue_count) == ("active", 0)
    status = f"nodeId eq '{rows[0].node_id}' and jobPreparationTaskExecutionInfo/exitCode eq 5"
    assert len(list(lab.client.list_job_preparation_and_release_task_status(job, filter=status))) == 1


def test_preparation_that_nobody_waits_for(lab: Lab, pool: str) -> None:
    job = lab.job(pool, job_preparation_task=preparation("sh -c 'sleep 0.5; false'", wait_for_success=False))
    began = time.monotonic()
    lab.run(job, "true")
    assert time.monotonic() - began < 0.4


def test_a_release_task_needs_a_preparation_task(lab: Lab, pool: str) -> None:
    release = models.BatchJobReleaseTask(command_line="true")
    lab.refused(400, "InvalidPropertyValue", lab.job, pool, job_release_task=release)
    job = lab.job(pool)
    lab.refused(
        409,
        "JobPreparationTaskNotSpecified",
        lambda: list(lab.client.list_job_preparation_and_release_task_status(job)),
    )


# -- scheduling -------------------------------------------------------------------------------------------------------


def placed(lab: Lab, job: str, tasks: list[str]) -> list[str]:
    nodes = [lab.state(job, task, "running").node_info.node_id for task in tasks]
    lab.client.begin_terminate_job(job, DONE, polling_interval=0.02).result()
    return nodes


@pytest.mark.parametrize(("fill", "nodes"), [("spread", 2), ("pack", 1)])
def test_fill_types(lab: Lab, fill: str, nodes: int) -> None:
    policy = models.BatchTaskSchedulingPolicy(node_fill_type=fill)
    pool = lab.pool(nodes=2, slots=2, task_scheduling_policy=policy)
    job = lab.job(pool)
    assert len(set(placed(lab, job, [lab.task(job, "sleep 60") for _ in range(2)]))) == nodes


def test_required_slots(lab: Lab) -> None:
    pool = lab.pool(nodes=1, slots=4)
    job = lab.job(pool)
    big = lab.task(job, "sleep 60", required_slots=3)
    lab.state(job, big, "running")
    second = lab.task(job, "sleep 60", required_slots=2)
    small = lab.task(job, "sleep 60")  # fits beside the first, and does not wait for the second
    lab.state(job, small, "running")
    assert lab.client.get_task(job, second).state == "active"
    lab.client.terminate_task(job, big)
    lab.state(job, second, "running")
    lab.client.begin_terminate_job(job, DONE, polling_interval=0.02).result()


def test_order_of_priority_and_age(lab: Lab) -> None:
    pool = lab.pool(nodes=1)
    blocker = lab.job(pool)
    first = lab.task(blocker, "sleep 60")
    lab.state(blocker, first, "running")
    low, high = lab.job(pool, priority=-5), lab.job(pool, priority=5)
    order = [(low, lab.task(low, "true")), (low, lab.task(low, "true")), (high, lab.task(high, "true"))]
    lab.client.terminate_task(blocker, first)
    starts = [lab.done(job, task).execution_info.start_time for job, task in order]
    assert starts[2] < starts[0] < starts[1]


def test_affinity_is_followed_where_there_is_room(lab: Lab) -> None:
    pool = lab.pool(nodes=3, slots=2)
    wanted = lab.nodes(pool)[2]
    job = lab.job(pool)
    hint = models.BatchAffinityInfo(affinity_id=wanted.affinity_id)
    tasks = [lab.task(job, "sleep 60", affinity_info=hint) for _ in range(3)]
    nodes = placed(lab, job, tasks)
    assert nodes[:2] == [wanted.id, wanted.id]
    assert nodes[2] != wanted.id


def test_max_parallel_tasks(lab: Lab, pool: str) -> None:
    job = lab.job(pool, max_parallel_tasks=1)
    tasks = [lab.task(job, "sleep 0.1") for _ in range(3)]
    runs = sorted((lab.done(job, task).execution_info for task in tasks), key=lambda info: info.start_time)
    assert all(later.start_time >= earlier.end_time for earlier, later in itertools.pairwise(runs))


def test_tasks_start_without_delay(lab: Lab, pool: str, job: str) -> None:
    lab.run(job, "true")
    delays = []
    for _ in range(10):
        task = lab.run(job, "true")
        delays.append((task.execution_info.start_time - task.creation_time).total_seconds())
    assert sorted(delays)[5] < 0.02
