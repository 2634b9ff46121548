"""Who may do what to the emulator: what a signature covers, who can reach it, and where it writes."""

from __future__ import annotations

import base64
import http.client
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psutil
import pytest
from azure.batch import models
from emulator_lab import API, Lab, until
from wire_fuzz import OPERATIONS, Wire

from joblib_azure.emulator import BatchEmulator
from joblib_azure.emulator.allocation import MOST_NODES

QUERY = f"api-version={API}"
JOB = b'{"id": "signed", "poolInfo": {"poolId": "nowhere"}}'


@pytest.fixture(scope="module")
def wire(emulator: BatchEmulator) -> Iterator[Wire]:
    client = Wire(emulator)
    yield client
    client.close()


# signatures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: str(each["id"]))
@pytest.mark.parametrize("given", ["nothing", "another key", "another account", "an unsigned token"])
def test_no_operation_is_done_for_a_stranger(wire: Wire, lab: Lab, operation: dict[str, Any], given: str) -> None:
    token = ".".join(base64.urlsafe_b64encode(part).decode() for part in (b'{"alg": "none"}', b"{}", b"x"))
    authorization = {
        "nothing": "",
        "another key": f"SharedKey {lab.emulator.account_name}:{base64.b64encode(bytes(32)).decode()}",
        "another account": f"SharedKey other:{base64.b64encode(bytes(32)).decode()}",
        "an unsigned token": f"Bearer {token}",
    }[given]
    path = operation["path"].replace("{", "").replace("}", "")
    body = b"{}" if operation["method"] in ("POST", "PUT", "PATCH") else None
    status, headers, _ = wire.ask(operation["method"], path, body, authorization=authorization)
    assert status == (401 if given in ("nothing", "an unsigned token") else 403)
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("what", ["preempt", "unusable", "restore"])
@pytest.mark.parametrize("key", [None, "", "d3Jvbmc=", "é"])
def test_no_node_is_touched_for_a_stranger(wire: Wire, what: str, key: str | None) -> None:
    headers = {} if key is None else {"x-emulator-key": key}
    assert wire.ask("POST", f"/_emulator/pools/p/nodes/n/{what}", b"", headers=headers)[0] == 403


def altered(wire: Wire, **change: Any) -> int:
    """Send a request other than the one that was signed; return the answer's status."""
    asked: dict[str, Any] = {"method": "POST", "path": "/jobs", "query": QUERY, "body": JOB, "headers": {}}
    signed = wire.signed(asked["method"], asked["path"], asked["query"], asked["body"], asked["headers"])
    asked |= change
    headers = {**signed, **asked["headers"]}
    return wire.send(asked["method"], f"{asked['path']}?{asked['query']}", asked["body"], headers)[0]


def test_what_is_signed_is_taken(wire: Wire) -> None:
    """Or the next test could not fail."""
    assert altered(wire) == 201
    assert wire.ask("DELETE", "/jobs/signed")[0] == 202


@pytest.mark.parametrize(
    "change",
    [
        {"method": "PUT"},
        {"path": "/pools"},
        {"path": "/jobs/"},
        {"path": "/job%73"},
        {"query": f"{QUERY}&maxresults=1"},
        {"query": "api-version=2024-07-01.20.0"},
        {"body": JOB + b" ", "headers": {"content-length": str(len(JOB) + 1)}},
        {"headers": {"content-type": "application/json"}},
        {"headers": {"ocp-date": "Thu, 01 Jan 2026 00:00:00 GMT"}},
        {"headers": {"ocp-other": "x"}},
        {"headers": {"if-match": "*"}},
        {"headers": {"range": "bytes=0-1"}},
        {"headers": {"content-md5": "x"}},
    ],
    ids=lambda change: "-".join(f"{name} {text}"[:30] for name, text in change.items()),
)
def test_what_a_signature_covers_cannot_be_altered(wire: Wire, change: dict[str, Any]) -> None:
    assert altered(wire, **change) == 403


def test_what_a_signature_does_not_cover(wire: Wire) -> None:
    """SharedKey signs a body's length and not what it says: that is TLS's to protect, on Azure as here."""
    assert altered(wire, body=JOB.replace(b"signed", b"forged")) == 201
    assert wire.ask("DELETE", "/jobs/forged")[0] == 202


# who can reach it -----------------------------------------------------------------------------------------------------


def test_it_listens_on_loopback_only(emulator: BatchEmulator) -> None:
    listening = [each.laddr for each in psutil.Process(emulator.pid).net_connections("inet") if each.status == "LISTEN"]
    assert [address.ip for address in listening] == ["127.0.0.1"]
    assert urlsplit(emulator.endpoint).port == listening[0].port


def test_a_web_page_cannot_use_it(emulator: BatchEmulator) -> None:
    """Nothing is done for whoever happens to be on this machine: a browser has no key that it sends by itself."""
    port = urlsplit(emulator.endpoint).port
    for method in ("GET", "POST", "OPTIONS"):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        headers = {"Host": "rebound.example", "Origin": "http://rebound.example", "Content-Type": "text/plain"}
        headers["Access-Control-Request-Headers"] = "authorization"
        connection.request(method, f"/pools?{QUERY}", b"{}" if method == "POST" else None, headers)
        answer = connection.getresponse()
        assert answer.status == 401
        assert not [name for name, _ in answer.getheaders() if name.lower().startswith("access-control-")]
        connection.close()


