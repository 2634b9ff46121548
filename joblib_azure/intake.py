"""What a session's running tasks have said: which of their streams are read now, and what they bring.

::

    listing of the call's blobs ──► those that have more ──┬─ now ──► read ──► the work's cost, the call's outcomes
                                                           └─ later: more comes, and nobody waits for what is there

To read a stream costs a request, however little there is. Where many tasks run and others wait behind them, a stream
is therefore let wait until it has all that its task has left, or for a while; not so where a generator's consumer needs
it soon, or where a call has raised.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from .call import Call, Outcome
from .codec import Record
from .errors import IntegrityError
from .outcomes import OutcomeReader, Place, task_of
from .service import BlobItem
from .transfer import STREAMS, side_by_side

if TYPE_CHECKING:
    from .call import UnderWay
    from .session import Session

#: Of all streams of a client no more are read a second, about: that bounds what reading takes of its one interpreter.
#: For many that gives a longer wait, but none longer than so many seconds; a shorter one than that is not worth it.
_READS, LONGEST_WAIT, _LEAST_WAIT = 25.0, 30.0, 1.0
#: A stream is whole where it has about this part of what its task has left to say, by the mean of the call's outcomes.
_WHOLE = 0.95
#: Outcomes after which older ones count half in that mean.
_MEMORY = 10_000
#: Until the next look a consumer takes so many times what he took since the last one, at most.
_ENOUGH = 2


class Intake:
    """Takes in the outcomes of a session's running tasks.

    Parameters
    ----------
    session : Session
    ended : callable
        Told of a task whose stream has come to its end, and what that says.
    """

    def __init__(self, session: Session, ended: Callable[[UnderWay, dict[str, Any]], object]) -> None:
        self._session, self._ended = session, ended
        self._reader = OutcomeReader(lambda: session.cluster.blobs, session.outputs, session.key, session.job)
        #: When streams were seen to have more that was not read since.
        self._waiting: dict[str, float] = {}
        #: Of calls: chunks that had outcomes at the last look, and that their consumer had taken by then.
        self._consumed: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        #: Of calls: bytes and outcomes that were read.
        self._bytes, self._outcomes = Counter[str](), Counter[str]()

    def look(self, whole: Collection[str] = ()) -> bool:
        """Read what the streams have more, as far as it is time; True where there was something, or still is.

        Parameters
        ----------
        whole : collection of str, default ()
            Tasks that have ended, so that nothing more comes.

        Raises
        ------
        ServiceError
        """
        session, work = self._session, self._session.work
        tasks: dict[str, list[str]] = {}
        with work.changed:
            calls = {entry.call.id: entry.call for entry in work.under_way.values() if entry.remaining}
            for task, entry in work.under_way.items():
                tasks.setdefault(entry.call.id, []).append(task)
        wanted = work.under_way.__contains__
        due: list[BlobItem] = []
        before, self._waiting = self._waiting, {}
        for id, call in sorted(calls.items()):
            grown = self._reader.grown(id, wanted, tasks[id])
            due += self._due(call, grown, before, whole)
        self._forget(calls)
        if due:
            with contextlib.suppress(concurrent.futures.CancelledError):  # the session was closed
                # A share for each thread: to hand them over one by one would cost a tenth of the reading.
                side_by_side(session.pool, self._read_some, [due[n::STREAMS] for n in range(min(STREAMS, len(due)))])
        return bool(due or self._waiting)

    # what is read now -----------------------------------------------------------------------------------

    def _due(
        self, call: Call, grown: list[BlobItem], before: dict[str, float], whole: Collection[str]
    ) -> list[BlobItem]:
        """Return which of the streams that have more are read now; the others wait."""
        longest, needed, now = self._longest(call), self._needed(call), time.monotonic()
        if longest < _LEAST_WAIT or needed == inf:
            return grown
        due = []
        for item in grown:
            since, task = before.get(item.name, now), task_of(item.name)
            entry = self._session.work.under_way.get(task)
            if (
                entry is None
                or now - since >= longest
                or task in whole
                or min(entry.remaining, default=0) < needed
                or self._reader.failed(item)
                or self._is_whole(entry, item)
            ):
                due.append(item)
            else:
                self._waiting[item.name] = since
        return due

    def _longest(self, call: Call) -> float:
        """Return the seconds for which what running tasks of a call have said may wait for more."""
        work = self._session.work
        with work.changed:
            streams, tasks = work.streams, work.planner.under_way
        # Where no task waits behind those that run, the end is near, and each outcome is awaited.
        return 0.0 if call.settings.timed or tasks <= streams else min(streams / _READS, LONGEST_WAIT)

    def _needed(self, call: Call) -> float:
        """Return the number below which the consumer of a call takes its chunks until the next look, as it seems."""
        if call.settings.return_as == "list":
            return 0
        left = self._session.holdings.window.chunks_left_of(call.number)
        settled, first = call.settled()
        taken = settled - left
        before, self._consumed[call.id] = self._consumed.get(call.id, (0, 0)), (settled, taken)
        speed = taken - before[1]
        if call.settings.return_as == "generator_unordered":
            return inf if left <= _ENOUGH * speed else 0
        if first <= taken:  # he waits, and may be faster than that
            speed = max(speed, settled - before[0], self._session.work.streams)
        return taken + _ENOUGH * speed

    def _is_whole(self, entry: UnderWay, item: BlobItem) -> bool:
        """Tell whether a stream seems to have all that its task has left to say."""
        read = self._outcomes[entry.call.id]
        return (
            not read or self._reader.unread(item) * read >= _WHOLE * len(entry.remaining) * self._bytes[entry.call.id]
        )

    def _forget(self, calls: Collection[str]) -> None:
        for known in (self._consumed, self._bytes, self._outcomes):
            for id in known.keys() - calls:
                del known[id]

    # what it brings -------------------------------------------------------------------------------------

    def _read_some(self, items: Sequence[BlobItem]) -> None:
        for item in items:
            self._read(item)

    def _read(self, item: BlobItem) -> None:
        entry = self._session.work.under_way.get(task_of(item.name))
        if entry is None:
            return
        found: list[tuple[int, Outcome]] = []
        size, left = self._reader.unread(item), len(entry.remaining)
        try:
            try:
                self._reader.read(item, lambda record, place: self._take(entry, record, place, found))
            finally:  # those before it are as they should be
                self._deliver(entry, found)
                self._count(entry.call.id, size - self._reader.unread(item), left - len(entry.remaining))
        except IntegrityError as exc:
            entry.call.fail(exc)
            self._session.work.finish(entry)

    def _count(self, call: str, size: int, outcomes: int) -> None:
        with self._lock:
            half = 0.5 if self._outcomes[call] > _MEMORY else 1.0
            self._bytes[call] = int(self._bytes[call] * half) + size
            self._outcomes[call] = int(self._outcomes[call] * half) + outcomes

    def _take(self, entry: UnderWay, record: Record, place: Place, found: list[tuple[int, Outcome]]) -> None:
        session, head, call = self._session, record.head, entry.call
        if "end" in head:
            self._deliver(entry, found)
            self._ended(entry, head["end"])
            return
        chunk = head["chunk"]
        bounded = call.settings.return_as != "list"
        window, order = session.holdings.window, call.order(chunk)
        results, body = self._reader.results(record, place, window, order=order, bounded=bounded)
        found.append((chunk, Outcome(head=head, body=body, job=session.job, task=entry.task, results=results)))

    def _deliver(self, entry: UnderWay, found: list[tuple[int, Outcome]]) -> None:
        if found:
            self._session.work.take_in(entry, [(chunk, outcome.head) for chunk, outcome in found])
            entry.call.deliver_all(found)
            found.clear()
