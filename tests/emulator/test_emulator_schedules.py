"""Job schedules, on a clock on which a minute takes a tenth of a second; and job manager tasks, with or without one."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from azure.batch import models
from azure.core import MatchConditions
from emulator_lab import Lab, until

from joblib_azure.emulator import BatchEmulator

MINUTE = datetime.timedelta(minutes=1)
#: Ends at once, and its job with it.
MANAGER = models.BatchJobManagerTask(id="manager", command_line="true")


@pytest.fixture(scope="module")
def fast() -> Iterator[Lab]:
    with BatchEmulator(clock_rate=600) as running:
        yield Lab(running)


@pytest.fixture(scope="module")
def fast_pool(fast: Lab) -> str:
    return fast.pool(nodes=1, slots=4)


def schedule(lab: Lab, pool: str, configuration: dict[str, Any] | None = None, **job: Any) -> str:
    name = lab.name("schedule")
    given = models.BatchJobScheduleCreateOptions(
        id=name,
        schedule=models.BatchJobScheduleConfiguration(**(configuration or {})),
        job_specification=models.BatchJobSpecification(pool_info=models.BatchPoolInfo(pool_id=pool), **job),
    )
    lab.client.create_job_schedule(given)
    return name


def jobs(lab: Lab, name: str) -> list[models.BatchJob]:
    return list(lab.client.list_jobs_from_schedule(name))


def end(lab: Lab, job: str) -> None:
    lab.client.begin_terminate_job(job, {"terminateReason": "done"}, polling_interval=0.02).result()


def state(lab: Lab, name: str, wanted: str) -> models.BatchJobSchedule:
    return until(lambda: (found := lab.client.get_job_schedule(name)).state == wanted and found, say=f"{name} {wanted}")


def test_a_schedule_that_does_not_recur_makes_one_job(lab: Lab, pool: str) -> None:
    name = schedule(lab, pool, priority=5, display_name="each")
    found = lab.client.get_job_schedule(name)
    assert (found.id, found.state, found.job_specification.priority) == (name, "active", 5)
    assert found.execution_info.recent_job.id == f"{name}:job-1"
    assert found.execution_info.next_run_time is None
    assert lab.client.job_schedule_exists(name)
    job = lab.client.get_job(f"{name}:job-1")
    assert (job.display_name, job.priority, job.pool_info.pool_id) == ("each", 5, pool)
    task = lab.run(job.id, "pwd")
    assert lab.text(job.id, task.id).strip().endswith(f"workitems/{name}/job-1/{task.id}/wd")
    assert task.node_info.task_root_directory == f"workitems/{name}/job-1/{task.id}"
    end(lab, job.id)
    assert state(lab, name, "completed").execution_info.end_time
    for refused in (lab.client.disable_job_schedule, lab.client.enable_job_schedule):
        lab.refused(409, "JobScheduleCompleted", refused, name)
    lab.client.begin_delete_job_schedule(name, polling_interval=0.02).result()
    lab.refused(404, "JobScheduleNotFound", lab.client.get_job_schedule, name)
    lab.refused(404, "JobNotFound", lab.client.get_job, job.id)
    assert not list(lab.emulator.root.glob(f"*/batch/tasks/workitems/{name}"))


def test_jobs_recur_and_each_ends_with_its_manager(fast: Lab, fast_pool: str) -> None:
    name = schedule(fast, fast_pool, {"recurrence_interval": MINUTE}, job_manager_task=MANAGER)
    until(lambda: len(jobs(fast, name)) >= 3, say="three jobs")
    found = jobs(fast, name)
    assert [job.id for job in found[:3]] == [f"{name}:job-{number}" for number in (1, 2, 3)]
    assert found[0].execution_info.termination_reason == "JMComplete"
    starts = [job.creation_time for job in found[:3]]
    assert all(later - earlier >= MINUTE / 600 * 0.5 for earlier, later in itertools.pairwise(starts))
    assert fast.client.get_job_schedule(name).execution_info.next_run_time > starts[2]
    fast.client.disable_job_schedule(name)
    count = len(jobs(fast, name))
    assert state(fast, name, "disabled").previous_state == "active"
    until(lambda: all(job.state == "completed" for job in jobs(fast, name)))
    assert len(jobs(fast, name)) == count
    fast.client.enable_job_schedule(name)
    until(lambda: len(jobs(fast, name)) > count, say="another job once enabled")
    fast.client.begin_terminate_job_schedule(name, polling_interval=0.02).result()
    assert state(fast, name, "completed").execution_info.next_run_time is None
    fast.client.begin_delete_job_schedule(name, polling_interval=0.02).result()


def test_one_job_at_a_time_and_what_ends_it(fast: Lab, fast_pool: str) -> None:
    name = schedule(fast, fast_pool, {"recurrence_interval": MINUTE})
    first = f"{name}:job-1"
    task = fast.task(first, "sleep 0.5")  # five recurrences
    fast.done(first, task)
    assert [job.id for job in jobs(fast, name)] == [first]
    end(fast, first)
    until(lambda: len(jobs(fast, name)) == 2, say="the next job after the first")
    fast.client.begin_terminate_job_schedule(name, polling_interval=0.02).result()
    last = jobs(fast, name)[-1]
    assert (last.state, last.execution_info.termination_reason) == ("completed", "TerminateJobSchedule")


def test_a_window_that_is_over_loses_its_job(fast: Lab, fast_pool: str) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    past = {"do_not_run_until": now - datetime.timedelta(seconds=5), "start_window": MINUTE}  # a tenth of a second here
    lost = schedule(fast, fast_pool, past)
    assert fast.client.get_job_schedule(lost).state == "completed"
    assert jobs(fast, lost) == []
    kept = schedule(fast, fast_pool, {"do_not_run_until": now - datetime.timedelta(seconds=5)})
    assert len(jobs(fast, kept)) == 1


def test_times_of_day_bound_a_schedule(lab: Lab, pool: str) -> None:
    begin = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=0.4)
    over = begin + datetime.timedelta(seconds=0.4)
    name = schedule(lab, pool, {"do_not_run_until": begin, "do_not_run_after": over, "recurrence_interval": MINUTE})
    assert jobs(lab, name) == []
    assert lab.client.get_job_schedule(name).execution_info.next_run_time == begin
    until(lambda: jobs(lab, name), say="the first job")
    assert jobs(lab, name)[0].creation_time >= begin
    end(lab, f"{name}:job-1")
    assert state(lab, name, "completed").execution_info.end_time >= over
    assert len(jobs(lab, name)) == 1


def test_updates_reach_the_jobs_that_follow(fast: Lab, fast_pool: str) -> None:
    name = schedule(fast, fast_pool, {"recurrence_interval": MINUTE}, priority=1)
    before = fast.client.get_job_schedule(name)
    specification = models.BatchJobSpecification(pool_info=models.BatchPoolInfo(pool_id=fast_pool), priority=2)
    note = [models.BatchMetadataItem(name="a", value="b")]
    fast.client.update_job_schedule(
        name, models.BatchJobScheduleUpdateOptions(job_specification=specification, metadata=note)
    )
    found = fast.client.get_job_schedule(name)
    assert found.etag != before.etag
    assert (found.job_specification.priority, found.metadata[0].value) == (2, "b")
    assert found.schedule.recurrence_interval == MINUTE
    assert fast.client.get_job(f"{name}:job-1").priority == 1
    end(fast, f"{name}:job-1")
    until(lambda: len(jobs(fast, name)) == 2)
    assert fast.client.get_job(f"{name}:job-2").priority == 2
    # PUT puts the defaults in the place of what it does not name: one job, which there was
    found.schedule, found.metadata = None, None
    fast.client.replace_job_schedule(name, found)
    replaced = fast.client.get_job_schedule(name)
    assert not replaced.metadata
    assert replaced.schedule.recurrence_interval is None
    end(fast, f"{name}:job-2")
    state(fast, name, "completed")
    fast.refused(409, "JobScheduleCompleted", fast.client.replace_job_schedule, name, found)


def test_what_is_refused(lab: Lab, pool: str, job: str) -> None:
    name = schedule(lab, pool)
    other = {"pool_info": models.BatchPoolInfo(pool_id=pool)}

    def given(named: str, **configuration: Any) -> models.BatchJobScheduleCreateOptions:
        return models.BatchJobScheduleCreateOptions(
            id=named,
            schedule=models.BatchJobScheduleConfiguration(**configuration),
            job_specification=models.BatchJobSpecification(**other),
        )

    create = lab.client.create_job_schedule
    lab.refused(409, "JobScheduleExists", create, given(name))
    lab.refused(409, "JobWithSameIdExists", create, given(job))
    same = models.BatchJobCreateOptions(id=name, **other)
    lab.refused(409, "JobScheduleWithSameIdExists", lab.client.create_job, same)
    short = datetime.timedelta(seconds=59)
    now = datetime.datetime.now(datetime.timezone.utc)
    for wrong in (
        {"recurrence_interval": short},
        {"start_window": short},
        {"do_not_run_after": now},
        {"do_not_run_until": now + 2 * MINUTE, "do_not_run_after": now + MINUTE},
    ):
        lab.refused(400, "InvalidPropertyValue", create, given("bad", **wrong))
    for query in ("priority eq 1", "schedule/startWindow eq 'PT1M'"):
        lab.refused(400, "InvalidQueryParameterValue", lambda q=query: list(lab.client.list_job_schedules(filter=q)))
    named = lab.client.list_job_schedules(filter=f"id eq '{name}' and state eq 'active'", select=["id"])
    assert [each.id for each in named] == [name]
    lab.refused(
        412,
        "ConditionNotMet",
        lab.client.disable_job_schedule,
        name,
        etag="0x1",
        match_condition=MatchConditions.IfNotModified,
    )
    lab.client.begin_delete_job_schedule(name, polling_interval=0.02).result()


def test_a_schedule_counts_as_a_job_does() -> None:
    with BatchEmulator(active_job_quota=2) as running:
        lab = Lab(running)
        name = schedule(lab, "none")
        assert len(jobs(lab, name)) == 1
        lab.refused(409, "ActiveJobAndScheduleQuotaReached", lab.job, "none")


# -- job managers -----------------------------------------------------------------------------------------------------


def test_a_job_manager_has_its_node_for_itself(lab: Lab) -> None:
    pool = lab.pool(nodes=1, slots=2)
    manager = models.BatchJobManagerTask(id="manager", command_line="sleep 60", kill_job_on_completion=False)
    job = lab.job(pool, job_manager_task=manager)
    lab.state(job, "manager", "running")
    waiting = lab.task(job, "true")
    assert lab.client.get_job(job).job_manager_task.kill_job_on_completion is False
    lab.refused(409, "TaskExists", lab.task, job, "true", "manager")
    assert lab.nodes(pool)[0].running_tasks_count == 1
    assert lab.client.get_task(job, waiting).state == "active"
    lab.client.terminate_task(job, "manager")
    lab.done(job, waiting)
    assert lab.client.get_job(job).state == "active"


def test_a_job_manager_that_shares(lab: Lab) -> None:
    pool = lab.pool(nodes=1, slots=2)
    manager = models.BatchJobManagerTask(id="manager", command_line="sleep 60", run_exclusive=False)
    job = lab.job(pool, job_manager_task=manager)
    lab.state(job, "manager", "running")
    lab.run(job, "true")
    running = lab.task(job, "sleep 60")
    lab.state(job, running, "running")
    lab.client.terminate_task(job, "manager")
    assert lab.job_state(job, "completed").execution_info.termination_reason == "JMComplete"
    assert lab.client.get_task(job, running).execution_info.failure_info.code == "TaskEnded"


def test_a_job_manager_that_keeps_off_spot_nodes(lab: Lab) -> None:
    pool = lab.pool(nodes=0, target_low_priority_nodes=1)
    manager = models.BatchJobManagerTask(id="manager", command_line="true", allow_low_priority_node=False)
    job = lab.job(pool, job_manager_task=manager)
    other = lab.job(pool)
    lab.run(other, "true")
    assert lab.client.get_task(job, "manager").state == "active"
    lab.client.begin_resize_pool(
        pool, models.BatchPoolResizeOptions(target_dedicated_nodes=1), polling_interval=0.02
    ).result()
    lab.job_state(job, "completed")
    assert lab.client.get_task(job, "manager").node_info.node_id.endswith("_d")
