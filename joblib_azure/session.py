"""One Batch job on one cluster, and the Parallel calls that it serves.

::

    Call.add ─► planner ─► submitter (a thread): encode, upload, add tasks ─► Batch ─► nodes
                  ▲                                                                      │
                  └── measured costs, free slots ── monitor (a thread) ◄── outcomes ◄────┘
                                                        └──► Call.deliver ─► the call's own thread ─► joblib
                                                                                 window ─► its consumer

The session owns the two threads and their life: it opens, serves calls, fails with what it cannot do without, and
ends. The planner and what is under way are its `Work`; what it has in storage is its `Holdings`. A call that ends or
is aborted leaves the session to the next one. The job's lease on the service is an hour, pushed on while the client
lives (DESIGN.md, decision 8).
"""

from __future__ import annotations

import concurrent.futures
import itertools
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

from . import environment, labels
from .batchjob import MOST_LIFE, BatchJob
from .buffers import BufferStore
from .bundler import CallSettings
from .call import Call, Outcome, UnderWay
from .cluster import Cluster
from .cluster.stranded import explained, job_over
from .counters import Counters
from .ending import ending
from .errors import ServiceError, SessionClosedError
from .history import History
from .holdings import Holdings
from .monitor import Monitor
from .resources import Resources
from .results import Results
from .storage import kept_until, sweep
from .submitter import Submitter
from .takeover import put_sign_of_life, take_over
from .transfer import STREAMS
from .work import Work

logger = logging.getLogger(__name__)

_HASHERS = min(8, os.cpu_count() or 1)
#: Seconds after which a call asks whether the job is still there before it uses it: one request, not of a loop's.
_PAUSE = 1.0
#: Chunks of a generator that nobody has consumed yet, beyond which no further call is dispatched: joblib and this
#: package hold some 300 bytes for each, beside what the window holds.
MOST_UNCONSUMED = 500_000
#: Seconds that `close` waits for each of its threads; what they wait for has deadlines of its own.
_JOIN = 5.0
#: Seconds for which `close` waits for a session that is just being opened, or closed by another thread.
_TURN = 15.0


