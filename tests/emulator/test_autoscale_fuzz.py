"""Any text is a formula or a documented problem, and any formula comes to an end: in bounded time, without a crash."""

from __future__ import annotations

import datetime
import time

import pytest
from formula_lab import NOW, run, samples
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st

from joblib_azure.emulator.autoscale import (
    EvaluationProblem,
    FormulaProblem,
    Outcome,
    SyntaxProblem,
    check,
    evaluate,
    parse,
)
from joblib_azure.emulator.autoscale.functions import FUNCTIONS
from joblib_azure.emulator.autoscale.samples import METRICS, RETIRED
from joblib_azure.emulator.autoscale.syntax import MAX_BYTES
from joblib_azure.emulator.autoscale.values import INTERVALS, MEMBERS, OPTIONS

pytestmark = pytest.mark.fuzz

#: Seconds that no formula of the service's length may take, on a machine with much else to do.
LONG = 5.0
_TARGETS = ("$TargetDedicatedNodes", "$TargetLowPriorityNodes", "$NodeDeallocationOption", "$TargetDedicated", "x", "y")
_NUMBERS = ("0", "1", "2.5", "1e308", "1e999", "9" * 400, ".5", "100", "0.1", "1e-320")
_TEXTS = ('""', '"2016-10-13"', '"0001-01-01T00:00:00+23:59"', '"Thu, 01 Jan 99999999999 00:00:00 GMT"', '"x"')
_LEAVES = st.sampled_from(
    [*_NUMBERS, *_TEXTS, "time()", "rand()", "stop()", *INTERVALS, *OPTIONS, *METRICS, *RETIRED[:2], *_TARGETS]
)
_OPERATORS = ("+", "-", "*", "/", "<", "<=", "==", "!=", ">=", ">", "&&", "||")
_METHODS = ("GetSample", "GetSamplePercent", "GetSamplePeriod", "Count", "HistoryBeginTime")


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    arguments = st.lists(inner, max_size=3).map(", ".join)
    return st.one_of(
        st.tuples(inner, st.sampled_from(_OPERATORS), inner).map(lambda parts: f"({' '.join(parts)})"),
        st.tuples(st.sampled_from(["-", "!"]), inner).map("".join),
        st.tuples(inner, inner, inner).map(lambda parts: "({} ? {} : {})".format(*parts)),
        st.tuples(st.sampled_from(sorted(FUNCTIONS)), arguments).map(lambda parts: "{}({})".format(*parts)),
        st.tuples(st.sampled_from([*METRICS, RETIRED[0]]), st.sampled_from(_METHODS), arguments).map(
            lambda parts: "{}.{}({})".format(*parts)
        ),
        st.tuples(inner, st.sampled_from(sorted(MEMBERS))).map(".".join),
    )


_EXPRESSIONS = st.recursive(_LEAVES, _larger, max_leaves=12)
_FORMULAS = st.lists(st.tuples(st.sampled_from(_TARGETS), _EXPRESSIONS).map(" = ".join), min_size=1, max_size=5).map(
    "; ".join
)


def told(text: str) -> Outcome | None:
    """What a text comes to; None where it is no formula."""
    begun = time.monotonic()
    given = samples(0, 1, 1e308, 5, variable="$PendingTasks")
    try:
        formula = parse(text)
        check(formula)
    except SyntaxProblem as exc:
        exc.shape()
        return None
    finally:
        assert time.monotonic() - begun < LONG
    found = evaluate(formula, given, dedicated=1, spot=1, current={"$TaskSlotsPerNode": 4})
    assert time.monotonic() - begun < LONG
    assert 0 <= found.dedicated < 2**31
    assert 0 <= found.spot < 2**31
    assert found.option in OPTIONS
    assert isinstance(found.results, str)
    assert found.problem is None or found.problem.shape()["values"]
    return found


@given(_FORMULAS)
@fuzz(400)
def test_any_formula_comes_to_targets_or_to_a_problem(text: str) -> None:
    told(text)


@given(st.text(max_size=80) | st.lists(_EXPRESSIONS | st.text(max_size=5), max_size=6).map("".join))
@fuzz(400)
def test_any_text_is_a_formula_or_a_problem(text: str) -> None:
    told(text)


@pytest.mark.parametrize(
    "piece",
    [
        "(",
        ")",
        "-",
        "!",
        "x = ",
        "1 ? ",
        "min(",
        "1.",
        ".5",
        "//",
        "// \n",
        '"',
        "&&",
        "$",
        "x=1;",
        "1+",
        "1e9",
        "\t",
        "é",
    ],
)
def test_a_text_of_the_longest_length_is_told_soon(piece: str) -> None:
    told((piece * MAX_BYTES)[: MAX_BYTES // len(piece.encode())])
    told("x = " + (piece * MAX_BYTES)[: MAX_BYTES // len(piece.encode()) - 8])


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("$PendingTasks.GetSample(0 / 0)", "a number of samples is expected"),
        ("$PendingTasks.GetSample(TimeInterval_Second * (0 / 0))", "the interval is out of range"),
        ("$PendingTasks.GetSamplePercent(TimeInterval_Year * 1e300)", "the interval is out of range"),
        ('time("Thu, 01 Jan 99999999999 00:00:00 GMT")', "is no date"),
        ('time("0001-01-01T00:00:00+23:59")', "is out of range"),
    ],
)
def test_numbers_that_are_none_are_problems(expression: str, words: str) -> None:
    problem = run(f"x = {expression}", samples(1, 2)).problem
    assert isinstance(problem, EvaluationProblem)
    assert words in str(problem)


def test_large_numbers_are_doubles() -> None:
    assert run("x = std(1e200, 0)").variables["x"] == float("inf")
    assert run("x = $PendingTasks.GetSample(1 / 0)", samples(1, 2)).variables["x"] == (1.0, 2.0)
    moment = run('x = time("2016-10-13T21:00:00+02:00")').variables["x"]
    assert isinstance(moment, datetime.datetime)
    assert moment.hour == 19
    assert run('x = time("2016-10-13T21:00:00+02:00").hour').variables["x"] == NOW.hour == 19


@pytest.mark.parametrize("nodes", ["2147483648", "1e308", "1 / 0", "0 / 0", "-1"])
def test_no_formula_asks_for_more_nodes_than_can_be_counted(nodes: str) -> None:
    found = run(f"$TargetDedicatedNodes = {nodes}", dedicated=3)
    assert isinstance(found.problem, FormulaProblem)
    assert found.dedicated == 3
