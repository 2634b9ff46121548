"""What nodes cost: hours by kind, prices, and the estimate that the two make. Plain values and pure functions.

Batch itself costs nothing. Azure bills its nodes as virtual machines, from the moment that they are there: while they
start, wait, run a start task or are broken, and whether anything runs on them or not. A spot node that was preempted is
listed on and costs nothing. Money is hours × price, and always an estimate: disks, addresses and traffic, discounts and
reservations are not in it, nor minutes that nobody here has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .tables import table

#: States of nodes that Azure does not bill; the names in which they are counted.
NOT_BILLED = frozenset({"preempted", "deallocated"})
#: Below that, money is said to be less.
_LEAST_MONEY = 0.0001


@dataclass(frozen=True, kw_only=True)
class NodeHours:
    """Hours of nodes, by their kind.

    Parameters
    ----------
    dedicated, spot : float
    unknown : float
        Of nodes that are gone, and of which nobody has said what they were.
    """

    dedicated: float = 0.0
    spot: float = 0.0
    unknown: float = 0.0

    @property
    def total(self) -> float:
        """Of all nodes."""
        return self.dedicated + self.spot + self.unknown

    def __add__(self, other: NodeHours) -> NodeHours:
        return NodeHours(
            dedicated=self.dedicated + other.dedicated,
            spot=self.spot + other.spot,
            unknown=self.unknown + other.unknown,
        )

    def __sub__(self, other: NodeHours) -> NodeHours:
        """Return what came to an earlier sum since then."""
        return NodeHours(
            dedicated=self.dedicated - other.dedicated,
            spot=self.spot - other.spot,
            unknown=self.unknown - other.unknown,
        )

    def __str__(self) -> str:
        kinds = {"dedicated": self.dedicated, "spot": self.spot, "unknown-kind": self.unknown}
        said = [f"{number(hours)} {kind}" for kind, hours in kinds.items() if hours]
        return f"{' and '.join(said) or 'no'} node-hours"


def billed(states: Mapping[str, int]) -> int:
    """Return how many of the nodes, counted by state, cost something."""
    return sum(count for state, count in states.items() if state not in NOT_BILLED)


class Meter:
    """Sums up node-hours from counts of the nodes: each count holds until the next one."""

    def __init__(self) -> None:
        self._sum = NodeHours()
        self._since: float | None = None
        self._dedicated = self._spot = 0

    def take(self, now: float, dedicated: int, spot: int) -> None:
        """Take a count of the nodes that cost something, at `now`, in seconds of any clock that only goes on."""
        self._sum = self.hours(now)
        self._since = now if self._since is None else max(now, self._since)
        self._dedicated, self._spot = dedicated, spot

    def hours(self, now: float) -> NodeHours:
        """Return the sum up to `now`."""
        if self._since is None:
            return self._sum
        hours = max(0.0, now - self._since) / 3600
        return self._sum + NodeHours(dedicated=self._dedicated * hours, spot=self._spot * hours)


@dataclass(frozen=True, kw_only=True)
class NodePrices:
    """What a node of some size costs an hour.

    Parameters
    ----------
    currency : str
        As ``USD``.
    dedicated, spot : float or None
        None where that is not known.
    source : str
        Where they come from; or why there are none.
    free : bool
        Whether the nodes cost nothing: those of a local cluster.
    """

    currency: str = ""
    dedicated: float | None = None
    spot: float | None = None
    source: str
    free: bool = False

    @property
    def known(self) -> bool:
        """Whether there is any."""
        return self.free or self.dedicated is not None or self.spot is not None

    def __str__(self) -> str:
        if self.free or not self.known:
            return self.source
        kinds = {"dedicated": self.dedicated, "spot": self.spot}
        said = [f"{price:g} {self.currency} {kind}" for kind, price in kinds.items() if price is not None]
        return f"{' and '.join(said)} an hour, {self.source}"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What node-hours cost.

    Parameters
    ----------
    hours : NodeHours
    prices : NodePrices
    """

    hours: NodeHours
    prices: NodePrices

    @property
    def amount(self) -> float | None:
        """Money, in the prices' currency; None where a price is not known. Nodes of no known kind count as dedicated.

        They cost no less than spot nodes.
        """
        hours, prices = self.hours, self.prices
        if prices.free:
            return 0.0
        if not prices.known:
            return None
        parts = ((hours.dedicated + hours.unknown, prices.dedicated), (hours.spot, prices.spot))
        if any(time and price is None for time, price in parts):
            return None
        return sum(time * (price or 0.0) for time, price in parts)

    @property
    def why(self) -> str:
        """Why there is no money; empty where there is."""
        if self.amount is not None:
            return ""
        if not self.prices.known:
            return self.prices.source
        lacking = "spot" if self.prices.spot is None else "dedicated"
        return f"there is no price of {lacking} nodes ({self.prices.source})"

    @property
    def short(self) -> str:
        """Money, or else node-hours, in a word or two: ``≈ 0.42 USD``."""
        if self.prices.free:
            return "no cost"
        amount = self.amount
        if amount is None:
            return f"≈ {number(self.hours.total)} node-h"
        return f"≈ {money(amount, self.prices.currency)}"

    def __str__(self) -> str:
        if self.prices.free:
            return f"no cost ({self.prices.source}); {self.hours}"
        if self.amount is None:
            return f"{self.hours}, estimated; no money: {self.why}"
        return f"{self.short}, estimated: {self.hours} at {self.prices}"

    def data(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "estimate": True,
            "amount": self.amount,
            "currency": self.prices.currency or None,
            "node_hours": vars(self.hours),
            "price_per_hour": {"dedicated": self.prices.dedicated, "spot": self.prices.spot},
            "source": self.prices.source,
        }


