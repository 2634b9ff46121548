"""The autoscale language: what the service's page says of expressions and statements."""

from __future__ import annotations

import math
import re

import pytest
from formula_lab import NOW, refused, run, samples, value
from hypothesis import given, settings
from hypothesis import strategies as st

from joblib_azure.emulator.autoscale import MAX_BYTES, FormulaTooLong, Samples, SyntaxProblem, check, evaluate, parse

# -- expressions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("2 - 3 - 4", -5),
        ("12 / 3 / 2", 2),
        ("-2 * -3", 6),
        ("!0 + !5", 1),
        ("!(1 < 2)", 0),
        ("--1", 1),
        ("1 < 2 == 2 > 1", 1),
        ("1 || 0 && 0", 1),
        ("0 && 0 || 1", 1),
        ("1 + 1 == 2 && 3 != 4", 1),
        ("1 >= 1 && 1 <= 1", 1),
        ("0 ? 1 : 2", 2),
        ("1 ? 2 : 0 ? 3 : 4", 2),
        ("0 ? 2 : 0 ? 3 : 4", 4),
        ("0.5 ? 1 : 2", 1),
        ("1 > 2 ? 1 : 2 + 5", 7),
        (".5 + 1. + 1e1", 11.5),
        ("1 / 4", 0.25),
        ('"a" < "b"', 1),
        ("requeue == requeue", 1),
        ("$TaskSlotsPerNode * 2", 8),
    ],
)
def test_operators_and_their_precedence(expression: str, expected: float) -> None:
    assert value(expression) == expected


def test_division_by_zero_is_that_of_doubles() -> None:
    assert value("1 / 0") == math.inf
    assert value("-1 / 0") == -math.inf
    assert math.isnan(value("0 / 0"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("TimeInterval_Minute * 2 == 120 * TimeInterval_Second", 1),
        ("TimeInterval_Hour / 60 == TimeInterval_Minute", 1),
        ("TimeInterval_Day + TimeInterval_Zero < TimeInterval_Week", 1),
        ("TimeInterval_Minute - TimeInterval_Second == TimeInterval_Second * 59", 1),
        ("-TimeInterval_Second < TimeInterval_Zero", 1),
        ("TimeInterval_100ns * 10 == TimeInterval_Microsecond", 1),
        ("TimeInterval_Millisecond * 1000 == TimeInterval_Second", 1),
        ("TimeInterval_Year > TimeInterval_Day * 364", 1),
        ("time() + TimeInterval_Hour > time()", 1),
        ("TimeInterval_Hour + time() == time() + TimeInterval_Hour", 1),
        ('time("2016-10-13T20:18:47Z") - time("2016-10-13T19:18:47Z") == TimeInterval_Hour', 1),
        ('time("Thu, 13 Oct 2016 19:18:47 GMT") == time("2016-10-13T19:18:47Z")', 1),
        ('time("2016-10-13") < time()', 1),
        ('time("") == time()', 1),
    ],
)
def test_times(expression: str, expected: float) -> None:
    assert value(expression) == expected


