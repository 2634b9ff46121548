"""What a Parallel call has come to, in numbers and in words: plain values and pure functions."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..cluster.waiting import Waiting

#: Seconds, and changes, that the rate looks back: whichever is more.
_BACK, _CHANGES = 30.0, 8
#: Seconds that it looks back at least: outcomes come in bursts, one a second or two.
_LEAST = 3.0
#: Seconds for which the most workers that were seen stand for those to come: between two bundles there are fewer.
_STEADY = 5.0
#: Bytes from which on an upload is worth a word while no call has ended.
_LARGE_UPLOAD = 10_000_000


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a Parallel call has come to.

    Parameters
    ----------
    name : str
        Of the function that is called.
    done, failed, queued : int
        Calls: with a result; without one for good; and, of those that are known, all others that do not run.
    running : int or None
        Calls that compute, as far as is known; None where only their tasks are known.
    total : int or None
        How many there will be; None where only the generator of the calls knows.
    begun : bool
        Whether a call of the session has ended yet. Until then nobody knows whether what was sent runs, or waits for
        the node to be prepared.
    seconds : float or None
        What a call takes of a worker, on average.
    tasks, waiting_tasks, lost_tasks : int
        Batch tasks that run, that wait for a slot, and that were lost and sent again.
    task_cost : float or None
        Seconds that a task takes beyond its calls, where that was measured.
    sent, fetched : int
        Bytes that went to storage and came from there since the call began, for all calls of this client.
    ready, starting : int or None
        Nodes, where they were counted.
    cost, cost_detail : str
        What the pool has cost since the call began, estimated, in a word and in a line; empty where that says nothing.
    """

    name: str = ""
    done: int = 0
    failed: int = 0
    running: int | None = 0
    queued: int = 0
    total: int | None = None
    begun: bool = False
    seconds: float | None = None
    tasks: int = 0
    waiting_tasks: int = 0
    lost_tasks: int = 0
    task_cost: float | None = None
    sent: int = 0
    fetched: int = 0
    ready: int | None = None
    starting: int | None = None
    cost: str = ""
    cost_detail: str = ""

    @property
    def over(self) -> bool:
        """Whether all calls have ended."""
        return self.total is not None and self.done + self.failed >= self.total


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is shown of one call.

    Parameters
    ----------
    name : str
    parts : tuple of str
        The most important one first.
    fraction : float, optional
        Of the calls that are done.
    below : tuple of str
        Further lines.
    """

    name: str
    parts: tuple[str, ...]
    fraction: float | None = None
    below: tuple[str, ...] = ()

    def fit(self, width: int) -> str:
        """Return the line, without the last parts where they would not fit into so many columns."""
        parts = list(self.parts)
        while True:
            text = ", ".join(parts)
            if len(text) <= width or len(parts) <= 1:
                return text
            parts.pop()

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(self.parts)}"


# arithmetic -------------------------------------------------------------------------------------------------


def time_left(*, queued: int, running: int, seconds: float | None, workers: int) -> float | None:
    """Return the seconds until the last call ends; None where that cannot be known.

    Parameters
    ----------
    queued, running : int
        Calls; of those that run, half is left on average.
    seconds : float or None
        What a call takes on average.
    workers : int
        That compute at once.
    """
    if seconds is None or workers < 1 or queued + running < 1:
        return None
    # However many workers there are, the last call takes its time.
    return max(seconds * (queued + running / 2) / workers, seconds if queued else seconds / 2)


def rate(changes: Sequence[tuple[float, int]], now: float) -> float | None:
    """Return calls per second, from times and how many calls had ended then; None where none has ended."""
    if len(changes) < 2 or now <= changes[0][0]:
        return None
    return (changes[-1][1] - changes[0][1]) / (now - changes[0][0])


class Pace:
    """How fast a call goes, from successive looks at it.

    Parameters
    ----------
    began : float
        When it could run; seconds of the clock of the looks.
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self._changes: collections.deque[tuple[float, int]] = collections.deque()
        self._workers: collections.deque[tuple[float, int]] = collections.deque()
        self._known: tuple[object, ...] = ()
        self._end: float | None = None

    def take(self, now: float, figures: Figures) -> None:
        """Take in what a look has seen, `now` seconds of any one clock."""
        ended, changes = figures.done + figures.failed, self._changes
        if not changes and figures.begun:
            # The first call of a session waits for nodes to be prepared, which is no measure of how fast calls go.
            changes.append((self._began, 0) if not self._known else (now, ended))
        if changes and ended != changes[-1][1]:
            changes.append((now, ended))
        while len(changes) > _CHANGES and now - changes[0][0] > _BACK:
            changes.popleft()
        running = figures.running or 0
        self._workers.append((now, running))
        while now - self._workers[0][0] > _STEADY:
            self._workers.popleft()
        workers = max(each for _, each in self._workers) if figures.queued else running
        known = (ended, workers, figures.total, figures.seconds, figures.begun)
        if known != self._known:
            self._known = known
            self._end = self._estimate(now, figures, workers)

    def _estimate(self, now: float, figures: Figures, workers: int) -> float | None:
        if figures.total is None or not figures.begun:
            return None
        if figures.running is None:  # nobody tells how many compute, nor how long a call takes
            speed = self.rate(now)
            return now + (figures.total - figures.done - figures.failed) / speed if speed else None
        queued = figures.total - figures.done - figures.failed - figures.running
        left = time_left(queued=queued, running=figures.running, seconds=figures.seconds, workers=workers)
        return None if left is None else now + left

    def rate(self, now: float) -> float | None:
        """Return calls per second of late; None where that is not known."""
        return rate(self._changes, now) if self._changes and now - self._changes[0][0] >= _LEAST else None

    def left(self, now: float) -> float | None:
        """Return the seconds left; None where that is not known, and where it should be over by now."""
        return None if self._end is None or self._end - now < 0.5 else self._end - now


