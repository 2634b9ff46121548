"""Outcomes on their way from a task to storage, on a thread of their own.

The first outcome leaves at once, so that a generator on the client yields early; later ones wait for each
other, so that a thousand short calls are a few requests and not a thousand.
"""

from __future__ import annotations

import hashlib
import threading
import time
from typing import Any

from ..codec import seal
from .journal import Outcome
from .storage import TaskStorage

#: Seconds between two appends. At most so long does an outcome wait, the first one of a pause not at all.
SPACING = 0.2
#: Bytes that are sent without waiting for more.
ENOUGH = 1 << 20
#: Outcomes from this size on are blobs of their own: they stream in blocks side by side, which an append
#: blob cannot.
LARGE = 4 << 20


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
    """

    def __init__(self, storage: TaskStorage, key: bytes, job: str, name: str) -> None:
        self._storage = storage
        self._key = key
        self._name = name
        self._place = f"{job}/{name}"
        self._count = 0
        self._queue: list[tuple[dict[str, Any], bytes]] = []
        self._size = 0
        self._closing = False
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)
        self._thread.start()

    def put(self, outcome: Outcome) -> None:
        """Queue an outcome."""
        self._add({**outcome.head, "chunk": outcome.chunk}, outcome.body)

    def close(self, end: dict[str, Any]) -> None:
        """Queue the end record, wait until everything is stored.

        Raises
        ------
        Exception
            What storage answered where outcomes could not be stored; the task then fails and runs again.
        """
        self._add({"end": end}, b"")
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _add(self, head: dict[str, Any], body: bytes) -> None:
        with self._changed:
            self._queue.append((head, body))
            self._size += len(body)
            self._changed.notify()

    def _run(self) -> None:
        last = float("-inf")
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                while not self._closing and self._size < ENOUGH:
                    rest = last + SPACING - time.monotonic()
                    if rest <= 0:
                        break
                    self._changed.wait(rest)
                taken, self._queue, self._size = self._queue, [], 0
                over = self._closing
            if taken and self._error is None:
                try:
                    self._send(taken)
                except BaseException as exc:
                    self._error = exc
            last = time.monotonic()
            if over:
                return

    def _send(self, taken: list[tuple[dict[str, Any], bytes]]) -> None:
        records: list[bytes] = []
        for head, body in taken:
            if len(body) >= LARGE:
                blob = f"{self._name}.{head['chunk']}"
                self._storage.put(blob, body)
                head, body = {**head, "blob": blob, "sha256": hashlib.sha256(body).hexdigest()}, b""
            records.append(seal(self._key, f"{self._place}#{self._count}", head, body))
            self._count += 1
        self._storage.append(b"".join(records))
