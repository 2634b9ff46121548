"""What crosses the wire, as bytes: calls on their way to a node and outcomes on their way back.

Owns three formats and nothing else (no azure, no threads), so that client and node share one definition::

    bundle   = record(manifest) · record(functions) · record(chunk) · record(chunk) · …
    outcomes = record(outcome) · record(outcome) · … · record(end)          (an append blob, one a task run)
    record   = magic · length of head · length of body · head (JSON) · body · HMAC-SHA256

A record's HMAC covers its bytes and its *place* (which job, which blob, which position), so that a record
cannot be moved to another place, and it is checked before the body is unpickled. Bodies are pickles of
protocol 5. Buffers of at least ``threshold`` bytes travel beside the pickle, named by their SHA-256
(`Buffer`), so that one array in ten thousand calls is stored and fetched once.

Plain functions are pickled once a Parallel call, apart from the arguments: a chunk names them by number.
Other callables (bound methods, instances) may change between two calls, so they travel with their call.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import io
import json
import pickle
import secrets
import struct
import types
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .errors import CodecError, IntegrityError, TaskPicklingError

MAGIC = b"JAZ1"
_PREFIX = struct.Struct(">4sIQ")
_DIGEST_SIZE = hashlib.sha256().digest_size
PROTOCOL = 5
#: Functions that one Parallel call keeps by number; an endless generator of fresh closures must not grow
#: the table for ever, so further ones travel inside their chunk.
MAX_NUMBERED_FUNCTIONS = 1000


def new_key() -> bytes:
    """Return a job's random authentication key, 32 bytes."""
    return secrets.token_bytes(32)


# --------------------------------------------------------------------------------------------------------
# records


@dataclass(frozen=True)
class Record:
    """One authenticated record: a JSON head and a body of bytes."""

    head: dict[str, Any]
    body: memoryview
    offset: int  #: of the body
    end: int  #: offset of the byte behind the record


def _code(key: bytes, place: str, *parts: bytes | memoryview) -> bytes:
    mac = hmac.new(key, digestmod="sha256")
    where = place.encode()
    mac.update(struct.pack(">I", len(where)) + where)
    for part in parts:
        mac.update(part)
    return mac.digest()


def seal(key: bytes, place: str, head: dict[str, Any], body: bytes | memoryview = b"") -> bytes:
    """Return the bytes of one record.

    Parameters
    ----------
    key : bytes
        The job's key.
    place : str
        Where the record belongs, for example ``"job-1/c1-000000-0/000#3"``; `unseal` must name the same.
    head : dict
        Small JSON values.
    body : bytes
        The payload.
    """
    text = json.dumps(head, separators=(",", ":")).encode()
    prefix = _PREFIX.pack(MAGIC, len(text), len(body))
    return b"".join((prefix, text, body, _code(key, place, prefix, text, body)))


def unseal(key: bytes, place: str, data: bytes | memoryview, offset: int = 0) -> Record | None:
    """Return the record that begins at `offset`, or None where `data` ends before it does.

    Raises
    ------
    IntegrityError
        Where the bytes are no record or its code does not fit; the error names the place.
    """
    view = memoryview(data)
    if len(view) - offset < _PREFIX.size:
        return None
    prefix = view[offset : offset + _PREFIX.size]
    magic, head_size, body_size = _PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise IntegrityError(
            f"{place} does not begin as a record of joblib_azure does; it was damaged or written by "
            "something else, and nothing of it was unpickled"
        )
    body_at = offset + _PREFIX.size + head_size
    code_at = body_at + body_size
    end = code_at + _DIGEST_SIZE
    if len(view) < end:
        return None
    text, body = view[offset + _PREFIX.size : body_at], view[body_at:code_at]
    if not hmac.compare_digest(_code(key, place, prefix, text, body), view[code_at:end]):
        raise IntegrityError(
            f"the authentication code of {place} does not fit its content and place; nothing of it was "
            "unpickled. Somebody without the job's key wrote it, or it was moved or damaged"
        )
    return Record(head=json.loads(bytes(text)), body=body, offset=body_at, end=end)


