"""Tasks: adding, running, retrying, ending; their environment, resource files and processes."""

from __future__ import annotations

import datetime
import http.server
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from azure.batch import models
from emulator_lab import Lab, alive_with, until


def seconds(value: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=value)


def test_a_task_from_start_to_end(lab: Lab, pool: str, job: str) -> None:
    task = lab.run(job, "sh -c 'echo out; echo err >&2'", display_name="first")
    info = task.execution_info
    assert (info.exit_code, info.result, info.retry_count, info.requeue_count) == (0, "success", 0, 0)
    assert info.failure_info is None
    assert task.creation_time <= info.start_time <= info.end_time
    assert (task.previous_state, task.display_name, task.required_slots) == ("running", "first", 1)
    assert task.state_transition_time >= task.previous_state_transition_time
    node = task.node_info
    assert node.pool_id == pool
    assert node.node_id in {each.id for each in lab.nodes(pool)}
    assert node.task_root_directory == f"workitems/{job}/job-1/{task.id}"
    assert task.constraints.max_task_retry_count == 0
    assert task.constraints.retention_time == datetime.timedelta(days=7)
    assert lab.text(job, task.id) == "out\n"
    assert lab.text(job, task.id, "stderr.txt") == "err\n"


@pytest.mark.parametrize(("command", "code"), [("sh -c 'exit 7'", 7), ("sh -c 'kill -9 $$'", 137)])
def test_failing_exit_codes(lab: Lab, job: str, command: str, code: int) -> None:
    info = lab.run(job, command).execution_info
    assert (info.exit_code, info.result) == (code, "failure")
    assert (info.failure_info.category.lower(), info.failure_info.code) == ("usererror", "FailureExitCode")


def test_no_shell(lab: Lab, job: str) -> None:
    task = lab.run(job, "echo $HOME '*' \"a  b\" && false")
    assert lab.text(job, task.id) == "$HOME * a  b && false\n"


def test_missing_program(lab: Lab, job: str) -> None:
    info = lab.run(job, "no-such-program --at all").execution_info
    assert (info.exit_code, info.result) == (None, "failure")
    assert info.failure_info.code == "CommandProgramNotFound"


def test_retries(lab: Lab, job: str) -> None:
    command = "sh -c 'echo x >> tries; test $(wc -l < tries) -ge 3'"
    limited = models.BatchTaskConstraints(max_task_retry_count=1)
    enough = models.BatchTaskConstraints(max_task_retry_count=5)
    endless = models.BatchTaskConstraints(max_task_retry_count=-1)
    info = lab.run(job, command, constraints=limited).execution_info
    assert (info.exit_code, info.retry_count, info.result) == (1, 1, "failure")
    assert info.last_retry_time is not None
    for constraints in (enough, endless):
        info = lab.run(job, command, constraints=constraints).execution_info
        assert (info.exit_code, info.retry_count, info.result) == (0, 2, "success")


def test_the_job_s_retries_are_the_default(lab: Lab, pool: str) -> None:
    job = lab.job(pool, constraints=models.BatchJobConstraints(max_task_retry_count=2))
    assert lab.run(job, "false").execution_info.retry_count == 2


def test_a_missing_program_is_not_retried(lab: Lab, job: str) -> None:
    constraints = models.BatchTaskConstraints(max_task_retry_count=3)
    assert lab.run(job, "no-such-program", constraints=constraints).execution_info.retry_count == 0


def test_wall_clock(lab: Lab, job: str) -> None:
    constraints = models.BatchTaskConstraints(max_wall_clock_time=seconds(0.3), max_task_retry_count=3)
    began = time.monotonic()
    info = lab.run(job, "sleep 30", constraints=constraints).execution_info
    assert time.monotonic() - began < 5
    assert (info.failure_info.code, info.retry_count, info.result) == ("TaskEnded", 0, "failure")


ESCAPING = (
    "import os, subprocess, sys, time\n"
    "subprocess.Popen(['sleep', '61'])\n"
    "subprocess.Popen(['setsid', 'sleep', '62'])\n"
    "subprocess.Popen(['sh', '-c', 'setsid sleep 63 & setsid setsid sleep 64 &'])\n"
    "time.sleep({})"
)


def test_terminating_kills_the_whole_tree(lab: Lab, job: str) -> None:
    task = lab.task(job, f'{sys.executable} -c "{ESCAPING.format(60)}"')
    until(lambda: len(alive_with("AZ_BATCH_TASK_ID", task)) >= 5, say="the whole tree")
    lab.client.terminate_task(job, task)
    found = lab.client.get_task(job, task)
    assert found.state == "completed"
    assert (found.execution_info.result, found.execution_info.failure_info.code) == ("failure", "TaskEnded")
    assert alive_with("AZ_BATCH_TASK_ID", task) == []
    lab.refused(409, "TaskCompleted", lab.client.terminate_task, job, task)


def test_what_a_task_leaves_behind_dies_with_it(lab: Lab, job: str) -> None:
    task = lab.run(job, f'{sys.executable} -c "{ESCAPING.format(0.3)}"')
    until(lambda: not alive_with("AZ_BATCH_TASK_ID", task.id), 2)