@dataclass(frozen=True, kw_only=True)
class JobCost:
    """What a job's nodes cost, as an estimate; `Job.cost` makes one.

    Parameters
    ----------
    job, pool, vm_size : str
    running : bool
        Whether it goes on: then this is up to now.
    nodes : int
        That its tasks ran on.
    kept : Estimate
        Of those nodes, each as a whole: from its start, where that was for this job and is known, or else from the
        job's first task on it, until the last one ended. Times in which a node had none of its tasks are in it, but
        for those after a preemption.
    used : NodeHours
        Of it, the share that the job's tasks had the nodes' cores. The rest was waiting, or somebody else's.
    """

    job: str
    pool: str
    vm_size: str
    running: bool
    nodes: int
    kept: Estimate
    used: NodeHours

    @property
    def share(self) -> float:
        """The used part of the kept time, 0 to 1."""
        whole = self.kept.hours.total
        return min(1.0, self.used.total / whole) if whole else 0.0

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth knowing about the numbers."""
        notes = []
        if self.kept.hours.unknown and not self.kept.prices.free:
            notes.append("of some nodes, which are gone, nobody knows the kind: they count as dedicated ones")
        if not self.kept.prices.free:
            notes.append("starts of nodes that are gone, and idle nodes after the job, are not in it")
        return tuple(notes)

    def __str__(self) -> str:
        count = f"{self.nodes} node{'' if self.nodes == 1 else 's'}{f' of {self.vm_size}' if self.vm_size else ''}"
        now = " up to now" if self.running else ""
        text = f"job {self.job}{now}: {self.kept}"
        if self.nodes:
            text += f"; on {count}, whose cores its tasks had for {100 * self.share:.0f} % of that"
        return text

    def _repr_html_(self) -> str:
        kept = self.kept
        return table(
            f"Job {self.job}: cost, estimated",
            {
                "money": kept.short if kept.amount is not None else f"not known: {kept.why}",
                "kept": f"{kept.hours}{' up to now' if self.running else ''}",
                "used": f"{self.used} ({100 * self.share:.0f} %)",
                "prices": str(kept.prices) if kept.amount is not None and not kept.prices.free else "",
                "nodes": f"{self.nodes} × {self.vm_size}" if self.vm_size else self.nodes,
                "not in it": "; ".join(self.notes),
            },
        )

    def data(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "job": self.job,
            "pool": self.pool,
            "vm_size": self.vm_size or None,
            "running": self.running,
            "nodes": self.nodes,
            **self.kept.data(),
            "used_node_hours": vars(self.used),
            "notes": list(self.notes) if self.kept.amount is not None else [self.kept.why, *self.notes],
        }


# words ------------------------------------------------------------------------------------------------------


def money(amount: float, currency: str) -> str:
    """Return an amount that is an estimate: ``0.42 USD``, ``0.0031 USD``, ``1,204 JPY``."""
    if 0 < amount < _LEAST_MONEY:
        return f"under {_LEAST_MONEY} {currency}"
    return f"{number(amount)} {currency}"


def number(value: float) -> str:
    """Return a number with no more digits than an estimate has."""
    if value >= 999.5:
        return f"{value:,.0f}"
    if value >= 99.95:
        return f"{value:.0f}"
    if value >= 0.995:
        return f"{value:.3g}" if value >= 9.995 else f"{value:.2f}"
    if value >= 0.0995:
        return f"{value:.3f}".rstrip("0")
    return f"{value:.2g}" if value >= 0.0001 else "under 0.0001" if value > 0 else "0"
