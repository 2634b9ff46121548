"""One Parallel call as the session sees it: its chunks, their futures and the thread of its callbacks.

The monitor hands outcomes over with `deliver`, which only enqueues; the call's own thread runs joblib's
callbacks. So a callback that is slow, or waits for a lock of its Parallel, holds up nobody else.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .capacity import Bundle
from .codec import Buffer, CallEncoder, EncodedChunk, decode_outcome, write_bundle
from .codec.content import Map
from .errors import CodecError, JoblibAzureError, PackagesError, RemoteTraceback, TaskPicklingError, WorkerDiedError
from .results import Results

logger = logging.getLogger(__name__)

#: Buffers from this size on move by themselves where the user says nothing of it: joblib's own ``max_nbytes``.
THRESHOLD = 1 << 20
#: Other chunks that are looked at for what a chunk has in common with them.
_BESIDE = 2


@dataclass(frozen=True, kw_only=True)
class CallSettings:
    """What a Parallel call asks for.

    Parameters
    ----------
    n_jobs : int
        Chunks that may run at once, at least 2.
    max_nbytes : int or None
        Buffers of at least this many bytes move by themselves, once, and are mapped on the node. None: each call
        gets copies of its own there, as it would at home; they still move once.
    mmap_mode : str or None
        How they are mapped on the node.
    inner_max_num_threads : int or None
        Threads of BLAS and OpenMP in a worker.
    path : tuple of str
        Further entries of ``sys.path`` on the node.
    environment : mapping
        Variables for the calls: the limits of threads that the user set here.
    initializer : bytes or None
        Pickle of a function and its arguments, called once in every worker before its first call.
    return_as : str
        How joblib hands the results over: ``list``, ``generator`` or ``generator_unordered``.
    """

    n_jobs: int
    max_nbytes: int | None
    mmap_mode: str | None
    inner_max_num_threads: int | None
    path: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    initializer: bytes | None = None
    return_as: str = "list"

    @property
    def threshold(self) -> int:
        """Bytes from which on a buffer moves by itself."""
        return THRESHOLD if self.max_nbytes is None else self.max_nbytes


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A chunk's authenticated outcome: its head, its pickle and where it was made.

    Parameters
    ----------
    head : dict
    body : bytes
        The pickle; empty where `results` has it.
    job, task : str
    results : Results, optional
        What is fetched when it is consumed.
    raised : tuple, optional
        What a call raised, and its traceback, where that was too large for the head's record.
    """

    head: dict[str, Any]
    body: bytes | memoryview
    job: str
    task: str
    results: Results | None = None
    raised: Any = None

    def fetched(self) -> Outcome:
        """Return the outcome with what its `value` needs at hand; may take its time."""
        if self.results is None or self.head["ok"]:
            return self
        return replace(self, raised=next(iter(self.results)), results=None)

    def value(self) -> Any:
        """Return the results, or raise what the call raised with the remote traceback as its cause."""
        if "note" in self.head:
            _warn(str(self.head["note"]))
        if "refused" in self.head:
            raise PackagesError(str(self.head["refused"]), job=self.job, task=self.task)
        if "died" in self.head:
            raise WorkerDiedError(
                f"a call killed its worker: {self.head['died']}. Look at the task's stderr for a crash, and at the "
                "memory that the call needs",
                job=self.job,
                task=self.task,
            )
        if self.results is not None:
            return self.results
        value = decode_outcome(self.body) if self.raised is None else self.raised
        if self.head["ok"]:
            return value
        error, text = value
        if not isinstance(error, BaseException):
            raise CodecError(f"task {self.task} sent {type(error).__name__} where an exception was expected")
        error.__cause__ = RemoteTraceback(text)
        raise error


@functools.cache
def _warn(note: str) -> None:
    """Say once what the nodes have otherwise than the client, and no call fails for."""
    logger.warning("the nodes' packages differ in their patch level: %s", note)


class ChunkFuture:
    """What `submit` returns for one chunk. Its callback fires exactly once."""

    def __init__(self, chunk: int, batch: Any, callback: Callable[[ChunkFuture], Any] | None) -> None:
        self.chunk = chunk
        #: The calls; kept until the outcome is there, since a bundle may have to be sent again.
        self.batch: Any = batch
        self._callback = callback
        self._outcome: Outcome | BaseException | None = None

    def __repr__(self) -> str:
        return f"<ChunkFuture {self.chunk} {'pending' if self._outcome is None else 'done'}>"

    def settle(self, outcome: Outcome | BaseException) -> None:
        """Take the outcome and run the callback; on the call's own thread."""
        if isinstance(outcome, Outcome):
            try:
                outcome = outcome.fetched()
            except JoblibAzureError as exc:
                outcome = exc
        self._outcome, self.batch = outcome, None
        if self._callback is not None:
            self._callback(self)

    def result(self) -> Any:
        """Return the chunk's results or raise its exception; for the callback, once it has fired."""
        if self._outcome is None:
            raise JoblibAzureError(f"chunk {self.chunk} has no outcome yet")
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome.value()


