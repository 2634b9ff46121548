"""Nothing secret in anything that a run leaves behind, searched for by value.

What is allowed, and where (DESIGN.md, decision 11): the job's own HMAC key and the SAS of the job in the job's
settings, that is in the environment of its tasks; SAS in the storage's own record of requests, whose URLs they are
part of.
"""

from __future__ import annotations

import base64
import html
import http.server
import itertools
import logging
import os
import re
import secrets
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.batch import BatchClient
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import ServiceRequestError
from joblib import Parallel, delayed, parallel_config

from joblib_azure.cluster import Cluster
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.errors import JoblibAzureError
from joblib_azure.local.host import LocalHost, processes_of
from joblib_azure.registry import close_sessions, session_for

# Made up for each run: the modules of the calls travel to the nodes, this one among them.
PASSWORD, MOUNT_KEY = secrets.token_hex(12), base64.b64encode(secrets.token_bytes(24)).decode()
FILE_SIGNATURE = "c2lnbmF0dXJlIG9mIGEgZmlsZQ%3D%3D"


def look_around() -> list[tuple[str, str]]:
    """The command lines and environments of the process that runs a call, and of those that it comes from."""
    found, pid = [], os.getpid()
    for _ in range(3):
        folder = Path(f"/proc/{pid}")
        command, environment = (folder.joinpath(name).read_bytes() for name in ("cmdline", "environ"))
        if b"AZ_BATCH_NODE_ID=" not in environment:
            break
        found.append((command.decode(errors="replace"), environment.decode(errors="replace")))
        pid = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
    return found


