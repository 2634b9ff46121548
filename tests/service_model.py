"""Batch and Storage as a model in memory that a test drives step by step: what nodes do, and what is seen of it.

It keeps to the documented service at the seam of `joblib_azure.service`, and takes every liberty that this one has:
tasks begin in any order, run again, are seen late, listings come in any order and lack what happened a moment ago, and
what a node that was lost wrote turns up after all.
"""

from __future__ import annotations

import base64
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

from joblib.parallel import BatchedCalls

from joblib_azure.cluster import Cluster
from joblib_azure.cluster.connections import Connections
from joblib_azure.codec import content_name, encode_outcome, read_bundle, seal_outcomes, unpack
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.errors import ResourceNotFoundError, ServiceUnreachableError
from joblib_azure.service import (
    BlobItem,
    ContainerItem,
    ImageSpec,
    JobDetails,
    JobSpec,
    NodeCounts,
    NodeState,
    PoolSpec,
    PoolState,
    SupportedImage,
    TaskEnd,
    TaskSpec,
)

EPOCH = datetime(2026, 1, 1, tzinfo=timezone.utc)


@dataclass
class Run:
    """One run of a task on a node: what it will say, and how much of that it has said."""

    blob: str
    chunks: list[tuple[int, bytes]]  #: number and bundle's pickle, in the order of the bundle
    functions: dict[int, Any]
    said: int = 0  #: outcomes
    records: int = 0
    ended: bool = False


@dataclass
class Task:
    """A task as the service has it."""

    spec: TaskSpec
    job: str
    state: str = "active"
    runs: list[Run] = field(default_factory=list)
    requeues: int = 0
    end: TaskEnd | None = None


