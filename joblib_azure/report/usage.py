"""Where the time of a run went: the slots' seconds by phase, the cores that computed, and what decided the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from .model import LOST, History, Lane, Phases, TaskRun

#: What a slot's time goes into, in the order of a task's life; the middle ones are a run's `Phases`.
KINDS = ("queued", *Phases._fields, "lost", "idle")


class Gap(NamedTuple):
    """Time in which a slot was free before a run."""

    run: TaskRun
    first: bool  #: of its slot: until then there was no node, or it was being prepared
    idle: float  #: seconds in which the task was not there yet
    queued: float  #: seconds in which it was


def gaps(history: History, lane: Lane) -> Iterator[Gap]:
    """Yield the gap before each run of a slot."""
    free = history.begun
    for number, run in enumerate(lane.runs):
        queued_from = min(max(free, run.created), run.begun)
        yield Gap(run, number == 0, max(0.0, queued_from - free), run.begun - queued_from)
        free = run.ended


def totals(history: History) -> dict[str, float]:
    """Return the seconds of all slots by what they went into; their sum is slots × the run's duration."""
    found = dict.fromkeys(KINDS, 0.0)
    for lane in history.lanes:
        for gap in gaps(history, lane):
            found["idle"] += gap.idle
            found["queued"] += gap.queued
            if gap.run.state in LOST:
                found["lost"] += gap.run.seconds
            else:
                for name, seconds in gap.run.phases._asdict().items():
                    found[name] += seconds
        found["idle"] += max(0.0, history.ended - lane.runs[-1].ended)
    return found


# cores --------------------------------------------------------------------------------------------------------------


def _binned(pieces: Iterable[tuple[float, float, float]], begin: float, width: float, bins: int) -> list[float]:
    """Return the average level in each bin; a piece is a begin, an end and the level that it adds between them."""
    # What a piece adds to the bins that it fills is kept as its two steps; to its first and last it is added by itself.
    steps, parts = [0.0] * (bins + 1), [0.0] * (bins + 1)
    for start, end, level in pieces:
        low = min(max(0.0, (start - begin) / width), float(bins))
        high = min(max(0.0, (end - begin) / width), float(bins))
        if high <= low:
            continue
        first, last = int(low), int(high)
        if first == last:
            parts[first] += level * (high - low)
            continue
        parts[first] += level * (first + 1 - low)
        parts[last] += level * (high - last)
        steps[first + 1] += level
        steps[last] -= level
    found, level = [], 0.0
    for number in range(bins):
        level += steps[number]
        found.append(max(0.0, level + parts[number]))
    return found


@dataclass(frozen=True, kw_only=True)
class Utilisation:
    """Cores that computed, over the time of a run.

    Parameters
    ----------
    step : float
        Seconds from one value to the next.
    busy, cores : tuple of float
        Cores in calls, and cores of the nodes that had begun to work, on the average of each step.
    """

    step: float
    busy: tuple[float, ...]
    cores: tuple[float, ...]

    @property
    def share(self) -> float:
        """The part of the cores' time that went into calls."""
        there = sum(self.cores)
        return min(1.0, sum(self.busy) / there) if there else 0.0


def utilisation(history: History, bins: int = 200) -> Utilisation:
    """Return how many cores were in calls over the time of the run.

    A call counts for all cores that it had: what it did with them is not measured. Within a run of a task its calls
    are spread evenly.
    """
    step = max(history.seconds, 1e-9) / bins
    work = []
    for run in history.runs:
        begin, end = run.computing
        if end > begin:
            work.append((begin, end, min(run.work / (end - begin), float(run.workers))))
    began: dict[str, float] = {}
    for run in history.runs:
        began[run.node] = min(began.get(run.node, run.begun), run.begun)
    there = [(start, history.ended, float(history.cores[node])) for node, start in began.items()]
    return Utilisation(
        step=step,
        busy=tuple(_binned(work, history.begun, step, bins)),
        cores=tuple(_binned(there, history.begun, step, bins)),
    )


def tail(history: History) -> float:
    """Return the seconds at the end of the run in which fewer than half of its slots had a task."""
    half = len(history.lanes) / 2
    ends = sorted(((run.ended, -1) for run in history.runs), reverse=True)
    begins = sorted(((run.begun, 1) for run in history.runs), reverse=True)
    busy = 0
    ends_at = begins_at = 0
    # Backwards from the end: a run is met at its end, and left at its begin.
    while ends_at < len(ends):
        if begins_at < len(begins) and begins[begins_at][0] >= ends[ends_at][0]:
            busy -= 1
            begins_at += 1
            continue
        busy += 1
        if busy >= half:
            return max(0.0, history.ended - ends[ends_at][0])
        ends_at += 1
    return history.seconds


# the critical path --------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """A part of the chain that decided the end."""

    kind: Literal["queued", "idle", "run"]
    begun: float
    ended: float
    run: TaskRun


@dataclass(frozen=True, kw_only=True)
class CriticalPath:
    """The slot that was free last, from the begin of the run on: its runs and the gaps between them."""

    node: str
    slot: int
    steps: tuple[Step, ...]

    @property
    def runs(self) -> tuple[TaskRun, ...]:
        """The runs on it."""
        return tuple(step.run for step in self.steps if step.kind == "run")

    def seconds(self) -> dict[str, float]:
        """Return its seconds by what they went into."""
        found = dict.fromkeys(KINDS, 0.0)
        for step in self.steps:
            if step.kind != "run":
                found[step.kind] += step.ended - step.begun
            elif step.run.state in LOST:
                found["lost"] += step.run.seconds
            else:
                for name, seconds in step.run.phases._asdict().items():
                    found[name] += seconds
        return found


def critical_path(history: History) -> CriticalPath | None:
    """Return the chain that decided when the run ended; None where nothing has run."""
    if not history.lanes:
        return None
    lane = max(history.lanes, key=lambda lane: lane.runs[-1].ended)
    steps: list[Step] = []
    for gap in gaps(history, lane):
        queued_from = gap.run.begun - gap.queued
        if gap.idle > 0:
            steps.append(Step("idle", queued_from - gap.idle, queued_from, gap.run))
        if gap.queued > 0:
            steps.append(Step("queued", queued_from, gap.run.begun, gap.run))
        steps.append(Step("run", gap.run.begun, gap.run.ended, gap.run))
    return CriticalPath(node=lane.node, slot=lane.slot, steps=tuple(steps))
