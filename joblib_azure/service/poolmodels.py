"""`PoolSpec` to the azure-batch SDK's models, and its pools and nodes back to plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from azure.batch import models

from .poolspec import (
    RESIZE_TIMEOUT,
    AutoscaleRun,
    AutoscaleSpec,
    ContainerSpec,
    FileSpec,
    ImageSpec,
    MountSpec,
    NodeCounts,
    NodeFile,
    NodeState,
    PoolSpec,
    PoolState,
    RegistrySpec,
    StartTaskSpec,
    SupportedImage,
)

#: The start task installs what the image lacks: it needs an administrator, one and the same on every run.
ADMIN = models.UserIdentity(
    auto_user=models.AutoUserSpecification(scope=models.AutoUserScope.POOL, elevation_level=models.ElevationLevel.ADMIN)
)
#: What the service says where a pool names none.
_DEFAULT_INTERVAL = timedelta(minutes=15)


# out ----------------------------------------------------------------------------------------------------


def create_options(spec: PoolSpec) -> models.BatchPoolCreateOptions:
    """Return the pool as the service's operation takes it."""
    options = models.BatchPoolCreateOptions(
        id=spec.id,
        vm_size=spec.vm_size,
        task_slots_per_node=spec.task_slots_per_node,
        virtual_machine_configuration=_machine(spec),
        task_scheduling_policy=models.BatchTaskSchedulingPolicy(node_fill_type=models.BatchNodeFillType.SPREAD),
        resize_timeout=RESIZE_TIMEOUT if spec.autoscale is None else None,
    )
    if spec.autoscale is None:
        options.target_dedicated_nodes = spec.dedicated_nodes
        options.target_low_priority_nodes = spec.spot_nodes
    else:
        options.enable_auto_scale = True
        options.auto_scale_formula = spec.autoscale.formula
        options.auto_scale_evaluation_interval = spec.autoscale.interval
    if spec.start_task is not None:
        options.start_task = start_task(spec.start_task)
    if spec.subnet_id:
        options.network_configuration = models.NetworkConfiguration(subnet_id=spec.subnet_id)
    if spec.mounts:
        options.mount_configuration = [_mount(mount) for mount in spec.mounts]
    if spec.metadata:
        options.metadata = metadata(spec.metadata)
    return options


def start_task(spec: StartTaskSpec) -> models.BatchStartTask:
    """Return a start task; it runs as administrator and holds the node back until it has succeeded."""
    return models.BatchStartTask(
        command_line=spec.command,
        resource_files=[resource_file(file) for file in spec.files] or None,
        environment_settings=settings(spec.environment) or None,
        user_identity=ADMIN,
        max_task_retry_count=spec.retries,
        wait_for_success=True,
    )


def settings(environment: Mapping[str, str]) -> list[models.EnvironmentSetting]:
    """Return environment settings of a task."""
    return [models.EnvironmentSetting(name=name, value=value) for name, value in environment.items()]


def metadata(values: Mapping[str, str]) -> list[models.BatchMetadataItem]:
    """Return a pool's metadata."""
    return [models.BatchMetadataItem(name=name, value=value) for name, value in values.items()]


def _machine(spec: PoolSpec) -> models.VirtualMachineConfiguration:
    image = spec.image
    reference = (
        models.BatchVmImageReference(virtual_machine_image_id=image.id)
        if image.id
        else models.BatchVmImageReference(
            publisher=image.publisher, offer=image.offer, sku=image.sku, version=image.version
        )
    )
    machine = models.VirtualMachineConfiguration(image_reference=reference, node_agent_sku_id=spec.node_agent_sku)
    if spec.containers is not None:
        machine.container_configuration = models.BatchContainerConfiguration(
            type=models.ContainerType.DOCKER_COMPATIBLE,
            container_image_names=list(spec.containers.images),
            container_registries=[registry(each) for each in spec.containers.registries] or None,
        )
    return machine


def registry(spec: RegistrySpec) -> models.ContainerRegistryReference:
    """Return a container registry with its credentials."""
    return models.ContainerRegistryReference(
        registry_server=spec.server,
        username=spec.username or None,
        password=spec.password or None,
        identity_reference=_identity(spec.identity),
    )


def _identity(resource_id: str) -> models.BatchNodeIdentityReference | None:
    return models.BatchNodeIdentityReference(resource_id=resource_id) if resource_id else None


