"""What this package asks of Batch and of Storage, and the values that pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Protocol

from .poolspec import (
    AutoscaleRun,
    FileSpec,
    JobState,
    NodeCounts,
    NodeFile,
    NodeState,
    PoolSpec,
    PoolState,
    SupportedImage,
    TaskContainer,
)


@dataclass(frozen=True, kw_only=True)
class Upload:
    """Output files of a task, stored by the service once its process has exited.

    Parameters
    ----------
    pattern : str
        Relative to the task's folder.
    url : str, not shown in the repr
        Of a container with a SAS to write.
    path : str
        Name of the blob, or, where the pattern has wildcards, of the folder above them.
    on : {"tasksuccess", "taskfailure", "taskcompletion"}
    """

    pattern: str
    url: str = field(repr=False)
    path: str
    on: str


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
    given : sequence of FileSpec
        Further ones.
    lifetime : timedelta
        The service ends the job after that.
    container : TaskContainer, optional
        Of the preparation task, in a pool of containers.
    priority : int, default 0
        −1000 to 1000; jobs of a higher one come first on their pool.
    metadata : mapping of str to str
    """

    id: str
    pool: str
    environment: Mapping[str, str] = field(repr=False)
    preparation: str
    files: Mapping[str, str] = field(repr=False)
    lifetime: timedelta
    container: TaskContainer | None = None
    priority: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    given: Sequence[FileSpec] = ()


@dataclass(frozen=True, kw_only=True)
class JobDetails:
    """A job as the service has it.

    Parameters
    ----------
    id, pool, state : str
        The state is ``active``, ``disabling``, ``disabled``, ``enabling``, ``terminating``, ``completed`` or
        ``deleting``.
    created : datetime
    ended : datetime, optional
    reason : str
        Why it ended, as whoever ended it says; ``AllTasksComplete``, ``MaxWallClockTimeExpiry`` or ``UserTerminate``
        where the service does.
    metadata : mapping of str to str
    environment : mapping of str to str, not shown in the repr
        Common to all tasks; empty in listings.
    failure : str
        Why the service could not schedule it.
    lifetime : timedelta, optional
        From its creation on, after which the service ends it; None for a year and more.
    """

    id: str
    pool: str
    state: str
    created: datetime
    ended: datetime | None = None
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    failure: str = ""
    lifetime: timedelta | None = None


