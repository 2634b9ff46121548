"""The formulas, run: over recorded demand on a simulated clock, and over any samples and bounds that there can be."""

from __future__ import annotations

import datetime
import math
import re
from fractions import Fraction
from typing import Any

import pytest
from autoscale_simulation import (
    BUSY_DAY,
    DAY,
    DEMANDS,
    HOUR,
    MONDAY,
    NOTHING,
    SPIKE,
    STEP,
    WEEKEND,
    Arrival,
    Demand,
    Moment,
    Preemption,
    Run,
    Simulation,
    ideal_node_hours,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from joblib_azure.autoscale import DEALLOCATIONS, FORMULAS, MAX_BYTES, formula
from joblib_azure.emulator.autoscale import METRICS, History, Outcome, Samples, check, evaluate, parse, values

USABLE = tuple(name for name in FORMULAS if name != "MAX_CPU")
DEDICATED, SPOT, SLOTS = (0, 4), (0, 12), 4


def simulate(demand: Demand, name: str, *, preemptions: tuple[Preemption, ...] = (), **more: Any) -> Run:
    options = {"dedicated": DEDICATED, "spot": SPOT, "task_slots_per_node": SLOTS, **more}
    return Simulation(demand, formula(name, **options), slots=SLOTS, preemptions=preemptions).run()


def at_work(demand: Demand, moment: Moment, name: str) -> bool:
    """Whether a moment is in the time that WORKDAY or WEEKEND name."""
    time = demand.start + datetime.timedelta(seconds=moment.at)
    workday = time.isoweekday() <= 5
    return not workday if name == "WEEKEND" else workday and 8 <= time.hour < 18


# -- over recorded demand ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("demand", DEMANDS, ids=lambda demand: demand.name)
@pytest.mark.parametrize("name", USABLE)
def test_every_formula_over_every_demand(name: str, demand: Demand) -> None:
    run = simulate(demand, name)
    assert run.left == 0
    for moment in run.moments:
        assert DEDICATED[0] <= moment.target_dedicated <= DEDICATED[1]
        assert SPOT[0] <= moment.target_spot <= SPOT[1]
    if name in ("WORKDAY", "WEEKEND"):
        for moment in run.moments:
            if at_work(demand, moment, name):
                assert (moment.target_dedicated, moment.target_spot) == (DEDICATED[1], SPOT[1])
    else:
        last = run.moments[-1]
        assert (last.target_dedicated, last.target_spot, last.nodes) == (0, 0, 0)
        assert max(moment.target_dedicated for moment in run.moments) == (DEDICATED[1] if demand.arrivals else 0)


@pytest.mark.parametrize("name", ["QUEUE", "QUEUE_AND_RUNNING"])
def test_a_pool_that_nobody_uses_never_has_a_node(name: str) -> None:
    assert all(moment.nodes == 0 for moment in simulate(NOTHING, name).moments)


@pytest.mark.parametrize("name", USABLE)
def test_minima_are_kept_when_nothing_is_to_do(name: str) -> None:
    run = simulate(NOTHING, name, dedicated=(1, 3), spot=(2, 5))
    night = [moment for moment in run.moments if not at_work(NOTHING, moment, name)]
    assert {(moment.target_dedicated, moment.target_spot) for moment in night} == {(1, 2)}


@pytest.mark.parametrize("idle", [60, 300, 900, 3600])
def test_nodes_stay_for_the_idle_time_and_no_longer_than_needed(idle: int) -> None:
    demand = Demand("one", MONDAY, 6 * HOUR, (Arrival(HOUR, 16, 600),))
    run = simulate(demand, "QUEUE_AND_RUNNING", idle_seconds=idle)
    last_busy = max(moment.at for moment in run.moments if moment.queued or moment.running)
    last_node = max(moment.at for moment in run.moments if moment.nodes)
    # a sample is read a minute late, and the formula is evaluated every five minutes
    assert idle <= last_node - last_busy <= idle + 60 + 300 + STEP


def test_a_pool_grows_at_the_next_evaluation_behind_the_first_sample() -> None:
    run = simulate(SPIKE, "QUEUE_AND_RUNNING")
    first = min(moment.at for moment in run.moments if moment.nodes)
    assert first - SPIKE.arrivals[0].at <= 300 + 60
    assert max(moment.nodes for moment in run.moments) == DEDICATED[1] + SPOT[1]


def test_the_pool_shares_demand_between_its_kinds() -> None:
    demand = Demand("twelve", MONDAY, 2 * HOUR, (Arrival(600, 12, 1200),))
    wanted = 3  # nodes of four slots
    for spot, expected in (((0, 12), (0, 3)), ((0, 2), (1, 2)), ((0, 0), (3, 0))):
        run = simulate(demand, "QUEUE_AND_RUNNING", spot=spot)
        peak = max(run.moments, key=lambda moment: moment.nodes)
        assert (peak.target_dedicated, peak.target_spot) == expected
        assert peak.nodes == wanted
    peak = max(simulate(demand, "QUEUE_AND_RUNNING", dedicated=(2, 4)).moments, key=lambda moment: moment.nodes)
    assert (peak.target_dedicated, peak.target_spot) == (2, 1)


def test_queue_is_thriftier_and_queue_and_running_faster() -> None:
    runs = {name: simulate(BUSY_DAY, name, idle_seconds=120) for name in ("QUEUE", "QUEUE_AND_RUNNING")}
    assert runs["QUEUE"].node_hours <= runs["QUEUE_AND_RUNNING"].node_hours
    assert runs["QUEUE"].mean_wait >= runs["QUEUE_AND_RUNNING"].mean_wait
    # The tail: as many run as are queued. One formula lets the queued wait, the other has a slot for each.
    samples = {"$ActiveTasks": [8] * 40, "$RunningTasks": [8] * 40, "$PendingTasks": [16] * 40}
    targets = {name: outcome_of(formula(name, dedicated=(0, 9)), samples).dedicated for name in runs}
    assert targets == {"QUEUE": 8, "QUEUE_AND_RUNNING": 9}


def test_running_tasks_keep_their_nodes_when_the_queue_is_empty() -> None:
    demand = Demand("long", MONDAY, 4 * HOUR, (Arrival(600, 16, 2 * HOUR),))
    for name in ("QUEUE", "QUEUE_AND_RUNNING"):
        run = simulate(demand, name, idle_seconds=60)
        assert {moment.target_spot for moment in run.moments if moment.running} == {4}


def test_nodes_that_tasks_run_on_stay_and_take_the_next_ones() -> None:
    # eight long tasks, spread over eight nodes of four slots, as many short ones, and then others
    demand = Demand("spread", MONDAY, 5 * HOUR, (Arrival(600, 32, 1800), Arrival(630, 8, 3 * HOUR)))
    run = simulate(demand, "QUEUE_AND_RUNNING", idle_seconds=60)
    alone = [moment for moment in run.moments if moment.running == 8 and moment.at < 3 * HOUR]
    assert alone
    assert {moment.target_dedicated + moment.target_spot for moment in alone[30:]} == {8}
    assert max(moment.nodes for moment in run.moments) == 10


def test_node_hours_stay_near_the_ideal_for_a_long_run() -> None:
    ideal = ideal_node_hours(WEEKEND, slots=SLOTS, most=DEDICATED[1] + SPOT[1])
    assert ideal < simulate(WEEKEND, "QUEUE_AND_RUNNING", idle_seconds=300).node_hours < 1.5 * ideal


def test_preempted_nodes_do_not_count_as_nodes_that_work() -> None:
    demand = Demand("long", MONDAY, 5 * HOUR, (Arrival(600, 48, 3600),))
    lost = (Preemption(2400, 8, 4 * HOUR),)
    plain = simulate(demand, "QUEUE_AND_RUNNING", preemptions=lost)
    during = [moment for moment in plain.moments if moment.preempted and moment.queued]
    assert any(moment.spot < moment.target_spot for moment in during)
    # the targets follow the tasks, however many of the nodes are preempted
    assert all(moment.target_spot >= min(12, (moment.queued + moment.running) / SLOTS) for moment in during)
    assert {moment.target_dedicated for moment in during} == {0}
    fallback = simulate(demand, "QUEUE_AND_RUNNING", preemptions=lost, spot_fallback=True)
    during = [moment for moment in fallback.moments if moment.preempted and moment.queued and moment.at >= 2400 + 360]
    assert {moment.target_dedicated for moment in during} == {4}
    assert max(fallback.waits) < max(plain.waits) or fallback.mean_wait < plain.mean_wait
    for run in (plain, fallback):
        assert (run.left, run.moments[-1].nodes) == (0, 0)


def test_fallback_ends_when_spot_nodes_come_back() -> None:
    hours = tuple(Arrival(600 + 1800 * number, 40, 1200) for number in range(8))
    demand = Demand("steady", MONDAY, 6 * HOUR, hours)
    run = simulate(demand, "QUEUE_AND_RUNNING", preemptions=(Preemption(1800, 3, 3600),), spot_fallback=True)
    assert {moment.target_dedicated for moment in run.moments if moment.at < 1800} == {0}
    assert max(moment.target_dedicated for moment in run.moments if 1800 <= moment.at < 5400) >= 3
    # back at 5400: within two rounds of tasks, the dedicated nodes that took their place have gone
    assert {moment.target_dedicated for moment in run.moments if moment.at >= 5400 + 3600} == {0}
    assert {moment.target_spot for moment in run.moments if 5400 + 3600 <= moment.at < 4 * HOUR} == {10}


# -- over any samples -------------------------------------------------------------------------------------------------


NOW = MONDAY + datetime.timedelta(hours=3)


def outcome_of(
    text: str,
    samples: dict[str, list[int]],
    *,
    now: datetime.datetime = NOW,
    dedicated: int = 0,
    spot: int = 0,
) -> Outcome:
    """Evaluate a formula where the last of the samples was taken a minute ago."""
    histories = {name: History() for name in METRICS}
    for name, series in samples.items():
        first = now - datetime.timedelta(seconds=60 + STEP * (len(series) - 1))
        for number, value in enumerate(series):
            histories[name].add(first + datetime.timedelta(seconds=STEP * number), value)
    parsed = parse(text)
    check(parsed)
    return evaluate(parsed, Samples(now=now, histories=histories), dedicated=dedicated, spot=spot)


bounds = st.tuples(st.integers(0, 40), st.integers(0, 60)).map(lambda pair: (pair[0], pair[0] + pair[1]))
series = st.lists(st.integers(0, 500), min_size=0, max_size=60)


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(USABLE),
    dedicated=bounds,
    spot=bounds,
    slots=st.integers(1, 64),
    idle=st.integers(0, 3600),
    fallback=st.booleans(),
    tasks=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), max_size=60),
    preempted=st.integers(0, 50),
    targets=st.tuples(st.integers(0, 100), st.integers(0, 100)),
    hours=st.integers(0, 24 * 7),
    deallocation=st.sampled_from(DEALLOCATIONS),
)
def test_any_demand_within_any_bounds(
    name: str,
    dedicated: tuple[int, int],
    spot: tuple[int, int],
    slots: int,
    idle: int,
    fallback: bool,
    tasks: list[tuple[int, int]],
    preempted: int,
    targets: tuple[int, int],
    hours: int,
    deallocation: str,
) -> None:
    text = formula(
        name,
        dedicated=dedicated,
        spot=spot,
        task_slots_per_node=slots,
        idle_seconds=idle,
        spot_fallback=fallback,
        deallocation=deallocation,
    )
    now = MONDAY + datetime.timedelta(hours=hours)
    samples = {
        "$ActiveTasks": [queued for queued, _ in tasks],
        "$RunningTasks": [running for _, running in tasks],
        "$PendingTasks": [queued + running for queued, running in tasks],
        "$PreemptedNodeCount": [preempted] * len(tasks),
    }
    found = outcome_of(text, samples, now=now, dedicated=targets[0], spot=targets[1])
    assert found.problem is None
    assert found.option == deallocation
    assert dedicated[0] <= found.dedicated <= dedicated[1]
    assert spot[0] <= found.spot <= spot[1]

    # What the description of the formulas says, computed in another way.
    window = max(60, idle) + 60
    seen = [pair for number, pair in enumerate(reversed(tasks)) if number == 0 or 60 + STEP * number <= window]
    most_queued = max((queued for queued, _ in seen), default=0)
    most_running = max((running for _, running in seen), default=0)
    most_pending = max((queued + running for queued, running in seen), default=0)
    most = max(most_queued, most_running) if name == "QUEUE" else most_pending
    wanted = Fraction(most + slots - 1, slots)
    assert math.floor(wanted) == math.ceil(most / slots)
    weekday, hour = now.isoweekday(), now.hour
    if (name == "WORKDAY" and weekday <= 5 and 8 <= hour < 18) or (name == "WEEKEND" and weekday > 5):
        wanted = Fraction(dedicated[1] + spot[1])
    for_spot = min(spot[1], max(spot[0], wanted - dedicated[0]))
    lost = min(for_spot, preempted) if fallback and tasks else 0
    for_dedicated = max(dedicated[0], wanted - for_spot) + lost
    possible = max(1, round((window - 60) / STEP))
    there = sum(60 <= 60 + STEP * number <= window for number in range(len(tasks)))
    busy = tasks[-1][1] if tasks and slots > 1 else 0
    if round(100 * there / possible) >= 70:  # no more nodes leave than there are without tasks
        for_spot = max(for_spot, min(busy, targets[1] - (preempted if tasks else 0))) if spot[1] else 0
        for_dedicated = max(for_dedicated, min(busy - for_spot, targets[0]) if busy else 0)
    else:  # samples lack: it grows, and does not shrink
        for_dedicated, for_spot = max(for_dedicated, targets[0]), max(for_spot, targets[1])
    expected = (min(dedicated[1], math.floor(for_dedicated)), min(spot[1], math.floor(for_spot)))
    assert (found.dedicated, found.spot) == expected


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(USABLE),
    floor=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    seconds=st.integers(-1000, 1000),
    pending=st.integers(0, 100),
)
def test_floor_until_a_deadline(name: str, floor: tuple[int, int], seconds: int, pending: int) -> None:
    options: dict[str, Any] = {"dedicated": (1, 20), "spot": (0, 30), "idle_seconds": 300}
    samples = {"$PendingTasks": [pending] * 40, "$ActiveTasks": [pending] * 40, "$RunningTasks": [0] * 40}
    plain = outcome_of(formula(name, **options), samples)
    until = NOW + datetime.timedelta(seconds=seconds)
    found = outcome_of(formula(name, **options, floor=floor, floor_until=until), samples)
    if seconds > 0:
        assert found.dedicated == max(plain.dedicated, min(20, floor[0]))
        assert found.spot == max(plain.spot, min(30, floor[1]))
    else:
        assert (found.dedicated, found.spot) == (plain.dedicated, plain.spot)


