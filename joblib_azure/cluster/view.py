"""What every cluster has, however it came to be: a configuration, connections, looks at the pool, and an end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..config import AccountConfig, ClusterConfig, PoolSize
from ..errors import ClusterError
from ..service import BatchService, BlobService, JobState, NodeCounts, NodeFile, NodeState, PoolState
from .connections import Connections
from .demand import Demand
from .floor import Floor, floor_of
from .waiting import COMING, PREEMPTED, USABLE, Progress, describe, is_after


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


class PoolView:
    """A pool as its configuration, its account's connections, and what can be seen of it; `Cluster` has the rest."""

    #: States of nodes that run tasks, or will; the preempted ones when the service has capacity again.
    hopeful = USABLE | COMING | {PREEMPTED}

    def _prepare(self, config: ClusterConfig) -> None:
        self.config = config
        #: Gets a `Waiting` at every look of a wait, also of those that a session begins.
        self.progress: Progress | None = None
        self._connections: Connections | None = None
        self._size: PoolSize = config.pool_size
        self._closing: dict[Callable[[Any], None], None] = {}
        self._guard = threading.RLock()
        self._demand = Demand(lambda: self.batch, config.name)
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

    @property
    def python_path(self) -> tuple[str, ...]:
        """Further entries of ``sys.path`` for the calls of a Parallel that starts now."""
        return self.config.python_path

    # for people -----------------------------------------------------------------------------------------

    def status(self) -> ClusterStatus:
        """Return what the pool is and does: three requests, however many nodes there are."""
        name = self.config.name
        pool = self.batch.pool(name)
        floor = floor_of(pool.autoscale.formula) if pool.autoscale is not None else None
        counts, jobs = self.batch.node_counts(name), self.batch.jobs(name)
        return ClusterStatus(pool=pool, counts=counts, jobs=tuple(jobs), floor=floor)

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
