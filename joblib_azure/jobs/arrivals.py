"""What has come of a job's calls: outcomes from storage, and the word of the service on what will never come."""

from __future__ import annotations

import bisect
import concurrent.futures
import itertools
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..call import Outcome
from ..cluster.stranded import stranded
from ..codec import Record
from ..ended import REVIEW, EndedTasks
from ..errors import JobError, NodesUnavailableError, ResourceNotFoundError, TaskFailedError, stderr_end
from ..outcomes import OutcomeReader, Place, task_of
from ..results import Results, Window
from ..service import BlobItem, TaskEnd
from ..tally import Tally
from ..transfer import side_by_side
from .names import HEARTBEAT, Description, calls_of, tasks_between

if TYPE_CHECKING:
    from .job import Job

#: Seconds between two looks: soon after something came, and the longer the longer nothing does.
FIRST_LOOK, LAST_LOOK, _LOOK_GROWTH = 0.1, 2.0, 1.5
#: Seconds between two questions to the service, while nothing comes: what has ended, and whether anything can run.
_ASK, _DOUBT = 2.0, 10.0
#: Seconds without a sign of life after which a submission counts as dead.
SILENCE = 12 * HEARTBEAT
_STREAMS = 8
#: Why a job ends whose last task has.
ALL_TASKS_COMPLETE = "AllTasksComplete"
#: Bytes of stderr that an error shows.
_TAIL = 2000

#: Bytes of outcomes that are read at a time for a consumer: no more than he is given without reading again.
_AHEAD = 16 << 20

#: A call's outcome, or why there is none and never will be.
Arrival = Outcome | JobError | TaskFailedError


