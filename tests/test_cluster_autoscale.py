"""Pools that scale by themselves: from zero, on demand, within the service's rate, beside other clients."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cluster_lab import Answer, Between, Said, account_of, config_of, deleted, refusal

from joblib_azure.autoscale import formula
from joblib_azure.cluster import Cluster
from joblib_azure.cluster.demand import Demand
from joblib_azure.cluster.floor import Floor, floor_of, with_floor, without_floor
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.emulator import BatchEmulator
from joblib_azure.errors import (
    ClusterError,
    ConfigurationError,
    ConflictError,
    NodesUnavailableError,
    PoolDiffersError,
    ServiceError,
)
from joblib_azure.service import JobSpec

#: The emulator's clock: 30 s between two enablings are half a second.
RATE = 60.0
INTERVAL = 31.0 / RATE


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("emulator") / "access.log"


@pytest.fixture(scope="module")
def emulator(log: Path) -> Iterator[BatchEmulator]:
    with BatchEmulator(clock_rate=RATE, access_log=log, failing_sizes={"Emulated_C3": 0}) as running:
        yield running


@pytest.fixture(scope="module")
def account(emulator: BatchEmulator) -> AccountConfig:
    return account_of(emulator)


def scaling(most: int = 2, spot: int = 0, **more: Any) -> ClusterConfig:
    size = {"dedicated_nodes": {"max": most}, "spot_nodes": {"max": spot}, **more.pop("size", {})}
    return config_of(pool_size=size, **more)


def created(config: ClusterConfig, account: AccountConfig) -> Cluster:
    return paced(Cluster.create(config, account))


def paced(cluster: Cluster) -> Cluster:
    cluster._demand = Demand(lambda: cluster.batch, cluster.config.name, interval=INTERVAL)
    return cluster


def enablings(log: Path, pool: str) -> list[str]:
    """The statuses of the requests to enable autoscale; the log may be a little behind the answers."""
    time.sleep(0.1)
    lines = log.read_text().splitlines()
    return [line.split()[2] for line in lines if line.startswith(f"POST /pools/{pool}/enableautoscale?")]


def test_a_new_pool_has_no_nodes_and_nothing_to_wait_for(account: AccountConfig) -> None:
    begun = time.monotonic()
    cluster = created(scaling(2), account)
    with deleted(cluster):
        assert time.monotonic() - begun < 5
        status = cluster.status()
        assert (status.pool.target_nodes, status.counts.dedicated, status.floor) == (0, {}, None)
        assert status.pool.autoscale is not None
        assert status.pool.autoscale_run is not None
        assert status.pool.autoscale_run.error == ""
        assert status.pool.autoscale.interval == timedelta(minutes=5)


def test_demand_brings_nodes_with_one_request(account: AccountConfig, log: Path) -> None:
    cluster = created(scaling(3), account)
    with deleted(cluster):
        before = cluster.status().pool.autoscale
        cluster.demand(2)
        assert len(cluster.wait_for_nodes(2)) == 2
        cluster.demand(2)
        cluster.demand(1)
        assert enablings(log, cluster.config.name) == ["200"]
        status = cluster.status()
        assert status.floor is not None
        assert (status.floor.dedicated, status.floor.spot) == (2, 0)
        # Until the nodes are up and two evaluations have seen them.
        left = status.floor.until - datetime.now(timezone.utc)
        assert abs(left.total_seconds() - (20 + 2 * 300)) < 30
        assert before is not None
        assert status.pool.autoscale is not None
        assert without_floor(status.pool.autoscale.formula).strip() == before.formula.strip()
        # Another client finds the pool to be the one it wants, floor or no floor.
        Cluster.create(cluster.config, account, wait=False).close()


def test_waiting_for_a_node_of_an_empty_pool_asks_for_one(account: AccountConfig) -> None:
    cluster = created(scaling(2), account)
    with deleted(cluster):
        cluster.wait_for_node()
        assert [node.state for node in cluster.nodes()] == ["idle"]
        floor = cluster.status().floor
        assert floor is not None
        assert floor.dedicated == 1


def test_demand_fills_dedicated_nodes_and_then_spot_nodes(account: AccountConfig) -> None:
    cluster = created(scaling(1, spot=2), account)
    with deleted(cluster):
        cluster.demand(10)
        assert len(cluster.wait_for_nodes()) == 3
        counts = cluster.status().counts
        assert (counts.dedicated, counts.spot) == ({"idle": 1}, {"idle": 2})


def test_more_demand_waits_for_the_services_rate(account: AccountConfig, log: Path) -> None:
    cluster = created(scaling(3), account)
    with deleted(cluster):
        cluster.demand(1)
        said = cluster.progress = Said()
        begun = time.monotonic()
        cluster.demand(3)
        assert INTERVAL * 0.8 < time.monotonic() - begun < 5
        assert "the service takes another floor once in 30 s" in said.text
        # It waited by itself: the service had nothing to refuse.
        assert enablings(log, cluster.config.name) == ["200", "200"]
        assert len(cluster.wait_for_nodes(3)) == 3


def test_a_client_that_does_not_know_of_the_other_waits_visibly(account: AccountConfig, log: Path) -> None:
    one = created(scaling(3), account)
    with deleted(one):
        two = paced(Cluster.attach(one.config.name, account))
        two.progress = said = Said()
        one.demand(1)
        two.demand(2)
        assert "the pool cannot take a floor yet" in said.text
        statuses = enablings(log, one.config.name)
        assert (statuses[0], statuses[-1]) == ("200", "200")
        assert set(statuses[1:-1]) == {"503"}
        floor = one.status().floor
        assert floor is not None
        assert floor.dedicated == 2
        two.close()


def test_two_clients_do_not_undo_each_other(account: AccountConfig, emulator: BatchEmulator) -> None:
    """The second reads the pool before the first has raised its floor; the ETag gives that away."""
    one = created(scaling(1, spot=2), account)
    raised = threading.Event()

    def meanwhile(method: str, path: str, answer: Answer | None) -> Answer | None:
        if "enableautoscale" in path and answer is None and not raised.is_set():
            raised.set()
            one.batch.enable_autoscale(one.config.name, with_floor(_text(one), _floor(1, 0)))
            time.sleep(INTERVAL)
        return None

    with deleted(one), Between(emulator.endpoint, meanwhile) as between:
        two = paced(Cluster.attach(one.config.name, account_of(emulator, between.endpoint)))
        two._demand.raise_to(0, 2, 600)
        floor = one.status().floor
        assert floor is not None
        assert (floor.dedicated, floor.spot) == (1, 2)
        two.close()


def _text(cluster: Cluster) -> str:
    autoscale = cluster.batch.pool(cluster.config.name).autoscale
    assert autoscale is not None
    return autoscale.formula


def _floor(dedicated: int, spot: int) -> Floor:
    return Floor(dedicated=dedicated, spot=spot, until=datetime.now(timezone.utc) + timedelta(minutes=20))


def test_a_floor_that_is_over_counts_for_nothing() -> None:
    now = datetime.now(timezone.utc)
    old = Floor(dedicated=5, spot=5, until=now - timedelta(seconds=1))
    new = _floor(1, 0)
    assert new.together(old, now) == new
    assert new.together(_floor(0, 3), now).spot == 3


@pytest.mark.parametrize("name", ["QUEUE", "QUEUE_AND_RUNNING", "WORKDAY", "WEEKEND", "$TargetDedicatedNodes = 1"])
def test_floors_come_off_as_they_went_on(name: str) -> None:
    text = formula(name, dedicated=(0, 4), spot=(0, 4))
    floor = Floor(dedicated=2, spot=1, until=datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc))
    raised = with_floor(text, floor)
    assert floor_of(raised) == floor
    assert without_floor(raised).strip() == text.strip()
    assert floor_of(text) is None
    higher = Floor(dedicated=3, spot=0, until=floor.until)
    assert floor_of(with_floor(raised, higher)) == higher


def test_somebody_elses_formula_stays(account: AccountConfig) -> None:
    text = "// ours, by hand\nx = 0;\n$TargetDedicatedNodes = x;"
    cluster = created(scaling(2, size={"autoscale_formula": text}), account)
    with deleted(cluster):
        cluster.batch.update_pool(cluster.config.name, metadata={})
        other = paced(Cluster.attach(cluster.config.name, account, nodes=2))
        other.wait_for_node()
        assert _text(cluster).startswith(text)
        assert floor_of(_text(cluster)) is not None
        other.close()


def test_the_service_refuses_a_resize_and_a_cluster_changes_the_bounds(account: AccountConfig) -> None:
    cluster = created(scaling(2), account)
    with deleted(cluster):
        with pytest.raises(ConflictError):
            cluster.batch.resize_pool(cluster.config.name, 1, 0)
        cluster.demand(2)
        cluster.wait_for_nodes(2)
        said = cluster.progress = Said()
        cluster.resize(dedicated=(1, 4), spot=1, interval=600)
        # Only half a second after the floor was raised: the service wants to be waited for.
        assert "waiting until it can be resized" in said.text
        status = cluster.status()
        assert status.pool.autoscale is not None
        assert status.pool.autoscale.interval == timedelta(minutes=10)
        size = Cluster.attach(cluster.config.name, account).config.pool_size
        assert (size.dedicated_nodes.min, size.dedicated_nodes.max, size.spot_nodes.max) == (1, 4, 1)
        # What sessions have asked for stays.
        assert status.floor is not None
        assert status.floor.dedicated == 2
        assert len(cluster.nodes()) == 2


def test_bounds_below_the_floor_lower_it(account: AccountConfig) -> None:
    cluster = created(scaling(3), account)
    with deleted(cluster):
        cluster.demand(3)
        cluster.resize(dedicated=1)
        floor = cluster.status().floor
        assert floor is not None
        assert floor.dedicated == 1


def test_from_autoscale_to_fixed_and_back(account: AccountConfig) -> None:
    cluster = created(scaling(2), account)
    with deleted(cluster):
        cluster.resize(dedicated=1, formula="FIXED", wait=True)
        status = cluster.status()
        assert (status.pool.autoscale, status.counts.dedicated) == (None, {"idle": 1})
        cluster.demand(2)  # nothing: it does not scale
        cluster.resize(dedicated=(0, 2), formula="QUEUE")
        text = _text(cluster)
        assert "$ActiveTasks" in text
        assert "$PendingTasks" not in text


def test_an_unusable_formula(account: AccountConfig) -> None:
    cluster = created(scaling(2), account)
    with deleted(cluster):
        with pytest.raises(ConfigurationError, match=r"MAX_CPU needs \$CPUPercent"):
            cluster.resize(formula="MAX_CPU")
        with pytest.raises(ConfigurationError, match="autoscaleFormula is not usable: the formula has"):
            cluster.resize(formula="$TargetDedicatedNodes = 1;" + "x = 1;" * 2000)
        with pytest.raises(ServiceError, match="AutoScalingFormulaSyntaxError"):
            cluster.resize(formula="$TargetDedicatedNodes = = 1;")
        assert "x = 1" not in _text(cluster)


def test_a_formula_that_fails_at_every_evaluation(account: AccountConfig) -> None:
    """The floor stands behind what fails, so it never counts: the service's own words are the error."""
    text = "x = 1 / 0; $TargetDedicatedNodes = x;"
    config, begun = scaling(2, size={"autoscale_formula": text}, node_timeout=60), time.monotonic()
    cluster = created(config, account)
    with deleted(cluster), pytest.raises(NodesUnavailableError, match=r"its autoscale formula failed: AutoScaling.*"):
        cluster.wait_for_node()
    assert time.monotonic() - begun < 15


