"""A pool on a simulated clock: recorded demand goes in, an autoscale formula sets the targets, nodes come and go.

    demand ─► tasks queue for slots ─► samples every 30 s ─► formula, every interval ─► targets ─► nodes boot, leave

The formulas run in the emulator's evaluator. Nodes and tasks are plain numbers here, in steps of 30 s, so that a week
takes a second; what the emulated service itself does with targets is tested in tests/emulator.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from joblib_azure.emulator.autoscale import METRICS, History, Samples, check, evaluate, parse

STEP = 30
#: Seconds that a node takes to come up: of the 3 to 8 minutes seen in the field.
BOOT_SECONDS = 240
#: A Monday.
MONDAY = datetime.datetime(2026, 3, 2, tzinfo=datetime.timezone.utc)
HOUR = 3600
DAY = 24 * HOUR


@dataclass(frozen=True)
class Arrival:
    """Tasks that are added at a time (seconds from the start) and run for so many seconds each."""

    at: int
    tasks: int
    seconds: int


@dataclass(frozen=True)
class Demand:
    """A recorded demand."""

    name: str
    start: datetime.datetime
    seconds: int
    arrivals: tuple[Arrival, ...]

    @property
    def ends(self) -> int:
        """When the last tasks are added."""
        return max((each.at for each in self.arrivals), default=0)


@dataclass(frozen=True)
class Preemption:
    """Spot nodes that are taken at a time, for so many seconds."""

    at: int
    nodes: int
    seconds: int


@dataclass(eq=False)
class SimulatedNode:
    dedicated: bool
    ready: int
    ends: list[int] = field(default_factory=list)
    leaving: bool = False
    #: When a preempted node comes back.
    back: int | None = None


@dataclass(frozen=True)
class Moment:
    """What there is at a time."""

    at: int
    dedicated: int
    spot: int
    preempted: int
    target_dedicated: int
    target_spot: int
    queued: int
    running: int

    @property
    def nodes(self) -> int:
        """Nodes that are paid for: all but preempted ones."""
        return self.dedicated + self.spot


@dataclass(frozen=True)
class Run:
    """How a demand went."""

    moments: tuple[Moment, ...]
    waits: tuple[int, ...]
    left: int

    @property
    def node_hours(self) -> float:
        return sum(each.nodes for each in self.moments) * STEP / HOUR

    @property
    def mean_wait(self) -> float:
        return sum(self.waits) / len(self.waits) if self.waits else 0.0


class Simulation:
    """One pool, one formula, one demand."""

    def __init__(
        self,
        demand: Demand,
        text: str,
        *,
        slots: int,
        interval: int = 300,
        preemptions: Sequence[Preemption] = (),
    ) -> None:
        self._demand = demand
        self._formula = parse(text)
        check(self._formula)
        self._slots = slots
        self._interval = interval
        self._preemptions = list(preemptions)
        self._histories = {name: History() for name in METRICS}
        self._nodes: list[SimulatedNode] = []
        self._queue: list[tuple[int, int]] = []  # (added, seconds)
        self._targets = (0, 0)
        self._waits: list[int] = []

    def run(self) -> Run:
        """Run the demand from its start to its end; every evaluation has to succeed."""
        arrivals = sorted(self._demand.arrivals, key=lambda each: each.at)
        moments = []
        for now in range(0, self._demand.seconds, STEP):
            while arrivals and arrivals[0].at <= now:
                first = arrivals.pop(0)
                self._queue += [(first.at, first.seconds)] * first.tasks
            self._advance(now)
            self._sample(now)
            if now % self._interval == 0:
                self._evaluate(now)
                self._resize(now)
            moments.append(self._moment(now))
        return Run(tuple(moments), tuple(self._waits), len(self._queue) + sum(len(node.ends) for node in self._nodes))

    def _advance(self, now: int) -> None:
        for preemption in [each for each in self._preemptions if each.at <= now]:
            self._preemptions.remove(preemption)
            self._preempt(now, preemption)
        for node in self._nodes:
            node.ends = [end for end in node.ends if end > now]
            if node.back is not None and node.back <= now:
                node.back, node.ready = None, now + BOOT_SECONDS
        self._nodes = [node for node in self._nodes if not (node.leaving and not node.ends)]
        ready = [node for node in self._nodes if not node.leaving and node.back is None and node.ready <= now]
        while self._queue:
            node = max(ready, key=lambda each: self._slots - len(each.ends), default=None)
            if node is None or len(node.ends) >= self._slots:
                return
            added, seconds = self._queue.pop(0)
            self._waits.append(now - added)
            node.ends.append(now + seconds)

    def _preempt(self, now: int, preemption: Preemption) -> None:
        there = [node for node in self._nodes if not node.dedicated and node.back is None and not node.leaving]
        for node in there[: preemption.nodes]:
            # what ran begins again, as it does on Batch
            self._queue[:0] = [(now, max(STEP, end - now)) for end in node.ends]
            node.ends, node.back = [], now + preemption.seconds

    def _sample(self, now: int) -> None:
        running = sum(len(node.ends) for node in self._nodes)
        values = {
            "$ActiveTasks": len(self._queue),
            "$RunningTasks": running,
            "$PendingTasks": len(self._queue) + running,
            "$TaskSlotsPerNode": self._slots,
            "$CurrentDedicatedNodes": sum(node.dedicated for node in self._nodes),
            "$CurrentLowPriorityNodes": sum(not node.dedicated for node in self._nodes),
            "$PreemptedNodeCount": sum(node.back is not None for node in self._nodes),
        }
        for name, value in values.items():
            self._histories[name].add(self._time(now), value)

    def _time(self, now: int) -> datetime.datetime:
        return self._demand.start + datetime.timedelta(seconds=now)

    def _evaluate(self, now: int) -> None:
        samples = Samples(now=self._time(now), histories=self._histories)
        outcome = evaluate(self._formula, samples, dedicated=self._targets[0], spot=self._targets[1])
        if outcome.problem is not None:
            raise outcome.problem
        if outcome.option != "taskcompletion":
            raise NotImplementedError(f"nodes that leave with {outcome.option}")
        self._targets = (outcome.dedicated, outcome.spot)

    def _resize(self, now: int) -> None:
        for dedicated, target in zip((True, False), self._targets, strict=True):
            staying = [node for node in self._nodes if node.dedicated is dedicated and not node.leaving]
            staying.sort(key=lambda node: (node.back is None, len(node.ends)))
            for node in staying[: max(0, len(staying) - target)]:
                node.leaving = True
            new = max(0, target - len(staying))
            self._nodes += [SimulatedNode(dedicated, now + BOOT_SECONDS) for _ in range(new)]
        self._nodes = [node for node in self._nodes if not (node.leaving and not node.ends)]

    def _moment(self, now: int) -> Moment:
        there = [node for node in self._nodes if node.back is None]
        dedicated = sum(node.dedicated for node in there)
        return Moment(
            at=now,
            dedicated=dedicated,
            spot=len(there) - dedicated,
            preempted=len(self._nodes) - len(there),
            target_dedicated=self._targets[0],
            target_spot=self._targets[1],
            queued=len(self._queue),
            running=sum(len(node.ends) for node in self._nodes),
        )


def ideal_node_hours(demand: Demand, *, slots: int, most: int) -> float:
    """Node-hours of the nodes that the tasks would fill if a node came and went at once, within the maximum."""
    arrivals = sorted(demand.arrivals, key=lambda each: each.at)
    queue: list[int] = []
    running: list[int] = []
    hours = 0.0
    for now in range(0, demand.seconds, STEP):
        while arrivals and arrivals[0].at <= now:
            first = arrivals.pop(0)
            queue += [first.seconds] * first.tasks
        running = [end for end in running if end > now]
        started = queue[: most * slots - len(running)]
        del queue[: len(started)]
        running += [now + seconds for seconds in started]
        hours += math.ceil(len(running) / slots) * STEP / HOUR
    return hours


# -- recorded demand --------------------------------------------------------------------------------------------------


def _bursts(times: Iterable[float], tasks: Callable[[int], int], seconds: Callable[[int], int]) -> Iterator[Arrival]:
    for number, hour in enumerate(times):
        at = round(hour * HOUR / STEP) * STEP
        yield Arrival(at, tasks(number), seconds(number) // STEP * STEP)


#: A Wednesday of people at work: calls of a minute to eight, in bursts from nine to six with a lull at noon, and one
#: long call in the evening.
BUSY_DAY = Demand(
    "busy day",
    MONDAY + datetime.timedelta(days=2),
    DAY,
    (
        *_bursts(
            (9.1, 9.4, 9.5, 10.03, 10.2, 10.9, 11.3, 11.6, 13.2, 13.4, 14.05, 14.1, 14.8, 15.5, 16.1, 16.4, 17.2, 17.7),
            lambda number: 8 + 13 * (number * 7 % 11),
            lambda number: 60 + 60 * (number * 5 % 8),
        ),
        Arrival(round(19.25 * HOUR), 64, 30 * 60),
    ),
)
#: From Friday noon to Monday noon: the last work of the week, one long run on Saturday, a short one on Sunday.
WEEKEND = Demand(
    "weekend",
    MONDAY + datetime.timedelta(days=4, hours=12),
    3 * DAY,
    (
        Arrival(2 * HOUR, 60, 5 * 60),
        Arrival(4 * HOUR, 40, 10 * 60),
        Arrival(22 * HOUR, 400, 20 * 60),
        Arrival(52 * HOUR, 24, 10 * 60),
        Arrival(69 * HOUR, 60, 5 * 60),
    ),
)
#: A thousand tasks of two minutes at three in the night of a Tuesday, and nothing else.
SPIKE = Demand("spike", MONDAY + datetime.timedelta(days=1), 8 * HOUR, (Arrival(3 * HOUR, 1000, 120),))
#: Nobody comes, on a Thursday.
NOTHING = Demand("nothing", MONDAY + datetime.timedelta(days=3), DAY, ())
DEMANDS = (BUSY_DAY, WEEKEND, SPIKE, NOTHING)
