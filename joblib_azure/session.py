"""One Batch job on one cluster, and the Parallel calls that it serves.

::

    Call.add ─► planner ─► submitter (a thread): encode, upload, add tasks ─► Batch ─► nodes
                  ▲                                                                      │
                  └── measured costs, free slots ── monitor (a thread) ◄── outcomes ◄────┘
                                                        └──► Call.deliver ─► the call's own thread ─► joblib
                                                                                 window ─► its consumer

The session owns the planner (under its one lock) and the two threads; it knows which bundle is in which
task. A call that ends or is aborted leaves the session to the next one. The job's lease on the service is an
hour, pushed on while the client lives (DESIGN.md, decision 8). Results that a generator's consumer has not taken
yet outlive the session in storage, until they are taken or dropped.
"""

from __future__ import annotations

import base64
import concurrent.futures
import itertools
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone
from typing import Any

from . import environment
from .buffers import BufferStore
from .call import Call, CallSettings, UnderWay
from .capacity import Capacity, Cost
from .cluster import Cluster
from .codec import new_key
from .errors import JoblibAzureError, ServiceError, SessionClosedError
from .monitor import Monitor
from .planner import Planner
from .results import Window
from .service import JobSpec, TaskContainer
from .storage import BUFFERS, keep, session_containers, session_metadata, sweep
from .submitter import Submitter

logger = logging.getLogger(__name__)

#: Threads for uploads, downloads and terminations of one session.
_STREAMS = 8
_HASHERS = min(8, os.cpu_count() or 1)
#: Seconds that `close` waits for each of its threads; what they wait for has deadlines of its own.
_JOIN = 5.0


