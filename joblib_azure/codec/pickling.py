"""Pickles of protocol 5 with what is large beside them, as named buffers.

::

    pack(object) ─► pickle · [Buffer, Buffer, …]       arrays as they lie in memory, none of them copied

Out of band go the buffers that pickle itself offers (NumPy's arrays, and so those in frames, sparse matrices,
estimators, closures; Arrow's), and what it would take in band and copy: strided views, arrays of dates, memory maps,
and large ``bytes`` and ``bytearray``. Object arrays and subclasses of `numpy.ndarray` go in band, as pickle has them.
"""

from __future__ import annotations

import collections
import functools
import io
import pickle
import sys
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .content import Map, content_name

PROTOCOL = 5
#: Bytes below which no pickle has anything apart that is not beside it: the least threshold of what `unpack` is given.
_SMALL = 64 << 10
#: What a Parallel call keeps alive so that its name is remembered: bytes (which cannot be watched), plain views of
#: memory maps, and copies of strided views, which double what they are of.
_KEPT, _VIEWS, _COPIES = 64, 256, 4


class Buffer(NamedTuple):
    """A contiguous buffer out of band, and its content name."""

    digest: str
    data: memoryview


class Packed(NamedTuple):
    """A pickle and its buffers, in the order in which `unpack` needs them."""

    data: bytes
    buffers: list[Buffer]

    @property
    def size(self) -> int:
        """Bytes of all."""
        return len(self.data) + sum(buffer.data.nbytes for buffer in self.buffers)


class Digests:
    """Remembers the content names of buffers by the identity of the objects that own them, while those live.

    For one Parallel call: an array that changes between two calls of the same Parallel keeps its first content, as
    with joblib's own memory maps.

    Parameters
    ----------
    map : callable
        As `content_name` takes it.
    """

    def __init__(self, map: Map = map) -> None:
        self._map = map
        self._known: dict[tuple[int, int], tuple[weakref.ref[Any], str]] = {}
        self._kept: collections.OrderedDict[tuple[int, int], tuple[Any, str]] = collections.OrderedDict()
        self._stand_ins: dict[Any, collections.OrderedDict[int, tuple[weakref.ref[Any], Any]]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, raw: memoryview) -> str:
        owner, key = raw.obj, (id(raw.obj), raw.nbytes)
        known = self._known.get(key)
        if known is not None and known[0]() is owner:
            return known[1]
        kept = self._kept.get(key)
        if kept is not None and kept[0] is owner:
            return kept[1]
        digest = content_name(raw, self._map)
        try:
            self._known[key] = (weakref.ref(owner, lambda _: self._known.pop(key, None)), digest)
        except TypeError:
            if isinstance(owner, bytes):
                self._kept[key] = owner, digest
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
        return digest

    def stand_in(self, original: Any, make: Callable[[Any], Any], *, most: int) -> Any:
        """Return what travels in place of an array: the same object each time, so that its name is remembered.

        Parameters
        ----------
        original : numpy.ndarray
        make : callable
            Makes it.
        most : int
            How many of those made by `make` are kept.
        """
        made = self._stand_ins.setdefault(make, collections.OrderedDict())
        known = made.get(id(original))
        if known is not None and known[0]() is original:
            return known[1]
        stand_in = make(original)
        made[id(original)] = weakref.ref(original), stand_in
        if len(made) > most:
            made.popitem(last=False)
        return stand_in


# arrays ---------------------------------------------------------------------------------------------------


def _lies_whole(array: Any) -> bool:
    return bool(array.flags.c_contiguous or array.flags.f_contiguous)


def _flat(array: Any) -> Any:
    """Return the elements of an array as bytes in the order in which they lie in memory, without gaps."""
    import numpy as np

    ordered = array.transpose(_axes(array))
    flat = np.ascontiguousarray(ordered).reshape(-1).view(np.uint8)
    flat.flags.writeable = array.flags.writeable
    return flat


def _axes(array: Any) -> tuple[int, ...]:
    """Return the axes from the one with the longest stride to the one with the shortest."""
    return tuple(sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis])))


def rebuild_array(flat: Any, dtype: Any, shape: tuple[int, ...], axes: tuple[int, ...]) -> Any:
    """Return the array whose elements lie in `flat` in the order of its axes `axes`; the other half of `pack`."""
    ordered = flat.view(dtype).reshape([shape[axis] for axis in axes])
    return ordered.transpose([axes.index(axis) for axis in range(len(axes))])


def _reduce_array(array: Any, threshold: int | None, digests: Digests) -> Any:
    """Return how an array is pickled where NumPy's own way would lose its layout or take it in band."""
    import numpy as np

    if type(array) is np.memmap:
        # By content, read from its file: the other end does not see that file.
        plain = digests.stand_in(array, np.asarray, most=_VIEWS)
        reduced = _reduce_array(plain, threshold, digests)
        return plain.__reduce_ex__(PROTOCOL) if reduced is NotImplemented else reduced
    if type(array) is not np.ndarray or array.dtype.hasobject or array.nbytes == 0 or array.ndim == 0:
        return NotImplemented
    # Dates refuse to be exported as a buffer, within a structure too.
    large = threshold is not None and array.nbytes >= threshold
    if _lies_whole(array) and not (large and _has_dates(array.dtype)):
        return NotImplemented
    flat = digests.stand_in(array, _flat, most=_COPIES) if large else _flat(array)
    return rebuild_array, (flat, array.dtype, array.shape, _axes(array))


