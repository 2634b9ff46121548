"""Operations of pools."""

from __future__ import annotations

from datetime import timedelta

from .. import checks, errors, mounts, odata, poolspec, times, wire
from ..autoscaler import Autoscaler, run
from ..calls import Answer, Call, handles
from ..state import Pool

FIELDS = {
    "id": odata.text(lambda pool: pool.id),
    "state": odata.state(lambda pool: pool.state),
    "stateTransitionTime": odata.moment(lambda pool: pool.state_since),
    "creationTime": odata.moment(lambda pool: pool.created),
    "lastModified": odata.moment(lambda pool: pool.modified),
    "allocationState": odata.state(lambda pool: pool.allocation_state),
    "allocationStateTransitionTime": odata.moment(lambda pool: pool.allocation_since),
    "enableAutoScale": odata.flag(lambda pool: pool.autoscale is not None),
    "enableInterNodeCommunication": odata.flag(lambda pool: pool.spec.get("enableInterNodeCommunication", False)),
    "vmSize": odata.equal(lambda pool: pool.spec["vmSize"].lower()),
}
_MOST_NODES_REMOVED = 100


def find(call: Call) -> Pool:
    pool = call.engine.account.pools.get(call.params["poolId"].lower())
    if pool is None:
        raise errors.pool_not_found()
    return pool


def find_active(call: Call) -> Pool:
    """The pool, for a write: it must meet the conditions, and not be on its way out."""
    pool = find(call)
    call.check_conditions(pool)
    if pool.state == "deleting":
        raise errors.pool_being_deleted()
    return pool


def _steady(pool: Pool) -> None:
    if pool.allocation_state != "steady":
        raise errors.pool_being_resized()


@handles("create_pool")
async def create_pool(call: Call) -> Answer:
    checks.identifier(call.body["id"])
    poolspec.check(call.body, token=call.principal.token, name=call.body["id"])
    pool = call.engine.allocation.create(call.body["id"], call.body)
    url = wire.pool_url(call.base, pool.id)
    return call.done(pool, url, Location=url)


@handles("list_pools")
async def list_pools(call: Call) -> Answer:
    return call.listing(
        list(call.engine.account.pools.values()),
        lambda pool: wire.pool(pool, call.base),
        metadata="pools",
        key=lambda pool: pool.sequence,
        fields=FIELDS,
        type_name="BatchPool",
    )


@handles("get_pool")
async def get_pool(call: Call) -> Answer:
    pool = find(call)
    call.check_conditions(pool)
    return call.single(wire.pool(pool, call.base), pool, "BatchPool", "pools/@Element")


@handles("pool_exists")
async def pool_exists(call: Call) -> Answer:
    pool = find(call)
    call.check_conditions(pool)
    return call.done(pool)


@handles("delete_pool")
async def delete_pool(call: Call) -> Answer:
    pool = find_active(call)
    call.engine.allocation.delete(pool)
    return call.done()


#: Properties that PATCH may change only in a pool without nodes (documented at BatchPoolUpdateOptions).
_NEEDS_EMPTY = (
    "vmSize",
    "enableInterNodeCommunication",
    "virtualMachineConfiguration",
    "taskSlotsPerNode",
    "taskSchedulingPolicy",
    "networkConfiguration",
    "userAccounts",
    "mountConfiguration",
)


@handles("update_pool")
async def update_pool(call: Call) -> Answer:
    pool = find_active(call)
    body = call.body
    changed = [name for name in _NEEDS_EMPTY if name in body]
    if changed and pool.nodes:
        raise errors.invalid_for_state(f"{', '.join(changed)} can only be changed while the pool has no nodes.")
    poolspec.check_change(body, token=call.principal.token, name=pool.id)
    mounts.check(body, warn=pool.id)
    shape = {"vmSize": pool.spec["vmSize"], "taskSlotsPerNode": pool.slots, **body}
    pool.cores, pool.slots = poolspec.cores_and_slots(shape)
    pool.spec = {**pool.spec, **body}
    pool.touch()
    return call.done(pool)


