"""Which of the price list's entries is the price of a node. Pure.

The list has, for one size in one region, entries for Linux and for Windows, for spot and low-priority machines, for
machines of Cloud Services, and older and newer ones; the names tell them apart and nothing else does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

#: Parts of a product's name of which a Linux node of Batch is none.
_OTHER_PRODUCTS = ("windows", "cloud services", "cloudservices")


def pick(items: Iterable[Mapping[str, Any]], currency: str, now: float) -> tuple[float | None, float | None]:
    """Return the price of an hour of a dedicated node and of a spot node; None for one that the list does not have.

    Batch's low-priority nodes are spot nodes by now, so a low-priority price counts only where there is none for spot.

    Parameters
    ----------
    items : iterable of mapping
        The list's entries of one size in one region.
    currency : str
    now : float
        Seconds since the epoch: prices that are not yet in force do not count.
    """
    best: dict[str, tuple[str, float]] = {}
    moment = datetime.fromtimestamp(now, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    for item in items:
        price, since = item.get("retailPrice"), str(item.get("effectiveStartDate") or "")
        if not isinstance(price, int | float) or price <= 0 or not _is_an_hour(item, currency) or since > moment:
            continue
        # The newest one, and of two the higher.
        best[_kind(item)] = max(best.get(_kind(item), ("", 0.0)), (since, float(price)))
    prices = {kind: price for kind, (_, price) in best.items()}
    return prices.get("dedicated"), prices.get("spot", prices.get("low priority"))


def _is_an_hour(item: Mapping[str, Any], currency: str) -> bool:
    product = str(item.get("productName") or "").lower()
    return (
        item.get("type") == "Consumption"
        and item.get("unitOfMeasure") == "1 Hour"
        and not item.get("tierMinimumUnits")
        and item.get("currencyCode") == currency
        and not any(other in product for other in _OTHER_PRODUCTS)
    )


def _kind(item: Mapping[str, Any]) -> str:
    names = f"{item.get('skuName')} {item.get('meterName')}".lower()
    return next((kind for kind in ("low priority", "spot") if kind in names), "dedicated")
