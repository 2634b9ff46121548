"""Outcomes as they stream into storage, and how far each stream was read.

Each run of a task appends its outcomes to a blob of its own. One listing of a call's blobs, or a few of those that
still matter, tells by their sizes which have grown, and only the new bytes of those are read::

    <call>/<task>/<run>            records: an outcome each, or several small ones; the first with where it runs; an end
    <call>/<task>/<run>.<chunk>    what is too large for a record, which names it
    <call>/<task>/<run>.failed     empty: a call has raised, whoever waits for more of the run should not
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

from .codec import FAILED, Record, outcomes_of, unseal, unseal_all
from .errors import IntegrityError, ResourceNotFoundError
from .results import Results, Window
from .service import BlobItem, BlobService

logger = logging.getLogger(__name__)

#: Blobs of a call from which on not all are listed, and listings that they are looked for with then.
_MANY, _PARTS = 2000, 8
#: Bytes that are read at a time: more than the largest record, since a larger outcome is a payload.
_WINDOW = 16 << 20


class Place(NamedTuple):
    """Where an outcome lies: blob, offset and size of its record, how many come before that, and before it therein."""

    blob: str
    offset: int
    size: int
    number: int
    part: int = 0


@dataclass
class _Stream:
    position: int = 0
    records: int = 0


_NOTHING = _Stream()
_FAILED = f".{FAILED}"


def task_of(blob: str) -> str:
    """Return the task whose run wrote a blob of outcomes."""
    return blob.split("/")[1]


def stems(names: Collection[str], most: int) -> list[str]:
    """Return what names begin with: up to `most` prefixes of one length, as long as that allows."""
    low, high = 0, max(map(len, names), default=0)
    while low < high:
        middle = (low + high + 1) // 2
        if len({name[:middle] for name in names}) <= most:
            low = middle
        else:
            high = middle - 1
    return sorted({name[:low] for name in names})


class OutcomeReader:
    """Reads what the tasks of a job have said since the last look.

    Parameters
    ----------
    blobs : callable
        Returns the storage account's blobs.
    container : str
        The job's container of what comes back.
    key : bytes
        The job's key.
    job : str
        Its id.
    """

    def __init__(self, blobs: Callable[[], BlobService], container: str, key: bytes, job: str) -> None:
        self._blobs, self._container, self._key, self._job = blobs, container, key, job
        self._streams: dict[str, _Stream] = {}
        #: Of calls, how many blobs there were when all were listed.
        self._listed: dict[str, int] = {}
        #: What the last listing had of runs of which a call has raised.
        self._failed: set[str] = set()

    def grown(self, call: str, wanted: Callable[[str], bool], tasks: Collection[str] | None = None) -> list[BlobItem]:
        """Return the blobs of a call that have more, of those tasks that are wanted.

        Parameters
        ----------
        call : str
        wanted : callable
            Tells of a task whether it is.
        tasks : collection of str, optional
            All that are, or what their ids begin with, where that is known: once a call has had very many tasks, those
            that ended are not all listed again.

        Raises
        ------
        ServiceError
        """
        listed = [f"{call}/"]
        if tasks is not None:
            if self._listed.get(call, 0) > _MANY:
                listed = stems([f"{call}/{task}" for task in tasks], _PARTS)
            if len(self._streams) > 2 * (len(tasks) + _MANY):
                self._streams = {name: stream for name, stream in self._streams.items() if wanted(task_of(name))}
        items = [item for prefix in listed for item in self._blobs().blobs(self._container, prefix)]
        self._listed[call] = max(self._listed.get(call, 0), len(items))
        self._failed = {item.name for item in items if item.name.endswith(_FAILED)}
        return [
            item
            for item in items
            if "." not in item.name  # a payload
            and item.size > self._streams.get(item.name, _NOTHING).position
            and wanted(task_of(item.name))
        ]

    def failed(self, item: BlobItem) -> bool:
        """Tell whether a call of the run has raised, as the listing that brought the blob said."""
        return item.name + _FAILED in self._failed

    def unread(self, item: BlobItem) -> int:
        """Return how many bytes of a blob were not read."""
        return item.size - self._streams.get(item.name, _NOTHING).position

    def read(self, item: BlobItem, take: Callable[[Record, Place], object]) -> None:
        """Hand over the outcomes of a blob that are new, each as if it had a record of its own.

        Raises
        ------
        IntegrityError
            Where a record is forged or damaged; those before it were handed over.
        ServiceError
        """
        name = item.name
        stream = self._streams.setdefault(name, _Stream())
        try:
            while stream.position < item.size:
                # A window at a time: what many tasks have said meanwhile must not all be in memory at once.
                length = min(_WINDOW, item.size - stream.position)
                data = self._blobs().read(self._container, name, stream.position, length)
                end = 0
                for record in unseal_all(self._key, f"{self._job}/{name}", data, stream.records):
                    where = name, stream.position + end, record.end - end, stream.records
                    for part, outcome in enumerate(outcomes_of(record)):
                        take(outcome, Place(*where, part))
                    stream.records += 1
                    end = record.end
                if end == 0:
                    return  # the rest of a record is still on its way
                stream.position += end
        except ResourceNotFoundError:
            logger.debug("outcomes %s are gone", name)

    def read_again(self, place: Place) -> memoryview:
        """Return the body of an outcome that was read before.

        Raises
        ------
        IntegrityError, ServiceError
        """
        data = self._blobs().read(self._container, place.blob, place.offset, place.size)
        found = unseal(self._key, f"{self._job}/{place.blob}#{place.number}", data)
        if found is None:
            raise IntegrityError(f"{self._container}/{place.blob} has become shorter than it was")
        return next(itertools.islice(outcomes_of(found), place.part, None)).body

    def results(
        self, record: Record, place: Place, window: Window, *, order: tuple[int, ...], bounded: bool
    ) -> tuple[Results | None, Any]:
        """Return the results of an outcome for whoever consumes them, and what of its body is to be kept.

        Parameters
        ----------
        record : Record
        place : Place
        window : Window
        order : tuple of int
            Where they come among others.
        bounded : bool
            Whether somebody consumes them one by one, so that they need not all be in memory.
        """
        head = record.head
        if "groups" in head:
            found = window.payload(
                head["blob"], head["groups"], head["contents"], order=order, bounded=bounded and head["ok"]
            )
            return found, record.body
        if bounded and head.get("ok"):
            return window.record(record.body, lambda: self.read_again(place), order=order), b""
        return None, record.body
