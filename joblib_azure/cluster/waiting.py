"""Waiting for nodes: what happens node by node, a deadline, and an early end where none can come up.

::

    look ─► enough nodes ready ───────────────────────────────► go on
     ▲ └──► none coming, allocation over ─► some ready ───────► go on with these, and say which are missing
     │                                   └► none ─► a remedy? ─► try it once (a floor, the resize again)
     └──────────────── otherwise, until the deadline           └► NodesUnavailableError: why, with the log
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from ..errors import ClusterError, NodesUnavailableError, ResourceNotFoundError
from ..service import NodeCounts, NodeState, PoolService, PoolState

logger = logging.getLogger(__name__)

#: Node states in which a task can run, or will without anybody's help.
USABLE = frozenset({"idle", "running"})
COMING = frozenset({"creating", "starting", "waitingforstarttask", "rebooting", "reimaging", "unknown"})
#: Those that the service will give back when it has capacity again; it tries for 48 h.
PREEMPTED = "preempted"
#: Seconds between two looks while nodes start: at first for a local cluster, then for a pool on Azure.
FIRST_LOOK, LAST_LOOK, LOOK_GROWTH = 0.05, 10.0, 1.5
#: Seconds after which a wait that nobody watches is told of in a warning, and then again.
FIRST_WORD, NEXT_WORD = 20.0, 60.0
#: A formula that the service has not evaluated yet says nothing about the nodes that it wants; not for ever.
_FIRST_EVALUATION = 60.0
#: What an evaluation ends with while a pool is new; it passes by itself.
_NO_SAMPLES = "InsufficientSampleData"
#: What of a failed start task's output is told.
_TAIL = 4096
#: What to do about a resize error, by the beginning or the end of its code.
#: https://learn.microsoft.com/azure/batch/batch-pool-node-error-checking
_REMEDIES = {
    "CoreQuotaReached": "the account's quota of cores is used up: delete or shrink other pools, choose fewer or "
    "smaller nodes, or ask for more quota in the portal (Batch account, Quotas)",
    "AllocationTimed": "the service did not find the nodes in time: another size, region or the other kind of nodes "
    "may be had",
    "AllocationFailed": "the region has no such nodes at the moment: another size, region or the other kind of nodes "
    "(dedicated, spot) may be had",
}


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Where a wait is: what a progress callback gets, at every look.

    Parameters
    ----------
    pool : str
    doing : str
        What is waited for.
    elapsed, timeout : float
        Seconds.
    ready, wanted : int
        Nodes.
    nodes : tuple of NodeState
        All of them, with their states and errors.
    notes : tuple of str
        What is worth knowing and no failure: old resize errors, nodes that were preempted.
    """

    pool: str
    doing: str
    elapsed: float
    timeout: float
    ready: int = 0
    wanted: int = 0
    nodes: tuple[NodeState, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"pool {self.pool}: {self.doing}"
        if self.wanted:
            text += f", {self.ready} of {self.wanted} ready"
        if self.nodes:
            text += f" ({states(self.nodes)})"
        return "; ".join((text, *self.notes))


Progress = Callable[[Waiting], None]


class Teller:
    """Tells where a wait is: the callback at every look, the log where there is news.

    A script has neither a callback nor, mostly, a log that shows more than warnings. So what takes long is one, now and
    then.
    """

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._said = ""
        self._next = FIRST_WORD

    def tell(self, now: Waiting) -> None:
        """Tell it."""
        text = str(now)
        level = logging.INFO
        if self._progress is None and now.elapsed >= self._next:
            self._next = now.elapsed + NEXT_WORD
            level = logging.WARNING
        if text != self._said or level == logging.WARNING:
            logger.log(level, "%s; %.0f s of at most %.0f s", text, now.elapsed, now.timeout)
        self._said = text
        if self._progress is not None:
            self._progress(now)


def ready_and_starting(counts: NodeCounts) -> tuple[int, int]:
    """Return how many nodes of both kinds can run tasks, and how many will."""
    states = [*counts.dedicated.items(), *counts.spot.items()]
    ready, starting = (sum(count for state, count in states if state in which) for which in (USABLE, COMING))
    return ready, starting


def states(nodes: Iterable[NodeState]) -> str:
    """Count nodes by state: ``2 idle, 1 starting``."""
    return ", ".join(f"{count} {state}" for state, count in Counter(node.state for node in nodes).items())


def log_tail(batch: PoolService, pool: str, node: NodeState) -> str:
    """Return the end of what a node's failed start task said; empty where it failed otherwise."""
    if node.state != "starttaskfailed":
        return ""
    for name in ("stderr", "stdout"):
        tail = batch.node_file_tail(pool, node.id, f"startup/{name}.txt", _TAIL).strip()
        if tail:
            return (
                f"; its start task's {name} ends:\n{tail}\n"
                f"`joblib-azure cluster file {node.id} startup/{name}.txt --name {pool}` shows all of it"
            )
    return ""


def remedy(errors: Iterable[str]) -> str:
    """Say what to do about resize errors; empty where that is not known."""
    for error in errors:
        code = error.partition(":")[0]
        for part, text in _REMEDIES.items():
            if code.startswith(part) or code.endswith(part):
                return f". {text[0].upper()}{text[1:]}"
    return ""


def describe(batch: PoolService, pool: PoolState, nodes: Sequence[NodeState], *, stale: bool = False) -> str:
    """Say what the nodes do, with errors and the end of a failed start task's log."""
    text = states(nodes) or "the pool has no nodes yet"
    if pool.resize_errors:
        since = (
            f" of an earlier resize, {pool.allocation_since:%d %B %H:%M} UTC" if stale and pool.allocation_since else ""
        )
        text += f"; resize errors{since}: {'; '.join(pool.resize_errors)}"
    if pool.autoscale_run is not None and pool.autoscale_run.error:
        text += f"; its autoscale formula failed: {pool.autoscale_run.error}"
    for node in nodes:
        if node.errors:
            text += f"; node {node.id}: {'; '.join(node.errors)}"
        tail = log_tail(batch, pool.id, node)
        if tail:
            return text + tail
    return text


@dataclass
class NodeWait:
    """A wait for nodes of a pool.

    Parameters
    ----------
    batch : PoolService
    pool : str
    timeout : float
        Seconds.
    progress : callable, optional
        Gets a `Waiting` at every look.
    cancelled : callable
        Asked between two looks; the wait ends where it says True.
    help : callable
        Asked, once, where nothing is coming and nothing is there: does what can be done about it (raises a floor, asks
        for the nodes again) and returns whether there was something.
    fresh : callable
        Whether a pool's resize errors are of a resize that this client has asked for.
    """

    batch: PoolService
    pool: str
    timeout: float
    progress: Progress | None = None
    cancelled: Callable[[], bool] = lambda: False
    help: Callable[[PoolState], bool] = lambda pool: False
    fresh: Callable[[PoolState], bool] = lambda pool: True
    _helped: bool = field(default=False, init=False)

    def run(self, count: int | None = None) -> list[NodeState]:
        """Wait for `count` nodes that can run tasks; for all that the pool is to have where it is None.

        Returns
        -------
        list of NodeState
            The nodes that are ready. Fewer than `count`, but not none, where the others cannot come up or did not in
            time; fewer and maybe none where the wait was cancelled, or the pool is to have none.

        Raises
        ------
        NodesUnavailableError
            Where none is ready and none can come up, or none did in time: it says what the nodes do, why, and what to
            do, with the end of the start task's log.
        ClusterError
            Where the pool is being deleted, or is gone.
        """
        try:
            return self._run(count)
        except ResourceNotFoundError as exc:
            raise ClusterError(
                f"pool {self.pool!r} is gone: somebody has deleted it. `joblib-azure cluster create` makes it anew",
                pool=self.pool,
            ) from exc

    def _run(self, count: int | None) -> list[NodeState]:
        begun, pause, teller = time.monotonic(), FIRST_LOOK, Teller(self.progress)
        while True:
            nodes = self.batch.nodes(self.pool)
            ready = _usable(nodes)
            if self.cancelled() or (count is not None and len(ready) >= count):
                return ready
            pool = self.batch.pool(self.pool)
            if pool.allocation == "steady":
                # It may have become so since the nodes were listed: only what is listed after that is all there is.
                nodes = self.batch.nodes(self.pool)
                ready = _usable(nodes)
                if count is not None and len(ready) >= count:
                    return ready
            self._check(pool, nodes, ready)
            wanted = pool.target_nodes if count is None else count
            elapsed = time.monotonic() - begun
            asked = pool.autoscale is None or pool.autoscale_run is not None or elapsed > _FIRST_EVALUATION
            settled = pool.allocation == "steady" and asked
            if settled and count is None and len(ready) >= wanted:
                return ready
            coming = any(node.state in COMING for node in nodes)
            late = elapsed > self.timeout
            if ready and ((settled and not coming) or late):
                self._tell_missing(pool, nodes, ready, wanted)
                return ready
            if settled and not coming and not late and self._is_over(pool, nodes):
                raise self._failure("no node can come up", pool, nodes)
            if late:
                raise self._failure(f"no node came up within {self.timeout:g} s", pool, nodes)
            teller.tell(self._now(pool, nodes, ready, wanted, elapsed))
            time.sleep(max(0.0, min(pause, begun + self.timeout - time.monotonic())))
            pause = min(pause * LOOK_GROWTH, LAST_LOOK)

    def _check(self, pool: PoolState, nodes: Sequence[NodeState], ready: Sequence[NodeState]) -> None:
        if pool.state != "active":
            raise ClusterError(
                f"pool {self.pool!r} is {pool.state}. Once `joblib-azure cluster list` shows it no more, `joblib-azure "
                "cluster create` makes it anew",
                pool=self.pool,
            )
        run = pool.autoscale_run
        fails = run is not None and run.error and not run.error.startswith(_NO_SAMPLES)
        if fails and not nodes and not ready and self._helped:
            # A floor stands behind the formula: where that fails, nothing counts.
            raise self._failure("no node can come up", pool, nodes)

    def _is_over(self, pool: PoolState, nodes: Sequence[NodeState]) -> bool:
        """Nothing is ready, nothing is coming: whether that is the end, or something can still be expected."""
        if any(node.state == PREEMPTED for node in nodes):
            return False
        if not self._helped:
            self._helped = True
            # Nodes that failed stay failed; more of them would fail alike.
            if not nodes and not (pool.resize_errors and self.fresh(pool)) and self.help(pool):
                return False
        if nodes:
            return True
        # Without nodes and without an error the service has not begun yet: the deadline decides.
        return bool(pool.resize_errors and self.fresh(pool)) or (pool.autoscale is None and pool.target_nodes == 0)

    def _failure(self, what: str, pool: PoolState, nodes: Sequence[NodeState]) -> NodesUnavailableError:
        fresh = self.fresh(pool)
        said = describe(self.batch, pool, nodes, stale=not fresh)
        text = f"{what}: {said}{remedy(pool.resize_errors)}"
        if not nodes and not pool.resize_errors and pool.autoscale is None and pool.target_nodes == 0:
            text += ". It is to have none: `joblib-azure cluster resize` changes that"
        elif what.endswith(" s"):
            text += ". Raise node_timeout, or look at the pool's resize errors and quota"
        return NodesUnavailableError(text, pool=self.pool)

    def _tell_missing(
        self, pool: PoolState, nodes: Sequence[NodeState], ready: Sequence[NodeState], wanted: int
    ) -> None:
        if len(ready) < wanted:
            others = [node for node in nodes if node not in ready]
            said = (
                describe(self.batch, pool, others, stale=not self.fresh(pool))
                if others
                else "; ".join(pool.resize_errors)
            )
            logger.warning(
                "pool %s: going on with %d of %d node(s); the others: %s",
                self.pool,
                len(ready),
                wanted,
                said or "not there",
            )

    def _now(
        self, pool: PoolState, nodes: Sequence[NodeState], ready: Sequence[NodeState], wanted: int, elapsed: float
    ) -> Waiting:
        notes = []
        if pool.resize_errors:
            kind = "resize errors" if self.fresh(pool) else "old resize errors, of no matter if nodes come up"
            notes.append(f"{kind}: {'; '.join(pool.resize_errors)}")
        if pool.autoscale_run is not None and pool.autoscale_run.error:
            notes.append(f"its autoscale formula failed: {pool.autoscale_run.error}")
        preempted = sum(node.state == PREEMPTED for node in nodes)
        if preempted:
            notes.append(f"{preempted} spot node(s) preempted, back when the service has capacity")
        doing = "waiting for the first node" if wanted == 1 else "waiting for nodes"
        return Waiting(
            pool=self.pool,
            doing=f"{doing} (allocation {pool.allocation})",
            elapsed=elapsed,
            timeout=self.timeout,
            ready=len(ready),
            wanted=wanted,
            nodes=tuple(nodes),
            notes=tuple(notes),
        )


def _usable(nodes: Sequence[NodeState]) -> list[NodeState]:
    return [node for node in nodes if node.state in USABLE and node.scheduling]


def is_after(moment: datetime | None, mark: datetime | None) -> bool:
    """Whether a pool's allocation has changed its state since `mark`, by the service's own clock."""
    return moment is not None and (mark is None or moment > mark)
