"""The planner's rules, one by one, and its behaviour on a simulated pool."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import planner_simulation as pool

from joblib_azure.capacity import Bundle, Capacity, Cost
from joblib_azure.planner import Planner
from joblib_azure.planner.calls import PROBE
from joblib_azure.planner.core import MAX_BACKLOG

TWO_NODES_OF_FOUR = Capacity(nodes=2, workers_per_node=4, slots_per_node=4)
COSTS = None, Cost(1e-4), Cost(0.1, 0.0), Cost(30.0, 9.0)


def opened(capacity: Capacity, chunks: int = 0, *, n_jobs: int | None = None, **more: float) -> Planner:
    planner = Planner(capacity)
    planner.open_call("c", n_jobs=n_jobs or capacity.workers, **more)
    for chunk in range(chunks):
        planner.add("c", chunk, 1, 0.0)
    return planner


def tasks_measured(planner: Planner, cost: float = 1.0) -> Planner:
    """Have a task of another call end that took so many seconds beyond its work."""
    planner.open_call("before", n_jobs=1)
    planner.add("before", 0, 1, 0.0)
    planner.exhaust("before")
    (bundle,) = (found for found in planner.plan(0.0) if found.call == "before")
    planner.finish(bundle.id, cost=cost)
    planner.close_call("before")
    return planner


def sizes(bundles: list[Bundle]) -> list[int]:
    return [len(bundle.chunks) for bundle in bundles]


# 1. The flush


def test_a_burst_is_flushed_10_ms_after_its_last_chunk() -> None:
    planner = opened(pool.slots(4))
    for chunk in range(3):
        planner.add("c", chunk, 1, 0.004 * chunk)
    assert planner.plan(0.017) == []
    assert planner.next_flush(0.017) == pytest.approx(0.018)
    assert sizes(planner.plan(0.0181)) == [1, 1, 1]
    assert planner.next_flush(0.0181) is None


def test_a_generator_that_never_pauses_is_flushed_100_ms_after_its_first_chunk() -> None:
    planner = opened(pool.slots(4))
    for chunk in range(25):
        now = 0.005 * chunk
        planner.add("c", chunk, 1, now)
        if planner.plan(now):
            break
    assert now == pytest.approx(0.1)


def test_an_exhausted_call_is_flushed_at_once() -> None:
    planner = opened(pool.slots(4), 2)
    assert planner.plan(0.0) == []
    planner.exhaust("c")
    assert planner.next_flush(0.0) == 0.0
    assert sizes(planner.plan(0.0)) == [1, 1]


def test_flushed_chunks_go_as_soon_as_a_slot_is_free() -> None:
    planner = opened(pool.slots(1), 17)
    (first,) = planner.plan(0.02)
    assert len(first.chunks) == PROBE
    planner.add("c", 17, 1, 5.0)
    planner.finish(first.id)
    assert sizes(planner.plan(5.001)) == [2]


# 2. Spreading


def test_four_calls_on_four_free_slots_are_four_bundles_at_once() -> None:
    bundles = opened(pool.slots(4), 4).plan(0.02)
    assert [(bundle.chunks, bundle.slots, bundle.width) for bundle in bundles] == [
        ((chunk,), 1, 1) for chunk in range(4)
    ]


def test_chunks_are_dealt_out_evenly() -> None:
    """Neighbours take about as long as each other, and the first results are wanted first."""
    bundles = opened(pool.slots(4), 10).plan(0.02)
    assert [bundle.chunks for bundle in bundles] == [(0, 4, 8), (1, 5, 9), (2, 6), (3, 7)]


def test_every_worker_of_a_wide_slot_gets_a_chunk() -> None:
    planner = opened(pool.WIDE, 32, cost=Cost(60.0))
    planner.exhaust("c")
    assert [bundle.width for bundle in planner.plan(0.0)] == [8, 8, 8, 8]


def test_long_calls_fill_the_one_wide_slot_that_is_free() -> None:
    planner = opened(pool.WIDE, 40, cost=Cost(60.0))
    busy = planner.plan(0.02)
    while planner.under_way > 3:
        planner.finish(busy.pop().id)
    for chunk in range(40, 48):
        planner.add("c", chunk, 1, 1.0)
    planner.exhaust("c")
    assert planner.plan(1.0)[0].width == 8


def test_chunks_of_many_calls_are_weighed_by_their_calls() -> None:
    planner = opened(pool.slots(2))
    for chunk, calls in enumerate([1, 1, 1, 1, 1, 1, 1, 7]):
        planner.add("c", chunk, calls, 0.0)
    assert [bundle.calls for bundle in planner.plan(0.02)] == [7, 7]


# 3. Whole nodes


def test_few_chunks_of_an_exhausted_call_get_a_node_each() -> None:
    planner = opened(TWO_NODES_OF_FOUR, 2)
    planner.exhaust("c")
    assert [(bundle.slots, bundle.width) for bundle in planner.plan(0.0)] == [(4, 1), (4, 1)]
    assert planner.under_way == 8


def test_a_call_that_may_grow_gets_single_slots() -> None:
    assert [bundle.slots for bundle in opened(TWO_NODES_OF_FOUR, 2).plan(0.02)] == [1, 1]


def test_more_chunks_than_nodes_get_single_slots() -> None:
    planner = opened(TWO_NODES_OF_FOUR, 3)
    planner.exhaust("c")
    assert [bundle.slots for bundle in planner.plan(0.0)] == [1, 1, 1]


def test_a_bundle_under_way_may_hold_any_node() -> None:
    planner = opened(TWO_NODES_OF_FOUR, 1)
    planner.plan(0.02)
    planner.open_call("d", n_jobs=8)
    planner.add("d", 0, 1, 1.0)
    planner.add("d", 1, 1, 1.0)
    planner.exhaust("d")
    assert [bundle.slots for bundle in planner.plan(1.0)] == [1, 1]


# 4. and 5. Sizes


def test_unknown_cost_is_probed_and_nothing_waits_behind() -> None:
    planner = opened(pool.slots(4), 1000)
    planner.exhaust("c")
    assert sizes(planner.plan(0.0)) == [PROBE] * 4
    assert planner.next_flush(0.0) is None


def test_a_known_cost_queues_ahead_up_to_twice_the_slots() -> None:
    planner = tasks_measured(opened(pool.slots(4), 1000, cost=Cost(60.0)))
    planner.exhaust("c")
    assert sizes(planner.plan(0.0)) == [1] * 8
    assert planner.under_way == 8


def test_nothing_waits_behind_while_the_cost_of_a_task_is_assumed() -> None:
    """The first bundle of a node does not tell it; what waits behind it would be too short for a slow service."""
    planner = opened(pool.slots(1), 1000, cost=Cost(0.1, 0.0))
    planner.exhaust("c")
    (first,) = planner.plan(0.0)
    planner.finish(first.id, cost=None)
    (second,) = planner.plan(20.0)
    planner.finish(second.id, cost=4.0)
    third = planner.plan(40.0)
    assert max(first.calls, second.calls) * 0.1 < 1.3 * 20.5  # twenty times the assumed second
    assert sizes(third) == [1000 - first.calls - second.calls]  # less than two rounds of twenty times 4 s


def test_a_bundle_lasts_twenty_times_what_a_task_costs() -> None:
    planner = tasks_measured(opened(pool.slots(2), 1000, cost=Cost(0.5)))
    planner.exhaust("c")
    assert sizes(planner.plan(0.0)) == [42] * 4  # 21 s each at 1 s a task: 250 s a slot in 12 rounds


@settings(deadline=None, max_examples=30)
@given(slots=st.integers(1, 6), lane=st.floats(41.0, 150.0), call=st.floats(0.05, 0.5))
def test_tasks_cost_less_than_a_twentieth_of_the_work(slots: int, lane: float, call: float) -> None:
    """Where there are forty times the cost of a task for each slot, and the slots end together anyway."""
    durations = [call] * (int(lane * slots / call) + slots)
    work = pool.Workload(name="c", durations=durations, arrivals=pool.at_once, remembered=Cost(call, 0.0))
    simulation = pool.Simulation(pool.slots(slots), [work], cost=1.0).run()
    assert simulation.tasks * 1.0 < 0.05 * simulation.spent


def test_the_cost_of_a_task_is_measured_and_one_cold_node_does_not_count() -> None:
    planner = opened(pool.slots(4), 7)
    bundles = planner.plan(0.02)
    assert planner.task_cost == 1.0
    planner.finish(bundles[0].id, cost=300.0)
    assert planner.task_cost == 10.0
    planner.finish(bundles[1].id, cost=0.2)
    planner.finish(bundles[2].id, cost=-0.001)
    assert planner.task_cost == 0.2


def test_the_last_round_is_a_bundle_a_slot() -> None:
    planner = opened(pool.slots(4), 2000, cost=Cost(0.001))
    planner.exhaust("c")
    assert sizes(planner.plan(0.0)) == [500] * 4


def test_a_last_round_of_next_to_nothing_is_one_bundle_unless_slots_are_free() -> None:
    planner = tasks_measured(opened(pool.slots(4), 8, cost=Cost(0.001)))
    planner.exhaust("c")
    assert sizes(planner.plan(0.0)) == [2, 2, 2, 2]
    planner.open_call("d", n_jobs=4, cost=Cost(0.001))
    planner.close_call("c")
    for chunk in range(8):
        planner.add("d", chunk, 1, 1.0)
    planner.exhaust("d")
    assert sizes(planner.plan(1.0)) == [8]


def test_the_first_short_outcomes_do_not_decide() -> None:
    planner = opened(pool.slots(4))
    planner.observe("c", PROBE - 1, 0.01)
    assert planner.cost("c") is None
    planner.observe("c", 1, 0.005)
    assert planner.cost("c").seconds == pytest.approx(0.015 / 16)


def test_a_single_long_outcome_does() -> None:
    planner = opened(pool.slots(4))
    planner.observe("c", 1, 60.0)
    assert planner.cost("c").seconds == 60.0


def test_the_deviation_of_calls_is_measured_through_their_chunks() -> None:
    planner = opened(pool.slots(2))
    source = random.Random(4)
    for calls in [1, 2, 3, 5, 8] * 40:
        planner.observe("c", calls, sum(source.gauss(10.0, 2.0) for _ in range(calls)))
    cost = planner.cost("c")
    assert cost is not None
    assert cost.seconds == pytest.approx(10.0, rel=0.05)
    assert cost.deviation == pytest.approx(2.0, rel=0.3)


def test_few_chunks_tell_no_deviation() -> None:
    planner = opened(pool.slots(2), 32)
    for _ in range(3):
        planner.observe("c", 10, 10.0)
    assert planner.cost("c") == Cost(1.0, math.inf)
    planner.observe("c", 10, 10.0)
    assert planner.cost("c") == Cost(1.0, pytest.approx(0.0))


def test_the_mean_follows_durations_that_drift() -> None:
    planner = opened(pool.slots(4))
    for seconds in [1.0] * 500 + [9.0] * 200:
        planner.observe("c", 1, seconds)
    assert planner.cost("c").seconds > 8.0


# 6. n_jobs


def test_n_jobs_is_spread_over_the_nodes_first() -> None:
    assert [bundle.width for bundle in opened(pool.WIDE, 100, n_jobs=4).plan(0.02)] == [1, 1, 1, 1]
    assert [bundle.width for bundle in opened(pool.WIDE, 100, n_jobs=6).plan(0.02)] == [2, 2, 1, 1]


def test_n_jobs_of_one_is_one_call_after_the_other() -> None:
    planner = opened(pool.WIDE, 40, n_jobs=1)
    planner.exhaust("c")
    done = 0
    while bundles := planner.plan(0.0):
        assert [bundle.width for bundle in bundles] == [1]
        done += bundles[0].calls
        planner.finish(bundles[0].id)
    assert done == 40


@pytest.mark.parametrize("n_jobs", [1, 2, 5, 9, 31])
@pytest.mark.parametrize("duration", [0.01, 1.0])
def test_n_jobs_is_never_exceeded(n_jobs: int, duration: float) -> None:
    for capacity in (pool.WIDE, pool.HALVES):
        work = pool.Workload(name="c", durations=[duration] * 300, arrivals=pool.backend, n_jobs=n_jobs)
        pool.Simulation(capacity, [work]).run()
        assert 0 < work.widest <= n_jobs
        assert work.done == 300


# 7. and 8. What the backend dispatches


def test_chunks_grow_once_the_cost_is_known() -> None:
    planner = opened(pool.slots(4), 128)
    assert planner.chunk_size("c") == 1
    planner.plan(0.02)
    planner.observe("c", 16, 0.016)
    growth = []
    for chunk in range(128, 160):
        growth.append(planner.chunk_size("c"))
        planner.add("c", chunk, growth[-1], 1.0)
    assert growth[0] > 10
    assert growth[-1] == 100  # 0.1 s


def test_long_calls_are_chunks_of_their_own() -> None:
    planner = opened(pool.slots(4), 500, cost=Cost(0.3))
    assert planner.chunk_size("c") == 1


def test_the_backlog_is_bounded() -> None:
    planner = opened(pool.slots(4))
    assert planner.wanted("c") == 2 * PROBE * 4
    planner.observe("c", 16, 16e-6)
    assert planner.wanted("c") == MAX_BACKLOG
    planner.add("c", 0, MAX_BACKLOG, 0.0)
    assert planner.wanted("c") == 0
    planner.exhaust("c")
    assert planner.wanted("c") == 0


def test_the_backlog_of_long_calls_is_four_times_the_workers() -> None:
    """What runs, what waits behind, and as much to choose from."""
    planner = opened(pool.WIDE, cost=Cost(3600.0))
    assert planner.wanted("c") == 128
    planner.add("c", 0, 127, 0.0)
    assert planner.wanted("c") == 1


def test_the_backlog_of_a_large_pool_is_never_below_joblibs_own() -> None:
    planner = opened(Capacity(nodes=500, workers_per_node=16, slots_per_node=1))
    assert planner.wanted("c") == 2 * 8000


def test_outcomes_that_are_streamed_make_room() -> None:
    planner = opened(pool.slots(4), 128)
    planner.plan(0.02)
    assert planner.wanted("c") == 0
    planner.observe("c", 10, 0.5)
    assert planner.wanted("c") == 10


# 9. Faults


def test_requeued_chunks_go_first_and_in_order() -> None:
    planner = opened(pool.slots(1), 20)
    (first,) = planner.plan(0.02)
    planner.requeue(first.id, [9, 7, 8])
    assert planner.plan(0.02)[0].chunks == (7, 8, 9, 16, 17, 18, 19)


def test_suspects_of_a_death_travel_alone_and_ahead() -> None:
    planner = opened(pool.WIDE, 64)
    planner.exhaust("c")
    first, *_ = planner.plan(0.0)
    planner.requeue(first.id, first.chunks, alone=True)
    again = planner.plan(0.0)
    assert [(bundle.chunks, bundle.slots, bundle.width) for bundle in again] == [((0,), 1, 1)]
    planner.finish(again[0].id)
    assert planner.plan(0.0)[0].chunks == first.chunks[1:2]


def test_some_suspects_and_the_rest_together() -> None:
    planner = opened(pool.slots(1), 6)
    (first,) = planner.plan(0.02)
    planner.requeue(first.id, [2, 3, 4, 5], alone=[2, 3])
    seen = []
    while bundles := planner.plan(1.0):
        seen.append(bundles[0].chunks)
        planner.finish(bundles[0].id)
    assert seen == [(2,), (3,), (4, 5)]


# Concurrent calls


def test_free_slots_are_shared_between_calls() -> None:
    planner = opened(pool.slots(4), 40)
    planner.open_call("d", n_jobs=4)
    for chunk in range(40):
        planner.add("d", chunk, 1, 0.0)
    assert [bundle.call for bundle in planner.plan(0.02)] == ["c", "d", "c", "d"]


def test_a_call_that_comes_late_is_not_starved() -> None:
    planner = tasks_measured(opened(pool.slots(4), 1000, cost=Cost(60.0)))
    planner.exhaust("c")
    running = planner.plan(0.0)
    planner.open_call("d", n_jobs=4)
    planner.add("d", 0, 1, 1.0)
    assert planner.plan(1.02) == []
    planner.finish(running[0].id)
    assert [bundle.call for bundle in planner.plan(60.0)] == ["d"]


def test_two_concurrent_calls_both_progress() -> None:
    works = [
        pool.Workload(name=name, durations=[cost] * number, arrivals=pool.backend, remembered=Cost(cost))
        for name, cost, number in [("long", 30.0, 100), ("short", 0.1, 1000)]
    ]
    done = pool.Simulation(pool.slots(8), works).run()
    long, short = works
    assert (long.done, short.done) == (100, 1000)
    assert short.end < 100  # not after the 375 s of the other
    assert done.makespan < 1.25 * done.bound()


# 10. Closing, and errors that say what is wrong


def test_a_closed_call_counts_until_its_bundles_end() -> None:
    planner = opened(pool.slots(2), 4)
    bundles = planner.plan(0.02)
    planner.close_call("c")
    assert planner.under_way == 2
    planner.observe("c", 1, 1.0)
    planner.requeue(bundles[0].id, bundles[0].chunks)
    planner.finish(bundles[1].id)
    assert planner.under_way == planner.queued == 0
    assert planner.plan(1.0) == []
    planner.open_call("c", n_jobs=1)


def test_a_smaller_pool_waits_until_it_has_room() -> None:
    planner = opened(pool.slots(4), 8)
    bundles = planner.plan(0.02)
    planner.add("c", 8, 1, 1.0)
    assert planner.plan(2.0, capacity=pool.slots(1)) == []
    for bundle in bundles:
        planner.finish(bundle.id)
    assert sizes(planner.plan(3.0)) == [1]


def test_misuse_is_refused() -> None:
    planner = opened(pool.slots(2), 1)
    with pytest.raises(ValueError, match="open already"):
        planner.open_call("c", n_jobs=1)
    with pytest.raises(ValueError, match="n_jobs"):
        planner.open_call("d", n_jobs=-1)
    with pytest.raises(ValueError, match=r"cost\.seconds"):
        planner.open_call("d", n_jobs=1, cost=Cost(float("nan")))
    with pytest.raises(ValueError, match="queued or under way"):
        planner.add("c", 0, 1, 0.0)
    with pytest.raises(ValueError, match="at least one call"):
        planner.add("c", 1, 0, 0.0)
    with pytest.raises(ValueError, match="seconds"):
        planner.observe("c", 1, -1.0)
    (bundle,) = planner.plan(0.02)
    with pytest.raises(ValueError, match="distinct"):
        planner.requeue(bundle.id, [5])
    with pytest.raises(ValueError, match="distinct"):
        planner.requeue(bundle.id, [0, 0])
    planner.finish(bundle.id)
    with pytest.raises(KeyError, match="not under way"):
        planner.finish(bundle.id)
    planner.exhaust("c")
    with pytest.raises(ValueError, match="exhaust"):
        planner.add("c", 9, 1, 0.0)
    with pytest.raises(KeyError, match="not open"):
        planner.wanted("nobody")
    with pytest.raises(ValueError, match="nodes"):
        Capacity(nodes=0, workers_per_node=1, slots_per_node=1)


# The simulated pool


@pytest.mark.parametrize("name", pool.SCENARIOS)
def test_makespan_and_tasks(name: str) -> None:
    case = pool.SCENARIOS[name]
    done = case.run()
    work = done.workloads["call"]
    assert work.done == len(case.durations)
    assert done.makespan <= case.factor * done.bound()
    assert done.tasks <= case.tasks
    assert done.most_under_way <= case.capacity.most_under_way <= 2 * case.capacity.slots
    assert done.planner.under_way == done.planner.queued == 0


def test_long_calls_end_balanced_and_busy() -> None:
    done = pool.SCENARIOS["1,000 x 60 s, 8 slots"].run()
    assert done.utilisation > 0.97
    last = sorted(done.ends)[-8:]
    assert last[-1] - last[0] <= 61.0


def test_a_slow_generator_is_served_call_by_call() -> None:
    work = pool.SCENARIOS["40 x 0.2 s, one each 0.5 s, 4 slots"].run().workloads["call"]
    assert work.first_submit - work.first_add <= 0.015
    assert work.first_result <= 1.0 + 0.2 + 0.015 + pool.STREAM


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_chunk_is_in_one_bundle_and_the_slots_add_up(data: st.DataObject) -> None:
    capacity = data.draw(
        st.builds(
            Capacity,
            nodes=st.integers(1, 4),
            workers_per_node=st.integers(1, 9),
            slots_per_node=st.integers(1, 10),
        )
    )
    planner, now, number, names = Planner(capacity), 0.0, 0, ("a", "b", "c")
    source = random.Random(data.draw(st.integers(0, 2**32)))
    queued: dict[str, set[int]] = {}
    alone: set[tuple[str, int]] = set()
    n_jobs: dict[str, int] = {}
    closed: set[str] = set()
    exhausted: set[str] = set()
    running: dict[int, Bundle] = {}

    def plan() -> None:
        for bundle in planner.plan(now):
            assert queued[bundle.call].issuperset(bundle.chunks)
            assert len(set(bundle.chunks)) == len(bundle.chunks) >= bundle.width >= 1
            assert bundle.slots in (1, capacity.slots_per_node)
            assert bundle.width <= max(1, capacity.workers_per_slot)
            assert bundle.call not in closed
            suspects = alone & {(bundle.call, chunk) for chunk in bundle.chunks}
            assert not suspects or (len(bundle.chunks), bundle.width, bundle.slots) == (1, 1, 1)
            alone.difference_update(suspects)
            queued[bundle.call].difference_update(bundle.chunks)
            running[bundle.id] = bundle
        assert planner.under_way == sum(bundle.slots for bundle in running.values())
        assert planner.under_way <= max(capacity.slots, capacity.most_under_way) <= 2 * capacity.slots
        assert set(planner.bundles) == set(running.values())
        for call in n_jobs.keys() - closed:
            if n_jobs[call] < capacity.parallel:
                assert sum(b.width for b in running.values() if b.call == call) <= n_jobs[call]
        flush = planner.next_flush(now)
        assert flush is None or flush > now

    for name in names:
        n_jobs[name], queued[name] = source.randint(1, 2 * capacity.workers), set()
        planner.open_call(
            name, n_jobs=n_jobs[name], cost=source.choice([None, Cost(1e-4), Cost(0.1, 0.0), Cost(30.0, 9.0)])
        )
    for _ in range(data.draw(st.integers(0, 60))):
        now += source.choice([0.0, 0.001, 0.02, 1.0])
        name = source.choice(names)
        action = source.choice(["add", "add", "add", "finish", "requeue", "observe", "exhaust", "close"])
        if action == "add" and name not in closed | exhausted:
            for _ in range(source.choice([1, 3, 40])):
                planner.add(name, number, source.choice([1, 1, 7, 100]), now)
                queued[name].add(number)
                number += 1
        elif action == "finish" and running:
            planner.finish(source.choice(list(running)), cost=source.choice([None, 0.1, 5.0]))
            running = {bundle.id: bundle for bundle in planner.bundles}
        elif action == "requeue" and running:
            bundle = running.pop(source.choice(list(running)))
            back = [chunk for chunk in bundle.chunks if source.random() < 0.7]
            suspects = source.choice([[], back, back[:2]])
            planner.requeue(bundle.id, back, alone=suspects if len(suspects) < len(back) else True)
            if bundle.call not in closed:
                queued[bundle.call].update(back)
                alone.update((bundle.call, chunk) for chunk in suspects)
        elif action == "observe" and name not in closed:
            planner.observe(name, source.randint(1, 50), source.choice([0.001, 1.0, 100.0]))
            assert planner.wanted(name) >= 0
            assert planner.chunk_size(name) >= 1
        elif action == "exhaust" and name not in closed and source.random() < 0.3:
            planner.exhaust(name)
            exhausted.add(name)
        elif action == "close" and name not in closed and source.random() < 0.1:
            planner.close_call(name)
            closed.add(name)
        plan()
    for name in set(names) - closed - exhausted:
        planner.exhaust(name)
    plan()
    while running:
        planner.finish(running.popitem()[0])
        plan()
    assert not any(queued[name] for name in set(names) - closed)
    assert planner.queued == planner.under_way == 0


@settings(max_examples=25, deadline=None)
@given(
    nodes=st.integers(1, 5),
    cores=st.integers(1, 6),
    slots=st.integers(1, 6),
    durations=st.lists(st.sampled_from([0.001, 0.05, 1.0, 20.0]), min_size=1, max_size=150),
    arrivals=st.sampled_from([pool.at_once, pool.backend, pool.every(0.05, 3)]),
    n_jobs=st.one_of(st.none(), st.integers(1, 40)),
    deaths=st.sampled_from([0.0, 0.2]),
)
def test_every_simulation_ends_and_runs_every_call(
    nodes: int,
    cores: int,
    slots: int,
    durations: list[float],
    arrivals: pool.Arrivals,
    n_jobs: int | None,
    deaths: float,
) -> None:
    capacity = Capacity(nodes=nodes, workers_per_node=cores, slots_per_node=slots)
    work = pool.Workload(name="call", durations=durations, arrivals=arrivals, n_jobs=n_jobs)
    done = pool.Simulation(capacity, [work], deaths=deaths).run()
    assert work.done == len(durations)
    assert done.most_under_way <= 2 * capacity.slots
    assert done.planner.under_way == done.planner.queued == 0