def test_members_of_a_timestamp() -> None:
    names = ("year", "month", "day", "weekday", "hour", "minute", "second")
    assert [value(f"time().{name}") for name in names] == [2016, 10, 13, 4, 19, 18, 47]
    assert value("(time() + (-6 * TimeInterval_Hour)).hour") == 13
    assert [value(f'time("2016-10-{day}").weekday') for day in (10, 15)] == [1, 6]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("v + 1", (2, 3, 4)),
        ("v * v", (1, 4, 9)),
        ("v / 2", (0.5, 1, 1.5)),
        ("v - v", (0, 0, 0)),
        ("avg(v, 7)", 3.25),
        ("avg(1, v)", 1.75),
        ("len(v, v, 5)", 7),
        ("len()", 0),
        ("max(v)", 3),
        ("min(0, v)", 0),
        ("range(v)", 2),
        ("sum(v, 4)", 10),
        ("std(v)", 1),
        ("norm(3, 4)", 5),
        ("percentile(v, 50)", 2),
        ("percentile(v, 100)", 3),
        ("val(v, 0)", 1),
        ("lg(8)", 3),
        ("log(1000)", 3),
        ("ln(1)", 0),
        ("lg(v * 2)", (1, 2, math.log2(6))),
        ("ceil(1.2) + floor(1.8) + round(2.5)", 6),
        ("round(-2.5)", -3),
        ("rand() >= 0 && rand() < 1", 1),
    ],
)
def test_vectors_and_functions(expression: str, expected: float | tuple[float, ...]) -> None:
    found = run(f"v = $PendingTasks.GetSample(3); x = {expression}", samples(1, 2, 3))
    assert found.problem is None
    assert found.variables["x"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("1 + TimeInterval_Second", "'\\+' does not apply to double and timeinterval"),
        ("time() - TimeInterval_Second", "'-' does not apply to timestamp and timeinterval"),
        ("time() + time()", "does not apply"),
        ("TimeInterval_Second * TimeInterval_Second", "does not apply"),
        ("1 / TimeInterval_Second", "does not apply"),
        ('"a" + "b"', "does not apply to string and string"),
        ('"a" == 1', "does not apply"),
        ('!"a"', "'!' does not apply to string"),
        ("-time()", "does not apply to timestamp"),
        ("time() && 1", "does not apply"),
        ("1 + $PendingTasks.GetSample(2)", "does not apply to double and doubleVec"),
        ("$PendingTasks.GetSample(2) + $PendingTasks.GetSample(1)", "Vectors of 2 and 1"),
        ("$PendingTasks.GetSample(2) < 1", "does not apply to doubleVec and double"),
        ("time() ? 1 : 2", "A condition is a double, not a timestamp"),
        ("avg()", "'avg' has no values"),
        ("max($PendingTasks.GetSample(0))", "'max' has no values"),
        ('max("a")', "takes doubles and doubleVecs, not a string"),
        ("std(1)", "two values"),
        ("ln(-1)", "'ln' has no value"),
        ("val($PendingTasks.GetSample(2), 2)", "no value 2 in a vector of 2"),
        ("val(1, 0)", "takes a doubleVec and a double"),
        ("percentile($PendingTasks.GetSample(2), 101)", "from 0 to 100"),
        ('time("yesterday")', "'yesterday' is no date"),
        ("time(1)", "takes one string"),
        ("rand(1)", "takes no arguments"),
        ("time() + TimeInterval_Year * 100000", "out of range"),
        ("TimeInterval_Hour.hour", "A timeinterval has no member 'hour'"),
        ("time().Count()", "method of the service's variables only"),
        ("$CPUPercent", "No data in data set: \\$CPUPercent"),
        ("$CPUPercent.HistoryBeginTime()", "No data in data set"),
        ("$PendingTasks.Count(1)", "does not take \\(double\\)"),
        ("$PendingTasks.GetSample()", "does not take \\(\\)"),
        ('$PendingTasks.GetSample("a")', "does not take \\(string\\)"),
        ("$PendingTasks.GetSamplePercent(1)", "does not take \\(double\\)"),
        ("$PendingTasks.GetSample(-1)", "a number of samples"),
    ],
)
def test_what_has_no_value(expression: str, words: str) -> None:
    text = refused(expression, samples(1, 2, 3))
    assert re.match(r"Line 1, Col \d+: ", text)
    assert re.search(words, text)


# -- statements -------------------------------------------------------------------------------------------------------


def test_results_are_written_as_the_page_shows_them() -> None:
    text = """
        $curTime = time();
        $workHours = $curTime.hour >= 8 && $curTime.hour < 18;
        $isWeekday = $curTime.weekday >= 1 && $curTime.weekday <= 5; // not on Sundays
        $isWorkingWeekdayHour = $workHours && $isWeekday;
        $TargetDedicatedNodes = $isWorkingWeekdayHour ? 20:10;
    """
    assert run(text).results == (
        "$TargetDedicatedNodes=10;$TargetLowPriorityNodes=0;$NodeDeallocationOption=requeue;"
        "$curTime=2016-10-13T19:18:47.805Z;$isWeekday=1;$isWorkingWeekdayHour=0;$workHours=0"
    )
    found = run("v = $PendingTasks.GetSample(2); h = TimeInterval_Hour * 25.5; s = -0.25; o = terminate", samples(1, 2))
    assert found.results.endswith("h=1.01:30:00;o=terminate;s=-0.25;v=[1,2]")


