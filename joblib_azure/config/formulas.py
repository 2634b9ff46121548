"""Autoscale formulas as a configuration names them; what they are, and their texts, is `joblib_azure.autoscale`'s."""

from __future__ import annotations

import difflib
import re

from ..autoscale import FORMULAS, formula
from .parts import PoolSize

#: No formula: the pool has its maxima as targets at all times.
FIXED = "FIXED"
NAMES = (*FORMULAS, FIXED)


def check_formula(size: PoolSize, slots: int) -> None:
    """Make the formula that a pool would get; ValueError with the reason where there is none."""
    text = size.autoscale_formula
    if not re.search(r"\$Target\w*\s*=", text):
        # Without a target it was meant as a name.
        near = difflib.get_close_matches(text.strip().upper(), NAMES, n=1)
        if text not in NAMES:
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"expected {', '.join(NAMES)}, or a formula that sets $TargetDedicatedNodes{hint}")
    if not is_fixed(size):
        formula(
            text,
            dedicated=(size.dedicated_nodes.min, size.dedicated_nodes.max),
            spot=(size.spot_nodes.min, size.spot_nodes.max),
            task_slots_per_node=slots,
            idle_seconds=size.idle_shutdown,
            spot_fallback=size.spot_fallback,
            deallocation=size.deallocation,
        )


def is_fixed(size: PoolSize) -> bool:
    """Whether a pool of this size has no autoscale formula; its targets are the maxima then."""
    bounds = (size.dedicated_nodes, size.spot_nodes)
    return size.autoscale_formula == FIXED or all(each.min == each.max for each in bounds)
