"""Output files: which of a task's files go where once it has ended, and what becomes of a task whose files do not."""

from __future__ import annotations

import contextlib
import datetime
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cli_process
import pytest
from azure.batch import models
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobServiceClient, ContainerClient, generate_container_sas
from emulator_lab import Lab

from joblib_azure.emulator import outputfiles

WRITE = "sh -c 'mkdir -p out/deep; echo 1 > out/a.txt; echo 2 > out/deep/b.txt; echo 3 > c.log; echo 4 > .d.log; {}'"


@pytest.fixture(scope="module")
def storage() -> Iterator[BlobServiceClient]:
    with (
        cli_process.account() as host,
        BlobServiceClient.from_connection_string(host.storage_connection_string) as made,
    ):
        yield made


@pytest.fixture
def container(lab: Lab, storage: BlobServiceClient) -> ContainerClient:
    return storage.create_container(lab.name("outputs"))


def url(container: ContainerClient, permission: str = "w") -> str:
    token = generate_container_sas(
        str(container.account_name),
        container.container_name,
        account_key=container.credential.account_key,
        permission=permission,
        expiry=datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1),
    )
    return f"{container.url}?{token}"


def output(pattern: str, to: str, path: str | None = None, on: str = "taskcompletion") -> models.OutputFile:
    return models.OutputFile(
        file_pattern=pattern,
        destination=models.OutputFileDestination(
            container=models.OutputFileBlobContainerDestination(container_url=to, path=path)
        ),
        upload_options=models.OutputFileUploadConfiguration(upload_condition=models.OutputFileUploadCondition(on)),
    )


def blobs(container: ContainerClient) -> dict[str, bytes]:
    return {blob.name: container.download_blob(blob.name).readall() for blob in container.list_blobs()}