@dataclass(frozen=True, kw_only=True)
class TaskCounts:
    """A job's tasks by their states; `succeeded` and `failed` are those that completed. It may lag."""

    active: int
    running: int
    succeeded: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class TaskState:
    """A task as the service has it."""

    id: str
    state: str  #: ``active``, ``preparing``, ``running`` or ``completed``
    created: datetime
    node: str | None = None
    started: datetime | None = None  #: of its last run
    ended: datetime | None = None
    exit_code: int | None = None
    failure: str | None = None  #: code and message where it failed
    retries: int = 0
    requeues: int = 0
    display_name: str = ""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A task to add; `retries` and `timeout` are kept by the service, which also stores its `uploads`."""

    id: str
    command: str
    environment: Mapping[str, str]
    required_slots: int = 1
    display_name: str = ""
    container: TaskContainer | None = None
    retries: int = 0
    timeout: timedelta | None = None
    uploads: Sequence[Upload] = ()


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
    modified: datetime  #: when its content or its metadata were last written


@dataclass(frozen=True, kw_only=True)
class ContainerItem:
    """A container in a listing."""

    name: str
    modified: datetime  #: when it was created or its metadata were last written; blobs in it do not count
    metadata: Mapping[str, str]


class PoolService(Protocol):
    """Pools, their nodes and their images.

    Every method raises `AuthenticationError`, `ServiceUnreachableError` or another `ServiceError`; where the state
    of a pool forbids what is asked (it is being resized, it scales by itself, the ETag is not its own any more) that
    is a `ConflictError`, and a `QuotaError` where the account's quota does.
    """

    def create_pool(self, spec: PoolSpec) -> None:
        """Create a pool. :raises ResourceExistsError: one of that id is there, or is being deleted."""

    def pool(self, pool: str) -> PoolState:
        """:raises ResourceNotFoundError: there is none of that id."""

    def pools(self, prefix: str = "") -> list[PoolState]:
        """Return the account's pools whose ids begin with `prefix`."""

    def update_pool(self, pool: str, *, metadata: Mapping[str, str]) -> None:
        """Replace a pool's metadata."""

    def delete_pool(self, pool: str) -> None:
        """Ask for a pool's deletion, without waiting for its end; one that is not there is no error."""

    def resize_pool(self, pool: str, dedicated: int, spot: int, *, deallocation: str = "taskcompletion") -> None:
        """Ask for other numbers of nodes. :raises ConflictError: the pool is being resized, or scales by itself."""

    def stop_resize(self, pool: str) -> None:
        """Ask for the end of a resize that is going on."""

    def enable_autoscale(
        self, pool: str, formula: str | None = None, interval: timedelta | None = None, *, etag: str = ""
    ) -> None:
        """Let a pool scale by a formula, or by another; evaluated at once, and allowed once in 30 s.

        :raises ConflictError: too early, the pool is being resized, or `etag` is not its own any more.
        """

    def disable_autoscale(self, pool: str) -> None:
        """Let a pool keep the nodes that it has."""

    def evaluate_autoscale(self, pool: str, formula: str) -> AutoscaleRun:
        """Return what a formula gives now, in a pool that scales; nothing is changed."""

    def supported_images(self) -> list[SupportedImage]:
        """Return the images that the service knows, with their node agents."""

    def jobs(self, pool: str) -> list[JobState]:
        """Return the jobs on a pool that have not completed."""

    def nodes(self, pool: str) -> list[NodeState]:
        """Return all nodes of a pool."""

    def node_counts(self, pool: str) -> NodeCounts:
        """Return how many nodes are in each state: one request however many there are; it may lag."""

    def remove_nodes(self, pool: str, nodes: Sequence[str], *, deallocation: str = "taskcompletion") -> None:
        """Take nodes out of a pool, at most 100 at a time, and its targets down with them."""

    def node_files(self, pool: str, node: str, *, recursive: bool = False) -> list[NodeFile]:
        """Return the files below a node's root folder."""

    def node_file(self, pool: str, node: str, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a node's file. :raises ResourceNotFoundError: there is no such node or file."""

    def node_file_tail(self, pool: str, node: str, path: str, size: int = 4096) -> str:
        """Return the end of a text file of a node; empty where it is not to be had."""


class BatchService(PoolService, Protocol):
    """The Batch service; the same errors as `PoolService`."""

    @property
    def endpoint(self) -> str:
        """URL of the account, which no other one has."""

    def create_job(self, spec: JobSpec) -> None:
        """Create a job."""

    def job(self, job: str) -> JobDetails:
        """Return a job with its environment. :raises ResourceNotFoundError: there is none of that id."""

    def job_list(self, prefix: str) -> list[JobDetails]:
        """Return the account's jobs whose ids begin with `prefix`, whatever their state, without their environment."""

    def end_with_tasks(self, job: str) -> None:
        """No further tasks will come: let the service end the job once those that are there have completed."""

    def extend_job(self, job: str, lifetime: timedelta) -> None:
        """Let the job live `lifetime` from its creation on."""

    def running_jobs(self, prefix: str) -> set[str]:
        """Return the ids of the account's jobs that begin with `prefix` and have not completed."""

    def end_job(self, job: str, *, delete: bool, reason: str = "EndedByClient") -> None:
        """Terminate a job, or delete it, without waiting for its end; one that is not there is no error."""

    def add_tasks(self, job: str, tasks: Sequence[TaskSpec]) -> None:
        """Add tasks in collections of up to 100. A task whose id is there already counts as added."""

    def ended_tasks(self, job: str, since: datetime | None) -> list[TaskEnd]:
        """Return the tasks that completed at `since` or later: one request however many run."""

    def task_counts(self, job: str) -> TaskCounts:
        """Return how many tasks are in each state: one request however many there are; it may lag."""

    def tasks(self, job: str) -> Iterator[TaskState]:
        """Yield a job's tasks, a thousand a request."""

    def task(self, job: str, task: str) -> TaskState:
        """:raises ResourceNotFoundError: there is none of that id."""

    def task_files(self, job: str, task: str) -> list[NodeFile]:
        """Return the files of a task. :raises ResourceNotFoundError: it did not start, or its node is gone."""

    def task_file(self, job: str, task: str, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a task's file. :raises ResourceNotFoundError: there is no such task or file."""

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

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes that were stored, and that were read, through this object so far."""

    def create_container(self, container: str, *, metadata: Mapping[str, str] | None = None) -> bool:
        """Create a container; False where it is there already, whose metadata stay."""

    def containers(self, prefix: str) -> Iterable[ContainerItem]:
        """List containers by prefix, with their metadata."""

    def mark_container(self, container: str, metadata: Mapping[str, str]) -> bool:
        """Replace a container's metadata, which makes it modified now; False where it is not there."""

    def delete_container(self, container: str) -> None:
        """Delete a container; one that is not there is no error."""

    def put(
        self,
        container: str,
        name: str,
        data: bytes | memoryview,
        *,
        overwrite: bool = True,
        content: str | None = None,
        wanted: Callable[[], bool] | None = None,
    ) -> bool:
        """Store a blob, a large one in blocks side by side and without a copy of it.

        Parameters
        ----------
        data : bytes or memoryview
            Contiguous.
        overwrite : bool
            Where False and a blob of that name is there, nothing is stored and False is returned.
        content : str, optional
            The content name (`codec.content_name`) that `data` must still have.
        wanted : callable, optional
            Asked before each piece of a large one.

        Raises
        ------
        ContentChangedError
            Where it has another name; nothing is stored then.
        concurrent.futures.CancelledError
            Where it is not wanted any more.
        """

    def blobs(self, container: str, prefix: str) -> Iterable[BlobItem]:
        """List blobs by prefix. :raises ResourceNotFoundError: there is no such container."""

    def stat(self, container: str, name: str) -> BlobItem | None:
        """Return a blob's size and time; None where it is not there."""

    def touch(self, container: str, name: str) -> bool:
        """Make a blob modified now, for those that collect old ones; False where it is not there."""

    def delete(self, container: str, name: str, *, unmodified_since: datetime | None = None) -> bool:
        """Delete a blob; False where it is not there, or was modified later than `unmodified_since`."""

    def read(self, container: str, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return bytes of a blob from `offset` on."""

    def fetch(self, container: str, name: str, offset: int, size: int, sink: Callable[[int, bytes], Any]) -> str:
        """Fetch a range in pieces side by side, and return its content name.

        Parameters
        ----------
        sink : callable
            Takes each piece with its place, counted from `offset`; on several threads and in any order.
        """

    def container_url(self, container: str, permissions: str, lifetime: timedelta) -> str:
        """Return the container's URL with a SAS of these permissions (``r``, ``acw``)."""

    def blob_url(self, container: str, name: str, lifetime: timedelta) -> str:
        """Return the blob's URL with a SAS to read it."""

    def close(self) -> None:
        """Close connections."""
