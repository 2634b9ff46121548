"""What a pool is made of: images, node agents, containers, mounts, start tasks; and what of it comes back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from azure.batch import BatchClient
from azure.core.credentials import AzureNamedKeyCredential
from cluster_lab import account_of, config_of, deleted
from hypothesis import given
from hypothesis import strategies as st

from joblib_azure.cluster import Cluster
from joblib_azure.cluster.images import resolve_image
from joblib_azure.cluster.spec import config_of as config_of_pool
from joblib_azure.cluster.spec import pool_spec
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.emulator import BatchEmulator
from joblib_azure.errors import ClusterError, ServiceError
from joblib_azure.service import ImageSpec, JobSpec, PoolSpec, PoolState, SupportedImage, TaskSpec

NOW = datetime(2026, 6, 1, tzinfo=timezone.utc)
PASSWORD, SHARE_KEY, CONTAINER_SAS = "registry-secret-1", "c2hhcmUta2V5LXNlY3JldA==", "sv=1&sig=mount-secret-2"


@pytest.fixture(scope="module")
def emulator() -> Iterator[BatchEmulator]:
    with BatchEmulator() as running:
        yield running


@pytest.fixture(scope="module")
def account(emulator: BatchEmulator) -> AccountConfig:
    return account_of(emulator)


@pytest.fixture(scope="module")
def client(emulator: BatchEmulator) -> Iterator[BatchClient]:
    """The service as another program sees it."""
    key = AzureNamedKeyCredential(emulator.account_name, emulator.account_key)
    with BatchClient(emulator.endpoint, key) as found:
        yield found


# images ---------------------------------------------------------------------------------------------------


def row(names: str, agent: str, **more: Any) -> SupportedImage:
    publisher, offer, sku = names.split("/")
    return SupportedImage(image=ImageSpec(publisher=publisher, offer=offer, sku=sku), node_agent_sku=agent, **more)


LIST = (
    row("canonical/ubuntu-24_04-lts/server", "batch.node.ubuntu 24.04"),
    row("canonical/ubuntu-24_04-lts/minimal", "batch.node.ubuntu 24.04", verified=False),
    row("debian/debian-12/12", "batch.node.debian 12", end_of_life=NOW + timedelta(days=30)),
    row("debian/debian-11/11", "batch.node.debian 11", end_of_life=NOW - timedelta(days=30)),
    row("both/ways/x", "batch.node.old", verified=False),
    row("both/ways/x", "batch.node.new"),
    row("dsvm/hpc/2204", "batch.node.ubuntu 22.04", capabilities=("DockerCompatible",)),
    row("dsvm/hpc/2404", "batch.node.ubuntu 24.04", capabilities=("DockerCompatible",)),
    row("dsvm/hpc/2604", "batch.node.ubuntu 26.04", capabilities=("DockerCompatible",), verified=False),
    row("old/hpc/9", "batch.node.ubuntu 99", capabilities=("DockerCompatible",), end_of_life=NOW - timedelta(days=1)),
    row("win/containers/1", "batch.node.windows amd64", capabilities=("DockerCompatible",), os="windows"),
)


def image(names: str) -> dict[str, str]:
    return dict(zip(("publisher", "offer", "sku"), names.split("/"), strict=True))


@pytest.mark.parametrize(
    ("settings", "expected", "agent"),
    [
        ({}, "canonical/ubuntu-24_04-lts/server/latest", "batch.node.ubuntu 24.04"),
        ({"image": image("Debian/Debian-12/12")}, "Debian/Debian-12/12/latest", "batch.node.debian 12"),
        ({"image": image("both/ways/x")}, "both/ways/x/latest", "batch.node.new"),
        ({"image": {**image("both/ways/x"), "version": "1.2"}}, "both/ways/x/1.2", "batch.node.new"),
        ({"container_image": "python:3.12"}, "dsvm/hpc/2404/latest", "batch.node.ubuntu 24.04"),
        (
            {"container_image": "python:3.12", "image": image("dsvm/hpc/2204")},
            "dsvm/hpc/2204/latest",
            "batch.node.ubuntu 22.04",
        ),
        (
            {"image": image("not/listed/x"), "node_agent_sku": "batch.node.el 9"},
            "not/listed/x/latest",
            "batch.node.el 9",
        ),
    ],
)
def test_images_are_resolved(settings: dict[str, Any], expected: str, agent: str) -> None:
    found, its_agent = resolve_image(config_of(**settings), LIST, NOW)
    assert (str(found), its_agent) == (expected, agent)


def test_an_image_that_nobody_knows() -> None:
    with pytest.raises(ClusterError) as caught:
        resolve_image(config_of(image=image("canonical/ubuntu-24_04-lts/servr")), LIST, NOW)
    assert "does not support canonical/ubuntu-24_04-lts/servr/latest" in str(caught.value)
    assert "Near to it: canonical/ubuntu-24_04-lts/server" in str(caught.value)


def test_an_image_whose_support_is_over(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ClusterError, match=r"ended on 02 May 2026.*Verified ones: canonical/ubuntu-24_04-lts/server"):
        resolve_image(config_of(image=image("debian/debian-11/11")), LIST, NOW)
    resolve_image(config_of(image=image("debian/debian-12/12")), LIST, NOW)
    assert "Batch's support of debian/debian-12/12/latest ends on 01 July 2026" in caplog.text
    resolve_image(config_of(image=image("canonical/ubuntu-24_04-lts/minimal")), LIST, NOW)
    assert "is not verified by Batch" in caplog.text


def test_no_image_runs_containers() -> None:
    with pytest.raises(ClusterError, match="no image with a container runtime"):
        resolve_image(config_of(container_image="python:3.12"), LIST[:3], NOW)


def test_the_services_own_list(account: AccountConfig) -> None:
    """Against what the emulator lists, which is an extract of the real list."""
    cluster = Cluster(config_of(1), account)
    images = cluster.batch.supported_images()
    assert {each.os for each in images} == {"linux", "windows"}
    found, agent = resolve_image(config_of(container_image="python:3.12"), images)
    assert (str(found), agent) == ("microsoft-dsvm/ubuntu-hpc/2404/latest", "batch.node.ubuntu 24.04")
    with pytest.raises(ClusterError, match="ended on"):
        resolve_image(config_of(image=image("canonical/0001-com-ubuntu-server-focal/20_04-lts")), images)
    assert any(not each.verified for each in images)
    cluster.close()


# pools ----------------------------------------------------------------------------------------------------

RICH: dict[str, Any] = {
    "vm_size": "Emulated_C2",
    "max_tasks_per_node": 4,
    "container_image": "registry.example.org/ours:1",
    "container_registry": {"server": "registry.example.org", "username": "me", "password": PASSWORD},
    "command_line": ["echo one", "echo two"],
    "resource_files": [
        {"httpUrl": "https://example.org/a?sig=x", "filePath": "a", "fileMode": "0755"},
        {"storageContainerUrl": "https://store.blob.core.windows.net/c?sig=y", "blobPrefix": "b/"},
    ],
    "mounts": [
        {"kind": "azure_files", "account": "store", "source": "share", "path": "share", "key": SHARE_KEY},
        {"kind": "blob_container", "account": "store", "source": "data", "path": "d/e", "sas": CONTAINER_SAS},
    ],
    "metadata": {"team": "blue"},
}


def test_all_settings_arrive_and_come_back(account: AccountConfig, client: BatchClient) -> None:
    """Every one is on the wire as documented, and the same pool is recognised again."""
    config = config_of(1, pool_size={"autoscale_formula": "QUEUE_AND_RUNNING"}, **RICH)
    cluster = Cluster.create(config, account, wait=False)
    with deleted(cluster):
        pool = client.get_pool(config.name)
        assert pool.task_slots_per_node == 4
        machine = pool.virtual_machine_configuration
        assert machine is not None
        assert machine.node_agent_sku_id == "batch.node.ubuntu 24.04"
        containers = machine.container_configuration
        assert containers is not None
        assert containers.container_image_names == ["registry.example.org/ours:1"]
        assert containers.container_registries is not None
        assert containers.container_registries[0].username == "me"
        start = pool.start_task
        assert start is not None
        assert start.command_line == "/bin/bash -c 'set -e -o pipefail\necho one\necho two'"
        assert start.user_identity is not None
        assert start.user_identity.auto_user is not None
        assert start.user_identity.auto_user.elevation_level == "admin"
        assert start.user_identity.auto_user.scope == "pool"
        assert start.wait_for_success
        assert start.resource_files is not None
        assert [each.file_mode for each in start.resource_files] == ["0755", None]
        mounts = pool.mount_configuration
        assert mounts is not None
        share = mounts[0].azure_file_share_configuration
        assert share is not None
        assert share.azure_file_url == "https://store.file.core.windows.net/share"
        assert pool.auto_scale_formula
        assert pool.auto_scale_evaluation_interval == timedelta(seconds=300)
        # The same again is no other; nor are other passwords, which the service does not tell.
        Cluster.create(config, account, wait=False).close()
        attached = Cluster.attach(config.name, account)
        assert attached.config.container_image == config.container_image
        attached.close()
        # And nothing of it tells a secret.
        state = cluster.status()
        told = f"{state!r} {attached.config!r} {pool.as_dict()} {[*(pool.metadata or ())]}"
        assert not [secret for secret in (PASSWORD, SHARE_KEY, CONTAINER_SAS) if secret in told]


def test_a_refusal_says_which_property(account: AccountConfig) -> None:
    config = config_of(1, mounts=[{**RICH["mounts"][0], "path": "fine"}, {**RICH["mounts"][1], "path": "fine"}])
    spec = pool_spec(config, account, ImageSpec(publisher="canonical", offer="none", sku="x"), "batch.node.el 9")
    cluster = Cluster(config, account)
    with pytest.raises(ServiceError, match=r"creating a pool: .*PropertyName: \S*imageReference") as caught:
        cluster.batch.create_pool(spec)
    assert SHARE_KEY not in str(caught.value)
    assert "c2hhcmU" not in repr(spec)
    cluster.close()


def test_tasks_run_as_the_pools_user_and_no_administrator(account: AccountConfig, client: BatchClient) -> None:
    cluster = Cluster.create(config_of(1), account)
    with deleted(cluster):
        name, job = cluster.config.name, f"job-{cluster.config.name}"
        lifetime = timedelta(minutes=5)
        cluster.batch.create_job(
            JobSpec(id=job, pool=name, environment={}, preparation="/bin/true", files={}, lifetime=lifetime)
        )
        cluster.batch.add_tasks(job, [TaskSpec(id="t", command="/bin/true", environment={})])
        preparation = client.get_job(job).job_preparation_task
        assert preparation is not None
        for identity in (client.get_task(job, "t").user_identity, preparation.user_identity):
            assert identity is not None
            assert identity.auto_user is not None
            assert (identity.auto_user.scope, identity.auto_user.elevation_level) == ("pool", "nonadmin")
        cluster.batch.end_job(job, delete=True)


_BOUNDS = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(lambda b: {"min": min(b), "max": max(b)})


@given(
    dedicated=_BOUNDS,
    spot=_BOUNDS,
    formula=st.sampled_from(["QUEUE", "QUEUE_AND_RUNNING", "WORKDAY", "WEEKEND", "FIXED"]),
    cores=st.integers(1, 64),
    idle=st.integers(0, 7200),
    python=st.sampled_from(["python3", "/opt/py/bin/python"]),
)
def test_what_is_recorded_makes_the_configuration_again(
    dedicated: dict[str, int], spot: dict[str, int], formula: str, cores: int, idle: int, python: str
) -> None:
    dedicated["max"] = max(1, dedicated["max"])
    size = {
        "dedicated_nodes": dedicated,
        "spot_nodes": spot,
        "autoscale_formula": formula,
        "idle_shutdown": idle,
    }
    config = ClusterConfig(name="p", vm_size="Odd_Size", cores=cores, pool_size=size, python=python)
    account = AccountConfig(
        batch_account="a",
        batch_endpoint="https://a.example",
        storage_account="s",
        docker_authentication={"server": "r.example", "username": "u", "password": PASSWORD},
    )
    spec = pool_spec(config, account, ImageSpec(), "agent")
    assert PASSWORD not in str(spec.metadata)
    assert config_of_pool(_as_found(spec)) == config


def _as_found(spec: PoolSpec) -> PoolState:
    slots = spec.task_slots_per_node
    return PoolState(
        id=spec.id, state="active", allocation="steady", vm_size=spec.vm_size, task_slots_per_node=slots, spec=spec
    )


def test_the_default_image_gives_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    resolve_image(config_of(), LIST, NOW)
    assert not caplog.records