@handles("replace_pool_properties")
async def replace_pool_properties(call: Call) -> Answer:
    pool = find_active(call)
    poolspec.check_common(call.body)
    kept = {name: value for name, value in pool.spec.items() if name not in ("startTask", "metadata")}
    kept.pop("applicationPackageReferences", None)
    pool.spec = {**kept, **call.body}
    pool.touch()
    return call.done(pool)


@handles("resize_pool")
async def resize_pool(call: Call) -> Answer:
    pool = find_active(call)
    body = call.body
    if pool.autoscale is not None:
        raise errors.invalid_for_state("The pool scales automatically: disable autoscale, or change its formula.")
    _steady(pool)
    checks.between(body, "targetDedicatedNodes", 0)
    checks.between(body, "targetLowPriorityNodes", 0)
    if "targetDedicatedNodes" not in body and "targetLowPriorityNodes" not in body:
        raise errors.missing_property("targetDedicatedNodes")
    timeout = checks.duration(body.get("resizeTimeout"), "resizeTimeout", least=poolspec.LEAST_RESIZE)
    pool.resize_timeout = timeout or timedelta(minutes=15)
    call.engine.allocation.resize(
        pool,
        body.get("targetDedicatedNodes", pool.target_dedicated),
        body.get("targetLowPriorityNodes", pool.target_spot),
        body.get("nodeDeallocationOption", "requeue"),
    )
    return call.done(pool)


@handles("stop_pool_resize")
async def stop_pool_resize(call: Call) -> Answer:
    pool = find_active(call)
    call.engine.allocation.stop_resize(pool)
    return call.done(pool)


@handles("remove_nodes")
async def remove_nodes(call: Call) -> Answer:
    pool = find_active(call)
    body = call.body
    _steady(pool)
    names = body["nodeList"]
    if not 1 <= len(names) <= _MOST_NODES_REMOVED:
        raise errors.invalid_property("nodeList", len(names), f"Between 1 and {_MOST_NODES_REMOVED} nodes.")
    timeout = checks.duration(body.get("resizeTimeout"), "resizeTimeout", least=poolspec.LEAST_RESIZE)
    by_id = {node.id.lower(): node for node in pool.live_nodes()}
    missing = [name for name in names if name.lower() not in by_id]
    if missing:
        raise errors.node_not_found()
    pool.resize_timeout = timeout or timedelta(minutes=15)
    leaving = list({name.lower(): by_id[name.lower()] for name in names}.values())
    call.engine.allocation.remove(pool, leaving, body.get("nodeDeallocationOption", "requeue"))
    return call.done(pool)


@handles("enable_pool_auto_scale")
async def enable_pool_auto_scale(call: Call) -> Answer:
    pool = find_active(call)
    text = call.body.get("autoScaleFormula")
    formula = Autoscaler.parse(text) if text is not None else None
    call.engine.autoscaler.enable(pool, formula, poolspec.interval(call.body))
    return call.done(pool)


@handles("disable_pool_auto_scale")
async def disable_pool_auto_scale(call: Call) -> Answer:
    pool = find_active(call)
    call.engine.autoscaler.disable(pool)
    pool.touch()
    return call.done(pool)


@handles("evaluate_pool_auto_scale")
async def evaluate_pool_auto_scale(call: Call) -> Answer:
    pool = find_active(call)
    if pool.autoscale is None:
        raise errors.invalid_for_state("Autoscale must be enabled on the pool for a formula to be evaluated.")
    try:
        formula = Autoscaler.parse(call.body["autoScaleFormula"])
    except errors.BatchError as exc:
        # documented: errors of the formula come in the answer, which is a success
        details = [{"name": name, "value": value} for name, value in exc.values.items()]
        error = {"code": exc.code, "message": exc.message, "values": details}
        return call.json({"timestamp": times.iso(times.now()), "error": error}, metadata="autoscalerun")
    return call.json(run(call.engine.autoscaler.outcome(pool, formula)), metadata="autoscalerun")