def test_the_key_is_in_no_command_line_and_in_no_task(lab: Lab, job: str) -> None:
    key = lab.emulator.account_key
    process = psutil.Process(lab.emulator.pid)
    assert key not in " ".join(process.cmdline())
    task = lab.run(job, "sh -c 'env; ps axww -o args; cat /proc/self/environ'")
    assert "AZ_BATCH_TASK_ID" in lab.text(job, task.id)
    assert key not in lab.text(job, task.id)
    assert key not in (lab.emulator.root / "emulator.log").read_text()


def test_a_path_cannot_write_lines_into_the_log(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with BatchEmulator(access_log=log) as emulator:
        client = Wire(emulator)
        client.ask("GET", "/pools/x%0d%0aDELETE%20/pools/y%20204%201.0")
        client.close()
    [line] = log.read_text().splitlines()
    assert line.startswith("GET /pools/x%0d%0aDELETE")


# where it writes ------------------------------------------------------------------------------------------------------


class _Files(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"content"
        if "comp=list" in self.path and "broken" not in self.path:
            names = "".join(
                f"<Blob><Name>{name}</Name></Blob>" for name in ("../../../up", "/tmp/joblib-azure-absolute")
            )
            body = f"<EnumerationResults><Blobs>{names}</Blobs></EnumerationResults>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def source() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_blob_s_name_cannot_leave_the_working_directory(lab: Lab, job: str, source: str) -> None:
    files = [models.ResourceFile(storage_container_url=f"{source}/box", file_path="in")]
    info = lab.run(job, "true", resource_files=files).execution_info
    assert info.failure_info.code == "ResourceFileCreateFailed"
    assert not Path("/tmp/joblib-azure-absolute").exists()


def test_a_link_of_an_earlier_try_leads_no_file_out(lab: Lab, job: str, source: str, tmp_path: Path) -> None:
    files = [models.ResourceFile(http_url=f"{source}/file", file_path="in/file")]
    command = f"sh -c 'rm -r in; ln -s {tmp_path} in; exit 1'"
    retries = models.BatchTaskConstraints(max_task_retry_count=1)
    task = lab.task(job, command, resource_files=files, constraints=retries)
    info = lab.done(job, task).execution_info
    assert info.failure_info.code == "ResourceFileCreateFailed"
    assert list(tmp_path.iterdir()) == []


def test_a_listing_that_is_none_is_the_task_s_failure(lab: Lab, job: str, source: str) -> None:
    files = [models.ResourceFile(storage_container_url=f"{source}/broken?comp=other", file_path="in")]
    info = lab.run(job, "true", resource_files=files).execution_info
    assert info.failure_info.code == "BlobDownloadMiscError"


def test_what_is_no_file_is_not_opened(lab: Lab, job: str, wire: Wire) -> None:
    """A pipe would keep whoever opens it, and with it the emulator's end."""
    make = "import os, socket; os.mkfifo('pipe'); socket.socket(socket.AF_UNIX).bind('socket')"
    task = lab.run(job, f'{sys.executable} -c "{make}"')
    folder = f"/jobs/{job}/tasks/{task.id}/files/wd"
    for name in ("pipe", "socket"):
        for method in ("GET", "HEAD"):
            assert wire.ask(method, f"{folder}/{name}")[0] == 404
    assert b"pipe" not in wire.ask("GET", folder.removesuffix("/wd"), query=f"{QUERY}&recursive=true")[2]


def test_any_name_of_a_file_is_listed(lab: Lab, job: str, wire: Wire) -> None:
    names = [b"\xff\xfe", b"line\nfeed", "é€".encode(), b"a b%2f..", b"<script>"]
    make = f"for name in {names!r}: open(name, 'w')"
    task = lab.run(job, f'{sys.executable} -c "{make}"')
    status, _, body = wire.ask("GET", f"/jobs/{job}/tasks/{task.id}/files", query=f"{QUERY}&recursive=true")
    assert status == 200
    urls = {each["url"].rpartition("/")[2] for each in json.loads(body)["value"]}
    assert {quote(name, safe="") for name in names} <= urls


@pytest.mark.parametrize(
    "change",
    [
        {"httpUrl": "http://["},
        {"httpUrl": "file:///etc/passwd"},
        {"httpUrl": "httpx://a/b"},
        {"httpUrl": "http:///a"},
        {"filePath": "../up"},
        {"filePath": "/etc/x"},
        {"filePath": "a\0b"},
        {"fileMode": "7" * 5000},
        {"fileMode": "-7"},
        {"fileMode": "0x1"},
    ],
    ids=str,
)
def test_files_that_no_task_may_ask_for(wire: Wire, job: str, change: dict[str, str]) -> None:
    file = {"httpUrl": "http://127.0.0.1:1/a", "filePath": "a", **change}
    body = {"id": "files", "commandLine": "true", "resourceFiles": [file]}
    status, _, answer = wire.ask("POST", f"/jobs/{job}/tasks", json.dumps(body).encode())
    assert (status, json.loads(answer)["code"]) == (400, "InvalidPropertyValue")


def test_a_slip_of_a_digit_does_not_fill_the_machine() -> None:
    with BatchEmulator(boot_seconds=60) as emulator:
        lab = Lab(emulator)
        pool = lab.pool(nodes=2_000_000_000, wait=False)
        until(lambda: lab.client.get_pool(pool).allocation_state == "steady", 60, "the resize to end")
        found = lab.client.get_pool(pool)
        assert [error.code for error in found.resize_errors] == ["AllocationFailed"]
        assert found.current_dedicated_nodes == MOST_NODES
