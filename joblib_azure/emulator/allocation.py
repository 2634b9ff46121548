"""Pools and how many nodes they have: resizing, by hand or by autoscale, within quota and capacity; deleting.

A resize goes on until the pool has its targets, or as many nodes as can be had; what kept it from the targets is
told in the pool's resize errors until the next resize begins. Nodes leave and come at the same time. Targets that
autoscale sets while a resize is under way are taken up by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from . import errors, mounts, nodes, poolspec
from .autoscaler import DEFAULT_INTERVAL
from .state import Node, Pool

if TYPE_CHECKING:
    from .engine import Engine

#: Nodes in these states do no work: they go first when a pool shrinks.
_LOST = ("preempted", "unusable", "unknown", "starttaskfailed")
#: That a pool gets, whatever its target: on Azure the account's quota of cores ends what is a slip of a digit.
MOST_NODES = 1000
_KINDS = (True, False)  # dedicated, spot


class Allocation:
    """Brings pools to their targets."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create(self, pool_id: str, spec: dict[str, Any]) -> Pool:
        """Make a pool of a checked specification, and start its first resize.

        Raises
        ------
        BatchError
            409 `PoolExists`, `PoolBeingDeleted`, `PoolQuotaReached`.
        """
        pools = self._engine.account.pools
        found = pools.get(pool_id.lower())
        if found is not None:
            raise errors.pool_being_deleted() if found.state == "deleting" else errors.pool_exists()
        if len(pools) >= self._engine.options.pool_quota:
            raise errors.pool_quota(self._engine.options.pool_quota)
        pool = poolspec.build(pool_id, spec)
        pools[pool_id.lower()] = pool
        mounts.check(spec, warn=pool_id)
        self.resize(pool, pool.target_dedicated, pool.target_spot, "requeue")
        formula = poolspec.formula(spec)
        if formula is not None:
            self._engine.autoscaler.start(pool, formula, poolspec.interval(spec) or DEFAULT_INTERVAL)
        return pool

    def resize(self, pool: Pool, dedicated: int, spot: int, option: str) -> None:
        """Begin to bring a steady pool to these targets."""
        pool.target_dedicated, pool.target_spot, pool.deallocation = dedicated, spot, option
        pool.touch()
        self._begin(pool)

    def retarget(self, pool: Pool, dedicated: int, spot: int, option: str) -> None:
        """Set the targets of a pool that may be resizing, as autoscale does."""
        before = (pool.target_dedicated, pool.target_spot)
        pool.target_dedicated, pool.target_spot, pool.deallocation = dedicated, spot, option
        if pool.allocation_state == "steady":
            if before != (dedicated, spot) or self._short(pool) or self._surplus(pool):
                self._begin(pool)
        elif pool.retargeted is not None:
            pool.retargeted.set()

    def resume(self, pool: Pool, *, steady: bool) -> None:
        """Have a pool that was restored go on to its targets, unless it had come as far as it could."""
        if not steady:
            self._begin(pool)

    def remove(self, pool: Pool, leaving: list[Node], option: str) -> None:
        """Take these nodes out, and the targets down with them."""
        pool.target_dedicated -= sum(node.dedicated for node in leaving)
        pool.target_spot -= sum(not node.dedicated for node in leaving)
        pool.deallocation = option
        pool.touch()
        self._begin(pool, leaving)

    def stop_resize(self, pool: Pool) -> None:
        if pool.allocation_state == "resizing":
            pool.allocate("stopping")
            pool.touch()
            self._stop(pool)

    @staticmethod
    def _stop(pool: Pool) -> None:
        pool.stop_resize = True
        if pool.retargeted is not None:
            pool.retargeted.set()

    def delete(self, pool: Pool) -> None:
        self._engine.autoscaler.disable(pool)
        pool.move("deleting")
        pool.touch()
        self._engine.spawn(self._delete(pool))

    async def _delete(self, pool: Pool) -> None:
        slept = self._engine.spawn(asyncio.sleep(self._engine.options.pool_deletion_seconds))
        self._stop(pool)
        if pool.resizing is not None and not pool.resizing.done():
            await asyncio.wait([pool.resizing])
        pool.target_dedicated = pool.target_spot = 0
        pool.allocate("resizing")
        await asyncio.gather(*(self._engine.lives.leave(node, "requeue") for node in list(pool.nodes.values())))
        await slept
        self._engine.account.pools.pop(pool.id.lower(), None)

    # -- resizing -----------------------------------------------------------------------------------------------------

    def _begin(self, pool: Pool, leaving: list[Node] | None = None) -> None:
        pool.allocate("resizing")
        pool.resize_errors = []
        pool.stop_resize = False
        pool.retargeted = asyncio.Event()
        pool.resizing = self._engine.spawn(self._resize(pool, pool.retargeted, leaving or []))

    async def _resize(self, pool: Pool, retargeted: asyncio.Event, leaving: list[Node]) -> None:
        await asyncio.sleep(0)  # the answer to the request shows the pool resizing
        loop = asyncio.get_running_loop()
        limit = pool.resize_timeout.total_seconds() / self._engine.options.clock_rate
        deadline = loop.time() + limit
        departures = self._depart(pool, leaving)
        allocated: float | None = None  # when the nodes that the pool lacks are there
        try:
            while not pool.stop_resize:
                retargeted.clear()
                departures |= self._depart(pool, self._surplus(pool))
                if not self._short(pool):
                    allocated = None
                elif allocated is None:
                    allocated = loop.time() + self._engine.latency.allocation()
                allocating = allocated is not None and loop.time() < allocated
                waits = not allocating and self._grow(pool)
                departures = {each for each in departures if not each.done()}
                if not departures and not waits and not allocating:
                    return
                # documented: the timeout is for manual scaling; autoscale waits for its nodes to leave
                bounded = waits or allocating or pool.autoscale is None
                left = max(0.0, deadline - loop.time()) if bounded else None
                if allocated is not None and allocating and (left is None or allocated - loop.time() < left):
                    await _any(departures, retargeted, max(0.0, allocated - loop.time()))
                    continue
                allocated = None
                if not await _any(departures, retargeted, left):
                    self._fail(pool, "AllocationTimedout", _TIMED_OUT)
                    return
            if pool.state == "active":
                self._fail(pool, "ResizeStopped", "Desired number of nodes could not be allocated: resize was stopped")
        finally:
            pool.allocate("steady")
            pool.touch()

    def _depart(self, pool: Pool, nodes: list[Node]) -> set[asyncio.Task[None]]:
        for node in nodes:
            node.move("leavingpool")  # at once: whoever counts the pool's nodes next counts without them
        return {self._engine.spawn(self._engine.lives.leave(node, pool.deallocation)) for node in nodes}

    @staticmethod
    def _surplus(pool: Pool) -> list[Node]:
        surplus: list[Node] = []
        for dedicated in _KINDS:
            live = [node for node in pool.live_nodes() if node.dedicated is dedicated]
            # nodes that run nothing go first, the youngest of them before the others; those of job managers last
            live.sort(key=lambda node: (node.state not in _LOST, _managed(node), len(node.assigned), -node.sequence))
            surplus += live[: max(0, len(live) - _target(pool, dedicated))]
        return surplus

    @staticmethod
    def _lacks(pool: Pool, dedicated: bool) -> int:
        return _target(pool, dedicated) - sum(node.dedicated is dedicated for node in pool.live_nodes())

    def _short(self, pool: Pool) -> bool:
        return any(self._lacks(pool, dedicated) > 0 for dedicated in _KINDS)

    def _grow(self, pool: Pool) -> bool:
        """Add the nodes that can be had; tell whether others are still waited for."""
        options = self._engine.options
        size = pool.spec["vmSize"].lower()
        waits = False
        for dedicated in _KINDS:
            for _ in range(self._lacks(pool, dedicated)):
                have = len(list(pool.live_nodes()))
                if have >= min(MOST_NODES, options.failing_sizes.get(size, MOST_NODES)):
                    self._fail(pool, "AllocationFailed", f"Desired number of {_kind(dedicated)} could not be allocated")
                    break
                if have >= options.timing_out_sizes.get(size, have + 1):
                    waits = True
                    break
                if not self._within_quota(pool, dedicated):
                    self._fail(pool, *_QUOTA[dedicated])
                    break
                self._add_node(pool, dedicated)
        return waits

    def _within_quota(self, pool: Pool, dedicated: bool) -> bool:
        options = self._engine.options
        quota = options.dedicated_core_quota if dedicated else options.spot_core_quota
        if quota is None:
            return True
        pools: Iterable[Pool] = self._engine.account.pools.values()
        used = sum(each.cores for each in pools for node in each.nodes.values() if node.dedicated is dedicated)
        return used + pool.cores <= quota

    @staticmethod
    def _fail(pool: Pool, code: str, message: str) -> None:
        if all(error["code"] != code for error in pool.resize_errors):
            pool.resize_errors.append({"code": code, "message": message})

    def _add_node(self, pool: Pool, dedicated: bool) -> None:
        node = nodes.new_node(pool, self._engine.root, self._engine.cpus.take(pool.cores), dedicated=dedicated)
        pool.nodes[node.id] = node
        self._engine.lives.boot(node)


#: What a resize ends with where the account has no more cores, dedicated or spot.
_QUOTA = {
    True: ("AccountCoreQuotaReached", "The specified account has reached core quota"),
    False: ("AccountLowPriorityCoreQuotaReached", "The specified account has reached low priority core quota"),
}
_TIMED_OUT = "Desired number of nodes could not be reached as the resize timeout was reached"


def _target(pool: Pool, dedicated: bool) -> int:
    return pool.target_dedicated if dedicated else pool.target_spot


def _managed(node: Node) -> bool:
    return any(task.manager for task in node.assigned)


def _kind(dedicated: bool) -> str:
    return "dedicated nodes" if dedicated else "low priority nodes"


async def _any(departures: set[asyncio.Task[None]], event: asyncio.Event, timeout: float | None) -> bool:
    """Wait until a departure is over or the event is set; tell whether that was in time."""
    signal = asyncio.ensure_future(event.wait())
    waiting: set[asyncio.Future[object]] = {signal, *departures}  # type: ignore[arg-type]
    try:
        done, _ = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        signal.cancel()
    return bool(done)
