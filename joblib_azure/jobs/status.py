"""How far a job has come, as values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ..report.tables import counts, table
from ..service import NodeCounts, TaskCounts


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """What a job is and how far it has come.

    Parameters
    ----------
    name, id, pool : str
    state : str
        ``submitting`` while calls are being added, ``active`` until the service ends it, then ``completed``; or
        another of the service's states.
    calls : int
        That were submitted up to now.
    done, failed : int
        Calls that have returned, and calls that have failed or were lost.
    tasks : TaskCounts
        Batch tasks by their states; it may lag.
    nodes : NodeCounts, optional
        Of its pool; None where that is gone.
    created : datetime
    ended : datetime, optional
    reason : str
        Why it ended.
    trouble : str
        Why no node can run what is left, where that is so.
    """

    name: str
    id: str
    pool: str
    state: str
    calls: int
    done: int
    failed: int
    tasks: TaskCounts
    nodes: NodeCounts | None
    created: datetime
    ended: datetime | None
    reason: str
    trouble: str = ""

    @property
    def over(self) -> bool:
        """Whether every call has an outcome, or will have none any more."""
        return self.state != "submitting" and self.done + self.failed >= self.calls

    def __str__(self) -> str:
        tasks = self.tasks
        text = f"job {self.name}: {self.state}, {self.done} of {self.calls} calls done"
        if self.failed:
            text += f", {self.failed} failed"
        text += f"; tasks: {tasks.active} waiting, {tasks.running} running, {tasks.succeeded + tasks.failed} ended"
        text += f" ({self.reason})" if self.reason else ""
        return text + (f"; {self.trouble}" if self.trouble else "")

    def _repr_html_(self) -> str:
        tasks, nodes = self.tasks, self.nodes
        done = f"{self.done:,} of {self.calls:,}" + (f", and {self.failed:,} failed" if self.failed else "")
        ended = {"ended": tasks.succeeded, "failed": tasks.failed}
        return table(
            f"Job {self.name}",
            {
                "state": self.state + (f" ({self.reason})" if self.reason else ""),
                "calls done": done,
                "tasks": counts({"waiting": tasks.active, "running": tasks.running, **ended}),
                "pool": self.pool,
                "dedicated nodes": counts(nodes.dedicated) if nodes is not None else "the pool is gone",
                "spot nodes": counts(nodes.spot) if nodes is not None else "",
                "submitted": f"{self.created:%Y-%m-%d %H:%M:%S} UTC",
                "ended": f"{self.ended:%Y-%m-%d %H:%M:%S} UTC" if self.ended is not None else "",
            },
        )
