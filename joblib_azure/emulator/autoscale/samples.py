"""Samples: what the service has measured every 30 s, and what of it a formula can read about a minute later.

A `History` holds the samples of one variable; `Samples` are the histories of a pool at a moment, through which a
formula reads them. A faster clock (`rate`) shortens the period, the delay and every interval that a formula looks
back; timestamps stay those of the day.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from .problems import EvaluationProblem, InsufficientSamples
from .values import Interval, Value, Vec, type_of

PERIOD = timedelta(seconds=30)
DELAY = timedelta(seconds=60)
#: How long samples are kept; the page does not say. More than any interval between two evaluations but the longest.
KEPT = timedelta(hours=24)

#: What the service samples.
METRICS = (
    "$ActiveTasks",
    "$RunningTasks",
    "$PendingTasks",
    "$SucceededTasks",
    "$FailedTasks",
    "$TaskSlotsPerNode",
    "$CurrentDedicatedNodes",
    "$CurrentLowPriorityNodes",
    "$PreemptedNodeCount",
    "$UsableNodeCount",
)
#: What it sampled once: resources of nodes, retired after 31 March 2024. They are known, and never have a sample.
RETIRED = (
    "$CPUPercent",
    "$WallClockSeconds",
    "$MemoryBytes",
    "$DiskBytes",
    "$DiskReadBytes",
    "$DiskWriteBytes",
    "$DiskReadOps",
    "$DiskWriteOps",
    "$NetworkInBytes",
    "$NetworkOutBytes",
    "$SampleNodeCount",
)
#: Older names, which the page's and the reference's own examples still use.
ALIASES = {"$CurrentDedicated": "$CurrentDedicatedNodes", "$CurrentLowPriority": "$CurrentLowPriorityNodes"}


class History:
    """The samples of one variable, oldest first."""

    def __init__(self) -> None:
        self._times: deque[datetime] = deque()
        self._values: deque[float] = deque()

    def add(self, moment: datetime, value: float) -> None:
        """Note a sample; moments come in order. What is older than a day is forgotten."""
        self._times.append(moment)
        self._values.append(float(value))
        while self._times[0] < moment - KEPT:
            self._times.popleft()
            self._values.popleft()

    def until(self, end: datetime) -> tuple[list[datetime], list[float]]:
        """The samples that are no younger than `end`."""
        count = bisect_right(self._times, end)
        return list(self._times)[:count], list(self._values)[:count]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What formulas can read of a pool's histories at a moment."""

    now: datetime
    histories: Mapping[str, History] = field(default_factory=dict)
    rate: float = 1.0

    def read(self, variable: str) -> Reading:
        """The samples of a variable that can be read now; none for one that is not sampled."""
        history = self.histories.get(ALIASES.get(variable, variable), History())
        times, values = history.until(self.now - DELAY / self.rate)
        return Reading(variable, self.now, self.rate, times, values)


@dataclass(frozen=True)
class Reading:
    """A variable's samples, with the methods that formulas call on it."""

    variable: str
    now: datetime
    rate: float
    times: list[datetime]
    values: list[float]

    def call(self, method: str, arguments: list[Value]) -> Value:
        """Call a method.

        Raises
        ------
        EvaluationProblem
            For a method that there is not, arguments that it does not take, and too few samples.
        """
        if method == "GetSample":
            return self._sample(arguments)
        if method == "GetSamplePercent":
            if not 1 <= len(arguments) <= 2:
                raise self._misused(method, arguments)
            return self._percent(self._span(method, arguments))
        if method not in ("GetSamplePeriod", "Count", "HistoryBeginTime"):
            raise EvaluationProblem(f"{self.variable} has no method {method}")
        if arguments:
            raise self._misused(method, arguments)
        if method == "GetSamplePeriod":
            return Interval(PERIOD.total_seconds())
        if method == "Count":
            return float(len(self.values))
        if not self.times:
            raise InsufficientSamples(f"No data in data set: {self.variable}")
        return self.times[0]

    def _sample(self, arguments: list[Value]) -> Vec:
        if len(arguments) == 1 and isinstance(arguments[0], float):
            count = arguments[0]
            if not count >= 0:  # no number is neither
                raise EvaluationProblem(f"GetSample({count:g}): a number of samples is expected")
            return tuple(self.values[len(self.values) - int(min(count, len(self.values))) :])
        given, wanted = list(arguments), None
        if len(given) > 1 and isinstance(given[-1], float):
            wanted = given.pop()
        if not 1 <= len(given) <= 2:
            raise self._misused("GetSample", arguments)
        span = self._span("GetSample", given)
        if isinstance(wanted, float):
            there = self._percent(span)
            if there < wanted:
                raise InsufficientSamples(
                    f"Insufficient data from data set: {self.variable} wanted {wanted:g}%, received {there:g}%"
                )
        first, last = span
        return tuple(self.values[bisect_left(self.times, first) : bisect_right(self.times, last)])

    def _span(self, method: str, arguments: list[Value]) -> tuple[datetime, datetime]:
        """The time between two moments, whichever comes first: the page's examples have both orders."""
        ends = [self.now] if len(arguments) == 1 else []
        for each in arguments:
            if isinstance(each, Interval):
                try:
                    ends.append(self.now - timedelta(seconds=each.seconds) / self.rate)
                except (OverflowError, ValueError):
                    raise EvaluationProblem(f"{method}: the interval is out of range") from None
            elif isinstance(each, datetime):
                ends.append(each)
            else:
                raise self._misused(method, arguments)
        return min(ends), max(ends)

    def _percent(self, span: tuple[datetime, datetime]) -> float:
        first, last = span
        there = bisect_right(self.times, last) - bisect_left(self.times, first)
        # a span shorter than a period can have one sample
        possible = max(1, round((last - first) * self.rate / PERIOD))
        return min(100.0, float(round(100 * there / possible)))

    def _misused(self, method: str, arguments: list[Value]) -> EvaluationProblem:
        given = ", ".join(type_of(each) for each in arguments)
        return EvaluationProblem(f"{self.variable}.{method} does not take ({given})")
