"""Pools that only Azure Resource Manager creates, through azure-mgmt-batch, an extra: ``joblib_azure[management]``.

Identities, subnets and images of a gallery concern resources beyond the Batch account, so Azure asks who the caller
is there too: an Entra identity, never a shared key. Once created, such a pool is used as any other.
"""

from __future__ import annotations

import re
from typing import Any

from azure.core import MatchConditions
from azure.core.credentials import TokenCredential

from ..errors import ConfigurationError, ConflictError, MissingExtraError, ResourceExistsError
from .credentials import client_options
from .faults import translated
from .poolspec import RESIZE_TIMEOUT, ContainerSpec, FileSpec, MountSpec, PoolSpec, StartTaskSpec

_ACCOUNT_ID = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)"
    r"/providers/Microsoft\.Batch/batchAccounts/(?P<account>[^/]+)",
    re.IGNORECASE,
)
_PIP = 'python -m pip install "joblib_azure[management]"'


def missing(package: str, exc: ImportError) -> MissingExtraError:
    """Return the error for a package of the extra that is not installed."""
    return MissingExtraError(f"{package} is not installed; it comes with the extra [management]: {_PIP} ({exc})")


class AzureManagement:
    """The management plane of a Batch account.

    Parameters
    ----------
    resource_id : str
        The account's.
    credential : TokenCredential
    endpoint : str
        Of Azure Resource Manager, the cloud's.

    Raises
    ------
    ConfigurationError
        Where the resource id is none.
    MissingExtraError
    """

    def __init__(self, resource_id: str, credential: TokenCredential, *, endpoint: str) -> None:
        found = _ACCOUNT_ID.fullmatch(resource_id)
        if found is None:
            raise ConfigurationError(f"batchResourceId = {resource_id!r}: not the resource id of a Batch account")
        try:
            from azure.mgmt.batch import BatchManagementClient
        except ImportError as exc:
            raise missing("azure-mgmt-batch", exc) from exc
        self.endpoint = endpoint
        self._group, self._account = found["group"], found["account"]
        self._client = BatchManagementClient(
            credential,
            found["subscription"],
            base_url=endpoint,
            credential_scopes=[f"{endpoint}/.default"],
            **client_options(endpoint),
        )

    def __repr__(self) -> str:
        return f"AzureManagement({self._account!r})"

    def create_pool(self, spec: PoolSpec) -> None:
        """Create a pool; it is in the Batch account when this returns. :raises ResourceExistsError: it is there."""
        doing = "creating a pool through Azure Resource Manager"
        try:
            with translated(doing, self.endpoint):
                # Without If-None-Match a pool that is there would be changed.
                self._client.pool.create(
                    self._group,
                    self._account,
                    spec.id,
                    pool_parameters(spec),
                    etag="*",
                    match_condition=MatchConditions.IfMissing,
                )
        except ConflictError as exc:
            if exc.context.get("status") != 412:
                raise
            raise ResourceExistsError(f"{doing}: there is one of that name", pool=spec.id) from exc

    def close(self) -> None:
        """Close connections."""
        self._client.close()


def pool_parameters(spec: PoolSpec) -> Any:
    """Return the pool as azure-mgmt-batch takes it."""
    from azure.mgmt.batch import models

    if spec.autoscale is not None:
        scale = models.ScaleSettings(
            auto_scale=models.AutoScaleSettings(
                formula=spec.autoscale.formula, evaluation_interval=spec.autoscale.interval
            )
        )
    else:
        scale = models.ScaleSettings(
            fixed_scale=models.FixedScaleSettings(
                target_dedicated_nodes=spec.dedicated_nodes,
                target_low_priority_nodes=spec.spot_nodes,
                resize_timeout=RESIZE_TIMEOUT,
            )
        )
    properties = models.PoolProperties(
        vm_size=spec.vm_size,
        task_slots_per_node=spec.task_slots_per_node,
        deployment_configuration=models.DeploymentConfiguration(virtual_machine_configuration=_machine(spec)),
        scale_settings=scale,
        task_scheduling_policy=models.TaskSchedulingPolicy(node_fill_type=models.ComputeNodeFillType.SPREAD),
    )
    if spec.start_task is not None:
        properties.start_task = _start_task(spec.start_task)
    if spec.subnet_id:
        properties.network_configuration = models.NetworkConfiguration(subnet_id=spec.subnet_id)
    if spec.mounts:
        properties.mount_configuration = [_mount(mount) for mount in spec.mounts]
    if spec.metadata:
        properties.metadata = [models.MetadataItem(name=name, value=value) for name, value in spec.metadata.items()]
    pool = models.Pool(properties=properties)
    if spec.identities:
        pool.identity = models.BatchPoolIdentity(
            type=models.PoolIdentityType.USER_ASSIGNED,
            user_assigned_identities={each: models.UserAssignedIdentities() for each in spec.identities},
        )
    return pool


def _machine(spec: PoolSpec) -> Any:
    from azure.mgmt.batch import models

    image = spec.image
    reference = (
        models.ImageReference(id=image.id)
        if image.id
        else models.ImageReference(publisher=image.publisher, offer=image.offer, sku=image.sku, version=image.version)
    )
    machine = models.VirtualMachineConfiguration(image_reference=reference, node_agent_sku_id=spec.node_agent_sku)
    if spec.containers is not None:
        machine.container_configuration = _containers(spec.containers)
    return machine


def _containers(spec: ContainerSpec) -> Any:
    from azure.mgmt.batch import models

    registries = [
        models.ContainerRegistry(
            registry_server=each.server,
            user_name=each.username or None,
            password=each.password or None,
            identity_reference=_identity(each.identity),
        )
        for each in spec.registries
    ]
    return models.ContainerConfiguration(
        type=models.ContainerType.DOCKER_COMPATIBLE,
        container_image_names=list(spec.images),
        container_registries=registries or None,
    )


def _start_task(spec: StartTaskSpec) -> Any:
    from azure.mgmt.batch import models

    return models.StartTask(
        command_line=spec.command,
        resource_files=[_file(file) for file in spec.files] or None,
        environment_settings=[
            models.EnvironmentSetting(name=name, value=value) for name, value in spec.environment.items()
        ]
        or None,
        user_identity=models.UserIdentity(
            auto_user=models.AutoUserSpecification(
                scope=models.AutoUserScope.POOL, elevation_level=models.ElevationLevel.ADMIN
            )
        ),
        max_task_retry_count=spec.retries,
        wait_for_success=True,
    )


def _file(spec: FileSpec) -> Any:
    from azure.mgmt.batch import models

    return models.ResourceFile(
        http_url=spec.http_url or None,
        storage_container_url=spec.storage_container_url or None,
        auto_storage_container_name=spec.auto_storage_container_name or None,
        file_path=spec.file_path or None,
        blob_prefix=spec.blob_prefix or None,
        file_mode=spec.file_mode or None,
        identity_reference=_identity(spec.identity),
    )


def _mount(spec: MountSpec) -> Any:
    from azure.mgmt.batch import models

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


def _identity(resource_id: str) -> Any:
    from azure.mgmt.batch import models

    return models.ComputeNodeIdentityReference(resource_id=resource_id) if resource_id else None
