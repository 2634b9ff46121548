"""The functions of the language, and what each takes.

`ceil`, `floor` and `round` came later than the others; the page's current version has them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from datetime import datetime, timezone

from .. import times
from .problems import EvaluationProblem
from .values import Value, Vec, type_of


class Stop(Exception):
    """`stop()` was called: what is assigned so far counts."""


def _vector(name: str, arguments: Sequence[Value]) -> Vec:
    """A doubleVecList as one doubleVec."""
    found: list[float] = []
    for each in arguments:
        if isinstance(each, float):
            found.append(each)
        elif isinstance(each, tuple):
            found += each
        else:
            raise EvaluationProblem(f"Function '{name}' takes doubles and doubleVecs, not a {type_of(each)}")
    return tuple(found)


def _filled(name: str, arguments: Sequence[Value]) -> Vec:
    found = _vector(name, arguments)
    if not found:
        raise EvaluationProblem(f"Function '{name}' has no values to work on")
    return found


def _deviation(values: Vec) -> float:
    if len(values) < 2:
        raise EvaluationProblem("Function 'std' needs two values at least")
    mean = sum(values) / len(values)
    # A product of doubles is infinite where a power is an error.
    return math.sqrt(sum((each - mean) * (each - mean) for each in values) / (len(values) - 1))


def _round(value: float) -> float:
    """To the nearest integer, halves away from zero."""
    return math.copysign(math.floor(abs(value) + 0.5), value)


_OF_LISTS: dict[str, Callable[[Vec], float]] = {
    "avg": lambda values: sum(values) / len(values),
    "max": max,
    "min": min,
    "norm": lambda values: math.hypot(*values),
    "range": lambda values: max(values) - min(values),
    "std": _deviation,
}
_OF_EACH: dict[str, Callable[[float], float]] = {
    "ceil": lambda value: float(math.ceil(value)),
    "floor": lambda value: float(math.floor(value)),
    "lg": math.log2,
    "ln": math.log,
    "log": math.log10,
    "round": _round,
}


def call(name: str, arguments: list[Value], now: datetime) -> Value:
    """Call a function.

    Raises
    ------
    EvaluationProblem
        For arguments that it does not take, or has no value for.
    Stop
        By `stop()`.
    """
    if name in _OF_LISTS:
        return float(_OF_LISTS[name](_filled(name, arguments)))
    if name in _OF_EACH:
        return _each(name, arguments)
    if name == "sum":
        return float(sum(_vector(name, arguments)))
    if name == "len":
        return float(len(_vector(name, arguments)))
    if name == "time":
        return _time(arguments, now)
    if name in ("percentile", "val"):
        return _pick(name, arguments)
    if arguments:
        raise EvaluationProblem(f"Function '{name}' takes no arguments")
    if name == "rand":
        return random.random()
    raise Stop


#: Their names.
FUNCTIONS = frozenset({*_OF_LISTS, *_OF_EACH, "sum", "len", "time", "percentile", "val", "rand", "stop"})


def _each(name: str, arguments: list[Value]) -> Value:
    apply = _OF_EACH[name]
    try:
        if len(arguments) == 1 and isinstance(arguments[0], float):
            return apply(arguments[0])
        return tuple(apply(each) for each in _filled(name, arguments))
    except (ValueError, OverflowError):
        raise EvaluationProblem(f"Function '{name}' has no value for its argument") from None


def _time(arguments: list[Value], now: datetime) -> datetime:
    if not arguments or arguments == [""]:
        return now
    if len(arguments) > 1 or not isinstance(arguments[0], str):
        raise EvaluationProblem("Function 'time' takes one string")
    found = times.parse_datetime(arguments[0]) or times.parse_http_date(arguments[0])
    if found is None:
        raise EvaluationProblem(f"'{arguments[0]}' is no date as W3C-DTF or RFC 1123 have it")
    try:
        return found.astimezone(timezone.utc)
    except OverflowError:
        raise EvaluationProblem(f"'{arguments[0]}' is out of range") from None


def _pick(name: str, arguments: list[Value]) -> float:
    if len(arguments) != 2 or not isinstance(arguments[0], tuple) or not isinstance(arguments[1], float):
        raise EvaluationProblem(f"Function '{name}' takes a doubleVec and a double")
    values, which = arguments[0], arguments[1]
    if name == "val":
        if not (which.is_integer() and 0 <= which < len(values)):
            raise EvaluationProblem(f"There is no value {which:g} in a vector of {len(values)}")
        return values[int(which)]
    if not values or not 0 <= which <= 100:
        raise EvaluationProblem("Function 'percentile' needs values, and a percentage from 0 to 100")
    place = which / 100 * (len(values) - 1)
    low = math.floor(place)
    ordered = sorted(values)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
