"""Bundles: the calls of some chunks on their way to a node.

::

    bundle = record(manifest) · record(function) · … · record(chunk) · record(chunks) · … · record(small buffer) · …

Plain functions, and the backend of nested calls, are pickled once a Parallel call, apart from the arguments: a chunk
names them by number. Other
callables (bound methods, instances) may change between two calls, so they travel with their call. What of an
argument stays in band and is large (a forest of small trees, a long list) is pickled as a *part* of its own where
several chunks have it: a part is a content-addressed buffer as any other, so that it too moves once.
"""

from __future__ import annotations

import itertools
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ..errors import ContentChangedError, IntegrityError, TaskPicklingError
from .content import Map, content_name
from .pickling import PROTOCOL, Buffer, Digests, Packed, pack
from .records import Record, divided, seal, unseal_all

#: Functions that one Parallel call keeps by number; an endless generator of fresh closures must not grow
#: the table for ever, so further ones travel inside their chunk.
MAX_NUMBERED_FUNCTIONS = 1000
#: Bytes in band from which on a pickle is looked through for parts; a part has at least a quarter of it. A request
#: to storage costs as much as a copy of that.
LARGE_PICKLE = 256 << 10
#: Bytes below which chunks that need nothing beside them are sealed together.
TINY = 4 << 10
#: Up to this size buffers travel within the bundle, as long as they are not more than that together: a request for each
#: would cost more.
INLINE, MOST_INLINE = 64 << 10, 16 << 20
#: Parts whose bytes are kept, so that the chunks of a bundle do not each hold their own copy.
_PARTS = 8
#: Types that cost pickle nothing; not those derived from them.
_PLAIN = frozenset({int, float, complex, bool, str, type(None)})
#: Pickled once a Parallel call.
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, type)
#: What a pickle may share with another without anybody noticing that it became two.
_CONSTANT = (str, bytes, int, float, complex, tuple, frozenset, type, types.FunctionType, types.BuiltinFunctionType)


class Part(NamedTuple):
    """A pickle as a buffer, and the buffers that it needs."""

    pickle: Buffer
    buffers: list[Buffer]


class EncodedChunk(NamedTuple):
    """A chunk as bytes: its pickle, its buffers, the numbers of the functions that it calls, and its parts."""

    data: bytes
    buffers: Sequence[Buffer]
    functions: Sequence[int]
    parts: Sequence[Part]

    def is_tiny(self, calls: int = 1) -> bool:
        """Whether it is so little, for so many calls, that to seal it would cost more than to pickle it did."""
        return len(self.data) < TINY * calls and not self.buffers and not self.parts


