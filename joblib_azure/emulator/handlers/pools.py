"""Operations of pools."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from .. import checks, errors, images, mounts, odata, times, vmsizes, wire
from ..autoscale import Formula
from ..autoscaler import DEFAULT_INTERVAL, LEAST_INTERVAL, MOST_INTERVAL, Autoscaler, run
from ..calls import Answer, Call, handles
from ..state import Pool

_log = logging.getLogger(__name__)

FIELDS = {
    "id": odata.text(lambda pool: pool.id),
    "state": odata.state(lambda pool: pool.state),
    "stateTransitionTime": odata.moment(lambda pool: pool.state_since),
    "creationTime": odata.moment(lambda pool: pool.created),
    "lastModified": odata.moment(lambda pool: pool.modified),
    "allocationState": odata.state(lambda pool: pool.allocation_state),
    "allocationStateTransitionTime": odata.moment(lambda pool: pool.allocation_since),
    "enableAutoScale": odata.flag(lambda pool: pool.autoscale is not None),
    "vmSize": odata.text(lambda pool: pool.spec["vmSize"].lower()),
}
_LEAST_RESIZE = timedelta(minutes=5)
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
    body = call.body
    checks.identifier(body["id"])
    cores = vmsizes.cores_of(body["vmSize"])
    if cores is None:
        reason = "Not the name of a VM size (Standard_D4s_v5, …) nor of the emulator's own (Emulated_C<cores>)."
        raise errors.invalid_property("vmSize", body["vmSize"], reason)
    _check_common(body)
    _check_machine(call)
    _check_network(call)
    slots = body.get("taskSlotsPerNode", 1)
    most = min(4 * cores, 256)
    if not 1 <= slots <= most:
        reason = f"The value must lie between 1 and {most} (4 times the {cores} cores of the node, at most 256)."
        raise errors.invalid_property("taskSlotsPerNode", slots, reason)
    formula = _check_scale(body)
    interval = _interval(body)
    timeout = checks.duration(body.get("resizeTimeout"), "resizeTimeout", least=_LEAST_RESIZE)
    pool = Pool(
        id=body["id"],
        state="active",
        spec=body,
        cores=cores,
        slots=slots,
        target_dedicated=body.get("targetDedicatedNodes", 0),
        target_spot=body.get("targetLowPriorityNodes", 0),
        resize_timeout=timeout or timedelta(minutes=15),
    )
    call.engine.allocation.add(pool)
    mounts.check(body, warn=pool.id)
    call.engine.allocation.resize(pool, pool.target_dedicated, pool.target_spot, "requeue")
    if formula is not None:
        call.engine.autoscaler.start(pool, formula, interval or DEFAULT_INTERVAL)
    url = wire.pool_url(call.base, pool.id)
    return call.done(pool, url, Location=url)


def _check_scale(body: dict[str, Any]) -> Formula | None:
    """The formula of a pool that scales by itself; either that or targets are given."""
    if body.get("enableAutoScale"):
        for name in ("targetDedicatedNodes", "targetLowPriorityNodes"):
            if name in body:
                raise errors.invalid_property(name, body[name], "Not allowed if enableAutoScale is true.")
        if "autoScaleFormula" not in body:
            raise errors.missing_property("autoScaleFormula")
        return Autoscaler.parse(body["autoScaleFormula"])
    for name in ("autoScaleFormula", "autoScaleEvaluationInterval"):
        if name in body:
            raise errors.invalid_property(name, body[name], "Not allowed unless enableAutoScale is true.")
    if "targetDedicatedNodes" not in body and "targetLowPriorityNodes" not in body:
        raise errors.missing_property("targetDedicatedNodes")
    return None


def _interval(body: dict[str, Any]) -> timedelta | None:
    name = "autoScaleEvaluationInterval"
    found = checks.duration(body.get(name), name)
    if found is not None and not LEAST_INTERVAL <= found <= MOST_INTERVAL:
        raise errors.invalid_property(name, body[name], "The interval must lie between 5 minutes and 168 hours.")
    return found


def _check_common(body: dict[str, Any]) -> None:
    """What creating and updating have in common."""
    checks.display_name(body)
    checks.metadata(body)
    checks.packages(body)
    mounts.check(body)
    checks.between(body, "targetDedicatedNodes", 0)
    checks.between(body, "targetLowPriorityNodes", 0)
    if "startTask" in body:
        checks.runnable(body["startTask"], "startTask.")
        if body["startTask"].get("maxTaskRetryCount", 0) < -1:
            value = body["startTask"]["maxTaskRetryCount"]
            raise errors.invalid_property("startTask.maxTaskRetryCount", value, "At least -1.")


def _check_machine(call: Call) -> None:
    body = call.body
    machine = body.get("virtualMachineConfiguration")
    if machine is None:
        raise errors.missing_property("virtualMachineConfiguration")
    own = images.check(machine, token=call.principal.token)
    if own:
        _log.warning(
            "pool %s: its image (%s) exists in Azure only", call.body.get("id", call.params.get("poolId")), own
        )


def _check_network(call: Call) -> None:
    network = call.body.get("networkConfiguration", {})
    if network.get("subnetId"):
        if not call.principal.token:
            raise errors.needs_token("Network")
        _log.warning("pool %s: its subnet exists in Azure only", call.body.get("id", call.params.get("poolId")))


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
    _check_common(body)
    if "virtualMachineConfiguration" in body:
        _check_machine(call)
    _check_network(call)
    mounts.check(body, warn=pool.id)
    cores = vmsizes.cores_of(body.get("vmSize", pool.spec["vmSize"]))
    if cores is None:
        raise errors.invalid_property("vmSize", body["vmSize"], "Not the name of a VM size.")
    slots = body.get("taskSlotsPerNode", pool.slots)
    if not 1 <= slots <= min(4 * cores, 256):
        raise errors.invalid_property("taskSlotsPerNode", slots, f"Between 1 and {min(4 * cores, 256)}.")
    pool.cores, pool.slots = cores, slots
    pool.spec = {**pool.spec, **body}
    pool.touch()
    return call.done(pool)


@handles("replace_pool_properties")
async def replace_pool_properties(call: Call) -> Answer:
    pool = find_active(call)
    _check_common(call.body)
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
    timeout = checks.duration(body.get("resizeTimeout"), "resizeTimeout", least=_LEAST_RESIZE)
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
    timeout = checks.duration(body.get("resizeTimeout"), "resizeTimeout", least=_LEAST_RESIZE)
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
    call.engine.autoscaler.enable(pool, formula, _interval(call.body))
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