# words ------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Write a duration: ``14 s``, ``2 min 05 s``, ``3 h 07 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(whole / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def short(seconds: float) -> str:
    """Write what a call takes: ``35 ms``, ``1.2 s``."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.2g} ms"
    return f"{seconds:.1f} s" if seconds < 9.95 else duration(seconds)


def pace(calls: float) -> str:
    """Write calls per second, per minute or per hour, whichever has a digit before the point."""
    units = (("s", 1), ("min", 60), ("h", 3600))
    unit, seconds = next((each for each in units if calls * each[1] >= 1), units[-1])
    number = calls * seconds
    return f"{number:,.0f}/{unit}" if number >= 9.95 else f"{number:.1f}/{unit}"


def size(count: int) -> str:
    """Write a number of bytes: ``12.3 MB``."""
    number, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while number >= 999.5 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:.0f} {units[0]}" if units[0] == "B" or number >= 99.95 else f"{number:.1f} {units[0]}"


def running_row(figures: Figures, *, rate: float | None, left: float | None, detail: bool) -> Row:
    """Say what a call has come to."""
    known, total = figures.done + figures.failed, figures.total
    calls = f"{figures.done:,}" if total is None else f"{figures.done:,} of {total:,}"
    calls += f" call{'' if (total or figures.done) == 1 else 's'}"
    parts = [calls]
    if left is not None:
        parts.append(f"{duration(left)} left")
    if figures.failed:
        parts.append(f"{figures.failed:,} failed")
    if figures.running:
        parts.append(f"{figures.running:,} {'running' if figures.begun else 'sent to the nodes'}")
    if figures.running is None:
        parts.append(f"tasks: {figures.tasks:,} running, {figures.waiting_tasks:,} waiting")
    else:
        # Of a length that is known, all that has not ended waits, whether joblib has handed it over yet or not.
        queued = figures.queued if total is None else max(0, total - known - figures.running)
        if queued:
            parts.append(f"{queued:,} queued")
    if rate:
        parts.append(pace(rate))
    if not known and figures.sent >= _LARGE_UPLOAD:
        parts.append(f"{size(figures.sent)} up")
    if figures.cost:
        parts.append(figures.cost)
    if figures.ready is not None:
        parts.append(f"{figures.ready} node{'' if figures.ready == 1 else 's'} ready")
    if figures.starting:
        parts.append(f"{figures.starting} starting")
    fraction = None if not total else min(1.0, known / total)
    return Row(
        name=figures.name or "calls",
        parts=tuple(parts),
        fraction=fraction,
        below=_detail(figures) if detail else (),
    )


def sending_row(figures: Figures, *, rate: float | None, left: float | None) -> Row:
    """Say how much of a job has been sent: its calls count as done once they are."""
    total = figures.total
    parts = [f"{figures.done:,} calls sent" if total is None else f"{figures.done:,} of {total:,} calls sent"]
    if left is not None:
        parts.append(f"{duration(left)} left")
    if rate:
        parts.append(pace(rate))
    parts.append(f"{size(figures.sent)} up")
    fraction = None if not total else min(1.0, figures.done / total)
    return Row(name=figures.name or "calls", parts=tuple(parts), fraction=fraction)


def _detail(figures: Figures) -> tuple[str, ...]:
    tasks = [
        f"Batch tasks: {figures.tasks} {'running' if figures.begun else 'sent to the nodes'}",
        f"{figures.waiting_tasks} waiting",
    ]
    if figures.lost_tasks:
        tasks.append(f"{figures.lost_tasks} sent again")
    costs = [f"{size(figures.sent)} up", f"{size(figures.fetched)} down"]
    if figures.seconds is not None:
        costs.append(f"a call takes {short(figures.seconds)}")
    if figures.task_cost is not None:
        costs.append(f"a task {short(figures.task_cost)} beside its calls")
    lines = (", ".join(tasks), ", ".join(costs))
    return (*lines, f"cost so far: {figures.cost_detail}") if figures.cost_detail else lines


def step_row(name: str, what: str, elapsed: float, timeout: float | None) -> Row:
    """Say what is done before the first call can run, since when, and for how long at most."""
    return Row(name=name, parts=(what, _so_far(elapsed, timeout)))


def waiting_row(now: Waiting, elapsed: float) -> Row:
    """Say what is waited for and why: a line, and one more for each error that is known."""
    parts = [now.doing, _so_far(elapsed, now.timeout)]
    if now.wanted:
        parts.append(f"{now.ready} of {now.wanted} ready")
    if now.nodes:
        counted = collections.Counter(node.state for node in now.nodes)
        parts.append(f"nodes: {' and '.join(f'{count} {state}' for state, count in counted.items())}")
    # What a service says may have lines of its own.
    below = [f"node {node.id}: {error}" for node in now.nodes for error in node.errors]
    below = [" ".join(text.split()) for text in (*now.notes, *below)]
    return Row(name=f"pool {now.pool}", parts=tuple(parts), below=tuple(below[:3]))


def _so_far(elapsed: float, timeout: float | None) -> str:
    return duration(elapsed) if timeout is None else f"{duration(elapsed)} of at most {duration(timeout)}"
