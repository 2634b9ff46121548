"""From bundles to Batch tasks: what the planner plans is encoded, uploaded and added.

::

    planner ─► encode ─► upload (threads: buffers, then the bundle) ─► add in collections ─► Batch
                             ▲                   │
                             └── changed meanwhile: encode anew

One thread plans, encodes and adds; it waits for no upload, so that what is ready goes out while something large is
still on its way, and the next bundles are encoded meanwhile.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING

from . import environment
from .call import Call, UnderWay
from .capacity import Bundle
from .errors import ContentChangedError, JoblibAzureError
from .service import TaskSpec
from .storage import BUFFERS

if TYPE_CHECKING:
    from .codec import EncodedChunk
    from .session import Session

logger = logging.getLogger(__name__)

#: How often a bundle is encoded whose arguments change while they are being sent.
_TRIES = 3
#: Bundles that are uploaded at a time.
_STREAMS = 8


class Submitter:
    """The submitter of one session; `run` is the body of its thread."""

    def __init__(self, session: Session) -> None:
        self._session = session
        #: Bundles whose uploads have ended, with what went wrong; guarded by the session's lock.
        self._uploaded: list[tuple[UnderWay, BaseException | None]] = []
        self._pool = concurrent.futures.ThreadPoolExecutor(_STREAMS, thread_name_prefix="joblib_azure-upload")

    def close(self) -> None:
        """Upload nothing any more; `run` ends as its session does."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def run(self) -> None:
        """Submit what is to be submitted until the session is closed."""
        session = self._session
        while True:
            with session.changed:
                while not session.closed:
                    now = time.monotonic()
                    bundles = session.planner.plan(now)
                    if bundles or self._uploaded:
                        break
                    due = session.planner.next_flush(now)
                    session.changed.wait(None if due is None else max(0.0, due - now))
                if session.closed:
                    return
                calls = {bundle.call: session.calls[bundle.call] for bundle in bundles}
                uploaded, self._uploaded = self._uploaded, []
            if uploaded:
                self._add(uploaded)
            for bundle in bundles:
                self._begin(bundle, calls[bundle.call])

    # encode and upload ----------------------------------------------------------------------------------

    def _begin(self, bundle: Bundle, call: Call) -> None:
        session = self._session
        encoded = call.encode(bundle.chunks)
        if not encoded:
            with session.changed:
                session.planner.finish(bundle.id)
            return
        entry = UnderWay(bundle, call, call.task_id(encoded), time.monotonic(), {chunk for chunk, _ in encoded})
        with contextlib.suppress(RuntimeError):  # the session was closed meanwhile
            self._pool.submit(self._upload, entry, encoded)

    def _upload(self, entry: UnderWay, encoded: list[tuple[int, EncodedChunk]]) -> None:
        error: BaseException | None = None
        try:
            self._store(entry, encoded)
        except BaseException as exc:
            error = exc
        with self._session.changed:
            self._uploaded.append((entry, error))
            self._session.changed.notify_all()

    def _store(self, entry: UnderWay, encoded: list[tuple[int, EncodedChunk]]) -> None:
        session, call = self._session, entry.call
        blobs = session.cluster.blobs
        for left in reversed(range(_TRIES)):
            needs = environment.client_needs(call.modules, session.plan.elsewhere)
            data, buffers = call.bundle(
                session.key,
                f"{session.job}/{entry.task}",
                encoded,
                needs,
                lambda name: blobs.blob_url(BUFFERS, name, session.life),
            )
            try:
                session.buffers.store(buffers.values())
                break
            except ContentChangedError:
                if not left:
                    raise
                encoded = call.encode([chunk for chunk, _ in encoded], anew=True)
        blobs.put(session.inputs, f"bundles/{entry.task}", data)

    # add ------------------------------------------------------------------------------------------------

    def _add(self, uploaded: list[tuple[UnderWay, BaseException | None]]) -> None:
        session = self._session
        entries: list[UnderWay] = []
        for entry, error in uploaded:
            if error is None:
                entries.append(entry)
            elif isinstance(error, ContentChangedError):
                for chunk in sorted(entry.remaining):
                    entry.call.deliver(chunk, error)
                with session.changed:
                    session.planner.finish(entry.bundle.id)
            else:
                raise error
        if not entries:
            return
        with session.changed:
            session.under_way.update((entry.task, entry) for entry in entries)
            session.tasks_added += len(entries)
        specs = [self._task_spec(entry) for entry in entries]
        session.cluster.batch.add_tasks(session.job, [*specs, *session.plan.later_tasks()])
        self._ask_for_nodes()
        with session.changed:
            late = [entry for entry in entries if entry.call.closed]
            session.changed.notify_all()
        for call in {entry.call for entry in late}:
            # Aborted between the plan and now, so that its abort did not see these tasks.
            session.pool.submit(session.abort, call, [entry for entry in late if entry.call is call])

    def _task_spec(self, entry: UnderWay) -> TaskSpec:
        bundle, settings, session = entry.bundle, entry.call.settings, self._session
        threads, capacity = settings.inner_max_num_threads, session.capacity
        workers = capacity.workers_per_slot if bundle.slots == 1 else capacity.cores_per_node
        variables = {
            **settings.environment,
            "JOBLIB_AZURE_WORKERS": str(workers),
            "JOBLIB_AZURE_WIDTH": str(bundle.width),
        }
        if threads is not None:
            variables["JOBLIB_AZURE_THREADS"] = str(threads)
        return TaskSpec(
            id=entry.task,
            command=session.plan.task_command,
            environment=variables,
            required_slots=bundle.slots,
            display_name=f"{bundle.calls} call(s) of {entry.call.function}"[:1024],
            container=session.container,
        )

    def _ask_for_nodes(self) -> None:
        """Have the nodes that the tasks fill, where the pool scales: its formula sees tasks minutes later."""
        session = self._session
        config = session.cluster.config
        with session.changed:
            slots = sum(entry.bundle.slots for entry in session.under_way.values())
            nodes = min(config.nodes, -(-slots // config.max_tasks_per_node))
            if config.fixed or nodes <= session.nodes_asked:
                return
            session.nodes_asked = nodes
        # A thread of its own: the service may make it wait for half a minute, and the interpreter's exit waits for
        # those of a pool before any hook can close the session.
        threading.Thread(target=self._demand, args=(nodes,), name="joblib_azure-demand", daemon=True).start()

    def _demand(self, nodes: int) -> None:
        session = self._session
        try:
            session.cluster.demand(nodes, cancelled=lambda: session.closed)
        except JoblibAzureError as exc:
            # There is a node already; the calls go on with those that the formula gives.
            logger.warning("asking for %d node(s) of %r: %s", nodes, session.cluster, exc)
