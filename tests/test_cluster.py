"""A cluster's life on the emulator: create, reuse, attach, look, resize, delete."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import pytest
from cluster_lab import SIZE, Said, account_of, config_of, deleted

from joblib_azure.cluster import Cluster
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.emulator import BatchEmulator
from joblib_azure.errors import (
    ClusterError,
    ConfigurationError,
    PoolDiffersError,
    ResourceNotFoundError,
)


@pytest.fixture(scope="module")
def emulator() -> Iterator[BatchEmulator]:
    with BatchEmulator(pool_deletion_seconds=1.0) as running:
        yield running


@pytest.fixture(scope="module")
def account(emulator: BatchEmulator) -> AccountConfig:
    return account_of(emulator)


def test_create_waits_for_all_nodes_and_shows_them(account: AccountConfig) -> None:
    said, config = Said(), config_of(2, command_line=["sleep 0.3"])
    cluster = Cluster.create(config, account, progress=said)
    with deleted(cluster):
        assert [node.state for node in cluster.nodes()] == ["idle", "idle"]
        assert "of 2 ready" in said.text
        assert any(node.state == "waitingforstarttask" for now in said.all for node in now.nodes)
        assert all(now.elapsed <= now.timeout == 20 for now in said.all)


def test_create_again_reuses_the_pool(account: AccountConfig, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(
        1,
        command_line=["true", "echo ready"],
        resource_files=[{"httpUrl": "http://127.0.0.1:9/data?sv=1&sig=first", "filePath": "data"}],
        metadata={"team": "blue"},
    )
    first = Cluster.create(config, account, wait=False)
    with deleted(first):
        created = first.status().pool.created
        # A SAS is another one whenever it is made.
        files = [{"httpUrl": "http://127.0.0.1:9/data?sv=1&sig=second", "filePath": "data"}]
        again = Cluster.create(config_of(**{**_same(config), "resource_files": files}), account, wait=False)
        assert again.status().pool.created == created
        assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


def _same(config: ClusterConfig) -> dict[str, object]:
    return {
        "name": config.name,
        "nodes": config.nodes,
        "command_line": config.command_line,
        "metadata": config.metadata,
    }


def test_every_difference_is_named(account: AccountConfig) -> None:
    config = config_of(1, command_line=["echo one"])
    first = Cluster.create(config, account, wait=False)
    with deleted(first):
        other = config_of(
            3,
            name=config.name,
            vm_size="Emulated_C2",
            max_tasks_per_node=2,
            command_line=["echo two"],
            image={"publisher": "debian", "offer": "debian-12", "sku": "12"},
            resource_files=[{"httpUrl": "https://example.org/x", "filePath": "x"}],
            metadata={"team": "blue"},
            mounts=[
                {"kind": "blob_container", "account": "store", "source": "data", "path": "d", "key": "c2VjcmV0LWtleQ=="}
            ],
        )
        with pytest.raises(PoolDiffersError) as caught:
            Cluster.create(other, account)
        text = str(caught.value)
        for key in (
            "vmSize",
            "maxTasksPerNode",
            "commandLine",
            "image",
            "resourceFiles",
            "metadata",
            "mounts",
            "poolSize.dedicatedNodes",
        ):
            assert f"\n  {key}: the configuration says " in text, key
        assert "'emulated_c2', the pool has 'emulated_c1'" in text
        assert f"joblib-azure cluster delete {config.name}" in text
        assert "c2VjcmV0LWtleQ==" not in text


def test_another_size_is_a_warning(account: AccountConfig, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(1)
    first = Cluster.create(config, account, wait=False)
    with deleted(first):
        Cluster.create(config_of(2, name=config.name), account, wait=False)
        assert "poolSize.dedicatedNodes: the configuration says 2, the pool has 1" in caplog.text
        assert first.status().pool.target_dedicated == 1


def test_create_waits_out_a_pool_that_is_being_deleted(account: AccountConfig) -> None:
    config = config_of(1)
    first = Cluster.create(config, account)
    created = first.status().pool.created
    first.delete()
    first.close()
    said = Said()
    second = Cluster.create(config, account, progress=said)
    with deleted(second):
        assert "waiting for the end of a pool of that name, which is deleting" in said.text
        assert second.status().pool.created != created
        assert [node.state for node in second.nodes()] == ["idle"]


def test_a_pool_that_stays_deleting_has_a_deadline(account: AccountConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(0 + 1)
    Cluster.create(config, account, wait=False).delete()
    monkeypatch.setattr("joblib_azure.cluster.core.DELETION_SECONDS", 0.2)
    with pytest.raises(ClusterError, match=r"still waiting for the end .* after 0.2 s\. Wait until it is gone"):
        Cluster.create(config, account)


def test_delete_waits_and_is_idempotent(account: AccountConfig) -> None:
    cluster = Cluster.create(config_of(1), account)
    cluster.delete(wait=True)
    with pytest.raises(ResourceNotFoundError):
        cluster.status()
    cluster.delete(wait=True)
    cluster.close()


def test_two_at_once_make_one_pool(account: AccountConfig) -> None:
    config, made, failed = config_of(1), [], []

    def create() -> None:
        try:
            made.append(Cluster.create(config, account))
        except Exception as exc:
            failed.append(exc)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failed
    with deleted(*made[:1]):
        assert len({cluster.status().pool.created for cluster in made}) == 1


def test_attach_by_name_knows_what_the_creator_knew(account: AccountConfig) -> None:
    size = {"dedicated_nodes": {"min": 1, "max": 1}, "spot_nodes": {"min": 1, "max": 1}, "idle_shutdown": 60}
    config = config_of(pool_size=size, python="/usr/bin/python3", vm_size="Emulated_C2", max_tasks_per_node=2)
    with deleted(Cluster.create(config, account, wait=False)):
        attached = Cluster.attach(config.name, account)
        assert attached.config.model_dump(exclude={"node_timeout"}) == config.model_dump(exclude={"node_timeout"})
        assert Cluster.attach(config.name, account, idle_timeout=5).config.idle_timeout == 5
        with pytest.raises(ConfigurationError, match="vm_size: a pool that is there has these already"):
            Cluster.attach(config.name, account, vm_size="Emulated_C1")
        Cluster.attach(config, account)
        other = config_of(name=config.name, vm_size="Emulated_C2")
        with pytest.raises(PoolDiffersError, match=r"maxTasksPerNode: the configuration says 1, the pool has 2"):
            Cluster.attach(other, account)


def test_attach_to_somebody_elses_pool(account: AccountConfig) -> None:
    """It has no record of ours: what it is, its own properties say."""
    config = config_of(2, metadata={"made by": "another tool"})
    cluster = Cluster.create(config, account, wait=False)
    with deleted(cluster):
        cluster.batch.update_pool(config.name, metadata={"made by": "another tool"})
        attached = Cluster.attach(config.name, account)
        assert (attached.config.nodes, attached.config.cores, attached.config.max_tasks_per_node) == (2, 1, 1)
        assert Cluster.attach(config.name, account, cores=7).config.cores == 7


def test_attach_needs_the_pool(account: AccountConfig) -> None:
    with pytest.raises(ClusterError, match="there is no pool 'nowhere' on the account"):
        Cluster.attach("nowhere", account)
    cluster = Cluster.create(config_of(1), account)
    cluster.delete()
    with pytest.raises(ClusterError, match="is deleting"):
        Cluster.attach(cluster.config.name, account)


def test_list_by_prefix(account: AccountConfig) -> None:
    clusters = [Cluster.create(config_of(1, name=f"listed-{i}"), account, wait=False) for i in range(3)]
    with deleted(*clusters):
        assert [pool.id for pool in Cluster.list(account, "listed-")] == ["listed-0", "listed-1", "listed-2"]
        assert {pool.vm_size for pool in Cluster.list(account, "listed-")} == {SIZE.lower()}
        assert Cluster.list(account, "nothing-like-it") == ()


def test_status_nodes_and_files(account: AccountConfig) -> None:
    cluster = Cluster.create(config_of(2, command_line=["echo hello", "seq 1 1000"]), account)
    with deleted(cluster):
        status = cluster.status()
        assert (status.counts.dedicated, status.counts.spot) == ({"idle": 2}, {})
        assert (status.pool.target_dedicated, status.pool.state, status.floor) == (2, "active", None)
        node = cluster.nodes()[0]
        assert node.dedicated
        assert node.start_task_exit == 0
        assert node.since is not None
        names = {file.name for file in cluster.files(node.id, recursive=True)}
        assert {"startup/stdout.txt", "startup/stderr.txt"} <= names
        assert cluster.file(node.id, "startup/stdout.txt").startswith(b"hello\n1\n2\n")
        assert cluster.file(node.id, "startup/stdout.txt", tail=9) == b"999\n1000\n"
        assert cluster.batch.node_file_tail(cluster.config.name, node.id, "startup/stdout.txt", 9) == "999\n1000\n"
        assert cluster.batch.node_file(cluster.config.name, node.id, "startup/stdout.txt", 6, 3) == b"1\n2"
        assert cluster.batch.node_file_tail(cluster.config.name, node.id, "startup/stderr.txt") == ""
        with pytest.raises(ResourceNotFoundError):
            cluster.file(node.id, "startup/nothing.txt")
        with pytest.raises(ResourceNotFoundError):
            cluster.file("tvmps_none_d", "startup/stdout.txt")


def test_resize_of_a_fixed_pool(account: AccountConfig) -> None:
    cluster = Cluster.create(config_of(1), account)
    with deleted(cluster):
        cluster.resize(dedicated=2, spot=1, wait=True)
        status = cluster.status()
        assert (status.counts.dedicated, status.counts.spot) == ({"idle": 2}, {"idle": 1})
        assert cluster.config.nodes == 3
        # Who attaches later sees the new bounds.
        assert Cluster.attach(cluster.config.name, account).config.nodes == 3
        cluster.resize(dedicated=0, spot=0, wait=True)
        assert cluster.nodes() == ()
        with pytest.raises(ConfigurationError):
            cluster.resize(dedicated=-1)


def test_resize_while_resizing_waits(account: AccountConfig) -> None:
    """The service answers 409 until it is steady; a node that still works holds its resize up."""
    cluster = Cluster.create(config_of(1), account)
    with deleted(cluster):
        said = cluster.progress = Said()
        release = threading.Timer(1.0, lambda: cluster.batch.stop_resize(cluster.config.name))
        with _busy(cluster):
            cluster.batch.resize_pool(cluster.config.name, 0, 0)
            release.start()
            cluster.resize(dedicated=2)
        assert "waiting until it can be resized" in said.text
        assert cluster.status().pool.target_dedicated == 2


def test_resize_while_resizing_has_a_deadline(account: AccountConfig) -> None:
    cluster = Cluster.create(config_of(1), account)
    with deleted(cluster), _busy(cluster):
        cluster.batch.resize_pool(cluster.config.name, 0, 0)
        with pytest.raises(ClusterError, match=r"still waiting until it can be resized .*try again later"):
            cluster.resize(dedicated=2, timeout=0.3)


class _busy:
    """A task that runs on a cluster's node, so that the node does not go by ``taskcompletion``."""

    def __init__(self, cluster: Cluster) -> None:
        from datetime import timedelta

        from joblib_azure.service import JobSpec, TaskSpec

        self._batch, self._job = cluster.batch, f"busy-{cluster.config.name}"
        lifetime, name = timedelta(minutes=5), cluster.config.name
        self._batch.create_job(
            JobSpec(id=self._job, pool=name, environment={}, preparation="/bin/true", files={}, lifetime=lifetime)
        )
        self._batch.add_tasks(self._job, [TaskSpec(id="t", command="/bin/sleep 60", environment={})])
        end = time.monotonic() + 10
        while cluster.nodes()[0].state != "running":
            assert time.monotonic() < end
            time.sleep(0.02)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        self._batch.terminate_task(self._job, "t")
        self._batch.end_job(self._job, delete=True)