class Session:
    """The backend's successive Parallel calls on one cluster.

    Parameters
    ----------
    cluster : Cluster
    """

    def __init__(self, cluster: Cluster) -> None:
        config = cluster.config
        self.cluster = cluster
        self.capacity = Capacity(
            nodes=config.nodes, cores_per_node=config.cores, slots_per_node=config.max_tasks_per_node
        )
        stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
        self.job = f"joblib-{stamp}-{secrets.token_hex(4)}"
        self.inputs, self.outputs = session_containers(self.job)
        self.key = new_key()
        #: Guards the planner and everything below; the threads sleep on it.
        self.changed = threading.Condition()
        self.planner = Planner(self.capacity)
        self.calls: dict[str, Call] = {}
        self.under_way: dict[str, UnderWay] = {}
        self.tasks_added = 0
        #: Counts what brings outcomes nearer: tasks added, buffers uploaded.
        self.steps = 0
        self.closed = self.failed = False
        self.idle_since = time.monotonic()
        self.pool = concurrent.futures.ThreadPoolExecutor(_STREAMS, thread_name_prefix="joblib_azure-io")
        self._costs: dict[str, Cost] = {}
        self.buffers = BufferStore(lambda: self.cluster.blobs)
        self.window = Window(self._fetch, None if config.keep_blobs == "always" else self._consumed)
        # Hashing lets go of the interpreter, so that pieces are hashed by as many cores as there are.
        self.hashing = concurrent.futures.ThreadPoolExecutor(_HASHERS, thread_name_prefix="joblib_azure-hash")
        self._submitter = Submitter(self)
        # A SAS must outlive every task that may use it. A session ends by idleness and its job by its lease,
        # but a client that lives keeps pushing that lease on; 7 days bound it as user-delegation SAS would. Its
        # containers, and with them what a SAS is good for, go when the job ends.
        self.life = max(timedelta(days=7), timedelta(seconds=config.job_lease))
        self._numbers = itertools.count(1)
        self._threads: list[threading.Thread] = []
        self._job_created = self._cleared = False
        self.nodes_asked = 0
        image = config.container_image  # its own shared memory would be 64 MB, and loky's workers need more
        self.container = None if image is None else TaskContainer(image=image, options="--ipc=host")

    def __repr__(self) -> str:
        return f"<Session {self.job} on {self.cluster!r}>"

    # life -----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Create what the session needs and wait for the first node.

        Raises
        ------
        ClusterError, ServiceError
            The session is closed then.
        """
        try:
            config = self.cluster.config
            # Before anything is created, or paid for. A local cluster has no account yet, and nothing that needs one.
            account = self.cluster.account if config.python_packages.git else None
            self.plan = environment.plan(config, account)
            self.pool.submit(environment.client_needs, ["joblib"])  # what the first bundle asks for takes 0.1 s
            self.cluster.open()
            blobs = self.cluster.blobs
            mine = session_metadata(self.job, batch_account=self.cluster.batch.endpoint)
            for container, metadata in ((self.inputs, mine), (self.outputs, mine), (BUFFERS, {})):
                blobs.create_container(container, metadata=metadata)
            lease, life = timedelta(seconds=config.job_lease), self.life
            files = self.plan.ship(blobs, self.inputs, life)
            self.cluster.batch.create_job(
                JobSpec(
                    id=self.job,
                    pool=config.name,
                    environment={
                        **self.plan.settings,
                        "JOBLIB_AZURE_KEY": base64.b64encode(self.key).decode(),
                        "JOBLIB_AZURE_INPUTS": blobs.container_url(self.inputs, "r", life),
                        "JOBLIB_AZURE_OUTPUTS": blobs.container_url(self.outputs, "acw", life),
                        **({} if config.node_cache is None else {"JOBLIB_AZURE_CACHE": f"{config.node_cache}"}),
                    },
                    preparation=self.plan.preparation_command,
                    files=files,
                    lifetime=lease,
                    container=self.container,
                )
            )
            self._job_created = True
            self.cluster.wait_for_node(lambda: self.closed)
            monitor = Monitor(self)
            for name, target in (
                ("joblib_azure-submitter", self._submitter.run),
                ("joblib_azure-monitor", monitor.run),
            ):
                thread = threading.Thread(target=self._guarded, args=(target,), name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
            self.pool.submit(sweep, blobs, self.cluster.batch, batch_account=self.cluster.batch.endpoint)
        except BaseException:
            self.close()
            raise

    def close(self, reason: str = "the session was closed") -> None:
        """End the job and delete its containers; calls that are under way fail. Idempotent."""
        with self.changed:
            if self.closed:
                return
            self.closed = True
            calls = list(self.calls.values())
            self.changed.notify_all()
        for call in calls:
            call.fail(SessionClosedError(f"{reason} before the call's outcome was there", job=self.job))
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_JOIN)
        for pool in (self.pool, self.hashing):
            pool.shutdown(wait=False, cancel_futures=True)
        self._submitter.close()
        self.buffers.close()
        try:
            self.cluster.check()
            # Before the job ends: other clients take its containers for left over from then on.
            if self._keeps:
                self._keep(self.inputs)
            if self._keeps or self.window.left:
                self._keep(self.outputs)
            if self._job_created:
                # A job whose infrastructure failed is kept, ended, for its logs; the service removes it in time.
                self.cluster.batch.end_job(self.job, delete=not self.failed)
            if not self._keeps:
                self.cluster.blobs.delete_container(self.inputs)
        except JoblibAzureError as exc:
            logger.warning("closing session %s: %s", self.job, exc)
        # What is not consumed yet lies there.
        self.window.retire(self._clear_outputs)

    def release(self) -> None:
        """Let go of results that nobody has consumed; after `close`. Idempotent."""
        self.window.close(f"the session {self.job} was closed")
        self._clear_outputs()

    def _clear_outputs(self) -> None:
        with self.changed:
            if self._cleared:
                return
            self._cleared = True
        self.window.close(f"the session {self.job} was closed")
        if self._keeps:
            return
        try:
            self.cluster.check()
            self.cluster.blobs.delete_container(self.outputs)
        except JoblibAzureError as exc:
            logger.warning("closing session %s: %s", self.job, exc)

    @property
    def _keeps(self) -> bool:
        """Whether the session's blobs stay when it ends."""
        wish = self.cluster.config.keep_blobs
        return wish == "always" or (wish == "on_error" and self.failed)

    def _keep(self, container: str) -> None:
        until = keep(self.cluster.blobs, container, self.cluster.config.keep_days)
        if until is not None:
            logger.info("the blobs of session %s stay in %s until %s", self.job, container, until.isoformat())

    def _fetch(self, blob: str, offset: int, size: int, sink: Callable[[int, bytes], Any]) -> str:
        return self.cluster.blobs.fetch(self.outputs, blob, offset, size, sink)

    def _consumed(self, blob: str) -> None:
        """Delete what was consumed, so that a session of many calls does not fill the account."""
        if not self.closed:
            self.pool.submit(self._delete, blob)

    def _delete(self, blob: str) -> None:
        try:
            self.cluster.blobs.delete(self.outputs, blob)
        except JoblibAzureError as exc:
            logger.debug("deleting %s/%s: %s", self.outputs, blob, exc)

    def fail(self, error: BaseException) -> None:
        """Let every call fail with `error`, then close: something that the session cannot do without is gone."""
        self.failed = True
        for call in list(self.calls.values()):
            call.fail(error)
        self.close(str(error))

    def _guarded(self, target: Callable[[], None]) -> None:
        try:
            target()
        except Exception as exc:
            if not self.closed:
                logger.debug("session %s fails", self.job, exc_info=True)
                self.fail(exc)

    # calls ----------------------------------------------------------------------------------------------

    def start_call(self, settings: CallSettings) -> Call:
        """Begin a Parallel call."""
        overlay, code = self.plan.look()
        lacks = self.plan.lacks(code)
        if lacks:
            self._renew(lacks)  # closed, the session takes no call: the caller comes again with a new one
        number = next(self._numbers)
        name = f"c{number:05d}-{secrets.token_hex(3)}"
        call = Call(name, settings, overlay, number=number, map=self.hashing.map)
        with self.changed:
            if self.closed:
                raise SessionClosedError("the session is closed", job=self.job)
            self.calls[call.id] = call
        return call

    def _renew(self, lacks: set[str]) -> None:
        """Close, so that the next session's environment has what the user's code has come to import."""
        said = f"the nodes lack {', '.join(sorted(lacks))}, imported since this session's environment was made"
        if self.calls:
            logger.warning("%s; they get it once the calls that run now have ended", said)
        else:
            self.close(said)

    def ready(self, call: Call, chunk: int, calls: int, function: str) -> None:
        """Queue a chunk of `calls` delayed calls of `function`, by whose name their cost is remembered."""
        with self.changed:
            if call.id in self.calls and not self.closed:
                if not call.function:
                    call.function = function
                    remembered = self._costs.get(function)
                    self.planner.open_call(call.id, n_jobs=call.settings.n_jobs, cost=remembered)
                self.planner.add(call.id, chunk, calls, time.monotonic())
                self.changed.notify_all()

    def exhaust(self, call: Call) -> None:
        """Say that no further chunk of the call will come."""
        with self.changed:
            if self.planned(call):
                self.planner.exhaust(call.id)
                self.changed.notify_all()

    def wanted(self, call: Call) -> int:
        """Return how many further delayed calls joblib should dispatch now."""
        with self.changed:
            return self.planner.wanted(call.id) if self.planned(call) and call.failure is None else 0

    def chunk_size(self, call: Call, *, drip: bool) -> int:
        """Return how many delayed calls the next chunk should have; `drip` as in `Planner.chunk_size`."""
        with self.changed:
            return self.planner.chunk_size(call.id, drip=drip) if self.planned(call) else 1

    def planned(self, call: Call) -> bool:
        """Tell whether the planner knows the call; with the lock held."""
        return call.id in self.calls and bool(call.function)

    def end_call(self, call: Call) -> None:
        """Forget a call; what of it still runs is of no use any more and is ended."""
        with self.changed:
            if self.planned(call):
                cost = self.planner.cost(call.id)
                if cost is not None:
                    self._costs[call.function] = cost
                self.planner.close_call(call.id)
            if self.calls.pop(call.id, None) is None:
                return
            left = [entry for entry in self.under_way.values() if entry.call is call and entry.remaining]
            self.idle_since = time.monotonic()
            self.nodes_asked = self.nodes_asked if self.calls else 0
            self.changed.notify_all()
        call.close()
        if left and not self.closed:
            self.pool.submit(self.abort, call, left)

    def abort(self, call: Call, entries: Iterable[UnderWay]) -> None:
        """End an aborted call's tasks: those that wait see the blob when they start, those that run are terminated."""
        try:
            self.cluster.blobs.put(self.inputs, f"aborted/{call.id}", b"")
            for entry in entries:
                if entry.task in self.under_way:
                    self.cluster.batch.terminate_task(self.job, entry.task)
                    self.finish(entry)
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

    # from the monitor -----------------------------------------------------------------------------------

    def observe(self, entry: UnderWay, calls: int, seconds: float) -> None:
        """Take in what a worker measured."""
        with self.changed:
            entry.seconds += seconds
            if self.planned(entry.call):
                self.planner.observe(entry.call.id, calls, seconds)

    def finish(self, entry: UnderWay, *, cost: float | None = None) -> None:
        """A task ended."""
        with self.changed:
            if self.under_way.pop(entry.task, None) is not None:
                self.planner.finish(entry.bundle.id, cost=cost)
                self.changed.notify_all()

    def requeue(self, entry: UnderWay) -> None:
        """A task was lost: what it did not finish is sent again."""
        with self.changed:
            if self.under_way.pop(entry.task, None) is not None:
                chunks = [chunk for chunk in entry.bundle.chunks if chunk in entry.remaining]
                self.planner.requeue(entry.bundle.id, chunks)
                self.changed.notify_all()

    def attempts(self, entry: UnderWay) -> int:
        """Return how often what is left of the bundle was sent."""
        return max((entry.call.attempts[chunk] for chunk in entry.remaining), default=0)
