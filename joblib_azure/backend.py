"""joblib's ``ParallelBackendBase`` on one side, a `Session` on the other, nothing else.

The way of the data begins and ends here::

    Parallel ── BatchedCalls ──► submit ──► Call.add, Session.ready ──► planner ──► …
    Parallel ◄── retrieve_result_callback ◄── the call's own thread ◄── Call.deliver ◄── …

The registered backend is a template: one object may be active in a context while several Parallel objects
run, and joblib's ``abort_everything`` and ``terminate`` do not say for whom. So `configure` of the template
hands each Parallel a child of its own (DESIGN.md, decision 7).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import cloudpickle
from joblib.parallel import BatchedCalls, FallbackToBackend, ParallelBackendBase, SequentialBackend, get_active_backend

from .bundler import CallSettings
from .call import Call, ChunkFuture
from .cluster import Cluster
from .codec import PROTOCOL
from .config import ClusterConfig
from .dispatch import Pump, describe_function, expected, speaker
from .errors import SessionClosedError
from .history import History
from .labels import check_name
from .node.limits import THREAD_VARIABLES
from .node.nested import NestedBackend
from .progress import SILENT, Reporter, reporter, wish_of
from .registry import resolve_cluster, session_for
from .resources import Resources, Sources, read
from .session import Session

logger = logging.getLogger(__name__)

_asking = threading.local()
#: joblib's ``verbose`` from which on progress is more than a line.
_DETAIL = 5


def _active() -> AzureBackend | None:
    """Return the backend of the surrounding ``parallel_config("azure", cluster=…)``, if there is one."""
    # Where "azure" is joblib's default backend, joblib makes one to answer with, and that one must not ask again.
    if getattr(_asking, "asked", False):
        return None
    _asking.asked = True
    try:
        active = get_active_backend()[0]
    finally:
        _asking.asked = False
    return active if isinstance(active, AzureBackend) else None


class AzureBackend(ParallelBackendBase):  # type: ignore[misc]
    """Run joblib's Parallel calls on a pool of Azure Batch nodes.

    Parameters
    ----------
    cluster : str or os.PathLike or ClusterConfig or Cluster, optional
        ``"local"`` for a cluster of this machine's own processes, the path of a ``cluster.json``, a
        configuration, or a cluster; by default what the variable ``JOBLIB_AZURE_CLUSTER`` names.
    nesting_level : int, optional
        Set by joblib.
    inner_max_num_threads : int, optional
        Threads that BLAS and OpenMP may use in a worker; by default the cores that its call has.
    initializer, initargs : callable and tuple, optional
        Called once in every worker, before its first call.
    job : str, optional
        A label for this script: what its calls return is kept in storage, and where it is run again with that label,
        after its client died or was interrupted, what had been computed is not computed again. A call is recognised
        by its place in the script, its function's code and its arguments; one that has changed runs again.
        ``joblib-azure job delete LABEL`` removes what is kept; nobody deletes it before ``keepDays`` are over.
    resource_files : path, URL, sequence of these or mapping of str to these, optional
        Files and folders of this machine, and URLs, that calls find in the folder in which they run: each under its
        name, or under the path that a mapping gives it. They are read-only: the tasks of a node share them.
    inputs : str, sequence of str or mapping of str to str, optional
        ``"container"`` or ``"container/prefix"``: blobs of the storage account that they find there.
    progress : bool, optional
        Whether to show what is waited for and how far the calls are. By default the variable
        ``JOBLIB_AZURE_PROGRESS`` says so (1 or 0), and else it is shown on a terminal and in a notebook.

    Raises
    ------
    ConfigurationError
        Where the cluster's configuration is wrong, or a resource file is not there. Nothing was created then.

    Examples
    --------
    >>> from joblib import Parallel, delayed, parallel_config
    >>> import joblib_azure
    >>> with parallel_config("azure", cluster="local"):  # doctest: +SKIP
    ...     Parallel()(delayed(abs)(-i) for i in range(3))
    [0, 1, 2]
    """

    # parallel_config("azure") sets no n_jobs; with the base class's 1 everything would silently run here.
    default_n_jobs = -1
    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    supports_sharedmem = False
    uses_threads = False

    def __init__(
        self,
        cluster: str | os.PathLike[str] | ClusterConfig | Cluster | None = None,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        job: str | None = None,
        progress: bool | None = None,
        resource_files: Sources | None = None,
        inputs: Sources | None = None,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        resources: Resources | None = None
        if cluster is None:
            # Parallel(backend="azure") inside parallel_config("azure", cluster=…) means that cluster.
            active = _active()
            if active is not None:
                cluster, job = active.cluster, active.job if job is None else job
                resources = active.resources if resource_files is None and inputs is None else None
        self.cluster: Cluster = resolve_cluster(cluster)
        self.initializer, self.initargs = initializer, initargs
        self.job: str | None = None if job is None else check_name(job, "job")
        self.resources: Resources = read(resource_files, inputs) if resources is None else resources
        self._progress = wish_of(progress)
        self._reporter: Reporter = SILENT
        self.parallel: Any = None
        self._is_template = True
        self._settings: CallSettings | None = None
        self._session: Session | None = None
        self._call: Call | None = None
        self._pump: Pump | None = None
        self._nested: NestedBackend | None = None
        self._failure: BaseException | None = None

    def __repr__(self) -> str:
        return f"AzureBackend(cluster={self.cluster!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled into a call, it means there what it says here: all the cores at hand.
        return NestedBackend, ((self.nesting_level or 0) + 1, self.inner_max_num_threads)

    # what joblib asks before a call ---------------------------------------------------------------------

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return the number of workers, that is cores of the whole pool, for `n_jobs`.

        A positive `n_jobs` is kept: that many calls run at once. −1 is every core of the pool's upper bound,
        and 2 at the least, since joblib runs calls of one worker on the client.

        Raises
        ------
        ValueError
            For 0.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs > 0:
            return n_jobs
        workers = self.cluster.config.workers
        if n_jobs == -1:
            return max(2, workers)
        return max(1, workers + 1 + n_jobs)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        max_nbytes: int | None = None,
        mmap_mode: str | None = "r",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        **ignored: Any,
    ) -> int:
        """Give `parallel` a backend of its own; nothing is created yet."""
        workers = self.effective_n_jobs(n_jobs)
        if workers == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        if self._is_template:
            child = AzureBackend(
                self.cluster, self.nesting_level, self.inner_max_num_threads, self.initializer, self.initargs, self.job
            )
            child._progress, child.resources = self._progress, self.resources
            child._is_template = False
            raise FallbackToBackend(child)
        self.parallel = parallel
        if initializer is None:
            initializer, initargs = self.initializer, self.initargs
        self._settings = CallSettings(
            n_jobs=workers,
            max_nbytes=max_nbytes,
            mmap_mode=mmap_mode,
            inner_max_num_threads=self.inner_max_num_threads,
            path=(),
            environment={name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ},
            return_as=getattr(parallel, "return_as", "list"),
            timed=getattr(parallel, "timeout", None) is not None,
            initializer=None if initializer is None else cloudpickle.dumps((initializer, initargs), PROTOCOL),
        )
        return workers

    def get_nested_backend(self) -> tuple[ParallelBackendBase, int | None]:
        """Return the backend for Parallel calls inside a call: always the same, so that it travels once."""
        if self._nested is None:
            self._nested = NestedBackend((self.nesting_level or 0) + 1)
        return self._nested, None

    # a call ---------------------------------------------------------------------------------------------

    def start_call(self) -> None:
        """Open the session, if need be, and wait for its first node.

        It never raises, since joblib does not call it under its protection: whatever fails here, fails through
        the first `submit`'s future, an interrupt too.
        """
        self._failure = None
        try:
            self._reporter = shown = self._new_reporter()
            # A wait that nobody watches says so in the log.
            with contextlib.nullcontext() if shown is SILENT else self.cluster.watched(shown):
                self._session, self._call = self._begin()
        except BaseException as exc:
            self._reporter.end()
            logger.debug("starting a call on %r failed", self.cluster, exc_info=True)
            self._failure = exc
            return
        self._call.say = speaker(self.parallel)
        self._call.total = expected(self.parallel)
        if shown is not SILENT:
            counters = self._session.counters
            shown.running(partial(counters.look, self._call, counters.mark()))
        if Pump.applies_to(self.parallel):
            session, call = self._session, self._call
            self._pump = Pump(
                self.parallel,
                lambda: session.wanted(call),
                pouring=lambda: session.work.pour(call),
                exhausted=lambda: session.work.exhaust(call),
            )

    def _new_reporter(self) -> Reporter:
        return reporter(
            self._progress,
            f"cluster {self.cluster.config.name}",
            detail=getattr(self.parallel, "verbose", 0) >= _DETAIL,
            lasting=getattr(self.parallel, "return_as", "list") != "list",
        )

    def _begin(self) -> tuple[Session, Call]:
        settings = self._settings
        if settings is None:
            raise RuntimeError("configure() comes before start_call()")
        settings = CallSettings(**{**vars(settings), "path": self.cluster.python_path})
        while True:
            session = session_for(self.cluster, self.job or "", self.resources)
            try:
                return session, session.start_call(settings)
            except SessionClosedError:
                # It ended by idleness between the two lines; the next one is fresh.
                time.sleep(0.01)

    def submit(self, func: Any, callback: Callable[[Any], Any] | None = None) -> ChunkFuture:
        """Queue one chunk; its future fires `callback` once, on the call's own thread."""
        if self._session is None or self._call is None:
            self._call = self._call or self._failed_call()
            return self._call.add(func, callback)
        if self._session.history is None:
            future = self._call.add(func, callback)
            self._session.work.ready(self._call, future.chunk, len(func), self._function(func))
        else:
            future = self._submit_unknown(self._session, self._call, self._session.history, func, callback)
        if self._pump is not None:
            self._pump.take_over()
        return future

    def _submit_unknown(
        self, session: Session, call: Call, history: History, func: Any, callback: Callable[[Any], Any] | None
    ) -> ChunkFuture:
        """Queue what no earlier run of the script has computed of a chunk."""
        known, trace = history.recall(call, func.items)
        left = [item for place, item in enumerate(func.items) if place not in known]
        if not left:
            future = call.add(None, callback, known=known)
            session.deliver_known(call, future.chunk, self._function(func))
            return future
        rest = BatchedCalls(left, (func._backend, func._n_jobs), None, func._pickle_cache) if known else func
        future = call.add(rest, callback, known=known, trace=trace)
        session.work.ready(call, future.chunk, len(left), self._function(func))
        return future

    def _function(self, batch: Any) -> str:
        """Return the name of the call's first function; to find it out costs as much as to dispatch a chunk."""
        return (self._call and self._call.function) or describe_function(batch)

    def _failed_call(self) -> Call:
        """Return a call whose futures all fail with what `start_call` met."""
        if self._settings is None:
            raise RuntimeError("configure() comes before submit()")
        call = Call("c00000", self._settings)
        call.fail(self._failure or SessionClosedError("the call was ended already"))
        return call

    def retrieve_result_callback(self, out: ChunkFuture) -> Any:
        """Return a chunk's results or raise its exception. Downloaded and authenticated already."""
        return out.result()

    def compute_batch_size(self) -> int:
        """Return how many calls a chunk should have, from what the workers measured."""
        if self._session is None or self._call is None:
            return 1
        # A default pre_dispatch is the pump's, which queues plenty; any other is joblib's, which lets few calls out.
        return self._session.work.chunk_size(self._call, drip=self._pump is None)

    def batch_completed(self, batch_size: int, duration: float) -> None:
        """Nothing: `duration` includes the queue. What the workers measured arrives with the outcomes."""

    # its end --------------------------------------------------------------------------------------------

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """End the Parallel call's tasks. The session stays, so a further call begins at once."""
        self._end()

    def stop_call(self) -> None:
        """The Parallel call is over."""
        self._end()

    def terminate(self) -> None:
        """The Parallel object is done with its backend; the session stays for the next one."""
        self._end()

    def _end(self) -> None:
        self._reporter.end()
        pump, self._pump = self._pump, None
        if pump is not None:
            pump.stop()
        session, call = self._session, self._call
        self._session = self._call = None
        if session is not None and call is not None:
            session.end_call(call)
        elif call is not None:
            call.close()
