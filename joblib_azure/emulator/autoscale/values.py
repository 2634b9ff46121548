"""Values of the language: double, doubleVec, string, timestamp and timeinterval, and the operators between them.

A double is a float, a doubleVec a tuple of floats, a string a str, a timestamp an aware datetime in UTC, a
timeinterval an `Interval`. Which operator takes which is the page's table: what it does not list is an error here,
such as a timestamp less a timeinterval.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from .problems import EvaluationProblem


@dataclass(frozen=True, order=True)
class Interval:
    """A length of time; `datetime.timedelta` is too coarse for `TimeInterval_100ns`."""

    seconds: float


Vec: TypeAlias = tuple[float, ...]
Value: TypeAlias = float | Vec | str | datetime | Interval

#: The weekday of Sunday; the page says only that Monday is 1 (.NET's own numbers begin with Sunday, 0).
SUNDAY = 0

INTERVALS: dict[str, Interval] = {
    "TimeInterval_Zero": Interval(0),
    "TimeInterval_100ns": Interval(1e-7),
    "TimeInterval_Microsecond": Interval(1e-6),
    "TimeInterval_Millisecond": Interval(1e-3),
    "TimeInterval_Second": Interval(1),
    "TimeInterval_Minute": Interval(60),
    "TimeInterval_Hour": Interval(3600),
    "TimeInterval_Day": Interval(86400),
    "TimeInterval_Week": Interval(7 * 86400),
    "TimeInterval_Year": Interval(365 * 86400),
}
#: What `$NodeDeallocationOption` may be; names in formulas, strings as values.
OPTIONS = ("requeue", "terminate", "taskcompletion", "retaineddata")
MEMBERS: dict[str, Callable[[datetime], int]] = {
    "year": lambda moment: moment.year,
    "month": lambda moment: moment.month,
    "day": lambda moment: moment.day,
    "weekday": lambda moment: SUNDAY if moment.isoweekday() == 7 else moment.isoweekday(),
    "hour": lambda moment: moment.hour,
    "minute": lambda moment: moment.minute,
    "second": lambda moment: moment.second,
}


def type_of(value: Value) -> str:
    """The name of a value's type."""
    if isinstance(value, tuple):
        return "doubleVec"
    names = {float: "double", str: "string", datetime: "timestamp", Interval: "timeinterval"}
    return names[type(value)]


def _divide(left: float, right: float) -> float:
    if right:
        return left / right
    return math.nan if left == 0 or math.isnan(left) else math.copysign(math.inf, left) * math.copysign(1, right)


_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divide,
}
_COMPARISONS: dict[str, Callable[[Value, Value], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    ">=": operator.ge,
    ">": operator.gt,
    "!=": operator.ne,
}
_COMPARABLE = ("double", "string", "timestamp", "timeinterval")


def unary(sign: str, value: Value) -> Value:
    """Apply `-` or `!`.

    Raises
    ------
    EvaluationProblem
        For a type that the operator does not take.
    """
    if isinstance(value, float):
        return -value if sign == "-" else float(not value)
    if isinstance(value, Interval) and sign == "-":
        return Interval(-value.seconds)
    raise EvaluationProblem(f"Operator '{sign}' does not apply to {type_of(value)}")


def binary(sign: str, left: Value, right: Value) -> Value:
    """Apply an operator to two values (`&&` and `||` to two doubles, both evaluated).

    Raises
    ------
    EvaluationProblem
        For types that the operator does not take together, and for vectors of different lengths.
    """
    types = (type_of(left), type_of(right))
    if sign in _COMPARISONS and types[0] == types[1] and types[0] in _COMPARABLE:
        return float(_COMPARISONS[sign](left, right))
    if isinstance(left, float) and isinstance(right, float):
        if sign in ("&&", "||"):
            return float(bool(left and right) if sign == "&&" else bool(left or right))
        return _ARITHMETIC[sign](left, right)
    found = None
    try:
        if sign in _ARITHMETIC:
            found = _vectors(sign, left, right) if isinstance(left, tuple) else _times(sign, left, right)
    except (OverflowError, ValueError):
        raise EvaluationProblem(f"The result of '{sign}' is out of range") from None
    if found is None:
        raise EvaluationProblem(f"Operator '{sign}' does not apply to {types[0]} and {types[1]}")
    return found


def _vectors(sign: str, left: Vec, right: Value) -> Vec | None:
    apply = _ARITHMETIC[sign]
    if isinstance(right, float):
        return tuple(apply(each, right) for each in left)
    if isinstance(right, tuple):
        if len(left) != len(right):
            raise EvaluationProblem(f"Vectors of {len(left)} and {len(right)} values do not go together")
        return tuple(map(apply, left, right))
    return None


def _times(sign: str, left: Value, right: Value) -> Value | None:
    found: Value | None = None
    if isinstance(left, Interval) and isinstance(right, Interval) and sign in "+-":
        found = Interval(_ARITHMETIC[sign](left.seconds, right.seconds))
    elif isinstance(left, Interval) and isinstance(right, float) and sign in "*/":
        found = Interval(_ARITHMETIC[sign](left.seconds, right))
    elif isinstance(left, float) and isinstance(right, Interval) and sign == "*":
        found = Interval(left * right.seconds)
    elif isinstance(left, Interval) and isinstance(right, datetime) and sign == "+":
        found = right + timedelta(seconds=left.seconds)
    elif isinstance(left, datetime) and isinstance(right, Interval) and sign == "+":
        found = left + timedelta(seconds=right.seconds)
    elif isinstance(left, datetime) and isinstance(right, datetime) and sign == "-":
        found = Interval((left - right).total_seconds())
    return found


def written(value: Value) -> str:
    """A value as the results of an `autoScaleRun` write it."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, tuple):
        return f"[{','.join(written(each) for each in value)}]"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%dT%H:%M:%S}.{value.microsecond // 1000:03d}Z"
    if isinstance(value, Interval):
        return _span(value.seconds)
    return value


def _span(seconds: float) -> str:
    """As .NET writes a TimeSpan: ``[-][d.]hh:mm:ss[.fffffff]``."""
    ticks = round(abs(seconds) * 1e7) if math.isfinite(seconds) else 0
    whole, fraction = divmod(ticks, 10_000_000)
    days, rest = divmod(whole, 86400)
    text = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    text = (f"{days}." if days else "") + text + (f".{fraction:07d}" if fraction else "")
    return ("-" if seconds < 0 else "") + text
