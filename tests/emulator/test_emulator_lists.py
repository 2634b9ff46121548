"""Lists: pages, filters, selections; files and their ranges."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from azure.batch import models
from emulator_lab import Lab

from joblib_azure.emulator import odata

MANY = 5000


@pytest.fixture(scope="module")
def many(lab: Lab) -> str:
    job = lab.job("no-such-pool")
    lab.client.create_tasks(
        job, [models.BatchTaskCreateOptions(id=f"t{i:04}", command_line="true") for i in range(MANY)]
    )
    return job


def test_pages(lab: Lab, many: str) -> None:
    pages = list(lab.client.list_tasks(many, max_results=700, select=["id"]).by_page())
    sizes = [len(list(page)) for page in pages]
    assert sum(sizes) == MANY
    assert sizes[:2] == [700, 700]
    names = [task.id for task in lab.client.list_tasks(many, max_results=999)]
    assert len(set(names)) == MANY
    _, _, body = lab.raw("GET", f"/jobs/{many}/tasks")
    first = json.loads(body)
    assert len(first["value"]) == 1000
    assert first["odata.nextLink"].startswith(f"{lab.emulator.endpoint}/jobs/{many}/tasks?")


def test_a_page_that_is_exactly_full_is_the_last(lab: Lab) -> None:
    job = lab.job("no-such-pool")
    lab.client.create_tasks(job, [models.BatchTaskCreateOptions(id=str(i), command_line="true") for i in range(6)])
    _, _, body = lab.raw("GET", f"/jobs/{job}/tasks", query="api-version=2025-06-01&maxresults=6")
    assert "odata.nextLink" not in json.loads(body)
    assert [len(list(p)) for p in lab.client.list_tasks(job, max_results=3).by_page()] == [3, 3]


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("0", "OutOfRangeQueryParameterValue"),
        ("1001", "OutOfRangeQueryParameterValue"),
        ("x", "InvalidQueryParameterValue"),
    ],
)
def test_bad_page_sizes(lab: Lab, many: str, value: str, code: str) -> None:
    query = f"api-version=2025-06-01&maxresults={value}"
    status, _, body = lab.raw("GET", f"/jobs/{many}/tasks", query=query)
    assert (status, json.loads(body)["code"]) == (400, code)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("state eq 'active'", MANY),
        ("state ne 'active'", 0),
        ("state eq 'Active'", MANY),
        ("id eq 't0007'", 1),
        ("startswith(id, 't00')", 100),
        ("id ge 't0010' and id lt 't0020'", 10),
        ("id eq 't0001' or id eq 't0002' or id eq 'none'", 2),
        ("(id eq 't0001' or id eq 't0002') and state eq 'completed'", 0),
        ("id eq 't0001' or id eq 't0002' and state eq 'completed'", 1),
        ("creationTime gt DateTime'2020-01-01T00:00:00Z'", MANY),
        ("creationTime lt DateTime'2020-01-01T00:00:00.1234567Z'", 0),
        ("executionInfo/exitCode eq 0", 0),
        ("STATE eq 'active' AND id LE 't0000'", 1),
    ],
)
def test_filters(lab: Lab, many: str, source: str, count: int) -> None:
    began = time.monotonic()
    assert len(list(lab.client.list_tasks(many, filter=source, select=["id"]))) == count
    if count < 200:
        assert time.monotonic() - began < 0.5


@pytest.mark.parametrize(
    "source",
    [
        "",
        "state",
        "state eq",
        "state eq active",
        "state gt 'active'",
        "state like 'active'",
        "commandLine eq 'true'",
        "(state eq 'active'",
        "state eq 'active')",
        "state eq 'active' and",
        "state eq 'active' id eq 'x'",
        "creationTime gt '2020-01-01'",
        "creationTime gt DateTime'yesterday'",
        "executionInfo/exitCode eq '1'",
        "startswith(state, 'a')",
        "startswith(id 'a')",
        "id eq 'unterminated",
        "id eq 'a' ; drop",
    ],
)
def test_bad_filters(lab: Lab, many: str, source: str) -> None:
    query = f"$filter={source}&api-version=2025-06-01"
    status, _, body = lab.raw("GET", f"/jobs/{many}/tasks", query=query, sign=lambda text: text)
    if not source:  # an empty parameter is not part of what is signed
        return
    assert (status, json.loads(body)["code"]) == (400, "InvalidQueryParameterValue")


def test_filters_of_each_resource(lab: Lab, pool: str, job: str) -> None:
    assert [each.id for each in lab.client.list_pools(filter=f"id eq '{pool}' and state eq 'active'")] == [pool]
    assert [each.id for each in lab.client.list_jobs(filter=f"executionInfo/poolId eq '{pool}' and id eq '{job}'")]
    assert list(lab.client.list_nodes(pool, filter="state eq 'offline'")) == []
    for call in (
        lambda: list(lab.client.list_pools(filter="metadata eq 'x'")),
        lambda: list(lab.client.list_jobs(filter="displayName eq 'x'")),
        lambda: list(lab.client.list_nodes(pool, filter="ipAddress eq 'x'")),
    ):
        lab.refused(400, "InvalidQueryParameterValue", call)


def test_incremental_listing_by_transition_time(lab: Lab, pool: str, job: str) -> None:
    first = lab.run(job, "true")
    second = lab.run(job, "true")
    since = first.state_transition_time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    query = f"state eq 'completed' and stateTransitionTime {{}} DateTime'{since}'"
    assert [task.id for task in lab.client.list_tasks(job, filter=query.format("gt"))] == [second.id]
    assert [task.id for task in lab.client.list_tasks(job, filter=query.format("ge"))] == [first.id, second.id]


def test_quotes_in_filters() -> None:
    keep = odata.parse_filter("name eq 'it''s'", {"name": odata.text(lambda item: item)})
    assert keep("it's")
    assert not keep("its")


def test_select(lab: Lab, pool: str, job: str) -> None:
    task = lab.run(job, "false")
    query = "$select=id,executionInfo/exitCode,executionInfo/result&api-version=2025-06-01"
    _, _, body = lab.raw("GET", f"/jobs/{job}/tasks", query=query)
    assert json.loads(body)["value"] == [{"id": task.id, "executionInfo": {"exitCode": 1, "result": "failure"}}]
    found = lab.client.get_task(job, task.id, select=["id", "state"])
    assert (found.id, found.state, found.command_line) == (task.id, "completed", None)
    for names in (["colour"], ["executionInfo/colour"], ["id/x"]):
        lab.refused(400, "InvalidQueryParameterValue", lab.client.get_task, job, task.id, select=names)
    lab.client.get_job(job, expand=["stats"])
    lab.refused(400, "InvalidQueryParameterValue", lab.client.get_job, job, expand=["tasks"])


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(lab: Lab, pool: str) -> tuple[str, str, str]:
    job = lab.job(pool)
    command = "mkdir -p sub; printf 0123456789 > sub/ten; ln -s /etc/hostname out; ln -s /etc up; ln -s sub/ten near"
    task = lab.run(job, f"sh -c '{command}'")
    return job, task.id, task.node_info.node_id


def test_listing_files(lab: Lab, files: tuple[str, str, str]) -> None:
    job, task, _ = files
    assert {each.name for each in lab.client.list_task_files(job, task)} == {"stdout.txt", "stderr.txt", "wd"}
    found = {each.name: each for each in lab.client.list_task_files(job, task, recursive=True)}
    assert set(found) == {"stdout.txt", "stderr.txt", "wd", "wd/sub", "wd/sub/ten"}
    assert found["wd/sub"].is_directory
    assert found["wd/sub/ten"].properties.content_length == 10
    assert found["wd/sub/ten"].properties.file_mode == "0o100644"
    some = lab.client.list_task_files(job, task, recursive=True, filter="startswith(name, 'wd/')")
    assert {each.name for each in some} == {"wd/sub", "wd/sub/ten"}


def test_properties_of_a_file(lab: Lab, files: tuple[str, str, str]) -> None:
    job, task, _ = files
    found = lab.client.get_task_file_properties(job, task, "wd/sub/ten")
    assert (found.content_length, found.is_directory, found.file_mode) == (10, False, "0o100644")
    assert found.url.endswith("/files/wd/sub/ten")
    assert lab.client.get_task_file_properties(job, task, "wd/sub").is_directory
    status, headers, body = lab.raw("HEAD", f"/jobs/{job}/tasks/{task}/files/wd%2Fsub%2Ften")
    assert (status, headers["content-length"], body) == (200, "10", b"")
    assert headers["ocp-batch-file-isdirectory"] == "false"


@pytest.mark.parametrize(
    ("wanted", "status", "content"),
    [
        ("bytes=0-3", 200, b"0123"),
        ("bytes=4-", 200, b"456789"),
        ("bytes=8-99", 200, b"89"),
        ("bytes=10-", 416, b""),
        ("bytes=5-4", 416, b""),
        ("lines=1-2", 400, b""),
    ],
)
def test_ranges(lab: Lab, files: tuple[str, str, str], wanted: str, status: int, content: bytes) -> None:
    job, task, _ = files
    path = f"/jobs/{job}/tasks/{task}/files/wd/sub/ten"
    found, headers, body = lab.raw("GET", path, headers={"ocp-range": wanted})
    assert found == status
    if content:
        assert body == content
        assert headers["content-range"].endswith("/10")
    assert b"".join(lab.client.download_task_file(job, task, "wd/sub/ten", ocp_range="bytes=2-4")) == b"234"


@pytest.mark.parametrize(
    "path",
    ["wd/out", "wd/up/hostname", "../../../../../../etc/hostname", "wd/../../../stdout.txt", "/etc/hostname", "none"],
)
def test_nothing_outside_is_reachable(lab: Lab, pool: str, files: tuple[str, str, str], path: str) -> None:
    job, task, node = files
    base = f"workitems/{job}/job-1/{task}"
    for call, given in (
        (lab.client.download_task_file, (job, task, path)),
        (lab.client.get_task_file_properties, (job, task, path)),
        (lab.client.delete_task_file, (job, task, path)),
        (lab.client.download_node_file, (pool, node, path if path[0] == "/" else f"{base}/{path}")),
    ):
        status = _status(call, *given)
        assert status == 404 or (path == "wd/../../../stdout.txt" and status == 404), (call, status)


def _status(call: Any, *given: str) -> int:
    from azure.core.exceptions import HttpResponseError

    try:
        result = call(*given)
        if result is not None and hasattr(result, "__iter__"):
            b"".join(result)
    except HttpResponseError as exc:
        return int(exc.status_code or 0)
    return 200


def test_links_that_stay_inside(lab: Lab, files: tuple[str, str, str]) -> None:
    job, task, _ = files
    assert lab.text(job, task, "wd/near") == "0123456789"


def test_deleting_files(lab: Lab, pool: str, job: str) -> None:
    task = lab.run(job, "sh -c 'mkdir d; touch d/f'")
    where = (job, task.id, "wd/d")
    lab.refused(409, "OperationInvalidForCurrentState", lab.client.delete_task_file, *where)
    lab.client.delete_task_file(*where, recursive=True)
    assert {each.name for each in lab.client.list_task_files(job, task.id, recursive=True)} == {
        "stdout.txt",
        "stderr.txt",
        "wd",
    }
    node = task.node_info
    lab.client.delete_node_file(pool, node.node_id, f"{node.task_root_directory}/stdout.txt")
    lab.refused(404, "FileNotFound", lab.text, job, task.id)


def test_files_of_a_task_that_has_not_run(lab: Lab, many: str) -> None:
    lab.refused(409, "TaskFilesUnavailable", lambda: list(lab.client.list_task_files(many, "t0000")))
