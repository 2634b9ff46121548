"""How slow the service is: what passes before a node is there, a task runs, its end is known, a request is answered.

A `Profile` says between which bounds each of these lies, and where that was published; `Latency` draws from one. Where
Microsoft or somebody who measured gives a range, every value of it is drawn as often as any other: a shape is
published nowhere. The draws are seeded, a stream for each kind, so that a node starts as late in the next run however
many requests came before it. All of it passes on the account's clock (``clock_rate``).

::

    request ──`request`, `added_task`──► answer
    resize ──`allocation`──► creating ──► starting ──`boot`──► start task ──► idle
    a slot is free ──`dispatch`──► running ──► the process ends ──`report`──► completed ──`counts`──► in task counts

Lists are exact, as the service documents them: what is completed is in them as completed. Only the counts of tasks are
later than that.
"""

from __future__ import annotations

import random
import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple


class Between(NamedTuple):
    """Two bounds, in seconds."""

    least: float
    most: float


_NONE = Between(0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Bounds of each latency, in seconds of the service's clock.

    Parameters
    ----------
    allocation : Between
        From a resize until its nodes are listed; the pool is resizing meanwhile.
    boot : Between
        Of each node, from there to its start task.
    dispatch : Between
        Of each task, from its slot to its arrival on the node.
    report : Between
        Of each task, from the end of its process until the service knows of it.
    counts : Between
        Of each job, by how much its task counts lag behind the lists.
    request : Between
        Of each request, until it is answered.
    added_task : Between
        Of each task that a request adds, on top of that.
    """

    allocation: Between = _NONE
    boot: Between = _NONE
    dispatch: Between = _NONE
    report: Between = _NONE
    counts: Between = _NONE
    request: Between = _NONE
    added_task: Between = _NONE


PROFILES = {
    "none": Profile(),
    "azure": Profile(
        # "It takes between 3 and 8 minutes before a node starts to get created", confirmed by another user there:
        # https://github.com/Azure/Batch/issues/145. In line with pools that are steady after 6 to 7 minutes:
        # https://github.com/Azure/azure-sdk-for-java/pull/2968
        allocation=Between(180.0, 480.0),
        # From the median of the cold starts of 1,800 small machines in Microsoft's white paper on its Cloud Platform
        # System (https://azurecentric.com/2015/03/new-cps-whitepaper-is-out-now.html) to the 1 min 8 s that CycleCloud
        # logged for the allocation and start of a machine (https://github.com/Azure/az-hop/issues/1217).
        boot=Between(20.0, 68.0),
        # "Typical task scheduling latencies are on the order of 2-5 seconds in the pool user case", says an engineer of
        # Batch: https://github.com/Azure/Batch/issues/58
        dispatch=Between(2.0, 5.0),
        # There too: 7 s between the end of a task and the start of the next that depends on it. What is left of them
        # beside the longest scheduling latency.
        report=Between(0.0, 2.0),
        # "The numbers returned may not always be up to date. If you need exact task counts, use a list query":
        # https://learn.microsoft.com/rest/api/batchservice/jobs/get-job-task-counts. By how much is published nowhere;
        # ASSUMED: no longer than the longest scheduling latency.
        counts=Between(0.0, 5.0),
        # Published nowhere. ASSUMED: what a request over TLS takes within a region and across half a continent.
        request=Between(0.02, 0.1),
        # "Adding 20,000 tasks via the .NET API might take up to one minute", one request at a time by default, which is
        # 3 ms a task; ASSUMED: never less than half of it.
        # https://learn.microsoft.com/azure/batch/large-number-tasks
        added_task=Between(0.0015, 0.003),
    ),
}


class Latency:
    """Draws from a profile, in seconds of real time.

    Parameters
    ----------
    profile : str
        A name in `PROFILES`.
    rate : float
        How many times faster than real time the service's clock goes.
    seed : int
        The same seed, and the same profile, draw the same.
    """

    def __init__(self, profile: str, rate: float, seed: int) -> None:
        self._profile = PROFILES[profile]
        self._rate = rate
        self._seed = seed
        self._streams: dict[str, random.Random] = {}

    def allocation(self) -> float:
        """Return how long a resize waits for its nodes."""
        return self._draw("allocation", self._profile.allocation)

    def boot(self) -> float:
        """Return how long a node boots."""
        return self._draw("boot", self._profile.boot)

    def dispatch(self) -> float:
        """Return how long a task is on its way to its node."""
        return self._draw("dispatch", self._profile.dispatch)

    def report(self) -> float:
        """Return how long the end of a task is on its way to the service."""
        return self._draw("report", self._profile.report)

    def request(self, added: int = 0) -> float:
        """Return how long the answer to a request takes that adds so many tasks."""
        seconds = self._draw("request", self._profile.request)
        return seconds + added * self._draw("added_task", self._profile.added_task) if added else seconds

    def counts(self) -> LateCounts | None:
        """Return what keeps the counts of a new job back; None where nothing does."""
        seconds = self._draw("counts", self._profile.counts)
        return LateCounts(seconds) if seconds else None

    def _draw(self, kind: str, bounds: Between) -> float:
        if not bounds.most:
            return 0.0
        if kind not in self._streams:
            self._streams[kind] = random.Random(f"{self._seed} {kind}")
        return self._streams[kind].uniform(*bounds) / self._rate


class LateCounts:
    """Counts of a job as they were some seconds ago: (tasks, slots) by state.

    Parameters
    ----------
    seconds : float
        By how much they lag, in real time.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._changes: deque[tuple[float, str, int, int]] = deque()
        self._shown: dict[str, list[int]] = {}

    def add(self, name: str, tasks: int, slots: int) -> None:
        """Take in a change that is to be seen later."""
        now = time.monotonic()
        self._changes.append((now + self._seconds, name, tasks, slots))
        self._show(now)  # so that no more is kept than changed within the lag

    def shown(self) -> dict[str, list[int]]:
        """Return the counts that are seen now; states that never were are not in it."""
        self._show(time.monotonic())
        return self._shown

    def _show(self, now: float) -> None:
        while self._changes and self._changes[0][0] <= now:
            _, name, tasks, slots = self._changes.popleft()
            count = self._shown.setdefault(name, [0, 0])
            count[0] += tasks
            count[1] += slots


def most_to_a_node(profile: str, rate: float) -> float:
    """Return how long the slowest node takes from its resize to its start task, in seconds of real time."""
    bounds = PROFILES[profile]
    return (bounds.allocation.most + bounds.boot.most) / rate
