"""Outcomes: what the calls of a chunk returned or raised, on its way back to the client.

::

    small    record(head, pickle)                              in the append blob of the task's run
    large    record(head with groups, nothing) there, and a payload beside it, a blob of its own:
             group · group · …        a group: some consecutive results, a pickle and its buffers each

A group is what the client fetches, checks and takes apart at a time, so that of a chunk of many large results only
those lie in memory that are being consumed. Buffers are fetched into memory of their own, and the arrays are made on
it: nothing is copied a second time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..errors import CodecError
from .pickling import Packed, pack, unpack

#: Bytes from which on an outcome is a payload of its own: below it the requests for a blob of its own cost more than
#: they save. And of a group, where a chunk has more: what the client fetches, and holds, at a time.
LARGE, GROUP = 1 << 20, 4 << 20
#: Bytes from which on a buffer of a payload is fetched into memory of its own.
_BUFFER = 64 << 10

#: Of each result of a group, the sizes in bytes of its pickle and of its buffers.
Layout = list[list[int]]


class Payload(NamedTuple):
    """A large outcome: its bytes in the order in which they lie in its blob, and the layout of its groups."""

    parts: list[bytes | memoryview]
    groups: list[Layout]


def encode_outcome(results: Sequence[Any], *, each: bool) -> bytes | Payload:
    """Pickle what a chunk brought.

    Parameters
    ----------
    results : sequence
        What its calls returned, or what stands for the exception.
    each : bool
        Whether results may be taken apart from each other.

    Returns
    -------
    bytes or Payload
    """
    whole = pack(results, _BUFFER)
    if whole.size < LARGE:
        return pack(results, None).data if whole.buffers else whole.data
    packed = [pack(result, _BUFFER) for result in results] if each else [whole]
    if sum(one.size for one in packed) > whole.size * 3 // 2:
        packed = [whole]  # they have much in common
    groups: list[Layout] = []
    room = 0
    for one in packed:
        if room <= 0:
            groups.append([])
            room = GROUP
        groups[-1].append([len(one.data), *(buffer.data.nbytes for buffer in one.buffers)])
        room -= one.size
    return Payload([part for one in packed for part in _bytes_of(one)], groups)


def _bytes_of(packed: Packed) -> Iterator[bytes | memoryview]:
    yield packed.data
    for buffer in packed.buffers:
        yield buffer.data


def group_size(layout: Layout) -> int:
    """Return the bytes of a group."""
    return sum(size for sizes in layout for size in sizes)


class Landing:
    """The memory that a group is fetched into, and what is made of it.

    Parameters
    ----------
    layout : list of list of int
        Sizes in bytes, as in `Payload`.
    """

    def __init__(self, layout: Layout) -> None:
        self._parts = [[bytearray(size) for size in sizes] for sizes in layout]
        self._starts: list[tuple[int, memoryview]] = []
        end = 0
        for part in (part for parts in self._parts for part in parts):
            self._starts.append((end, memoryview(part)))  # a bytearray's own slices would be copied first
            end += len(part)

    def take(self, offset: int, data: bytes | memoryview) -> None:
        """Take in the bytes that lie at `offset` of the group. Safe for threads where what they bring is disjoint."""
        view = memoryview(data)
        for start, part in self._starts:
            begin, end = max(offset, start), min(offset + len(view), start + len(part))
            if begin < end:
                part[begin - start : end - start] = view[begin - offset : end - offset]

    def results(self) -> Iterator[Any]:
        """Yield the results, once; only when all bytes are there and authenticated. :raises CodecError:"""
        self._starts.clear()
        while self._parts:
            data, *buffers = self._parts.pop(0)
            yield _decode(memoryview(data), buffers)


def decode_outcome(body: bytes | memoryview) -> Any:
    """Unpickle an authenticated outcome's body.

    Raises
    ------
    CodecError
        Where the client lacks what the result needs (a module, another version of a class).
    """
    return _decode(body, ())


def _decode(data: bytes | memoryview, buffers: Sequence[Any]) -> Any:
    try:
        return unpack(data, buffers)
    except Exception as exc:
        raise CodecError(
            f"a call's outcome arrived but cannot be unpickled here: {type(exc).__name__}: {exc}. Make the module that "
            "defines its type importable on the client too, or return what needs none"
        ) from exc
