"""What a job's tasks have written, from their nodes."""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import ConflictError, JobError, ResourceNotFoundError, ServiceError
from ..service import TaskState

if TYPE_CHECKING:
    from .job import Job

STDOUT, STDERR = "stdout.txt", "stderr.txt"
#: Seconds between two looks at a log that is followed.
_FOLLOW = 1.0
#: Bytes that are read at a time.
_PIECE = 4 << 20


def follow_log(job: Job, task: str, stream: str, *, follow: bool) -> Iterator[str]:
    """Yield what a task has written, as `Job.logs` describes it."""
    position = 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        state = _task(job, task)
        over = not follow or state.state == "completed"
        try:
            data = job.batch.task_file(job.id, task, stream, position, _PIECE)
        except (ResourceNotFoundError, ConflictError) as exc:
            if over:
                raise no_file(job, task, stream) from exc
            data = b""  # it has not begun
        except ServiceError as exc:
            if exc.context.get("status") != 416:  # there is no more yet
                raise
            data = b""
        position += len(data)
        over = over and len(data) < _PIECE
        text = decoder.decode(data, final=over)
        if text:
            yield text
        if over:
            return
        if len(data) < _PIECE:
            time.sleep(_FOLLOW)


def _task(job: Job, task: str) -> TaskState:
    try:
        return job.batch.task(job.id, task)
    except ResourceNotFoundError as exc:
        raise JobError(
            f"job {job.name!r} has no task {task!r}; `joblib-azure job show {job.name} --tasks` lists them", job=job.id
        ) from exc


def no_file(job: Job, task: str, what: str) -> JobError:
    """Return the error for what of a task's cannot be had."""
    return JobError(
        f"{what} of task {task!r} cannot be had: it has not started, has no such file, or its node is gone, and "
        f"what lay on it too. `joblib-azure job show {job.name} --tasks` tells which tasks have started, and where",
        job=job.id,
        task=task,
    )