def test_terminating_a_task_that_waits(lab: Lab) -> None:
    job = lab.job("no-pool-yet")
    task = lab.task(job, "true")
    lab.client.terminate_task(job, task)
    info = lab.client.get_task(job, task).execution_info
    assert (info.result, info.start_time) == ("failure", None)


def test_deleting(lab: Lab, job: str) -> None:
    task = lab.task(job, "sleep 60")
    lab.state(job, task, "running")
    lab.client.delete_task(job, task)
    lab.refused(404, "TaskNotFound", lab.client.get_task, job, task)
    assert alive_with("AZ_BATCH_TASK_ID", task) == []
    assert lab.client.get_job_task_counts(job).task_counts.running == 0
    assert lab.done(job, lab.task(job, "true", task)).execution_info.exit_code == 0


def test_reactivating(lab: Lab, job: str) -> None:
    failed = lab.run(job, "sh -c 'test -e again || { touch again; false; }'")
    assert failed.execution_info.result == "failure"
    lab.client.reactivate_task(job, failed.id)
    assert lab.done(job, failed.id).execution_info.result == "success"
    lab.refused(409, "TaskSucceeded", lab.client.reactivate_task, job, failed.id)


def test_replacing_constraints(lab: Lab) -> None:
    job = lab.job("no-pool-yet")
    task = lab.task(job, "true")
    lab.client.replace_task(
        job, task, models.BatchTask(constraints=models.BatchTaskConstraints(max_task_retry_count=3))
    )
    assert lab.client.get_task(job, task).constraints.max_task_retry_count == 3


def test_environment_is_clean(lab: Lab, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = lab.job(
        pool,
        common_environment_settings=[
            models.EnvironmentSetting(name="COMMON", value="1"),
            models.EnvironmentSetting(name="BOTH", value="job"),
        ],
    )
    task = lab.run(
        job,
        "env",
        environment_settings=[models.EnvironmentSetting(name="BOTH", value="task")],
    )
    found = dict(line.split("=", 1) for line in lab.text(job, task.id).splitlines())
    inherited = {"PATH", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "HOME", "PWD", "SHLVL", "_"}
    rest = {n for n in found if n not in inherited and not n.startswith(("LC_", "AZ_BATCH_", "BATCH_EMULATOR_"))}
    assert rest == {"COMMON", "BOTH"}
    assert found["BOTH"] == "task"
    expected = {
        "AZ_BATCH_ACCOUNT_NAME": lab.emulator.account_name,
        "AZ_BATCH_ACCOUNT_URL": f"{lab.emulator.endpoint}/",
        "AZ_BATCH_POOL_ID": pool,
        "AZ_BATCH_NODE_ID": task.node_info.node_id,
        "AZ_BATCH_NODE_IS_DEDICATED": "true",
        "AZ_BATCH_JOB_ID": job,
        "AZ_BATCH_TASK_ID": task.id,
    }
    assert {name: found[name] for name in expected} == expected
    root = found["AZ_BATCH_NODE_ROOT_DIR"]
    assert found["AZ_BATCH_TASK_DIR"] == f"{root}/workitems/{job}/job-1/{task.id}"
    assert found["AZ_BATCH_TASK_WORKING_DIR"] == found["HOME"] == f"{found['AZ_BATCH_TASK_DIR']}/wd"
    assert found["AZ_BATCH_NODE_SHARED_DIR"] == f"{root}/shared"
    assert lab.emulator.account_key not in str(found)
    assert "AZ_BATCH_JOB_PREP_DIR" not in found


# -- collections ------------------------------------------------------------------------------------------------------


def options(names: list[str], command: str = "true") -> list[models.BatchTaskCreateOptions]:
    return [models.BatchTaskCreateOptions(id=name, command_line=command) for name in names]


def test_collections(lab: Lab) -> None:
    job = lab.job("no-pool-yet")
    lab.task(job, "true", "There")
    group = models.BatchTaskGroup(task_values=options(["a", "there", "b b"]))
    results = lab.client.create_task_collection(job, group).result_values
    assert [each.status for each in results] == ["success", "clienterror", "clienterror"]
    assert [each.error.code for each in results[1:]] == ["TaskExists", "InvalidPropertyValue"]
    assert results[0].location.endswith(f"/jobs/{job}/tasks/a")
    assert results[0].etag
    assert {task.id for task in lab.client.list_tasks(job)} == {"There", "a"}
    group = models.BatchTaskGroup(task_values=options([f"t{i}" for i in range(101)]))
    lab.refused(400, "InvalidPropertyValue", lab.client.create_task_collection, job, group)
    lab.refused(409, "TaskExists", lab.task, job, "true", "A")


def test_the_sdk_s_own_adding_of_many(lab: Lab) -> None:
    job = lab.job("no-pool-yet")
    names = [f"t{i}" for i in range(250)]
    lab.client.create_tasks(job, options(names), max_concurrency=2)
    lab.client.create_tasks(job, options(names))  # TaskExists counts as success
    assert lab.client.get_job_task_counts(job).task_counts.active == 250


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"id": "a" * 65}, 400, "InvalidPropertyValue"),
        ({"command_line": " "}, 400, "InvalidPropertyValue"),
        ({"required_slots": 5}, 400, "InvalidPropertyValue"),
        ({"required_slots": 0}, 400, "InvalidPropertyValue"),
        ({"constraints": models.BatchTaskConstraints(max_task_retry_count=-2)}, 400, "InvalidPropertyValue"),
        ({"depends_on": models.BatchTaskDependencies(task_ids=["x"])}, 400, "TaskDependenciesNotSpecifiedOnJob"),
        ({"container_settings": models.BatchTaskContainerSettings(image_name="x")}, 501, "NotImplemented"),
        (
            {"resource_files": [models.ResourceFile(http_url="http://h/x", file_path="../x")]},
            400,
            "InvalidPropertyValue",
        ),
        (
            {"application_package_references": [models.BatchApplicationPackageReference(application_id="x")]},
            409,
            "InvalidApplicationPackageReferences",
        ),
    ],
)
def test_invalid_tasks(lab: Lab, job: str, change: dict[str, Any], status: int, code: str) -> None:
    given = models.BatchTaskCreateOptions(**{"id": "bad", "command_line": "true", **change})
    lab.refused(status, code, lab.client.create_task, job, given)