def test_targets() -> None:
    found = run("$TargetDedicatedNodes = $TargetDedicatedNodes + 1.9; $TargetLowPriorityNodes = 3", dedicated=2)
    assert (found.dedicated, found.spot, found.option) == (3, 3, "requeue")
    assert run("x = 1", dedicated=2, spot=4).spot == 4
    assert run("$TargetDedicated = 5; $TargetLowPriority = 6").dedicated == 5
    both = run("$TargetDedicatedNodes = 5; $TargetDedicated = 6")
    assert both.dedicated == run("$TargetDedicated = 6; $TargetDedicatedNodes = 5").dedicated == 5
    assert run("$NodeDeallocationOption = taskcompletion").option == "taskcompletion"
    # one sample is a vector of one, as the page has it in its example of preempted nodes
    preempted = samples(4, variable="$PreemptedNodeCount")
    assert run("$TargetDedicatedNodes = $PreemptedNodeCount.GetSample(1)", preempted).dedicated == 4


@pytest.mark.parametrize("bad", ["-1", "1 / 0", "time()", "$PendingTasks.GetSample(2)", '"three"'])
def test_targets_that_are_no_numbers_leave_the_pool_as_it_is(bad: str) -> None:
    found = run(f"$TargetLowPriorityNodes = 1; $TargetDedicatedNodes = {bad}", samples(1, 2), dedicated=2, spot=3)
    assert found.problem is not None
    assert (found.dedicated, found.spot) == (2, 3)
    assert "no number of nodes" in str(found.problem)
    assert found.problem.shape()["code"] == "AutoScalingFormulaEvaluationError"


def test_a_failed_evaluation_keeps_what_was_computed() -> None:
    found = run("a = 1; $TargetDedicatedNodes = 9;\nb = $RunningTasks.GetSample(TimeInterval_Minute, 70)", dedicated=2)
    assert (found.dedicated, found.option) == (2, "requeue")
    assert found.problem is not None
    assert found.problem.shape() == {
        "code": "InsufficientSampleData",
        "message": "Autoscale evaluation failed due to insufficient sample data",
        "values": [
            {
                "name": "Message",
                "value": "Line 2, Col 18: Insufficient data from data set: $RunningTasks wanted 70%, received 0%",
            }
        ],
    }
    assert found.results.endswith(";a=1")


def test_an_option_that_there_is_not() -> None:
    assert "one of requeue, terminate" in str(run('$NodeDeallocationOption = "later"').problem)


