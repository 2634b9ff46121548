"""What passes between this package and Batch about pools, nodes and images: plain, frozen values.

A `PoolSpec` goes one way, into a pool's creation, and comes back inside a `PoolState`, as the service has it: what
was asked for and what is there are compared as the same kind of value. Secrets (a registry's password, a mount's
key) go out only, are neither shown nor compared, and come back empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

#: What the service takes where a pool names no resize timeout.
RESIZE_TIMEOUT = timedelta(minutes=15)


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """A marketplace image by its names, or a custom one by its ARM id."""

    publisher: str = ""
    offer: str = ""
    sku: str = ""
    version: str = "latest"
    id: str = ""

    def __str__(self) -> str:
        return self.id or f"{self.publisher}/{self.offer}/{self.sku}/{self.version}"


@dataclass(frozen=True, kw_only=True)
class RegistrySpec:
    """A container registry; by a password, or by an identity of the pool (its ARM id)."""

    server: str
    username: str = ""
    password: str = field(default="", repr=False, compare=False)
    identity: str = ""


@dataclass(frozen=True, kw_only=True)
class ContainerSpec:
    """What makes nodes run tasks in containers: images that they pull when they start, and where from."""

    images: tuple[str, ...]
    registries: tuple[RegistrySpec, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TaskContainer:
    """The container of a task."""

    image: str
    options: str = ""  #: of ``docker run``, as ``--ipc=host``


@dataclass(frozen=True, kw_only=True)
class FileSpec:
    """A resource file of a start task: one of the three sources. URLs may carry a SAS, so they are not shown."""

    http_url: str = field(default="", repr=False)
    storage_container_url: str = field(default="", repr=False)
    auto_storage_container_name: str = ""
    file_path: str = ""
    blob_prefix: str = ""
    file_mode: str = ""
    identity: str = ""


@dataclass(frozen=True, kw_only=True)
class StartTaskSpec:
    """What a node runs before its first task, as the pool's administrator."""

    command: str
    files: tuple[FileSpec, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    retries: int = 1


@dataclass(frozen=True, kw_only=True)
class MountSpec:
    """A share or a blob container below ``AZ_BATCH_NODE_MOUNTS_DIR``."""

    kind: str  #: azure_files or blob_container
    account: str
    source: str
    path: str
    url: str = ""  #: of an Azure Files share
    key: str = field(default="", repr=False, compare=False)
    sas: str = field(default="", repr=False, compare=False)
    identity: str = ""
    options: str = ""


@dataclass(frozen=True, kw_only=True)
class AutoscaleSpec:
    """A formula, and how often the service evaluates it."""

    formula: str
    interval: timedelta = timedelta(minutes=15)


@dataclass(frozen=True, kw_only=True)
class PoolSpec:
    """A pool to create; or, in a `PoolState`, a pool as it is.

    Parameters
    ----------
    id, vm_size : str
    task_slots_per_node : int
    image : ImageSpec
    node_agent_sku : str
    dedicated_nodes, spot_nodes : int
        Fixed targets; without meaning where there is an `autoscale`.
    autoscale : AutoscaleSpec, optional
    containers : ContainerSpec, optional
    start_task : StartTaskSpec, optional
    subnet_id : str
        ARM id of a subnet; empty for a network of Batch's own.
    identities : tuple of str
        ARM ids of user-assigned identities.
    mounts : tuple of MountSpec
    metadata : mapping of str to str
    """

    id: str
    vm_size: str
    task_slots_per_node: int
    image: ImageSpec
    node_agent_sku: str
    dedicated_nodes: int = 0
    spot_nodes: int = 0
    autoscale: AutoscaleSpec | None = None
    containers: ContainerSpec | None = None
    start_task: StartTaskSpec | None = None
    subnet_id: str = ""
    identities: tuple[str, ...] = ()
    mounts: tuple[MountSpec, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def management_reasons(self) -> tuple[str, ...]:
        """Why only Azure Resource Manager can create it, in the terms of the configuration; empty where Batch can."""
        reasons = {
            "identities": self.identities,
            "subnetId": self.subnet_id,
            "customImage": self.image.id,
        }
        return tuple(name for name, given in reasons.items() if given)


@dataclass(frozen=True, kw_only=True)
class AutoscaleRun:
    """An evaluation of a formula."""

    moment: datetime
    results: str = ""  #: ``$name=value;…``
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class PoolState:
    """What the service says of a pool. All times are the service's."""

    id: str
    state: str
    allocation: str
    vm_size: str
    task_slots_per_node: int
    spec: PoolSpec
    etag: str = ""
    created: datetime | None = None
    modified: datetime | None = None  #: of its settings; nodes that change state do not count
    allocation_since: datetime | None = None
    target_dedicated: int = 0
    target_spot: int = 0
    current_dedicated: int = 0
    current_spot: int = 0
    resize_errors: tuple[str, ...] = ()
    autoscale: AutoscaleSpec | None = None
    autoscale_run: AutoscaleRun | None = None

    @property
    def target_nodes(self) -> int:
        """Nodes of both kinds that the pool is to have."""
        return self.target_dedicated + self.target_spot

    @property
    def current_nodes(self) -> int:
        """Nodes of both kinds that it has, the preempted ones too."""
        return self.current_dedicated + self.current_spot


@dataclass(frozen=True, kw_only=True)
class NodeState:
    """What the service says of a node."""

    id: str
    state: str
    errors: tuple[str, ...] = ()
    dedicated: bool = True
    since: datetime | None = None  #: of its state
    allocated: datetime | None = None  #: when it came to the pool
    start_task_exit: int | None = None
    running_tasks: int = 0
    scheduling: bool = True  #: takes new tasks


@dataclass(frozen=True, kw_only=True)
class NodeCounts:
    """Nodes by state, without the states that none is in. The service may lag behind."""

    dedicated: Mapping[str, int]
    spot: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class NodeFile:
    """A file or a folder of a node."""

    name: str
    directory: bool
    size: int = 0
    modified: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class SupportedImage:
    """An image that Batch knows, with the node agent that it needs."""

    image: ImageSpec
    node_agent_sku: str
    os: str = "linux"
    capabilities: tuple[str, ...] = ()
    end_of_life: datetime | None = None
    verified: bool = True


@dataclass(frozen=True, kw_only=True)
class JobState:
    """A job of a pool."""

    id: str
    state: str
    pool: str
    created: datetime | None = None