class Call:
    """One Parallel call.

    Parameters
    ----------
    id : str
        Unique within the session.
    settings : CallSettings
    overlay : sequence of Buffer, default ()
        The archives of the user's modules as they were when the call began.
    number : int
        The session counts its calls.
    map : callable
        Hashes pieces side by side.
    """

    def __init__(
        self, id: str, settings: CallSettings, overlay: Sequence[Buffer] = (), *, number: int = 0, map: Map = map
    ) -> None:
        self.id = id
        self.number = number
        self.settings = settings
        self.overlay = tuple(overlay)
        self._encoder = CallEncoder(settings.threshold, map)
        self._encoding = threading.Lock()
        self._arrived = itertools.count()
        self.failure: BaseException | None = None
        self.closed = False
        #: Name of the call's first function, by which the session remembers what its calls cost.
        self.function = ""
        #: Buffers that a node did not find in storage.
        self.missed: set[str] = set()
        #: How often each chunk was sent.
        self.attempts: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._futures: dict[int, ChunkFuture] = {}
        self._count = 0
        self._inbox: queue.SimpleQueue[tuple[ChunkFuture, Outcome | BaseException] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<Call {self.id}: {len(self._futures)} chunks under way>"

    def add(self, batch: Any, callback: Callable[[ChunkFuture], Any] | None) -> ChunkFuture:
        """Register a chunk. Where the call has failed, its future fails, on the call's own thread."""
        with self._lock:
            future = ChunkFuture(self._count, batch, callback)
            self._count += 1
            failure = self.failure
            if failure is None:
                self._futures[future.chunk] = future
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"joblib_azure-{self.id}", daemon=True)
                self._thread.start()
        if failure is not None:
            self._inbox.put((future, failure))
        return future

    def forget(self) -> None:
        """Something has changed since it was encoded: believe no name any more."""
        with self._encoding:
            self._encoder.forget()

    def encode(self, chunks: Sequence[int]) -> list[tuple[int, EncodedChunk]]:
        """Encode chunks; one that cannot be pickled gets that as its outcome, one that has an outcome is left out."""
        encoded = []
        with self._encoding:
            for chunk in chunks:
                batch = self.batch(chunk)
                if batch is None:
                    continue
                try:
                    encoded.append((chunk, self._encoder.chunk(batch, self._beside(chunk))))
                except TaskPicklingError as exc:
                    self.deliver(chunk, exc)
        return encoded

    def _beside(self, chunk: int) -> list[Any]:
        with self._lock:
            near = (self._futures.get(chunk + step) for step in range(1, _BESIDE + 1))
            return [future.batch for future in near if future is not None and future.batch is not None]

    @property
    def modules(self) -> frozenset[str]:
        """Full names of the modules that what was encoded so far refers to."""
        with self._encoding:
            return frozenset(self._encoder.modules)

    def bundle(
        self,
        key: bytes,
        place: str,
        encoded: Sequence[tuple[int, EncodedChunk]],
        needs: Any,
        url: Callable[[str], str],
        stored: Callable[[str], bool],
    ) -> tuple[bytes, dict[str, Buffer]]:
        """Return a bundle of these chunks and the buffers that it needs, by their names.

        Parameters
        ----------
        key, place
            As `codec.write_bundle` takes them.
        encoded : sequence of (int, EncodedChunk)
        needs : JSON value
            The packages that its pickles need.
        url : callable
            Returns where a node reads the buffer of a name.
        stored : callable
            Tells whether it is there already.
        """
        settings = self.settings
        manifest: dict[str, Any] = {
            "call": self.id,
            # As at home: without a limit nothing is mapped.
            "mmap_mode": None if settings.max_nbytes is None else settings.mmap_mode,
            "path": list(settings.path),
            "overlay": [buffer.digest for buffer in self.overlay],
            "initializer": settings.initializer and base64.b64encode(settings.initializer).decode(),
            "needs": needs,
        }
        with self._encoding:
            return write_bundle(key, place, manifest, encoded, self._encoder, self.overlay, url, stored)

    def order(self, chunk: int) -> tuple[int, ...]:
        """Return where the results of a chunk that has arrived now come, among those of all calls."""
        unordered = self.settings.return_as == "generator_unordered"
        return self.number, next(self._arrived) if unordered else chunk

    def task_id(self, encoded: Sequence[tuple[int, EncodedChunk]]) -> str:
        """Count an attempt to send these chunks and return the id of its task: the same again for the same content."""
        first = encoded[0][0]
        attempt = self.attempts[first]
        self.attempts.update(chunk for chunk, _ in encoded)
        digest = hashlib.sha256()
        for chunk, content in encoded:
            digest.update(f"{chunk}:{len(content.data)};".encode() + content.data)
        return f"{self.id}-{first:07d}-{attempt}-{digest.hexdigest()[:8]}"

    def batch(self, chunk: int) -> Any:
        """Return the calls of a chunk, or None where its outcome is there already."""
        future = self._futures.get(chunk)
        return None if future is None else future.batch

    def deliver(self, chunk: int, outcome: Outcome | BaseException) -> bool:
        """Hand over the outcome of a chunk; False where it has one already (the first one counts)."""
        with self._lock:
            future = self._futures.pop(chunk, None)
        if future is None:
            return False
        self._inbox.put((future, outcome))
        return True

    def fail(self, error: BaseException) -> None:
        """Let everything under way, and everything submitted from now on, fail with `error`."""
        with self._lock:
            if self.failure is None:
                self.failure = error
            futures, self._futures = list(self._futures.values()), {}
        for future in futures:
            self._inbox.put((future, error))

    def close(self) -> None:
        """End the call's thread once it has run what it was given."""
        self.closed = True
        with self._lock:
            self._futures.clear()
        self._inbox.put(None)

    def _run(self) -> None:
        while (item := self._inbox.get()) is not None:
            future, outcome = item
            if self.closed:
                continue
            try:
                future.settle(outcome)
            except Exception:
                # joblib's callback raises only where its Parallel is gone; there is nobody to tell.
                logger.exception("the callback of chunk %d of call %s failed", future.chunk, self.id)


@dataclass(eq=False)
class UnderWay:
    """A bundle and the Batch task that carries it."""

    bundle: Bundle
    call: Call
    task: str
    added: float  #: monotonic time
    remaining: set[int]
    seconds: float = 0.0  #: measured work of one worker
    sent: bool = False  #: whether the service was given the task
