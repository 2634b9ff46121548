"""Stores content-addressed buffers in the account, each content once: not per chunk, not per job, not per client.

What storage has is asked of it, once a session and content; what is used is touched once a day, so that collecting
what nobody uses (`storage.collect`) leaves it alone. A node that does not find a buffer says so, and it is stored
again whatever was known of it.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Iterable

from .codec import PIECE, Buffer
from .service import BlobService
from .storage import BUFFERS, stale
from .transfer import side_by_side

#: Buffers that are stored at a time; of each, pieces side by side.
_STREAMS = 4
#: Up to this size a buffer is sent without asking whether it is there: that costs no more than to ask.
_SMALL = PIECE // 32


class BufferStore:
    """The buffers of a storage account as one session stores them; safe for threads.

    Parameters
    ----------
    blobs : callable
        Returns the account's blobs.
    """

    def __init__(self, blobs: Callable[[], BlobService]) -> None:
        self._blobs = blobs
        self._stored: set[str] = set()
        self._doubted: set[str] = set()
        self._storing: dict[str, threading.Lock] = {}
        self._pool = concurrent.futures.ThreadPoolExecutor(_STREAMS, thread_name_prefix="joblib_azure-buffers")

    def __contains__(self, name: object) -> bool:
        """Whether the buffer of that name is known to be stored."""
        return name in self._stored

    def store(self, buffers: Iterable[Buffer], wanted: Callable[[], bool]) -> None:
        """Store the buffers that are not known to be stored, as long as they are wanted.

        Raises
        ------
        ContentChangedError
            Where one is not any more what its name says.
        concurrent.futures.CancelledError
        ServiceError
        """
        needed = [buffer for buffer in buffers if buffer.digest not in self._stored]
        side_by_side(self._pool, lambda buffer: self._store(buffer, wanted), needed)

    def forget(self, names: Iterable[str]) -> None:
        """A node did not find these in storage, or not with their content: store them again when they are needed."""
        names = list(names)
        self._doubted.update(names)
        self._stored.difference_update(names)

    def close(self) -> None:
        """Store nothing any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _store(self, buffer: Buffer, wanted: Callable[[], bool]) -> None:
        if not wanted():
            raise concurrent.futures.CancelledError
        # The first that needs a buffer stores it, the others wait for that.
        with self._storing.setdefault(buffer.digest, threading.Lock()):
            if buffer.digest not in self._stored:
                if not self._is_there(buffer):
                    self._blobs().put(BUFFERS, buffer.digest, buffer.data, content=buffer.digest, wanted=wanted)
                self._doubted.discard(buffer.digest)
                self._stored.add(buffer.digest)
        self._storing.pop(buffer.digest, None)

    def _is_there(self, buffer: Buffer) -> bool:
        blobs, name = self._blobs(), buffer.digest
        if name in self._doubted:
            return False
        if buffer.data.nbytes <= _SMALL and blobs.put(BUFFERS, name, buffer.data, overwrite=False, content=name):
            return True
        found = blobs.stat(BUFFERS, name)
        if found is None or found.size != buffer.data.nbytes:
            return False
        return not stale(found.modified) or blobs.touch(BUFFERS, name)
