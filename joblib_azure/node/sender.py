"""Outcomes on their way from a task to storage, on threads of their own.

::

    journals ──► small ones ─────────────────────────────────► sealed records ──► append blob
             └─► large ones ──► payloads, in blocks ──► their records ──▲

The first outcome leaves at once, so that a generator on the client yields early; later ones wait for each
other, so that a thousand short calls are a few requests and not a thousand. A large outcome holds up no small one.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import mmap
import threading
import time
from pathlib import Path
from typing import Any

from ..codec import group_size, seal_outcomes
from .journal import Outcome
from .storage import TaskStorage

#: Seconds between two appends where the client says nothing of it. At most so long does an outcome wait; the first one
#: of a pause not at all, and neither does an error.
SPACING = 0.2
#: Seconds that even the first outcome waits for the next: a short task has all of them by then, and its end. Or this
#: part of what is above the usual time between two appends: calls that take as long as each other end about together.
_GATHER, _GATHER_PART = 0.005, 0.05
#: The part of a task's age that its outcomes may wait for each other.
_GROWTH = 0.02
#: Bytes that are sent without waiting for more, and in one append at most.
ENOUGH, MOST = 1 << 20, 4 << 20
#: Bytes of outcomes that wait here; whoever brings more waits.
MOST_QUEUED = 64 << 20
#: Large outcomes that are sent at a time; each in blocks side by side.
_STREAMS = 2


def pause_of(age: float, spacing: tuple[float, float]) -> float:
    """Return the seconds between two appends of a task of that age."""
    return min(spacing[1], max(spacing[0], _GROWTH * age))


def gathering(pause: float) -> float:
    """Return the seconds for which the first outcome of such a pause waits for the next."""
    return max(_GATHER, _GATHER_PART * (pause - SPACING))


class Sender:
    """Seals outcomes and appends them to this run's append blob.

    Parameters
    ----------
    storage : TaskStorage
    key : bytes
        The job's key.
    job : str
        Id of the job.
    name : str
        Name of the append blob; with the job and the record's position it is the record's place.
    folder : Path
        Where the files of large outcomes are.
    spacing : tuple of float
        Seconds between two appends, at first and at most: they grow with the age of the task.
    """

    def __init__(
        self,
        storage: TaskStorage,
        key: bytes,
        job: str,
        name: str,
        folder: Path,
        spacing: tuple[float, float] = (SPACING, SPACING),
    ) -> None:
        self._spacing = spacing
        self._begun = time.monotonic()
        self._hurried = False
        self._storage = storage
        self._key = key
        self._folder = folder
        self._name = name
        self._place = f"{job}/{name}"
        self._count = 0
        self._marked = False  # as one in which a call has raised
        self._queue: list[tuple[dict[str, Any], bytes]] = []
        self._size = 0
        self._closing = False
        self._sending = False  # what was taken from the queue
        self._large = 0  # payloads on their way
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._payloads = concurrent.futures.ThreadPoolExecutor(_STREAMS, thread_name_prefix="payloads")
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def put(self, outcome: Outcome) -> None:
        """Queue an outcome. Waits while much is queued: what storage does not take must not fill the memory."""
        head = {**outcome.head, "chunk": outcome.chunk}
        if "payload" in head:
            with self._changed:
                self._large += 1
            self._payloads.submit(self._send_payload, head)
            return
        with self._changed:
            # Bounded: an append ends by its deadline, and where one fails nothing is kept any more.
            while self._size > MOST_QUEUED and self._error is None:
                self._changed.wait(SPACING)
        self._add(head, outcome.body)

    def close(self, end: dict[str, Any]) -> None:
        """Queue the end record, wait until everything is stored.

        Raises
        ------
        Exception
            What storage answered where outcomes could not be stored; the task then fails and runs again.
        """
        self._payloads.shutdown(wait=True)
        self._add({"end": end}, b"")
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def flush(self, seconds: float) -> None:
        """Send what is queued, for so many seconds at most: the task ends before its end record."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._error is not None or not (self._queue or self._sending or self._large), seconds
            )

    def _add(self, head: dict[str, Any], body: bytes) -> None:
        with self._changed:
            self._queue.append((head, body))
            self._size += len(body)
            # It ends the Parallel call, and with it what else runs.
            self._hurried = self._hurried or not head.get("ok", True)
            self._changed.notify_all()

    def _send_payload(self, head: dict[str, Any]) -> None:
        path = self._folder / head.pop("payload")
        try:
            if self._error is None:
                blob = f"{self._name}.{head['chunk']}"
                with path.open("rb") as file:
                    content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                names = self._storage.put_payload(blob, content, [group_size(layout) for layout in head["groups"]])
                self._add({**head, "blob": blob, "contents": names}, b"")
        except BaseException as exc:
            self._error = self._error or exc
        finally:
            path.unlink(missing_ok=True)
            with self._changed:
                self._large -= 1
                self._changed.notify_all()

    def _run(self) -> None:
        last = float("-inf")
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                spacing = pause_of(time.monotonic() - self._begun, self._spacing)
                last = max(last, time.monotonic() + gathering(spacing) - spacing)
                while not (self._closing or self._hurried) and self._size < ENOUGH:
                    rest = last + spacing - time.monotonic()
                    if rest <= 0:
                        break
                    self._changed.wait(rest)
                taken, self._queue, self._size = self._queue, [], 0
                over, self._hurried, self._sending = self._closing, False, True
                self._changed.notify_all()
            if taken and self._error is None:
                try:
                    self._send(taken)
                except BaseException as exc:
                    self._error = exc
            last = time.monotonic()
            with self._changed:
                self._sending = False
                self._changed.notify_all()
            if over:
                return

    def _send(self, taken: list[tuple[dict[str, Any], bytes]]) -> None:
        records: list[bytes] = []
        for record in seal_outcomes(self._key, self._place, self._count, taken):
            records.append(record)
            self._count += 1
            if sum(map(len, records)) >= MOST:
                self._storage.append(b"".join(records))
                records = []
        if records:
            self._storage.append(b"".join(records))
        if not self._marked and not all(head.get("ok", True) for head, _ in taken):
            self._marked = True
            with contextlib.suppress(Exception):  # without it, the client reads of the error later
                self._storage.mark_failed()