class Arrivals:
    """Follows a job; each call arrives once, whatever ran twice.

    Parameters
    ----------
    job : Job
    take : callable
        Gets a call's number and its arrival.
    wanted : callable, optional
        Tells whether a task's calls are of interest, by its id.
    window : Window, optional
        Where the results wait for their consumer; without it only the outcomes' heads are passed on.
    """

    def __init__(
        self,
        job: Job,
        take: Callable[[int, Arrival], object],
        *,
        wanted: Callable[[str], bool] = lambda task: True,
        window: Window | None = None,
    ) -> None:
        self._job, self._take, self._wanted, self._window = job, take, wanted, window
        self._reader = OutcomeReader(lambda: job.blobs, job.outputs, job.key, job.id)
        self._pool = concurrent.futures.ThreadPoolExecutor(_STREAMS, thread_name_prefix="joblib_azure-job")
        self._lock = threading.Lock()
        self._seen = Tally()
        #: The first call that has not arrived, and the most calls of a task.
        self._lowest = self._longest = 0
        self._ended = EndedTasks(lambda: job.batch, job.id)
        self._asked = self._progress = self._beaten = time.monotonic()
        self._doubted = self._reviewed = 0.0
        self._pause = FIRST_LOOK
        #: The largest number of a call that has arrived.
        self.highest = -1
        #: How many of them failed, or were lost.
        self.failed = 0
        #: Why it is not known how many calls there were to be.
        self.interrupted: JobError | None = None
        self.description: Description = job.description()

    def close(self) -> None:
        """Read nothing any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def count(self) -> int:
        """Calls that have arrived."""
        return len(self._seen)

    @property
    def over(self) -> bool:
        """Whether every call of the job has arrived."""
        return self.description.complete and self.count >= self.description.calls

    def look(self, *, ask: bool = False) -> bool:
        """Take in what is new; True where there was something.

        Parameters
        ----------
        ask : bool, default False
            Whether to ask the service too what has ended, which is done at times in any case.

        Raises
        ------
        JobError
            Where the job, its blobs or its pool are gone.
        NodesUnavailableError
            Where no node can run it.
        ServiceError, IntegrityError
        """
        if not self.description.complete:
            self._follow_submission()
        found = self._read()
        now = time.monotonic()
        if not self.over and (ask or (not found and now - self._asked > _ASK)):
            self._asked = now
            found = self._ask() or found
        if found:
            self._progress = time.monotonic()
        return found

    def sleep(self, progressed: bool, deadline: float | None = None) -> None:
        """Wait until the next look."""
        self._pause = FIRST_LOOK if progressed else min(self._pause * _LOOK_GROWTH, LAST_LOOK)
        rest = self._pause if deadline is None else min(self._pause, max(0.0, deadline - time.monotonic()))
        time.sleep(rest)

    # ----------------------------------------------------------------------------------------------------

    def _follow_submission(self) -> None:
        before, now = self.description.beat, time.monotonic()
        self.description = self._job.description()
        if self.description.beat != before:
            self._beaten = now
        elif not self.description.complete and now - self._beaten > SILENCE:
            job = self._job
            self.interrupted = JobError(
                f"the submission of job {job.name!r} was not heard of for {SILENCE:.0f} s: its client has died. What "
                f"it had submitted runs, {self.description.calls} calls or more; `joblib-azure job cancel {job.name}` "
                "ends it. Submit the job again under another name",
                job=job.id,
            )

    def _read(self) -> bool:
        job = self._job
        try:
            grown = self._reader.grown(job.call, self._wanted, self._tasks_left())
        except ResourceNotFoundError as exc:
            raise job.gone() from exc
        if self._window is not None:
            # In the order of their calls, and no more than is consumed soon.
            grown.sort(key=lambda item: (calls_of(task_of(item.name)).start, item.name))
            sizes = itertools.accumulate(item.size for item in grown)
            grown = grown[: 1 + bisect.bisect(list(sizes), _AHEAD)]
        if grown:
            side_by_side(self._pool, self._read_blob, grown)
        return bool(grown)

    def _tasks_left(self) -> list[str]:
        """Return what the ids of tasks begin with that may have more to say: in a long job most have not."""
        while self._lowest in self._seen:
            self._lowest += 1
        first = max(0, self._lowest - self._longest)
        return tasks_between(self._job.call, first, max(first, self.description.calls - 1))

    def _read_blob(self, item: BlobItem) -> None:
        self._reader.read(item, lambda record, place: self._record(task_of(item.name), record, place))

    def _record(self, task: str, record: Record, place: Place) -> None:
        if "chunk" not in record.head:
            return  # the end of a task
        number = int(record.head["chunk"])
        with self._lock:
            self._longest = max(self._longest, len(calls_of(task)))
            if self._seen.add(number):
                return
            self.highest = max(self.highest, number)
            self.failed += not record.head.get("ok", False)
        results: Results | None = None
        body: Any = b""
        if self._window is not None:
            results, body = self._reader.results(record, place, self._window, order=(number,), bounded=True)
        outcome = Outcome(
            head=record.head,
            body=body,
            job=self._job.id,
            task=task,
            results=results,
            calls=(number,),
            log="" if record.head.get("ok") else self._job.log_command(task),
        )
        with self._lock:
            self._take(number, outcome)

    def _miss(self, number: int, error: JobError | TaskFailedError) -> bool:
        with self._lock:
            if self._seen.add(number):
                return False
            self.highest = max(self.highest, number)
            self.failed += 1
            self._take(number, error)
        return True

    def _ask(self) -> bool:
        """Ask the service what has ended; True where calls are lost."""
        job = self._job
        details = job.details()
        try:
            ended = self._ended.look()
        except ResourceNotFoundError as exc:
            raise job.gone() from exc
        # What they stored, they stored before they ended.
        progressed = self._read()
        if progressed and self._window is not None:
            return True  # maybe not all of it
        self._ended.taken(ended)
        found: list[bool] = []
        if details.state == "active" or details.reason in ("", ALL_TASKS_COMPLETE):
            # Each has its own reason; where the job was ended, its reason is theirs.
            found = [self._lost(task) for task in ended if calls_of(task.id) and self._wanted(task.id)]
        if details.state in ("completed", "deleting"):
            self.description = job.description()  # it may have been complete by then
            text = f"job {job.name!r} ended ({details.reason or details.state})"
            if self.description.complete:
                text += "; this call has no outcome. Submit the calls that are missing again"
                missing = [number for number in range(self.description.calls) if number not in self._seen]
                found += [self._miss(number, JobError(text, call=number, job=job.id)) for number in missing]
            else:
                self.interrupted = JobError(
                    f"{text} before its submission did: what had been submitted has run, and how many calls there were "
                    "to be is not known. Submit the job again under another name",
                    job=job.id,
                )
        elif not (progressed or any(found)):
            self._doubt()
        return progressed or any(found)

    def _lost(self, task: TaskEnd) -> bool:
        """Give up the calls that a task has left without outcomes."""
        missing = [number for number in calls_of(task.id) if number not in self._seen]
        if not missing:
            return False
        job = self._job
        tail = stderr_end(job.batch.task_file_tail(job.id, task.id, "stderr.txt", _TAIL))
        why = task.failure or f"exit code {task.exit_code}"
        lost = 0
        for number in missing:
            # An error for each: whoever raises them gives each its own traceback.
            error = TaskFailedError(
                f"a Batch task ended without the outcomes of {len(missing)} of its calls ({why}), and is not tried "
                f"again. `{job.log_command(task.id)}` shows what it wrote.{tail}",
                call=number,
                job=job.id,
                task=task.id,
                node=task.node,
                pool=job.pool,
                exit_code=task.exit_code,
            )
            lost += self._miss(number, error)
        return lost > 0

    def _doubt(self) -> None:
        """Nothing comes: fail where nothing can come."""
        now = time.monotonic()
        if now - max(self._progress, self._doubted) < _DOUBT:
            return
        self._doubted = now
        if now - max(self._progress, self._reviewed) > REVIEW:
            self._reviewed = now
            self._ended.look_back(0.0)
        job = self._job
        try:
            why = stranded(job.batch, job.pool, job.id, job.batch.nodes(job.pool))
        except ResourceNotFoundError as exc:
            raise JobError(
                f"the pool {job.pool!r} of job {job.name!r} is gone, so nothing runs its tasks. A pool of that name "
                "(`joblib-azure cluster create`) takes them up; `Job.delete` removes the job",
                job=job.id,
                pool=job.pool,
            ) from exc
        if why is not None:
            raise NodesUnavailableError(
                f"no node of the pool can run the job's tasks: {why}", pool=job.pool, job=job.id
            )
