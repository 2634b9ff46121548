"""One Batch job on one cluster, and the Parallel calls that it serves.

::

    Call.add ─► planner ─► dispatcher thread: encode, upload, add tasks ─► Batch ─► nodes
                  ▲                                                                   │
                  └── measured costs, free slots ── monitor thread ◄── outcomes ◄─────┘
                                                        └──► Call.deliver ─► the call's own thread ─► joblib

The session owns the planner (under its one lock) and the two threads; it knows which bundle is in which
task. A call that ends or is aborted leaves the session to the next one. The job's lease on the service is an
hour, pushed on while the client lives (DESIGN.md, decision 8).
"""

from __future__ import annotations

import base64
import concurrent.futures
import itertools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta, timezone

from . import environment
from .call import BufferStore, Call, CallSettings, UnderWay
from .capacity import Bundle, Capacity, Cost
from .cluster import Cluster
from .codec import EncodedChunk, new_key, write_bundle
from .errors import JoblibAzureError, ServiceError, SessionClosedError, TaskPicklingError
from .monitor import Monitor
from .planner import Planner
from .service import JobSpec, TaskContainer, TaskSpec

logger = logging.getLogger(__name__)

#: Container of the account's content-addressed buffers, shared by all jobs.
BUFFERS = "joblib-azure-buffers"
#: Threads for uploads, downloads and terminations of one session.
_STREAMS = 8
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
        self.inputs, self.outputs = f"{self.job}-in", f"{self.job}-out"
        self.key = new_key()
        #: Guards the planner and everything below; the threads sleep on it.
        self.changed = threading.Condition()
        self.planner = Planner(self.capacity)
        self.calls: dict[str, Call] = {}
        self.under_way: dict[str, UnderWay] = {}
        self.tasks_added = 0
        self.closed = self.failed = False
        self.idle_since = time.monotonic()
        self.pool = concurrent.futures.ThreadPoolExecutor(_STREAMS, thread_name_prefix="joblib_azure-io")
        self._costs: dict[str, Cost] = {}
        self._buffers = BufferStore(lambda b: self.cluster.blobs.put(BUFFERS, b.digest, b.data, overwrite=False))
        self._numbers = itertools.count(1)
        self._threads: list[threading.Thread] = []
        self._job_created = False
        self._nodes_asked = 0
        image = config.container_image  # its own shared memory would be 64 MB, and loky's workers need more
        self._container = None if image is None else TaskContainer(image=image, options="--ipc=host")

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
            for container in (self.inputs, self.outputs, BUFFERS):
                blobs.create_container(container)
            lease = timedelta(seconds=config.job_lease)
            # A SAS must outlive every task that may use it. A session ends by idleness and its job by its lease,
            # but a client that lives keeps pushing that lease on; 7 days bound it as user-delegation SAS would.
            life = max(timedelta(days=7), lease)
            self.cluster.batch.create_job(
                JobSpec(
                    id=self.job,
                    pool=config.name,
                    environment={
                        **self.plan.settings,
                        "JOBLIB_AZURE_KEY": base64.b64encode(self.key).decode(),
                        "JOBLIB_AZURE_INPUTS": blobs.container_url(self.inputs, "r", life),
                        "JOBLIB_AZURE_OUTPUTS": blobs.container_url(self.outputs, "acw", life),
                    },
                    preparation=self.plan.preparation_command,
                    files=self.plan.ship(blobs, self.inputs, life),
                    lifetime=lease,
                    container=self._container,
                )
            )
            self._job_created = True
            self.cluster.wait_for_node(lambda: self.closed)
            monitor = Monitor(self)
            for name, target in (("joblib_azure-dispatcher", self._dispatch), ("joblib_azure-monitor", monitor.run)):
                thread = threading.Thread(target=self._guarded, args=(target,), name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
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
        self.pool.shutdown(wait=False, cancel_futures=True)
        try:
            self.cluster.check()
            if self._job_created:
                # A job whose infrastructure failed is kept, ended, for its logs; the service removes it in time.
                self.cluster.batch.end_job(self.job, delete=not self.failed)
            for container in (self.inputs, self.outputs):
                self.cluster.blobs.delete_container(container)
        except JoblibAzureError as exc:
            logger.warning("closing session %s: %s", self.job, exc)

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
        call = Call(f"c{next(self._numbers):05d}-{secrets.token_hex(3)}", settings, overlay)
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
            if self._planned(call):
                self.planner.exhaust(call.id)
                self.changed.notify_all()

    def wanted(self, call: Call) -> int:
        """Return how many further delayed calls joblib should dispatch now."""
        with self.changed:
            return self.planner.wanted(call.id) if self._planned(call) and call.failure is None else 0

    def chunk_size(self, call: Call, *, drip: bool) -> int:
        """Return how many delayed calls the next chunk should have; `drip` as in `Planner.chunk_size`."""
        with self.changed:
            return self.planner.chunk_size(call.id, drip=drip) if self._planned(call) else 1

    def _planned(self, call: Call) -> bool:
        return call.id in self.calls and bool(call.function)

    def end_call(self, call: Call) -> None:
        """Forget a call; what of it still runs is of no use any more and is ended."""
        with self.changed:
            if self._planned(call):
                cost = self.planner.cost(call.id)
                if cost is not None:
                    self._costs[call.function] = cost
                self.planner.close_call(call.id)
            if self.calls.pop(call.id, None) is None:
                return
            left = [entry for entry in self.under_way.values() if entry.call is call and entry.remaining]
            self.idle_since = time.monotonic()
            self._nodes_asked = self._nodes_asked if self.calls else 0
            self.changed.notify_all()
        call.close()
        if left and not self.closed:
            self.pool.submit(self._abort, call, left)

    def _abort(self, call: Call, entries: Iterable[UnderWay]) -> None:
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

    # from chunks to tasks -------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        while True:
            with self.changed:
                while not self.closed:
                    now = time.monotonic()
                    bundles = self.planner.plan(now)
                    if bundles:
                        break
                    due = self.planner.next_flush(now)
                    self.changed.wait(None if due is None else max(0.0, due - now))
                if self.closed:
                    return
                calls = {bundle.call: self.calls[bundle.call] for bundle in bundles}
            self._submit([(bundle, calls[bundle.call]) for bundle in bundles])

    def _submit(self, bundles: list[tuple[Bundle, Call]]) -> None:
        specs: list[TaskSpec] = []
        uploads: list[concurrent.futures.Future[None]] = []
        entries: list[UnderWay] = []
        for bundle, call in bundles:
            encoded = self._encode(bundle, call)
            if not encoded:
                with self.changed:
                    self.planner.finish(bundle.id)
                continue
            task = call.task_id(encoded)
            entry = UnderWay(bundle, call, task, time.monotonic(), {chunk for chunk, _ in encoded})
            uploads.append(self.pool.submit(self._upload, entry, encoded))
            specs.append(self._task_spec(entry))
            entries.append(entry)
        for upload in uploads:
            upload.result()
        with self.changed:
            self.under_way.update((entry.task, entry) for entry in entries)
            self.tasks_added += len(entries)
        if specs:
            self.cluster.batch.add_tasks(self.job, [*specs, *self.plan.later_tasks()])
        self._ask_for_nodes()
        with self.changed:
            late = [entry for entry in entries if entry.call.closed]
            self.changed.notify_all()
        for call in {entry.call for entry in late}:
            # Aborted between the plan and now, so that its abort did not see these tasks.
            self.pool.submit(self._abort, call, [entry for entry in late if entry.call is call])

    def _ask_for_nodes(self) -> None:
        """Have the nodes that the tasks fill, where the pool scales: its formula sees tasks minutes later."""
        config = self.cluster.config
        with self.changed:
            slots = sum(entry.bundle.slots for entry in self.under_way.values())
            nodes = min(config.nodes, -(-slots // config.max_tasks_per_node))
            if config.fixed or nodes <= self._nodes_asked:
                return
            self._nodes_asked = nodes
        # A thread of its own: the service may make it wait for half a minute, and the interpreter's exit waits for
        # those of a pool before any hook can close the session.
        threading.Thread(target=self._demand, args=(nodes,), name="joblib_azure-demand", daemon=True).start()

    def _demand(self, nodes: int) -> None:
        try:
            self.cluster.demand(nodes, cancelled=lambda: self.closed)
        except JoblibAzureError as exc:
            # There is a node already; the calls go on with those that the formula gives.
            logger.warning("asking for %d node(s) of %r: %s", nodes, self.cluster, exc)

    def _encode(self, bundle: Bundle, call: Call) -> list[tuple[int, EncodedChunk]]:
        encoded = []
        for chunk in bundle.chunks:
            batch = call.batch(chunk)
            if batch is None:
                continue
            try:
                encoded.append((chunk, call.encoder.chunk(batch)))
            except TaskPicklingError as exc:
                call.deliver(chunk, exc)
        return encoded

    def _upload(self, entry: UnderWay, encoded: list[tuple[int, EncodedChunk]]) -> None:
        call, blobs = entry.call, self.cluster.blobs
        life = timedelta(seconds=max(self.cluster.config.job_lease, 86400))
        manifest = call.manifest(encoded, lambda digest: blobs.blob_url(BUFFERS, digest, life))
        manifest["needs"] = environment.client_needs(frozenset(call.encoder.modules), self.plan.elsewhere)
        data, buffers = write_bundle(self.key, f"{self.job}/{entry.task}", manifest, encoded, call.encoder)
        self._buffers.store((*call.overlay, *buffers.values()))
        blobs.put(self.inputs, f"bundles/{entry.task}", data)

    def forget_buffers(self, digests: Iterable[str]) -> None:
        """A node did not find these in storage: store them again when they are next needed."""
        self._buffers.forget(digests)

    def _task_spec(self, entry: UnderWay) -> TaskSpec:
        bundle, settings = entry.bundle, entry.call.settings
        threads = settings.inner_max_num_threads
        workers = self.capacity.workers_per_slot if bundle.slots == 1 else self.capacity.cores_per_node
        variables = {
            **settings.environment,
            "JOBLIB_AZURE_WORKERS": str(workers),
            "JOBLIB_AZURE_WIDTH": str(bundle.width),
        }
        if threads is not None:
            variables["JOBLIB_AZURE_THREADS"] = str(threads)
        return TaskSpec(
            id=entry.task,
            command=self.plan.task_command,
            environment=variables,
            required_slots=bundle.slots,
            display_name=f"{bundle.calls} call(s) of {entry.call.function}"[:1024],
            container=self._container,
        )

    # from the monitor -----------------------------------------------------------------------------------

    def observe(self, entry: UnderWay, calls: int, seconds: float) -> None:
        """Take in what a worker measured."""
        with self.changed:
            entry.seconds += seconds
            if self._planned(entry.call):
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
