"""The planner: which chunks travel together in which Batch task, and when.

It owns the ready queue of every Parallel call, what is under way, and the measured cost of calls and tasks.
No I/O, no threads, no clock: the session tells it what happened and when, and submits what `plan` returns.

    add(chunk) ──► ready queue ──flush──► plan() ──► bundles under way ──► finish(), requeue() ──┐
                       ▲                    ▲                                                    │
                       └─ chunks of a fault ┴── observe(): cost of a call; cost of a task ◄──────┘

`calls` has the state of one Parallel call, `core` the choice among them: who is served next, and with how much.
"""

from .core import Planner

__all__ = ["Planner"]
