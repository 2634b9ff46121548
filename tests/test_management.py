"""Azure Resource Manager, as far as it can be had without Azure: the unmodified azure-mgmt SDKs against a server on
loopback (`arm_lab`) that takes what the REST reference documents and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arm_lab import ACCOUNT_ID, BATCH, GROUP, POOL, SUBSCRIPTION, Manager, problems
from cluster_lab import account_of, config_of
from entra_lab import TENANT, Entra

from joblib_azure.cli.doctor import Doctor
from joblib_azure.cluster import Cluster
from joblib_azure.config import CLOUDS, AccountConfig
from joblib_azure.emulator import BatchEmulator
from joblib_azure.emulator.tls import make_certificate
from joblib_azure.errors import (
    AuthenticationError,
    ClusterError,
    ConfigurationError,
    MissingExtraError,
    PoolDiffersError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from joblib_azure.service import ImageSpec, PoolSpec
from joblib_azure.service.credentials import token_credential

pytest.importorskip("azure.mgmt.batch", reason="needs the extra [management]")
from joblib_azure.service.management import AzureManagement
from joblib_azure.service.provisioning import AccountPlan, Provisioning

SUBNET = f"{GROUP}/providers/Microsoft.Network/virtualNetworks/net/subnets/nodes"
IDENTITY = f"{GROUP}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/reader"
IMAGE = f"{GROUP}/providers/Microsoft.Compute/galleries/ours/images/ubuntu/versions/1.0.0"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def entra(certificate: tuple[Path, Path]) -> Iterator[Entra]:
    with Entra(*certificate) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def trusted(certificate: tuple[Path, Path], entra: Entra) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
        patch.setenv("AZURE_AUTHORITY_HOST", entra.endpoint)
        yield


@pytest.fixture(scope="module")
def emulator(certificate: tuple[Path, Path]) -> Iterator[BatchEmulator]:
    with BatchEmulator(certfile=certificate[0], keyfile=certificate[1], token_signer=certificate[0]) as running:
        yield running


@pytest.fixture
def manager(
    certificate: tuple[Path, Path], emulator: BatchEmulator, trusted: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Manager]:
    with Manager(*certificate, emulator) as running:
        ours = dataclasses.replace(CLOUDS["public"], management=running.endpoint)
        monkeypatch.setitem(CLOUDS, "public", ours)
        yield running


@pytest.fixture
def account(emulator: BatchEmulator, entra: Entra) -> AccountConfig:
    principal = {"tenant_id": TENANT, "client_id": entra.client_id, "credential": entra.secret}
    return account_of(emulator, batch_key=None, service_principal=principal, batch_resource_id=ACCOUNT_ID)


def test_a_pool_with_all_that_only_the_management_plane_knows(account: AccountConfig, manager: Manager) -> None:
    config = config_of(
        2,
        identities=[IDENTITY],
        subnet_id=SUBNET,
        custom_image=IMAGE,
        node_agent_sku="batch.node.ubuntu 24.04",
        container_image="registry.example.org/ours:1",
        container_registry={"server": "registry.example.org", "identity": IDENTITY},
        command_line=["echo hello"],
        resource_files=[
            {"storageContainerUrl": "https://s.blob.core.windows.net/c", "blobPrefix": "data/", "identity": IDENTITY}
        ],
        mounts=[
            {"kind": "blob_container", "account": "store", "source": "data", "path": "data", "identity": IDENTITY},
            {"kind": "azure_files", "account": "store", "source": "share", "path": "share", "key": "c2hhcmUta2V5"},
        ],
        metadata={"team": "blue"},
    )
    cluster = Cluster.create(config, account)
    assert [node.state for node in cluster.nodes()] == ["idle", "idle"]
    body = manager.pools[config.name]
    assert body["identity"] == {"type": "UserAssigned", "userAssignedIdentities": {IDENTITY: {}}}
    properties = body["properties"]
    assert properties["networkConfiguration"] == {"subnetId": SUBNET}
    machine = properties["deploymentConfiguration"]["virtualMachineConfiguration"]
    assert machine["imageReference"] == {"id": IMAGE}
    assert machine["containerConfiguration"]["containerRegistries"] == [
        {"registryServer": "registry.example.org", "identityReference": {"resourceId": IDENTITY}}
    ]
    assert properties["scaleSettings"]["fixedScale"] == {
        "targetDedicatedNodes": 2,
        "targetLowPriorityNodes": 0,
        "resizeTimeout": "PT15M00S",
    }
    assert properties["startTask"]["resourceFiles"][0]["identityReference"] == {"resourceId": IDENTITY}
    blob, share = properties["mountConfiguration"]
    assert blob["azureBlobFileSystemConfiguration"]["identityReference"] == {"resourceId": IDENTITY}
    assert share["azureFileShareConfiguration"]["azureFileUrl"] == "https://store.file.core.windows.net/share"
    assert {"name": "team", "value": "blue"} in properties["metadata"]
    assert "c2hhcmUta2V5" not in json.dumps(properties["metadata"])
    cluster.delete()
    cluster.close()


def test_an_autoscaling_pool_with_an_identity(account: AccountConfig, manager: Manager) -> None:
    config = config_of(pool_size={"dedicated_nodes": {"max": 2}}, identities=[IDENTITY])
    cluster = Cluster.create(config, account, wait=False)
    scale = manager.pools[config.name]["properties"]["scaleSettings"]
    assert list(scale) == ["autoScale"]
    assert scale["autoScale"]["evaluationInterval"] in ("PT5M", "PT05M00S")
    assert "$TargetDedicatedNodes" in scale["autoScale"]["formula"]
    cluster.delete()
    cluster.close()


def test_a_pool_that_is_there_is_not_changed(account: AccountConfig, manager: Manager, entra: Entra) -> None:
    spec = PoolSpec(
        id="twice",
        vm_size="Emulated_C1",
        task_slots_per_node=1,
        image=ImageSpec(id=IMAGE),
        node_agent_sku="batch.node.ubuntu 24.04",
        identities=(IDENTITY,),
    )
    management = AzureManagement(ACCOUNT_ID, _credential(entra), endpoint=manager.endpoint)
    management.create_pool(spec)
    with pytest.raises(ResourceExistsError):
        management.create_pool(spec)
    management.close()
    # And a cluster says in what it differs: what Batch says of the pool is compared, not what was sent.
    with pytest.raises(PoolDiffersError, match="identities: the configuration says"):
        Cluster.create(config_of(name="twice", identities=[IDENTITY]), account)


def _credential(entra: Entra) -> Any:
    return token_credential(tenant_id=TENANT, client_id=entra.client_id, secret=entra.secret)


def test_the_account_is_looked_up_by_its_resource_id(
    emulator: BatchEmulator, account: AccountConfig, manager: Manager
) -> None:
    """doAzureParallel's file for a service principal names no URL."""
    by_id = account.model_copy(update={"batch_endpoint": None})
    cluster = Cluster(config_of(1), by_id)
    assert cluster.batch.pools("none-such") == []
    assert repr(cluster.batch) == f"AzureBatch({emulator.endpoint!r})"
    assert manager.requests == [f"GET {ACCOUNT_ID}"]
    cluster.close()