def test_a_floor_works_in_a_pool_that_has_no_samples_yet() -> None:
    until = NOW + datetime.timedelta(minutes=10)
    text = formula("QUEUE", dedicated=(0, 2), spot=(0, 3), floor=(1, 9), floor_until=until)
    found = outcome_of(text, {})
    assert (found.dedicated, found.spot) == (1, 3)
    local = until.astimezone(datetime.timezone(datetime.timedelta(hours=5)))
    again = formula("QUEUE", dedicated=(0, 2), spot=(0, 3), floor=(1, 9), floor_until=local)
    naive = formula("QUEUE", dedicated=(0, 2), spot=(0, 3), floor=(1, 9), floor_until=until.replace(tzinfo=None))
    assert text == again == naive


@pytest.mark.parametrize("sunday", [0, 7])
def test_weekends_are_known_whatever_number_sunday_has(monkeypatch: pytest.MonkeyPatch, sunday: int) -> None:
    monkeypatch.setattr(values, "SUNDAY", sunday)
    for name in ("WORKDAY", "WEEKEND"):
        text = formula(name, dedicated=(0, 5))
        for day in range(7):
            noon = MONDAY + datetime.timedelta(days=day, hours=12)
            active = day < 5 if name == "WORKDAY" else day >= 5
            assert outcome_of(text, {"$PendingTasks": [0] * 60}, now=noon).dedicated == (5 if active else 0)


