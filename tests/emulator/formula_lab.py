"""Shorthands for tests of the autoscale language: samples, a formula's outcome, an expression's value."""

from __future__ import annotations

import datetime

import pytest

from joblib_azure.emulator.autoscale import FormulaProblem, History, Outcome, Samples, check, evaluate, parse
from joblib_azure.emulator.autoscale.values import Value

#: A Thursday.
NOW = datetime.datetime(2016, 10, 13, 19, 18, 47, 805_000, tzinfo=datetime.timezone.utc)


def samples(*values: float, variable: str = "$PendingTasks", newest: int = 60, rate: float = 1.0) -> Samples:
    """Samples 30 s apart, the newest so many seconds old."""
    history = History()
    for number, value in enumerate(values):
        age = newest + 30 * (len(values) - 1 - number)
        history.add(NOW - datetime.timedelta(seconds=age) / rate, value)
    return Samples(now=NOW, histories={variable: history}, rate=rate)


def run(text: str, given: Samples | None = None, *, dedicated: int = 0, spot: int = 0) -> Outcome:
    formula = parse(text)
    check(formula)
    return evaluate(
        formula, given or Samples(now=NOW), dedicated=dedicated, spot=spot, current={"$TaskSlotsPerNode": 4}
    )


def value(expression: str, given: Samples | None = None) -> Value:
    found = run(f"x = {expression}", given)
    if found.problem is not None:
        raise found.problem
    return found.variables["x"]


def refused(expression: str, given: Samples | None = None) -> str:
    with pytest.raises(FormulaProblem) as caught:
        value(expression, given)
    return str(caught.value)
