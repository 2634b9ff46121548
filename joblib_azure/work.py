"""The work of a session: its Parallel calls, what of them is queued, and which tasks carry the rest.

::

    begin(call), ready(chunk) ──► planner ── bundles ──► submitter ──► under way ──► finish(), requeue() ─┐
                                     ▲                                                                    │
                                     └──────────────── take_in(): what workers measured ◄── monitor ◄─────┘

All of it is under one lock, on which the session's threads sleep until something changes. The cost of a function's
calls is remembered here from one Parallel call to the next.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Mapping
from math import inf
from typing import Any

from .call import Call, UnderWay
from .capacity import Capacity, Cost
from .planner import Planner


class Work:
    """The work of one session.

    Parameters
    ----------
    capacity : Capacity
        The pool's upper bound.
    """

    def __init__(self, capacity: Capacity) -> None:
        self._capacity = capacity
        #: Guards everything below.
        self.changed = threading.Condition()
        self.planner = Planner(capacity)
        self.calls: dict[str, Call] = {}
        #: By their tasks' ids, in the order in which the service has them.
        self.under_way: dict[str, UnderWay] = {}
        self.tasks_added = 0
        #: Counts what brings outcomes nearer: tasks added, buffers uploaded.
        self.steps = 0
        #: Whether somebody who looks for what to submit was told of chunks since the last look: once is enough.
        self.told = False
        #: Whether a worker has measured something yet.
        self.heard = False
        #: Nodes that the pool was asked for while there were calls.
        self.nodes_asked = 0
        self.idle_since = time.monotonic()
        #: Whether nothing is begun or queued any more.
        self.closed = False
        self._costs: dict[str, Cost] = {}

    def close(self) -> list[Call] | None:
        """Begin and queue nothing any more; return the calls that are left, or None where it was closed already."""
        with self.changed:
            first, self.closed = not self.closed, True
            self.changed.notify_all()
            return list(self.calls.values()) if first else None

    # what joblib dispatches -----------------------------------------------------------------------------

    def begin(self, call: Call) -> bool:
        """Take a Parallel call on; False where it is too late for that."""
        with self.changed:
            if not self.closed:
                self.calls[call.id] = call
            return not self.closed

    def end(self, call: Call) -> list[UnderWay] | None:
        """Forget a call; return what of it has tasks that are of no use any more. None where it was forgotten."""
        with self.changed:
            if self.planned(call):
                cost = self.planner.cost(call.id)
                if cost is not None:
                    self._costs[call.function] = cost
                self.planner.close_call(call.id)
            if self.calls.pop(call.id, None) is None:
                return None
            self.idle_since = time.monotonic()
            self.nodes_asked = self.nodes_asked if self.calls else 0
            self.changed.notify_all()
            return [entry for entry in self.under_way.values() if entry.call is call and entry.remaining]

    def ready(self, call: Call, chunk: int, calls: int, function: str) -> None:
        """Queue a chunk of `calls` delayed calls of `function`, by whose name their cost is remembered."""
        with self.changed:
            if self.announce(call, function):
                self.planner.add(call.id, chunk, calls, time.monotonic())
                if not self.told:
                    self.told = True
                    self.changed.notify_all()

    def announce(self, call: Call, function: str) -> bool:
        """Tell the planner of a call, if it does not know it; False where that is over. With the lock held."""
        if call.id not in self.calls or self.closed:
            return False
        if not call.function:
            call.function = function
            self.planner.open_call(call.id, n_jobs=call.settings.n_jobs, cost=self._costs.get(function))
        return True

    @property
    def streams(self) -> int:
        """How many tasks run at once, about."""
        return min(self.planner.under_way, self._capacity.lanes)

    def pour(self, call: Call) -> None:
        """Say that the generator of calls gives many, so that more chunks come in a moment."""
        with self.changed:
            if self.planned(call):
                self.planner.pour(call.id, time.monotonic())

    def exhaust(self, call: Call) -> None:
        """Say that no further chunk of the call will come."""
        with self.changed:
            call.exhausted = True
            if self.planned(call):
                self.planner.exhaust(call.id)
                self.changed.notify_all()

    def wanted(self, call: Call) -> int:
        """Return how many further delayed calls joblib should dispatch now."""
        with self.changed:
            return self.planner.wanted(call.id) if self.planned(call) and call.failure is None else 0

    def chunk_size(self, call: Call, *, drip: bool) -> int:
        """Return how many delayed calls the next chunk should have; `drip` as in `Planner.chunk_size`."""
        with self.changed:
            return self.planner.chunk_size(call.id, drip=drip) if self.planned(call) else 1

    def planned(self, call: Call) -> bool:
        """Tell whether the planner knows the call; with the lock held."""
        return call.id in self.calls and bool(call.function)

    def cost(self, call: Call) -> Cost | None:
        """Return what the calls of a Parallel take, as far as it is known; with the lock held."""
        return self.planner.cost(call.id) if self.planned(call) else None

    # what the tasks do ----------------------------------------------------------------------------------

    def take_in(self, entry: UnderWay, heads: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        """Take note that chunks of a task have outcomes, and in what their workers measured."""
        with self.changed:
            planned = self.planned(entry.call)
            for chunk, head in heads:
                entry.remaining.discard(chunk)
                if "seconds" in head:
                    entry.seconds += head["seconds"]
                    self.heard = True
                    if planned:
                        self.planner.observe(entry.call.id, head["calls"], head["seconds"])
            entry.heard = time.monotonic()

    def least_rest(self) -> float:
        """Return the seconds for which nobody minds how tasks end, as the cost of calls tells; with the lock held.

        0 where that is not known, and where somebody waits for single outcomes.
        """
        now, least, slots = time.monotonic(), inf, self._capacity.lanes
        for entry in self.under_way.values():
            slots -= entry.bundle.slots
            if slots < 0:
                return inf  # others wait there: a slot is filled without us, and the end of a task is no news
            cost = self.cost(entry.call)
            if cost is None or entry.call.settings.watched:
                return 0.0
            # Of one that was not heard of, which may have waited on the service, all but its first chunk is left.
            chunks = len(entry.remaining) - (not entry.heard)
            left = entry.bundle.seconds(cost) * chunks / len(entry.bundle.chunks)
            least = min(least, left - (now - entry.heard if entry.heard else 0.0))
        return least

    def finish(self, entry: UnderWay, *, cost: float | None = None) -> None:
        """A task ended."""
        with self.changed:
            if self.under_way.pop(entry.task, None) is not None:
                self.planner.finish(entry.bundle.id, cost=cost)
                self.changed.notify_all()

    def requeue(self, entry: UnderWay, alone: Collection[int] = ()) -> None:
        """A task was lost: what it did not finish is sent again, those that are to be `alone` each by itself."""
        with self.changed:
            if self.under_way.pop(entry.task, None) is not None:
                chunks = [chunk for chunk in entry.bundle.chunks if chunk in entry.remaining]
                self.planner.requeue(entry.bundle.id, chunks, alone=alone)
                entry.call.lost_tasks += 1
                self.changed.notify_all()

    def attempts(self, entry: UnderWay) -> int:
        """Return how often what is left of the bundle was sent."""
        return max((entry.call.attempts[chunk] for chunk in entry.remaining), default=0)
