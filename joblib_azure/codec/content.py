"""Content names: what a buffer is called wherever it lies, made of the SHA-256 of its pieces.

A buffer of up to one piece is named by its SHA-256 in hex. A larger one is cut into pieces of `PIECE` bytes and
named ``<SHA-256 of the pieces' SHA-256>.<number of pieces>``: so its pieces are hashed side by side on both ends,
each as it arrives, and a name has one meaning, since the number tells the two kinds apart.

Measured on two cores (benchmarks/bench_data.py): SHA-256 1.8 GB/s in one thread, 3.4 GB/s by pieces in two, BLAKE3
4.8 and 7.6 GB/s, a copy of the same bytes 2.4 GB/s. Pieces bring SHA-256 to the speed of memory, and the nodes need
no package for it beyond the standard library.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

#: Bytes of a piece: what is hashed, uploaded as a block and fetched as a range at a time. Below it the requests
#: themselves begin to cost (Azurite: 4 MiB 160 MB/s down, 8 MiB 360); above it more lies in memory on its way.
PIECE = 8 << 20

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


def spans(size: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length of each piece of `size` bytes; one of length 0 for no bytes."""
    for offset in range(0, max(size, 1), PIECE):
        yield offset, min(PIECE, size - offset)


def name_of(pieces: Sequence[bytes]) -> str:
    """Return the content name of what has pieces of these SHA-256, in their order."""
    if len(pieces) == 1:
        return pieces[0].hex()
    return f"{hashlib.sha256(b''.join(pieces)).hexdigest()}.{len(pieces)}"


def content_name(data: bytes | memoryview, map: Map = map) -> str:
    """Return the content name of some bytes.

    Parameters
    ----------
    data : bytes or memoryview
        Contiguous.
    map : callable
        As the built-in, in order; that of a pool of threads hashes pieces side by side.

    Examples
    --------
    >>> content_name(b"")[:16], content_name(bytes(3 * PIECE))[64:]
    ('e3b0c44298fc1c14', '.3')
    """
    view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")

    def digest(span: tuple[int, int]) -> bytes:
        return hashlib.sha256(view[span[0] : span[0] + span[1]]).digest()

    if view.nbytes <= PIECE:
        return digest((0, view.nbytes)).hex()
    return name_of(list(map(digest, spans(view.nbytes))))
