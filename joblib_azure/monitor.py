"""Sees what a session's tasks do: outcomes as they stream into storage, tasks as they end.

It never asks task by task. One listing of the call's append blobs tells by their sizes which have grown, and
only the new bytes of those are read; one listing of the tasks that ended since the last look tells which ended
without having said so. Where nothing happens the looks get rarer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from .bundler import spacing_among
from .cluster.stranded import gone, stranded
from .ended import REVIEW, EndedTasks
from .errors import (
    AuthenticationError,
    NodesUnavailableError,
    ResourceNotFoundError,
    ServiceError,
    TaskFailedError,
    call_numbers,
    stderr_end,
)
from .intake import Intake
from .service import TaskEnd
from .takeover import HEARTBEAT, put_sign_of_life

if TYPE_CHECKING:
    from .call import UnderWay
    from .capacity import Bundle, Cost
    from .session import Session

logger = logging.getLogger(__name__)

#: Seconds between two listings of outcomes: soon after something happened, and at most.
FIRST_LOOK, LAST_LOOK = 0.05, 1.0
#: The pause is this part of the time for which nothing has happened although it might have: it bounds the requests of a
#: quiet call and costs it as much of its own duration at most, half of it on average.
QUIET_PART = 0.15
#: Where the cost of the calls says that no task can end yet, the pause is this part of the rest, up to so many seconds:
#: an error is seen that much later. That bound grows with the time for which there were tasks, by this part of it.
REST_PART, REST_LOOK, REST_GROWTH = 0.125, 0.25, 0.04
#: Up to that, and to so many seconds, the pause may be this part of a call's own time: nobody minds one in twenty.
CALL_PART, CALM_LOOK = 0.05, 5.0
#: The same for the listings of ended tasks, which only find those that ended without an end record.
FIRST_TASK_LOOK, LAST_TASK_LOOK, TASK_LOOK_GROWTH = 1.0, 5.0, 1.5
#: Seconds without any outcome after which nodes and job preparation tasks are looked at, and between such looks.
DOUBT = 5.0
#: Where all goes well these find nothing: then the pause may be this part of what a task takes, up to so many seconds.
#: A task that is lost without a word has taken so much longer then.
TASK_PART, CALM_TASK_LOOK = 0.1, 30.0
#: And of many tasks a larger part, one in so many, up to this: each is a smaller part of the work.
TASK_PART_OF_MANY, MANY_TASKS = 0.25, 4000
#: The pause is at least so many times what the last look took: many tasks are not looked at without a break.
LOOK_PART = 2.0
#: Bytes of stderr that an error shows.
TAIL = 2000


class Latencies:
    """What the service takes to start a task on a node: from when a slot is free for it until its process begins.

    Both are told by the node's clock, but for tasks that found a slot free when they were added.
    """

    def __init__(self) -> None:
        self._ended: dict[str, list[float]] = {}

    def take(self, node: str, added: float, begun: float, ended: float) -> float | None:
        """Take in a task's times, in seconds since the epoch, and return its latency.

        None for the first task of a node: it waited for the job's preparation there too.
        """
        known = node in self._ended
        free = self._ended.setdefault(node, [])
        before = [time for time in free if time <= begun]
        slot = max(before, default=added)
        if before:
            free.remove(slot)
        free.append(ended)
        return max(0.0, begun - max(slot, added)) if known else None


class Monitor:
    """The monitor of one session; `run` is the body of its thread."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._intake = Intake(session, self._end)
        self._task_pause = FIRST_TASK_LOOK
        self._task_look = 0.0
        self._ended = EndedTasks(lambda: session.cluster.batch, session.job)
        self._progress = self._idle = time.monotonic()
        self._doubt_look = self._review = 0.0
        #: Seconds that the last listing of outcomes took, with the reading of what was new.
        self._taken = 0.0
        self._lease_pushed = self._beaten = time.monotonic()
        self._created = time.monotonic()
        #: When the services last did all that was asked of them.
        self._well = time.monotonic()
        #: Whether it was said that they do not.
        self._told = False
        self._steps = 0
        self._latencies = Latencies()

    def run(self) -> None:
        """Look until the session is closed."""
        session = self._session
        while not session.closed:
            self._sleep()
            if session.closed:
                return
            try:
                self._push_lease()
                if session.work.under_way:
                    self._look()
                self._well, self._told = time.monotonic(), False
            except (AuthenticationError, ResourceNotFoundError):
                raise
            except ServiceError as exc:
                # What can be asked again was asked again already: this is an answer that broke off too often, say.
                session.cluster.check()
                if gone(exc):
                    raise
                left = self._well + session.cluster.config.service_timeout - time.monotonic()
                if left <= 0:
                    raise
                # Each second the same is no news.
                level = logging.INFO if self._told else logging.WARNING
                self._told = True
                logger.log(level, "session %s: %s; looking again, for %.0f s", session.job, exc, left)

    def _sleep(self) -> None:
        session, work = self._session, self._session.work
        idle_timeout = session.cluster.config.idle_timeout
        with work.changed:
            if work.under_way:
                # Many things wake those that wait here; only a step, or time, is a reason to look.
                end = time.monotonic() + self._pause()
                while not session.closed and (rest := end - time.monotonic()) > 0:
                    work.changed.wait(rest)
                    if work.steps != self._steps:
                        self._steps = work.steps
                        self._wake()
                        end = min(end, time.monotonic() + self._pause())
                return
            rest = work.idle_since + idle_timeout - time.monotonic()
            if work.calls or rest > 0:
                push = session.cluster.config.job_lease / 3
                if session.label:
                    push = min(push, HEARTBEAT)
                work.changed.wait(push if work.calls else min(rest, push))
                self._progress = self._idle = self._well = time.monotonic()
                return
        logger.info("session %s was idle for %.0f s and ends", session.job, idle_timeout)
        session.close("the session was idle and ended")

    def _pause(self) -> float:
        """Return how long to wait until the next look; with the session's lock held."""
        # Twice while a task's outcomes wait for each other: half of that is what a look adds to it on average.
        least = max(FIRST_LOOK, self._taken * LOOK_PART, spacing_among(self._session.work.streams) / 2)
        rest = self._session.work.least_rest()
        if rest > 0.0:
            age = time.monotonic() - self._idle
            longest = max(LAST_LOOK, min(self._call_seconds() * CALL_PART, CALM_LOOK))
            return max(least, min(rest * REST_PART, max(REST_LOOK, min(age * REST_GROWTH, longest))))
        quiet = time.monotonic() - self._progress
        if rest < 0.0:  # it may have ended since then only
            quiet = min(quiet, -rest)
        return max(least, min(quiet * QUIET_PART, LAST_LOOK))

    def _wake(self) -> None:
        """Something happened: look again soon."""
        self._progress = time.monotonic()

    def _push_lease(self) -> None:
        """Move the end of the job's life on; the service ends the job of a client that stopped doing so."""
        session = self._session
        lease, now = session.cluster.config.job_lease, time.monotonic()
        if now - self._lease_pushed > lease / 3:
            session.cluster.batch.extend_job(session.job, timedelta(seconds=now - self._created + lease))
            self._lease_pushed = now
        if session.label and now - self._beaten > HEARTBEAT:
            put_sign_of_life(session.batch_job)
            self._beaten = now

    # one look -------------------------------------------------------------------------------------------

    def _look(self) -> None:
        session, now = self._session, time.monotonic()
        progressed = self._intake.look()
        self._taken = time.monotonic() - now
        if now >= self._task_look:
            ended, lost = self._read_ended()
            progressed = progressed or ended
            longer = min(self._task_pause * TASK_LOOK_GROWTH, LAST_TASK_LOOK)
            part = max(TASK_PART, min(session.work.streams / MANY_TASKS, TASK_PART_OF_MANY))
            calm = max(FIRST_TASK_LOOK, min(self._task_seconds() * part, CALM_TASK_LOOK))
            self._task_pause = FIRST_TASK_LOOK if lost else calm if progressed else longer
            self._task_look = time.monotonic() + self._task_pause
        if progressed:
            self._wake()
        elif now - self._progress > DOUBT and now - self._doubt_look > DOUBT:
            self._doubt_look = now
            session.cluster.check()
            if now - max(self._progress, self._review) > REVIEW:
                self._review = now  # to when the oldest task was added
                self._look_back()
            self._look_at_nodes()

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
            # Beyond the work itself, what the client was late with and the wait for the node's cores: the service, the
            # process, imports, transfer, the pool.
            took = end["ended"] - end["begun"] - end.get("waited", 0.0) - end.get("queued", 0.0)
            cost = took - entry.seconds / entry.bundle.width
            latency = self._latencies.take(end["node"], entry.added_time, end["begun"], end["ended"])
            session.work.finish(entry, cost=None if latency is None else max(0.0, cost) + latency)

    # tasks that ended without a word --------------------------------------------------------------------

    def _read_ended(self) -> tuple[bool, bool]:
        """Deal with the tasks that have ended; return whether there was one, and whether one had not said so."""
        session, work = self._session, self._session.work
        with work.changed:
            waiting = set(work.under_way)
        ended = self._ended.look()
        new = [task for task in ended if task.id in waiting]
        lost = []
        if new:
            # Whatever they stored was stored before they ended, so this look is their last.
            self._intake.look({task.id for task in new})
            lost = [(entry, task) for task in new if (entry := work.under_way.get(task.id)) is not None]
            if any(entry.remaining for entry, _ in lost):
                session.check_job()
            for entry, task in lost:
                self._lost(entry, task)
        self._ended.taken(ended)
        return bool(new), bool(lost)

    def _call_seconds(self) -> float:
        """Return what a call takes, of that which has run longest; 0 where it is not known. With the lock held."""
        oldest = self._oldest()
        return 0.0 if oldest is None else oldest[1].seconds

    def _task_seconds(self) -> float:
        """Return what a task takes, as the cost of its calls says; 0 where that is not known."""
        with self._session.work.changed:
            oldest = self._oldest()
        return 0.0 if oldest is None else oldest[0].seconds(oldest[1])

    def _oldest(self) -> tuple[Bundle, Cost] | None:
        """Return the bundle that has run longest and the cost of its calls, where that is known. With the lock held."""
        work = self._session.work
        entry = next(iter(work.under_way.values()), None)
        cost = None if entry is None else work.cost(entry.call)
        return None if entry is None or cost is None else (entry.bundle, cost)

    def _look_back(self) -> None:
        """Let the next listing find ends that appeared in it so late that others had moved its begin past them."""
        work = self._session.work
        with work.changed:
            oldest = min((entry.added_time for entry in work.under_way.values()), default=time.time())
        self._ended.look_back(oldest)

    def _lost(self, entry: UnderWay, task: TaskEnd) -> None:
        session = self._session
        if entry.call.closed or not entry.remaining:
            session.work.finish(entry)
            return
        what = task.failure or f"exit code {task.exit_code}"
        self._again(entry, f"it ended without all of its outcomes ({what})", node=task.node, exit_code=task.exit_code)

    def _again(self, entry: UnderWay, why: str, *, free: bool = False, **context: str | int | None) -> None:
        """Send what a task left undone once more, and fail what was running too often when a task was lost.

        No call fails for what its neighbours do to their task: the last time each of those that were running is alone.
        """
        session, call = self._session, entry.call
        work = session.work
        retries = session.cluster.config.retries
        # Chunks begin in their order: those at the front were running, or their outcomes were not stored yet.
        left = [chunk for chunk in entry.bundle.chunks if chunk in entry.remaining]
        begun = [] if free else left[: 2 * entry.bundle.width]
        call.lost.update(begun)
        spent = [chunk for chunk in begun if call.lost[chunk] > retries]
        if spent:
            self._give_up(entry, spent, why, **context)
        if len(spent) == len(left):
            work.finish(entry)
            return
        logger.warning("task %s of job %s: %s; sending it again", entry.task, session.job, why)
        work.requeue(entry, alone=[chunk for chunk in begun if call.lost[chunk] == retries])

    def _give_up(self, entry: UnderWay, chunks: Sequence[int], why: str, **context: str | int | None) -> None:
        """Let chunks fail whose tasks were lost too often."""
        session, call = self._session, entry.call
        tail = session.cluster.batch.task_file_tail(session.job, entry.task, "stderr.txt", TAIL)
        log = session.cluster.log_command(session.job, entry.task, context.get("node"))
        step = f" `{log}` shows what it wrote." if log else ""
        session.failed = True
        for chunk in sorted(chunks):
            times = "once" if call.lost[chunk] == 1 else f"{call.lost[chunk]} times"
            # An error for each: joblib raises them, and each has its own traceback then.
            error = TaskFailedError(
                f"a Batch task was lost {times} and is not tried again (retries): {why}.{step}{stderr_end(tail)}",
                call=call_numbers(call.numbers([chunk])),
                job=session.job,
                task=entry.task,
                pool=session.cluster.config.name,
                **context,
            )
            call.deliver(chunk, error)
            entry.remaining.discard(chunk)

    def _look_at_nodes(self) -> None:
        """Nothing has come for a while: fail where nothing can come."""
        session = self._session
        cluster, pool = session.cluster, session.cluster.config.name
        session.check_job()
        nodes = cluster.batch.nodes(pool)
        why = stranded(cluster.batch, pool, session.job, nodes, cluster.describe, cluster.log_command)
        if why is not None:
            raise NodesUnavailableError(
                f"no node of the pool can run the job's tasks: {why}", pool=pool, job=session.job
            )
        logger.info("waiting for outcomes of %d task(s); %s", len(session.work.under_way), cluster.describe(nodes))