class CallEncoder:
    """Encodes the chunks of one Parallel call; pickles each function of it once.

    Parameters
    ----------
    threshold : int or None
        Buffers of at least this many bytes go out of band.
    map : callable
        As `codec.content_name` takes it.
    """

    def __init__(self, threshold: int | None, map: Map = map) -> None:
        self.threshold = threshold
        self._map = map
        # Strong references beside the ids: an id is only a name while its object lives.
        self._known: dict[int, tuple[int, Any]] = {}
        self._functions: list[Packed | Part] = []
        self._uses: dict[Sequence[int], Sequence[int]] = {}
        self._digests = Digests(map)
        #: Arguments that are parts: of the chunk before, and their bytes.
        self._apart: dict[int, Any] = {}
        self._previous: dict[int, Any] = {}
        self._parts: dict[str, Buffer] = {}
        #: Full names of the modules that the pickles so far refer to.
        self.modules: set[str] = set()

    def forget(self) -> None:
        """Hash everything anew: something has changed since it was hashed."""
        self._digests = Digests(self._map)

    def chunk(self, batch: Any, beside: Iterable[Any] = ()) -> EncodedChunk:
        """Encode one ``joblib.parallel.BatchedCalls``.

        Parameters
        ----------
        batch : joblib.parallel.BatchedCalls
        beside : iterable of joblib.parallel.BatchedCalls
            Others of the same Parallel call: what they have too is worth a part of its own.

        Raises
        ------
        TaskPicklingError
            Where a function or an argument cannot be pickled.
        """
        try:
            return self._chunk(batch, beside)
        except Exception as exc:
            raise TaskPicklingError(
                f"Could not pickle the task to send to the nodes: {type(exc).__name__}: {exc}. Pass what "
                "the call needs as picklable arguments, or open it inside the call"
            ) from exc

    def plain(self, batch: Any) -> EncodedChunk | None:
        """Encode a chunk of numbers and words for functions that were pickled already; None for any other.

        In a tenth of the time, on any thread, and also while another one encodes.
        """
        known, backend = self._known, batch._backend
        if backend is not None:
            if id(backend) not in known:
                return None
            backend = known[id(backend)][0]
        calls, used = [], {backend}
        for func, args, kwargs in batch.items:
            found = known.get(id(func))
            if found is None or not (_are_plain(args) and _are_plain(kwargs.values())):
                return None
            calls.append((found[0], args, kwargs))
            used.add(found[0])
        return EncodedChunk(pickle.dumps((calls, backend, batch._n_jobs), PROTOCOL), (), self._used(used), ())

    def _chunk(self, batch: Any, beside: Iterable[Any]) -> EncodedChunk:
        calls = [(self._reference(func), args, kwargs) for func, args, kwargs in batch.items]
        backend = batch._backend if batch._backend is None else self._number(batch._backend)
        plain = self.plain(batch)
        if plain is not None:
            return plain
        used = self._used({backend, *(call[0] for call in calls)})
        whole = (calls, backend, batch._n_jobs)
        own = {id(value): value for value in _arguments(calls)}
        apart = {key: value for key, value in own.items() if self._apart.get(key) is value}
        if not apart:
            packed = self._pack(whole)
            if self.threshold is None or len(packed.data) < LARGE_PICKLE:
                return EncodedChunk(*packed, used, [])
            shared = set(self._previous).union(*(map(id, _arguments(other.items)) for other in beside))
            self._previous = own
            apart = {key: value for key, value in own.items() if key in shared and self._is_large(value)}
            if not apart:
                return EncodedChunk(*packed, used, [])
        split = self._split(whole, apart)
        if split is None:  # they hang together: to send them apart would make two of what is one
            self._apart, self._previous = {}, own
            return EncodedChunk(*self._pack(whole), used, [])
        self._apart = apart
        rest, parts = split
        return EncodedChunk(*rest, used, parts)

    def _used(self, references: set[Any]) -> Sequence[int]:
        """Return the numbers among some references, in order: the same object for the same ones."""
        numbers = tuple(sorted(reference for reference in references if type(reference) is int))
        if len(self._uses) >= MAX_NUMBERED_FUNCTIONS:
            self._uses.clear()
        return self._uses.setdefault(numbers, numbers)

    def _pack(self, obj: Any, **options: Any) -> Packed:
        return pack(obj, self.threshold, self._digests, self.modules, **options)

    def _is_large(self, value: Any) -> bool:
        return len(self._pack(value).data) >= LARGE_PICKLE // 4

    def _split(self, whole: Any, apart: dict[int, Any]) -> tuple[Packed, list[Part]] | None:
        """Pickle `whole` without what goes apart, and that by itself; None where they have an object in common."""
        alive: list[dict[int, Any]] = []  # an identity is only a name while its object lives
        seen: set[int] = set()
        parts: list[Part] = []
        jobs = [(whole, {key: number for number, key in enumerate(apart)})]
        jobs += [(value, {}) for value in apart.values()]
        for obj, without in jobs:
            memo: dict[int, Any] = {}
            packed = self._pack(obj, apart=without, memo=memo)
            mine = {key for key, value in memo.items() if not _is_constant(value)}
            if seen & mine:
                return None
            seen |= mine
            alive.append(memo)
            if without:
                rest = packed
            else:
                parts.append(self._part(packed))
        return rest, parts

    def _part(self, packed: Packed) -> Part:
        data = memoryview(packed.data)
        name = content_name(data, self._map)
        kept = self._parts.pop(name, None) or Buffer(name, data)
        self._parts[name] = kept
        if len(self._parts) > _PARTS:
            del self._parts[next(iter(self._parts))]
        return Part(kept, packed.buffers)

    def _reference(self, func: Any) -> Any:
        """Return the number of a plain function, or `func` itself where it travels with its call."""
        return self._number(func) if isinstance(func, _FUNCTIONS) else func

    def _number(self, func: Any) -> Any:
        """Return the number of what is pickled once, or `func` itself where there are too many of those."""
        known = self._known.get(id(func))
        if known is None:
            if len(self._functions) >= MAX_NUMBERED_FUNCTIONS:
                return func
            known = (len(self._functions), func)
            packed = self._pack(func)
            large = self.threshold is not None and len(packed.data) >= LARGE_PICKLE // 4
            self._functions.append(self._part(packed) if large else packed)
            self._known[id(func)] = known
        return known[0]

    def function(self, number: int) -> Packed | Part:
        """Return the pickle of a function: within its bundle, or, where it is large, as a part."""
        return self._functions[number]


def _are_plain(values: Iterable[Any]) -> bool:
    """Whether nothing of some arguments needs more than pickle's own: numbers and words."""
    return _PLAIN.issuperset(map(type, values))


def _arguments(calls: Iterable[tuple[Any, Sequence[Any], dict[str, Any]]]) -> Iterator[Any]:
    """Yield what some calls are given that could be large in band."""
    for func, args, kwargs in calls:
        for value in (func, *args, *kwargs.values()):
            if value is not None and not isinstance(value, int | float | complex | str | types.FunctionType | type):
                yield value