def test_patterns_and_paths(lab: Lab, job: str, container: ContainerClient) -> None:
    to = url(container)
    files = [
        output("out/*.txt", to, "one"),
        output("**/*.txt", to, "all"),
        output("c.log", to, "renamed/c"),
        output("*.log", to),
        output("../stdout.txt", to, "log"),
        output("$AZ_BATCH_TASK_WORKING_DIR/out/[!b].txt", to, "absolute/"),
        output("none/**", to),
    ]
    task = lab.run(job, WRITE.format("echo said"), output_files=files)
    assert task.execution_info.result == "success"
    assert blobs(container) == {
        "one/a.txt": b"1\n",
        "all/out/a.txt": b"1\n",
        "all/out/deep/b.txt": b"2\n",
        "renamed/c": b"3\n",
        "c.log": b"3\n",
        "log": b"said\n",
        "absolute/a.txt": b"1\n",
    }
    assert "0 file(s) match none/**" in lab.text(job, task.id, "fileuploadout.txt")
    assert lab.text(job, task.id, "fileuploaderr.txt") == ""
    assert lab.client.get_task(job, task.id).output_files[0].file_pattern == "out/*.txt"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", {"a.txt", "b1", "b2"}),
        ("**", {"a.txt", "b1", "b2", "in/c.txt", "in/deep/d.txt"}),
        ("**/*.txt", {"a.txt", "in/c.txt", "in/deep/d.txt"}),
        ("**/deep/*", {"in/deep/d.txt"}),
        ("b?", {"b1", "b2"}),
        ("b[1-1]", {"b1"}),
        ("b[!1]", {"b2"}),
        (".*", {".hidden"}),
        ("**/.*", {".hidden", "in/.e"}),
        ("in/*.txt", {"c.txt"}),
        ("in/**/*.txt", {"c.txt", "deep/d.txt"}),
        ("i*/c.txt", {"in/c.txt"}),
        ("in", set()),
        ("a.txt", {"a.txt"}),
        ("nowhere/*", set()),
        ("A.txt", set()),
    ],
)
def test_what_a_pattern_matches(tmp_path: Path, pattern: str, names: set[str]) -> None:
    for name in ("a.txt", "b1", "b2", ".hidden", "in/c.txt", "in/.e", "in/deep/d.txt", ".cache/f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert {name for _, name in outputfiles.matches(tmp_path, pattern)} == names


@pytest.mark.parametrize(("code", "names"), [(0, {"success", "completion"}), (3, {"failure", "completion"})])
def test_conditions(lab: Lab, job: str, container: ContainerClient, code: int, names: set[str]) -> None:
    files = [output("c.log", url(container), on, f"task{on}") for on in ("success", "failure", "completion")]
    info = lab.run(job, WRITE.format(f"exit {code}"), output_files=files).execution_info
    assert info.exit_code == code
    assert set(blobs(container)) == names


def test_a_task_that_runs_for_too_long(lab: Lab, job: str, container: ContainerClient) -> None:
    constraints = models.BatchTaskConstraints(max_wall_clock_time=datetime.timedelta(seconds=1))
    files = [output("c.log", url(container), on, f"task{on}") for on in ("success", "failure")]
    info = lab.run(job, WRITE.format("sleep 30"), output_files=files, constraints=constraints).execution_info
    assert (info.exit_code, info.failure_info.code) == (137, "TaskEnded")
    assert set(blobs(container)) == {"failure"}


def test_what_never_ran_uploads_nothing(lab: Lab, job: str, container: ContainerClient) -> None:
    task = lab.run(job, "no-such-program", output_files=[output("../*.txt", url(container))])
    assert task.execution_info.failure_info.code == "CommandProgramNotFound"
    assert blobs(container) == {}
    assert not any("fileupload" in file.name for file in lab.client.list_task_files(job, task.id, recursive=True))


def test_uploads_that_fail(lab: Lab, job: str, container: ContainerClient, storage: BlobServiceClient) -> None:
    there = output("c.log", url(container), "there")
    gone = url(storage.get_container_client("no-such-container"))
    for files, code, word in (
        ([output("c.log", gone), there], "FileUploadContainerNotFound", "not found"),
        ([output("c.log", url(container, "r")), there], "FileUploadAccessDenied", "denied"),
        ([output("no-such-file", url(container)), there], "FileUploadMiscError", "does not exist"),
        ([output("c.log", "http://127.0.0.1:9/c?sig=hidden"), there], "FileUploadMiscError", "refused"),
    ):
        task = lab.run(job, WRITE.format("true"), output_files=files)
        info = task.execution_info
        assert (info.exit_code, info.result, info.failure_info.code) == (0, "failure", code)
        assert code in lab.text(job, task.id, "fileuploaderr.txt")
        assert word in lab.text(job, task.id, "fileuploaderr.txt")
        assert "hidden" not in lab.text(job, task.id, "fileuploaderr.txt") + str(info.as_dict())
        assert blobs(container) == {"there": b"3\n"}
        container.delete_blob("there")
    # That the process failed is said first.
    info = lab.run(job, WRITE.format("exit 2"), output_files=[output("c.log", gone)]).execution_info
    assert (info.exit_code, info.failure_info.code) == (2, "FailureExitCode")


def test_what_fails_to_upload_is_an_exit_condition(lab: Lab, pool: str, container: ContainerClient) -> None:
    def ended(condition: models.ExitConditions) -> str:
        job = lab.job(pool, task_failure_mode=models.BatchTaskFailureMode.PERFORM_EXIT_OPTIONS_JOB_ACTION)
        lab.run(job, "true", output_files=[output("no-such-file", url(container))], exit_conditions=condition)
        with contextlib.suppress(HttpResponseError):  # it is ending
            lab.client.begin_terminate_job(job, {"terminateReason": "Otherwise"}, polling_interval=0.02).result()
        return str(lab.job_state(job, "completed").execution_info.termination_reason)

    end = models.ExitOptions(job_action=models.BatchJobActionKind.TERMINATE)
    assert ended(models.ExitConditions(file_upload_error=end)) == "TaskFailed"
    assert ended(models.ExitConditions(default=end)) == "TaskFailed"
    go_on = models.ExitOptions(job_action=models.BatchJobActionKind.NONE)
    assert ended(models.ExitConditions(file_upload_error=go_on, default=end)) == "Otherwise"


def test_ending_a_task_that_uploads(lab: Lab, job: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        to = f"http://127.0.0.1:{silent.getsockname()[1]}/container"
        task = lab.task(job, "true", output_files=[output("../stdout.txt", to)])
        connection, _ = silent.accept()  # it uploads, and gets no answer
        with connection:
            assert lab.client.get_task(job, task).state == "running"
            lab.client.terminate_task(job, task)
            assert lab.done(job, task).execution_info.failure_info.code == "TaskEnded"


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"filePattern": ""}, 400, "InvalidPropertyValue"),
        ({"filePattern": 3}, 400, "InvalidRequestBody"),
        ({"filePattern": None}, 400, "MissingRequiredProperty"),
        ({"destination": {}}, 400, "MissingRequiredProperty"),
        ({"destination": {"container": {"path": "x"}}}, 400, "MissingRequiredProperty"),
        ({"destination": {"container": {"containerUrl": "ftp://h/c?sig=hidden"}}}, 400, "InvalidPropertyValue"),
        ({"uploadOptions": {}}, 400, "MissingRequiredProperty"),
        ({"uploadOptions": {"uploadCondition": "sometimes"}}, 400, "InvalidPropertyValue"),
        (
            {"destination": {"container": {"containerUrl": "http://h/c", "identityReference": {}}}},
            501,
            "NotImplemented",
        ),
    ],
)
def test_what_is_no_output_file(lab: Lab, job: str, change: dict[str, Any], status: int, code: str) -> None:
    good: dict[str, Any] = {
        "filePattern": "x",
        "destination": {"container": {"containerUrl": "http://h/c?sig=x"}},
        "uploadOptions": {"uploadCondition": "taskcompletion"},
    }
    body = {"id": lab.name("task"), "commandLine": "true", "outputFiles": [{**good, **change}]}
    answer = lab.refused(status, code, lab.client.create_task, job, body)
    assert "hidden" not in str(answer)