def test_the_pools_jobs_are_told(account: AccountConfig) -> None:
    cluster = Cluster.create(config_of(1), account)
    with deleted(cluster):
        with _busy(cluster):
            (job,) = cluster.status().jobs
            assert (job.id, job.state, job.pool) == (f"busy-{cluster.config.name}", "active", cluster.config.name)
        end = time.monotonic() + 10
        while cluster.status().jobs:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_remove_nodes(account: AccountConfig) -> None:
    cluster = Cluster.create(config_of(2), account)
    with deleted(cluster):
        gone, kept = cluster.nodes()
        cluster.batch.remove_nodes(cluster.config.name, [gone.id])
        end = time.monotonic() + 10
        while [node.id for node in cluster.nodes()] != [kept.id]:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert cluster.status().pool.target_dedicated == 1


def test_close_ends_what_depends_on_it_first(account: AccountConfig) -> None:
    """A session's end needs the connections that a cluster closes."""
    cluster = Cluster(config_of(1), account)
    order = []
    cluster.on_close(lambda closing: order.append(closing.batch.pools("none-such")))
    cluster.close()
    cluster.close()
    assert order == [[]]


def test_a_start_command_sees_a_shell_and_stops_at_the_first_failure(account: AccountConfig) -> None:
    cluster = Cluster.create(
        config_of(1, command_line=["x=1 # a comment", 'echo "x is $x" | tee said', "sleep 0 &"]), account
    )
    with deleted(cluster):
        (node,) = cluster.nodes()
        assert cluster.file(node.id, "startup/stdout.txt") == b"x is 1\n"
        assert cluster.file(node.id, "startup/wd/said") == b"x is 1\n"
