"""Streams of outcomes: what a run of a task appends to its blob, a record or several at a time.

::

    stream = record(outcome) · record(outcome) · … · record(outcomes) · … · record(end)

Small outcomes that are sent together share a record: to seal and to open one costs as much as to make a small result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .records import Record, divided, seal

#: Behind the name of a stream's blob and a dot: an empty blob that says that one of its calls has raised.
FAILED = "failed"
#: Bytes below which outcomes share a record, and that those of one have at most: one that is read again comes with the
#: others of its record. So many do at most.
SMALL, MOST_TOGETHER, MOST_SHARING = 4 << 10, 64 << 10, 256


def seal_outcomes(
    key: bytes, place: str, first: int, outcomes: Iterable[tuple[dict[str, Any], bytes]]
) -> Iterator[bytes]:
    """Yield the records of some outcomes, in their order.

    Parameters
    ----------
    key : bytes
        The job's key.
    place : str
        Of the stream: its k-th record's is ``f"{place}#{k}"``.
    first : int
        How many records the stream has already.
    outcomes : iterable of (dict, bytes)
        Their heads and pickles.
    """
    for number, some in enumerate(_together(outcomes), start=first):
        head, body = some[0]
        if len(some) > 1:
            head = {"outcomes": [[head, len(body)] for head, body in some]}
            body = b"".join(body for _, body in some)
        yield seal(key, f"{place}#{number}", head, body)


def _together(outcomes: Iterable[tuple[dict[str, Any], bytes]]) -> Iterator[list[tuple[dict[str, Any], bytes]]]:
    """Yield what goes into a record each."""
    small: list[tuple[dict[str, Any], bytes]] = []
    size = 0
    for outcome in outcomes:
        body = len(outcome[1])
        if small and (body >= SMALL or size + body > MOST_TOGETHER or len(small) >= MOST_SHARING):
            yield small
            small, size = [], 0
        if body >= SMALL:
            yield [outcome]
        else:
            small.append(outcome)
            size += body
    if small:
        yield small


def outcomes_of(record: Record) -> Iterator[Record]:
    """Return the outcomes of a record, each as if it had one of its own."""
    together = record.head.get("outcomes")
    return iter((record,)) if together is None else divided(record, together)