def test_quotas(account: AccountConfig, manager: Manager, tmp_path: Path) -> None:
    """And the doctor tells them, and what is more than they allow, before a node is asked for."""
    manager.quotas = {
        "dedicatedCoreQuota": 8,
        "lowPriorityCoreQuota": 0,
        "dedicatedCoreQuotaPerVMFamilyEnforced": True,
        "dedicatedCoreQuotaPerVMFamily": [{"name": "standardDv5Family", "coreQuota": 8}],
        "poolQuota": 20,
        "activeJobAndJobScheduleQuota": 100,
    }
    cluster = Cluster(config_of(1), account)
    told = cluster.batch_account()
    assert told is not None
    assert (told.dedicated_cores, told.spot_cores, told.pools, told.active_jobs) == (8, 0, 20, 100)
    assert told.family_cores == {"standarddv5family": 8}
    cluster.close()
    (tmp_path / "credentials.json").write_text(json.dumps(account.to_dict(secrets=True)))
    findings = {}
    for name, nodes in (("few", 8), ("many", 9)):
        (tmp_path / "cluster.json").write_text(json.dumps({"name": name, "vmSize": "Emulated_C1", "nodes": nodes}))
        doctor = Doctor(str(tmp_path / "cluster.json"), str(tmp_path / "credentials.json"), task=False)
        findings[name] = next(found for found in doctor.run() if found.check == "quota")
    assert (findings["few"].state, findings["many"].state) == ("ok", "failed")
    assert "8 dedicated cores and the pool asks for 9" in findings["many"].message


def test_who_may_not(account: AccountConfig, manager: Manager) -> None:
    manager.forbidden = True
    with pytest.raises(AuthenticationError, match="ask its owner to run `joblib-azure cluster create`"):
        Cluster.create(config_of(1, identities=[IDENTITY]), account)
    by_id = account.model_copy(update={"batch_endpoint": None})
    with pytest.raises(AuthenticationError, match="asking where emulated is"):
        Cluster.list(by_id)


def test_a_resource_id_is_needed(account: AccountConfig) -> None:
    without = account.model_copy(update={"batch_resource_id": None})
    with pytest.raises(ConfigurationError, match=r"identities: .* needs the account's batchResourceId"):
        Cluster.create(config_of(1, identities=[IDENTITY]), without)


