"""Samples: which of them a formula can read, how late, and what it is told where there are too few."""

from __future__ import annotations

import datetime

from formula_lab import NOW, refused, samples, value
from hypothesis import given, settings
from hypothesis import strategies as st

from joblib_azure.emulator.autoscale import History


def test_the_page_s_own_example_of_percentages() -> None:
    ten_minutes = samples(*range(20), newest=30)  # the newest cannot be read yet
    assert value("len($PendingTasks.GetSample(TimeInterval_Minute * 10))", ten_minutes) == 19
    ten_minutes = samples(*range(20), newest=90)
    assert value("len($PendingTasks.GetSample(TimeInterval_Minute * 10, 80))", ten_minutes) == 18
    assert value("$PendingTasks.GetSamplePercent(TimeInterval_Minute * 10)", ten_minutes) == 90
    text = refused("$PendingTasks.GetSample(TimeInterval_Minute * 10, 95)", ten_minutes)
    assert text == "Line 1, Col 18: Insufficient data from data set: $PendingTasks wanted 95%, received 90%"


def test_samples_can_be_read_a_minute_late() -> None:
    assert value("$PendingTasks.GetSample(1)", samples(1, 2, 3, newest=0)) == (1,)
    assert value("$PendingTasks.GetSample(1)", samples(1, 2, 3, newest=59)) == (2,)
    assert value("$PendingTasks.GetSample(9)", samples(1, 2, 3, newest=60)) == (1, 2, 3)
    assert value("$PendingTasks.GetSamplePercent(TimeInterval_Minute)", samples(1, 2, 3, newest=61)) == 0
    assert value("$PendingTasks.Count()", samples(1, 2, 3, newest=30)) == 2


def test_spans_have_two_ends_in_either_order() -> None:
    given = samples(*range(10, 0, -1))  # as old as 60 + 30 (n - 1) seconds is the sample n
    for ends in ("60 * TimeInterval_Second, TimeInterval_Minute * 2", "TimeInterval_Minute * 2, TimeInterval_Minute"):
        assert value(f"$PendingTasks.GetSample({ends})", given) == (3, 2, 1)
        assert value(f"$PendingTasks.GetSample({ends}, 75)", given) == (3, 2, 1)
        assert value(f"$PendingTasks.GetSamplePercent({ends})", given) == 100
    since = "time() + (-2 * TimeInterval_Minute)"
    assert value(f"$PendingTasks.GetSample({since})", given) == (3, 2, 1)
    assert value(f"$PendingTasks.GetSample({since}, time())", given) == (3, 2, 1)
    assert value(f"$PendingTasks.GetSample({since}, time(), 60)", given) == (3, 2, 1)
    assert value("$PendingTasks.GetSample(TimeInterval_Minute * 60, TimeInterval_Minute * 50)", given) == ()


def test_history() -> None:
    given = samples(1, 2, 3)
    assert value("$PendingTasks.HistoryBeginTime() == time() + (-2 * TimeInterval_Minute)", given) == 1
    assert value("$PendingTasks.GetSamplePeriod() == 30 * TimeInterval_Second", given) == 1
    assert value("$PendingTasks", given) == 3
    history = History()
    for minute in range(3 * 24 * 60):
        history.add(NOW + datetime.timedelta(minutes=minute), minute)
    times, values = history.until(NOW + datetime.timedelta(days=9))
    assert times[-1] - times[0] == datetime.timedelta(days=1)
    assert len(values) == 24 * 60 + 1


def test_a_faster_clock_shortens_intervals_and_leaves_the_time_of_day() -> None:
    given = samples(*range(10, 0, -1), rate=60.0)
    assert value("$PendingTasks.GetSample(TimeInterval_Minute * 2)", given) == (3, 2, 1)
    assert value("$PendingTasks.GetSamplePercent(TimeInterval_Minute, TimeInterval_Minute * 2)", given) == 100
    assert value("time()", given) == NOW


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 9), max_size=50),
    st.integers(0, 200),
    st.integers(0, 1800),
    st.integers(0, 1800),
)
def test_the_percentage_is_that_of_the_samples_that_are_returned(
    series: list[int], newest: int, first: int, last: int
) -> None:
    given = samples(*series, newest=newest)
    span = f"TimeInterval_Second * {first}, TimeInterval_Second * {last}"
    percent = value(f"$PendingTasks.GetSamplePercent({span})", given)
    found = value(f"$PendingTasks.GetSample({span})", given)
    assert isinstance(percent, float)
    assert isinstance(found, tuple)
    possible = max(1, round(abs(first - last) / 30))
    assert percent == min(100, round(100 * len(found) / possible))
    assert value(f"$PendingTasks.GetSample({span}, {percent:g})", given) == found
    if percent < 100:
        assert "Insufficient data" in refused(f"$PendingTasks.GetSample({span}, {percent + 1:g})", given)
