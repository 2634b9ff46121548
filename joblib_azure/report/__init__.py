"""A job's run as a picture and in words: what ran where and when, where the time went, what would make it faster.

::

    History ─► lanes: slots of nodes ─► usage: phases, cores, the critical path ─► advice ─► summary
           └─► nodetime: hours of nodes ─► cost: an estimate                         └─► page, png

All of it is computed from a `History`, and asks nobody for anything; `jobs.history` collects one.
"""

from __future__ import annotations

from .cost import Estimate, JobCost, NodeHours, NodePrices
from .model import History, Lane, Phases, TaskRun
from .timeline import Timeline

__all__ = [
    "Estimate",
    "History",
    "JobCost",
    "Lane",
    "NodeHours",
    "NodePrices",
    "Phases",
    "TaskRun",
    "Timeline",
]
