"""Pools that jobs make for themselves: named by the service, and gone with the job or its schedule unless kept."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from . import checks, errors, poolspec

if TYPE_CHECKING:
    from .engine import Engine
    from .state import Job, Schedule

_WHERE = "poolInfo.autoPoolSpecification"
_LONGEST_PREFIX = 20


def check(info: dict[str, Any], *, token: bool) -> None:
    """Refuse a `poolInfo` that names no pool, or does not say what pool is to be made.

    Raises
    ------
    BatchError
        400, 403 and 501, as for the pool itself.
    """
    given = info.get("autoPoolSpecification")
    if given is None:
        if not info.get("poolId"):
            raise errors.missing_property("poolInfo.poolId")
        return
    if info.get("poolId"):
        raise errors.invalid_property("poolInfo.poolId", info["poolId"], "Give either it or autoPoolSpecification.")
    for name in ("poolLifetimeOption", "pool"):
        if name not in given:
            raise errors.missing_property(f"{_WHERE}.{name}")
    prefix = given.get("autoPoolIdPrefix", "")
    if prefix:
        checks.identifier(prefix, f"{_WHERE}.autoPoolIdPrefix")
    if len(prefix) > _LONGEST_PREFIX:
        raise errors.invalid_property(f"{_WHERE}.autoPoolIdPrefix", prefix, f"At most {_LONGEST_PREFIX} characters.")
    poolspec.check(given["pool"], token=token, name=prefix or "of a job")


def provide(engine: Engine, job: Job) -> None:
    """Make the pool that a new job asks for, or give it that of its schedule.

    Raises
    ------
    BatchError
        409 where the account has no room for another pool.
    """
    given = job.spec["poolInfo"].get("autoPoolSpecification")
    if given is None:
        return
    shared = job.schedule if job.shares_pool else None
    if shared is not None and shared.auto_pool.lower() in engine.account.pools:
        job.auto_pool = shared.auto_pool
        return
    prefix = given.get("autoPoolIdPrefix", "")
    name = f"{prefix}_{str(uuid.uuid4()).upper()}" if prefix else str(uuid.uuid4()).upper()
    job.auto_pool = engine.allocation.create(name, given["pool"]).id
    if shared is not None:
        shared.auto_pool = job.auto_pool


def job_over(engine: Engine, job: Job) -> None:
    """Remove the pool that was made for a job, unless it is to stay."""
    if job.auto_pool and not job.keeps_pool:
        _remove(engine, job.auto_pool)


def schedule_over(engine: Engine, schedule: Schedule) -> None:
    """Remove the pool that was made for a schedule's jobs, unless it is to stay."""
    given = schedule.spec["jobSpecification"]["poolInfo"].get("autoPoolSpecification", {})
    if schedule.auto_pool and not given.get("keepAlive"):
        _remove(engine, schedule.auto_pool)


def _remove(engine: Engine, name: str) -> None:
    pool = engine.account.pools.get(name.lower())
    if pool is not None and pool.state == "active":
        engine.allocation.delete(pool)
