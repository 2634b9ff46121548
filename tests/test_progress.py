"""What is shown of a call: the arithmetic and the words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joblib_azure.cluster import Waiting
from joblib_azure.progress import Figures
from joblib_azure.progress.figures import (
    Pace,
    Row,
    duration,
    pace,
    rate,
    running_row,
    sending_row,
    short,
    size,
    step_row,
    time_left,
    waiting_row,
)
from joblib_azure.progress.notebook import as_html
from joblib_azure.service import NodeState

calls, seconds = st.integers(0, 10**6), st.floats(1e-6, 1e5)
workers = st.integers(1, 10**4)

# arithmetic -------------------------------------------------------------------------------------------------


@given(calls, calls, seconds, workers)
def test_the_time_left_is_that_of_the_work_shared_out_and_of_a_call_at_least(
    queued: int, running: int, seconds: float, workers: int
) -> None:
    left = time_left(queued=queued, running=running, seconds=seconds, workers=workers)
    if not queued + running:
        assert left is None
        return
    assert left is not None
    assert left * workers >= seconds * (queued + running / 2) * 0.999
    assert left >= (seconds if queued else seconds / 2)
    # No more than if each worker had a call more than its share.
    assert left <= seconds * ((queued + running) / workers + 1) * 1.001


@given(calls, calls, seconds, workers)
def test_more_calls_take_no_less_and_more_workers_no_longer(
    queued: int, running: int, seconds: float, workers: int
) -> None:
    left = time_left(queued=queued + 1, running=running, seconds=seconds, workers=workers)
    fewer = time_left(queued=queued, running=running, seconds=seconds, workers=workers)
    wider = time_left(queued=queued + 1, running=running, seconds=seconds, workers=workers + 1)
    assert left is not None
    assert wider is not None
    assert (fewer or 0.0) <= left
    assert wider <= left


@pytest.mark.parametrize("unknown", [{"seconds": None}, {"workers": 0}])
def test_what_is_not_known_is_not_said(unknown: dict[str, None]) -> None:
    known = {"queued": 10, "running": 2, "seconds": 1.0, "workers": 2}
    assert time_left(**known) == 5.5
    assert time_left(**{**known, **unknown}) is None


@given(st.lists(st.tuples(st.floats(0.1, 100.0), st.integers(0, 1000)), min_size=2), st.floats(0.0, 100.0))
def test_the_rate_is_never_negative_and_falls_while_nothing_ends(steps: list[tuple[float, int]], quiet: float) -> None:
    now, ended, changes = 0.0, 0, []
    for pause, more in steps:
        now, ended = now + pause, ended + more
        changes.append((now, ended))
    found, later = rate(changes, now), rate(changes, now + quiet)
    assert found is not None
    assert later is not None
    assert 0.0 <= later <= found
    assert found * (now - changes[0][0]) == pytest.approx(ended - changes[0][1])


def test_no_rate_before_a_call_has_ended() -> None:
    assert rate([], 1.0) is None
    assert rate([(1.0, 0)], 9.0) is None
    assert rate([(1.0, 0), (1.0, 3)], 1.0) is None


def _at(done: int, total: int | None = 100, running: int | None = 4, **more: object) -> Figures:
    queued = (100 if total is None else total) - done - (running or 0)
    return Figures(**{"done": done, "running": running, "queued": queued, "total": total, "begun": True, **more})


def test_a_steady_call_is_told_its_time() -> None:
    """Four workers, calls of 2 s: two calls a second."""
    found = Pace(0.0)
    for now in range(0, 21, 2):
        found.take(float(now), _at(2 * now, seconds=2.0))
    assert found.rate(20.0) == pytest.approx(2.0)
    # 60 calls are left, four of them half done.
    assert found.left(20.0) == pytest.approx((56 + 2) * 2.0 / 4)
    # Nothing new: time goes on, and once it is over there is nothing to say.
    assert found.left(25.0) == pytest.approx((56 + 2) * 2.0 / 4 - 5.0)
    assert found.left(99.0) is None


def test_the_time_before_anything_runs_is_no_part_of_the_rate() -> None:
    found = Pace(0.0)
    for now in range(60):
        found.take(float(now), _at(0, begun=False))
    found.take(60.0, _at(10))
    assert found.rate(60.0) is None
    found.take(64.0, _at(50))
    assert found.rate(64.0) == pytest.approx(10.0)


def test_a_first_burst_is_no_rate() -> None:
    """Outcomes of the first second come at once; the call began a second before anybody looked."""
    found = Pace(0.0)
    found.take(1.0, _at(2))
    found.take(1.5, _at(21))
    assert found.rate(1.5) is None
    found.take(4.0, _at(40))
    assert found.rate(4.0) == pytest.approx(10.0)


def test_a_lull_between_two_bundles_does_not_stretch_the_time_left() -> None:
    found = Pace(0.0)
    found.take(0.0, _at(10, seconds=2.0, running=4))
    steady = found.left(0.0)
    found.take(0.5, _at(12, seconds=2.0, running=1))
    assert steady is not None
    assert found.left(0.5) == pytest.approx(steady, rel=0.1)


def test_where_nobody_tells_what_runs_the_time_left_comes_from_the_rate() -> None:
    """A detached job, of which 50 calls had ended before anybody looked."""
    found = Pace(0.0)
    found.take(0.0, _at(0, begun=False, running=None))
    found.take(1.0, _at(50, running=None))
    found.take(11.0, _at(70, running=None))
    assert found.rate(11.0) == pytest.approx(2.0)
    assert found.left(11.0) == pytest.approx(15.0)


@pytest.mark.parametrize("unknown", [{"total": None}, {"begun": False}, {"running": 0}])
def test_no_time_left_where_the_calls_the_cost_or_the_workers_are_not_known(unknown: dict[str, object]) -> None:
    found = Pace(0.0)
    found.take(0.0, _at(10, **{"seconds": 2.0, **unknown}))
    assert found.left(0.0) is None
    found.take(10.0, _at(10, seconds=2.0))
    assert found.left(10.0) is not None


# words ------------------------------------------------------------------------------------------------------


def test_numbers_are_short() -> None:
    assert [duration(each) for each in (0.4, 59.4, 60, 125, 3600, 11220)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "2 min 05 s",
        "1 h 00 min",
        "3 h 07 min",
    ]
    assert [short(each) for each in (0.0005, 0.035, 1.23, 125.0)] == ["0.5 ms", "35 ms", "1.2 s", "2 min 05 s"]
    assert [size(each) for each in (0, 999, 1000, 12_300_000, 999_600_000, 5e12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "12.3 MB",
        "1.0 GB",
        "5.0 TB",
    ]
    assert [pace(each) for each in (1234.0, 41.2, 4.12, 0.2, 0.01)] == ["1,234/s", "41/s", "4.1/s", "12/min", "36/h"]


@given(st.integers(0, 10**18))
def test_a_size_is_right_within_its_digits(count: int) -> None:
    number, unit = size(count).split()
    value = float(number) * 1000 ** ["B", "kB", "MB", "GB", "TB"].index(unit)
    assert value == pytest.approx(count, rel=0.06)


def test_a_line_says_the_most_important_first() -> None:
    figures = _at(412, total=1000, running=2, name="square", ready=2, starting=1, failed=1)
    row = running_row(figures, rate=41.2, left=14.0, detail=False)
    assert str(row) == (
        "square: 412 of 1,000 calls, 14 s left, 1 failed, 2 running, 585 queued, 41/s, 2 nodes ready, 1 starting"
    )
    assert row.fraction == pytest.approx(0.413)
    assert row.below == ()


def test_calls_of_an_unknown_number_have_counts_and_nothing_of_the_rest() -> None:
    row = running_row(_at(412, total=None, running=2, queued=20), rate=41.2, left=None, detail=False)
    assert str(row) == "calls: 412 calls, 2 running, 20 queued, 41/s"
    assert row.fraction is None


def test_before_the_first_outcome_nothing_is_said_to_run() -> None:
    row = running_row(_at(0, begun=False, sent=312_000_000), rate=None, left=None, detail=False)
    assert str(row) == "calls: 0 of 100 calls, 4 sent to the nodes, 96 queued, 312 MB up"


def test_of_a_detached_job_the_tasks_are_known() -> None:
    figures = _at(231, total=500, running=None, tasks=8, waiting_tasks=40, name="job sweep-7", ready=2)
    row = running_row(figures, rate=2.1, left=125.0, detail=False)
    assert str(row) == (
        "job sweep-7: 231 of 500 calls, 2 min 05 s left, tasks: 8 running, 40 waiting, 2.1/s, 2 nodes ready"
    )


def test_a_submission_counts_what_was_sent() -> None:
    figures = _at(12_300, total=None, running=None, name="job sweep-7", sent=41_100_000)
    assert str(sending_row(figures, rate=7900.0, left=None)) == "job sweep-7: 12,300 calls sent, 7,900/s, 41.1 MB up"
    row = sending_row(_at(30, running=None, sent=500), rate=None, left=2.0)
    assert str(row) == "calls: 30 of 100 calls sent, 2 s left, 500 B up"
    assert row.fraction == pytest.approx(0.3)


def test_the_detail() -> None:
    figures = _at(5, tasks=2, waiting_tasks=3, lost_tasks=1, sent=12_300_000, fetched=500, seconds=0.035, task_cost=0.4)
    assert running_row(figures, rate=None, left=None, detail=True).below == (
        "Batch tasks: 2 running, 3 waiting, 1 sent again",
        "12.3 MB up, 500 B down, a call takes 35 ms, a task 0.4 s beside its calls",
    )


def test_a_wait_says_what_it_waits_for_why_and_for_how_long() -> None:
    nodes = (
        NodeState(id="a", state="starting"),
        NodeState(id="b", state="starttaskfailed", errors=("exit code 1",)),
        NodeState(id="c", state="starting"),
    )
    now = Waiting(
        pool="mine",
        doing="waiting for the first node (allocation steady)",
        elapsed=3.0,
        timeout=900.0,
        wanted=1,
        nodes=nodes,
        notes=("resize errors: AccountCoreQuotaReached:\nno cores",),
    )
    row = waiting_row(now, 12.0)
    assert str(row) == (
        "pool mine: waiting for the first node (allocation steady), 12 s of at most 15 min 00 s, 0 of 1 ready, "
        "nodes: 2 starting and 1 starttaskfailed"
    )
    assert row.below == ("resize errors: AccountCoreQuotaReached: no cores", "node b: exit code 1")
    assert str(step_row("pool mine", "creating the job", 2.0, None)) == "pool mine: creating the job, 2 s"


@given(st.lists(st.text("abc ", min_size=1), min_size=1, max_size=8).map(tuple), st.integers(0, 80))
def test_a_line_that_is_too_long_loses_its_last_parts(parts: tuple[str, ...], width: int) -> None:
    row = Row(name="n", parts=parts)
    found = row.fit(width)
    assert ", ".join(parts).startswith(found)
    assert len(found) <= width or found == parts[0]


def test_what_it_has_cost_stands_before_the_nodes() -> None:
    figures = _at(3, total=4, running=1, ready=2, starting=1, cost="≈ 0.42 USD", cost_detail="≈ 0.42 USD, estimated: …")
    row = running_row(figures, rate=None, left=None, detail=False)
    assert row.parts[-3:] == ("≈ 0.42 USD", "2 nodes ready", "1 starting")
    assert row.below == ()
    assert running_row(figures, rate=None, left=None, detail=True).below[-1] == "cost so far: ≈ 0.42 USD, estimated: …"
    free = running_row(_at(3, total=4, running=1, ready=2), rate=None, left=None, detail=True)
    assert not any("≈" in part or "cost" in part for part in (*free.parts, *free.below))


def test_html_is_text_and_a_bar() -> None:
    rows = [Row(name="<lambda>", parts=("3 of 4 calls", "1 & more"), fraction=0.75, below=("a < b",))]
    assert as_html(rows) == (
        '<div style="font-size: 90%"><div><b>&lt;lambda&gt;</b> <progress max="1" value="0.7500"></progress> '
        '3 of 4 calls, 1 &amp; more</div><div style="opacity: 0.7">a &lt; b</div></div>'
    )
