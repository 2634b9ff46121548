"""From bundles to Batch tasks: what the planner plans is encoded, uploaded and added.

::

    planner ─► encode ─► upload the bundle ─► add its task, with others ─► Batch
                              └─► upload the buffers that storage lacks ┄┄ the task waits for them

A node prepares itself and its task starts while the buffers are on their way; the bundle says which are. One thread
plans, encodes and adds; it waits for no upload, and where it encodes for long, those that upload add.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import threading
import time
from typing import TYPE_CHECKING

from .call import Call, UnderWay
from .capacity import COLLECTION, Bundle
from .ending import ending
from .errors import ContentChangedError, JoblibAzureError
from .service import TaskSpec
from .takeover import put_journal

if TYPE_CHECKING:
    from .codec import EncodedChunk
    from .session import Session

logger = logging.getLogger(__name__)

#: How often a bundle is encoded whose arguments change while they are being sent.
_TRIES = 3
#: Seconds for which what is uploaded waits for what may be at any moment.
_GATHER = 0.005
#: The same while further bundles are being encoded.
_LONG = 0.03
#: Or this part of the time for which bundles have come one after the other, where that is more: the first wave of a
#: large pool would else be as many requests as it has bundles.
_GROWTH = 0.2
#: And where every slot has a task already, in any case: then more go in one request.
_CALM = 2.0
#: Then it waits, whatever else comes, for this part of the time in which the slots use up what waits in the service, up
#: to so many seconds.
_SLACK_PART, _MOST_SLACK = 0.5, 30.0
#: Bundles that are uploaded at a time, and those that are encoded at most and wait for that: each is a copy of what its
#: calls are given, and what lives for long is gone through by Python's collector again and again.
_STREAMS, _ENCODED = 8, 16


class Submitter:
    """The submitter of one session; `run` is the body of its thread."""

    def __init__(self, session: Session) -> None:
        self._session = session
        # Guarded by the session's lock.
        self._uploading = 0
        self._ready: list[UnderWay] = []
        self._ready_since = 0.0
        self._failed: list[tuple[UnderWay, BaseException]] = []
        #: Whether bundles are being encoded.
        self._encoding = False
        #: When the first of those was that were under way from here to the service without a pause.
        self._wave = 0.0
        self._room = threading.Semaphore(_STREAMS + _ENCODED)
        self._pool = concurrent.futures.ThreadPoolExecutor(_STREAMS, thread_name_prefix="joblib_azure-upload")

    def close(self) -> None:
        """Upload nothing any more; `run` ends as its session does."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def run(self) -> None:
        """Submit what is to be submitted until the session is closed."""
        session, work = self._session, self._session.work
        while True:
            with work.changed:
                while not session.closed:
                    work.told, now = False, time.monotonic()
                    bundles = work.planner.plan(now)
                    ready = self._take_ready(now)
                    if bundles or ready or self._failed:
                        break
                    work.changed.wait(self._rest(now))
                if session.closed:
                    return
                calls = {bundle.call: work.calls[bundle.call] for bundle in bundles}
                told = [(call, self._describe(bundle)) for bundle in bundles if (call := calls[bundle.call]).say]
                failed, self._failed = self._failed, []
            if ready:
                self._add(ready)
            for entry, error in failed:
                self._recover(entry, error)
            for call, text in told:
                call.tell(text)
            self._encoding = True
            for bundle in bundles:
                self._begin(bundle, calls[bundle.call])
                self._add(self._overdue())
            self._encoding = False

    def _waiting(self) -> int:
        """Return how many tasks more the service has than run at once, or below 0; with the session's lock held."""
        under_way = self._session.work.under_way
        oldest = next(iter(under_way.values()), None)
        if oldest is not None and oldest.call.closed:
            return -1  # such tasks are being ended, and leave their slots at once
        return len(under_way) - self._session.capacity.lanes

    def _slots_wait(self) -> bool:
        """Tell whether a slot may be free for what is not added yet; with the session's lock held."""
        return self._waiting() < 0

    def _patience(self, now: float) -> float:
        """Return for how long what is ready waits for more that comes; with the session's lock held."""
        if not self._slots_wait():
            return _CALM
        return max(_GATHER, min(_GROWTH * (now - self._wave), _CALM))

    def _slack(self) -> float:
        """Return for how long what is ready may wait whatever comes; with the session's lock held."""
        entry = self._ready[0]
        cost, waiting = self._session.work.cost(entry.call), self._waiting()
        if waiting <= 0 or cost is None:
            return 0.0
        return min(_SLACK_PART * entry.bundle.seconds(cost) * waiting / self._session.capacity.lanes, _MOST_SLACK)

    def _due(self, now: float, *, encoding: bool = False) -> float:
        """Return when what is ready is to be added, at the latest; with the session's lock held.

        While bundles are being encoded more comes.
        """
        patience = max(self._patience(now), _LONG if encoding else 0.0)
        coming = encoding or self._uploading or (patience >= _CALM and self._session.work.planner.pours(now))
        return self._ready_since + max(self._slack(), patience if coming else 0.0)

    def _take_ready(self, now: float, *, encoding: bool = False) -> list[UnderWay]:
        """Take what is to be added now: full requests, or what has waited long enough; with the lock held."""
        if not self._ready:
            return []
        count = len(self._ready) // COLLECTION * COLLECTION
        if not count and now < self._due(now, encoding=encoding):
            return []
        count = count or len(self._ready)
        ready, self._ready = self._ready[:count], self._ready[count:]
        self._ready_since = now
        return ready

    def _rest(self, now: float) -> float | None:
        """Return after how long there may be something to do without a further event; with the session's lock held."""
        planner = self._session.work.planner
        dues = [due for due in (planner.next_flush(now),) if due is not None]
        if self._ready:
            # Nobody says that chunks pour in no more.
            soon = self._ready_since + self._slack()
            dues.append(max(now + _GATHER, soon) if planner.pours(now) else self._due(now))
        return max(0.0, min(dues) - now) if dues else None

    def _overdue(self) -> list[UnderWay]:
        """Take what is uploaded where further bundles are encoded for long: its slots need not wait for those."""
        with self._session.work.changed:
            return self._take_ready(time.monotonic(), encoding=True) if self._encoding else []

    def _describe(self, bundle: Bundle) -> str:
        """Say, as joblib does of its batches, why the bundle is as large as it is; with the session's lock held."""
        planner = self._session.work.planner
        cost = planner.cost(bundle.call)
        if cost is None:
            return f"The calls' duration is not known yet. Setting bundle_size={bundle.calls}."
        return (
            f"A Batch task costs {planner.task_cost:.2f}s beside its calls ({cost.seconds:.2g}s each). "
            f"Setting bundle_size={bundle.calls}."
        )

    # encode and upload ----------------------------------------------------------------------------------

    def _begin(self, bundle: Bundle, call: Call) -> None:
        work = self._session.work
        # Bounded by the uploads' deadlines.
        while not self._room.acquire(timeout=_LONG):
            self._add(self._overdue())
            if self._session.closed:
                return
        encoded = call.encode(bundle.chunks)
        if not encoded:
            self._room.release()
            with work.changed:
                work.planner.finish(bundle.id)
            return
        entry = UnderWay(bundle, call, call.task_id(encoded), time.monotonic(), {chunk for chunk, _ in encoded})
        with work.changed:
            if not (self._uploading or self._ready):
                self._wave = time.monotonic()
            self._uploading += 1
        with contextlib.suppress(RuntimeError):  # the session was closed meanwhile
            self._pool.submit(self._upload, entry, encoded)

    def _upload(self, entry: UnderWay, encoded: list[tuple[int, EncodedChunk]]) -> None:
        session, call = self._session, entry.call
        work = session.work
        store = session.buffers
        try:
            try:
                buffers = session.batch_job.put_bundle(
                    call.bundler, entry.task, encoded, store.__contains__, streams=work.streams
                )
                traces = {chunk: call.traces[chunk] for chunk, _ in encoded if chunk in call.traces}
                if traces:
                    put_journal(session.batch_job, entry.task, call.id, call.number, traces)
            finally:
                self._room.release()
                with work.changed:
                    self._uploading -= 1
            with work.changed:
                self._ready_since = self._ready_since if self._ready else time.monotonic()
                self._ready.append(entry)
                # In between nothing changes for whoever adds: to wake it costs as much as to store the bundle.
                if not (1 < len(self._ready) < COLLECTION and self._uploading) or self._slots_wait():
                    work.changed.notify_all()
            self._add(self._overdue())
            if any(name not in store for name in buffers):
                store.store(buffers.values(), lambda: self._is_wanted(call))
                with work.changed:
                    work.steps += 1
        except BaseException as exc:
            with work.changed:
                self._failed.append((entry, exc))
                work.changed.notify_all()

    def _is_wanted(self, call: Call) -> bool:
        # The interpreter's exit waits for the threads of pools before any hook can close the session.
        return not (call.closed or self._session.closed) and not ending()

    # add ------------------------------------------------------------------------------------------------

    def _add(self, entries: list[UnderWay]) -> None:
        session, work = self._session, self._session.work
        if not entries:
            return
        with work.changed:
            wanted = []
            for entry in entries:
                if entry.call.closed:
                    work.planner.finish(entry.bundle.id)
                    continue
                entry.sent, entry.added_time = True, time.time()
                work.under_way[entry.task] = entry
                wanted.append(entry)
            entries = wanted
            work.tasks_added += len(entries)
            work.steps += 1
        if not entries:
            return
        specs = [self._task_spec(entry) for entry in entries]
        session.cluster.batch.add_tasks(session.job, [*specs, *session.plan.later_tasks()])
        self._ask_for_nodes()
        with work.changed:
            late = [entry for entry in entries if entry.call.closed]
            work.changed.notify_all()
        for call in {entry.call for entry in late}:
            # Aborted between the plan and now, so that its abort did not see these tasks.
            session.pool.submit(session.abort, call, [entry for entry in late if entry.call is call])

    def _recover(self, entry: UnderWay, error: BaseException) -> None:
        """Send a bundle anew whose arguments changed while they were being sent; anything else ends the session."""
        session, call = self._session, entry.call
        work = session.work
        if isinstance(error, concurrent.futures.CancelledError) and not self._is_wanted(call):
            return
        if not isinstance(error, ContentChangedError):
            raise error
        again = work.attempts(entry) < _TRIES
        with work.changed:
            work.under_way.pop(entry.task, None)
            if all(bundle.id != entry.bundle.id for bundle in work.planner.bundles):
                return  # the monitor was first, or the call is over
            chunks = [chunk for chunk in entry.bundle.chunks if chunk in entry.remaining] if again else []
            work.planner.requeue(entry.bundle.id, chunks)
        if entry.sent:  # its task waits for what will not come
            session.pool.submit(session.cancel, entry)
        if again:
            call.forget()
            return
        for chunk in sorted(entry.remaining):
            call.deliver(chunk, error)

    def _task_spec(self, entry: UnderWay) -> TaskSpec:
        bundle, call = entry.bundle, entry.call
        name = f"{bundle.calls} call(s) of {call.function}"
        return self._session.batch_job.task_spec(entry.task, call.bundler, bundle, display_name=name)

    def _ask_for_nodes(self) -> None:
        """Have the nodes that the tasks fill, where the pool scales: its formula sees tasks minutes later."""
        session, work = self._session, self._session.work
        config = session.cluster.config
        with work.changed:
            slots = sum(entry.bundle.slots for entry in work.under_way.values())
            nodes = min(config.nodes, -(-slots // config.max_tasks_per_node))
            if config.fixed or nodes <= work.nodes_asked:
                return
            work.nodes_asked = nodes
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
