"""Collects a job's `History`: what the service says of its tasks, and what their runs have said of themselves.

One listing of the tasks, one of the outcomes, and what those hold. The service tells when it started and ended the last
run of each task; the outcomes tell by the node's clock how far each run came, with its first outcome and with its end.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import time
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..codec import Record
from ..errors import ResourceNotFoundError
from ..outcomes import OutcomeReader, task_of
from ..report import History, Phases, TaskRun
from ..report.model import State
from ..service import BlobItem, TaskState
from ..transfer import side_by_side
from .names import calls_of

if TYPE_CHECKING:
    from .job import Job

#: Blobs that are read at a time: a request each, most of which is waiting.
_STREAMS = 16
#: Seconds by which a run may seem to begin before the service started it: the service tells milliseconds, clocks drift.
_DRIFT = 1.0
_UNKNOWN = "unknown node"
#: States of tasks that no node has begun, or not again; the node of one that is ``preparing`` is being made ready.
_WAITING = ("active", "preparing")


@dataclass
class _Stream:
    """What one run of a task has said."""

    task: str
    run: int
    report: dict[str, Any] = field(default_factory=dict)  #: where it is and how far, at its first outcome or at its end
    over: bool = False  #: it came to its end
    first: float = float("inf")  #: begin of the first call and end of the last, by the node's clock
    last: float = float("-inf")
    chunks: array[int] = field(default_factory=lambda: array("Q"))
    failures: set[int] = field(default_factory=set)  #: those of its chunks that raised
    seconds: float = 0.0
    fetched: float = 0.0
    loading: float = 0.0
    longest: float = 0.0

    def take(self, head: Mapping[str, Any]) -> None:
        """Take in a record."""
        if "end" in head:
            if "ended" in head["end"]:  # or it lacked some of its arguments
                self.report.update(head["end"])
                self.over = True
            return
        self.report.update(head.get("run", {}))
        self.chunks.append(int(head["chunk"]))
        if not head.get("ok", False):
            self.failures.add(int(head["chunk"]))
        if "began" not in head:
            return  # nobody knows when: it was refused, or killed its worker
        fetched, loading = head.get("loading", (0.0, 0.0))
        seconds = float(head["seconds"])
        self.first = min(self.first, head["began"])
        self.last = max(self.last, head["began"] + loading + seconds)
        self.seconds += seconds
        self.fetched += fetched
        self.loading += loading
        self.longest = max(self.longest, seconds)


def history_of(job: Job) -> History:
    """Return what is known of a job's run, which may be going on.

    Raises
    ------
    JobError
        Where it, or its blobs, are gone.
    ServiceError, IntegrityError
    """
    now = time.time()
    details, description = job.details(), job.description()
    try:
        # First the tasks: what has ended by then has stored its outcomes.
        tasks = list(job.tasks())
        streams = _read(job)
    except ResourceNotFoundError as exc:
        raise job.gone() from exc
    offsets = _offsets(tasks, streams)
    runs = [run for task in tasks for run in _runs(task, streams.get(task.id, []), offsets, now)]
    running = details.state in ("active", "disabled") and (
        not description.complete or any(task.state != "completed" for task in tasks)
    )
    begun = min((_seconds(task.created) for task in tasks), default=_seconds(details.created))
    last = max((run.ended for run in runs), default=begun)
    done, failed = _counts(streams)
    return History(
        name=job.name,
        function=description.function,
        pool=job.pool,
        state=details.state,
        calls=max(description.calls, done, sum(len(calls_of(task.id)) for task in tasks)),
        done=done,
        failed=failed,
        waiting=sum(task.state in _WAITING for task in tasks),
        begun=begun,
        # This machine's clock may be behind the service's.
        ended=max(last, now) if running else last,
        running=running,
        runs=tuple(runs),
    )


def _read(job: Job) -> dict[str, list[_Stream]]:
    """Return what the runs of each task have said, in the order of the runs."""
    reader = OutcomeReader(lambda: job.blobs, job.outputs, job.key, job.id)

    def read(item: BlobItem) -> _Stream:
        stream = _Stream(task=task_of(item.name), run=int(item.name.rpartition("/")[2]))

        def take(record: Record, place: object) -> None:
            stream.take(record.head)

        reader.read(item, take)
        return stream

    found: dict[str, list[_Stream]] = defaultdict(list)
    items = reader.grown(job.call, lambda task: bool(calls_of(task)))
    with concurrent.futures.ThreadPoolExecutor(_STREAMS, thread_name_prefix="joblib_azure-history") as pool:
        for stream in side_by_side(pool, read, items):
            found[stream.task].append(stream)
    for streams in found.values():
        streams.sort(key=lambda stream: stream.run)
    return found


def _counts(streams: Mapping[str, list[_Stream]]) -> tuple[int, int]:
    """Return the calls that have outcomes, and those that failed; of two outcomes of a call the first one counts."""
    done = failed = 0
    for runs in streams.values():
        seen: set[int] = set()
        for run in runs:
            failed += len(run.failures - seen)
            seen.update(run.chunks)
        done += len(seen)
    return done, failed


def _seconds(moment: datetime) -> float:
    return moment.timestamp()


# clocks -----------------------------------------------------------------------------------------------------


def _offsets(tasks: Iterable[TaskState], streams: Mapping[str, list[_Stream]]) -> dict[str, float]:
    """Return by how many seconds each node's clock is behind the service's, as far as that can be told.

    No run begins before the service starts it or ends after the service sees it end; the least that makes that true.
    """
    least: dict[str, float] = defaultdict(lambda: float("-inf"))
    most: dict[str, float] = defaultdict(lambda: float("inf"))
    for task in tasks:
        said = streams.get(task.id, [])
        if len(said) != 1 or task.requeues or task.retries or "begun" not in said[0].report or task.started is None:
            continue
        report = said[0].report
        node = report["node"]
        least[node] = max(least[node], _seconds(task.started) - report["begun"])
        if task.ended is not None and "ended" in report:
            most[node] = min(most[node], _seconds(task.ended) - report["ended"])
    return {
        node: min(max(0.0, least[node]), most[node]) if most[node] >= least[node] else least[node] for node in least
    }


# runs -------------------------------------------------------------------------------------------------------


def _runs(task: TaskState, streams: list[_Stream], offsets: Mapping[str, float], now: float) -> Iterator[TaskRun]:
    """Yield the runs of a task of which something is known."""
    current: _Stream | None = None
    if streams and task.started is not None and task.state not in _WAITING:
        report = streams[-1].report
        begun = report["begun"] + offsets.get(report["node"], 0.0) if report else float("inf")
        # An older one is that of a run before, and the one that the service tells of has not said anything.
        if begun >= _seconds(task.started) - _DRIFT:
            current = streams[-1]
    for stream in streams:
        if stream is not current and stream.report:
            yield _run(task, stream, offsets, now, current=False)
    if task.state in _WAITING or (task.started is None and current is None):
        return
    yield _run(task, current or _Stream(task=task.id, run=-1), offsets, now, current=True)


def _run(task: TaskState, said: _Stream, offsets: Mapping[str, float], now: float, *, current: bool) -> TaskRun:
    report = said.report
    node = report.get("node") or (task.node if current else None) or _UNKNOWN
    offset = offsets.get(node, 0.0)
    # What the service says of a task is of its last run.
    started = _seconds(task.started) if current and task.started is not None else None
    ended = _seconds(task.ended) if current and task.ended is not None else None
    state: State
    if said.over:
        state = "done"
    elif not current:
        both = bool(task.requeues) and bool(task.retries)
        state = "lost" if both else "preempted" if task.requeues else "retried" if task.retries else "lost"
    else:
        state = "failed" if ended is not None else "running"

    def mark(name: str, otherwise: float) -> float:
        return report[name] + offset if name in report else otherwise

    last = said.last + offset
    begun = mark("begun", now if started is None else started)
    begin = begun if started is None else min(started, begun)
    if ended is None:
        ended = now if state == "running" else max(begun, last, mark("ended", begun))
    # Each moment between the one before and the end: clocks are never quite the same.
    moments = [begin]
    admitted = mark("admitted", mark("ready", begun))
    first = min(said.first + offset, mark("ran", ended)) if "admitted" in report else admitted
    for moment in (begun, mark("ready", begun), admitted, first, mark("ran", ended), ended):
        moments.append(min(max(moment, moments[-1]), max(ended, begin)))
    start, fetch, wait, load, calls, upload = (after - before for before, after in itertools.pairwise(moments))
    whole = said.loading + said.seconds
    fetched = calls * min(said.fetched, said.loading) / whole if whole else 0.0
    unpickled = calls * max(0.0, said.loading - said.fetched) / whole if whole else 0.0
    workers = int(report.get("workers", 1))
    compute = calls - fetched - unpickled
    # Of a run that goes on the calls under way have not said anything.
    work = compute * workers if state == "running" else said.seconds * max(1, workers // int(report.get("width", 1)))
    return TaskRun(
        task=task.id,
        node=node,
        state=state,
        created=_seconds(task.created),
        begun=begin,
        phases=Phases(start, fetch + fetched, wait, load + unpickled, compute, upload),
        calls=len(calls_of(task.id)),
        done=len(said.chunks),
        failed=len(said.failures),
        work=work,
        longest=said.longest,
        workers=workers,
        cores=int(report.get("cores") or workers),
        dedicated=report.get("dedicated"),
        requeues=task.requeues if current else 0,
        retries=task.retries if current else 0,
    )