def _has_dates(dtype: Any) -> bool:
    if dtype.fields is not None:
        return any(_has_dates(field[0]) for field in dtype.fields.values())
    return dtype.kind in "mM" or (dtype.subdtype is not None and _has_dates(dtype.subdtype[0]))


# pickles --------------------------------------------------------------------------------------------------


@functools.cache
def _pickler() -> Any:
    # Late: a Batch task authenticates bundles with this package and pickles nothing; it starts sooner without.
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        """cloudpickle's, noting whose objects it meets and leaving no layout behind."""

        modules: set[str]
        threshold: int | None
        digests: Digests

        def reducer_override(self, obj: Any) -> Any:
            self.modules.add(type(obj).__module__)
            if isinstance(obj, types.ModuleType):
                self.modules.add(obj.__name__)
            elif isinstance(obj, type | types.FunctionType | types.BuiltinFunctionType):
                self.modules.add(obj.__module__ or "")
            else:
                numpy = sys.modules.get("numpy")
                if numpy is not None and isinstance(obj, numpy.ndarray):
                    reduced = _reduce_array(obj, self.threshold, self.digests)
                    if reduced is not NotImplemented:
                        return reduced
            return super().reducer_override(obj)

    class SparingPickler(Pickler):
        """Asks of every object whether it travels apart. That costs, so only large pickles are made with it."""

        apart: Mapping[int, int]
        #: What travels apart from the pickle itself, by identity: the objects too, so that they live as long as that.
        numbers: dict[int, tuple[int, Any]]

        def persistent_id(self, obj: Any) -> Any:
            if (number := self.apart.get(id(obj))) is not None:
                return "part", number
            kind = type(obj)
            if kind in (bytes, bytearray) and self.threshold is not None and len(obj) >= self.threshold:
                # A bytearray whose buffer is held could not grow any more.
                data = pickle.PickleBuffer(obj if kind is bytes else bytes(obj))
                return kind.__name__, self.numbers.setdefault(id(obj), (len(self.numbers), obj))[0], data
            return None

    return Pickler, SparingPickler


def pack(
    obj: Any,
    threshold: int | None,
    digests: Digests | None = None,
    modules: set[str] | None = None,
    *,
    apart: Mapping[int, int] | None = None,
    memo: dict[int, Any] | None = None,
) -> Packed:
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
    apart : mapping of int to int, optional
        Identities of objects that are not in this pickle but parts of their own, by number.
    memo : dict, optional
        Takes up the objects that the pickle holds, by identity.

    Returns
    -------
    Packed
    """
    name = Digests() if digests is None else digests
    found = set[str]() if modules is None else modules
    plain, sparing = _pickler()

    def attempt(kind: Any) -> Packed:
        buffers: list[Buffer] = []

        def outside(buffer: pickle.PickleBuffer) -> bool:
            try:
                raw = buffer.raw()
            except BufferError:  # not contiguous: pickle takes it in band
                return True
            if threshold is None or raw.nbytes < max(threshold, 1):
                return True
            buffers.append(Buffer(name(raw), raw))
            return False

        stream = io.BytesIO()
        pickler = kind(stream, protocol=PROTOCOL, buffer_callback=outside)
        pickler.modules, pickler.threshold, pickler.digests = found, threshold, name
        pickler.apart, pickler.numbers = apart or {}, {}
        pickler.dump(obj)
        if memo is not None:
            memo.clear()
            for known in (pickler.memo.copy(), pickler.numbers):
                memo.update((key, value) for key, (_, value) in known.items())
        return Packed(stream.getvalue(), buffers)

    packed = attempt(sparing if apart else plain)
    if not apart and threshold is not None and len(packed.data) >= threshold:
        return attempt(sparing)  # something large is in band: bytes would not have to be
    return packed


class Unpickler(pickle.Unpickler):
    """Rebuilds what `pack` took apart. Only for authenticated bytes.

    Parameters
    ----------
    data : bytes or memoryview
    buffers : sequence of objects with the buffer protocol
    part : callable, optional
        Returns the object of a part by its number.
    """

    def __init__(
        self, data: bytes | memoryview, buffers: Sequence[Any] = (), part: Callable[[int], Any] | None = None
    ) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._part = part
        self._made: dict[int, Any] = {}

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "part":
            if self._part is None:
                raise pickle.UnpicklingError("a part is named where there are none")
            return self._part(pid[1])
        kind, number, data = pid
        if number not in self._made:  # pickle remembers only what it pickles itself
            self._made[number] = (bytes if kind == "bytes" else bytearray)(data)
        return self._made[number]


def unpack(data: bytes | memoryview, buffers: Sequence[Any] = ()) -> Any:
    """Rebuild what `pack` took apart. Only for authenticated bytes."""
    if not buffers and len(data) < _SMALL:  # nothing of it can be apart
        return pickle.loads(data)
    return Unpickler(data, buffers).load()
