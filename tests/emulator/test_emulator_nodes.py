"""Operations of nodes beyond those that pools need; usage metrics; more of what jobs and tasks promise."""

from __future__ import annotations

import datetime
import time
from typing import Any

import pytest
from azure.batch import models
from emulator_lab import Lab, until

from joblib_azure.emulator import usage
from joblib_azure.emulator.state import Account, Usage

REQUEUE = {"nodeDeallocateOption": "requeue"}
HALF_HOUR = datetime.timedelta(minutes=30)


def test_a_deallocated_node_stays_listed_and_can_be_started(lab: Lab) -> None:
    pool = lab.pool(nodes=1, slots=2)
    node = lab.nodes(pool)[0].id
    lab.refused(409, "OperationInvalidForCurrentState", lab.client.begin_start_node, pool, node)
    job = lab.job(pool)
    done = lab.run(job, "true")
    task = lab.task(job, "sleep 60")
    lab.state(job, task, "running")
    lab.client.begin_deallocate_node(pool, node, REQUEUE, polling_interval=0.02).result()
    found = lab.client.get_node(pool, node)
    assert (found.state, found.running_tasks_count) == ("deallocated", 0)
    assert lab.client.get_task(job, task).state == "active"
    counts = next(iter(lab.client.list_pool_node_counts(filter=f"poolId eq '{pool}'"))).dedicated
    assert (counts.deallocated, counts.total) == (1, 1)
    lab.refused(409, "OperationInvalidForCurrentState", lab.client.begin_deallocate_node, pool, node, REQUEUE)
    lab.client.begin_start_node(pool, node, polling_interval=0.02).result()
    lab.state(job, task, "running")
    assert not list(lab.emulator.root.glob(f"*/batch/tasks/{done.node_info.task_root_directory}"))
    lab.refused(409, "TaskFilesCleanedup", lambda: b"".join(lab.client.download_task_file(job, done.id, "stdout.txt")))


def test_what_a_node_has_none_of(lab: Lab, pool: str) -> None:
    node = lab.nodes(pool)[0].id
    assert list(lab.client.list_node_extensions(pool, node)) == []
    lab.refused(404, "ResourceNotFound", lab.client.get_node_extension, pool, node, "none")
    user = models.BatchNodeUserCreateOptions(name="me", password="secret")
    assert "secret" not in str(lab.refused(501, "NotImplemented", lab.client.create_node_user, pool, node, user))
    lab.refused(404, "NodeUserNotFound", lab.client.delete_node_user, pool, node, "me")
    replacement = models.BatchNodeUserReplaceOptions(password="secret")
    lab.refused(404, "NodeUserNotFound", lab.client.replace_node_user, pool, node, "me", replacement)
    lab.refused(501, "NotImplemented", lab.client.get_node_remote_login_settings, pool, node)
    now = datetime.datetime.now(datetime.timezone.utc)
    logs = models.UploadBatchServiceLogsOptions(container_url="https://a.blob.core.windows.net/c?sig", start_time=now)
    lab.refused(501, "NotImplemented", lab.client.upload_node_logs, pool, node, logs)
    lab.refused(404, "NodeNotFound", lambda: list(lab.client.list_node_extensions(pool, "none")))


def test_extensions_of_a_pool_are_refused(lab: Lab) -> None:
    machine = lab.machine()
    machine.extensions = [models.VMExtension(name="x", publisher="p", type="t")]
    given = models.BatchPoolCreateOptions(
        id="extended", vm_size="Standard_F2", virtual_machine_configuration=machine, target_dedicated_nodes=0
    )
    lab.refused(501, "NotImplemented", lab.client.create_pool, given)


# -- usage metrics ----------------------------------------------------------------------------------------------------


def test_an_account_of_today_has_no_metrics_yet(lab: Lab, pool: str) -> None:
    assert list(lab.client.list_pool_usage_metrics()) == []
    now = datetime.datetime.now(datetime.timezone.utc)
    long_ago = now - datetime.timedelta(days=1)
    assert list(lab.client.list_pool_usage_metrics(start_time=long_ago, filter=f"poolId eq '{pool}'")) == []
    for wrong in ({"start_time": now}, {"end_time": now}, {"start_time": long_ago, "end_time": long_ago}):
        lab.refused(400, "InvalidQueryParameterValue", lambda w=wrong: list(lab.client.list_pool_usage_metrics(**w)))


def test_core_hours_fall_into_half_hours() -> None:
    noon = datetime.datetime(2026, 1, 2, 12, tzinfo=datetime.timezone.utc)

    def used(pool: str, begin: float, end: float, cores: int = 2) -> Usage:
        times = (noon + datetime.timedelta(hours=hours) for hours in (begin, end))
        return Usage(pool_id=pool, vm_size="emulated_c2", cores=cores, start=next(times), end=next(times))

    account = Account("a", usage=[used("p", 0.25, 1.0), used("p", 0.5, 0.75), used("q", 0.0, 0.25, 4)])
    found = usage.metrics(account, noon - HALF_HOUR, noon + 2 * HALF_HOUR, noon + 6 * HALF_HOUR)
    hours = [(each["poolId"], each["startTime"][11:16], each["totalCoreHours"]) for each in found]
    assert hours == [("p", "12:00", 0.5), ("q", "12:00", 1.0), ("p", "12:30", 1.5)]
    begin, end = usage.last_interval(noon + datetime.timedelta(minutes=59))
    assert (begin, end) == (noon - 4 * HALF_HOUR, noon - 3 * HALF_HOUR)


