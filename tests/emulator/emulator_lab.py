"""Shorthands for tests of the emulator: a client of the unmodified SDK, requests by hand, waiting with deadlines."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import itertools
import json
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any
from urllib.parse import quote, urlsplit

import psutil
import pytest
from azure.batch import BatchClient, models
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import HttpResponseError

from joblib_azure.emulator import BatchEmulator

API = "2025-06-01"
_names = itertools.count(1)


def until(what: Callable[[], Any], seconds: float = 10.0, say: str = "") -> Any:
    """The first true value of `what`, within the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = what()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {say or what}")
        time.sleep(0.01)


def alive_with(name: str, value: str) -> list[psutil.Process]:
    """Living processes whose environment has this variable."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


class Lab:
    """A client of an emulator, with shorthands."""

    def __init__(self, emulator: BatchEmulator) -> None:
        self.emulator = emulator
        self.client = self.client_for(API)

    def client_for(self, version: str, **options: Any) -> BatchClient:
        key = AzureNamedKeyCredential(self.emulator.account_name, options.pop("key", self.emulator.account_key))
        return BatchClient(self.emulator.endpoint, key, api_version=version, retry_total=0, **options)

    @staticmethod
    def name(kind: str) -> str:
        return f"{kind}-{next(_names)}"

    @staticmethod
    def machine() -> models.VirtualMachineConfiguration:
        image = models.BatchVmImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server")
        return models.VirtualMachineConfiguration(image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04")

    def pool(self, nodes: int = 1, slots: int = 1, *, wait: bool = True, size: str = "Emulated_C1", **more: Any) -> str:
        name = self.name("pool")
        more.setdefault("virtual_machine_configuration", self.machine())
        if "target_low_priority_nodes" not in more or nodes:
            more["target_dedicated_nodes"] = nodes
        self.client.create_pool(models.BatchPoolCreateOptions(id=name, vm_size=size, task_slots_per_node=slots, **more))
        if wait:
            self.wait_idle(name, nodes + more.get("target_low_priority_nodes", 0))
        return name

    def nodes(self, pool: str) -> list[models.BatchNode]:
        return list(self.client.list_nodes(pool))

    def wait_idle(self, pool: str, count: int) -> list[models.BatchNode]:
        def idle() -> Any:
            nodes = self.nodes(pool)
            steady = self.client.get_pool(pool).allocation_state == "steady"
            return steady and [node.state for node in nodes] == ["idle"] * count

        until(idle, say=f"{count} idle nodes in {pool}")
        return self.nodes(pool)

    def job(self, pool: str, **more: Any) -> str:
        name = self.name("job")
        self.client.create_job(
            models.BatchJobCreateOptions(id=name, pool_info=models.BatchPoolInfo(pool_id=pool), **more)
        )
        return name

    def task(self, job: str, command: str, name: str | None = None, **more: Any) -> str:
        name = name or self.name("task")
        self.client.create_task(job, models.BatchTaskCreateOptions(id=name, command_line=command, **more))
        return name

    def done(self, job: str, task: str, seconds: float = 10.0) -> models.BatchTask:
        def completed() -> Any:
            found = self.client.get_task(job, task)
            return found if found.state == "completed" else None

        return until(completed, seconds, f"{task} completed")

    def run(self, job: str, command: str, **more: Any) -> models.BatchTask:
        return self.done(job, self.task(job, command, **more))

    def state(self, job: str, task: str, state: str) -> models.BatchTask:
        until(lambda: self.client.get_task(job, task).state == state, say=f"{task} {state}")
        return self.client.get_task(job, task)

    def job_state(self, job: str, state: str) -> models.BatchJob:
        until(lambda: self.client.get_job(job).state == state, say=f"{job} {state}")
        return self.client.get_job(job)

    def text(self, job: str, task: str, path: str = "stdout.txt") -> str:
        return b"".join(self.client.download_task_file(job, task, path)).decode()

    def refused(self, status: int, code: str, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """The error that a call must end with."""
        with pytest.raises(HttpResponseError) as caught:
            call(*args, **options)
        text = caught.value.response.read()  # answers that are streamed are not read yet
        body = json.loads(text) if text else {}
        assert (caught.value.status_code, body.get("code")) == (status, code), body
        return body

    def raw(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        query: str = f"api-version={API}",
        sign: Callable[[str], str] = lambda text: text,
    ) -> tuple[int, dict[str, str], bytes]:
        """A request written by hand, signed independently of the emulator's own code."""
        address = urlsplit(self.emulator.endpoint)
        given = {"ocp-date": formatdate(usegmt=True), **(headers or {})}
        if body is not None:
            given.setdefault("Content-Type", "application/json; odata=minimalmetadata")
            given["Content-Length"] = str(len(body))
        lower = {name.lower(): value for name, value in given.items()}
        length = lower.get("content-length", "" if method in ("GET", "HEAD") else "0")
        rows = [method, lower.get("content-encoding", ""), "", length, "", lower.get("content-type", "")]
        rows += [lower.get(n, "") for n in ("date", "if-modified-since", "if-match", "if-none-match")]
        rows += [lower.get("if-unmodified-since", ""), lower.get("range", "")]
        rows += [f"{name}:{lower[name]}" for name in sorted(lower) if name.startswith("ocp-")]
        rows.append(f"/{self.emulator.account_name}{path}")
        rows += [f"{part.partition('=')[0]}:{part.partition('=')[2]}" for part in sorted(query.split("&")) if part]
        key = base64.b64decode(self.emulator.account_key)
        digest = base64.b64encode(hmac.new(key, "\n".join(rows).encode(), hashlib.sha256).digest()).decode()
        given["Authorization"] = sign(f"SharedKey {self.emulator.account_name}:{digest}")
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
        try:
            full = f"{path}?{quote(query, safe='=&$-.:')}" if query else path
            connection.request(method, full, body, {name: value for name, value in given.items() if value})
            answer = connection.getresponse()
            return answer.status, {n.lower(): v for n, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()
