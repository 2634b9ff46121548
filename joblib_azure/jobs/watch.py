"""What somebody who waits for a job is shown of it meanwhile."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from ..cluster import ready_and_starting
from ..errors import JoblibAzureError
from ..progress import SILENT, Figures, reporter, wish_of
from ..service import NodeCounts, TaskCounts

if TYPE_CHECKING:
    from .arrivals import Arrivals
    from .job import Job

#: Seconds between two questions for the states of tasks and nodes.
_ASK = 5.0


class Watch:
    """Shows how far a job is, while it is entered; whoever waits says what he has seen.

    Parameters
    ----------
    job : Job
    progress : bool or None
        As `joblib_azure.progress.wish_of` takes it.
    lasting : bool
        Whether other code of the caller's runs meanwhile.
    """

    def __init__(self, job: Job, progress: bool | None, *, lasting: bool) -> None:
        self._job = job
        self._reporter = reporter(wish_of(progress), f"job {job.name}", detail=False, lasting=lasting)
        self._figures: Figures | None = None
        self._tasks: TaskCounts | None = None
        self._nodes: NodeCounts | None = None
        self._next = 0.0

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        self._reporter.end()

    def take(self, arrivals: Arrivals, tasks: TaskCounts | None = None, nodes: NodeCounts | None = None) -> None:
        """Show what has come; what is not known of tasks and nodes is asked of the service, now and then."""
        if self._reporter is SILENT:
            return
        if tasks is not None:
            self._tasks, self._nodes = tasks, nodes
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + _ASK
            with contextlib.suppress(JoblibAzureError):  # whoever waits meets it too, and says so
                self._tasks = self._job.batch.task_counts(self._job.id)
                self._nodes = self._job.batch.node_counts(self._job.pool)
        description, failed = arrivals.description, arrivals.failed
        ready, starting = (None, None) if self._nodes is None else ready_and_starting(self._nodes)
        first = self._figures is None
        self._figures = Figures(
            name=f"job {self._job.name}",
            done=arrivals.count - failed,
            failed=failed,
            running=None,
            total=description.calls if description.complete else None,
            begun=arrivals.count > 0,
            tasks=0 if self._tasks is None else self._tasks.running,
            waiting_tasks=0 if self._tasks is None else self._tasks.active,
            ready=ready,
            starting=starting,
        )
        if first:
            self._reporter.running(self._look)

    def _look(self) -> Figures:
        return self._figures or Figures()
