"""The tasks of a job that have ended, each listed about once.

A listing begins where the one before it ended, less an overlap: the service's clock decides, and listings lag. It goes
back further from time to time only, or each task would be listed a dozen times.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone

from .service import BatchService, TaskEnd

#: How far a listing goes back before the last one that was listed, as a rule and from time to time.
OVERLAP, WIDE_OVERLAP = timedelta(seconds=5), timedelta(seconds=60)
#: Seconds between two listings that go back further.
WIDE_LOOK = 30.0
#: Seconds without any outcome after which, and between which, whoever waits should `look_back`.
REVIEW = 60.0


class EndedTasks:
    """Lists a job's tasks as they end.

    Parameters
    ----------
    batch : callable
        Returns the Batch service.
    job : str
        Id of the job.
    """

    def __init__(self, batch: Callable[[], BatchService], job: str) -> None:
        self._batch, self._job = batch, job
        self._since: datetime | None = None
        self._wide_look = 0.0

    def look(self) -> list[TaskEnd]:
        """Return what has ended since what was `taken`, and some of that again.

        Raises
        ------
        ServiceError
        """
        since = self._since
        if since is not None:
            now = time.monotonic()
            wide = now - self._wide_look > WIDE_LOOK
            self._wide_look = now if wide else self._wide_look
            since -= WIDE_OVERLAP if wide else OVERLAP
        return self._batch().ended_tasks(self._job, since)

    def taken(self, ended: Sequence[TaskEnd]) -> None:
        """Say that what `look` has returned is dealt with; not before, whatever happens meanwhile."""
        if ended:
            self._since = max(task.ended for task in ended)

    def look_back(self, to: float) -> None:
        """Let the next listing go back to a moment, in seconds since the epoch.

        It finds ends that appeared so late that others had moved its begin past them.
        """
        if self._since is not None:
            self._since = min(self._since, datetime.fromtimestamp(to, timezone.utc))
