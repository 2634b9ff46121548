"""Files that the calls of a job have left: what is stored by now, and how it is had."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, cast

from ..errors import JobError, ResourceNotFoundError
from ..node.given import matches
from ..service import BlobItem
from ..storage import fetch
from .names import calls_of

if TYPE_CHECKING:
    from .job import Job

logger = logging.getLogger(__name__)

#: Seconds between two looks whether a job has ended.
_FIRST_LOOK, _LAST_LOOK, _GROWTH = 0.1, 5.0, 1.3
_ALL = "**"


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file that calls have left, in storage.

    Parameters
    ----------
    path : str
        Relative to the folder in which the calls ran.
    task : str
        Whose it is.
    first, calls : int
        The first of the task's calls, and how many it has.
    size : int
        In bytes.
    modified : datetime
        When it was stored.
    container, blob : str
        Where it lies.
    """

    path: str
    task: str
    first: int
    calls: int
    size: int
    modified: datetime
    container: str
    blob: str


class StoredFiles:
    """What a `Job` does with them."""

    def output_files(self, match: str = _ALL) -> tuple[StoredFile, ...]:
        """Return the files that its calls have left in storage by now, in the order of the calls.

        Those of a task are there once it has ended; `submit` was told which (``output_files``).

        Parameters
        ----------
        match : str, default "**"
            Only those whose path matches this pattern, as `OutputFile` takes them.

        Raises
        ------
        JobError
            Where the job, its blobs or the container are gone.
        ServiceError
        """
        found = _stored_files(cast("Job", self))
        # "**" has those whose names begin with a dot too, where a pattern of theirs has stored them.
        wanted = [each for each in found if match == _ALL or matches(match, each.path)]
        return tuple(sorted(wanted, key=lambda each: (each.first, each.path)))

    def download(
        self,
        folder: str | os.PathLike[str],
        *,
        match: str = _ALL,
        wait: bool = True,
        timeout: float | None = None,
    ) -> tuple[Path, ...]:
        """Download the files that its calls have left, each to ``<folder>/<task>/<path>``.

        Parameters
        ----------
        folder : path
            Made where it is not there; files in it are replaced.
        match : str, default "**"
            As in `output_files`.
        wait : bool, default True
            Whether to wait for the end of all tasks, or to take what there is by now. A warning says where tasks have
            failed: of their files not all may be stored.
        timeout : float, optional
            Seconds to wait; by default as long as the job lives.

        Returns
        -------
        tuple of pathlib.Path
            Where they are, in the order of the calls.

        Raises
        ------
        TimeoutError
        JobError
            Where the job, its blobs or the container are gone.
        ConfigurationError
            Where a folder is in the place of a file.
        ConflictError
            Where a file is stored again at this moment, since its task runs again.
        NodesUnavailableError, ServiceError
        """
        job = cast("Job", self)
        if wait:
            await_end(job, timeout)
            _tell_failures(job)
        made, wanted = [], dict[str, list[tuple[BlobItem, Path]]]()
        for each in self.output_files(match):
            if PurePosixPath(each.path).is_absolute() or ".." in PurePosixPath(each.path).parts:
                raise JobError(f"{each.container}/{each.blob} would leave the folder", job=job.id)
            target = Path(folder) / each.task / each.path
            blob = BlobItem(name=each.blob, size=each.size, modified=each.modified)
            wanted.setdefault(each.container, []).append((blob, target))
            made.append(target)
        for container, where in wanted.items():
            fetch(job.blobs, container, where, force=True)
        return tuple(made)


def _stored_files(job: Job) -> Iterator[StoredFile]:
    description = job.description()
    for container, prefix in description.outputs:
        try:
            found = list(job.blobs.blobs(container, prefix))
        except ResourceNotFoundError as exc:
            raise JobError(
                f"job {job.name!r} has lost its files: the container {container!r} is not there any more", job=job.id
            ) from exc
        for item in found:
            task, _, path = item.name[len(prefix) :].partition("/")
            calls = calls_of(task)
            # Others may store there too, and an earlier job of that name has.
            if path and calls and task.startswith(f"{description.call}-"):
                yield StoredFile(
                    path=path,
                    task=task,
                    first=calls.start,
                    calls=len(calls),
                    size=item.size,
                    modified=item.modified,
                    container=container,
                    blob=item.name,
                )


def _tell_failures(job: Job) -> None:
    """Say which tasks have failed: of their files not all may be stored, though all of their calls have results."""
    failed = [task for task in job.tasks() if task.failure]
    if failed:
        first = failed[0]
        logger.warning(
            "job %s: %d task(s) have failed, so that not all files of theirs may be stored; the first is %s: %s. "
            "`joblib-azure job logs %s %s` shows what it wrote; what the service could not store is in its file "
            "fileuploaderr.txt (Job.file)",
            job.name,
            len(failed),
            first.id,
            first.failure,
            job.name,
            first.id,
        )


def await_end(job: Job, timeout: float | None) -> None:
    """Wait until the service has ended the job: the last task's files are stored then.

    Raises
    ------
    TimeoutError
        Where it has not after so many seconds.
    JobError, NodesUnavailableError, ServiceError
    """
    end = None if timeout is None else time.monotonic() + timeout
    job.wait(timeout)
    pause = _FIRST_LOOK
    # Bounded: the service ends the job with its tasks, and by its time in any case.
    while job.details().state != "completed":
        if end is not None and time.monotonic() >= end:
            raise TimeoutError(f"waited {timeout:g} s for the end of the tasks of {job.status()}")
        time.sleep(pause)
        pause = min(_LAST_LOOK, pause * _GROWTH)