def resource_file(spec: FileSpec) -> models.ResourceFile:
    """Return a resource file of a task."""
    return models.ResourceFile(
        http_url=spec.http_url or None,
        storage_container_url=spec.storage_container_url or None,
        auto_storage_container_name=spec.auto_storage_container_name or None,
        file_path=spec.file_path or None,
        blob_prefix=spec.blob_prefix or None,
        file_mode=spec.file_mode or None,
        identity_reference=_identity(spec.identity),
    )


def _mount(spec: MountSpec) -> models.MountConfiguration:
    if spec.kind == "azure_files":
        share = models.AzureFileShareConfiguration(
            account_name=spec.account,
            account_key=spec.key,
            azure_file_url=spec.url,
            relative_mount_path=spec.path,
            mount_options=spec.options or None,
        )
        return models.MountConfiguration(azure_file_share_configuration=share)
    container = models.AzureBlobFileSystemConfiguration(
        account_name=spec.account,
        container_name=spec.source,
        relative_mount_path=spec.path,
        account_key=spec.key or None,
        sas_key=spec.sas or None,
        blobfuse_options=spec.options or None,
        identity_reference=_identity(spec.identity),
    )
    return models.MountConfiguration(azure_blob_file_system_configuration=container)


# back ---------------------------------------------------------------------------------------------------


def pool_state(found: models.BatchPool) -> PoolState:
    """Return a pool as a plain value."""
    autoscale = None
    if found.enable_auto_scale:
        interval = found.auto_scale_evaluation_interval or _DEFAULT_INTERVAL
        autoscale = AutoscaleSpec(formula=found.auto_scale_formula or "", interval=interval)
    return PoolState(
        id=found.id,
        state=text(found.state),
        allocation=text(found.allocation_state),
        vm_size=found.vm_size,
        task_slots_per_node=found.task_slots_per_node or 1,
        spec=_spec(found, autoscale),
        etag=found.etag or "",
        created=found.creation_time,
        modified=found.last_modified,
        allocation_since=found.allocation_state_transition_time,
        target_dedicated=found.target_dedicated_nodes or 0,
        target_spot=found.target_low_priority_nodes or 0,
        current_dedicated=found.current_dedicated_nodes or 0,
        current_spot=found.current_low_priority_nodes or 0,
        resize_errors=tuple(_error(error) for error in found.resize_errors or ()),
        autoscale=autoscale,
        autoscale_run=autoscale_run(found.auto_scale_run),
    )


def _spec(found: models.BatchPool, autoscale: AutoscaleSpec | None) -> PoolSpec:
    machine = found.virtual_machine_configuration
    network, identity = found.network_configuration, found.identity
    identities = (identity.user_assigned_identities or ()) if identity is not None else ()
    return PoolSpec(
        id=found.id,
        vm_size=found.vm_size,
        task_slots_per_node=found.task_slots_per_node or 1,
        image=_image(machine.image_reference) if machine is not None else ImageSpec(),
        node_agent_sku=machine.node_agent_sku_id if machine is not None else "",
        dedicated_nodes=found.target_dedicated_nodes or 0,
        spot_nodes=found.target_low_priority_nodes or 0,
        autoscale=autoscale,
        containers=_containers(machine.container_configuration) if machine is not None else None,
        start_task=_start_task(found.start_task),
        subnet_id=(network.subnet_id or "") if network is not None else "",
        identities=tuple(each.resource_id for each in identities),
        mounts=tuple(_mounted(found.mount_configuration or ())),
        metadata={item.name: item.value for item in found.metadata or ()},
    )


def _image(reference: models.BatchVmImageReference) -> ImageSpec:
    return ImageSpec(
        publisher=reference.publisher or "",
        offer=reference.offer or "",
        sku=reference.sku or "",
        version=reference.version or "latest",
        id=reference.virtual_machine_image_id or "",
    )


def _containers(found: models.BatchContainerConfiguration | None) -> ContainerSpec | None:
    if found is None:
        return None
    registries = [
        RegistrySpec(
            server=each.registry_server or "", username=each.username or "", identity=_resource(each.identity_reference)
        )
        for each in found.container_registries or ()
    ]
    return ContainerSpec(images=tuple(found.container_image_names or ()), registries=tuple(registries))


def _resource(reference: models.BatchNodeIdentityReference | None) -> str:
    return (reference.resource_id or "") if reference is not None else ""


