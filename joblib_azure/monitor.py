"""Sees what a session's tasks do: outcomes as they stream into storage, tasks as they end.

It never asks task by task. One listing of the call's append blobs tells by their sizes which have grown, and
only the new bytes of those are read; one listing of the tasks that ended since the last look tells which ended
without having said so. Where nothing happens the looks get rarer.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from .call import Outcome
from .codec import Record, unseal, unseal_all
from .errors import (
    AuthenticationError,
    IntegrityError,
    NodesUnavailableError,
    ResourceNotFoundError,
    ServiceError,
    TaskFailedError,
)
from .service import BlobItem, TaskEnd
from .transfer import side_by_side

if TYPE_CHECKING:
    from .call import UnderWay
    from .session import Session

logger = logging.getLogger(__name__)

#: Seconds between two listings of outcomes: right after something happened, and at most. The growth bounds
#: the requests of a quiet call (31 until the longest pause) and costs it a tenth of its own duration at most.
FIRST_LOOK, LAST_LOOK, LOOK_GROWTH = 0.05, 1.0, 1.1
#: The same for the listings of ended tasks, which only find those that ended without an end record.
FIRST_TASK_LOOK, LAST_TASK_LOOK, TASK_LOOK_GROWTH = 1.0, 5.0, 1.5
#: Seconds without any outcome after which nodes and job preparation tasks are looked at, and between such looks.
DOUBT = 5.0
#: The listing of ended tasks overlaps by this much: the service's clock decides, and listings lag.
OVERLAP = timedelta(seconds=60)
#: Seconds for which the service may be out of reach before the calls fail.
PATIENCE = 60.0
#: Bytes of outcomes that are read at a time: more than the largest record, since a larger outcome is a payload.
_WINDOW = 16 << 20
#: Bytes of stderr that an error shows.
TAIL = 2000


@dataclass
class _Stream:
    """How far the append blob of one run of a task was read."""

    position: int = 0
    records: int = 0


class Monitor:
    """The monitor of one session; `run` is the body of its thread."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._streams: dict[str, _Stream] = {}
        self._pause = FIRST_LOOK
        self._task_pause = FIRST_TASK_LOOK
        self._task_look = 0.0
        self._since: datetime | None = None
        self._progress = time.monotonic()
        self._doubt_look = 0.0
        self._lease_pushed = time.monotonic()
        self._created = time.monotonic()
        self._trouble: float | None = None
        self._steps = 0

    def run(self) -> None:
        """Look until the session is closed."""
        session = self._session
        while not session.closed:
            self._sleep()
            if session.closed:
                return
            try:
                self._push_lease()
                if session.under_way:
                    self._look()
                self._trouble = None
            except AuthenticationError:
                raise
            except ServiceError as exc:
                session.cluster.check()
                now = time.monotonic()
                self._trouble = self._trouble or now
                if now - self._trouble > PATIENCE:
                    raise
                logger.warning("session %s: %s; trying on for %.0f s", session.job, exc, PATIENCE - now + self._trouble)

    def _sleep(self) -> None:
        session = self._session
        idle_timeout = session.cluster.config.idle_timeout
        with session.changed:
            if session.under_way:
                if session.steps == self._steps:
                    session.changed.wait(self._pause)
                    self._pause = min(self._pause * LOOK_GROWTH, LAST_LOOK)
                if session.steps != self._steps:
                    self._steps = session.steps
                    self._wake()
                return
            rest = session.idle_since + idle_timeout - time.monotonic()
            if session.calls or rest > 0:
                push = session.cluster.config.job_lease / 3
                session.changed.wait(push if session.calls else min(rest, push))
                self._progress = time.monotonic()
                return
        logger.info("session %s was idle for %.0f s and ends", session.job, idle_timeout)
        session.close("the session was idle and ended")

    def _wake(self) -> None:
        """Something happened: look again soon."""
        self._pause = FIRST_LOOK
        self._progress = time.monotonic()

    def _push_lease(self) -> None:
        """Move the end of the job's life on; the service ends the job of a client that stopped doing so."""
        session = self._session
        lease, now = session.cluster.config.job_lease, time.monotonic()
        if now - self._lease_pushed > lease / 3:
            session.cluster.batch.extend_job(session.job, timedelta(seconds=now - self._created + lease))
            self._lease_pushed = now

    # one look -------------------------------------------------------------------------------------------

    def _look(self) -> None:
        session, now = self._session, time.monotonic()
        progressed = self._read_outcomes()
        if now >= self._task_look:
            progressed = self._read_ended() or progressed
            longer = min(self._task_pause * TASK_LOOK_GROWTH, LAST_TASK_LOOK)
            self._task_pause = FIRST_TASK_LOOK if progressed else longer
            self._task_look = time.monotonic() + self._task_pause
        if progressed:
            self._wake()
        elif now - self._progress > DOUBT and now - self._doubt_look > DOUBT:
            self._doubt_look = now
            session.cluster.check()
            self._look_at_nodes()

    def _read_outcomes(self) -> bool:
        """Read what the append blobs have more; True where there was something."""
        session = self._session
        with session.changed:
            calls = {entry.call.id for entry in session.under_way.values() if entry.remaining}
        grown: list[BlobItem] = []
        for call in sorted(calls):
            for item in session.cluster.blobs.blobs(session.outputs, f"{call}/"):
                # Large outcomes lie beside as "<run>.<chunk>"; their record names them.
                if "." in item.name:
                    continue
                stream = self._streams.setdefault(item.name, _Stream())
                if item.size > stream.position and item.name.split("/")[1] in session.under_way:
                    grown.append(item)
        if grown:
            with contextlib.suppress(concurrent.futures.CancelledError):  # the session was closed
                side_by_side(session.pool, self._read, grown)
        return bool(grown)

    def _read(self, item: BlobItem) -> None:
        session, stream = self._session, self._streams[item.name]
        task = item.name.split("/")[1]
        entry = session.under_way.get(task)
        if entry is None:
            return
        try:
            while stream.position < item.size:
                # A window at a time: what many tasks have said meanwhile must not all be in memory at once.
                length = min(_WINDOW, item.size - stream.position)
                data = session.cluster.blobs.read(session.outputs, item.name, stream.position, length)
                end = 0
                for record in unseal_all(session.key, f"{session.job}/{item.name}", data, stream.records):
                    where = item.name, stream.position + end, record.end - end
                    self._take(entry, record, where, stream.records)
                    stream.records += 1
                    end = record.end
                if end == 0:
                    break  # the rest of a record is still on its way
                stream.position += end
        except IntegrityError as exc:
            entry.call.fail(exc)
            session.finish(entry)
        except ResourceNotFoundError:
            logger.debug("outcomes %s are gone", item.name)

    def _take(self, entry: UnderWay, record: Record, where: tuple[str, int, int], number: int) -> None:
        """Take in a record; `where` is its append blob, its offset and its size there, and it is the `number`-th."""
        session, head, call = self._session, record.head, entry.call
        if "end" in head:
            self._end(entry, head["end"])
            return
        chunk, results = head["chunk"], None
        body: bytes | memoryview = record.body
        generator = call.settings.return_as != "list"
        if "groups" in head:
            results = session.window.payload(
                head["blob"],
                head["groups"],
                head["contents"],
                order=call.order(chunk),
                bounded=generator and head["ok"],
            )
        elif generator and head.get("ok"):

            def read_again() -> memoryview:
                data = session.cluster.blobs.read(session.outputs, *where)
                found = unseal(session.key, f"{session.job}/{where[0]}#{number}", data)
                if found is None:
                    raise IntegrityError(f"{session.outputs}/{where[0]} has become shorter than it was")
                return found.body

            results = session.window.record(body, read_again, order=call.order(chunk))
            body = b""
        with session.changed:
            entry.remaining.discard(chunk)
        if "seconds" in head:
            session.observe(entry, head["calls"], head["seconds"])
        call.deliver(chunk, Outcome(head=head, body=body, job=session.job, task=entry.task, results=results))

    def _end(self, entry: UnderWay, end: dict[str, Any]) -> None:
        session = self._session
        if "missing" in end:
            names: set[str] = set(end["missing"])
            session.forget_buffers(names)
            # Whatever the retries, once for each buffer: it is not the task that has failed.
            free = not names <= entry.call.missed
            entry.call.missed |= names
            self._again(entry, "storage lacks some of its buffers", free=free)
        elif entry.remaining:
            self._again(entry, "it ended with outcomes missing")
        else:
            # Beyond the work itself and what the client was late with: the process, imports, transfer, the pool.
            took = end["ended"] - end["begun"] - end.get("waited", 0.0)
            cost = took - entry.seconds / entry.bundle.width
            session.finish(entry, cost=max(0.0, cost))

    # tasks that ended without a word --------------------------------------------------------------------

    def _read_ended(self) -> bool:
        session = self._session
        with session.changed:
            waiting = set(session.under_way)
        ended = session.cluster.batch.ended_tasks(session.job, self._since and self._since - OVERLAP)
        new = [task for task in ended if task.id in waiting]
        if ended:
            self._since = max(task.ended for task in ended)
        if not new:
            return False
        # Whatever they stored was stored before they ended, so this look is their last.
        self._read_outcomes()
        for task in new:
            entry = session.under_way.get(task.id)
            if entry is not None:
                self._lost(entry, task)
        return True

    def _lost(self, entry: UnderWay, task: TaskEnd) -> None:
        session = self._session
        if entry.call.closed or not entry.remaining:
            session.finish(entry)
            return
        what = task.failure or f"exit code {task.exit_code}"
        self._again(entry, f"it ended without all of its outcomes ({what})", node=task.node, exit_code=task.exit_code)

    def _again(self, entry: UnderWay, why: str, *, free: bool = False, **context: str | int | None) -> None:
        """Send what a task left undone once more, or fail it where that was done often enough."""
        session = self._session
        attempts = session.attempts(entry)
        if free or attempts <= session.cluster.config.retries:
            logger.warning("task %s of job %s: %s; sending it again", entry.task, session.job, why)
            session.requeue(entry)
            return
        tail = session.cluster.batch.task_file_tail(session.job, entry.task, "stderr.txt")[-TAIL:].strip()
        said = f"\nIts stderr ends:\n{tail}" if tail else ""
        error = TaskFailedError(
            f"a Batch task was lost {attempts} times and is not tried again: {why}.{said}\n",
            job=session.job,
            task=entry.task,
            **context,
        )
        session.failed = True
        for chunk in sorted(entry.remaining):
            entry.call.deliver(chunk, error)
        session.finish(entry)

    def _look_at_nodes(self) -> None:
        """Nothing has come for a while: fail where nothing can come."""
        session = self._session
        cluster, pool = session.cluster, session.cluster.config.name
        nodes = cluster.batch.nodes(pool)
        failures = cluster.batch.preparation_failures(session.job)
        left = [node for node in nodes if node.state in cluster.hopeful and node.id not in failures]
        if left or not nodes:
            logger.info("waiting for outcomes of %d task(s); %s", len(session.under_way), cluster.describe(nodes))
            return
        said = ""
        for node, failure in failures.items():
            path = f"workitems/{session.job}/job-1/jobpreparation/stderr.txt"
            tail = cluster.batch.node_file_tail(pool, node, path)[-TAIL:].strip()
            said = f"; the job preparation task failed on every node, on {node}: {failure}. Its stderr ends:\n{tail}"
            break
        raise NodesUnavailableError(
            f"no node of the pool can run the job's tasks: {cluster.describe(nodes)}{said}", pool=pool, job=session.job
        )