def test_without_the_extra(account: AccountConfig, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.mgmt.batch", None)
    with pytest.raises(MissingExtraError, match=r'python -m pip install "joblib_azure\[management\]"'):
        Cluster.create(config_of(1, identities=[IDENTITY]), account)
    with pytest.raises(MissingExtraError, match="azure-mgmt-batch, -resource or -storage"):
        Provisioning(PLAN, None, endpoint=manager.endpoint)  # type: ignore[arg-type]


# accounts -------------------------------------------------------------------------------------------------

PLAN = AccountPlan(
    subscription=SUBSCRIPTION,
    resource_group="fresh",
    location="westeurope",
    batch_account="freshbatch",
    storage_account="freshstore",
)


@pytest.fixture
def provisioning(manager: Manager, entra: Entra) -> Iterator[Provisioning]:
    lines: list[str] = []
    made = Provisioning(PLAN, _credential(entra), endpoint=manager.endpoint, notify=lines.append)
    made.lines = lines  # type: ignore[attr-defined]
    yield made
    made.close()


def test_setup_and_teardown(provisioning: Provisioning, manager: Manager) -> None:
    made = provisioning.setup()
    assert made.batch_endpoint == "https://freshbatch.westeurope.batch.azure.com"
    assert made.storage_endpoint == "https://freshstore.blob.core.windows.net"
    assert (made.batch_key, made.storage_key) == ("YmF0Y2gta2V5", "c3RvcmFnZS1rZXk=")
    assert "YmF0Y2gta2V5" not in repr(made)
    assert "c3RvcmFnZS1rZXk=" not in repr(made)
    sent = {path: {**body} for path, body in PLAN.bodies().items()}
    assert list(manager.resources) == list(sent)[1:]
    provisioning.setup()
    # What comes out is an account that this package reads.
    AccountConfig(
        batch_account=PLAN.batch_account,
        batch_endpoint=made.batch_endpoint,
        batch_key=made.batch_key,
        batch_resource_id=PLAN.batch_resource_id,
        storage_account=PLAN.storage_account,
        storage_endpoint=made.storage_endpoint,
        storage_key=made.storage_key,
    )
    assert provisioning.belongings() == [
        "Batch account freshbatch",
        "storage account freshstore",
        "resource group fresh",
    ]
    provisioning.teardown()
    assert (manager.resources, manager.groups) == ({}, {})
    provisioning.teardown()
    assert provisioning.belongings() == []
    lines: list[str] = provisioning.lines  # type: ignore[attr-defined]
    assert lines[0] == "resource group fresh"
    assert lines[-1] == "removing the resource group fresh"


def test_a_group_of_somebody_elses_stays(provisioning: Provisioning, manager: Manager) -> None:
    manager.groups["fresh"] = {"id": "x", "name": "fresh", "location": "eastus", "tags": {"owner": "them"}}
    provisioning.setup()
    assert manager.groups["fresh"]["tags"] == {"owner": "them"}
    provisioning.teardown()
    assert list(manager.groups) == ["fresh"]
    assert manager.resources == {}


def test_a_group_with_more_in_it_stays(provisioning: Provisioning, manager: Manager) -> None:
    provisioning.setup()
    theirs = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/fresh/providers/Microsoft.Web/sites/shop"
    manager.resources[theirs] = {"id": theirs, "name": "shop"}
    provisioning.teardown()
    assert list(manager.groups) == ["fresh"]
    assert list(manager.resources) == [theirs]


def test_an_account_of_somebody_elses_is_neither_changed_nor_removed(
    provisioning: Provisioning, manager: Manager
) -> None:
    provisioning.setup()
    theirs = next(path for path in manager.resources if path.endswith("/freshstore"))
    manager.resources[theirs]["tags"] = {"owner": "them"}
    before = dict(manager.resources[theirs])
    with pytest.raises(ClusterError, match="freshstore is in resource group fresh already"):
        provisioning.setup()
    assert manager.resources[theirs] == before
    provisioning.teardown()
    assert list(manager.resources) == [theirs]
    assert list(manager.groups) == ["fresh"]


def test_setup_goes_on_where_it_was_broken_off(provisioning: Provisioning, manager: Manager) -> None:
    manager.groups["fresh"] = {"id": "x", "name": "fresh", **PLAN.bodies()[next(iter(PLAN.bodies()))]}
    provisioning.setup()
    provisioning.teardown()
    assert manager.groups == {}


def test_a_refusal_names_what_was_being_done(provisioning: Provisioning, manager: Manager) -> None:
    manager.forbidden = True
    with pytest.raises(AuthenticationError, match="resource group fresh"):
        provisioning.setup()


def test_the_server_refuses_what_is_not_documented() -> None:
    """Or the tests above could not fail."""
    body = {"properties": {"vmSize": 3, "scaleSettings": {}, "colour": "red"}, "extra": 1}
    assert problems(body, POOL) == [
        "body.properties.deploymentConfiguration: missing",
        "body.properties.vmSize: 3",
        "body.properties.colour: not documented",
        "body.extra: not documented",
    ]
    assert problems({"properties": {"autoStorage": {}}}, BATCH) == [
        "body.location: missing",
        "body.properties.autoStorage.storageAccountId: missing",
    ]


def test_nothing_is_there(provisioning: Provisioning) -> None:
    assert provisioning.belongings() == []
    with pytest.raises(ResourceNotFoundError), provisioning._doing("looking"):
        provisioning._batch.batch_account.get("fresh", "nowhere")