class Blobs:
    """Containers in memory."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.found: dict[str, dict[str, bytes]] = {}
        self.metadata: dict[str, dict[str, str]] = {}
        self.sent = 0
        #: Requests that fail from now on, as if the service were out of reach.
        self.failing = 0
        self.backwards = False
        #: Closed while bundles are not taken.
        self.gate = threading.Event()
        self.gate.set()

    def _request(self) -> None:
        if self.failing > 0 and threading.current_thread().name.startswith("joblib_azure-monitor"):
            self.failing -= 1
            raise ServiceUnreachableError("the model is out of reach")

    @property
    def moved(self) -> tuple[int, int]:
        return self.sent, 0

    def create_container(self, container: str, *, metadata: Mapping[str, str] | None = None) -> bool:
        with self.lock:
            new = container not in self.found
            self.found.setdefault(container, {})
            self.metadata.setdefault(container, dict(metadata or {}))
            return new

    def containers(self, prefix: str) -> Iterable[ContainerItem]:
        with self.lock:
            return [
                ContainerItem(name=name, modified=datetime.now(timezone.utc), metadata=self.metadata[name])
                for name in self.found
                if name.startswith(prefix)
            ]

    def mark_container(self, container: str, metadata: Mapping[str, str]) -> bool:
        self.metadata[container] = dict(metadata)
        return container in self.found

    def delete_container(self, container: str) -> None:
        with self.lock:
            self.found.pop(container, None)

    def put(
        self, container: str, name: str, data: bytes | memoryview, *, overwrite: bool = True, **settings: Any
    ) -> bool:
        if name.startswith("bundles/") and not self.gate.wait(60.0):
            raise ServiceUnreachableError("the model was out of reach for a minute")
        with self.lock:
            blobs = self._container(container)
            if name in blobs and not overwrite:
                return False
            blobs[name] = bytes(data)
            self.sent += len(blobs[name])
            return True

    def append(self, container: str, name: str, data: bytes) -> None:
        """What a node appends; it may have been given up meanwhile, with all of its blobs."""
        with self.lock:
            blobs = self.found.get(container)
            if blobs is not None:
                blobs[name] = blobs.get(name, b"") + data

    def blobs(self, container: str, prefix: str) -> Iterable[BlobItem]:
        self._request()
        with self.lock:
            return [
                BlobItem(name=name, size=len(data), modified=EPOCH)
                for name, data in sorted(self._container(container).items(), reverse=self.backwards)
                if name.startswith(prefix)
            ]

    def stat(self, container: str, name: str) -> BlobItem | None:
        with self.lock:
            data = self.found.get(container, {}).get(name)
        return None if data is None else BlobItem(name=name, size=len(data), modified=EPOCH)

    def touch(self, container: str, name: str) -> bool:
        return self.stat(container, name) is not None

    def delete(self, container: str, name: str, *, unmodified_since: datetime | None = None) -> bool:
        with self.lock:
            return self._container(container).pop(name, None) is not None

    def read(self, container: str, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self._request()
        with self.lock:
            data = self._container(container).get(name)
        if data is None:
            raise ResourceNotFoundError(f"there is no blob {name}")
        return data[offset : None if length is None else offset + length]

    def fetch(self, container: str, name: str, offset: int, size: int, sink: Any) -> str:
        data = self.read(container, name, offset, size)
        sink(0, data)
        return content_name(memoryview(data))

    def container_url(self, container: str, permissions: str, lifetime: timedelta) -> str:
        return f"https://model/{container}"

    def blob_url(self, container: str, name: str, lifetime: timedelta) -> str:
        return f"https://model/{container}/{name}"

    def close(self) -> None:
        pass

    def _container(self, container: str) -> dict[str, bytes]:
        if container not in self.found:
            raise ResourceNotFoundError(f"there is no container {container}")
        return self.found[container]


class Batch:
    """One pool, its jobs and their tasks."""

    endpoint = "https://model"

    def __init__(self, blobs: Blobs, nodes: int) -> None:
        self._blobs, self._nodes = blobs, nodes
        self.lock = threading.RLock()
        self._pool: PoolSpec | None = None
        self.jobs_found: dict[str, JobSpec] = {}
        self.tasks_found: dict[str, Task] = {}
        self.ends: list[TaskEnd] = []
        #: Ends that listings do not show yet: the latest ones, and any.
        self.hidden = 0
        self.unlisted: set[str] = set()
        self.failing = 0
        self.backwards = False
        #: What a call takes, and of how many tasks that carry bundles each request was.
        self.seconds = 0.5
        self.requests: list[int] = []
        #: How many tasks may be terminated until further ones are allowed.
        self.terminations = threading.Semaphore(1_000_000)
        self._moment = datetime.now(timezone.utc)

    def time_passes(self, seconds: float) -> None:
        """Let the service's clock go on."""
        self._moment += timedelta(seconds=seconds)

    def _now(self) -> datetime:
        """Return the service's clock: a second later each time that something happens."""
        self.time_passes(1.0)
        return self._moment

    # what a session asks ----------------------------------------------------------------------------------

    def supported_images(self) -> list[SupportedImage]:
        image = ImageSpec(publisher="canonical", offer="ubuntu-24_04-lts", sku="server")
        return [SupportedImage(image=image, node_agent_sku="batch.node.ubuntu 24.04", capabilities=("NodeAgent",))]

    def pool(self, pool: str) -> PoolState:
        if self._pool is None:
            raise ResourceNotFoundError(f"there is no pool {pool}")
        return PoolState(
            id=pool,
            state="active",
            allocation="steady",
            vm_size=self._pool.vm_size,
            task_slots_per_node=self._pool.task_slots_per_node,
            spec=self._pool,
            target_dedicated=self._nodes,
            current_dedicated=self._nodes,
        )

    def create_pool(self, spec: PoolSpec) -> None:
        self._pool = spec

    def nodes(self, pool: str) -> list[NodeState]:
        return [NodeState(id=f"node-{number}", state="idle") for number in range(self._nodes)]

    def node_counts(self, pool: str) -> NodeCounts:
        return NodeCounts(dedicated={"idle": self._nodes}, spot={})

    def create_job(self, spec: JobSpec) -> None:
        self.jobs_found[spec.id] = spec

    def job(self, job: str) -> JobDetails:
        spec = self.jobs_found.get(job)
        if spec is None:
            raise ResourceNotFoundError(f"there is no job {job}")
        return JobDetails(id=job, pool=spec.pool, state="active", created=EPOCH, environment=spec.environment)

    def extend_job(self, job: str, lifetime: timedelta) -> None:
        pass

    def running_jobs(self, prefix: str) -> set[str]:
        return {job for job in self.jobs_found if job.startswith(prefix)}

    def end_job(self, job: str, *, delete: bool, reason: str = "") -> None:
        with self.lock:
            self.jobs_found.pop(job, None)

    def add_tasks(self, job: str, tasks: Sequence[TaskSpec]) -> None:
        with self.lock:
            self.requests.append(sum("JOBLIB_AZURE_CALL" in spec.environment for spec in tasks))
            for spec in tasks:
                self.tasks_found.setdefault(spec.id, Task(spec, job))

    def ended_tasks(self, job: str, since: datetime | None) -> list[TaskEnd]:
        with self.lock:
            if self.failing > 0:
                self.failing -= 1
                raise ServiceUnreachableError("the model is out of reach")
            seen = self.ends[: len(self.ends) - self.hidden]
            found = [end for end in seen if (since is None or end.ended >= since) and end.id not in self.unlisted]
            return found[::-1] if self.backwards else found

    def terminate_task(self, job: str, task: str) -> None:
        if not self.terminations.acquire(timeout=60.0):
            raise ServiceUnreachableError("the model was out of reach for a minute")
        with self.lock:
            found = self.tasks_found.get(task)
            if found is not None and found.end is None:
                self._complete(found, 1, "TaskEnded: by the client")

    def task_file_tail(self, job: str, task: str, path: str, size: int = 4096) -> str:
        return ""

    def preparation_failures(self, job: str) -> dict[str, str]:
        return {}

    def close(self) -> None:
        pass

    # what happens -----------------------------------------------------------------------------------------

    def of_calls(self) -> list[Task]:
        """Return the tasks that carry bundles, in the order in which they were added."""
        with self.lock:
            return [task for task in self.tasks_found.values() if "JOBLIB_AZURE_CALL" in task.spec.environment]

    def begin(self, task: Task) -> None:
        """A node begins a task, or begins it again."""
        with self.lock:
            job = self.jobs_found.get(task.job)
            if task.state != "active" or job is None:
                return
            key = base64.b64decode(job.environment["JOBLIB_AZURE_KEY"])
            data = self._blobs.read(f"{task.job}-in", f"bundles/{task.spec.id}")
            bundle = read_bundle(key, f"{task.job}/{task.spec.id}", data)
            call = task.spec.environment["JOBLIB_AZURE_CALL"]
            run = Run(
                blob=f"{call}/{task.spec.id}/{len(task.runs):03d}",
                chunks=[(number, bytes(record.body)) for number, record in bundle.chunks.items()],
                functions={number: unpack(bytes(record.body)) for number, record in bundle.functions.items()},
            )
            task.state = "running"
            task.runs.append(run)

    def say(self, task: Task, run: Run, outcomes: int) -> None:
        """A run computes further calls and stores their outcomes; also one that the service has given up."""
        with self.lock:
            said: list[tuple[dict[str, Any], bytes]] = []
            for number, pickle in run.chunks[run.said : run.said + outcomes]:
                items, backend, n_jobs = unpack(pickle)
                items = [(run.functions.get(f, f) if isinstance(f, int) else f, a, k) for f, a, k in items]
                try:
                    value = BatchedCalls(items, (run.functions.get(backend, backend), n_jobs))()
                    head: dict[str, Any] = {"ok": True}
                except Exception as exc:
                    value, head = (exc, "on the model"), {"ok": False}
                head |= {"chunk": number, "seconds": self.seconds * len(items), "calls": len(items)}
                said.append((head, bytes(encode_outcome(value, each=head["ok"]))))  # type: ignore[arg-type]
                run.said += 1
            self._append(task, run, said)

    def finish(self, task: Task) -> None:
        """A task does what is left and ends well."""
        with self.lock:
            if task.state != "running":
                return
            run = task.runs[-1]
            self.say(task, run, len(run.chunks))
            self._append(task, run, [({"end": {"node": "node-0", "begun": 0.0, "ended": 1.0}}, b"")])
            self._complete(task, 0, None)

    def lose(self, task: Task) -> None:
        """A task ends without a word."""
        with self.lock:
            if task.end is None:
                self._complete(task, 1, "TaskKilled: the model has killed it")

    def preempt(self, task: Task) -> None:
        """Its node goes: the service begins it again elsewhere."""
        with self.lock:
            if task.state == "running":
                task.state, task.requeues = "active", task.requeues + 1

    def _append(self, task: Task, run: Run, outcomes: list[tuple[dict[str, Any], bytes]]) -> None:
        job = self.jobs_found.get(task.job)
        if job is None or run.ended:
            return
        key = base64.b64decode(job.environment["JOBLIB_AZURE_KEY"])
        records = list(seal_outcomes(key, f"{task.job}/{run.blob}", run.records, outcomes))
        run.records += len(records)
        run.ended = any("end" in head for head, _ in outcomes)
        self._blobs.append(f"{task.job}-out", run.blob, b"".join(records))

    def _complete(self, task: Task, code: int, failure: str | None) -> None:
        task.state = "completed"
        task.end = TaskEnd(
            id=task.spec.id, ended=self._now(), exit_code=code, node="node-0", failure=failure, requeues=task.requeues
        )
        self.ends.append(task.end)


class _Connections(Connections):
    def __init__(self, account: AccountConfig, batch: Any, blobs: Any) -> None:
        super().__init__(account)
        self._batch, self._blobs = batch, blobs


class ModelCluster(Cluster):
    """A cluster on the model; the client's side of it is the real one."""

    def __init__(self, nodes: int = 2, slots: int = 1, retries: int = 2) -> None:
        self.model_blobs = Blobs()
        self.model = Batch(self.model_blobs, nodes)
        config = ClusterConfig.read(
            {
                "name": "model",
                "vm_size": "Emulated_C2",
                "cores": 2,
                "nodes": nodes,
                "pool_size": {"autoscale_formula": "FIXED"},
                "max_tasks_per_node": slots,
                "python": sys.executable,
                "retries": retries,
            },
            "the model",
        )
        key = base64.b64encode(b"model").decode()
        account = AccountConfig.read(
            {
                "batch_account": "model",
                "batch_endpoint": "https://model",
                "batch_key": key,
                "storage_account": "model",
                "storage_key": key,
            },
            "the model",
        )
        super().__init__(config, account)
        self._connections = _Connections(account, self.model, self.model_blobs)
