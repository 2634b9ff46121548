"""Node-hours, prices and estimates: pure functions, held against sums that are done another way."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import runs_lab as lab
from hypothesis import given
from hypothesis import strategies as st

from joblib_azure.report import Estimate, History, JobCost, NodeHours, NodePrices, Phases, TaskRun, Timeline
from joblib_azure.report.cost import Meter, billed, money, number
from joblib_azure.report.nodetime import NodeFacts, node_time

USD = NodePrices(currency="USD", dedicated=0.2, spot=0.05, source="the configuration's")
FREE = NodePrices(source="the nodes are emulated on this machine", free=True)
UNKNOWN = NodePrices(currency="USD", source="nobody was asked")

hours = st.floats(0, 1e6)
node_hours = st.builds(NodeHours, dedicated=hours, spot=hours, unknown=hours)


def close(first: NodeHours, second: NodeHours) -> bool:
    return all(
        math.isclose(getattr(first, kind), getattr(second, kind), rel_tol=1e-9, abs_tol=1e-7)
        for kind in ("dedicated", "spot", "unknown")
    )


# the meter --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 1e5), st.integers(0, 10_000), st.integers(0, 10_000))), st.floats(0, 1e5))
def test_a_meter_holds_each_count_until_the_next_one(counts: list[tuple[float, int, int]], rest: float) -> None:
    meter, now = Meter(), 1000.0
    expected, have = NodeHours(), (0, 0)
    for pause, dedicated, spot in counts:
        now += pause
        expected += NodeHours(dedicated=have[0] * pause / 3600, spot=have[1] * pause / 3600)
        before = meter.hours(now)
        meter.take(now, dedicated, spot)
        assert close(meter.hours(now), before)  # a count changes what is to come, and nothing that was
        have = dedicated, spot
    expected += NodeHours(dedicated=have[0] * rest / 3600, spot=have[1] * rest / 3600)
    assert close(meter.hours(now + rest), expected)


def test_a_meter_does_not_count_before_its_first_count_or_backwards() -> None:
    meter = Meter()
    assert meter.hours(1e9) == NodeHours()
    meter.take(7200.0, 3, 1)
    assert meter.hours(7200.0) == NodeHours()
    assert meter.hours(3600.0) == NodeHours()
    meter.take(3600.0, 1, 0)  # a count that was under way for long
    assert close(meter.hours(10800.0), NodeHours(dedicated=1.0))


def test_what_azure_bills() -> None:
    states = {"idle": 1, "running": 2, "starting": 4, "creating": 8, "unusable": 16, "starttaskfailed": 32}
    assert billed({**states, "preempted": 64, "deallocated": 128}) == 63
    assert billed({}) == 0


# estimates --------------------------------------------------------------------------------------------------


@given(node_hours, node_hours, st.floats(0, 1e4), st.floats(0, 1e4))
def test_an_estimate_is_hours_times_prices(first: NodeHours, second: NodeHours, dedicated: float, spot: float) -> None:
    prices = NodePrices(currency="EUR", dedicated=dedicated, spot=spot, source="a test")

    def amount(of: NodeHours) -> float:
        found = Estimate(hours=of, prices=prices).amount
        assert found is not None
        return found

    assert amount(NodeHours()) == 0
    assert amount(first) >= 0
    assert math.isclose(amount(first + second), amount(first) + amount(second), rel_tol=1e-9, abs_tol=1e-6)
    assert amount(NodeHours(spot=1)) == spot
    assert amount(NodeHours(dedicated=1)) == amount(NodeHours(unknown=1)) == dedicated
    assert Estimate(hours=first, prices=FREE).amount == 0
    assert Estimate(hours=first, prices=UNKNOWN).amount is None
    assert close(first + second - second, first) or max(vars(first + second).values()) > 1e5


def test_there_is_no_money_without_the_price_of_a_kind_that_ran() -> None:
    only = NodePrices(currency="USD", dedicated=0.2, source="the list")
    assert Estimate(hours=NodeHours(dedicated=2.0), prices=only).amount == 0.4
    lacking = Estimate(hours=NodeHours(dedicated=2.0, spot=0.1), prices=only)
    assert lacking.amount is None
    assert lacking.why == "there is no price of spot nodes (the list)"
    assert lacking.short == "≈ 2.10 node-h"
    unknown = Estimate(hours=NodeHours(unknown=1.0), prices=NodePrices(spot=0.1, source="x"))
    assert unknown.why == "there is no price of dedicated nodes (x)"


def test_words_are_always_those_of_an_estimate() -> None:
    found = Estimate(hours=NodeHours(dedicated=2.0, spot=0.4), prices=USD)
    assert found.short == "≈ 0.42 USD"
    assert str(found) == (
        "≈ 0.42 USD, estimated: 2.00 dedicated and 0.4 spot node-hours at 0.2 USD dedicated and 0.05 USD spot an hour, "
        "the configuration's"
    )
    assert found.data()["estimate"] is True
    none = Estimate(hours=NodeHours(dedicated=1.5), prices=UNKNOWN)
    assert none.short == "≈ 1.50 node-h"
    assert str(none) == "1.50 dedicated node-hours, estimated; no money: nobody was asked"
    assert none.data()["amount"] is None
    local = Estimate(hours=NodeHours(dedicated=0.5), prices=FREE)
    assert (local.short, local.amount) == ("no cost", 0.0)
    assert str(local) == "no cost (the nodes are emulated on this machine); 0.5 dedicated node-hours"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0"),
        (1e-9, "under 0.0001"),
        (0.0001, "0.0001"),
        (0.00423, "0.0042"),
        (0.0994, "0.099"),
        (0.0997, "0.1"),
        (0.192, "0.192"),
        (0.9948, "0.995"),
        (0.9951, "1.00"),
        (9.994, "9.99"),
        (9.996, "10"),
        (42.57, "42.6"),
        (99.94, "99.9"),
        (99.96, "100"),
        (999.4, "999"),
        (999.6, "1,000"),
        (1234567.8, "1,234,568"),
    ],
)
def test_numbers_have_the_digits_that_an_estimate_has(value: float, said: str) -> None:
    assert number(value) == said


@given(st.floats(1e-4, 1e9))
def test_a_number_says_what_it_is(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=0.05)
    assert money(value, "USD").endswith(" USD")


# the nodes of a job -----------------------------------------------------------------------------------------


def run(begun: float, seconds: float, node: str = "a", **more: Any) -> TaskRun:
    return lab.task_run(0, node, begun, Phases(compute=seconds), **{"cores": 4, "workers": 4, **more})


def times(runs: list[TaskRun], **facts: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Return the seconds kept and used, by kind."""
    kept, used = node_time(lab.history(runs), NodeFacts(**facts))
    return tuple({k: round(3600 * v, 3) for k, v in vars(each).items() if v} for each in (kept, used))  # type: ignore[return-value]