def unseal_all(key: bytes, place: str, data: bytes | memoryview, first: int = 0) -> Iterator[Record]:
    """Yield the whole records of `data`; the k-th one's place is ``f"{place}#{first + k}"``."""
    offset = 0
    while (record := unseal(key, f"{place}#{first}", data, offset)) is not None:
        yield record
        first, offset = first + 1, record.end


# --------------------------------------------------------------------------------------------------------
# pickles with their buffers beside them


class Buffer(NamedTuple):
    """A contiguous buffer out of band: its name is its content's SHA-256 in hex."""

    digest: str
    data: memoryview


class Digests:
    """Remembers the digests of buffers by the identity of the objects that own them, while those live.

    For one Parallel call: an array that changes between two calls of the same Parallel keeps its first content, as
    with joblib's own memory maps.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[weakref.ref[Any], str]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, raw: memoryview) -> str:
        owner, key = raw.obj, (id(raw.obj), raw.nbytes)
        known = self._known.get(key)
        if known is not None and known[0]() is owner:
            return known[1]
        digest = hashlib.sha256(raw).hexdigest()
        with contextlib.suppress(TypeError):  # bytes and the like cannot be watched
            self._known[key] = (weakref.ref(owner, lambda _: self._known.pop(key, None)), digest)
        return digest


@functools.cache
def _pickler() -> Any:
    # Late: a Batch task authenticates bundles with this module and pickles nothing; it starts sooner without.
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        """cloudpickle's, noting whose objects it meets."""

        modules: set[str]

        def reducer_override(self, obj: Any) -> Any:
            self.modules.add(type(obj).__module__)
            if isinstance(obj, types.ModuleType):
                self.modules.add(obj.__name__)
            elif isinstance(obj, type | types.FunctionType | types.BuiltinFunctionType):
                self.modules.add(obj.__module__ or "")
            return super().reducer_override(obj)

    return Pickler


