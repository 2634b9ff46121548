"""What the planner plans against, and what it makes: plain values."""

from dataclasses import dataclass
from math import inf
from typing import NamedTuple


class Cost(NamedTuple):
    """What a call takes of one worker, in seconds."""

    seconds: float  #: mean
    deviation: float = inf  #: standard deviation from call to call; not known yet: inf


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The pool's upper bound, what the planner plans against; each number at least 1, else ValueError."""

    nodes: int
    cores_per_node: int
    slots_per_node: int  # with more slots than cores, slots are a queue on the node

    def __post_init__(self) -> None:
        for name in ("nodes", "cores_per_node", "slots_per_node"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def slots(self) -> int:
        """Task slots of all nodes."""
        return self.nodes * self.slots_per_node

    @property
    def workers_per_slot(self) -> int:
        """Workers of a task that has one slot."""
        return max(1, self.cores_per_node // self.slots_per_node)

    @property
    def workers(self) -> int:
        """Cores of all nodes: joblib's ``n_jobs=-1``."""
        return self.nodes * self.cores_per_node

    @property
    def parallel(self) -> int:
        """Workers that one-slot tasks can use at once: the cores, less what slots leave over."""
        return min(self.workers, self.slots * self.workers_per_slot)

    @property
    def most_under_way(self) -> int:
        """Limit of the slots under way: twice those that can compute, for more is dear to cancel."""
        return max(self.slots, 2 * self.nodes * min(self.slots_per_node, self.cores_per_node))


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What one Batch task carries."""

    id: int  # unique within the planner, ascending
    call: str  # id of the Parallel call
    chunks: tuple[int, ...]  # chunk ids in submission order
    calls: int  # delayed calls in them
    slots: int  # requiredSlots: 1, or all of a node
    width: int  # how many of the chunks may run at once