# -- resource files ---------------------------------------------------------------------------------------------------


class _Blobs(http.server.BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        listing = b"<?xml version='1.0'?><R><Blobs><Blob><Name>d/one</Name></Blob></Blobs><NextMarker/></R>"
        answers = {
            "/file": (200, b"content\n"),
            "/secret": (403, b""),
            "/broken": (400, b""),
            "/box/d/one": (200, b"1"),
        }
        status, body = (200, listing) if "comp=list" in query else answers.get(path, (404, b""))
        if path == "/slow":
            time.sleep(3)
        # What storage does at times: it is busy, and then its answer breaks off.
        shaky, length = path == "/shaky", len(body)
        if shaky:
            _Blobs.asked += 1
            status, body, length = (503, b"", 0) if _Blobs.asked == 1 else (200, b"con", 7 if _Blobs.asked == 2 else 3)
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def blobs() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Blobs) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_resource_files(lab: Lab, job: str, blobs: str) -> None:
    files = [
        models.ResourceFile(http_url=f"{blobs}/file?sig=x", file_path="in/a.txt", file_mode="0644"),
        models.ResourceFile(http_url=f"{blobs}/file", file_path="b"),
        models.ResourceFile(storage_container_url=f"{blobs}/box?sig=x", file_path="box"),
    ]
    task = lab.run(job, "sh -c 'cat in/a.txt box/d/one; stat -c %a in/a.txt b'", resource_files=files)
    assert lab.text(job, task.id) == "content\n1644\n770\n"


def test_resource_files_are_asked_for_again_where_storage_is_busy_or_breaks_off(lab: Lab, job: str, blobs: str) -> None:
    files = [models.ResourceFile(http_url=f"{blobs}/shaky", file_path="x")]
    task = lab.run(job, "cat x", resource_files=files)
    assert lab.text(job, task.id) == "con"
    assert _Blobs.asked == 3


@pytest.mark.parametrize(
    ("path", "code"),
    [("none", "BlobNotFound"), ("secret", "BlobAccessDenied"), ("broken", "BlobDownloadMiscError")],
)
def test_resource_files_that_cannot_be_had(lab: Lab, job: str, blobs: str, path: str, code: str) -> None:
    files = [models.ResourceFile(http_url=f"{blobs}/{path}?sig=hidden", file_path="x")]
    info = lab.run(job, "true", resource_files=files).execution_info
    assert (info.exit_code, info.result, info.failure_info.code) == (None, "failure", code)
    assert "hidden" not in str(info.as_dict())


def test_wall_clock_counts_the_download(lab: Lab, job: str, blobs: str) -> None:
    files = [models.ResourceFile(http_url=f"{blobs}/slow", file_path="x")]
    constraints = models.BatchTaskConstraints(max_wall_clock_time=seconds(0.2))
    info = lab.run(job, "true", resource_files=files, constraints=constraints).execution_info
    assert info.failure_info.code == "TaskEnded"


# -- dependencies -----------------------------------------------------------------------------------------------------


def test_dependencies(lab: Lab, pool: str) -> None:
    job = lab.job(pool, uses_task_dependencies=True)
    lab.task(job, "true", "last", depends_on=models.BatchTaskDependencies(task_ids=["first"]))
    ranges = models.BatchTaskDependencies(task_id_ranges=[models.BatchTaskIdRange(start=1, end=2)])
    lab.task(job, "true", "counted", depends_on=ranges)
    lab.task(job, "false", "1")
    lab.task(job, "true", "2")
    lab.done(job, "1")
    lab.done(job, "2")
    assert lab.client.get_task(job, "last").state == "active"
    first = lab.done(job, lab.task(job, "sleep 0.1", "first"))
    last = lab.done(job, "last")
    assert last.execution_info.start_time >= first.execution_info.end_time
    assert lab.client.get_task(job, "counted").state == "active"  # task 1 failed: it blocks
