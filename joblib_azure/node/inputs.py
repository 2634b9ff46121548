"""A bundle's buffers on their way to the node, while its first chunks run.

They are fetched in the order in which the chunks need them, several at a time; a worker that comes to one that is
not there yet waits for its file. Those that the client is still uploading are waited for. What storage does not hold
otherwise ends the task's calls: the client stores it again and sends them again.
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from .cache import Cache, WrongContentError
from .storage import TaskStorage

#: Buffers that are fetched at a time; of each, pieces side by side.
_STREAMS = 4
#: Buffers that are looked for at a time.
_LOOKERS = 8
#: Seconds between two looks for a buffer that the client is uploading: at first, and at most. The growth makes it one
#: twentieth of what was waited already: a pool of a thousand nodes must not ask storage ten times a second for long.
_FIRST_LOOK, _LAST_LOOK, _GROWTH = 0.05, 5.0, 1.05


class Inputs:
    """The buffers of one bundle.

    Parameters
    ----------
    storage : TaskStorage
    cache : Cache
        They are to be pinned in it.
    manifest : dict
        Of the bundle: ``sizes`` and ``urls`` by name, in the order of their need, and the names that are ``coming``.
    failed : callable
        Called, on a thread of its own, once it is known that not all will come.
    """

    def __init__(
        self,
        storage: TaskStorage,
        cache: Cache,
        manifest: dict[str, Any],
        failed: Callable[[], object],
    ) -> None:
        self._storage, self._cache = storage, cache
        self._sizes: dict[str, int] = manifest["sizes"]
        self._urls: dict[str, str] = manifest["urls"]
        self._coming = frozenset[str](manifest["coming"])
        self._failed = failed
        #: Names of those that storage does not have, or not with their content.
        self.missing: list[str] = []
        self.error: BaseException | None = None
        #: Seconds for which the client was still uploading.
        self.waited = 0.0
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    @property
    def broken(self) -> bool:
        """Whether not all will come."""
        return bool(self.missing) or self.error is not None

    def begin(self, first: list[str]) -> None:
        """Begin to fetch what is not there; return once `first` have come, or it is known that they will not."""
        wanted = [name for name in self._sizes if not self._cache.path(name).exists()]
        if not wanted:
            return
        try:
            self._cache.make_room(sum(self._sizes[name] for name in wanted))
        except OSError as exc:
            self.error = exc
            return
        self._pool = concurrent.futures.ThreadPoolExecutor(_STREAMS, thread_name_prefix="inputs")
        futures = {name: self._pool.submit(self._bring, name) for name in wanted}
        concurrent.futures.wait([futures[name] for name in first if name in futures])

    def _bring(self, name: str) -> None:
        try:
            self._cache.bring(name, self._sizes[name], lambda sink: self._fetch(name, sink))
        except (KeyError, WrongContentError):
            self._fail(missing=name)
        except BaseException as exc:
            self._fail(error=exc)

    def _fetch(self, name: str, sink: Callable[[int, bytes], object]) -> str:
        if name not in self._coming:
            return self._storage.fetch_buffer(self._urls[name], self._sizes[name], sink, None)
        begun, pauses = time.monotonic(), _pauses()

        def wait() -> bool:
            # Bounded: the client ends the task where it cannot upload, and the service where the client has died.
            closed = self._closed.wait(next(pauses))
            self.waited = max(self.waited, time.monotonic() - begun)
            return not closed

        return self._storage.fetch_buffer(self._urls[name], self._sizes[name], sink, wait)

    def _fail(self, *, missing: str | None = None, error: BaseException | None = None) -> None:
        with self._lock:
            already = self.broken
            if missing is not None:
                self.missing.append(missing)
            self.error = self.error or error
        if not already:
            self._failed()

    def close(self) -> None:
        """Fetch nothing further. Where something was missing, find all that is: the client sends it again at once."""
        self._closed.set()
        if self._pool is None:
            return
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self.missing:
            with concurrent.futures.ThreadPoolExecutor(_LOOKERS) as pool:
                names = [name for name in self._sizes if not (name in self._coming or self._cache.path(name).exists())]
                there = pool.map(lambda name: self._storage.has_buffer(self._urls[name], self._sizes[name]), names)
                lacking = {name for name, is_there in zip(names, there, strict=True) if not is_there}
            self.missing = sorted(lacking.union(self.missing))


def _pauses() -> Iterator[float]:
    pause = _FIRST_LOOK
    while True:
        yield pause
        pause = min(pause * _GROWTH, _LAST_LOOK)
