"""From a configuration to the pool that it describes, and the differences between that and a pool that is there.

What a pool cannot say of itself (its bounds behind a formula, the cores of its size, the nodes' Python) is recorded
in its metadata when it is created, so that who knows its name can use it. Nothing that is secret is recorded.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic.alias_generators import to_camel

from ..autoscale import formula
from ..config import AccountConfig, ClusterConfig, PoolSize
from ..errors import ConfigurationError
from ..service import (
    AutoscaleSpec,
    ContainerSpec,
    FileSpec,
    ImageSpec,
    MountSpec,
    PoolSpec,
    PoolState,
    RegistrySpec,
    StartTaskSpec,
)
from . import supervision
from .floor import without_floor

#: Metadata of a pool: what a client that attaches to it needs to know.
RECORD = "joblib_azure"
#: The parts of a configuration that another client of the pool needs and that the pool itself does not say.
_RECORDED = {"vm_size", "cores", "pool_size", "container_image", "python", "environment", "python_path"}
#: A start task is tried once more: package mirrors fail now and then.
_START_RETRIES = 1
#: What runs the start task, since Batch runs a command line without a shell; and how the user's lines begin.
_SHELL = ("/bin/bash", "-c")
_STRICT = "set -e -o pipefail"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A setting in which a pool is not what the configuration asks for."""

    key: str
    wanted: str
    found: str
    changeable: bool = False  #: by `Cluster.resize`; the others are fixed when a pool is created

    def __str__(self) -> str:
        return f"{self.key}: the configuration says {self.wanted}, the pool has {self.found}"


def pool_spec(config: ClusterConfig, account: AccountConfig, image: ImageSpec, agent: str) -> PoolSpec:
    """Return the pool to create.

    Raises
    ------
    ConfigurationError
        Where the autoscale formula cannot be made.
    """
    size = config.pool_size
    return PoolSpec(
        id=config.name,
        vm_size=config.vm_size,
        task_slots_per_node=config.max_tasks_per_node,
        image=image,
        node_agent_sku=agent,
        dedicated_nodes=size.dedicated_nodes.max,
        spot_nodes=size.spot_nodes.max,
        autoscale=None if config.fixed else autoscale_spec(size, config.max_tasks_per_node),
        containers=_containers(config, account),
        start_task=_start_task(config),
        subnet_id=config.subnet_id or "",
        identities=config.identities,
        mounts=tuple(_mount(mount, account) for mount in config.mounts),
        metadata={**config.metadata, RECORD: json.dumps(_recorded(config), separators=(",", ":"))},
    )


def autoscale_spec(size: PoolSize, slots: int) -> AutoscaleSpec:
    """Return the formula of a pool without a floor. :raises ConfigurationError: it cannot be made."""
    dedicated, spot = size.dedicated_nodes, size.spot_nodes
    try:
        text = formula(
            size.autoscale_formula,
            dedicated=(dedicated.min, dedicated.max),
            spot=(spot.min, spot.max),
            task_slots_per_node=slots,
            idle_seconds=size.idle_shutdown,
            spot_fallback=size.spot_fallback,
            deallocation=size.deallocation,
        )
    except ValueError as exc:
        raise ConfigurationError(f"poolSize.autoscaleFormula is not usable: {exc}") from exc
    return AutoscaleSpec(formula=text, interval=timedelta(seconds=size.evaluation_interval))


def _containers(config: ClusterConfig, account: AccountConfig) -> ContainerSpec | None:
    if config.container_image is None:
        return None
    given = config.container_registry or account.docker_authentication
    registries: tuple[RegistrySpec, ...] = ()
    if given is not None:
        password = given.password.get_secret_value() if given.password is not None else ""
        registries = (
            RegistrySpec(
                server=given.server, username=given.username or "", password=password, identity=given.identity or ""
            ),
        )
    return ContainerSpec(images=(config.container_image,), registries=registries)


def _start_task(config: ClusterConfig) -> StartTaskSpec | None:
    if not (config.warm or config.command_line or config.resource_files):
        return None
    # One command a line: any of them may end with a comment or with "&".
    script = "\n".join(([supervision.prelude()] if config.warm else []) + [_STRICT, *config.command_line])
    files = [
        FileSpec(
            http_url=file.http_url or "",
            storage_container_url=file.storage_container_url or "",
            auto_storage_container_name=file.auto_storage_container_name or "",
            file_path=file.file_path or "",
            blob_prefix=file.blob_prefix or "",
            file_mode=file.file_mode or "",
            identity=file.identity or "",
        )
        for file in config.resource_files
    ]
    return StartTaskSpec(command=shlex.join((*_SHELL, script)), files=tuple(files), retries=_START_RETRIES)