def _start_task(found: models.BatchStartTask | None) -> StartTaskSpec | None:
    if found is None:
        return None
    files = [
        FileSpec(
            http_url=each.http_url or "",
            storage_container_url=each.storage_container_url or "",
            auto_storage_container_name=each.auto_storage_container_name or "",
            file_path=each.file_path or "",
            blob_prefix=each.blob_prefix or "",
            file_mode=each.file_mode or "",
            identity=_resource(each.identity_reference),
        )
        for each in found.resource_files or ()
    ]
    return StartTaskSpec(
        command=found.command_line,
        files=tuple(files),
        environment={item.name: item.value or "" for item in found.environment_settings or ()},
        retries=found.max_task_retry_count or 0,
    )


def _mounted(found: Iterable[models.MountConfiguration]) -> Iterable[MountSpec]:
    for each in found:
        share, container = each.azure_file_share_configuration, each.azure_blob_file_system_configuration
        if share is not None:
            yield MountSpec(
                kind="azure_files",
                account=share.account_name,
                source=share.azure_file_url.rstrip("/").rpartition("/")[2],
                url=share.azure_file_url,
                path=share.relative_mount_path,
                options=share.mount_options or "",
            )
        elif container is not None:
            yield MountSpec(
                kind="blob_container",
                account=container.account_name,
                source=container.container_name,
                path=container.relative_mount_path,
                identity=_resource(container.identity_reference),
                options=container.blobfuse_options or "",
            )


def autoscale_run(found: models.AutoScaleRun | None) -> AutoscaleRun | None:
    """Return an evaluation as a plain value."""
    if found is None:
        return None
    error = found.error
    said = _error(error) if error is not None else ""
    return AutoscaleRun(moment=found.timestamp, results=found.results or "", error=said)


def node_state(node: models.BatchNode) -> NodeState:
    """Return a node as a plain value."""
    errors = [_error(error) for error in node.errors or ()]
    info, exit_code = node.start_task_info, None
    if info is not None:
        exit_code = info.exit_code
        if info.failure_info is not None:
            errors.append(failure_text(info.failure_info, exit_code))
    return NodeState(
        id=node.id,
        state=text(node.state),
        errors=tuple(errors),
        dedicated=node.is_dedicated is not False,
        since=node.state_transition_time,
        allocated=node.allocation_time,
        start_task_exit=exit_code,
        running_tasks=node.running_tasks_count or 0,
        scheduling=text(node.scheduling_state) != "disabled",
    )


def node_counts(found: models.BatchPoolNodeCounts) -> NodeCounts:
    """Return the counts that are not zero, by the names that node states have."""
    return NodeCounts(dedicated=_counts(found.dedicated), spot=_counts(found.low_priority))


def _counts(counts: models.BatchNodeCounts | None) -> dict[str, int]:
    if counts is None:
        return {}
    wire = counts.as_dict()
    return {name.lower(): number for name, number in wire.items() if number and name != "total"}


def supported_image(found: models.BatchSupportedImage) -> SupportedImage:
    """Return an image with its node agent."""
    return SupportedImage(
        image=_image(found.image_reference),
        node_agent_sku=found.node_agent_sku_id,
        os=text(found.os_type),
        capabilities=tuple(found.capabilities or ()),
        end_of_life=found.batch_support_end_of_life,
        verified=text(found.verification_type) == "verified",
    )


def failure_text(info: models.BatchTaskFailureInfo | None, exit_code: int | None) -> str:
    """Say why something that ran on a node failed."""
    parts = [] if info is None else [str(info.code or ""), str(info.message or "")]
    parts += [f"{pair.name}: {pair.value}" for pair in (info.details if info is not None else None) or ()]
    said = ": ".join(part for part in parts if part) or "failed"
    return said if exit_code is None else f"{said} (exit code {exit_code})"


def _error(error: Any) -> str:
    values = getattr(error, "error_values", None) or getattr(error, "error_details", None) or ()
    said = f"{error.code}: {error.message}" if error.message else str(error.code)
    details = ", ".join(f"{pair.name}: {pair.value}" for pair in values)
    return f"{said} ({details})" if details else said


def text(value: Any) -> str:
    """Return a wire value of an enumeration."""
    return str(getattr(value, "value", value) or "")


def file_items(files: Iterable[models.BatchNodeFile]) -> list[NodeFile]:
    """Return the files of a node, or of a task, in a listing."""
    found = []
    for each in files:
        properties = each.properties
        found.append(
            NodeFile(
                name=each.name or "",
                directory=bool(each.is_directory),
                size=int(properties.content_length) if properties is not None else 0,
                modified=properties.last_modified if properties is not None else None,
            )
        )
    return found


def span(offset: int, length: int | None) -> str | None:
    """Return the range of bytes to ask for; None for all of them."""
    if length is None:
        return f"bytes={offset}-" if offset else None
    return f"bytes={offset}-{offset + length - 1}"
