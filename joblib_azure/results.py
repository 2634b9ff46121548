"""Results between the storage and whoever consumes them: a window of them in memory, the rest stays where it is.

joblib keeps what its callback retrieves until it is consumed, and tells no backend that a consumer is slow. So what
it is given are `Results`: an iterable that fetches when it is iterated. What comes next is fetched ahead within a
budget of bytes::

    monitor ──add──► waiting, in the order of the calls ──budget──► fetching ──► there ──iterated──► joblib's consumer
                                     ▲                                                          │
                                     └────────────── budget given back ◄────────────────────────┘

Whoever iterates over a result that was not begun, begins it whatever the budget says, so that nothing waits for
what waits for it. Where joblib returns a list, which holds all in the end, there is no budget.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import heapq
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .codec import Landing, Layout, decode_outcome, group_size
from .ending import ending
from .errors import IntegrityError, JoblibAzureError, ServiceError
from .retries import SERVICE_SECONDS

logger = logging.getLogger(__name__)

#: Bytes of results that a generator's consumer finds fetched ahead, at most.
AHEAD = 64 << 20
#: Results that are fetched at a time; each in pieces side by side.
_STREAMS = 4
#: Seconds between two tries to fetch a result whose answer broke off.
_PAUSE = 1.0

#: Fetches a range of a blob into a sink and returns its content name: ``(blob, offset, size, sink) → name``.
Fetch = Callable[[str, int, int, Callable[[int, bytes], Any]], str]


class Part:
    """Some consecutive results of a chunk: what is fetched at a time.

    Parameters
    ----------
    place : tuple of int
        Order among all parts.
    size : int
        Bytes of memory that it takes while it is there.
    load : callable
        Fetches and authenticates it, and returns an iterator over its results.
    last : bool, default True
        Whether it is the last one of its chunk.
    """

    __slots__ = ("ahead", "future", "gone", "last", "load", "place", "size")

    def __init__(
        self, place: tuple[int, ...], size: int, load: Callable[[], Iterator[Any]], *, last: bool = True
    ) -> None:
        self.place, self.size, self.load, self.last = place, size, load, last
        self.future: concurrent.futures.Future[Iterator[Any]] | None = None
        self.ahead = False  #: whether it counts against the budget
        self.gone = False

    def __lt__(self, other: Part) -> bool:
        return self.place < other.place


class Results:
    """The results of one chunk, to be iterated over once.

    joblib keeps one for each chunk that nobody has consumed yet, of a slow consumer hundreds of thousands.
    """

    __slots__ = ("_parts", "_window")

    def __init__(self, window: Window, parts: Sequence[Part]) -> None:
        self._window = window
        self._parts = list(reversed(parts))

    @classmethod
    def none(cls) -> Results:
        """Return the results of no call."""
        found = cls.__new__(cls)
        found._parts = []
        return found

    def __repr__(self) -> str:
        return f"<Results: {len(self._parts)} parts to come>"

    def __iter__(self) -> Iterator[Any]:
        while self._parts:
            yield from self._window.take(self._parts.pop())

    def __del__(self) -> None:
        # A finaliser would do as well, and takes half a kilobyte.
        if self._parts:
            self._window.drop(self._parts)


class SmallResults(Results):
    """Those of a small outcome, whose pickle is at hand."""

    __slots__ = ("_body", "_call")

    def __init__(self, window: Window, call: int, body: bytes) -> None:
        self._window, self._call, self._body = window, call, body

    def __repr__(self) -> str:
        return f"<SmallResults: {len(self._body)} bytes to come>"

    def __iter__(self) -> Iterator[Any]:
        body, self._body = self._body, b""
        if body:
            self._window.give_back(self._call, len(body))
            yield from decode_outcome(body)

    def __del__(self) -> None:
        if self._body:
            self._window.drop([(self._call, len(self._body))])


class Window:
    """What is fetched ahead of the results' consumers, of all Parallel calls of a session.

    Parameters
    ----------
    fetch : callable
        Of type `Fetch`.
    delete : callable
        Told of a blob of which all has been fetched.
    budget : int, default AHEAD
        In bytes.
    patience : float
        Seconds after which a result that cannot be fetched counts as lost. Requests are repeated below, for as long;
        here it is what arrived of an answer and then broke off.
    """

    def __init__(
        self,
        fetch: Fetch,
        delete: Callable[[str], Any] | None = None,
        budget: int = AHEAD,
        patience: float = SERVICE_SECONDS,
    ) -> None:
        self._fetch = fetch
        self._patience = patience
        self._delete = delete
        self._budget = budget
        self._pool = concurrent.futures.ThreadPoolExecutor(_STREAMS, thread_name_prefix="joblib_azure-results")
        self._lock = threading.Lock()
        self._waiting: list[Part] = []
        self._held = self._kept = 0
        # What is collected is so on any thread, within any lock's reach: it only leaves its parts here. Of a small one
        # that is its call and its size.
        self._dropped: collections.deque[Part | tuple[int, int]] = collections.deque()
        self._sweeping = False
        #: Parts that were neither consumed nor dropped, by the number of their call.
        self._left: collections.Counter[int] = collections.Counter()
        #: Those of them that are not the last of their chunk.
        self._inner: collections.Counter[int] = collections.Counter()
        self._when_empty: Callable[[], Any] | None = None
        self._closed = ""

    def __repr__(self) -> str:
        return f"<Window: {self._left} parts to be consumed, {self._held} bytes ahead>"

    @property
    def held(self) -> int:
        """Bytes that were fetched ahead, or are being fetched."""
        return self._held

    @property
    def left(self) -> int:
        """Parts that were neither consumed nor dropped."""
        with self._lock:
            return self._left.total()

    def left_of(self, call: int) -> int:
        """Return how many those are of one Parallel call, by its number."""
        return self._left[call]

    def chunks_left_of(self, call: int) -> int:
        """Return of how many chunks of one Parallel call something is left."""
        with self._lock:
            return self._left[call] - self._inner[call]

    # what arrives ---------------------------------------------------------------------------------------

    def payload(
        self,
        blob: str,
        layouts: Sequence[Layout],
        names: Sequence[str],
        *,
        order: tuple[int, ...],
        bounded: bool,
    ) -> Results:
        """Return the results that lie in a blob of their own.

        Parameters
        ----------
        blob : str
        layouts : sequence
            Of its groups, as in `codec.Payload`.
        names : sequence of str
            Their authenticated content names.
        order : tuple of int
            Where these results come among others.
        bounded : bool
            Whether the budget holds for them.
        """
        parts = []
        offset, left = 0, [len(layouts)]
        for number, (layout, name) in enumerate(zip(layouts, names, strict=True)):
            load = self._loader(blob, offset, layout, name, left)
            parts.append(Part((*order, number), group_size(layout), load, last=number == len(layouts) - 1))
            offset += parts[-1].size
        return self._add(parts, bounded=bounded)

    def record(
        self, body: bytes | memoryview, load: Callable[[], bytes | memoryview], *, order: tuple[int, ...]
    ) -> Results:
        """Return the results of a small outcome.

        Parameters
        ----------
        body : bytes
            Its pickle; kept while what is kept of small ones is within the budget, and forgotten above it.
        load : callable
            Reads and authenticates it again then.
        order : tuple of int
        """
        with self._lock:
            if self._kept + len(body) <= self._budget // 4:
                self._kept += len(body)
                self._left[order[0]] += 1
                return SmallResults(self, order[0], bytes(body))
        return self._add([Part((*order, 0), len(body), lambda: iter(decode_outcome(load())))], bounded=True)

    def _add(self, parts: list[Part], *, bounded: bool) -> Results:
        found = Results(self, parts)
        with self._lock:
            for part in parts:
                self._left[part.place[0]] += 1
                self._inner[part.place[0]] += not part.last
                if bounded:
                    heapq.heappush(self._waiting, part)
                else:
                    self._begin(part)
        self._pump()
        return found

    def drop(self, parts: Sequence[Part | tuple[int, int]]) -> None:
        """Take note that nobody will consume these; on any thread, whatever lock that holds."""
        self._dropped.extend(parts)
        # At its end the interpreter starts no thread any more, and would wait for one for ever.
        if not self._sweeping and not ending() and not sys.is_finalizing():
            self._sweeping = True  # two threads at once do no harm
            with contextlib.suppress(RuntimeError):  # the interpreter ends
                threading.Thread(target=self._pump, name="joblib_azure-drop", daemon=True).start()

    def _loader(
        self, blob: str, offset: int, layout: Layout, name: str, left: list[int]
    ) -> Callable[[], Iterator[Any]]:
        def load() -> Iterator[Any]:
            landing = Landing(layout)
            found = self._patiently(blob, lambda: self._fetch(blob, offset, group_size(layout), landing.take))
            if found != name:
                raise IntegrityError(
                    f"the content of {blob} at {offset} is not what its task sealed; nothing of it was unpickled"
                )
            with self._lock:
                left[0] -= 1
                last = left[0] == 0
            if last and self._delete is not None:
                with contextlib.suppress(RuntimeError):  # the session's threads have ended: all of it goes
                    self._delete(blob)
            return landing.results()

        return load

    def _patiently(self, blob: str, action: Callable[[], str]) -> str:
        end = time.monotonic() + self._patience
        while True:
            try:
                return action()
            except ServiceError as exc:
                status = exc.context.get("status")
                if status == 416:
                    raise IntegrityError(f"{blob} is shorter than what its task sealed: {exc.message}") from exc
                if self._closed or status in (403, 404) or time.monotonic() > end:
                    raise
                logger.warning("fetching a result: %s; trying on for %.0f s", exc, end - time.monotonic())
                time.sleep(_PAUSE)

    # what is fetched when -------------------------------------------------------------------------------

    def _begin(self, part: Part) -> None:
        if not self._closed:
            part.future = self._pool.submit(part.load)

    def _pump(self) -> None:
        """Give back what was dropped, then begin what the budget allows."""
        empty = None
        with self._lock:
            self._sweeping = False
            while self._dropped:
                dropped = self._dropped.popleft()
                if isinstance(dropped, Part):
                    self._forget(dropped)
                else:
                    self._release(*dropped)
            while self._waiting and (self._held == 0 or self._held + self._waiting[0].size <= self._budget):
                part = heapq.heappop(self._waiting)
                if part.future is None and not part.gone:
                    part.ahead = True
                    self._held += part.size
                    self._begin(part)
            if self._when_empty is not None and not self._left:
                empty, self._when_empty = self._when_empty, None
        if empty is not None:
            empty()

    def _forget(self, part: Part) -> None:
        if part.gone:
            return
        part.gone = True
        self._inner[part.place[0]] -= not part.last
        self._consumed(part.place[0])
        if part.ahead:
            self._held -= part.size
        if part.future is not None:
            part.future.cancel()
            part.future = None

    def _release(self, call: int, size: int) -> None:
        self._consumed(call)
        self._kept -= size

    def _consumed(self, call: int) -> None:
        self._left[call] -= 1
        if not self._left[call]:
            del self._left[call], self._inner[call]

    def give_back(self, call: int, size: int) -> None:
        """A small result was consumed."""
        with self._lock:
            self._release(call, size)
            last = self._when_empty is not None and not self._left
        if last:
            self._pump()

    def take(self, part: Part) -> Iterator[Any]:
        """Yield the results of a part, once.

        Raises
        ------
        ServiceError, IntegrityError, CodecError
        """
        with self._lock:
            if part.future is None:
                self._begin(part)
            future = part.future
        if future is None:
            raise JoblibAzureError(f"{self._closed} before this result was consumed: consume a generator before that")
        try:
            # Bounded: the requests have deadlines of their own, and so has the patience with them.
            results = future.result()
        except concurrent.futures.CancelledError:
            raise JoblibAzureError(f"{self._closed} while this result was being fetched") from None
        finally:
            with self._lock:
                self._forget(part)
            del future
            self._pump()
        yield from results

    # its end --------------------------------------------------------------------------------------------

    def retire(self, when_empty: Callable[[], Any]) -> None:
        """Call `when_empty` once all results were consumed or dropped; no more will arrive."""
        with self._lock:
            self._when_empty = when_empty
        self._pump()

    def close(self, reason: str) -> None:
        """Fetch nothing any more: the storage goes."""
        with self._lock:
            self._closed = self._closed or reason
            self._waiting.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)
