"""One Parallel call as the session sees it: its chunks, their futures and the thread of its callbacks.

The monitor hands outcomes over with `deliver`, which only enqueues; the call's own thread runs joblib's
callbacks. So a callback that is slow, or waits for a lock of its Parallel, holds up nobody else.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .capacity import Bundle
from .codec import Buffer, CallEncoder, EncodedChunk, decode_outcome
from .errors import CodecError, JoblibAzureError, PackagesError, RemoteTraceback, WorkerDiedError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CallSettings:
    """What a Parallel call asks for.

    Parameters
    ----------
    n_jobs : int
        Chunks that may run at once, at least 2.
    max_nbytes : int or None
        Buffers of at least this many bytes travel out of band; None: never.
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
    """

    n_jobs: int
    max_nbytes: int | None
    mmap_mode: str | None
    inner_max_num_threads: int | None
    path: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    initializer: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A chunk's authenticated outcome: its head, its pickle and where it was made."""

    head: dict[str, Any]
    body: bytes | memoryview
    job: str
    task: str

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
        value = decode_outcome(self.body)
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


class BufferStore:
    """Stores content-addressed buffers, each of them once; for bundles that are uploaded side by side.

    Parameters
    ----------
    put : callable
        Stores a buffer; one that storage has already is no error.
    """

    def __init__(self, put: Callable[[Buffer], Any]) -> None:
        self._put = put
        self._stored: set[str] = set()
        self._storing: dict[str, threading.Lock] = {}

    def store(self, buffers: Iterable[Buffer]) -> None:
        """Store the buffers that are not known to be stored."""
        for buffer in buffers:
            # The first that needs a buffer stores it, the others wait for that.
            with self._storing.setdefault(buffer.digest, threading.Lock()):
                if buffer.digest not in self._stored:
                    self._put(buffer)
                    self._stored.add(buffer.digest)

    def forget(self, digests: Iterable[str]) -> None:
        """A node did not find these in storage: store them again when they are next needed."""
        self._stored.difference_update(digests)


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
    """

    def __init__(self, id: str, settings: CallSettings, overlay: Sequence[Buffer] = ()) -> None:
        self.id = id
        self.settings = settings
        self.overlay = tuple(overlay)
        self.encoder = CallEncoder(settings.max_nbytes)
        self.failure: BaseException | None = None
        self.closed = False
        #: Name of the call's first function, by which the session remembers what its calls cost.
        self.function = ""
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

    def manifest(self, encoded: Sequence[tuple[int, EncodedChunk]], url: Callable[[str], str]) -> dict[str, Any]:
        """Return what a bundle of these chunks says of itself.

        Parameters
        ----------
        encoded : sequence of (int, EncodedChunk)
        url : callable
            Returns where a node reads the buffer of a digest.
        """
        settings = self.settings
        needed = {b.digest for _, c in encoded for b in c.buffers} | {b.digest for b in self.overlay}
        needed |= {b.digest for _, c in encoded for n in c.functions for b in self.encoder.function(n)[1]}
        return {
            "call": self.id,
            "mmap_mode": settings.mmap_mode,
            "path": list(settings.path),
            "overlay": [buffer.digest for buffer in self.overlay],
            "initializer": settings.initializer and base64.b64encode(settings.initializer).decode(),
            "urls": {digest: url(digest) for digest in sorted(needed)},
        }

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
    requeued: bool = field(default=False)
