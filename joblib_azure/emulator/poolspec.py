"""What a pool is asked to be: checked as the service checks it, in a request of its own or within a job's."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from . import checks, errors, images, mounts, vmsizes
from .autoscale import Formula
from .autoscaler import LEAST_INTERVAL, MOST_INTERVAL, Autoscaler
from .state import Pool

_log = logging.getLogger(__name__)
LEAST_RESIZE = timedelta(minutes=5)
_DEFAULT_RESIZE = timedelta(minutes=15)


def check(body: dict[str, Any], *, token: bool, name: str) -> None:
    """Refuse what cannot be made a pool of; `token` tells whether who asks came with one, `name` is for the log.

    Raises
    ------
    BatchError
        400 for what does not fit together, 403 for what a shared key may not ask for, 501 for what runs nowhere here.
    """
    if "virtualMachineConfiguration" not in body:
        raise errors.missing_property("virtualMachineConfiguration")
    check_change(body, token=token, name=name)
    cores_and_slots(body)
    formula(body)
    interval(body)
    checks.duration(body.get("resizeTimeout"), "resizeTimeout", least=LEAST_RESIZE)


def check_change(body: dict[str, Any], *, token: bool, name: str) -> None:
    """The same for properties that are put in the place of a pool's."""
    check_common(body)
    if "virtualMachineConfiguration" in body:
        machine = body["virtualMachineConfiguration"]
        checks.refuse(machine, "extensions")
        own = images.check(machine, token=token)
        if own:
            _log.warning("pool %s: its image (%s) exists in Azure only", name, own)
    if body.get("networkConfiguration", {}).get("subnetId"):
        if not token:
            raise errors.needs_token("Network")
        _log.warning("pool %s: its subnet exists in Azure only", name)


def check_common(body: dict[str, Any]) -> None:
    """What the parts have to be, each by itself."""
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


def cores_and_slots(body: dict[str, Any]) -> tuple[int, int]:
    """The cores of a node, and its task slots."""
    cores = vmsizes.cores_of(body["vmSize"])
    if cores is None:
        reason = "Not the name of a VM size (Standard_D4s_v5, …) nor of the emulator's own (Emulated_C<cores>)."
        raise errors.invalid_property("vmSize", body["vmSize"], reason)
    slots, most = body.get("taskSlotsPerNode", 1), min(4 * cores, 256)
    if not 1 <= slots <= most:
        reason = f"The value must lie between 1 and {most} (4 times the {cores} cores of the node, at most 256)."
        raise errors.invalid_property("taskSlotsPerNode", slots, reason)
    return cores, slots


def formula(body: dict[str, Any]) -> Formula | None:
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


def interval(body: dict[str, Any]) -> timedelta | None:
    """How often a formula is evaluated, if that is said."""
    name = "autoScaleEvaluationInterval"
    found = checks.duration(body.get(name), name)
    if found is not None and not LEAST_INTERVAL <= found <= MOST_INTERVAL:
        raise errors.invalid_property(name, body[name], "The interval must lie between 5 minutes and 168 hours.")
    return found


def build(pool_id: str, body: dict[str, Any]) -> Pool:
    """A pool as asked for, which nobody knows of yet."""
    cores, slots = cores_and_slots(body)
    return Pool(
        id=pool_id,
        state="active",
        spec=body,
        cores=cores,
        slots=slots,
        target_dedicated=body.get("targetDedicatedNodes", 0),
        target_spot=body.get("targetLowPriorityNodes", 0),
        resize_timeout=checks.duration(body.get("resizeTimeout"), "resizeTimeout") or _DEFAULT_RESIZE,
    )
