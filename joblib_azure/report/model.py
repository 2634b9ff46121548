"""A job's run as values: which bundles ran where and when, and what their time went into.

Times are seconds since the epoch on the service's clock; whoever makes these values has brought the nodes' to it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, NamedTuple

from .lanes import pack

State = Literal["done", "running", "failed", "preempted", "retried", "lost"]
#: Of a run that did not give its bundle's outcomes to the end, though another one may have.
LOST: frozenset[State] = frozenset({"failed", "preempted", "retried", "lost"})


class Phases(NamedTuple):
    """Seconds that a run of a task spent in each phase, one after the other."""

    start: float = 0.0  #: from the service's start of it until its process begins
    fetch: float = 0.0  #: until the bundle is there, and the workers' waiting for large arguments
    wait: float = 0.0  #: for the node's cores
    unpickle: float = 0.0  #: the worker pool, imports and arguments
    compute: float = 0.0  #: in calls
    upload: float = 0.0  #: the rest of the outcomes, until the service sees the end


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRun:
    """One run of a bundle's Batch task on a node.

    Parameters
    ----------
    task, node : str
    state : str
        ``done``; ``running``; ``failed`` for a task that ended without its outcomes; ``preempted``, ``retried`` or
        ``lost`` for a run that another one followed, where the service says why or does not.
    created : float
        When the task was added to the job.
    begun : float
        When the service started this run, or else its process began.
    phases : Phases
    calls : int
        Of the bundle.
    done, failed : int
        Calls that have an outcome of this run, and those of them that raised.
    work : float
        Seconds that calls took, times the cores that each had.
    longest : float
        Seconds of the longest call.
    workers : int
        Cores of the task.
    cores : int
        Of the node.
    dedicated : bool, optional
        Whether the node is a dedicated one, or a spot node; None where the run has not said it.
    requeues, retries : int
        Runs before this one that the service began again after a preemption and after a failure.
    """

    task: str
    node: str
    state: State = "done"
    created: float
    begun: float
    phases: Phases
    calls: int = 1
    done: int = 1
    failed: int = 0
    work: float = 0.0
    longest: float = 0.0
    workers: int = 1
    cores: int = 1
    dedicated: bool | None = None
    requeues: int = 0
    retries: int = 0

    @property
    def seconds(self) -> float:
        """How long it had its slot."""
        return sum(self.phases)

    @property
    def ended(self) -> float:
        """When it left its slot, or the moment of the look."""
        return self.begun + self.seconds

    @property
    def computing(self) -> tuple[float, float]:
        """When its calls ran."""
        before = self.begun + sum(self.phases[:4])
        return before, before + self.phases.compute


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A task slot of a node with what ran in it, one after the other."""

    node: str
    slot: int
    runs: tuple[TaskRun, ...]


@dataclass(frozen=True, kw_only=True)
class History:
    """What is known of a job's run.

    Parameters
    ----------
    name, function, pool, state : str
        Of the job; `function` is that of its first call.
    calls, done, failed : int
        Calls that were submitted, that have an outcome, and those of them that raised.
    waiting : int
        Tasks that no node has begun.
    begun, ended : float
        When the first task was added; when the last one ended, or the moment of the look while it runs.
    running : bool
    runs : tuple of TaskRun
    """

    name: str
    function: str = ""
    pool: str = ""
    state: str = ""
    calls: int
    done: int
    failed: int = 0
    waiting: int = 0
    begun: float
    ended: float
    running: bool = False
    runs: tuple[TaskRun, ...]

    @property
    def seconds(self) -> float:
        """How long it took, or takes by now."""
        return max(0.0, self.ended - self.begun)

    @functools.cached_property
    def lanes(self) -> tuple[Lane, ...]:
        """The nodes' slots, the nodes in the order in which they began to work.

        The service does not tell slots: runs that overlap are in different ones, and no more are assumed than that
        takes.
        """
        nodes: dict[str, list[TaskRun]] = {}
        for run in sorted(self.runs, key=lambda run: (run.begun, run.ended)):
            nodes.setdefault(run.node, []).append(run)
        lanes = []
        for node, runs in nodes.items():
            slots = pack([(run.begun, run.ended) for run in runs])
            inside: list[list[TaskRun]] = [[] for _ in range(max(slots) + 1)]
            for run, slot in zip(runs, slots, strict=True):
                inside[slot].append(run)
            lanes += [Lane(node=node, slot=slot, runs=tuple(each)) for slot, each in enumerate(inside)]
        return tuple(lanes)

    @functools.cached_property
    def cores(self) -> dict[str, int]:
        """Cores of each node."""
        found: dict[str, int] = {}
        for run in self.runs:
            found[run.node] = max(found.get(run.node, 1), run.cores, run.workers)
        return found