def _is_constant(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return isinstance(value, _CONSTANT) or (numpy is not None and isinstance(value, numpy.dtype | numpy.generic))


def write_bundle(
    key: bytes,
    place: str,
    manifest: dict[str, Any],
    chunks: Sequence[tuple[int, EncodedChunk]],
    encoder: CallEncoder,
    overlay: Sequence[Buffer] = (),
    url: Callable[[str], str] = str,
    stored: Callable[[str], bool] = bool,
) -> tuple[bytes, dict[str, Buffer]]:
    """Return a bundle's bytes and the buffers that it needs besides, by name and in the order of their first use.

    Parameters
    ----------
    key : bytes
        The job's key.
    place : str
        Where the bundle lies, as `records.seal` takes it.
    manifest : dict
        JSON values; ``records``, ``sizes`` and ``urls`` (by the buffers' names) are added, and ``coming`` (the names of
        those that may not be stored yet).
    chunks : sequence of (int, EncodedChunk)
    encoder : CallEncoder
        The one that encoded them.
    overlay : sequence of Buffer
        Needed before all others.
    url : callable
        Returns where a node reads the buffer of a name.
    stored : callable
        Tells whether the buffer of a name is stored already.

    Raises
    ------
    ContentChangedError
        Where a buffer that travels within the bundle is not any more what it was when it was pickled.
    """
    numbers = sorted({number for _, chunk in chunks for number in chunk.functions})
    buffers = {buffer.digest: buffer for buffer in overlay}

    def names(found: Iterable[Buffer]) -> list[str]:
        for buffer in found:
            buffers.setdefault(buffer.digest, buffer)
        return [buffer.digest for buffer in found]

    def described(part: Part) -> list[Any]:
        return [*names([part.pickle]), names(part.buffers)]

    bodies: list[tuple[dict[str, Any], bytes]] = []
    for number in numbers:
        function = encoder.function(number)
        if isinstance(function, Part):
            bodies.append(({"function": number, "buffers": [], "parts": [described(function)]}, b""))
        else:
            bodies.append(({"function": number, "buffers": names(function.buffers), "parts": []}, function.data))
    for tiny, some in itertools.groupby(chunks, lambda chunk: chunk[1].is_tiny()):
        if tiny:  # one code for all of them
            together = list(some)
            listed = [[number, len(chunk.data), chunk.functions] for number, chunk in together]
            bodies.append(({"chunks": listed}, b"".join(chunk.data for _, chunk in together)))
            continue
        for chunk_id, chunk in some:
            head = {"chunk": chunk_id, "functions": chunk.functions, "buffers": names(chunk.buffers)}
            bodies.append(({**head, "parts": [described(part) for part in chunk.parts]}, chunk.data))
    small = _small(buffers, {buffer.digest for buffer in overlay})
    large = {name: buffer for name, buffer in buffers.items() if name not in small}
    head = {
        **manifest,
        "records": len(bodies) + len(small),
        "sizes": {name: buffer.data.nbytes for name, buffer in large.items()},
        "urls": {name: url(name) for name in large},
        "coming": [name for name in large if not stored(name)],
    }
    records = [seal(key, f"{place}#0", head)]
    records += [seal(key, f"{place}#{n}", head, body) for n, (head, body) in enumerate(bodies, start=1)]
    end = sum(map(len, records))
    for name, buffer in small.items():
        # A copy: it is sealed under the name that it had when it was pickled, and may have changed since.
        data = bytes(buffer.data)
        if content_name(data) != name:
            raise ContentChangedError(
                "an argument of a call was changed while it was being sent. Give each call a copy of what changes"
            )
        records.append(seal(key, f"{place}#{len(records)}", {"buffer": name}, data, at=end))
        end += len(records[-1])
    return b"".join(records), large


def _small(buffers: dict[str, Buffer], without: set[str]) -> dict[str, Buffer]:
    """Return the buffers that travel within their bundle."""
    room, found = MOST_INLINE, {}
    for name, buffer in buffers.items():
        size = buffer.data.nbytes
        if size <= min(INLINE, room) and name not in without:
            found[name] = buffer
            room -= size
    return found


class ReadBundle(NamedTuple):
    """A bundle whose every record was authenticated; bodies are still pickles."""

    manifest: dict[str, Any]
    functions: dict[int, Record]
    chunks: dict[int, Record]
    buffers: dict[str, Record]


def _chunks(record: Record) -> Iterator[Record]:
    """Return the chunks of a record, each as if it had one of its own."""
    if "chunk" in record.head:
        return iter((record,))
    parts = (
        ({"chunk": number, "functions": functions, "buffers": [], "parts": []}, size)
        for number, size, functions in record.head.get("chunks", ())
    )
    return divided(record, parts)


def read_bundle(key: bytes, place: str, data: bytes | memoryview) -> ReadBundle:
    """Authenticate a bundle and return its parts.

    Raises
    ------
    IntegrityError
        Where a record is forged, damaged, moved or missing.
    """
    records = list(unseal_all(key, place, data))
    if not records or len(records) - 1 != records[0].head.get("records"):
        raise IntegrityError(f"{place} is cut short: {len(records)} whole records were found in it")
    manifest, *rest = records
    return ReadBundle(
        manifest.head,
        {r.head["function"]: r for r in rest if "function" in r.head},
        {chunk.head["chunk"]: chunk for r in rest for chunk in _chunks(r)},
        {r.head["buffer"]: r for r in rest if "buffer" in r.head},
    )
