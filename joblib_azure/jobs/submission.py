"""Sends a job's calls as they come, in bounded memory: once `submit` returns, the service and storage hold it all.

::

    calls ─► bundles ─► encode, here ─► upload, side by side ─► add their tasks, in collections ─► the service
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, NamedTuple

from joblib.parallel import BatchedCalls

from .. import labels
from ..batchjob import BatchJob
from ..buffers import BufferStore
from ..bundler import Bundler, CallSettings
from ..capacity import COLLECTION, Bundle
from ..cluster import Cluster
from ..codec import EncodedChunk
from ..dispatch import describe_function
from ..errors import JoblibAzureError, ResourceExistsError
from ..node.nested import NestedBackend
from ..progress import SILENT, Figures, Reporter, reporter, wish_of
from ..registry import last_will
from ..resources import Resources
from ..service import TaskSpec
from ..storage import kept_until
from . import names
from .job import Job
from .names import HEARTBEAT, Description, Keep, OnError
from .outputs import OutputFile, OutputPlan, check_against, look

logger = logging.getLogger(__name__)

#: Bundles whose uploads are under way: what bounds the memory of a submission.
_UPLOADS = 8
#: Seconds that tasks wait for as many as one request adds.
_GATHER = 1.0
#: Bytes of encoded calls, with the buffers that are new, that end a bundle, however many calls it was to have: they are
#: in memory until they are sent.
_LARGEST = 16 << 20
_HASHERS = min(8, os.cpu_count() or 1)


class _Encoded(NamedTuple):
    first: int
    chunks: list[tuple[int, Any]]


class Submission:
    """One submission under way.

    Parameters
    ----------
    cluster : Cluster
    name : str
    settings : CallSettings
    sizes : callable
        Tells how many calls the next bundle has, by how many were sent before it.
    total : int or None
        Calls in all, where that is known.
    retries : int
    task_timeout : timedelta or None
    progress : bool or None
        Whether how far it is is shown; None: where somebody sees it.
    resources : Resources
        Files that the calls are given.
    outputs : tuple of OutputFile
        Files that they leave.
    """

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        settings: CallSettings,
        *,
        sizes: Callable[[int], int],
        total: int | None,
        retries: int,
        task_timeout: timedelta | None,
        progress: bool | None,
        resources: Resources,
        outputs: tuple[OutputFile, ...] = (),
    ) -> None:
        self._cluster, self._name, self._settings = cluster, name, settings
        self._sizes, self._total = sizes, total
        self._retries, self._task_timeout = retries, task_timeout
        self._wish = wish_of(progress)
        self._resources, self._outputs = resources, outputs
        self._call = f"d{secrets.token_hex(4)}"
        self._ready: list[TaskSpec] = []
        self._lock = threading.Lock()
        self._room = threading.Semaphore(_UPLOADS)
        self._failure: list[BaseException] = []
        self._tasks = self._sent = self._beat = 0
        self._added = time.monotonic()
        self._function = ""
        self._names: set[str] = set()

    def run(self, calls: Iterator[Any], life: timedelta, priority: int, on_error: OnError, keep: Keep) -> Job:
        shown = reporter(self._wish, f"job {self._name}", detail=False, lasting=False)
        try:
            # A wait that nobody watches says so in the log.
            with contextlib.nullcontext() if shown is SILENT else self._cluster.watched(shown):
                return self._run(shown, calls, life, priority, on_error, keep)
        finally:
            shown.end()

    def _run(
        self, shown: Reporter, calls: Iterator[Any], life: timedelta, priority: int, on_error: OnError, keep: Keep
    ) -> Job:
        cluster = self._cluster
        self._resources.look(cluster.reach)
        check_against(self._outputs, self._resources)
        if self._outputs:
            look(self._outputs, cluster.reach())
        cluster.open()
        site = self._site = BatchJob(cluster, self._free_id(), life=life, resources=self._resources)
        plan = self._output_plan = OutputPlan(job=site.id, wanted=self._outputs)
        site.prepare()
        until = datetime.now(timezone.utc) + life + timedelta(days=cluster.config.keep_days)
        metadata = names.job_metadata(self._name, on_error=on_error, keep=keep)
        try:
            try:
                site.create(
                    lifetime=life,
                    priority=priority,
                    metadata=metadata,
                    marks=kept_until(until),
                    containers=plan.own,
                )
            except ResourceExistsError as exc:
                site.created = False  # somebody else's of the same name and moment, with his containers
                raise _taken(self._name, site.id) from exc
            self._urls = plan.urls(cluster.blobs, life)
            self._describe(0, complete=False)
            shown.sending(self._figures(cluster.blobs.moved[0]))
            with last_will(self._undo), self._living():
                self._send(calls)
            self._describe(self._sent, complete=True)
            cluster.batch.end_with_tasks(site.id)
        except BaseException:
            if site.created:
                self._undo()
            raise
        self._ask_for_nodes()
        return Job(cluster.connections, cluster.batch.job(site.id))

    def _figures(self, before: int) -> Callable[[], Figures]:
        """Return what tells how many calls were sent, and the bytes that went up since there were `before`."""
        blobs = self._cluster.blobs

        def look() -> Figures:
            return Figures(
                name=f"job {self._name}",
                done=self._sent,
                total=self._total,
                running=None,
                begun=True,
                sent=blobs.moved[0] - before,
            )

        return look

    def _free_id(self) -> str:
        """Return an id for the job: its name's, or the next one where the last job of that name is being deleted."""
        mine = labels.jobs_of(self._cluster.batch, self._name)
        for each in mine:
            if each.state != "deleting":
                raise _taken(self._name, each.id)
        return labels.batch_id(self._name, 1 + max((labels.generation_of(each) for each in mine), default=0))

    def _describe(self, count: int, *, complete: bool) -> None:
        site = self._site
        self._beat += 1
        description = Description(
            call=self._call,
            calls=count,
            tasks=self._tasks,
            complete=complete,
            beat=self._beat,
            function=self._function,
            vm_size=site.cluster.config.vm_size,
            prices=site.cluster.config.prices.to_dict(),
            outputs=self._output_plan.places,
        )
        names.write_description(site.cluster.blobs, site.inputs, site.key, site.id, description)

    @contextlib.contextmanager
    def _living(self) -> Iterator[None]:
        """Add what is ready, and say that the submission lives, however long the next call takes to come."""
        over = threading.Event()

        def live() -> None:
            beaten = time.monotonic()
            while not over.wait(_GATHER):
                try:
                    self._add()
                except BaseException as exc:
                    self._failure.append(exc)
                    return
                if time.monotonic() - beaten > HEARTBEAT:
                    beaten = time.monotonic()
                    try:
                        self._describe(self._sent, complete=False)
                    except JoblibAzureError as exc:
                        logger.warning("job %s: saying that its submission goes on: %s", self._site.id, exc)

        thread = threading.Thread(target=live, name="joblib_azure-submission", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            # Bounded by the deadline of a request: what it writes must not come after the last word.
            thread.join()

    def _undo(self) -> None:
        site = self._site
        batch, blobs = site.cluster.batch, site.cluster.blobs
        containers = (site.inputs, site.outputs, *self._output_plan.own)
        for action in (
            partial(batch.end_job, site.id, delete=True),
            *(partial(blobs.delete_container, container) for container in containers),
        ):
            try:
                action()
            except JoblibAzureError as exc:
                logger.warning("removing job %s, whose submission failed: %s", site.id, exc)

    # ----------------------------------------------------------------------------------------------------

    def _send(self, calls: Iterator[Any]) -> None:
        """Send all calls."""
        store = BufferStore(lambda: self._cluster.blobs)
        with (
            concurrent.futures.ThreadPoolExecutor(_HASHERS, thread_name_prefix="joblib_azure-hash") as hashing,
            concurrent.futures.ThreadPoolExecutor(_UPLOADS, thread_name_prefix="joblib_azure-upload") as uploads,
            contextlib.closing(store),
        ):
            overlay, _ = self._site.plan.look()
            settings = CallSettings(**{**vars(self._settings), "path": self._cluster.python_path})
            by_tasks = self._output_plan.by_tasks(self._urls)
            self._bundler = Bundler(self._call, settings, overlay, map=hashing.map, uploads=by_tasks)
            try:
                for encoded in self._bundles(calls):
                    # Bounded: uploads have deadlines of their own.
                    self._room.acquire()
                    uploads.submit(self._upload, encoded, store)
                    self._sent = encoded.first + len(encoded.chunks)
                    if self._failure:
                        break
                uploads.shutdown(wait=True)
            except BaseException:
                uploads.shutdown(wait=False, cancel_futures=True)
                raise
        if self._failure:
            raise self._failure[0]
        self._add(all_of_them=True)

    def _bundles(self, calls: Iterator[Any]) -> Iterator[_Encoded]:
        """Encode the calls, each a chunk of its own, so that it fails, and is delivered, by itself."""
        nested = (NestedBackend(1), None)
        chunks: list[tuple[int, Any]] = []
        first = size = 0
        previous: Any = None
        for number, call in enumerate(calls):
            batch = BatchedCalls([call], nested)
            self._function = self._function or describe_function(batch)
            encoded = self._bundler.chunk(batch, () if previous is None else (previous,))
            previous = batch
            chunks.append((number, encoded))
            size += len(encoded.data) + self._new_bytes(encoded)
            if len(chunks) >= self._sizes(first) or size >= _LARGEST:
                yield _Encoded(first, chunks)
                chunks, first, size = [], number + 1, 0
        if chunks:
            yield _Encoded(first, chunks)

    def _new_bytes(self, chunk: EncodedChunk) -> int:
        """Return how large those of its buffers are that came with no call before: they are in memory until sent."""
        parts = [each for part in chunk.parts for each in (part.pickle, *part.buffers)]
        new = {each.digest: each.data.nbytes for each in (*chunk.buffers, *parts) if each.digest not in self._names}
        self._names.update(new)
        return sum(new.values())

    def _upload(self, encoded: _Encoded, store: BufferStore) -> None:
        site, count = self._site, len(encoded.chunks)
        try:
            if self._failure:
                return
            task = names.task_id(self._call, encoded.first, count)
            buffers = site.put_bundle(self._bundler, task, encoded.chunks, store.__contains__)
            store.store(buffers.values(), lambda: not self._failure)
            bundle = self._bundle(count)
            display = f"{count} call(s) of {self._function}, from {encoded.first} on"
            spec = site.task_spec(
                task,
                self._bundler,
                bundle,
                display_name=display,
                retries=self._retries,
                timeout=self._task_timeout,
                uploads=self._output_plan.of_task(task, self._urls),
            )
            with self._lock:
                self._ready.append(spec)
            self._add()
        except BaseException as exc:
            self._failure.append(exc)
        finally:
            self._room.release()

    def _bundle(self, count: int) -> Bundle:
        capacity = self._site.capacity
        # Few calls: each has a node to itself, for its nested loops.
        alone = count == 1 and self._total is not None and self._total <= capacity.nodes
        slots = capacity.slots_per_node if alone else 1
        width = 1 if alone else min(capacity.workers_per_slot, count)
        return Bundle(id=0, call=self._call, chunks=(), calls=count, slots=slots, width=width)

    def _add(self, *, all_of_them: bool = False) -> None:
        """Add the tasks whose bundles are stored, once they are many or have waited: a generator may take its time."""
        with self._lock:
            many, late = len(self._ready) >= COLLECTION, time.monotonic() - self._added > _GATHER
            if not self._ready or not (many or late or all_of_them):
                return
            ready, self._ready, self._added = self._ready, [], time.monotonic()
            self._tasks += len(ready)
            later = self._site.plan.later_tasks()
        # The service runs them in the order of their arrival.
        ready.sort(key=lambda spec: spec.id)
        self._site.cluster.batch.add_tasks(self._site.id, [*ready, *later])

    def _ask_for_nodes(self) -> None:
        """Have the nodes that the tasks fill, where the pool scales; its formula sees the tasks minutes later."""
        config = self._cluster.config
        if config.fixed:
            return
        try:
            self._cluster.demand(min(config.nodes, -(-self._tasks // config.max_tasks_per_node)))
        except JoblibAzureError as exc:
            # The job is there; the pool's formula brings nodes too, some minutes later.
            logger.warning("asking for nodes of %r: %s", self._cluster, exc)


def _taken(name: str, id: str) -> ResourceExistsError:
    return ResourceExistsError(
        f"there is a job {name!r} already: `Job.attach({name!r})` has its results, `joblib-azure job delete {name}` "
        "removes it. Or choose another name",
        job=id,
    )
