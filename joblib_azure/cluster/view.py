"""What every cluster has, however it came to be: a configuration, connections, looks at the pool, and an end."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from ..config import AccountConfig, ClusterConfig, PoolSize
from ..errors import ClusterError, JoblibAzureError
from ..prices import PriceLookup
from ..report import Estimate, NodeHours, NodePrices
from ..report.cost import billed
from ..report.tables import counts, table
from ..service import BatchService, BlobService, JobState, NodeCounts, NodeFile, NodeState, PoolState
from .connections import Connections
from .demand import Demand
from .floor import Floor, floor_of
from .waiting import Progress, Waiting, describe, is_after


@dataclass(frozen=True, kw_only=True)
class ClusterStatus:
    """What a pool is and does.

    Parameters
    ----------
    pool : PoolState
    counts : NodeCounts
        Nodes by state.
    jobs : tuple of JobState
        The jobs on it that have not completed.
    floor : Floor, optional
        Nodes that sessions have asked for, until when.
    """

    pool: PoolState
    counts: NodeCounts
    jobs: tuple[JobState, ...] = ()
    floor: Floor | None = None

    def hourly_cost(self, prices: NodePrices) -> Estimate:
        """Return what the nodes that are there now cost in an hour."""
        dedicated, spot = billed(self.counts.dedicated), billed(self.counts.spot)
        return Estimate(hours=NodeHours(dedicated=dedicated, spot=spot), prices=prices)


class Watcher(Protocol):
    """Sees what is waited for; as a `progress.Reporter` does."""

    def doing(self, what: str, timeout: float | None = None) -> None:
        """Take a step that is no wait for nodes, and the seconds that it may take at most."""

    def waiting(self, now: Waiting) -> None:
        """Take where a wait for nodes is, at every look."""


class PoolView:
    """A pool as its configuration, its account's connections, and what can be seen of it; `Cluster` has the rest."""

    def _prepare(self, config: ClusterConfig) -> None:
        self.config = config
        #: Gets a `Waiting` at every look of a wait, also of those that a session begins.
        self.progress: Progress | None = None
        self._watchers: tuple[Watcher, ...] = ()
        self._connections: Connections | None = None
        self._size: PoolSize = config.pool_size
        self._closing: dict[Callable[[Any], None], None] = {}
        self._guard = threading.RLock()
        # Weak: a cluster that is dropped closes its connections then, and not when the collector comes to it.
        mine = weakref.ref(self)
        self._demand = Demand(lambda: _alive(mine).batch, config.name)
        # Whether a resize of ours was asked for, and when the pool's allocation had changed last before it: older
        # resize errors are somebody else's, or of another day.
        self._asked = False
        self._mark: datetime | None = None

    def __repr__(self) -> str:
        config = self.config
        return f"<{type(self).__name__} {config.name!r}: {config.nodes} × {config.vm_size}>"

    # connections ----------------------------------------------------------------------------------------

    @property
    def connections(self) -> Connections:
        """The account's services."""
        if self._connections is None:
            raise ClusterError(f"{self!r} is not open")
        return self._connections

    @property
    def account(self) -> AccountConfig:
        """The account that the cluster is on."""
        return self.connections.account

    @property
    def batch(self) -> BatchService:
        """The Batch service of the account."""
        return self.connections.batch

    @property
    def blobs(self) -> BlobService:
        """The blobs of the storage account."""
        return self.connections.blobs

    def reach(self) -> BlobService:
        """Return the blobs of the storage account before there is a pool, which costs something.

        Raises
        ------
        ClusterError
        """
        return self.blobs

    @property
    def python_path(self) -> tuple[str, ...]:
        """Further entries of ``sys.path`` for the calls of a Parallel that starts now."""
        return self.config.python_path

    # for those who watch --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def watched(self, watcher: Watcher) -> Iterator[None]:
        """Have `watcher` see what is waited for within a block, whoever waits."""
        with self._guard:
            self._watchers += (watcher,)
        try:
            yield
        finally:
            with self._guard:
                self._watchers = tuple(each for each in self._watchers if each is not watcher)

    @property
    def is_watched(self) -> bool:
        """Whether somebody sees what is waited for."""
        return bool(self._watchers)

    def step(self, what: str, timeout: float | None = None) -> None:
        """Tell those who watch what takes its time now."""
        for watcher in self._watchers:
            watcher.doing(what, timeout)

    def _teller(self) -> Progress | None:
        """Return what a wait is to tell; None where nobody minds."""
        progress = self.progress
        if not self._watchers:
            return progress

        def tell(now: Waiting) -> None:
            for watcher in self._watchers:
                watcher.waiting(now)
            if progress is not None:
                progress(now)

        return tell

    # for people -----------------------------------------------------------------------------------------

    def status(self) -> ClusterStatus:
        """Return what the pool is and does: three requests, however many nodes there are."""
        name = self.config.name
        pool = self.batch.pool(name)
        floor = floor_of(pool.autoscale.formula) if pool.autoscale is not None else None
        counts, jobs = self.batch.node_counts(name), self.batch.jobs(name)
        return ClusterStatus(pool=pool, counts=counts, jobs=tuple(jobs), floor=floor)

    def _repr_html_(self) -> str:
        config = self.config
        rows: dict[str, object] = {"size": config.vm_size, "task slots a node": config.max_tasks_per_node}
        try:
            status = self.status()
        except JoblibAzureError as exc:
            return table(
                f"{type(self).__name__} {config.name}", {**rows, "nodes at most": config.nodes, "problem": exc}
            )
        pool, found = status.pool, status.counts
        target = f"{pool.current_nodes} of {pool.target_nodes}" + (
            ", autoscaling" if pool.autoscale is not None else ""
        )
        more = {"nodes": target, "dedicated": counts(found.dedicated), "spot": counts(found.spot)}
        # Nobody waits here for Azure's price list: what is known of the prices already is shown.
        prices = PriceLookup(pool.vm_size, self.batch.endpoint, config.prices).now
        cost = status.hourly_cost(prices)
        if cost.amount is not None:
            more["cost an hour"] = "none: the nodes are emulated" if prices.free else f"{cost.short}, estimated"
        errors = "; ".join(pool.resize_errors)
        running = ", ".join(job.id for job in status.jobs)
        rows = {"state": f"{pool.state}, {pool.allocation}", **rows, **more, "jobs": running, "problem": errors}
        return table(f"{type(self).__name__} {config.name}", rows)

    def nodes(self) -> tuple[NodeState, ...]:
        """Return all nodes, with their states and errors."""
        return tuple(self.batch.nodes(self.config.name))

    def files(self, node: str, *, recursive: bool = False) -> tuple[NodeFile, ...]:
        """Return the files below a node's root folder (``startup/stdout.txt``, ``workitems/…``)."""
        return tuple(self.batch.node_files(self.config.name, node, recursive=recursive))

    def file(self, node: str, path: str, *, tail: int | None = None) -> bytes:
        """Return a file of a node, or its last `tail` bytes.

        Raises
        ------
        ResourceNotFoundError
            Where there is no such node or file.
        """
        content = self.batch.node_file(self.config.name, node, path)
        return content if tail is None else content[-tail:]

    def describe(self, nodes: Sequence[NodeState]) -> str:
        """Say what the nodes do, with errors and the start task's stderr where it failed."""
        pool = self.batch.pool(self.config.name)
        return describe(self.batch, pool, nodes, stale=not self._is_ours(pool))

    def _is_ours(self, pool: PoolState) -> bool:
        return self._asked and is_after(pool.allocation_since, self._mark)

    # the end --------------------------------------------------------------------------------------------

    def on_close(self, callback: Callable[[Any], None]) -> None:
        """Have `callback` called once, with the cluster, before its connections are closed."""
        with self._guard:
            self._closing[callback] = None

    def _end_sessions(self) -> None:
        with self._guard:
            callbacks = tuple(self._closing)
            self._closing.clear()
        for callback in callbacks:
            callback(self)

    def _disconnect(self) -> None:
        if self._connections is not None:
            self._connections.close()

    def close(self) -> None:
        """End the cluster's session, if it has one, and close the connections; the pool stays."""
        self._end_sessions()
        self._disconnect()


def _alive(view: weakref.ref[PoolView]) -> PoolView:
    found = view()
    if found is None:
        raise ClusterError("the cluster was dropped while nodes were asked for")
    return found
