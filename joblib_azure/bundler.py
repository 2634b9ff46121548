"""From chunks to the bundles that carry them: what a Parallel call and a detached job have in common.

One for each of them: it knows what they ask for, and pickles what their calls share once.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .codec import Buffer, CallEncoder, EncodedChunk, write_bundle
from .codec.content import Map

#: Buffers from this size on move by themselves where the user says nothing of it: joblib's own ``max_nbytes``.
THRESHOLD = 1 << 20
#: Seconds between two requests with outcomes of one task, at first and at most.
_SPACING, _SPACING_OF_A_LIST = (0.2, 0.2), (1.0, 2.0)
#: Of all tasks of a client together no more come a second, about: each costs it a request too. For a large pool that
#: gives a longer pause between two of one task, but none longer than this.
_APPENDS, _LONGEST_SPACING = 200.0, 5.0


def spacing_among(streams: int) -> float:
    """Return the seconds between two requests with outcomes of one task, where so many tasks run at once."""
    return min(streams / _APPENDS, _LONGEST_SPACING)


@dataclass(frozen=True, kw_only=True)
class CallSettings:
    """What a Parallel call asks for.

    Parameters
    ----------
    n_jobs : int
        Chunks that may run at once, at least 2.
    max_nbytes : int or None
        Buffers of at least this many bytes move by themselves, once, and are mapped on the node. None: each call
        gets copies of its own there, as it would at home; they still move once.
    mmap_mode : str or None
        How they are mapped on the node.
    inner_max_num_threads : int or None
        Threads of BLAS and OpenMP in a worker.
    path : tuple of str
        Further entries of ``sys.path`` on the node.
    environment : mapping
        Variables for the calls: the limits of threads that the user set here.
    initializer : bytes or None
        Pickle of a function and its arguments, called once in every worker before its first call.
    return_as : str
        How joblib hands the results over: ``list``, ``generator`` or ``generator_unordered``.
    timed : bool
        Whether joblib gives up a call that takes too long.
    """

    n_jobs: int
    max_nbytes: int | None
    mmap_mode: str | None
    inner_max_num_threads: int | None
    path: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    initializer: bytes | None = None
    return_as: str = "list"
    timed: bool = False

    @property
    def watched(self) -> bool:
        """Whether somebody sees the results one by one: a generator's consumer, or joblib's clock."""
        return self.return_as != "list" or self.timed

    def spacing(self, streams: int) -> tuple[float, float]:
        """Return the seconds that outcomes of a task wait for each other before they are sent, at first and at most.

        Each request costs as much as a short call. `streams` tasks run at once.
        """
        first, last = _SPACING if self.watched else _SPACING_OF_A_LIST
        among = spacing_among(streams)
        return max(first, among), max(last, among)

    @property
    def threshold(self) -> int:
        """Bytes from which on a buffer moves by itself."""
        return THRESHOLD if self.max_nbytes is None else self.max_nbytes


class Bundler:
    """Encodes the chunks of one call, and writes their bundles.

    Parameters
    ----------
    id : str
        Of the call, unique within its job.
    settings : CallSettings
    overlay : sequence of Buffer, default ()
        The archives of the user's modules as they were when the call began.
    map : callable
        Hashes pieces side by side.
    uploads : sequence of dict, default ()
        Files that a task stores at its end, as `node.given` takes them.
    """

    def __init__(
        self,
        id: str,
        settings: CallSettings,
        overlay: Sequence[Buffer] = (),
        *,
        map: Map = map,
        uploads: Sequence[Mapping[str, str]] = (),
    ) -> None:
        self.id = id
        self.uploads = [dict(each) for each in uploads]
        self.settings = settings
        self.overlay = tuple(overlay)
        self._encoder = CallEncoder(settings.threshold, map)

    def chunk(self, batch: Any, beside: Iterable[Any] = ()) -> EncodedChunk:
        """Encode one chunk, as `codec.CallEncoder.chunk` does; one at a time."""
        return self._encoder.chunk(batch, beside)

    def plain(self, batch: Any) -> EncodedChunk | None:
        """Encode a chunk of numbers and words, as `codec.CallEncoder.plain` does."""
        return self._encoder.plain(batch)

    def forget(self) -> None:
        """Something has changed since it was encoded: believe no name any more."""
        self._encoder.forget()

    @property
    def modules(self) -> frozenset[str]:
        """Full names of the modules that what was encoded so far refers to."""
        # Neither this nor `bundle` waits for the bundle that is encoded next: what is encoded is only added to.
        return frozenset(self._encoder.modules)

    def bundle(
        self,
        key: bytes,
        place: str,
        encoded: Sequence[tuple[int, EncodedChunk]],
        needs: Any,
        url: Callable[[str], str],
        stored: Callable[[str], bool],
        streams: int,
    ) -> tuple[bytes, dict[str, Buffer]]:
        """Return a bundle of these chunks and the buffers that it needs, by their names.

        Parameters
        ----------
        key, place
            As `codec.write_bundle` takes them.
        encoded : sequence of (int, EncodedChunk)
        needs : JSON value
            The packages that its pickles need, as `environment.client_needs` has them.
        url : callable
            Returns where a node reads the buffer of a name.
        stored : callable
            Tells whether it is there already.
        streams : int
            Tasks that run at once, about.
        """
        settings = self.settings
        manifest: dict[str, Any] = {
            "call": self.id,
            # As at home: without a limit nothing is mapped.
            "mmap_mode": None if settings.max_nbytes is None else settings.mmap_mode,
            "path": list(settings.path),
            "overlay": [buffer.digest for buffer in self.overlay],
            "initializer": settings.initializer and base64.b64encode(settings.initializer).decode(),
            "needs": needs,
            "spacing": settings.spacing(streams),
            "uploads": self.uploads,
        }
        return write_bundle(key, place, manifest, encoded, self._encoder, self.overlay, url, stored)