class Run:
    """One run on a cluster with secrets of all kinds, and all that it left."""

    def __init__(self, host: LocalHost, records: list[str]) -> None:
        storage_key = re.search(r"AccountKey=([^;]+)", host.storage_connection_string)
        assert storage_key is not None
        self.account_keys = {"batch": host.account_key, "storage": storage_key[1]}
        self.pool_secrets = {"mount": MOUNT_KEY, "password": PASSWORD}
        #: Where it was seen to what was seen there.
        self.seen: dict[str, str] = {}
        self.commands: dict[str, str] = {}
        self.environments: dict[str, str] = {}
        self.job_settings = ""
        self.job_key = ""
        self._run(host)
        self.seen["the log at DEBUG"] = "\n".join(records)

    def _run(self, host: LocalHost) -> None:
        config = ClusterConfig(
            name="secrets",
            vm_size="Emulated_C1",
            nodes=1,
            pool_size={"autoscale_formula": "FIXED"},
            python=sys.executable,
            python_path=[entry for entry in sys.path if entry],
            environment={"mode": "none"},
            command_line=["env > all-variables; ps ax > processes || true"],
            mounts=[{"kind": "azure_files", "account": "store", "source": "s", "path": "s", "key": MOUNT_KEY}],
        )
        account = AccountConfig(
            batch_account=host.account_name,
            batch_endpoint=host.batch_endpoint,
            batch_key=host.account_key,
            storage_connection_string=host.storage_connection_string,
            docker_authentication={"server": "r.example", "username": "u", "password": PASSWORD},
        )
        cluster = Cluster.create(config, account)
        with parallel_config("azure", cluster=cluster):
            for number, seen in enumerate(itertools.chain(*Parallel()(delayed(look_around)() for _ in range(2)))):
                self.commands[f"task process {number}"], self.environments[f"task process {number}"] = seen
            assert Parallel()(delayed(divmod)(i, 3) for i in range(8)) == [divmod(i, 3) for i in range(8)]
            with pytest.raises(ZeroDivisionError):
                Parallel()(delayed(divmod)(i, 0) for i in range(2))
            session = session_for(cluster)
            self.job_key = base64.b64encode(session.key).decode()
            # While it lives: at its end the job goes, with all that its tasks left on the nodes.
            self._look_at_nodes(host)
            self._look_at_service(host, config.name, session.job)
            self.seen["reprs"] = f"{cluster!r} {config!r} {account!r} {cluster.connections!r} {session!r}"
            self.seen["reprs"] += f"{cluster.status()!r} {cluster.nodes()!r} {cluster.files(cluster.nodes()[0].id)!r}"
        errors = []
        wrong = account.model_copy(update={"batch_key": type(account.batch_key)(secrets.token_hex(16))})  # type: ignore[misc]
        failing = (
            lambda: Cluster.list(wrong),
            lambda: cluster.blobs.read("nowhere", "nothing"),
            lambda: Cluster.create(config.model_copy(update={"vm_size": "Emulated_C2", "mounts": ()}), account),
        )
        for fails in failing:
            with pytest.raises(JoblibAzureError) as caught:
                fails()
            errors += [str(caught.value), repr(caught.value), repr(caught.value.__cause__)]
        self.seen["errors"] = "\n".join(errors)
        close_sessions(cluster)
        cluster.delete(wait=True)
        cluster.close()
        self.seen["the emulator's record of requests"] = host.batch_access_log.read_text()
        self.seen["the emulator's log"] = (host.folder / "batch.log").read_text()
        storage_log = host.storage_access_log
        assert storage_log is not None
        self.seen["the storage's record of requests"] = storage_log.read_text()

    def _look_at_nodes(self, host: LocalHost) -> None:
        for path in sorted((host.folder / "nodes").rglob("*")):
            if path.is_file() and not path.is_symlink():
                self.seen[f"node file {path.relative_to(host.folder)}"] = path.read_bytes().decode(errors="replace")
        for process in processes_of(host.run_id):
            folder = Path(f"/proc/{process.pid}")
            try:
                command = folder.joinpath("cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            self.commands[f"process {process.pid}"] = command

    def _look_at_service(self, host: LocalHost, pool: str, job: str) -> None:
        key = AzureNamedKeyCredential(host.account_name, host.account_key)
        with BatchClient(host.batch_endpoint, key, logging_enable=False) as client:
            self.seen["the pool as the service tells it"] = str(client.get_pool(pool).as_dict())
            nodes = [node.as_dict() for node in client.list_nodes(pool)]
            tasks = [task.as_dict() for task in client.list_tasks(job)]
            self.seen["the nodes as the service tells them"] = str(nodes)
            self.seen["the tasks as the service tells them"] = str(tasks)
            assert tasks
            self.job_settings = str(client.get_job(job).as_dict())


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    handler, root = _Records(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        with LocalHost(running_azurite_port=None) as host:
            yield Run(host, handler.lines)
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


def _forms(value: str) -> set[str]:
    """A value as it may be written: as it is, in a URL, in JSON, its bytes in hexadecimal."""
    from urllib.parse import quote

    raw = (
        base64.b64decode(value) if len(value) % 4 == 0 and re.fullmatch(r"[A-Za-z0-9+/]+=*", value) else value.encode()
    )
    return {value, quote(value, safe=""), quote(value), value.replace("/", "\\/"), raw.hex()}


def _found(values: dict[str, str], places: dict[str, str]) -> list[str]:
    return [
        f"{name} in {place}"
        for name, value in values.items()
        for place, text in places.items()
        if any(form in text for form in _forms(value))
    ]


def test_there_is_much_to_search(run: Run) -> None:
    """Or what follows could not fail."""
    assert "azure.core" in run.seen["the log at DEBUG"] or "Request URL" in run.seen["the log at DEBUG"]
    assert "urllib3" in run.seen["the log at DEBUG"] or "PUT /" in run.seen["the log at DEBUG"]
    assert any("stderr.txt" in place for place in run.seen)
    assert any("all-variables" in place for place in run.seen)
    assert "POST /pools" in run.seen["the emulator's record of requests"]
    assert "PUT /" in run.seen["the storage's record of requests"]
    assert run.environments
    assert _found(run.account_keys, {"here": f"AccountKey={run.account_keys['storage']};"}) == ["storage in here"]


def test_account_keys_are_nowhere(run: Run) -> None:
    places = {**run.seen, "the job's settings": run.job_settings}
    places |= {f"command line of {pid}": text for pid, text in run.commands.items()}
    places |= {f"environment of {pid}": text for pid, text in run.environments.items()}
    assert _found(run.account_keys, places) == []
    assert _found(run.pool_secrets, places) == []


def test_the_jobs_key_is_in_the_jobs_settings_and_nowhere_else(run: Run) -> None:
    assert _found({"the job's key": run.job_key}, {"the job": run.job_settings}) == ["the job's key in the job"]
    places = {place: text for place, text in run.seen.items() if place != "the job's settings"}
    assert _found({"the job's key": run.job_key}, places) == []
    assert _found({"the job's key": run.job_key}, run.commands) == []


def test_signatures_are_in_the_jobs_settings_and_the_storages_own_record_only(run: Run) -> None:
    signed = re.compile(r"[?&]sig=(?!REDACTED|\*)([^&\s\"'\\]{8,})")
    assert signed.search(run.job_settings)
    allowed = {"the storage's record of requests"}
    found = {place for place, text in run.seen.items() if signed.search(text)} - allowed
    # Sources of the calls' modules, this one among them.
    assert {place for place in found if "/overlays/" not in place} == set()
    assert not [text for text in run.commands.values() if signed.search(text)]


def test_signatures_are_scoped(run: Run) -> None:
    """Inputs are only read, outputs only written; none is of the account."""
    tokens = re.findall(r"https?://[^\s'\"]+\?([^\s'\"]*sig=[^\s'\"]+)", run.job_settings)
    assert tokens
    for token in tokens:
        values = dict(part.split("=", 1) for part in token.split("&"))
        assert values["sr"] in ("b", "c"), values["sr"]
        assert set(values["sp"]) in (set("r"), set("acw")), values["sp"]
        assert "ss" not in values


def test_an_error_masks_the_url_that_was_refused() -> None:
    """The service repeats the value of a property that it refuses."""
    from azure.core.exceptions import HttpResponseError

    from joblib_azure.errors import ServiceError
    from joblib_azure.service.faults import translated

    def refused() -> Any:
        raise HttpResponseError(f"InvalidPropertyValue: https://x.example/a?sv=1&sig={FILE_SIGNATURE}&se=2 is no URL")

    with pytest.raises(ServiceError) as caught, translated("creating a pool", "https://b.example"):
        refused()
    assert "sig=***&se=2" in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    assert "HttpResponseError" in shown
    assert FILE_SIGNATURE not in shown


class _Repeats(http.server.BaseHTTPRequestHandler):
    """Refuses whatever it is asked for, and repeats it."""

    def do_GET(self) -> None:
        body = f"<Error><Code>No</Code><Message>http://x{html.escape(self.path)}</Message></Error>".encode()
        self.send_response(400)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Repeats) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_an_answer_that_repeats_a_signature_is_masked(refusing: str) -> None:
    """What a traceback shows of the SDK's own error too."""
    from azure.storage.blob import BlobClient

    from joblib_azure.errors import ServiceError
    from joblib_azure.service.faults import translated

    blob = BlobClient.from_blob_url(f"{refusing}/a/c/b?sv=1&sig={FILE_SIGNATURE}", retry_total=0)
    with blob, pytest.raises(ServiceError) as caught, translated("reading", refusing):
        blob.download_blob()
    shown = "".join(traceback.format_exception(caught.value))
    assert "HttpResponseError" in shown
    assert "sig=***" in shown
    assert FILE_SIGNATURE not in shown


def test_a_node_that_cannot_reach_storage_does_not_say_how_it_would() -> None:
    """The traceback of a task is a file that whoever reads the Batch account may read."""
    from joblib_azure.node.storage import TaskStorage

    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/account"
    token = f"sv=1&sig={FILE_SIGNATURE}"
    storage = TaskStorage(f"{url}/in?{token}", f"{url}/out?{token}", "t")
    for client in (storage._inputs, storage._outputs):
        client._config.retry_policy.total_retries = 0  # or each would take ten seconds
    storage._options["retry_total"] = 0
    tries = (
        storage.read_bundle,
        lambda: storage.aborted("call"),
        lambda: storage.open_outcomes("call"),
        lambda: storage.fetch_buffer(f"{url}/buffers/b?{token}", 10, lambda offset, data: None, None),
        lambda: storage.has_buffer(f"{url}/buffers/b?{token}", 10),
    )
    for fails in tries:
        with pytest.raises(ServiceRequestError) as caught:
            fails()
        shown = "".join(traceback.format_exception(caught.value))
        assert "sig=***" in shown
        assert FILE_SIGNATURE not in shown
