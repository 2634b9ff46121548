"""`ClusterConfig`: a pool, and how its nodes are used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ..retries import SERVICE_SECONDS
from .base import Settings
from .doazureparallel import R_PACKAGES, cluster_values
from .formulas import check_formula, is_fixed
from .parts import (
    MAX_NODES,
    Bounds,
    ContainerRegistry,
    EnvironmentConfig,
    Image,
    Mount,
    NodePriceConfig,
    PoolSize,
    PythonPackages,
    ResourceFile,
)
from .sizes import architecture_of, cores_of, has_gpu, nearest_size
from .values import Blank, IdentityId, ImageId, Link, Matching, SubnetId, Text

#: The service's bound on task slots a node: 4 for each core, 256 in all.
SLOTS_PER_CORE, MAX_SLOTS = 4, 256
#: More processes than that on one node cost more than they could win by waiting together.
MAX_WORKERS = 256
#: 30 days. Nothing here waits longer on purpose, and larger numbers overflow in timers.
MAX_SECONDS = 30 * 86400
#: Ten years, and a petabyte: more than anybody means, and far from where dates and integers end.
MAX_DAYS, MAX_GIGABYTES = 3650, 1_000_000
_FROM_SIZE: Any = None


def _one_or_many(value: Any) -> Any:
    """A single command may stand without its list."""
    if value is None or value == {}:
        return ()
    return (value,) if isinstance(value, str) and value else value


class ClusterConfig(Settings):
    """A pool, and how its nodes are used.

    Parameters
    ----------
    name : str
        Id of the pool: letters, digits, ``_`` and ``-``, at most 64. ``pool`` is read too.
    vm_size : str
        Azure's name of the nodes' size, for example ``Standard_D4s_v5``.
    cores : int, optional
        Cores of a node; by default those of the size.
    max_tasks_per_node : int or "cores", default 1
        Task slots of a node, 1 to 4 for each core and at most 256. With 1 a call has the whole node for its
        nested loops; with ``"cores"`` each call has one core.
    workers_per_node : int, optional
        Workers that compute at once on a node, over all of its task slots, jobs and clients; by default its cores. More
        than the cores pays for calls that wait on I/O; fewer for calls that need much memory.
    nodes : int, default 1
        Nodes of the pool at most, of both kinds together. Where ``pool_size`` gives no bounds they are dedicated
        nodes, 0 to ``nodes``; where it does, this follows from them.
    pool_size : PoolSize
        Bounds of both kinds of nodes, and the autoscale formula.
    image : Image, optional
        Image of the nodes; by default Ubuntu 24.04 LTS.
    custom_image : str, optional
        Resource id of an image of your own in its place, from a gallery; with ``node_agent_sku``.
    node_agent_sku : str, optional
        Id of Batch's node agent, for example ``batch.node.ubuntu 24.04``; by default the one that the service
        lists for the image.
    container_image : str, optional
        Container image that the tasks run in, with its tag. It has to have Python, joblib and all that the calls
        import.
    container_registry : ContainerRegistry, optional
        Where the container image comes from, if that is no public registry.
    python : str, default "python3"
        The command that starts Python on a node.
    python_packages : PythonPackages
        Python packages beyond those that the client has.
    environment : EnvironmentConfig
        How the nodes get their Python environment.
    command_line : tuple of str
        Commands that each node runs in order when it starts.
    resource_files : tuple of ResourceFile
        Files that each node downloads when it starts.
    subnet_id : str, optional
        Resource id of the subnet that the nodes are in.
    identities : tuple of str
        Resource ids of the user-assigned identities that the nodes have.
    mounts : tuple of Mount
        Shares and containers that the nodes mount.
    metadata : dict of str to str
        Tags of the pool.
    python_path : tuple of str
        Further entries of ``sys.path`` for the calls, where the nodes see the client's file system.
    node_timeout : float, default 900
        Seconds that the first node may take to come up. The source of 15 minutes is the service's own
        default for a resize; nodes take 3 to 8 minutes.
    job_lease : float, default 3600
        Seconds after which the service ends the job of a client that has died.
    idle_timeout : float, default 600
        Seconds without a Parallel call after which a session ends its job.
    keep_blobs : {"on_error", "always", "never"}, default "on_error"
        Whether what a session has stored for itself (calls and their outcomes) stays when it ends: with ``on_error``
        where the infrastructure failed, so that it can be looked at.
    keep_days : float, default 7
        Days for which what is kept stays, before ``joblib-azure storage gc`` or the next session removes it.
    node_cache : float, optional
        Gigabytes that cached buffers may take on a node's disk; by default half of what is free or holds them
        already.
    max_calls_per_worker : int, optional
        Calls after which a node's warm worker process is replaced by a new one, at the end of a task: for code that
        leaks memory. By default a worker is kept.
    warm_runners : bool, default True
        Keep processes with the calls' imports done on the nodes between tasks, so that a task costs milliseconds
        there. They take memory while they are idle, for ten minutes at most.
    retries : int, default 2
        How often a bundle that the infrastructure lost is run again.
    prices : NodePriceConfig
        What a node costs, for estimates.
    service_timeout : float, default 120
        Seconds for which Batch or Storage may refuse a request for now, or be out of reach, before what needs it fails;
        on the nodes too. A single request takes a quarter of it at most, and 60 seconds.

    Raises
    ------
    ConfigurationError
        All that is wrong, at once.
    """

    answers: ClassVar[Mapping[str, str]] = {"rPackages": R_PACKAGES}
    file_variable: ClassVar[str] = "JOBLIB_AZURE_CLUSTER"
    supersedes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "nodes": ("pool_size.dedicated_nodes", "pool_size.spot_nodes"),
        "pool_size.dedicated_nodes": ("nodes",),
        "pool_size.spot_nodes": ("nodes",),
        "vm_size": ("cores", "prices.dedicated", "prices.spot"),
        "image": ("custom_image", "node_agent_sku"),
        "custom_image": ("image", "node_agent_sku"),
        "container_image": ("container_registry",),
    }
    follows: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "cores": ("vm_size",),
        "nodes": ("pool_size.dedicated_nodes", "pool_size.spot_nodes"),
        "pool_size.dedicated_nodes": ("nodes",),
    }

    name: Annotated[
        str,
        Matching("[A-Za-z0-9_-]{1,64}", "1 to 64 letters, digits, '_' and '-'"),
        Field(validation_alias=AliasChoices("name", "pool"), serialization_alias="name"),
    ]
    vm_size: str
    cores: Annotated[int, Field(ge=1)] = Field(default=_FROM_SIZE, validate_default=True)
    max_tasks_per_node: Annotated[int, Field(ge=1, le=MAX_SLOTS)] = 1
    workers_per_node: Annotated[int | None, Field(ge=1, le=MAX_WORKERS)] = None
    nodes: Annotated[int, Field(ge=1, le=MAX_NODES)] = 1
    pool_size: Annotated[PoolSize, Field(validate_default=True)] = PoolSize()
    image: Image | None = None
    custom_image: Annotated[ImageId | None, Blank] = None
    node_agent_sku: Annotated[Text | None, Blank, Field(validate_default=True)] = None
    container_image: Annotated[Text | None, Blank] = None
    container_registry: Annotated[ContainerRegistry | None, Field(validate_default=True)] = None
    python: Text = "python3"
    python_packages: PythonPackages = PythonPackages()
    environment: EnvironmentConfig = EnvironmentConfig()
    command_line: Annotated[tuple[Link, ...], BeforeValidator(_one_or_many)] = ()
    resource_files: tuple[ResourceFile, ...] = ()
    subnet_id: Annotated[SubnetId | None, Blank] = None
    identities: tuple[IdentityId, ...] = ()
    mounts: tuple[Mount, ...] = ()
    metadata: dict[str, str] = Field(default_factory=dict)
    python_path: tuple[str, ...] = ()
    node_timeout: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = 900.0
    # 3600 s: see DESIGN.md, decision 8. The service takes no constraint below a minute seriously.
    job_lease: Annotated[float, Field(ge=60, le=MAX_SECONDS)] = 3600.0
    idle_timeout: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = 600.0
    keep_blobs: Literal["on_error", "always", "never"] = "on_error"
    keep_days: Annotated[float, Field(gt=0, le=MAX_DAYS)] = 7.0
    node_cache: Annotated[float | None, Field(gt=0, le=MAX_GIGABYTES)] = None
    max_calls_per_worker: Annotated[int | None, Field(ge=1)] = None
    warm_runners: bool = True
    retries: Annotated[int, Field(ge=0, le=10)] = 2
    prices: NodePriceConfig = NodePriceConfig()
    service_timeout: Annotated[float, Field(ge=1, le=MAX_SECONDS)] = SERVICE_SECONDS

    @classmethod
    def prepare(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        """Read doAzureParallel's shape too."""
        return cluster_values(values, where)

    @field_validator("vm_size")
    @classmethod
    def _is_a_size(cls, size: str) -> str:
        if not re.fullmatch("[A-Za-z]+_[A-Za-z0-9_-]+", size):
            hint = f"; did you mean {near!r}?" if (near := nearest_size(size)) else ""
            raise ValueError(f"expected a name as 'Standard_D4s_v5'{hint}")
        return size

    @field_validator("cores", mode="before")
    @classmethod
    def _cores_of_size(cls, cores: Any, info: ValidationInfo) -> Any:
        if cores is not None:
            return cores
        size = info.data.get("vm_size")
        if size is None:
            return 1  # The size's own error is told already.
        try:
            return cores_of(size)
        except ValueError as exc:
            raise PydanticCustomError(
                "other_key", "{text}", {"key": "vmSize", "value": size, "text": str(exc)}
            ) from None

    @field_validator("max_tasks_per_node", mode="before")
    @classmethod
    def _slot_a_core(cls, slots: Any, info: ValidationInfo) -> Any:
        return min(info.data.get("cores", 1), MAX_SLOTS) if slots == "cores" else slots

    @field_validator("max_tasks_per_node")
    @classmethod
    def _check_slots(cls, slots: int, info: ValidationInfo) -> int:
        cores = info.data.get("cores")
        most = min(SLOTS_PER_CORE * cores, MAX_SLOTS) if cores else MAX_SLOTS
        if slots > most:
            raise ValueError(
                f"more than Batch allows on {cores} core(s): at most {SLOTS_PER_CORE} a core and {MAX_SLOTS} in all, "
                f"so 1 to {most} here, or 'cores'"
            )
        return slots

    @field_validator("pool_size")
    @classmethod
    def _nodes_are_bounds(cls, size: PoolSize, info: ValidationInfo) -> PoolSize:
        if not {"dedicated_nodes", "spot_nodes"} & size.model_fields_set:
            bounds = {"dedicated_nodes": Bounds(max=info.data.get("nodes", 1)), "spot_nodes": Bounds(max=0)}
            size = size.model_copy(update=bounds)
        elif size.dedicated_nodes.max + size.spot_nodes.max == 0:
            raise ValueError("a pool of no nodes: raise max of dedicatedNodes or spotNodes")
        try:
            check_formula(size, info.data.get("max_tasks_per_node", 1))
        except ValueError as exc:
            told = {"key": "poolSize.autoscaleFormula", "value": size.autoscale_formula, "text": str(exc)}
            raise PydanticCustomError("other_key", "{text}", told) from None
        return size

    @field_validator("node_agent_sku")
    @classmethod
    def _image_and_agent(cls, agent: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("custom_image") is not None:
            if info.data.get("image") is not None:
                raise ValueError("image and customImage exclude each other: give one of them")
            if agent is None:
                raise ValueError(
                    "customImage needs it, since only you know what is in the image; for example "
                    "'batch.node.ubuntu 24.04'"
                )
        return agent

    @field_validator("container_registry")
    @classmethod
    def _registry_of_an_image(cls, registry: ContainerRegistry | None, info: ValidationInfo) -> Any:
        if registry is not None and "container_image" in info.data and info.data["container_image"] is None:
            raise ValueError("needs containerImage")
        return registry

    @model_validator(mode="after")
    def _count_nodes(self) -> ClusterConfig:
        size = self.pool_size
        most = size.dedicated_nodes.max + size.spot_nodes.max
        if "nodes" in self.model_fields_set and self.nodes != most:
            text = f"the maxima of poolSize add up to {most}; write one of the two"
            raise PydanticCustomError("other_key", "{text}", {"key": "nodes", "value": self.nodes, "text": text})
        # The one value that follows from another; frozen from here on.
        self.__dict__["nodes"] = most
        return self

    @property
    def fixed(self) -> bool:
        """Whether the pool has no autoscale formula; its targets are the maxima then."""
        return is_fixed(self.pool_size)

    @property
    def gpu(self) -> bool:
        """Whether the nodes have a GPU, as far as their size's name tells."""
        return has_gpu(self.vm_size)

    @property
    def architecture(self) -> str:
        """Processors of the nodes, ``x86_64`` or ``aarch64``, as far as their size's name tells."""
        return architecture_of(self.vm_size)

    @property
    def node_workers(self) -> int:
        """Workers that compute at once on a node."""
        return self.workers_per_node or self.cores

    @property
    def warm(self) -> bool:
        """Whether nodes keep runners between tasks: a container ends with its task, and what it left with it."""
        return self.warm_runners and self.container_image is None

    @property
    def workers(self) -> int:
        """Workers of the whole pool at its upper bound: what ``n_jobs=-1`` means."""
        return self.nodes * self.node_workers