def test_a_formula_that_lacks_samples_is_waited_for(account: AccountConfig) -> None:
    """A new pool has none; that passes by itself, and the floor counts at the next evaluation."""
    text = "$TargetDedicatedNodes = max($PendingTasks.GetSample(TimeInterval_Minute * 4, 50));"
    config = scaling(2, size={"autoscale_formula": text}, node_timeout=60)
    cluster = created(config, account)
    with deleted(cluster):
        said = cluster.progress = Said()
        cluster.wait_for_node()
        assert "its autoscale formula failed: InsufficientSampleData" in said.text


def test_nodes_that_cannot_be_had_fail_early(account: AccountConfig) -> None:
    config, begun = scaling(2, vm_size="Emulated_C3", node_timeout=60), time.monotonic()
    cluster = created(config, account)
    with deleted(cluster), pytest.raises(NodesUnavailableError, match="AllocationFailed"):
        cluster.wait_for_node()
    assert time.monotonic() - begun < 15


def test_another_formula_is_named_and_the_pools_own_used(
    account: AccountConfig, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = created(scaling(2), account)
    with deleted(cluster):
        Cluster.create(scaling(5, name=cluster.config.name), account, wait=False).close()
        assert (
            "is used as it is: poolSize.dedicatedNodes: the configuration says 0 to 5, the pool has 0 to 2"
            in caplog.text
        )
        assert "`joblib-azure cluster resize` changes its size" in caplog.text
        cluster.batch.enable_autoscale(cluster.config.name, "$TargetDedicatedNodes = 0; // by hand")
        Cluster.create(cluster.config, account, wait=False).close()
        assert "poolSize.autoscaleFormula: the configuration says its own, the pool has another text" in caplog.text
        with pytest.raises(PoolDiffersError, match="vmSize"):
            Cluster.create(scaling(2, name=cluster.config.name, vm_size="Emulated_C2"), account)
        fixed = config_of(2, name=cluster.config.name)
        Cluster.create(fixed, account, wait=False).close()
        assert "the configuration says fixed numbers of nodes, the pool has a formula" in caplog.text


def _forbidding(method: str, path: str, answer: Answer | None) -> Answer | None:
    writes = method in ("POST", "PUT", "PATCH", "DELETE") and path.startswith("/pools")
    return refusal(403, "PermissionDenied", "not yours to change") if writes and answer is None else None


def test_who_may_not_change_the_pool(
    account: AccountConfig, emulator: BatchEmulator, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = created(scaling(2), account)
    with deleted(cluster), Between(emulator.endpoint, _forbidding) as between:
        guest = paced(Cluster.attach(cluster.config.name, account_of(emulator, between.endpoint)))
        with pytest.raises(ClusterError, match="has no nodes, and this identity may not make it have some"):
            guest.demand(1)
        cluster.demand(1)
        cluster.wait_for_nodes(1)
        guest.demand(2)
        assert "its own formula decides" in caplog.text
        assert len(guest.wait_for_nodes(1)) == 1
        guest.open()
        assert not [each for each in between.requests if each == "POST /pools"]
        guest.close()


def test_demand_can_be_cancelled(account: AccountConfig) -> None:
    cluster = created(scaling(3), account)
    with deleted(cluster):
        cluster.demand(1)
        begun = time.monotonic()
        cluster._demand._interval = 30.0
        cluster.demand(3, cancelled=lambda: time.monotonic() - begun > 0.3)
        assert time.monotonic() - begun < 5


def test_what_was_asked_for_is_let_go(account: AccountConfig) -> None:
    cluster = created(scaling(2), account)
    with deleted(cluster):
        assert cluster.release()  # Nothing was.
        cluster.demand(2)
        # Too early for the service: it is not waited for, and would end by itself.
        assert not cluster.release()
        assert cluster.status().floor is not None
        cluster.wait_for_nodes(2)
        name, job = cluster.config.name, "joblib-20260131-235959-0a1b2c3d"
        spec = JobSpec(id=job, pool=name, environment={}, preparation="true", files={}, lifetime=timedelta(hours=1))
        cluster.batch.create_job(spec)
        time.sleep(INTERVAL)
        assert not cluster.release("another")
        assert cluster.status().floor is not None
        assert cluster.release(job)
        assert cluster.status().floor is None
        end = time.monotonic() + 30
        while cluster.nodes() and time.monotonic() < end:
            time.sleep(0.1)
        assert cluster.nodes() == ()
        cluster.batch.end_job(job, delete=True)


def test_what_others_have_asked_for_stays(account: AccountConfig) -> None:
    one = created(scaling(3), account)
    with deleted(one):
        one.demand(1)
        time.sleep(INTERVAL)
        two = paced(Cluster.attach(one.config.name, account))
        two.demand(3)
        time.sleep(INTERVAL)
        # It was there before; and since then it is not the first one's any more.
        assert one.release()
        assert two.status().floor is not None
        assert two.release()
        floor = one.status().floor
        assert floor is not None
        assert floor.dedicated == 1
        two.close()
