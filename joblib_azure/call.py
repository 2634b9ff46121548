"""One Parallel call as the session sees it: its chunks, their futures and the thread of its callbacks.

The monitor hands outcomes over with `deliver`, which only enqueues; the call's own thread runs joblib's
callbacks. So a callback that is slow, or waits for a lock of its Parallel, holds up nobody else.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .bundler import Bundler, CallSettings
from .capacity import Bundle
from .codec import Buffer, EncodedChunk, decode_outcome
from .codec.content import Map
from .errors import (
    CodecError,
    JoblibAzureError,
    PackagesError,
    RemoteTraceback,
    TaskPicklingError,
    WorkerDiedError,
    call_numbers,
    stderr_end,
)
from .history import Remembered, Trace, merged
from .results import Results
from .tally import Tally

logger = logging.getLogger(__name__)

#: Other chunks that are looked at for what a chunk has in common with them.
_BESIDE = 2


@dataclass(kw_only=True, slots=True)
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
    calls : sequence of int, default ()
        The numbers of the chunk's calls that ran, for whoever is told that one has failed; a `ChunkFuture` knows them.
    log : str, default ""
        The command that shows what the task wrote, where there is one.
    """

    head: dict[str, Any]
    body: bytes | memoryview
    job: str
    task: str
    results: Results | None = None
    raised: Any = None
    calls: Sequence[int] = ()
    log: str = ""

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
            raise PackagesError(str(self.head["refused"]), **self._where)
        if "died" in self.head:
            log = f" `{self.log}` shows all that its task wrote." if self.log else ""
            raise WorkerDiedError(
                f"a call killed its worker: {self.head['died']}. It has crashed, ended its process, or needed more "
                "memory than there was: run it alone to see which, and for memory let fewer calls run at once "
                f"(maxTasksPerNode, workersPerNode) or take larger nodes.{log}"
                f"{stderr_end(self.head.get('stderr', ''))}",
                **self._where,
            )
        if self.results is not None:
            return self.results
        try:
            value = decode_outcome(self.body) if self.raised is None else self.raised
        except CodecError as exc:
            exc.locate(**self._where)
            raise
        if self.head["ok"]:
            return value
        error, text = value
        if not isinstance(error, BaseException):
            raise CodecError(
                f"{type(error).__name__} came where an exception was expected. Run it again, and report it",
                **self._where,
            )
        if isinstance(error, JoblibAzureError):  # made on the node, for want of the call's own
            error.locate(**self._where)
        error.__cause__ = RemoteTraceback(text, **self._where, log=self.log)
        raise error

    @property
    def _where(self) -> dict[str, str | int | None]:
        place = self.head.get("place")
        calls = self.calls if place is None or place >= len(self.calls) else self.calls[place : place + 1]
        return {"call": call_numbers(calls), "node": self.head.get("node"), "job": self.job, "task": self.task}


@functools.cache
def _warn(note: str) -> None:
    """Say once what the nodes have otherwise than the client, and no call fails for."""
    logger.warning("the nodes' packages differ in their patch level: %s", note)


