"""For how long a job had its nodes, and for how long its tasks had their cores."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .cost import NodeHours
from .model import History, TaskRun


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What the service says of the nodes that it still has.

    Parameters
    ----------
    dedicated : mapping of str to bool
        The kind of each.
    allocated : mapping of str to float
        When each was allocated, the last time; seconds since the epoch.
    """

    dedicated: Mapping[str, bool] = field(default_factory=dict)
    allocated: Mapping[str, float] = field(default_factory=dict)


def node_time(history: History, facts: NodeFacts) -> tuple[NodeHours, NodeHours]:
    """Return the hours for which the job kept its nodes, and those for which its tasks had them, by kind.

    Parameters
    ----------
    history : History
    facts : NodeFacts
    """
    kept, used = NodeHours(), NodeHours()
    for node, runs in _by_node(history.runs).items():
        dedicated = next((run.dedicated for run in runs if run.dedicated is not None), facts.dedicated.get(node))
        allocated = facts.allocated.get(node)
        if allocated is not None and allocated < history.begun:
            allocated = None  # for somebody else, who may have had it until the first task here
        spans = _spans(runs, allocated, stays=dedicated is True)
        kept += _of_kind(sum(end - begin for begin, end in spans), dedicated)
        used += _of_kind(_seconds_used(runs, history.cores[node]), dedicated)
    return kept, used


def _by_node(runs: Iterable[TaskRun]) -> dict[str, list[TaskRun]]:
    found: dict[str, list[TaskRun]] = {}
    for run in sorted(runs, key=lambda run: run.begun):
        found.setdefault(run.node, []).append(run)
    return found


def _of_kind(seconds: float, dedicated: bool | None) -> NodeHours:
    kind = "unknown" if dedicated is None else "dedicated" if dedicated else "spot"
    return NodeHours(**{kind: seconds / 3600})


def _spans(runs: Sequence[TaskRun], allocated: float | None, *, stays: bool) -> list[tuple[float, float]]:
    """Return when a node was there for the job, as far as is known; `runs` in the order of their beginnings.

    A spot node that was preempted keeps its id until it comes back, and costs nothing meanwhile. One that `stays` is
    dedicated: a task that was begun again there is the work of a reboot, which costs as any other time.
    """
    spans: list[tuple[float, float]] = []
    lost = False
    for run in runs:
        begin, end, goes = run.begun, run.ended, run.state == "preempted" and not stays
        if spans and (begin <= spans[-1][1] or not lost):
            before = spans.pop()
            lost = (lost and begin <= before[1]) or goes
            begin, end = before[0], max(before[1], end)
        else:
            lost = goes
        spans.append((begin, end))
    if allocated is not None:
        # It started for the work that came to it next.
        after = next((place for place, (begin, _) in enumerate(spans) if begin >= allocated), None)
        if after is not None:
            earlier = spans[after - 1][1] if after else allocated
            spans[after] = (max(allocated, earlier), spans[after][1])
    return spans


def _seconds_used(runs: Sequence[TaskRun], cores: int) -> float:
    """Return the time in which runs had a node's cores: with all of them, all of it; more tasks have no more."""
    events = sorted(
        itertools.chain.from_iterable(((run.begun, run.workers), (run.ended, -run.workers)) for run in runs)
    )
    seconds, had, last = 0.0, 0, 0.0
    for moment, change in events:
        seconds += (moment - last) * min(had, cores) / cores
        had, last = had + change, moment
    return seconds
