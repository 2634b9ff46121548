"""What a session's calls have come to, for whoever shows it.

What happens is counted where it happens: calls in `Call`, bytes in `Transfers`, tasks in what is under way. Here it is
put together when somebody looks, a few times a second at most. A look costs the session its lock for as long as a walk
through the tasks under way takes, and one request every few seconds for the nodes, on a thread of the session's pool.
The nodes' price is looked up once, on a thread of its own, when somebody looks for the first time.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .cluster import ready_and_starting
from .errors import JoblibAzureError
from .prices import PriceLookup
from .progress import Figures
from .report.cost import Estimate, Meter, NodeHours, billed

if TYPE_CHECKING:
    from .call import Call
    from .cluster.waiting import Waiting
    from .session import Session

logger = logging.getLogger(__name__)

#: Seconds between two counts of the nodes, while some start and when all that may come are there.
_NODES_COMING, _NODES_THERE = 5.0, 30.0


@dataclass(frozen=True)
class Mark:
    """What a session had come to when a call began."""

    sent: int
    fetched: int
    hours: NodeHours


class Counters:
    """Looks at one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        #: Nodes that are ready, and that start.
        self._nodes: tuple[int, int] | None = None
        self._next_count = 0.0
        # Of the meter, which waits and counts tell on threads of their own.
        self._guard = threading.Lock()
        self._meter = Meter()
        self._prices: PriceLookup | None = None
        self._marked = False

    def mark(self) -> Mark:
        """Return what the session has come to by now, for a call that begins."""
        # What the nodes cost while the session was opened is the first call's, which has waited for them.
        first, self._marked = not self._marked, True
        return Mark(*self._moved(), NodeHours() if first else self._hours())

    def _moved(self) -> tuple[int, int]:
        """Return the bytes that went to storage and came from there, of all that this client does there."""
        try:
            return self._session.cluster.blobs.moved
        except JoblibAzureError:  # the cluster was closed
            return 0, 0

    def look(self, call: Call, since: Mark) -> Figures:
        """Return what a call has come to; `since` is what `mark` returned when it began."""
        session, capacity = self._session, self._session.capacity
        self._count_nodes()
        nodes, sent, fetched = self._nodes, *self._moved()
        money, money_detail = self._cost(since)
        running = tasks = waiting = 0
        with session.work.changed:
            lanes = capacity.lanes if nodes is None else nodes[0] * capacity.tasks_per_node
            for entry in session.work.under_way.values():  # in the order in which the service has them
                lanes -= entry.bundle.slots
                if entry.call is not call or not entry.remaining:
                    continue
                if lanes >= 0 or entry.heard:
                    tasks += 1
                    running += min(entry.bundle.width, len(entry.remaining))
                else:
                    waiting += 1
            planner = session.work.planner
            cost = planner.cost(call.id) if session.work.planned(call) else None
            task_cost = planner.task_cost if planner.task_measured else None
            added, done, failed = call.added, call.done, call.failed
            running = max(0, min(running, added - done - failed))
            return Figures(
                name=_short(call.function),
                done=done,
                failed=failed,
                running=running,
                queued=added - done - failed - running,
                total=added if call.exhausted else call.total,
                begun=session.work.heard,
                seconds=None if cost is None else cost.seconds,
                tasks=tasks,
                waiting_tasks=waiting,
                lost_tasks=call.lost_tasks,
                task_cost=task_cost,
                sent=max(0, sent - since.sent),
                fetched=max(0, fetched - since.fetched),
                ready=None if nodes is None else nodes[0],
                starting=None if nodes is None else nodes[1],
                cost=money,
                cost_detail=money_detail,
            )

    def _count_nodes(self) -> None:
        """Have the nodes counted, on another thread, where the last count is old."""
        now, nodes = time.monotonic(), self._nodes
        if now < self._next_count:
            return
        there = nodes is not None and nodes[0] >= self._session.cluster.config.nodes
        self._next_count = now + (_NODES_THERE if there else _NODES_COMING)
        with contextlib.suppress(RuntimeError):  # the session was closed
            self._session.pool.submit(self._count)

    def _count(self) -> None:
        cluster = self._session.cluster
        try:
            found = cluster.batch.node_counts(cluster.config.name)
        except JoblibAzureError as exc:
            logger.debug("counting nodes: %s", exc)
            return
        self._nodes = ready_and_starting(found)
        self._take(billed(found.dedicated), billed(found.spot))

    # what it costs --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def seeing_waits(self) -> Iterator[None]:
        """See the nodes of waits within a block, where somebody watches: they cost while they start, too."""
        cluster = self._session.cluster
        # A wait that nobody watches says so in the log, and nobody asks what it costs.
        with cluster.watched(self) if cluster.is_watched else contextlib.nullcontext():
            yield

    def doing(self, what: str, timeout: float | None = None) -> None:
        """A step that is no wait for nodes."""

    def waiting(self, now: Waiting) -> None:
        """Take the nodes of a wait."""
        kinds = [Counter(node.state for node in now.nodes if node.dedicated is kind) for kind in (True, False)]
        self._take(*map(billed, kinds))

    def _take(self, dedicated: int, spot: int) -> None:
        with self._guard:
            self._meter.take(time.monotonic(), dedicated, spot)

    def _hours(self) -> NodeHours:
        with self._guard:
            return self._meter.hours(time.monotonic())

    def _cost(self, since: Mark) -> tuple[str, str]:
        """Return what the pool's nodes have cost since then, whoever used them, in a word and in a line."""
        prices = self._prices
        if prices is None:
            cluster = self._session.cluster
            try:
                endpoint = cluster.batch.endpoint
            except JoblibAzureError:  # the cluster was closed
                return "", ""
            prices = self._prices = PriceLookup(cluster.config.vm_size, endpoint, cluster.config.prices)
            prices.start()
        found = Estimate(hours=self._hours() - since.hours, prices=prices.now)
        if found.hours.total <= 0:
            return "", ""
        return "" if found.prices.free else found.short, str(found)


def _short(function: str) -> str:
    """Return what to call a function, as `dispatch.describe_function` has it: no module, and no types."""
    return function.partition("(")[0].rpartition(".")[2]
