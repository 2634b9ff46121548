"""How far a job has come: what of its calls has arrived, counted on from one look to the next."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..errors import NodesUnavailableError, ResourceNotFoundError
from ..service import NodeCounts
from .arrivals import Arrivals
from .status import JobStatus
from .watch import Watch

if TYPE_CHECKING:
    from .job import Job


class Counting:
    """Looks at one job; nothing is read before the first look."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._found: Arrivals | None = None
        #: Why no node can run what is left, at the last look.
        self._trouble: NodesUnavailableError | None = None

    def close(self) -> None:
        """Read nothing any more; another look begins from the start."""
        if self._found is not None:
            self._found.close()
            self._found = None

    @property
    def _arrivals(self) -> Arrivals:
        if self._found is None:
            self._found = Arrivals(self._job, lambda number, arrival: None)
        return self._found

    def status(self) -> JobStatus:
        """Look, and return how far the job has come; raises what `Job.status` does."""
        job = self._job
        details = job.details()
        arrivals = self._arrivals
        self._trouble = None
        try:
            arrivals.look(ask=True)
        except NodesUnavailableError as exc:
            self._trouble = exc
        try:
            nodes: NodeCounts | None = job.batch.node_counts(job.pool)
        except ResourceNotFoundError:
            nodes = None
        description = arrivals.description
        state = "submitting" if details.state == "active" and not description.complete else details.state
        return JobStatus(
            name=job.name,
            id=job.id,
            pool=job.pool,
            state=state,
            calls=max(description.calls, arrivals.highest + 1),
            done=arrivals.count - arrivals.failed,
            failed=arrivals.failed,
            tasks=job.batch.task_counts(job.id),
            nodes=nodes,
            created=details.created,
            ended=details.ended,
            reason=details.reason,
            trouble="" if self._trouble is None else str(self._trouble),
        )

    def wait(self, timeout: float | None, progress: bool | None) -> JobStatus:
        """Look until every call has an outcome, or will have none; raises what `Job.wait` does."""
        end = None if timeout is None else time.monotonic() + timeout
        before = -1
        with Watch(self._job, progress, lasting=False) as watch:
            while not (status := self.status()).over:
                if end is not None and time.monotonic() >= end:
                    raise TimeoutError(f"waited {timeout:g} s for the end of {status}")
                arrivals = self._arrivals
                trouble = arrivals.interrupted or self._trouble
                if trouble is not None:
                    raise trouble
                watch.take(arrivals, status.tasks, status.nodes)
                arrivals.sleep(arrivals.count != before, end)
                before = arrivals.count
        return status
