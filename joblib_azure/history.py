"""What earlier runs of a script have computed, call by call, so that another run computes the rest only.

Each run is a session whose Batch job has the script's label. Beside each bundle it stores a *journal*: which calls are
in it, by their place (which Parallel call of the script, and which of its calls) and their fingerprint. A call that
comes again at the same place with the same fingerprint has its result from the outcome that was stored then::

    journals ──► place, fingerprint ──┐
    outcomes ──► place of the record ─┴──► History.find ──► Remembered ──► joblib

An error is no result: such a call runs again.
"""

from __future__ import annotations

import concurrent.futures
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from . import labels
from .codec import Record, decode_outcome, unseal
from .errors import IntegrityError, ResourceNotFoundError
from .fingerprint import fingerprints
from .outcomes import OutcomeReader, Place, task_of
from .results import Window
from .storage import session_containers
from .transfer import side_by_side

if TYPE_CHECKING:
    from .cluster import Cluster
    from .service import BlobItem, BlobService, JobDetails

logger = logging.getLogger(__name__)

#: Bytes of small results that are kept from the first reading on; others are read again when they are consumed.
_KEPT = 64 << 20
_STREAMS = 8
#: What the names of journals begin with; the task follows.
JOURNALS = "journal/"

#: The calls of a chunk: the place of each within its Parallel call, and its fingerprint.
Trace = Sequence[tuple[int, str]]


class Dispatching(Protocol):
    """A Parallel call, as its chunks are dispatched."""

    number: int  #: which Parallel call of the script
    dispatched: int  #: calls of the chunks so far …
    recalled: int  #: … of which so many were known
    changed: int  #: … and so many were known as others


class Remembered:
    """A result of an earlier run."""

    __slots__ = ("_chunk", "_index")

    def __init__(self, chunk: _Chunk, index: int) -> None:
        self._chunk, self._index = chunk, index

    def value(self) -> Any:
        """Return the result.

        Raises
        ------
        ServiceError, IntegrityError, CodecError
        """
        return self._chunk.take(self._index)


class _Chunk:
    """The results of a chunk, fetched when the first of them is asked for, and let go when all were."""

    def __init__(self, load: Callable[[], list[Any]]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._values: list[Any] = []
        self._left = 0

    def take(self, index: int) -> Any:
        with self._lock:
            if not self._left:
                self._values = self._load()
                self._left = len(self._values)
            value = self._values[index]
            self._left -= 1
            if not self._left:
                self._values = []
            return value


def merged(values: Any, known: Mapping[int, Remembered], size: int) -> Iterator[Any]:
    """Yield the results of a chunk of `size` calls, of which some are remembered and the others were computed."""
    computed = iter(values)
    for place in range(size):
        yield known[place].value() if place in known else next(computed)


class History:
    """The results of a script's earlier runs."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], tuple[str, Remembered]] = {}
        self._windows: list[Window] = []

    def __len__(self) -> int:
        return len(self._found)

    def find(self, call: int, place: int, fingerprint: str) -> Remembered | None:
        """Return the result of a call; None where there is none, or where the call has changed."""
        found = self._found.get((call, place))
        return found[1] if found is not None and fingerprint and found[0] == fingerprint else None

    def recall(self, call: Dispatching, items: Sequence[Any]) -> tuple[dict[int, Remembered], Trace]:
        """Return what is known of a chunk, by the calls' places in it, and what to write down of the others.

        Parameters
        ----------
        call : Dispatching
            The Parallel call, whose chunks come in their order; its counts go on.
        items : sequence
            The chunk's calls, as ``BatchedCalls.items`` has them.
        """
        first = call.dispatched
        call.dispatched += len(items)
        known: dict[int, Remembered] = {}
        trace = []
        for place, fingerprint in enumerate(fingerprints(items)):
            found = self.find(call.number, first + place, fingerprint)
            if found is not None:
                known[place] = found
                continue
            trace.append((first + place, fingerprint))
            call.changed += (call.number, first + place) in self._found
        call.recalled += len(known)
        return known, trace

    def close(self) -> None:
        """Fetch nothing any more."""
        for window in self._windows:
            window.close("the session was closed")

    def add(self, cluster: Cluster, details: JobDetails) -> None:
        """Take in what one run has stored; a later one's results are taken before an earlier one's.

        Raises
        ------
        ServiceError, IntegrityError
        """
        run = _Run(cluster.blobs, details)
        self._windows.append(run.window)
        try:
            for place, fingerprint, remembered in run.results():
                self._found[place] = fingerprint, remembered
        except ResourceNotFoundError:
            logger.warning("an earlier run of job %s has lost its blobs; its calls run again", labels.name_of(details))


class _Run:
    """One run, as storage has it."""

    def __init__(self, blobs: BlobService, details: JobDetails) -> None:
        self._blobs, self._job = blobs, details.id
        self._key = labels.key_of(details)
        self._inputs, self._outputs = session_containers(details.id)
        self._reader = OutcomeReader(lambda: blobs, self._outputs, self._key, details.id)
        self._lock = threading.Lock()
        self._kept = 0
        self._outcomes: dict[tuple[str, int], _Chunk] = {}
        self.window = Window(lambda blob, *where: blobs.fetch(self._outputs, blob, *where))

    def results(self) -> Iterator[tuple[tuple[int, int], str, Remembered]]:
        with concurrent.futures.ThreadPoolExecutor(_STREAMS, thread_name_prefix="joblib_azure-history") as pool:
            journals = list(side_by_side(pool, self._journal, list(self._blobs.blobs(self._inputs, JOURNALS))))
            for call in sorted({str(journal["call"]) for journal in journals}):
                grown = self._reader.grown(call, lambda task: True)
                side_by_side(pool, self._read, grown)
        for journal in journals:
            for chunk, calls in journal["chunks"].items():
                found = self._outcomes.get((journal["task"], int(chunk)))
                if found is not None:
                    for index, (place, fingerprint) in enumerate(calls):
                        yield (journal["number"], place), fingerprint, Remembered(found, index)

    def _journal(self, item: BlobItem) -> dict[str, Any]:
        record = unseal(self._key, f"{self._job}/{item.name}", self._blobs.read(self._inputs, item.name))
        if record is None:
            raise IntegrityError(f"{self._inputs}/{item.name} is cut short")
        found: dict[str, Any] = json.loads(bytes(record.body))
        return found

    def _read(self, item: BlobItem) -> None:
        task = task_of(item.name)

        def take(record: Record, place: Place) -> None:
            if record.head.get("ok") and "chunk" in record.head:
                found = _Chunk(self._loader(record, place))
                with self._lock:
                    self._outcomes.setdefault((task, int(record.head["chunk"])), found)

        self._reader.read(item, take)

    def _loader(self, record: Record, place: Place) -> Callable[[], list[Any]]:
        head = record.head
        if "groups" in head:
            where = head["blob"], head["groups"], head["contents"]
            return lambda: list(self.window.payload(*where, order=(0,), bounded=True))
        with self._lock:
            keep = self._kept + len(record.body) <= _KEPT
            self._kept += len(record.body) if keep else 0
        if keep:
            body = bytes(record.body)
            return lambda: list(decode_outcome(body))
        return lambda: list(decode_outcome(self._reader.read_again(place)))