def users_lines(task: StartTaskSpec | None) -> str:
    """Return the part of a start task that a configuration's ``commandLine`` is; all of one that is somebody else's."""
    if task is None:
        return ""
    try:
        *shell, script = shlex.split(task.command)
    except ValueError:
        return task.command
    first, _, rest = supervision.without_prelude(script).partition("\n")
    return rest if tuple(shell) == _SHELL and first == _STRICT else task.command


def _mount(mount: Any, account: AccountConfig) -> MountSpec:
    suffix = account.endpoints.storage_suffix
    return MountSpec(
        kind=mount.kind,
        account=mount.account,
        source=mount.source,
        path=mount.path,
        url=f"https://{mount.account}.file.{suffix}/{mount.source}" if mount.kind == "azure_files" else "",
        key=mount.key.get_secret_value() if mount.key is not None else "",
        sas=mount.sas.get_secret_value() if mount.sas is not None else "",
        identity=mount.identity or "",
        options=mount.options or "",
    )


# what is recorded -----------------------------------------------------------------------------------------


def _recorded(config: ClusterConfig) -> dict[str, Any]:
    values: dict[str, Any] = config.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=_RECORDED)
    values.update(vmSize=config.vm_size, cores=config.cores, poolSize=_size_values(config.pool_size))
    return values


def _size_values(size: PoolSize) -> dict[str, Any]:
    values: dict[str, Any] = size.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    values["dedicatedNodes"] = size.dedicated_nodes.model_dump(mode="json")
    return values


def with_size(metadata: Mapping[str, str], size: PoolSize) -> dict[str, str]:
    """Return a pool's metadata with other bounds recorded."""
    record = {**_record(metadata), "poolSize": _size_values(size)}
    return {**metadata, RECORD: json.dumps(record, separators=(",", ":"))}


