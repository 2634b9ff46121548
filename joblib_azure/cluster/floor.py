"""The floor of an autoscaling pool: nodes that it has until a deadline, whatever its formula says.

A pool that scales refuses a resize; whoever needs nodes at once puts a floor behind its formula instead
(`joblib_azure.autoscale.formula`). That works with any formula, also one that somebody else wrote, and can be read and
taken off again, since its statements are lines of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone

from ..autoscale import formula as make_formula

#: The statement that `formula` puts behind a text for each kind of nodes.
_LINE = re.compile(
    r'^\$Target(Dedicated|LowPriority)Nodes = max\(\$Target\1Nodes, time\(\) < time\("([^"]+)"\) \? (\d+) : 0\);\n?',
    re.MULTILINE,
)
_TIME = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Nodes at least, until a moment (UTC)."""

    dedicated: int
    spot: int
    until: datetime

    def __str__(self) -> str:
        return f"{self.dedicated} dedicated and {self.spot} spot node(s) until {self.until:%H:%M:%S} UTC"

    def covers(self, other: Floor) -> bool:
        """Whether nothing is to be gained by `other`."""
        return self.dedicated >= other.dedicated and self.spot >= other.spot and self.until >= other.until

    def together(self, other: Floor | None, now: datetime) -> Floor:
        """Return the floor that both ask for; one that is over asks for nothing."""
        if other is None or other.until <= now:
            return self
        return Floor(
            dedicated=max(self.dedicated, other.dedicated),
            spot=max(self.spot, other.spot),
            until=max(self.until, other.until),
        )


def without_floor(formula: str) -> str:
    """Return a formula as it was before a floor was put behind it."""
    return _LINE.sub("", formula)


def floor_of(formula: str) -> Floor | None:
    """Return the floor behind a formula; None where there is none."""
    nodes, untils = {"Dedicated": 0, "LowPriority": 0}, []
    for kind, until, count in _LINE.findall(formula):
        nodes[kind] = int(count)
        untils.append(datetime.strptime(until, _TIME).replace(tzinfo=timezone.utc))
    if not untils:
        return None
    return Floor(dedicated=nodes["Dedicated"], spot=nodes["LowPriority"], until=min(untils))


def with_floor(formula: str, floor: Floor) -> str:
    """Put a floor behind a formula, in place of the one that it has.

    Raises
    ------
    ValueError
        Where the formula would be one that the service refuses, for its length above all.
    """
    return make_formula(
        without_floor(formula),
        dedicated=(0, floor.dedicated),
        spot=(0, floor.spot),
        floor=(floor.dedicated, floor.spot),
        floor_until=floor.until,
        # The service's default, for a formula that does not set it: it stays its owner's.
        deallocation="requeue",
    )