def test_a_node_is_kept_from_the_first_task_to_the_last() -> None:
    runs = [run(10, 20, dedicated=True), run(50, 50, dedicated=True)]
    assert times(runs) == ({"dedicated": 90}, {"dedicated": 70})
    # Half of its cores is half of it; more tasks than cores have no more than all of them.
    halves = [run(0, 10, workers=2, dedicated=False), run(5, 10, workers=2, dedicated=False)]
    assert times(halves) == ({"spot": 15}, {"spot": 10})
    crowd = [run(0, 10, workers=1, cores=1, dedicated=True) for _ in range(4)]
    assert times(crowd) == ({"dedicated": 10}, {"dedicated": 10})
    assert times([]) == ({}, {})


def test_a_node_that_came_for_the_job_is_kept_from_its_start() -> None:
    runs = [run(100, 20, dedicated=True)]
    assert times(runs, allocated={"a": lab.ORIGIN + 40}) == ({"dedicated": 80}, {"dedicated": 20})
    # One that was there before the job was not started for it.
    assert times(runs, allocated={"a": lab.ORIGIN - 500}) == ({"dedicated": 20}, {"dedicated": 20})
    # A clock that is not quite the service's, and a node that came back after all that is known.
    assert times(runs, allocated={"a": lab.ORIGIN + 101}) == ({"dedicated": 20}, {"dedicated": 20})
    assert times(runs, allocated={"a": lab.ORIGIN + 900, "other": lab.ORIGIN}) == ({"dedicated": 20}, {"dedicated": 20})


def test_a_preempted_node_costs_nothing_until_it_is_back() -> None:
    def lost_and_back(dedicated: bool | None) -> list[TaskRun]:
        return [run(0, 10, state="preempted", dedicated=dedicated), run(60, 30, dedicated=dedicated)]

    assert times(lost_and_back(False)) == ({"spot": 40}, {"spot": 40})
    assert times(lost_and_back(False), allocated={"a": lab.ORIGIN + 45}) == ({"spot": 55}, {"spot": 40})
    assert times(lost_and_back(None))[0] == {"unknown": 40}
    # On a dedicated node that was a reboot.
    assert times(lost_and_back(True))[0] == {"dedicated": 90}
    # Two tasks were lost together, one of which had begun later.
    both = [
        run(0, 10, state="preempted", dedicated=False, workers=2),
        run(4, 6, state="preempted", dedicated=False, workers=2),
        run(60, 30, dedicated=False),
    ]
    assert times(both)[0] == {"spot": 40}


def test_the_kind_of_a_node_is_what_its_tasks_said_or_else_the_service() -> None:
    runs = [run(0, 1), run(2, 1, dedicated=False), run(0, 5, "b"), run(0, 7, "c")]
    assert times(runs, dedicated={"a": True, "b": True})[0] == {"spot": 3, "dedicated": 5, "unknown": 7}


@st.composite
def histories(draw: st.DrawFn) -> History:
    count = draw(st.integers(0, 12))
    runs = []
    for _ in range(count):
        node = draw(st.sampled_from("abc"))
        runs.append(
            run(
                draw(st.floats(0, 1000)),
                draw(st.floats(0, 300)),
                node,
                workers=draw(st.integers(1, 4)),
                state=draw(st.sampled_from(["done", "preempted", "failed"])),
                dedicated={"a": True, "b": False, "c": None}[node],
            )
        )
    return lab.history(runs)


