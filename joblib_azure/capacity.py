"""What the planner plans against, and what it makes: plain values."""

from dataclasses import dataclass
from math import inf
from typing import NamedTuple

#: Tasks that one request adds at most: https://learn.microsoft.com/azure/batch/large-number-tasks
COLLECTION = 100


class Cost(NamedTuple):
    """What a call takes of one worker, in seconds."""

    seconds: float  #: mean
    deviation: float = inf  #: standard deviation from call to call; not known yet: inf


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The pool's upper bound, what the planner plans against; each number at least 1, else ValueError."""

    nodes: int
    workers_per_node: int  # that compute at once: the cores, unless the configuration says otherwise
    slots_per_node: int  # with more slots than workers, slots are a queue on the node

    def __post_init__(self) -> None:
        for name in ("nodes", "workers_per_node", "slots_per_node"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def slots(self) -> int:
        """Task slots of all nodes."""
        return self.nodes * self.slots_per_node

    @property
    def workers_per_slot(self) -> int:
        """Workers of a task that has one slot."""
        return max(1, self.workers_per_node // self.slots_per_node)

    @property
    def tasks_per_node(self) -> int:
        """One-slot tasks that compute at once on a node; further ones wait there, with their inputs fetched."""
        return max(1, min(self.slots_per_node, self.workers_per_node // self.workers_per_slot))

    @property
    def lanes(self) -> int:
        """One-slot tasks that compute at once on all nodes: the slots, those left out that are a queue on a node."""
        return self.nodes * self.tasks_per_node

    @property
    def workers(self) -> int:
        """Workers of all nodes: joblib's ``n_jobs=-1``."""
        return self.nodes * self.workers_per_node

    @property
    def parallel(self) -> int:
        """Workers that one-slot tasks can use at once: all, less what slots leave over."""
        return min(self.workers, self.slots * self.workers_per_slot)

    @property
    def most_under_way(self) -> int:
        """Limit of the slots under way: twice those that can compute, for more is dear to cancel."""
        return max(self.slots, 2 * self.nodes * min(self.slots_per_node, self.workers_per_node))


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What one Batch task carries."""

    id: int  # unique within the planner, ascending
    call: str  # id of the Parallel call
    chunks: tuple[int, ...]  # chunk ids in submission order
    calls: int  # delayed calls in them
    slots: int  # requiredSlots: 1, or all of a node
    width: int  # how many of the chunks may run at once

    def seconds(self, cost: Cost) -> float:
        """Return about how long its calls take, once they run."""
        return cost.seconds * self.calls / self.width
