"""Numbers as people read them."""

from __future__ import annotations


def said(seconds: float) -> str:
    """Return a duration: ``0.35 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 0.0995:
        return f"{1000 * seconds:.2g} ms" if seconds >= 0.0005 else "0 s"
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def percent(share: float) -> str:
    """Return a share: ``4 %``, and not ``0 %`` for what is there."""
    if 0 < share < 0.005:
        return "under 1 %"
    return f"{100 * share:.0f} %"


def count(number: int, thing: str) -> str:
    """Return ``1 node`` or ``1,204 nodes``."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"