def _record(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        found = json.loads(metadata.get(RECORD, "{}"))
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def config_of(found: PoolState, **settings: Any) -> ClusterConfig:
    """Return the configuration of a pool that is there.

    Parameters
    ----------
    found : PoolState
    **settings
        Of `ClusterConfig`, in place of what the pool says or does not say.

    Raises
    ------
    ConfigurationError
        Where the pool is not one of this package and its size's name does not tell the cores.
    """
    values: dict[str, Any] = {"name": found.id, "maxTasksPerNode": found.task_slots_per_node, "vmSize": found.vm_size}
    record = _record(found.spec.metadata)
    values |= record
    if "poolSize" not in record:
        # Somebody else's pool; its formula, if it has one, stays what it is, and its bounds are what is seen of it.
        values["nodes"] = max(found.target_nodes, found.current_nodes, 1)
        formula = "FIXED" if found.autoscale is None else without_floor(found.autoscale.formula)
        values["poolSize"] = {"autoscaleFormula": formula}
        if found.spec.containers is not None and found.spec.containers.images:
            values["containerImage"] = found.spec.containers.images[0]
    given = [name for name in ("vm_size", "max_tasks_per_node", "container_image") if name in settings]
    if given:
        raise ConfigurationError(f"{', '.join(given)}: a pool that is there has these already; leave them out")
    if {"nodes", "pool_size"} & settings.keys():
        values.pop("nodes", None)
        values.pop("poolSize", None)
    for name in settings:
        values.pop(to_camel(name), None)
    return ClusterConfig.read({**values, **settings}, f"pool {found.id!r}")


def recorded_size(found: PoolState) -> PoolSize | None:
    """Return the bounds that this package gave the pool; None where it is somebody else's."""
    values = _record(found.spec.metadata).get("poolSize")
    return None if values is None else PoolSize.read(values, f"metadata of pool {found.id!r}")


# differences ----------------------------------------------------------------------------------------------


def differences(config: ClusterConfig, wanted: PoolSpec, found: PoolState) -> list[Difference]:
    """Name every setting in which a pool differs from what the configuration asks for.

    Real properties are compared, whatever the recorded digest says. What a configuration leaves to this package (the
    image) is not compared.
    """
    return [*_fixed_differences(config, wanted, found.spec), *_size_differences(config, wanted, found)]


def _fixed_differences(config: ClusterConfig, wanted: PoolSpec, found: PoolSpec) -> Iterator[Difference]:
    def differs(key: str, ours: Any, theirs: Any, show: Any = None) -> Iterator[Difference]:
        if ours != theirs:
            say = show or _say
            yield Difference(key=key, wanted=say(ours), found=say(theirs))

    # The service answers with sizes, images and ids in letters of its own choice.
    yield from differs("vmSize", wanted.vm_size.lower(), found.vm_size.lower())
    yield from differs("maxTasksPerNode", wanted.task_slots_per_node, found.task_slots_per_node)
    if config.image is not None or config.custom_image is not None:
        yield from differs("image", str(wanted.image).lower(), str(found.image).lower())
    if config.node_agent_sku is not None:
        yield from differs("nodeAgentSku", wanted.node_agent_sku, found.node_agent_sku)
    ours, theirs = wanted.containers, found.containers
    yield from differs("containerImage", _images(ours), _images(theirs))
    if _images(ours) == _images(theirs):
        yield from differs("containerRegistry", _registries(ours), _registries(theirs))
    yield from differs("commandLine", users_lines(wanted.start_task), users_lines(found.start_task))
    yield from differs("resourceFiles", _files(wanted.start_task), _files(found.start_task))
    yield from differs("subnetId", wanted.subnet_id.lower(), found.subnet_id.lower())
    yield from differs("identities", _ids(wanted.identities), _ids(found.identities))
    yield from differs("mounts", _mounts(wanted.mounts), _mounts(found.mounts))
    tags = {name: found.metadata.get(name) for name in config.metadata}
    yield from differs("metadata", dict(config.metadata), tags)


def _size_differences(config: ClusterConfig, wanted: PoolSpec, found: PoolState) -> Iterator[Difference]:
    def differs(key: str, ours: Any, theirs: Any) -> Iterator[Difference]:
        if ours != theirs:
            yield Difference(key=f"poolSize.{key}", wanted=str(ours), found=str(theirs), changeable=True)

    ours, theirs = wanted.autoscale, found.autoscale
    if ours is None and theirs is None:
        yield from differs("dedicatedNodes", wanted.dedicated_nodes, found.target_dedicated)
        yield from differs("spotNodes", wanted.spot_nodes, found.target_spot)
        return
    if ours is None or theirs is None:
        names = ["a formula" if each is not None else "fixed numbers of nodes" for each in (ours, theirs)]
        yield from differs("autoscaleFormula", *names)
        return
    yield from differs("evaluationInterval", *(f"{each.interval.total_seconds():.0f} s" for each in (ours, theirs)))
    if ours.formula.strip() == without_floor(theirs.formula).strip():
        return
    recorded = recorded_size(found)
    named: list[Difference] = []
    if recorded is not None:
        values, there = config.pool_size.model_dump(by_alias=True), recorded.model_dump(by_alias=True)
        for key in values.keys() - {"evaluationInterval"}:
            named += differs(key, _bounds(values[key]), _bounds(there[key]))
    # Where the record is the same (or there is none), the text was changed by hand, or made by another version.
    yield from sorted(named, key=lambda each: each.key) or differs("autoscaleFormula", "its own", "another text")


def _bounds(value: Any) -> Any:
    return f"{value['min']} to {value['max']}" if isinstance(value, dict) else value


def _say(value: Any) -> str:
    if value in ("", (), None, {}):
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, tuple | frozenset) else repr(value)


def _images(containers: ContainerSpec | None) -> tuple[str, ...]:
    return containers.images if containers is not None else ()


def _registries(containers: ContainerSpec | None) -> tuple[str, ...]:
    registries = containers.registries if containers is not None else ()
    return tuple(f"{each.server} as {each.username or each.identity or 'anybody'}" for each in registries)


def _files(task: StartTaskSpec | None) -> tuple[str, ...]:
    # Behind the "?" stands a SAS, another one whenever it is made.
    files = task.files if task is not None else ()
    return tuple(
        f"{(f.http_url or f.storage_container_url or f.auto_storage_container_name).partition('?')[0]}"
        f"{f' ({f.blob_prefix}…)' if f.blob_prefix else ''} as {f.file_path or '.'} {f.file_mode}".strip()
        for f in files
    )


def _ids(values: tuple[str, ...]) -> frozenset[str]:
    return frozenset(value.lower() for value in values)


def _mounts(mounts: tuple[MountSpec, ...]) -> tuple[str, ...]:
    return tuple(f"{m.kind} {m.account}/{m.source} at {m.path} {m.options}".strip() for m in mounts)
