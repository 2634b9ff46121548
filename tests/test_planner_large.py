"""The planner's rules for what a large pool brings: calls that pour in, and bundles that wait behind others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import planner_simulation as pool

from joblib_azure.capacity import Bundle, Capacity, Cost
from joblib_azure.planner import Planner
from joblib_azure.planner.calls import POUR
from joblib_azure.planner.core import MAX_BACKLOG, MOST_OUTSTANDING, MOST_TARGET, POURED

LARGE = Capacity(nodes=100, workers_per_node=16, slots_per_node=1)


def pouring(capacity: Capacity, chunks: int, now: float = 0.0, cost: Cost | None = None) -> Planner:
    """A planner whose call was given so many chunks by a generator that gives many."""
    planner = Planner(capacity)
    planner.open_call("c", n_jobs=capacity.workers, cost=cost)
    pour(planner, 0, chunks, now)
    return planner


def pour(planner: Planner, first: int, chunks: int, now: float) -> None:
    for chunk in range(first, first + chunks):
        planner.add("c", chunk, 1, now)
    planner.pour("c", now)


def sizes(bundles: list[Bundle]) -> set[int]:
    return {bundle.calls for bundle in bundles}


@pytest.mark.parametrize("cost", [None, Cost(60.0, 0.0)])
def test_while_calls_pour_in_each_node_gets_work_for_all_its_workers(cost: Cost | None) -> None:
    """The first of them are not spread thinly over all nodes: the others get what comes."""
    planner = pouring(LARGE, 100, cost=cost)
    first = planner.plan(0.05)
    assert sizes(first) == {POURED * 16}
    assert len(first) == 100 // (POURED * 16)
    pour(planner, 100, 3100, 0.06)
    more = planner.plan(0.07)
    assert sizes(more) == {POURED * 16}
    assert len(first) + len(more) == 100


def test_when_they_cease_the_rest_is_spread_over_what_is_free() -> None:
    planner = pouring(LARGE, 40)
    assert sizes(planner.plan(0.05)) == {32}
    later = planner.next_flush(0.05)
    assert later is not None
    assert later == pytest.approx(POUR * 1.5)
    assert [bundle.calls for bundle in planner.plan(later)] == [1] * 8


def test_a_generator_that_gives_them_one_by_one_does_not_pour() -> None:
    planner = Planner(LARGE)
    planner.open_call("c", n_jobs=1600)
    for chunk in range(3):
        planner.add("c", chunk, 1, 0.02 * chunk)
        assert sizes(planner.plan(0.02 * chunk + 0.011)) == {1}


def test_bundles_of_calls_whose_cost_is_unknown_are_whole_rounds() -> None:
    planner = pouring(LARGE, 8100)
    planner.exhaust("c")
    assert sizes(planner.plan(0.2)) == {81}  # but for the last ones: what is left over would be a task
    planner = pouring(LARGE, 8100)
    assert sizes(planner.plan(1.0)) == {80}


def running(cost: Cost, age: float) -> Planner:
    """One whose slots all have a task, and whose generator gives as much as is wanted."""
    planner = pouring(LARGE, 3200, cost=cost)
    assert len(planner.plan(0.01)) == 100
    pour(planner, 10_000, planner.wanted("c"), age)
    return planner


def test_what_waits_is_as_long_as_its_call_is_old() -> None:
    """A third of it, up to TARGET times the cost of a task."""
    found = {}
    for age in (60.0, 600.0, 3600.0):
        planner = running(Cost(60.0, 0.0), age)
        [found[age]] = sizes(planner.plan(age + 1.0))
    assert list(found.values()) == sorted(found.values())
    assert found[60.0] == 16
    assert found[3600.0] <= 16 * MOST_TARGET * 1.0


def test_what_waits_leaves_the_client_its_memory() -> None:
    huge = Capacity(nodes=1000, workers_per_node=16, slots_per_node=1)
    planner = pouring(huge, 32_000, cost=Cost(60.0, 0.0))
    [first, *others] = planner.plan(0.01)
    planner.finish(first.id, cost=10.0)
    assert len(others) == 999
    pour(planner, 50_000, 32, 1.0)
    assert len(planner.plan(1.01)) == 1
    pour(planner, 100_000, MAX_BACKLOG, 3600.0)
    # By the cost of a task it would be 112.
    assert sizes(planner.plan(3600.01)) == {MOST_OUTSTANDING // (2 * 1000 * 16) * 16} == {64}


def test_long_calls_wait_behind_others_before_a_tasks_cost_is_known() -> None:
    planner = pouring(LARGE, 3200)
    assert len(planner.plan(0.01)) == 100
    for _ in range(16):
        planner.observe("c", 1, 60.0)
    assert not planner.task_measured
    pour(planner, 10_000, planner.wanted("c"), 61.0)
    assert len(planner.plan(61.1)) > 0


@pytest.mark.parametrize(
    ("nodes", "rounds", "seconds", "utilisation"), [(100, 62, 60.0, 0.94), (100, 30, 60.0, 0.91), (20, 100, 1.0, 0.8)]
)
def test_a_large_pool_is_busy(nodes: int, rounds: int, seconds: float, utilisation: float) -> None:
    """From the first task to the last, tail and ramp-up too; nodes come up one after the other."""
    capacity = Capacity(nodes=nodes, workers_per_node=16, slots_per_node=1)
    work = pool.Workload(name="c", durations=[seconds] * (nodes * 16 * rounds), arrivals=pool.backend)
    ups = [seconds / 2 * node / nodes for node in range(nodes)]
    done = pool.Simulation(capacity, [work], cost=pool.uneven(4.5 if seconds > 10 else 1.0), node_up=ups).run()
    assert work.done == len(work.durations)
    assert done.utilisation >= utilisation
