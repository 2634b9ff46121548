"""Nodes that do not come up, or go: quota, allocation, start tasks, preemption, old errors, deadlines."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import pytest
from cluster_lab import Said, account_of, config_of, deleted

from joblib_azure.cluster import Cluster
from joblib_azure.config import AccountConfig
from joblib_azure.emulator import BatchEmulator
from joblib_azure.errors import ClusterError, NodesUnavailableError, QuotaError


@pytest.fixture(scope="module")
def emulator() -> Iterator[BatchEmulator]:
    """Two cores of dedicated nodes and three of spot, three pools; sizes that are not to be had, or only once."""
    with BatchEmulator(
        dedicated_core_quota=2,
        spot_core_quota=3,
        pool_quota=3,
        failing_sizes={"Emulated_C3": 0},
        # The clock makes 15 minutes 1.5 s, so that a resize can time out; five minutes are the least the service takes.
        timing_out_sizes={"Emulated_C4": 0},
        clock_rate=600.0,
    ) as running:
        yield running


@pytest.fixture(scope="module")
def account(emulator: BatchEmulator) -> AccountConfig:
    return account_of(emulator)


def test_where_some_nodes_come_up_those_are_used(account: AccountConfig, caplog: pytest.LogCaptureFixture) -> None:
    begun = time.monotonic()
    cluster = Cluster.create(config_of(4), account)
    with deleted(cluster):
        assert time.monotonic() - begun < 10
        assert [node.state for node in cluster.nodes()] == ["idle", "idle"]
        (warning,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
        assert "going on with 2 of 4 node(s)" in warning
        assert "AccountCoreQuotaReached" in warning


@pytest.mark.parametrize(
    ("size", "code", "advice"),
    [
        ("Emulated_C3", "AllocationFailed", "another size, region or the other kind of nodes"),
        ("Emulated_C4", "AllocationTimedout", "another size, region or the other kind of nodes"),
        ("Emulated_C8", "AccountCoreQuotaReached", "ask for more quota"),
    ],
)
def test_where_none_can_come_up_that_is_said_at_once(account: AccountConfig, size: str, code: str, advice: str) -> None:
    config, begun = config_of(2, vm_size=size, node_timeout=60), time.monotonic()
    with deleted(Cluster(config, account)), pytest.raises(NodesUnavailableError) as caught:
        Cluster.create(config, account)
    assert time.monotonic() - begun < 15
    assert "no node can come up: the pool has no nodes yet; resize errors: " in str(caught.value)
    assert code in str(caught.value)
    assert advice in str(caught.value)
    assert caught.value.context["pool"] == config.name


def test_the_quota_of_pools(account: AccountConfig) -> None:
    clusters = [Cluster.create(config_of(1), account, wait=False) for _ in range(3)]
    with deleted(*clusters), pytest.raises(QuotaError, match="PoolQuotaReached"):
        Cluster.create(config_of(1), account)
    for cluster in clusters:
        cluster.delete(wait=True)


def test_a_start_task_that_fails_everywhere_is_told_with_its_log(account: AccountConfig) -> None:
    commands = ["echo setting up", "echo 'E: no such mirror' >&2; exit 3", "echo never"]
    config, begun = config_of(2, command_line=commands, node_timeout=60), time.monotonic()
    with deleted(Cluster(config, account)), pytest.raises(NodesUnavailableError) as caught:
        Cluster.create(config, account)
    assert time.monotonic() - begun < 20
    text = str(caught.value)
    assert "no node can come up: 2 starttaskfailed" in text
    assert "exit code 3" in text
    assert "its start task's stderr ends:\nE: no such mirror" in text


def test_a_start_task_that_says_nothing_on_stderr(account: AccountConfig) -> None:
    config = config_of(1, command_line=["echo 'broken package'; false"])
    with (
        deleted(Cluster(config, account)),
        pytest.raises(NodesUnavailableError, match="its start task's stdout ends:\nbroken package"),
    ):
        Cluster.create(config, account)


def test_a_start_task_that_fails_on_some_nodes(caplog: pytest.LogCaptureFixture) -> None:
    with BatchEmulator(failing_start_tasks=1) as emulator:
        said = Said()
        cluster = Cluster.create(config_of(3, command_line=["sleep 0.2"]), account_of(emulator), progress=said)
        states = sorted(node.state for node in cluster.nodes())
        assert states == ["idle", "idle", "starttaskfailed"]
        assert "going on with 2 of 3 node(s); the others: 1 starttaskfailed; node tvmps_" in caplog.text
        assert cluster.wait_for_nodes(1)
        cluster.close()


def test_unusable_nodes(caplog: pytest.LogCaptureFixture) -> None:
    with BatchEmulator(unusable_nodes=3) as emulator:
        account = account_of(emulator)
        with pytest.raises(NodesUnavailableError, match="no node can come up: 2 unusable"):
            Cluster.create(config_of(2, name="bad"), account)
        cluster = Cluster.create(config_of(2, name="half"), account)
        assert "going on with 1 of 2 node(s); the others: 1 unusable" in caplog.text
        cluster.close()


def test_slow_nodes_have_a_deadline(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with BatchEmulator(boot_seconds=30) as emulator:
        said, config = Said(), config_of(1, node_timeout=0.8)
        begun = time.monotonic()
        with pytest.raises(
            NodesUnavailableError, match=r"no node came up within 0.8 s: 1 starting.*Raise node_timeout"
        ):
            Cluster.create(config, account_of(emulator), progress=said)
        assert time.monotonic() - begun < 5
        assert "waiting for the first node" in said.text
        # Cancelled: no error, and at once. Nobody watches, so what takes long is told in a warning.
        monkeypatch.setattr("joblib_azure.cluster.waiting.FIRST_WORD", 0.1)
        caplog.clear()
        cluster = Cluster.attach(config.name, account_of(emulator), node_timeout=60)
        cancelled = threading.Event()
        threading.Timer(0.3, cancelled.set).start()
        assert cluster.wait_for_nodes(cancelled=cancelled.is_set) == ()
        (told,) = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
        assert (
            f"pool {config.name}: waiting for the first node (allocation steady), 0 of 1 ready (1 starting); 0 s of"
            in told
        )
        assert time.monotonic() - begun < 10
        cluster.close()


def test_preempted_nodes_are_waited_for(emulator: BatchEmulator, account: AccountConfig) -> None:
    size = {"dedicated_nodes": {"max": 0}, "spot_nodes": {"min": 2, "max": 2}}
    cluster = Cluster.create(config_of(pool_size=size), account)
    with deleted(cluster):
        for node in cluster.nodes():
            assert not node.dedicated
            emulator.preempt_node(cluster.config.name, node.id, seconds=1.0)
        assert cluster.status().counts.spot == {"preempted": 2}
        said = cluster.progress = Said()
        # They come back, so this is no failure.
        assert len(cluster.wait_for_nodes()) == 2
        assert "2 spot node(s) preempted, back when the service has capacity" in said.text


def test_preempted_nodes_that_stay_away(emulator: BatchEmulator, account: AccountConfig) -> None:
    size = {"dedicated_nodes": {"max": 0}, "spot_nodes": {"min": 1, "max": 1}}
    cluster = Cluster.create(config_of(pool_size=size, node_timeout=0.7), account)
    with deleted(cluster):
        emulator.preempt_node(cluster.config.name, cluster.nodes()[0].id)
        with pytest.raises(NodesUnavailableError, match=r"no node came up within 0.7 s: 1 preempted"):
            cluster.wait_for_node()


def test_old_resize_errors_are_no_failure(account: AccountConfig) -> None:
    """Errors stay until the next resize; a resize that failed is not tried again by the service, so we do."""
    hog = Cluster.create(config_of(2), account)
    config = config_of(1)
    with deleted(Cluster(config, account)):
        with deleted(hog), pytest.raises(NodesUnavailableError, match="AccountCoreQuotaReached"):
            Cluster.create(config, account)
        hog.delete(wait=True)
        later = Cluster.attach(config.name, account)
        assert "AccountCoreQuotaReached" in later.status().pool.resize_errors[0]
        said = later.progress = Said()
        assert [node.state for node in later.wait_for_nodes(1)] == ["idle"]
        assert "old resize errors, of no matter if nodes come up" in said.text or not said.all
        later.close()


def test_old_resize_errors_beside_nodes(account: AccountConfig) -> None:
    first = Cluster.create(config_of(3), account)
    with deleted(first):
        later = Cluster.attach(first.config.name, account)
        assert later.status().pool.resize_errors
        assert len(later.wait_for_nodes(2)) == 2
        assert " of an earlier resize, " in later.describe(later.nodes())
        later.close()


def test_the_same_error_again_is_a_failure(account: AccountConfig) -> None:
    """The remedy is tried once: what fails again is not old any more."""
    hog = Cluster.create(config_of(2), account)
    config = config_of(1)
    with deleted(hog, Cluster(config, account)):
        Cluster.create(config, account, wait=False)
        later, begun = Cluster.attach(config.name, account, node_timeout=60), time.monotonic()
        with pytest.raises(NodesUnavailableError, match="AccountCoreQuotaReached"):
            later.wait_for_node()
        assert time.monotonic() - begun < 10
        later.close()


def test_a_pool_of_nothing(account: AccountConfig) -> None:
    cluster = Cluster.create(config_of(1), account)
    with deleted(cluster):
        cluster.resize(dedicated=0, wait=True)
        with pytest.raises(
            NodesUnavailableError, match="It is to have none: `joblib-azure cluster resize` changes that"
        ):
            cluster.wait_for_node()


def test_a_pool_that_is_deleted_meanwhile(account: AccountConfig) -> None:
    cluster = Cluster.create(config_of(1, command_line=["sleep 20"]), account, wait=False)
    threading.Timer(0.3, cluster.delete).start()
    with pytest.raises(ClusterError, match=r"is deleting|is gone: somebody has deleted it"):
        cluster.wait_for_nodes()
    cluster.delete(wait=True)
