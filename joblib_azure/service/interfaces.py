"""What this package asks of Batch and of Storage, and the values that pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class PoolSpec:
    """A pool to create."""

    id: str
    vm_size: str
    task_slots_per_node: int
    dedicated_nodes: int
    image: Mapping[str, str]  #: publisher, offer, sku, version
    node_agent_sku: str


@dataclass(frozen=True, kw_only=True)
class PoolState:
    """What the service says of a pool."""

    id: str
    state: str
    allocation: str
    vm_size: str
    task_slots_per_node: int
    target_nodes: int
    resize_errors: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NodeState:
    """What the service says of a node."""

    id: str
    state: str
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """A job to create.

    Parameters
    ----------
    id, pool : str
    environment : mapping of str to str, not shown in the repr
        Common to all tasks of the job; it carries the job's key.
    preparation : str
        Command line of the job preparation task.
    files : mapping of str to str, not shown in the repr
        Resource files of the preparation task: path in its working directory to URL.
    lifetime : timedelta
        The service ends the job after that.
    """

    id: str
    pool: str
    environment: Mapping[str, str] = field(repr=False)
    preparation: str
    files: Mapping[str, str] = field(repr=False)
    lifetime: timedelta


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A task to add."""

    id: str
    command: str
    environment: Mapping[str, str]
    required_slots: int = 1
    display_name: str = ""


@dataclass(frozen=True, kw_only=True)
class TaskEnd:
    """A completed task as the service saw it end."""

    id: str
    ended: datetime
    exit_code: int | None
    node: str | None
    failure: str | None  #: code and message where it failed
    requeues: int = 0


@dataclass(frozen=True, kw_only=True)
class BlobItem:
    """A blob in a listing."""

    name: str
    size: int


class BatchService(Protocol):
    """The Batch service.

    Every method raises `AuthenticationError`, `ServiceUnreachableError` or another `ServiceError`.
    """

    def create_pool(self, spec: PoolSpec) -> None:
        """Create a pool. :raises ResourceExistsError: one of that id is there, or is being deleted."""

    def pool(self, pool: str) -> PoolState:
        """:raises ResourceNotFoundError: there is none of that id."""

    def delete_pool(self, pool: str) -> None:
        """Ask for a pool's deletion, without waiting for its end; one that is not there is no error."""

    def nodes(self, pool: str) -> list[NodeState]:
        """Return all nodes of a pool."""

    def node_file_tail(self, pool: str, node: str, path: str, size: int = 4096) -> str:
        """Return the end of a text file of a node; empty where it is not to be had."""

    def create_job(self, spec: JobSpec) -> None:
        """Create a job."""

    def extend_job(self, job: str, lifetime: timedelta) -> None:
        """Let the job live `lifetime` from its creation on."""

    def end_job(self, job: str, *, delete: bool) -> None:
        """Terminate or delete a job, without waiting for its end; one that is not there is no error."""

    def add_tasks(self, job: str, tasks: Sequence[TaskSpec]) -> None:
        """Add tasks in collections of up to 100. A task whose id is there already counts as added."""

    def ended_tasks(self, job: str, since: datetime | None) -> list[TaskEnd]:
        """Return the tasks that completed at `since` or later: one request however many run."""

    def terminate_task(self, job: str, task: str) -> None:
        """End a task and its processes; one that has ended already is no error."""

    def task_file_tail(self, job: str, task: str, path: str, size: int = 4096) -> str:
        """Return the end of a text file of a task; empty where it is not to be had."""

    def preparation_failures(self, job: str) -> dict[str, str]:
        """Return the nodes where the job preparation task failed, with what happened there."""

    def close(self) -> None:
        """Close connections."""


class BlobService(Protocol):
    """A storage account's blobs; the same errors as `BatchService`."""

    def create_container(self, container: str) -> bool:
        """Create a container; False where it is there already."""

    def delete_container(self, container: str) -> None:
        """Delete a container; one that is not there is no error."""

    def put(self, container: str, name: str, data: bytes | memoryview, *, overwrite: bool = True) -> bool:
        """Store a blob; False where one is there and `overwrite` is False."""

    def blobs(self, container: str, prefix: str) -> Iterable[BlobItem]:
        """List blobs by prefix."""

    def read(self, container: str, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a blob from `offset` on."""

    def container_url(self, container: str, permissions: str, lifetime: timedelta) -> str:
        """Return the container's URL with a SAS of these permissions (``r``, ``acw``)."""

    def blob_url(self, container: str, name: str, lifetime: timedelta) -> str:
        """Return the blob's URL with a SAS to read it."""

    def close(self) -> None:
        """Close connections."""
