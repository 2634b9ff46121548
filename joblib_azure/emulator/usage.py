"""Pool usage metrics: core hours of a pool's nodes in intervals of half an hour, which become known two hours late."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from . import times
from .state import Account, Node, Usage

INTERVAL = timedelta(minutes=30)
#: Documented at the operation: a range must end this long before now, and begin an interval before that.
LAG = timedelta(hours=2)


def of(node: Node, end: datetime) -> Usage:
    """What a node has come to by a moment."""
    pool = node.pool
    return Usage(pool_id=pool.id, vm_size=pool.spec["vmSize"].lower(), cores=pool.cores, start=node.created, end=end)


def last_interval(now: datetime) -> tuple[datetime, datetime]:
    """The last interval that is known."""
    end = _floor(now - LAG)
    return end - INTERVAL, end


def metrics(account: Account, start: datetime, end: datetime, now: datetime) -> list[dict[str, Any]]:
    """The metrics of all pools for the intervals within a range, the oldest first."""
    living = [of(node, now) for pool in account.pools.values() for node in pool.nodes.values()]
    uses = [*account.usage, *living]
    if not uses:
        return []
    first = max(_floor(start), _floor(min(use.start for use in uses)))
    return [metric for begin in _intervals(first, end) for metric in _interval(uses, begin)]


def _interval(uses: list[Usage], begin: datetime) -> Iterator[dict[str, Any]]:
    end = begin + INTERVAL
    hours: dict[tuple[str, str], float] = {}
    for use in uses:
        shared = (min(use.end, end) - max(use.start, begin)).total_seconds()
        if shared > 0:
            key = (use.pool_id, use.vm_size)
            hours[key] = hours.get(key, 0.0) + shared / 3600 * use.cores
    for (pool_id, vm_size), total in sorted(hours.items()):
        yield {
            "poolId": pool_id,
            "startTime": times.iso(begin),
            "endTime": times.iso(end),
            "vmSize": vm_size,
            "totalCoreHours": total,
        }


def _intervals(begin: datetime, end: datetime) -> Iterator[datetime]:
    while begin + INTERVAL <= end:
        yield begin
        begin += INTERVAL


def _floor(moment: datetime) -> datetime:
    return moment.replace(minute=moment.minute // 30 * 30, second=0, microsecond=0)