# -- the text ---------------------------------------------------------------------------------------------------------


def test_no_named_formula_uses_what_the_service_may_not_have() -> None:
    until = datetime.datetime(2027, 1, 1, tzinfo=datetime.timezone.utc)
    for name in USABLE:
        options: dict[str, Any] = {"spot_fallback": True, "floor": (5, 5), "floor_until": until}
        text = formula(name, dedicated=(1, 9), spot=(1, 9), task_slots_per_node=256, **options)
        assert len(text) < MAX_BYTES / 4
        assert not re.search(r"\b(ceil|floor|round)\(|\$CPUPercent|\$Current", text)
        assert not re.search(r"GetSample\([^()]*,", text)  # none demands a percentage


def test_max_cpu_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"MAX_CPU needs \$CPUPercent, and Batch no longer samples it.*QUEUE_AND_RUNN"):
        formula("MAX_CPU", dedicated=(0, 1))
    own = "$TargetDedicatedNodes = avg($MemoryBytes.GetSample(10)) > 5 ? 1 : 0;"
    with pytest.raises(ValueError, match=r"the formula needs \$MemoryBytes"):
        formula(own, dedicated=(0, 1))
    assert "3" in formula("$TargetDedicatedNodes = 3; // not by $CPUPercent", dedicated=(0, 1))