class Session:
    """The backend's successive Parallel calls on one cluster.

    Parameters
    ----------
    cluster : Cluster
    label : str, default ""
        Of a script: what its calls return is kept, and what its earlier runs have computed is not computed again.
    numbers : iterator of int, optional
        Counts the Parallel calls, of all sessions of that label in this process.
    resources : Resources, optional
        Files that the calls are given.
    """

    def __init__(
        self,
        cluster: Cluster,
        label: str = "",
        numbers: Iterator[int] | None = None,
        resources: Resources | None = None,
    ) -> None:
        config = cluster.config
        self.cluster, self.label = cluster, label
        self.resources = Resources() if resources is None else resources
        self.history: History | None = None
        stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        # A session ends by idleness and its job by its lease, but a client that lives keeps pushing that lease on; what
        # a SAS is good for goes with the job's containers.
        life = max(MOST_LIFE, timedelta(seconds=config.job_lease))
        self._use(BatchJob(cluster, f"joblib-{stamp}-{secrets.token_hex(4)}", life=life, resources=self.resources))
        self.capacity = self.batch_job.capacity
        self.work = Work(self.capacity)
        self.failed = False
        self.counters = Counters(self)
        self.pool = concurrent.futures.ThreadPoolExecutor(STREAMS, thread_name_prefix="joblib_azure-io")
        self.buffers = BufferStore(lambda: self.cluster.blobs)
        self.holdings = Holdings(self)
        # Hashing lets go of the interpreter, so that pieces are hashed by as many cores as there are.
        self.hashing = concurrent.futures.ThreadPoolExecutor(_HASHERS, thread_name_prefix="joblib_azure-hash")
        self._submitter = Submitter(self)
        self._numbers = itertools.count(1) if numbers is None else numbers
        self._threads: list[threading.Thread] = []
        self._opening = threading.RLock()
        self._over = threading.Event()

    def __repr__(self) -> str:
        return f"<Session {self.job} on {self.cluster!r}>"

    def _use(self, job: BatchJob) -> None:
        self.batch_job = job
        self.job, self.key, self.inputs, self.outputs = job.id, job.key, job.inputs, job.outputs

    # life -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Create what the session needs and wait for the first node; whoever comes meanwhile waits for the same.

        Raises
        ------
        ClusterError, ServiceError
            The session is closed then.
        SessionClosedError
            Where somebody has closed it meanwhile.
        ConfigurationError
            Where its resources are not there.
        """
        with self._opening:
            if self._threads or self.closed:
                return
            try:
                self._open()
                if self.closed:
                    raise SessionClosedError("the session was closed while it was being opened", job=self.job)
            except BaseException as exc:
                if self.closed:
                    self.holdings.leave()  # whoever closed it may have given up on what was made since
                else:
                    self.close()
                if isinstance(exc, ServiceError):
                    self.cluster.advise(exc)
                raise

    def _open(self) -> None:
        cluster = self.cluster
        cluster.step("working out what the nodes need")
        # What the first bundle asks for takes 0.1 s.
        self.pool.submit(environment.client_needs, ["joblib"])
        self.resources.look(cluster.reach)
        self.batch_job.prepare()
        metadata, marks = self._resume() if self.label else ({}, {})
        cluster.step("creating the job")
        lease = timedelta(seconds=cluster.config.job_lease)
        metadata |= labels.client_marks(lease)
        self.batch_job.create(lifetime=lease, metadata=metadata, marks=marks, cancelled=lambda: self.closed)
        if self.label:
            put_sign_of_life(self.batch_job)
        with self.counters.seeing_waits():
            cluster.wait_for_node(lambda: self.closed)
        if self.closed:
            return
        monitor = Monitor(self)
        for name, target in (
            ("joblib_azure-submitter", self._submitter.run),
            ("joblib_azure-monitor", monitor.run),
        ):
            thread = threading.Thread(target=self._guarded, args=(target,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        self.work.idle_since = time.monotonic()
        self.pool.submit(sweep, cluster.blobs, cluster.batch, batch_account=cluster.batch.endpoint)

    def _resume(self) -> tuple[dict[str, str], dict[str, str]]:
        """Take over from the script's earlier runs; return what is written on this one's job and containers."""
        self.history, generation = take_over(self.cluster, self.label, lambda: self.closed)
        id, life = labels.batch_id(self.label, generation), self.batch_job.life
        job = BatchJob(self.cluster, id, life=life, resources=self.resources)
        job.plan = self.batch_job.plan
        self._use(job)
        until = datetime.now(timezone.utc) + timedelta(days=self.cluster.config.keep_days)
        return labels.metadata_of(self.label, "script"), kept_until(until)

    @property
    def plan(self) -> environment.EnvironmentPlan:
        """What the nodes need of the client's environment."""
        return self.batch_job.plan

    def close(self, reason: str = "the session was closed") -> None:
        """End the job and delete its containers; calls that are under way fail. Idempotent."""
        calls = self.work.close()
        if calls is None:
            # At the interpreter's exit a thread that is just closing it would be gone half way. Its own threads are
            # waited for by whoever closes it.
            if threading.current_thread() not in self._threads:
                self._over.wait(_TURN)
            return
        try:
            self._close(reason, calls)
        finally:
            self._over.set()

    def _close(self, reason: str, calls: Iterable[Call]) -> None:
        for call in calls:
            call.fail(SessionClosedError(f"{reason} before the call's outcome was there", job=self.job))
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN)
        for pool in (self.pool, self.hashing):
            pool.shutdown(wait=False, cancel_futures=True)
        self._submitter.close()
        self.buffers.close()
        # A thread that just opens it sees that it is closed at its next look.
        opened = self._opening.acquire(timeout=_TURN)
        try:
            self.holdings.leave()
        finally:
            if opened:
                self._opening.release()
        self.holdings.retire()

    @property
    def closed(self) -> bool:
        """Whether it takes no call any more."""
        return self.work.closed

    @property
    def gone(self) -> bool:
        """Whether it is closed, and nothing of it is left in storage that goes with this process."""
        return self._over.is_set() and self.holdings.cleared

    def bequeath(self) -> None:
        """Do what `close` does for others, and nothing for this process, which is about to die; takes no lock."""
        self.work.closed = True
        self.holdings.bequeath()

    def release(self) -> None:
        """Let go of results that nobody has consumed; after `close`. Idempotent."""
        if self.history is not None:
            self.history.close()
        self.holdings.release()

    def fail(self, error: BaseException) -> None:
        """Let every call fail with `error`, then close: something that the session cannot do without is gone."""
        # Where no call was under way, nobody misses anything, and there is nothing to look for in what is left.
        self.failed = self.failed or bool(self.work.calls)
        for call in list(self.work.calls.values()):
            call.fail(error)
        self.close(str(error))

    def _guarded(self, target: Callable[[], None]) -> None:
        try:
            target()
        except Exception as exc:
            if self.closed:
                return
            logger.debug("session %s fails", self.job, exc_info=True)
            if ending():
                self.close("the interpreter is ending")
            else:
                self.fail(explained(exc, self.cluster, self.job))

    def check_job(self) -> None:
        """Ask whether the job is still there.

        Raises
        ------
        SessionClosedError
            Where it is not: somebody has ended it, or its lease has.
        ServiceError
        """
        over = job_over(self.cluster, self.job)
        if over is not None:
            raise over

    # calls ----------------------------------------------------------------------------------------------

    def start_call(self, settings: CallSettings) -> Call:
        """Begin a Parallel call.

        Raises
        ------
        SessionClosedError
            Where the session is, or has to be, closed: another one takes the call.
        """
        self._check_after_a_pause()
        overlay, code = self.plan.look()
        lacks = self.plan.lacks(code)
        if lacks:
            self._renew(lacks)  # closed, the session takes no call: the caller comes again with a new one
        number = next(self._numbers)
        name = f"c{number:05d}-{secrets.token_hex(3)}"
        call = Call(name, settings, overlay, number=number, map=self._side_by_side)
        if not self.work.begin(call):
            raise SessionClosedError("the session is closed", job=self.job)
        return call

    def wanted(self, call: Call) -> int:
        """Return how many further delayed calls joblib should dispatch now; none to a consumer who is far behind."""
        if self.holdings.window.left_of(call.number) > MOST_UNCONSUMED:
            return 0
        return self.work.wanted(call)

    def _side_by_side(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        """Hash pieces side by side."""
        items = list(items)
        try:
            return self.hashing.map(function, items)
        except RuntimeError:
            # The interpreter ends the threads before anybody can close the session: no fault of what is hashed.
            return map(function, items)

    def _check_after_a_pause(self) -> None:
        """Close where somebody has ended the job meanwhile, or its lease has: the client slept."""
        if self.work.calls or self.closed or time.monotonic() - self.work.idle_since < _PAUSE:
            return
        try:
            self.check_job()
        except SessionClosedError as exc:
            logger.warning("job %s was ended between two Parallel calls; the next one opens another", self.job)
            self.close(exc.message)
            raise

    def _renew(self, lacks: set[str]) -> None:
        """Close, so that the next session's environment has what the user's code has come to import."""
        said = f"the nodes lack {', '.join(sorted(lacks))}, imported since this session's environment was made"
        if self.work.calls:
            logger.warning("%s; they get it once the calls that run now have ended", said)
        else:
            self.close(said)

    def deliver_known(self, call: Call, chunk: int, function: str) -> None:
        """Deliver a chunk of which nothing has to run."""
        with self.work.changed:
            self.work.announce(call, function)
        call.deliver(chunk, Outcome(head={"ok": True}, body=b"", job=self.job, task="", results=Results.none()))

    def end_call(self, call: Call) -> None:
        """Forget a call; what of it still runs is of no use any more and is ended."""
        left = self.work.end(call)
        if left is None:
            return
        if call.changed:
            said = "job %s: %d call(s) of Parallel call %d have changed since they were computed, and ran again"
            logger.warning(said, self.label, call.changed, call.number)
        if call.recalled:
            said = "job %s: %d of %d call(s) of Parallel call %d had been computed before"
            logger.info(said, self.label, call.recalled, call.dispatched, call.number)
        call.close()
        if left and not self.closed:
            self.pool.submit(self.abort, call, left)

    def abort(self, call: Call, entries: Iterable[UnderWay]) -> None:
        """End an aborted call's tasks: those that wait see the blob when they start, those that run are terminated."""
        try:
            self.cluster.blobs.put(self.inputs, f"aborted/{call.id}", b"")
            for entry in entries:
                if entry.task in self.work.under_way:
                    self.cluster.batch.terminate_task(self.job, entry.task)
                    self.work.finish(entry)
        except ServiceError as exc:
            if not self.closed:
                logger.warning("aborting call %s: %s", call.id, exc)

    def cancel(self, entry: UnderWay) -> None:
        """Terminate a task that is of no use any more."""
        try:
            self.cluster.batch.terminate_task(self.job, entry.task)
        except ServiceError as exc:
            if not self.closed:
                logger.warning("terminating task %s: %s", entry.task, exc)

    def forget_buffers(self, names: Iterable[str]) -> None:
        """A node did not find these in storage: store them again when they are next needed."""
        self.buffers.forget(names)