# -- more of jobs and tasks -------------------------------------------------------------------------------------------


def test_what_a_job_may_not_be_changed_to(lab: Lab, pool: str) -> None:
    job = lab.job(pool)
    lab.task(job, "sleep 60")
    here = models.BatchJobUpdateOptions(pool_info=models.BatchPoolInfo(pool_id=pool))
    lab.refused(409, "OperationInvalidForCurrentState", lab.client.update_job, job, here)
    lab.client.update_job(job, models.BatchJobUpdateOptions(all_tasks_complete_mode="terminatejob"))
    back = models.BatchJobUpdateOptions(all_tasks_complete_mode="noaction")
    lab.refused(400, "InvalidPropertyValue", lab.client.update_job, job, back)
    found = lab.client.get_job(job)
    found.priority = 7
    lab.client.replace_job(job, found)  # as it was read
    assert lab.client.get_job(job).priority == 7
    found.all_tasks_complete_mode = None
    lab.refused(400, "InvalidPropertyValue", lab.client.replace_job, job, found)


def test_a_task_has_no_subtasks(lab: Lab, job: str) -> None:
    assert list(lab.client.list_subtasks(job, lab.task(job, "true"))) == []


def test_a_task_s_folder_goes_when_its_retention_is_over(lab: Lab, job: str) -> None:
    for seconds, kept in ((60, True), (0.3, False)):
        constraints = models.BatchTaskConstraints(retention_time=datetime.timedelta(seconds=seconds))
        task = lab.run(job, "echo here", constraints=constraints)
        assert lab.text(job, task.id) == "here\n"
        folder = next(lab.emulator.root.glob(f"*/batch/tasks/{task.node_info.task_root_directory}"))
        if kept:
            continue
        until(lambda path=folder: not path.exists(), say="the folder gone")
        lab.refused(409, "TaskFilesCleanedup", lab.text, job, task.id)


@pytest.mark.parametrize(
    ("command", "actions", "runs"),
    [
        ("true", {}, True),
        ("true", {"exit_codes": [(0, "block")]}, False),
        ("false", {}, False),
        ("false", {"default": "satisfy"}, True),
        ("sh -c 'exit 3'", {"ranges": [(2, 4, "satisfy")], "default": "block"}, True),
        ("sh -c 'exit 3'", {"exit_codes": [(3, "block")], "ranges": [(2, 4, "satisfy")]}, False),
        ("/no/such/program", {"pre": "satisfy", "default": "block"}, True),
        ("/no/such/program", {"default": "satisfy"}, True),
    ],
)
def test_what_lets_dependents_go(lab: Lab, pool: str, command: str, actions: dict[str, Any], runs: bool) -> None:
    def options(action: str | None) -> models.ExitOptions | None:
        return models.ExitOptions(dependency_action=action) if action else None

    conditions = models.ExitConditions(
        exit_codes=[models.ExitCodeMapping(code=c, exit_options=options(a)) for c, a in actions.get("exit_codes", [])],
        exit_code_ranges=[
            models.ExitCodeRangeMapping(start=low, end=high, exit_options=options(action))
            for low, high, action in actions.get("ranges", [])
        ],
        pre_processing_error=options(actions.get("pre")),
        default=options(actions.get("default")),
    )
    job = lab.job(pool, uses_task_dependencies=True)
    first = lab.run(job, command, exit_conditions=conditions)
    second = lab.task(job, "true", depends_on=models.BatchTaskDependencies(task_ids=[first.id]))
    if runs:
        lab.done(job, second)
    else:
        lab.run(job, "true")  # one that was added later has run
        assert lab.client.get_task(job, second).state == "active"


def test_dependencies_are_bounded(lab: Lab, pool: str) -> None:
    job = lab.job(pool, uses_task_dependencies=True)
    many = [f"{number:064}" for number in range(1001)]
    given = models.BatchTaskDependencies(task_ids=many)
    lab.refused(400, "TaskDependencyListTooLong", lab.task, job, "true", depends_on=given)


def test_retention_ends_with_the_task_and_not_with_its_name(lab: Lab, pool: str) -> None:
    job = lab.job(pool)
    short = models.BatchTaskConstraints(retention_time=datetime.timedelta(seconds=1))
    task = lab.run(job, "echo first", constraints=short)
    lab.client.delete_task(job, task.id)
    again = lab.done(job, lab.task(job, "echo second", task.id))
    due = task.execution_info.end_time + datetime.timedelta(seconds=1.3)
    time.sleep(max(0.0, (due - datetime.datetime.now(datetime.timezone.utc)).total_seconds()))
    assert lab.text(job, again.id) == "second\n"
