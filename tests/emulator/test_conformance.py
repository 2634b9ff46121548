"""A tour of all operations in each description, and whether the judge (`conformance`) sees what is wrong."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conformance
import pytest
from azure.batch import models
from conformance import NEWEST, OLDER, Conformance, description, error_codes, violations
from emulator_lab import Lab

from joblib_azure.emulator import BatchEmulator

#: What the emulator refuses, documented in docs/emulator.md: nodes have no logins and no agent of their own.
REFUSED = {
    "POST /pools/{poolId}/nodes/{nodeId}/users",
    "PUT /pools/{poolId}/nodes/{nodeId}/users/{userName}",
    "DELETE /pools/{poolId}/nodes/{nodeId}/users/{userName}",
    "GET /pools/{poolId}/nodes/{nodeId}/remoteloginsettings",
    "POST /pools/{poolId}/nodes/{nodeId}/uploadbatchservicelogs",
}
#: What there never is one of, so that asking for it is 404.
NEVER_THERE = {
    "GET /applications/{applicationId}",
    "GET /pools/{poolId}/nodes/{nodeId}/extensions/{extensionName}",
}
#: Certificates have gone from the service.
RETIRED = "/certificates"
FAST = {"polling_interval": 0.02}


class Tour:
    """Asks for each operation once, as a client does."""

    def __init__(self, emulator: BatchEmulator, version: str) -> None:
        self.lab, self.version = Lab(emulator), version
        self.client = self.lab.client = self.lab.client_for(version)

    def run(self) -> None:
        """All of it."""
        self.account()
        pool = self.pools()
        self.nodes(pool)
        self.jobs(pool)
        self.tasks(pool)
        self.schedules(pool)
        self.client.begin_delete_pool(pool, **FAST).result()

    def account(self) -> None:
        client = self.client
        assert list(client.list_applications()) == []
        self.lab.refused(404, "ApplicationNotFound", client.get_application, "none")
        assert list(client.list_supported_images())
        assert list(client.list_pool_usage_metrics()) == []

    def pools(self) -> str:
        client, lab = self.client, self.lab
        pool = lab.pool(
            nodes=1, target_low_priority_nodes=1, slots=2, start_task=models.BatchStartTask(command_line="true")
        )
        assert [each.id for each in client.list_pools(filter=f"id eq '{pool}'")] == [pool]
        assert [each.pool_id for each in client.list_pool_node_counts()] == [pool]
        assert client.pool_exists(pool)
        client.update_pool(
            pool, models.BatchPoolUpdateOptions(metadata=[models.BatchMetadataItem(name="a", value="b")])
        )
        properties: dict[str, Any] = {"applicationPackageReferences": [], "metadata": []}
        if self.version == OLDER:
            properties["certificateReferences"] = []
        client.replace_pool_properties(pool, properties)
        client.begin_resize_pool(pool, models.BatchPoolResizeOptions(target_dedicated_nodes=2), **FAST).result()
        client.begin_stop_pool_resize(pool, **FAST).result()
        last = max(lab.wait_idle(pool, 3), key=lambda node: node.allocation_time)
        client.begin_remove_nodes(pool, models.BatchNodeRemoveOptions(node_ids=[last.id]), **FAST).result()
        formula = "$TargetDedicatedNodes = 1; $TargetLowPriorityNodes = 1;"
        client.enable_pool_auto_scale(pool, models.BatchPoolEnableAutoScaleOptions(auto_scale_formula=formula))
        run = client.evaluate_pool_auto_scale(
            pool, models.BatchPoolEvaluateAutoScaleOptions(auto_scale_formula=formula)
        )
        assert run.error is None
        client.disable_pool_auto_scale(pool)
        lab.wait_idle(pool, 2)
        return pool

    def nodes(self, pool: str) -> None:
        client, lab = self.client, self.lab
        node = lab.nodes(pool)[0].id
        assert client.get_node(pool, node).id == node
        files = {each.name for each in client.list_node_files(pool, node, recursive=True)}
        assert "startup/stdout.txt" in files
        assert b"".join(client.download_node_file(pool, node, "startup/stdout.txt")) == b""
        assert client.get_node_file_properties(pool, node, "startup/stdout.txt").content_length == 0
        client.delete_node_file(pool, node, "startup/stdout.txt")
        client.disable_node_scheduling(pool, node, {"nodeDisableSchedulingOption": "requeue"})
        client.enable_node_scheduling(pool, node)
        client.begin_reboot_node(pool, node, {"nodeRebootOption": "requeue"}, **FAST).result()
        lab.wait_idle(pool, 2)
        client.begin_reimage_node(pool, node, {"nodeReimageOption": "requeue"}, **FAST).result()
        lab.wait_idle(pool, 2)
        client.begin_deallocate_node(pool, node, {"nodeDeallocateOption": "requeue"}, **FAST).result()
        client.begin_start_node(pool, node, **FAST).result()
        lab.wait_idle(pool, 2)
        assert list(client.list_node_extensions(pool, node)) == []
        self.what_nodes_have_none_of(pool, node)

    def what_nodes_have_none_of(self, pool: str, node: str) -> None:
        client, refused = self.client, self.lab.refused
        now = datetime.datetime.now(datetime.timezone.utc)
        logs = models.UploadBatchServiceLogsOptions(container_url="https://a/c", start_time=now)
        user = models.BatchNodeUserCreateOptions(name="me", password="p")
        refused(404, "ResourceNotFound", client.get_node_extension, pool, node, "none")
        refused(501, "NotImplemented", client.create_node_user, pool, node, user)
        refused(404, "NodeUserNotFound", client.replace_node_user, pool, node, "me", {"password": "p"})
        refused(404, "NodeUserNotFound", client.delete_node_user, pool, node, "me")
        refused(501, "NotImplemented", client.get_node_remote_login_settings, pool, node)
        refused(501, "NotImplemented", client.upload_node_logs, pool, node, logs)

    def jobs(self, pool: str) -> None:
        client, lab = self.client, self.lab
        prepared = {
            "job_preparation_task": models.BatchJobPreparationTask(command_line="true"),
            "job_release_task": models.BatchJobReleaseTask(command_line="true"),
        }
        job = lab.job(pool, **prepared)
        lab.run(job, "true")
        assert [each.id for each in client.list_jobs(filter=f"id eq '{job}'")] == [job]
        assert client.get_job_task_counts(job).task_counts.succeeded == 1
        client.update_job(job, models.BatchJobUpdateOptions(priority=3))
        found = client.get_job(job)
        found.priority = 4
        client.replace_job(job, found)
        client.begin_disable_job(job, models.BatchJobDisableOptions(disable_tasks="requeue"), **FAST).result()
        client.begin_enable_job(job, **FAST).result()
        client.begin_terminate_job(job, {"terminateReason": "done"}, **FAST).result()
        statuses = list(client.list_job_preparation_and_release_task_status(job))
        assert statuses[0].job_release_task_execution_info.result == "success"
        client.begin_delete_job(job, **FAST).result()

    def tasks(self, pool: str) -> None:
        client, lab = self.client, self.lab
        job = lab.job(pool)
        options = [models.BatchTaskCreateOptions(id=name, command_line=name) for name in ("true", "false")]
        added = client.create_task_collection(job, models.BatchTaskGroup(task_values=options)).result_values
        assert [each.status for each in added] == ["success"] * 2
        failed = lab.done(job, "false")
        lab.done(job, "true")
        assert {each.id for each in client.list_tasks(job)} == {"true", "false"}
        assert list(client.list_subtasks(job, "true")) == []
        failed.constraints = models.BatchTaskConstraints(max_task_retry_count=1)
        lab.refused(409, "TaskCompleted", client.replace_task, job, "false", failed)
        client.reactivate_task(job, "false")
        lab.done(job, "false")
        running = lab.task(job, "sleep 60")
        lab.state(job, running, "running")
        client.replace_task(job, running, failed)
        client.terminate_task(job, running)
        client.delete_task(job, running)
        assert {each.name for each in client.list_task_files(job, "true")} >= {"stdout.txt", "stderr.txt", "wd"}
        assert lab.text(job, "true") == ""
        assert client.get_task_file_properties(job, "true", "stdout.txt").content_length == 0
        client.delete_task_file(job, "true", "stdout.txt")

    def schedules(self, pool: str) -> None:
        client, lab = self.client, self.lab
        name = lab.name("schedule")
        specification = models.BatchJobSpecification(pool_info=models.BatchPoolInfo(pool_id=pool))
        recurring = models.BatchJobScheduleConfiguration(recurrence_interval=datetime.timedelta(hours=1))
        client.create_job_schedule(
            models.BatchJobScheduleCreateOptions(id=name, schedule=recurring, job_specification=specification)
        )
        assert [each.id for each in client.list_job_schedules()] == [name]
        assert [each.id for each in client.list_jobs_from_schedule(name)] == [f"{name}:job-1"]
        assert client.job_schedule_exists(name)
        client.update_job_schedule(name, models.BatchJobScheduleUpdateOptions(metadata=[]))
        client.replace_job_schedule(name, client.get_job_schedule(name))
        client.disable_job_schedule(name)
        client.enable_job_schedule(name)
        client.begin_terminate_job_schedule(name, **FAST).result()
        client.begin_delete_job_schedule(name, **FAST).result()


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Conformance:
    """A record of what crosses the emulator that the test starts."""
    monkeypatch.setenv(conformance.FOLDER_VARIABLE, str(tmp_path))
    return Conformance(tmp_path)


@pytest.mark.parametrize("version", [NEWEST, OLDER])
def test_every_operation_is_as_described(record: Conformance, version: str) -> None:
    with BatchEmulator() as emulator:
        Tour(emulator, version).run()
    assert record.look() == []
    asked: dict[str, set[int]] = {}
    for (name, held, status), _ in record.covered.items():
        assert held == version
        asked.setdefault(name, set()).add(status)
    operations = {each.name for each in description(version).operations if not each.path.startswith(RETIRED)}
    assert asked.keys() == operations
    done = {name for name, statuses in asked.items() if any(status < 400 for status in statuses)}
    assert operations - done == REFUSED | NEVER_THERE


# -- the judge --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Requests that are as described, by what they do."""
    folder = tmp_path_factory.mktemp("traffic")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(conformance.FOLDER_VARIABLE, str(folder))
        with BatchEmulator() as emulator:
            lab = Lab(emulator)
            pool = lab.pool(nodes=0)
            job = lab.job(pool, priority=3)
            lab.task(job, "true", "t")
            lab.client.get_pool(pool)
            lab.client.get_job(job)
            list(lab.client.list_tasks(job))
            lab.refused(404, "JobNotFound", lab.client.get_job, "none")
            lab.raw("POST", "/jobs", b'{"id": "x", "poolInfo": {"poolId": "p"}, "colour": "red"}')
    rows = [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    names = {("GET", 404): "missing", ("POST", 400): "malformed"}
    found = {}
    for row in rows:
        kind = row["path"].split("/")[1] if row["path"].count("/") < 3 else "tasks"
        found[names.get((row["method"], row["status"]), f"{row['method']} {kind}")] = row
    assert all(violations(row) == [] for row in rows)
    return found


def _answer(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda row: _rewrite(row, "answer", change)


def _body(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda row: _rewrite(row, "body", change)


def _rewrite(row: dict[str, Any], part: str, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(row[part])
    change(content)
    row[part] = json.dumps(content)


@pytest.mark.parametrize(
    ("which", "change", "says"),
    [
        ("GET jobs", _answer(lambda job: job.update(colour="red")), "has no property 'colour'"),
        ("GET jobs", _answer(lambda job: job.update(state="lost")), "state: 'lost' is none of"),
        ("GET jobs", _answer(lambda job: job.update(state="Active")), "state: 'Active' is none of"),
        ("GET jobs", _answer(lambda job: job.update(priority="high")), "priority: 'high' is no integer"),
        ("GET jobs", _answer(lambda job: job.update(usesTaskDependencies=0)), "usesTaskDependencies: 0 is no boolean"),
        ("GET jobs", _answer(lambda job: job.update(creationTime="now")), "'now' is no date and time"),
        ("GET jobs", _answer(lambda job: job["constraints"].update(maxWallClockTime="1h")), "'1h' is no duration"),
        ("GET jobs", _answer(lambda job: job.update(displayName=None)), "displayName: null"),
        ("GET jobs", _answer(lambda job: job.pop("poolInfo")), "lacks 'poolInfo'"),
        ("GET jobs", lambda row: row.update(status=202), "202 is not among the successes [200]"),
        ("GET jobs", lambda row: row.update(status=304), "304 to a request without conditions"),
        ("GET jobs", lambda row: row.update(answer=None), "no body where one is described"),
        ("GET jobs", lambda row: row["answer_headers"].pop("request-id"), "no request-id"),
        ("GET jobs", lambda row: row.update(query=row["query"] + "&colour=red"), "the query has 'colour'"),
        ("GET tasks", _answer(lambda page: page["value"][0].update(colour="red")), "value[0]: has no property"),
        ("GET tasks", _answer(lambda page: page.update(value={})), "value: no list"),
        ("POST jobs", _body(lambda job: job.update(colour="red")), "request: : has no property 'colour'"),
        ("POST jobs", _body(lambda job: job.pop("id")), "request: : lacks 'id'"),
        ("POST jobs", lambda row: row.update(answer="{}"), "a body where none is described"),
        ("missing", _answer(lambda error: error.update(code="Oops")), "404 Oops is no error of the service"),
        ("missing", lambda row: row.update(status=409), "409 JobNotFound is no error of the service"),
        ("missing", _answer(lambda error: error.update(message="text")), "message: no object"),
        ("malformed", _body(lambda job: job.pop("colour")), "a well-formed request was called malformed"),
    ],
)
def test_what_is_not_as_described(
    right: dict[str, dict[str, Any]], which: str, change: Callable[[dict[str, Any]], Any], says: str
) -> None:
    row = json.loads(json.dumps(right[which]))
    change(row)
    assert any(says in each for each in violations(row)), violations(row)


def test_the_table_of_error_codes_is_read() -> None:
    assert (409, "PoolBeingResized") in error_codes()
    assert (412, "ConditionNotMet") in error_codes()
    assert (200, "PoolBeingResized") not in error_codes()


def test_a_record_is_its_owner_s_and_has_no_keys(record: Conformance) -> None:
    with BatchEmulator() as emulator:
        Lab(emulator).raw("GET", "/pools")
    (file,) = record.folder.glob("*.jsonl")
    assert file.stat().st_mode & 0o077 == 0
    assert "SharedKey" not in file.read_text()
    assert record.look() == []
    assert record.look() == []  # what was read is not read again
    assert record.covered == {("GET /pools", NEWEST, 200): 1}