@pytest.mark.parametrize("end", ["", ";", "; // the end", " // the end", ";\n\n// the end\n"])
def test_a_formula_of_the_user_s_own(end: str) -> None:
    own = f"n = 3;\n$TargetDedicatedNodes = n{end}"
    text = formula(own, dedicated=(0, 1))
    assert text.startswith(own.strip())
    found = outcome_of(text, {})
    assert (found.problem, found.dedicated, found.spot, found.option) == (None, 3, 0, "taskcompletion")
    until = NOW + datetime.timedelta(hours=1)
    raised = outcome_of(formula(own, dedicated=(0, 5), spot=(0, 2), floor=(9, 9), floor_until=until), {})
    assert (raised.problem, raised.dedicated, raised.spot) == (None, 5, 2)
    line = '$TargetDedicatedNodes = max($TargetDedicatedNodes, time() < time("2026-03-02T04:00:00Z") ? 5 : 0);'
    assert line in formula(own, dedicated=(0, 5), floor=(9, 9), floor_until=until).splitlines()
    chosen = formula(f"$NodeDeallocationOption = requeue; {own}", dedicated=(0, 1))
    assert outcome_of(chosen, {}).option == "requeue"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("QUEUES", {}, "sets neither .* QUEUE, QUEUE_AND_RUNNING, WORKDAY, WEEKEND"),
        ("", {}, "sets neither"),
        ("x = 1; // $TargetDedicatedNodes = 1", {}, "sets neither"),
        ("x = $TargetDedicatedNodes == 1;", {}, "sets neither"),
        ("$TargetDedicatedNodes = 1;" * 101, {}, "102 statements; the service takes 100"),
        (f"// {'x' * 8192}\n$TargetDedicatedNodes = 1;", {}, "8[0-9]{3} bytes; the service takes 8192"),
        ("QUEUE", {"dedicated": (2, 1)}, "dedicated nodes from 2 to 1 are no bounds"),
        ("QUEUE", {"spot": (-1, 1)}, "spot nodes from -1 to 1 are no bounds"),
        ("QUEUE", {"task_slots_per_node": 0}, "0 task slots"),
        ("QUEUE", {"idle_seconds": math.nan}, "idle_seconds"),
        ("QUEUE", {"deallocation": "now"}, "one of requeue, terminate, taskcompletion, retaineddata"),
        ("QUEUE", {"floor": (1, 1)}, "floor and floor_until go together"),
        ("QUEUE", {"floor_until": MONDAY}, "floor and floor_until go together"),
    ],
)
def test_what_is_refused(text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        formula(text, **{"dedicated": (0, 1), **options})


def test_a_day_is_a_day() -> None:
    assert BUSY_DAY.seconds == DAY
    assert BUSY_DAY.ends < DAY
    assert {demand.start.isoweekday() for demand in DEMANDS} == {2, 3, 4, 5}