def test_stop_ends_the_evaluation_with_what_is_set() -> None:
    found = run("$TargetDedicatedNodes = 4; stop(); $TargetDedicatedNodes = 5")
    assert (found.problem, found.dedicated) == (None, 4)
    assert run("x = 1 > 2 ? stop() : 3; $TargetDedicatedNodes = x").dedicated == 3
    assert run("x = 2 > 1 ? stop() : 3; $TargetDedicatedNodes = x").dedicated == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no statements"),
        ("// nothing", "no statements"),
        ("x = ", "Unexpected the end"),
        ("x = 1 y = 2", "Line 1, Col 7: Unexpected y; ';' is expected"),
        ("x = (1 + 2", "'\\)' is expected"),
        ("x = 1 ? 2", "':' is expected"),
        ("x = f(1,)", "a value is expected"),
        ("x = f(1 2)", "',' is expected"),
        ("x = 1;;", "Unexpected ;"),
        ("= 1", "Unexpected ="),
        ("x = 1 % 2", "Line 1, Col 7: Unexpected character '%'"),
        ("x = 'a'", "Unexpected character"),
        ('x = "a', "Unexpected character"),
        ("x = [1, 2]", "Unexpected character"),
        ("/* no */ x = 1", "Unexpected /"),
        ("x = 1\n  + * 2", "Line 2, Col 5"),
        ("x = time().5", "Unexpected"),
        ("x = a.", "a name is expected"),
        ("x = y", "'y' is not defined"),
        ("x = x + 1", "'x' is not defined"),
        ("x = $pendingtasks.GetSample(1)", "is not defined"),
        ("x = sqrt(2)", "no function 'sqrt'"),
        ("x = $PendingTasks.getSample(1)", "no member 'getSample'"),
        ("x = time().Hour", "no member 'Hour'"),
        ("$PendingTasks = 1", "cannot be assigned"),
        ("TimeInterval_Second = 1", "cannot be assigned"),
        ("requeue = 1", "cannot be assigned"),
        ("x = " + "(" * 150 + "1" + ")" * 150, "nested too deeply"),
        ("x = " + "-" * 50 + "1", "nested too deeply"),
        ("x = time()" + ".hour" * 50, "nested too deeply"),
        ("x = " + "1 ? 2 : " * 50 + "3", "nested too deeply"),
        (";".join(["x = 1"] * 101), "101 statements; at most 100"),
    ],
)
def test_text_that_is_no_formula(text: str, words: str) -> None:
    with pytest.raises(SyntaxProblem, match=words):
        check(parse(text))


def test_limits() -> None:
    assert run(";".join(["x = 1"] * 100)).problem is None
    padded = "x = 1;" + "\n" * (MAX_BYTES - 6)
    assert len(parse(padded).statements) == 1
    assert run(f"$TargetDedicatedNodes = {'1 + ' * 2000}1").dedicated == 2001
    assert run("x = " + "(0 || 1 && 1 == 1 < 2 + 1 * " * 38 + "1" + ")" * 38).problem is None
    with pytest.raises(FormulaTooLong, match="8193 bytes"):
        parse(padded + "\n")
    with pytest.raises(FormulaTooLong):
        parse(f"// {'ä' * (MAX_BYTES // 2)}\nx = 1")


def test_the_page_s_own_examples_run() -> None:
    pending = """
        startingNumberOfVMs = 1;
        maxNumberofVMs = 25;
        pendingTaskSamplePercent = $PendingTasks.GetSamplePercent(180 * TimeInterval_Second);
        pendingTaskSamples = pendingTaskSamplePercent < 70 ? startingNumberOfVMs :
            avg($PendingTasks.GetSample(180 * TimeInterval_Second));
        $TargetDedicatedNodes=min(maxNumberofVMs, pendingTaskSamples);
        $NodeDeallocationOption = taskcompletion;
    """
    assert run(pending).dedicated == 1
    assert run(pending, samples(*[10] * 9, newest=60)).dedicated == 10
    assert run(pending, samples(*[99] * 9, newest=60)).dedicated == 25
    slots = """
        // Determine whether 70 percent of the samples have been recorded in the past 15 minutes
        $samples = $PendingTasks.GetSamplePercent(TimeInterval_Minute * 15);
        $tasks = $samples < 70 ? max(0,$PendingTasks.GetSample(1)) :
            max( $PendingTasks.GetSample(1), avg($PendingTasks.GetSample(TimeInterval_Minute * 15)));
        $cores = $TargetDedicatedNodes * 4;
        $extraVMs = (($tasks - $cores) + 3) / 4;
        $targetVMs = ($TargetDedicatedNodes + $extraVMs);
        $TargetDedicatedNodes = max(0,min($targetVMs,3));
    """
    assert run(slots).dedicated == 0
    assert run(slots, samples(5)).dedicated == 2
    assert run(slots, samples(5), dedicated=1).dedicated == 2
    assert run(slots, samples(*[50] * 40)).dedicated == 3


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='x1.5+-*/<>=!&|?:;,()"$ \n_PTmaxtime', max_size=60))
def test_any_text_is_a_formula_or_a_syntax_error(text: str) -> None:
    try:
        formula = parse(text)
        check(formula)
    except SyntaxProblem:
        return
    evaluate(formula, Samples(now=NOW), dedicated=0, spot=0)