class ChunkFuture:
    """What `submit` returns for one chunk. Its callback fires exactly once."""

    __slots__ = ("_callback", "_first", "_outcome", "batch", "calls", "chunk", "encoded", "known")

    def __init__(
        self,
        chunk: int,
        batch: Any,
        callback: Callable[[ChunkFuture], Any] | None,
        known: Mapping[int, Remembered] | None = None,
        first: int = 0,
    ) -> None:
        self.chunk = chunk
        self._first = first
        #: Results that an earlier run has computed, by their places among the chunk's; `batch` has the other calls.
        self.known = known
        #: How many calls the chunk has, those among them.
        self.calls = (len(batch) if batch is not None else 0) + len(known or ())
        #: The calls; kept until the outcome is there, since a bundle may have to be sent again, or until they are
        #: `encoded` for good: that is less to keep, and less for the collector to go through.
        self.batch: Any = batch
        self.encoded: tuple[Any, ...] | None = None
        self._callback = callback
        self._outcome: Outcome | BaseException | None = None

    def __repr__(self) -> str:
        return f"<ChunkFuture {self.chunk} {'pending' if self._outcome is None else 'done'}>"

    @property
    def numbers(self) -> Sequence[int]:
        """Places of its calls, that are to run, among all of the Parallel call."""
        numbers = range(self._first, self._first + self.calls)
        return [number for place, number in enumerate(numbers) if place not in self.known] if self.known else numbers

    def keep(self, encoded: EncodedChunk) -> None:
        """Keep the calls as bytes from here on, where that is less than what they were made of."""
        if encoded.is_tiny(self.calls):
            # A plain tuple of bytes and numbers is nothing to the collector.
            self.encoded, self.batch = tuple(encoded), None

    def settle(self, outcome: Outcome | BaseException) -> None:
        """Take the outcome and run the callback; on the call's own thread."""
        if isinstance(outcome, Outcome):
            try:
                outcome = outcome.fetched()
            except JoblibAzureError as exc:
                outcome = exc
        if isinstance(outcome, Outcome):
            outcome.calls = self.numbers  # nobody else has it
        self._outcome, self.batch, self.encoded = outcome, None, None
        if self._callback is not None:
            self._callback(self)

    def result(self) -> Any:
        """Return the chunk's results or raise its exception; for the callback, once it has fired."""
        if self._outcome is None:
            raise JoblibAzureError(f"chunk {self.chunk} has no outcome yet")
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        value = self._outcome.value()
        return merged(value, self.known, self.calls) if self.known else value


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
        self.bundler = Bundler(id, settings, overlay, map=map)
        self._encoding = threading.Lock()
        self._arrived = itertools.count()
        self.failure: BaseException | None = None
        self.closed = False
        #: Name of the call's first function, by which the session remembers what its calls cost.
        self.function = ""
        #: Says something to the user, where the Parallel is verbose enough.
        self.say: Callable[[str], object] | None = None
        self._said = ""
        #: Buffers that a node did not find in storage.
        self.missed: set[str] = set()
        #: Places and fingerprints of the calls of each chunk, where they are written down.
        self.traces: dict[int, Trace] = {}
        #: Delayed calls that joblib has dispatched; those of them that an earlier run had computed, and those that had
        #: changed since one did.
        self.dispatched = self.recalled = self.changed = 0
        #: How often each chunk was sent.
        self.attempts = Tally()
        #: How often each was lost with its task while it was running, as far as that is known.
        self.lost: Counter[int] = Counter()
        #: Delayed calls that were added, that have results, and that have none for good.
        self.added = self.done = self.failed = 0
        #: How many there will be, where joblib was given something of a known length.
        self.total: int | None = None
        #: Whether no further chunk will come.
        self.exhausted = False
        #: Tasks that were lost and sent again.
        self.lost_tasks = 0
        self._lock = threading.Lock()
        self._futures: dict[int, ChunkFuture] = {}
        self._count = 0
        self._inbox: queue.SimpleQueue[list[tuple[ChunkFuture, Outcome | BaseException]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<Call {self.id}: {len(self._futures)} chunks under way>"

    def tell(self, text: str) -> None:
        """Say something to the user, unless it is what was said last."""
        if self.say is not None and text != self._said:
            self._said = text
            self.say(text)

    def add(
        self,
        batch: Any,
        callback: Callable[[ChunkFuture], Any] | None,
        *,
        known: Mapping[int, Remembered] | None = None,
        trace: Trace = (),
    ) -> ChunkFuture:
        """Register a chunk. Where the call has failed, its future fails, on the call's own thread.

        Parameters
        ----------
        batch : joblib.parallel.BatchedCalls or None
            The calls that are to run; None for none.
        callback : callable or None
        known : mapping of int to Remembered, optional
            Results of the chunk's other calls, by their places.
        trace : sequence, default ()
            What to write down of the calls that are to run, where another run may want their results.
        """
        # What is little and plain is pickled here, so that nothing of it lives until its bundle is encoded.
        plain = None if batch is None else self.bundler.plain(batch)
        with self._lock:
            future = ChunkFuture(self._count, batch, callback, known, self.added)
            if plain is not None:
                future.keep(plain)
            if trace:
                self.traces[future.chunk] = trace
            self._count += 1
            self.added += future.calls
            failure = self.failure
            if failure is None:
                self._futures[future.chunk] = future
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"joblib_azure-{self.id}", daemon=True)
                self._thread.start()
        if failure is not None:
            self._inbox.put([(future, failure)])
        return future

    def forget(self) -> None:
        """Something has changed since it was encoded: believe no name any more."""
        with self._encoding:
            self.bundler.forget()

    def encode(self, chunks: Sequence[int]) -> list[tuple[int, EncodedChunk]]:
        """Encode chunks; one that cannot be pickled gets that as its outcome, one that has an outcome is left out."""
        encoded = []
        with self._encoding:
            for chunk in chunks:
                future = self._futures.get(chunk)
                try:
                    found = None if future is None else self._encoded(future)
                except TaskPicklingError as exc:
                    exc.locate(call=call_numbers(self.numbers([chunk])))
                    self.deliver(chunk, exc)
                    continue
                if found is not None:
                    encoded.append((chunk, found))
        return encoded

    def _encoded(self, future: ChunkFuture) -> EncodedChunk | None:
        """Return the calls of a chunk as bytes; None where its outcome is there."""
        known, batch = future.encoded, future.batch
        if known is not None:
            return EncodedChunk(*known)
        if batch is None:
            return None
        found = self.bundler.chunk(batch, self._beside(future.chunk))
        future.keep(found)
        return found

    def _beside(self, chunk: int) -> Iterator[Any]:
        for step in range(1, _BESIDE + 1):
            future = self._futures.get(chunk + step)
            if future is not None and future.batch is not None:
                yield future.batch

    def order(self, chunk: int) -> tuple[int, ...]:
        """Return where the results of a chunk that has arrived now come, among those of all calls."""
        unordered = self.settings.return_as == "generator_unordered"
        return self.number, next(self._arrived) if unordered else chunk

    def settled(self) -> tuple[int, int]:
        """Return how many chunks have their outcomes, and the number of the first that has none."""
        with self._lock:
            return self._count - len(self._futures), next(iter(self._futures), self._count)

    def task_id(self, encoded: Sequence[tuple[int, EncodedChunk]]) -> str:
        """Count an attempt to send these chunks and return the id of its task: the same again for the same content."""
        first = encoded[0][0]
        attempt = self.attempts[first]
        for chunk, _ in encoded:
            self.attempts.add(chunk)
        digest = hashlib.sha256()
        for chunk, content in encoded:
            digest.update(f"{chunk}:{len(content.data)};".encode() + content.data)
        return f"{self.id}-{first:07d}-{attempt}-{digest.hexdigest()[:8]}"

    def numbers(self, chunks: Iterable[int]) -> Sequence[int]:
        """Return the places of these chunks' calls in the Parallel call, of those that have no outcome yet."""
        with self._lock:
            futures = [self._futures[chunk] for chunk in chunks if chunk in self._futures]
        return sorted(number for future in futures for number in future.numbers)

    def deliver(self, chunk: int, outcome: Outcome | BaseException) -> None:
        """Hand over the outcome of a chunk, unless it has one already: the first one counts."""
        self.deliver_all([(chunk, outcome)])

    def deliver_all(self, outcomes: Iterable[tuple[int, Outcome | BaseException]]) -> None:
        """Hand over outcomes of chunks, by their numbers: the call's thread is woken once for all of them."""
        found: list[tuple[ChunkFuture, Outcome | BaseException]] = []
        with self._lock:
            for chunk, outcome in outcomes:
                future = self._futures.pop(chunk, None)
                if future is None:
                    continue
                self.traces.pop(chunk, None)
                if isinstance(outcome, Outcome) and outcome.head.get("ok"):
                    self.done += future.calls
                else:
                    self.failed += future.calls
                found.append((future, outcome))
        if found:
            self._inbox.put(found)

    def fail(self, error: BaseException) -> None:
        """Let everything under way, and everything submitted from now on, fail with `error`."""
        with self._lock:
            if self.failure is None:
                self.failure = error
            futures, self._futures = list(self._futures.values()), {}
        self._inbox.put([(future, error) for future in futures])

    def close(self) -> None:
        """End the call's thread once it has run what it was given."""
        self.closed = True
        with self._lock:
            self._futures.clear()
        self._inbox.put(None)

    def _run(self) -> None:
        while (found := self._inbox.get()) is not None:
            found.reverse()
            while found:  # each is let go of at once: what joblib keeps of it is all that is kept
                future, outcome = found.pop()
                if self.closed:
                    continue
                try:
                    future.settle(outcome)
                except Exception:
                    # joblib's callback raises only where its Parallel is gone; there is nobody to tell.
                    logger.exception("the callback of chunk %d of call %s failed", future.chunk, self.id)
                del future, outcome


@dataclass(eq=False)
class UnderWay:
    """A bundle and the Batch task that carries it."""

    bundle: Bundle
    call: Call
    task: str
    added: float  #: monotonic time
    remaining: set[int]
    heard: float = 0.0  #: monotonic time of its last outcome
    seconds: float = 0.0  #: measured work of one worker
    added_time: float = 0.0  #: when the service was given the task, in seconds since the epoch
    sent: bool = False  #: whether the service was given the task
