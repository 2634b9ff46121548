"""Latency profiles: what is drawn, and that nodes, tasks, counts and requests are as late as it says."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from azure.batch import models
from emulator_lab import Lab, until

from joblib_azure.emulator import BatchEmulator, latency
from joblib_azure.emulator.latency import PROFILES, Between, LateCounts, Latency
from joblib_azure.emulator.options import Options

AZURE = PROFILES["azure"]
KINDS = ("allocation", "boot", "dispatch", "report", "request")


@pytest.fixture
def azure() -> Iterator[Callable[..., Lab]]:
    running: list[BatchEmulator] = []

    def start(clock_rate: float, **options: Any) -> Lab:
        running.append(BatchEmulator(latency="azure", clock_rate=clock_rate, **options))
        return Lab(running[-1])

    yield start
    for emulator in running:
        emulator.stop()


# what is drawn ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [1.0, 60.0])
def test_draws_lie_between_the_published_bounds_on_the_service_s_clock(kind: str, rate: float) -> None:
    drawn = [getattr(Latency("azure", rate, 3), kind)() for _ in range(5)]
    source = Latency("azure", rate, 3)
    found = [getattr(source, kind)() * rate for _ in range(2000)]
    bounds: Between = getattr(AZURE, kind)
    assert bounds.least <= min(found) < max(found) <= bounds.most
    middle = (bounds.least + bounds.most) / 2
    assert sum(found) / len(found) == pytest.approx(middle, rel=0.1)
    assert len(set(drawn)) == 1  # what a seed draws first


def test_the_same_seed_draws_the_same_whatever_else_was_drawn_between() -> None:
    first, second, other = Latency("azure", 1.0, 7), Latency("azure", 1.0, 7), Latency("azure", 1.0, 8)
    wanted = [first.boot() for _ in range(20)]
    found = []
    for _ in range(20):
        second.request(3)
        second.dispatch()
        found.append(second.boot())
    assert found == wanted
    assert [other.boot() for _ in range(20)] != wanted


def test_a_collection_takes_longer_with_each_task() -> None:
    source = Latency("azure", 1.0, 1)
    assert source.request(100) > 100 * AZURE.added_task.least
    assert max(source.request(100) for _ in range(200)) <= AZURE.request.most + 100 * AZURE.added_task.most


def test_without_a_profile_nothing_is_late() -> None:
    source = Latency("none", 1.0, 1)
    assert [getattr(source, kind)() for kind in KINDS] == [0.0] * len(KINDS)
    assert source.request(100) == 0.0
    assert source.counts() is None


def test_options_of_a_profile() -> None:
    options = Options(latency="azure", latency_seed=4, clock_rate=60.0, boot_seconds=1.0)
    assert options.arguments() == [
        *("--boot-seconds", "1.0", "--clock-rate", "60.0", "--latency", "azure", "--latency-seed", "4")
    ]
    assert options.node_seconds == 1.0 + (AZURE.allocation.most + AZURE.boot.most) / 60
    assert Options().node_seconds == 0.0
    with pytest.raises(ValueError, match="latency is 'azur'; known are none, azure"):
        BatchEmulator(latency="azur")


def test_counts_are_shown_late_and_in_the_order_of_their_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(latency.time, "monotonic", lambda: now[0])
    counts = LateCounts(5.0)
    counts.add("active", 1, 2)
    now[0] = 103.0
    counts.add("active", -1, -2)
    counts.add("running", 1, 2)
    assert counts.shown() == {}
    now[0] = 105.0
    assert counts.shown() == {"active": [1, 2]}
    now[0] = 108.0
    assert counts.shown() == {"active": [0, 0], "running": [1, 2]}


# what a client sees of it -------------------------------------------------------------------------------------


def test_a_pool_resizes_until_its_nodes_are_allocated_and_they_boot_each_in_its_own_time(
    azure: Callable[..., Lab],
) -> None:
    lab = azure(clock_rate=300)  # 0.6 to 1.6 s, and 0.07 to 0.23 s
    began = time.monotonic()
    pool = lab.pool(nodes=3, wait=False)
    assert lab.client.get_pool(pool).allocation_state == "resizing"
    assert lab.nodes(pool) == []
    until(lambda: len(lab.nodes(pool)) == 3, say="the nodes are allocated")
    assert time.monotonic() - began >= AZURE.allocation.least / 300
    nodes = lab.wait_idle(pool, 3)
    booted = {node.state_transition_time - node.last_boot_time for node in nodes}
    assert len(booted) == 3
    assert min(booted).total_seconds() >= AZURE.boot.least / 300


def test_a_resize_may_be_stopped_and_end_in_time_while_nodes_are_allocated(azure: Callable[..., Lab]) -> None:
    lab = azure(clock_rate=10)
    pool = lab.pool(nodes=2, wait=False)
    lab.client.begin_stop_pool_resize(pool, polling_interval=0.02).result()
    found = lab.client.get_pool(pool)
    assert (found.current_dedicated_nodes, [error.code for error in found.resize_errors]) == (0, ["ResizeStopped"])
    lab.client.begin_delete_pool(pool, polling_interval=0.02).result()


def test_a_pool_that_needs_no_more_nodes_waits_for_none(azure: Callable[..., Lab]) -> None:
    lab = azure(clock_rate=10)
    formula = "$TargetDedicatedNodes = {};"
    pool = lab.pool(
        nodes=0,
        wait=False,
        target_low_priority_nodes=None,
        enable_auto_scale=True,
        auto_scale_formula=formula.format(2),
    )
    until(lambda: lab.client.get_pool(pool).allocation_state == "resizing")
    time.sleep(3.1)  # on this clock the service takes another formula so soon
    lab.client.enable_pool_auto_scale(
        pool, models.BatchPoolEnableAutoScaleOptions(auto_scale_formula=formula.format(0))
    )
    until(lambda: lab.client.get_pool(pool).allocation_state == "steady", AZURE.allocation.least / 10 - 4)
    assert lab.nodes(pool) == []


def test_a_task_starts_late_and_its_end_is_known_late_but_told_as_it_was(azure: Callable[..., Lab]) -> None:
    lab = azure(clock_rate=100)  # 20 to 50 ms, and up to 20 ms
    job = lab.job(lab.pool(nodes=1))
    late = []
    for _ in range(5):
        began = datetime.datetime.now(datetime.timezone.utc)
        found = lab.run(job, "true")
        info = found.execution_info
        assert (info.start_time - began).total_seconds() >= AZURE.dispatch.least / 100
        late.append((found.state_transition_time - info.end_time).total_seconds())
        assert (info.exit_code, info.result) == (0, "success")
    assert len(set(late)) == 5
    assert min(late) >= 0


def test_task_counts_lag_behind_lists(azure: Callable[..., Lab]) -> None:
    lab = azure(clock_rate=1, latency_seed=1)
    job = lab.job(lab.pool(nodes=0, wait=False))
    task = lab.task(job, "true")
    assert lab.client.get_job_task_counts(job).task_counts.active == 0
    assert [found.id for found in lab.client.list_tasks(job)] == [task]
    until(lambda: lab.client.get_job_task_counts(job).task_counts.active == 1, AZURE.counts.most + 2)
    lab.client.terminate_task(job, task)
    assert lab.client.get_task(job, task).state == "completed"


def test_requests_are_answered_late(azure: Callable[..., Lab]) -> None:
    lab = azure(clock_rate=1)
    began = time.monotonic()
    for _ in range(5):
        list(lab.client.list_pools())
    assert time.monotonic() - began >= 5 * AZURE.request.least