@given(histories(), st.dictionaries(st.sampled_from("abc"), st.floats(-100, 1500), max_size=3))
def test_what_holds_of_every_run(history: History, allocated: dict[str, float]) -> None:
    facts = NodeFacts(allocated={node: lab.ORIGIN + moment for node, moment in allocated.items()})
    kept, used = node_time(history, facts)
    alone, _ = node_time(history, NodeFacts())
    for kind, node in (("dedicated", "a"), ("spot", "b"), ("unknown", "c")):
        mine = [each for each in history.runs if each.node == node]
        first, last = min((each.begun for each in mine), default=0), max((each.ended for each in mine), default=0)
        busy = 3600 * getattr(used, kind)
        held, without = 3600 * getattr(kept, kind), 3600 * getattr(alone, kind)
        # A clock of seconds since 1970 has a resolution of a microsecond or so.
        assert busy <= held + 1e-4
        assert without <= held + 1e-4
        assert held <= last - min([first, *([lab.ORIGIN] if mine and node in allocated else [])]) + 1e-4
        assert without <= last - first + 1e-4
        if node == "a" and mine:
            assert without == pytest.approx(last - first, abs=1e-4)
        # Counted over small steps it is the same.
        longest = max((each.seconds for each in mine), default=0.0)
        assert held >= longest - 1e-4
    whole = sum(each.seconds * each.workers / 4 for each in history.runs)
    assert 3600 * used.total <= whole + 1e-3


def test_a_large_run_takes_no_time() -> None:
    import time

    history = lab.large(100_000, nodes=100)
    begun = time.process_time()
    kept, used = node_time(history, NodeFacts())
    assert time.process_time() - begun < 5
    assert 0 < used.total < kept.total


# what is shown ----------------------------------------------------------------------------------------------


def cost(prices: NodePrices = USD, **more: Any) -> JobCost:
    settings: dict[str, Any] = {
        "job": "sweep-7",
        "pool": "pool",
        "vm_size": "Standard_D4s_v5",
        "running": False,
        "nodes": 2,
        "kept": Estimate(hours=NodeHours(dedicated=2.0, spot=0.4), prices=prices),
        "used": NodeHours(dedicated=1.5, spot=0.3),
    }
    return JobCost(**{**settings, **more})


def test_the_cost_of_a_job_as_words_table_and_json() -> None:
    found = cost()
    assert found.share == 0.75
    assert str(found).startswith("job sweep-7: ≈ 0.42 USD, estimated: 2.00 dedicated and 0.4 spot node-hours at ")
    assert str(found).endswith("; on 2 nodes of Standard_D4s_v5, whose cores its tasks had for 75 % of that")
    assert "cost, estimated" in found._repr_html_()
    assert "≈ 0.42 USD" in found._repr_html_()
    data = json.loads(json.dumps(found.data()))
    assert data["amount"] == pytest.approx(0.42)
    assert (data["estimate"], data["currency"]) == (True, "USD")
    assert data["node_hours"] == {"dedicated": 2.0, "spot": 0.4, "unknown": 0.0}
    assert data["used_node_hours"] == {"dedicated": 1.5, "spot": 0.3, "unknown": 0.0}
    assert data["notes"] == ["starts of nodes that are gone, and idle nodes after the job, are not in it"]
    assert "up to now" in str(cost(running=True))
    gone = cost(kept=Estimate(hours=NodeHours(unknown=1.0), prices=USD))
    assert "nobody knows the kind" in gone.notes[0]
    assert "not known: nobody was asked" in cost(UNKNOWN)._repr_html_()
    assert cost(UNKNOWN).data()["notes"][0] == "nobody was asked"
    assert cost(FREE).notes == ()
    nothing = cost(nodes=0, kept=Estimate(hours=NodeHours(), prices=USD), used=NodeHours())
    assert str(nothing) == "job sweep-7: ≈ 0 USD, estimated: no node-hours at " + str(USD)
    evil = cost(job="<script>alert(1)</script>", vm_size="<b>")
    assert "<script>" not in evil._repr_html_()
    assert "<b>" not in evil._repr_html_().replace("<b>Job", "")


def test_the_timeline_says_what_it_cost() -> None:
    history = lab.history(lab.rounds(3))
    timeline = Timeline(history, cost())
    line = next(line for line in timeline.summary.splitlines() if line.startswith("Cost"))
    assert line.startswith("Cost: ≈ 0.42 USD, estimated: ")
    assert line.endswith("the tasks had 75 % of that time.")
    page = timeline.html()
    assert "<b>≈ 0.42 USD</b><span>estimated, for 2.00 dedicated and 0.4 spot node-hours</span>" in page
    assert line in page.replace("&#x27;", "'")
    assert timeline.data()["cost"] == cost().data()
    unpriced = Timeline(history, cost(UNKNOWN)).html()
    assert "<b>≈ 2.40 node-h</b><span>estimated; their price is not known</span>" in unpriced
    without = Timeline(history)
    assert "Cost" not in without.summary
    assert without.data()["cost"] is None
    assert "estimated" not in without.html()