def pack(
    obj: Any, threshold: int | None, digests: Digests | None = None, modules: set[str] | None = None
) -> tuple[bytes, list[Buffer]]:
    """Pickle `obj`, with buffers of at least `threshold` bytes out of band.

    Parameters
    ----------
    obj : object
    threshold : int or None
        In bytes; None keeps all buffers in the pickle.
    digests : Digests, optional
        The memory of a Parallel call.
    modules : set of str, optional
        Takes up the full names of the modules whose objects, classes or functions the pickle holds.

    Returns
    -------
    data : bytes
    buffers : list of Buffer
        In the order in which `unpack` needs them.
    """
    buffers: list[Buffer] = []
    name = Digests() if digests is None else digests

    def outside(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous: pickle takes it in band
            return True
        if threshold is None or raw.nbytes < threshold:
            return True
        buffers.append(Buffer(name(raw), raw))
        return False

    stream = io.BytesIO()
    pickler = _pickler()(stream, protocol=PROTOCOL, buffer_callback=outside)
    pickler.modules = set() if modules is None else modules
    pickler.dump(obj)
    return stream.getvalue(), buffers


def unpack(data: bytes | memoryview, buffers: Sequence[Any] = ()) -> Any:
    """Rebuild what `pack` took apart. Only for authenticated bytes."""
    return pickle.loads(data, buffers=buffers)


# --------------------------------------------------------------------------------------------------------
# bundles


class CallEncoder:
    """Encodes the chunks of one Parallel call; pickles each function of it once.

    Parameters
    ----------
    threshold : int or None
        Buffers of at least this many bytes go out of band (`joblib.Parallel`'s ``max_nbytes``).
    """

    def __init__(self, threshold: int | None) -> None:
        self.threshold = threshold
        # Strong references beside the ids: an id is only a name while its object lives.
        self._known: dict[int, tuple[int, Any]] = {}
        self._functions: list[tuple[bytes, list[Buffer]]] = []
        self._digests = Digests()
        #: Full names of the modules that the pickles so far refer to.
        self.modules: set[str] = set()

    def chunk(self, batch: Any) -> EncodedChunk:
        """Encode one ``joblib.parallel.BatchedCalls``.

        Raises
        ------
        TaskPicklingError
            Where a function or an argument cannot be pickled.
        """
        try:
            calls = [(self._reference(func), args, kwargs) for func, args, kwargs in batch.items]
            used = sorted({reference for reference, _, _ in calls if isinstance(reference, int)})
            data, buffers = pack((calls, batch._backend, batch._n_jobs), self.threshold, self._digests, self.modules)
        except Exception as exc:
            raise TaskPicklingError(
                f"Could not pickle the task to send to the nodes: {type(exc).__name__}: {exc}. Pass what "
                "the call needs as picklable arguments, or open it inside the call"
            ) from exc
        return EncodedChunk(data, buffers, used)

    def _reference(self, func: Any) -> Any:
        """Return the number of a plain function, or `func` itself where it travels with its call."""
        known = self._known.get(id(func))
        if known is None:
            plain = isinstance(func, types.FunctionType | types.BuiltinFunctionType | type)
            if not plain or len(self._functions) >= MAX_NUMBERED_FUNCTIONS:
                return func
            known = (len(self._functions), func)
            self._functions.append(pack(func, self.threshold, self._digests, self.modules))
            self._known[id(func)] = known
        return known[0]

    def function(self, number: int) -> tuple[bytes, list[Buffer]]:
        """Return the pickle of a function and its buffers."""
        return self._functions[number]


class EncodedChunk(NamedTuple):
    """A chunk as bytes: its pickle, its buffers, and the numbers of the functions that it calls."""

    data: bytes
    buffers: list[Buffer]
    functions: list[int]


def write_bundle(
    key: bytes,
    place: str,
    manifest: dict[str, Any],
    chunks: Sequence[tuple[int, EncodedChunk]],
    encoder: CallEncoder,
) -> tuple[bytes, dict[str, Buffer]]:
    """Return a bundle's bytes and the buffers that it needs, by digest."""
    numbers = sorted({number for _, chunk in chunks for number in chunk.functions})
    buffers: dict[str, Buffer] = {}

    def names(found: list[Buffer]) -> list[str]:
        buffers.update((buffer.digest, buffer) for buffer in found)
        return [buffer.digest for buffer in found]

    bodies: list[tuple[dict[str, Any], bytes]] = []
    for number in numbers:
        data, found = encoder.function(number)
        bodies.append(({"function": number, "buffers": names(found)}, data))
    for chunk_id, chunk in chunks:
        head = {"chunk": chunk_id, "functions": chunk.functions, "buffers": names(chunk.buffers)}
        bodies.append((head, chunk.data))
    head = {**manifest, "records": len(bodies), "sizes": {d: b.data.nbytes for d, b in buffers.items()}}
    records = [seal(key, f"{place}#0", head)]
    records += [seal(key, f"{place}#{n}", head, body) for n, (head, body) in enumerate(bodies, start=1)]
    return b"".join(records), buffers


class ReadBundle(NamedTuple):
    """A bundle whose every record was authenticated; bodies are still pickles."""

    manifest: dict[str, Any]
    functions: dict[int, Record]
    chunks: dict[int, Record]


def read_bundle(key: bytes, place: str, data: bytes | memoryview) -> ReadBundle:
    """Authenticate a bundle and return its parts.

    Raises
    ------
    IntegrityError
        Where a record is forged, damaged, moved or missing.
    """
    records = list(unseal_all(key, place, data))
    if not records or len(records) != records[0].head["records"] + 1:
        raise IntegrityError(f"{place} is cut short: {len(records)} whole records were found in it")
    manifest, *rest = records
    return ReadBundle(
        manifest.head,
        {r.head["function"]: r for r in rest if "function" in r.head},
        {r.head["chunk"]: r for r in rest if "chunk" in r.head},
    )


def decode_outcome(body: bytes | memoryview) -> Any:
    """Unpickle an authenticated outcome's body.

    Raises
    ------
    CodecError
        Where the client lacks what the result needs (a module, another version of a class).
    """
    try:
        return unpack(body)
    except Exception as exc:
        raise CodecError(
            f"a call's outcome arrived but cannot be unpickled here: {type(exc).__name__}: {exc}. Make the "
            "module that defines its type importable on the client too"
        ) from exc
