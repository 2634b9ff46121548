"""What a node costs an hour: from the configuration, else from Azure's public list of retail prices.

::

    cluster.json "prices" ──────────────────────────┐
    the user's cache ◄── at most a week old ──┐     ├─► NodePrices (`report.cost`) ─► Estimate
    prices.azure.com ── on a thread, once ────┴─────┘

Nothing waits for the list but whoever asked for a cost, and that for a few seconds; a run never does. Where it cannot
be had, a price that is older than a week is used, and says its age; else there are node-hours, and why there is no
money.
"""

from __future__ import annotations

from .lookup import VARIABLE, PriceLookup

__all__ = ["VARIABLE", "PriceLookup"]
