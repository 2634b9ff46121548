"""What the calls are given and return, through the codec and back: equal, of the same layout, as often the same object.

An argument is rebuilt on bytes, on memory of its own, and on maps of the node's cache; a result on the memory that
it was fetched into.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.neighbors import KNeighborsClassifier

from joblib_azure.codec import (
    PIECE,
    Buffer,
    CallEncoder,
    Landing,
    Packed,
    Payload,
    Record,
    content_name,
    decode_outcome,
    encode_outcome,
    group_size,
    pack,
    read_bundle,
    unpack,
    write_bundle,
)
from joblib_azure.codec.bundles import LARGE_PICKLE
from joblib_azure.codec.outcomes import LARGE
from joblib_azure.node import arrays
from joblib_azure.node.cache import Cache

KEY = b"k" * 32
#: Small, so that small examples have buffers on both sides of it.
THRESHOLD = 256
WAYS = ["bytes", "bytearrays", "maps r", "maps c"]

#: As many as there are kinds of elements; structures with dates and with strings among them.
DTYPES = [
    np.dtype(name)
    for name in (
        *("?", "i1", "u1", "<i2", ">i4", "<i8", ">u8", "f2", ">f4", "f8", "g", "c8", ">c16"),
        *("M8[D]", ">M8[ns]", "m8[s]", "U3", "S5", "V7", "O"),
    )
] + [
    np.dtype([("name", "U4"), ("n", "<i4")]),
    np.dtype([("when", "M8[s]"), ("where", "f8", (2,))]),
    np.dtype([("inner", [("a", "i2"), ("b", "m8[ms]")]), ("c", "?")]),
    np.dtype([("a", "u1"), ("b", "f8")], align=True),
]
LAYOUTS = ["C", "F", "turned", "strided", "backwards", "part", "broadcast"]


@dataclass
class Box:
    """Holds something, and is importable on both ends."""

    content: Any


@dataclass(frozen=True, slots=True)
class Pair:
    """Of slots and of no dictionary."""

    first: Any
    second: Any


def identity(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return (*args, kwargs)


def holding(content: Any) -> Callable[[], Any]:
    return lambda: content


# arrays ---------------------------------------------------------------------------------------------------


def elements(dtype: np.dtype[Any], count: int, seed: int) -> Any:
    """Return a flat array; the elements differ, not-a-number and not-a-time among them."""
    rng = np.random.default_rng(seed)
    if dtype.fields is not None:
        found = np.zeros(count, dtype)
        for number, (name, field) in enumerate(dtype.fields.items()):
            base, shape = field[0].subdtype or (field[0], ())
            size = count * int(np.prod(shape, dtype=int))
            found[name] = elements(base, size, seed + number).reshape(count, *shape)
        return found
    if dtype.kind == "O":
        return np.array([None, *[(i, "x" * i) for i in range(count)]], dtype=object)[1:]
    if dtype.kind in "USV":
        return np.array([f"{seed * 31 + i}"[-dtype.itemsize :].encode() for i in range(count)], "S").astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, count).astype(dtype)
    if dtype.char in "gG":
        return rng.random(count).astype(dtype)  # has bytes that mean nothing
    return np.frombuffer(rng.bytes(count * dtype.itemsize), dtype).copy()


def laid_out(dtype: np.dtype[Any], shape: tuple[int, ...], layout: str, seed: int) -> Any:
    """Return an array of that shape, as a view of what gives it its layout."""

    def made(shape: tuple[int, ...]) -> Any:
        return elements(dtype, int(np.prod(shape, dtype=int)), seed).reshape(shape)

    if not shape:  # indexed, it would be a scalar
        return made(shape)
    if layout == "F":
        return np.asfortranarray(made(shape))
    if layout == "turned":  # neither C nor F from three axes on
        return np.moveaxis(made((*shape[1:], *shape[:1])), -1, 0)
    if layout == "strided":
        return made(tuple(2 * n for n in shape))[tuple(slice(None, None, 2) for _ in shape)]
    if layout == "backwards":
        return made(shape)[tuple(slice(None, None, -1 if axis % 2 == 0 else 1) for axis in range(len(shape)))]
    if layout == "part":
        return made(tuple(n + 2 for n in shape))[tuple(slice(1, -1) for _ in shape)]
    if layout == "broadcast":
        return np.broadcast_to(made((*shape[:-1], 1)), shape)
    return made(shape)


@st.composite
def plain_arrays(draw: st.DrawFn) -> Any:
    shape = tuple(draw(st.lists(st.integers(0, 6), max_size=4)))
    layout, seed = draw(st.sampled_from(LAYOUTS)), draw(st.integers(0, 1000))
    array = laid_out(draw(st.sampled_from(DTYPES)), shape, layout, seed)
    if draw(st.booleans()):
        array.flags.writeable = False
    return array


def goes_by_buffer(array: Any) -> bool:
    """Whether the array's own flag for writing is kept: NumPy's pickles without buffers do not keep it."""
    dates = "M8" in str(array.dtype.descr) or "m8" in str(array.dtype.descr)
    by_itself = array.ndim > 0 and array.nbytes >= THRESHOLD
    strided = not (array.flags.c_contiguous or array.flags.f_contiguous)
    return not array.dtype.hasobject and (by_itself or strided or not dates)


def content(array: Any) -> Any:
    """Return the elements of an array as what can be compared, without the gaps between and in them."""
    if array.dtype.names:
        return [content(array[name]) for name in array.dtype.names]
    if array.dtype.hasobject or array.dtype.char in "gG":
        return array.tolist()
    return array.astype(array.dtype.newbyteorder("=")).tobytes()


# equality -------------------------------------------------------------------------------------------------


class Comparison:
    """Whether one thing is as good as another: equal in depth, and its parts as often the same object."""

    def __init__(self, way: str) -> None:
        self._way = way
        self._there: dict[int, Any] = {}
        self._back: dict[int, Any] = {}

    def check(self, sent: Any, got: Any) -> None:
        if isinstance(sent, np.ndarray | bytearray | list | dict | Box | functools.partial | FunctionType):
            assert self._there.setdefault(id(sent), got) is got, "what was one object became two"
            assert self._back.setdefault(id(got), sent) is sent, "what were two objects became one"
        if isinstance(sent, np.ndarray):
            self._array(sent, got)
            return
        assert type(got) is type(sent)
        if isinstance(sent, dict):
            assert list(got) == list(sent)
            self._all(sent.values(), got.values())
        elif isinstance(sent, list | tuple):
            self._all(sent, got)
        elif isinstance(sent, Box):
            self.check(sent.content, got.content)
        elif isinstance(sent, Pair):
            self._all((sent.first, sent.second), (got.first, got.second))
        elif isinstance(sent, functools.partial):
            assert got.func is sent.func
            self._all(sent.args, got.args)
            self.check(sent.keywords, got.keywords)
        elif isinstance(sent, FunctionType):
            self.check(sent(), got())
        elif isinstance(sent, pd.DataFrame | pd.Series):
            # pandas' own assertions refuse columns that are memory maps, as they are with loky at home too.
            assert got.equals(sent)
            assert str(got.dtypes) == str(sent.dtypes)
            pd.testing.assert_index_equal(got.index, sent.index)
            if isinstance(sent, pd.DataFrame):
                pd.testing.assert_index_equal(got.columns, sent.columns)
        elif isinstance(sent, pd.Index):
            pd.testing.assert_index_equal(got, sent)
        elif isinstance(sent, pa.Table | pa.Array | pa.ChunkedArray):
            got.validate(full=True)
            assert got.equals(sent)
        elif scipy.sparse.issparse(sent):
            self._sparse(sent, got)
        else:
            assert got == sent

    def _all(self, sent: Iterable[Any], got: Iterable[Any]) -> None:
        for one, other in itertools.zip_longest(sent, got):
            self.check(one, other)

    def _sparse(self, sent: Any, got: Any) -> None:
        assert (got.shape, got.dtype, got.format) == (sent.shape, sent.dtype, sent.format)
        for name in ("data", "indices", "indptr", "offsets", "coords"):
            if hasattr(sent, name):
                np.testing.assert_array_equal(getattr(got, name), getattr(sent, name))

    def _array(self, sent: Any, got: Any) -> None:
        assert type(got) is np.memmap or type(got) is np.ndarray
        # NumPy's pickles without buffers have the machine's own order of bytes.
        assert got.dtype == (sent.dtype if goes_by_buffer(sent) else sent.dtype.newbyteorder("="))
        assert got.shape == sent.shape
        whole = sent.flags.c_contiguous or sent.flags.f_contiguous
        like = sent if whole or sent.dtype.hasobject else np.copy(sent, order="K")
        if like is not sent or not sent.dtype.hasobject:
            assert (got.flags.c_contiguous, got.flags.f_contiguous) == (
                like.flags.c_contiguous,
                like.flags.f_contiguous,
            )
            assert [s for s, n in zip(got.strides, got.shape, strict=True) if n > 1] == [
                s for s, n in zip(like.strides, like.shape, strict=True) if n > 1
            ] or sent.size == 0
        assert content(got) == content(sent)
        by_itself = sent.nbytes >= THRESHOLD and not sent.dtype.hasobject
        may_write = not by_itself or self._way in ("bytearrays", "maps c")
        if sent.flags.writeable:
            assert got.flags.writeable or not may_write
        elif goes_by_buffer(sent):
            assert not got.flags.writeable
        if by_itself and not may_write and goes_by_buffer(sent):
            assert not got.flags.writeable


# the ways to a node ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("buffers"))


def cached(cache: Cache, buffers: Iterable[Buffer]) -> None:
    """Bring buffers into a node's cache, as a task does."""
    for name, data in buffers:

        def fetch(sink: Callable[[int, bytes], object], data: memoryview = data) -> str:
            sink(0, bytes(data))
            return content_name(data)

        cache.bring(name, data.nbytes, fetch)


def rebuilt(packed: Packed, way: str, cache: Cache) -> Any:
    """Return what was packed, made on its buffers as `way` gives them."""
    if way == "bytes":
        return unpack(packed.data, [bytes(data) for _, data in packed.buffers])
    if way == "bytearrays":
        return unpack(packed.data, [bytearray(data) for _, data in packed.buffers])
    cached(cache, packed.buffers)
    mode = way[-1]
    return arrays.load(packed.data, [arrays.Mapping.open(cache.path(name), mode) for name, data in packed.buffers])


def comes_back(sent: Any, way: str, cache: Cache, threshold: int = THRESHOLD) -> Any:
    """Send something, check that what arrives is as good, and return that."""
    packed = pack(sent, threshold)
    for name, data in packed.buffers:
        assert name == content_name(data)
    got = rebuilt(packed, way, cache)
    Comparison(way).check(sent, got)
    return got


each_way = pytest.mark.parametrize("way", WAYS)
many = settings(deadline=None, max_examples=150)
some = settings(deadline=None, max_examples=40)


@each_way
@given(array=plain_arrays())
@many
def test_any_array_comes_back(way: str, cache: Cache, array: Any) -> None:
    comes_back(array, way, cache)


@each_way
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_arrays_go_beside_their_pickle(dtype: np.dtype[Any], layout: str, way: str, cache: Cache) -> None:
    array = laid_out(dtype, (8, 9, 10), layout, 1)
    data, buffers = pack(array, THRESHOLD)
    if not dtype.hasobject:
        assert [buffer.data.nbytes for buffer in buffers] == [array.nbytes]
        assert len(data) < 1000
    got = comes_back(array, way, cache)
    if way.startswith("maps") and not dtype.hasobject:
        assert type(got) is np.memmap


def test_strings_of_any_length_come_back(cache: Cache) -> None:
    if not hasattr(np.dtypes, "StringDType"):
        pytest.skip("this NumPy has no strings of any length")
    whole = np.array(["long " * 20, "", "short"] * 100, np.dtypes.StringDType())
    for array in (whole, whole[::2], whole.reshape(3, -1).T):
        got = rebuilt(pack(array, THRESHOLD), "maps r", cache)
        assert got.dtype == array.dtype
        assert got.tolist() == array.tolist()


def test_fields_out_of_their_order_come_back(cache: Cache) -> None:
    """NumPy cannot export these as a buffer."""
    table = elements(np.dtype([("a", "i4"), ("b", "f8"), ("c", "M8[s]")]), 100, 1)
    for view in (table[["b", "a"]], table[["c", "a"]], table[["c", "b"]][::-2]):
        got = rebuilt(pack(view, THRESHOLD), "maps r", cache)
        assert got.dtype == view.dtype
        assert got.tolist() == view.tolist()


@pytest.mark.parametrize("kind", [np.ma.MaskedArray, np.recarray])
def test_subclasses_of_arrays_stay_what_they_are(kind: type[Any], cache: Cache) -> None:
    plain = elements(np.dtype([("a", "i4"), ("b", "f8")]), 100, 1)
    array = (
        np.ma.array(np.arange(100.0), mask=np.arange(100) % 3 == 0) if kind is np.ma.MaskedArray else plain.view(kind)
    )
    got = rebuilt(pack(array, THRESHOLD), "maps c", cache)
    assert type(got) is kind
    assert got.tolist() == array.tolist()


@each_way
@given(data=st.data())
@some
def test_memory_maps_travel_by_their_content(
    way: str, cache: Cache, tmp_path_factory: Any, data: st.DataObject
) -> None:
    dtype = data.draw(st.sampled_from([d for d in DTYPES if not d.hasobject]))
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    order: Any = data.draw(st.sampled_from("CF"))
    file = tmp_path_factory.mktemp("map") / "array"
    made = np.memmap(file, dtype, "w+", shape=shape, order=order)
    made[...] = elements(dtype, made.size, 3).reshape(shape)
    made.flush()
    mode: Any = data.draw(st.sampled_from(["r", "r+", "c"]))
    found = np.memmap(file, dtype, mode, shape=shape, order=order)
    views = [found, found[::2], found[::-1], found.T, found[..., 0], found]
    sent = [view for view in views if isinstance(view, np.memmap)]
    got = comes_back(sent, way, cache)
    file.unlink()
    assert [content(array) for array in got] == [content(array) for array in sent]


@each_way
@pytest.mark.parametrize("mode", ["r", "r+", "c", None])
def test_arrays_that_joblib_loads_by_map_come_back(mode: str | None, way: str, cache: Cache, tmp_path: Path) -> None:
    file = tmp_path / "dumped"
    dumped = {"a": np.arange(1000.0).reshape(10, 100), "f": np.asfortranarray(np.ones((30, 20))), "s": np.arange(3)}
    joblib.dump(dumped, file)
    loaded = joblib.load(file, mmap_mode=mode)
    loaded["view"] = loaded["a"][1:, ::3]
    comes_back(loaded, way, cache)


# what holds arrays ----------------------------------------------------------------------------------------


def frames() -> dict[str, Any]:
    count = 200
    names = np.array([f"name {i % 7}" for i in range(count)], dtype=object)
    times = pd.date_range("2024-01-01", periods=count, freq="h")
    frame = pd.DataFrame(
        {
            "int": np.arange(count),
            "float": np.linspace(0, 1, count),
            "more": np.linspace(1, 0, count),
            "bool": np.arange(count) % 2 == 0,
            "text": pd.Series(names, dtype=object),
            "string": pd.array(names, dtype="string"),
            "category": pd.Categorical(names),
            "when": times,
            "zoned": times.tz_localize("Europe/Berlin", ambiguous=False, nonexistent="shift_forward"),
            "took": pd.to_timedelta(np.arange(count), unit="s"),
            "nullable": pd.array([None if i % 3 else i for i in range(count)], dtype="Int64"),
            "period": pd.period_range("2020-01", periods=count, freq="M"),
            "interval": pd.interval_range(0, count),
        }
    )
    index = pd.MultiIndex.from_product([range(20), list("abcdefghij")], names=["outer", "inner"])
    return {
        "mixed": frame,
        "numbers": frame[["float", "more"]],
        "rows": frame.iloc[::3],
        "turned": frame[["float", "more"]].T,
        "multi": frame.set_index(index),
        "columns": pd.DataFrame(np.ones((200, 4)), columns=pd.MultiIndex.from_product([list("ab"), list("xy")])),
        "empty": frame.iloc[:0],
        "series": frame["float"],
        "zoned": frame["zoned"],
        "category": frame["category"],
        "index": frame.set_index("when").index,
        "arrow": pd.Series(names, dtype=pd.ArrowDtype(pa.string())),
        "sparse": pd.DataFrame({"a": pd.arrays.SparseArray(np.arange(500) // 490)}),
    }


@each_way
@pytest.mark.parametrize("name", list(frames()))
def test_frames_come_back(name: str, way: str, cache: Cache) -> None:
    frame = frames()[name]
    got = comes_back([frame, frame], way, cache)
    assert got[0] is got[1]


@pytest.mark.parametrize("way", ["bytearrays", "maps c"])
def test_frames_on_memory_of_their_own_can_be_written_to(way: str, cache: Cache) -> None:
    frame = pd.DataFrame({"a": np.arange(500.0), "b": np.arange(500)})
    before = frame.copy()
    for _ in range(2):
        got = rebuilt(pack(frame, THRESHOLD), way, cache)
        got.loc[:, "a"] += 1
        assert got["a"].tolist() == (before["a"] + 1).tolist()
    pd.testing.assert_frame_equal(frame, before)


def arrow() -> dict[str, Any]:
    numbers = pa.array([None if i % 5 == 0 else i for i in range(500)])
    words = pa.array([f"word {i}" for i in range(500)])
    table = pa.table({"n": numbers, "w": words, "l": pa.array([[i, i + 1] for i in range(500)])})
    return {
        "numbers": numbers,
        "slice": numbers[7:400],
        "words": words,
        "dictionary": words.dictionary_encode(),
        "chunks": pa.chunked_array([numbers, numbers[3:]]),
        "table": table,
        "table slice": table.slice(100, 50),
        "struct": pa.StructArray.from_arrays([numbers, words], ["n", "w"]),
    }


@each_way
@pytest.mark.parametrize("name", list(arrow()))
def test_arrow_comes_back(name: str, way: str, cache: Cache) -> None:
    sent = arrow()[name]
    assert pack(sent, THRESHOLD).buffers
    comes_back([sent, {"again": sent}], way, cache)


@each_way
@pytest.mark.parametrize("kind", ["matrix", "array"])
@pytest.mark.parametrize("format", ["csr", "csc", "coo", "dia"])
def test_sparse_matrices_come_back(format: str, kind: str, way: str, cache: Cache) -> None:
    rng = np.random.default_rng(0)
    dense = np.triu(np.tril(rng.random((60, 50)), 3), -3)
    sent = getattr(scipy.sparse, f"{format}_{kind}")(dense)
    got = comes_back(sent, way, cache)
    np.testing.assert_array_equal(got.toarray(), dense)
    np.testing.assert_allclose(got @ np.ones(50), dense.sum(axis=1))


@each_way
@pytest.mark.parametrize("kind", [RandomForestClassifier, KNeighborsClassifier])
def test_fitted_estimators_predict_the_same(kind: type[Any], way: str, cache: Cache) -> None:
    rng = np.random.default_rng(0)
    points = rng.random((300, 4))
    estimator = kind(5).fit(points, points[:, 0] > points[:, 1])
    packed = pack(estimator, THRESHOLD)
    assert packed.buffers
    got = rebuilt(packed, way, cache)
    np.testing.assert_array_equal(got.predict_proba(points), estimator.predict_proba(points))


def leaves() -> st.SearchStrategy[Any]:
    sizes = st.integers(0, 3 * THRESHOLD)
    return st.one_of(
        plain_arrays(),
        sizes.map(bytes),
        sizes.map(bytearray),
        st.text(max_size=10) | st.integers() | st.none() | st.booleans(),
    )


@st.composite
def structures(draw: st.DrawFn) -> Any:
    """Nested containers of a few leaves, each of which may come up more than once."""
    pool = draw(st.lists(leaves(), min_size=1, max_size=6))
    pool += [bytearray(content) for content in pool if isinstance(content, bytearray)]  # equal, and not the same
    leaf = st.integers(0, len(pool) - 1).map(pool.__getitem__)

    def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.one_of(
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.text(max_size=3), inner, max_size=3),
            inner.map(Box),
            st.builds(Pair, inner, inner),
            st.builds(functools.partial, st.just(identity), inner, key=inner),
            inner.map(holding),
            inner.map(lambda one: [one, one]),
        )

    return draw(st.recursive(leaf, nested, max_leaves=12))


@each_way
@given(structure=structures())
@many
def test_any_structure_comes_back(way: str, cache: Cache, structure: Any) -> None:
    comes_back(structure, way, cache)


@given(structure=structures())
@some
def test_any_structure_comes_back_whole_in_its_pickle(structure: Any) -> None:
    data, buffers = pack(structure, None)
    assert not buffers
    unpack(data)


@each_way
@pytest.mark.parametrize("size", [THRESHOLD - 1, THRESHOLD, 10 * THRESHOLD])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_around_the_threshold(kind: type[Any], size: int, way: str, cache: Cache) -> None:
    one, other = kind(b"x" * size), kind(b"x" * size)
    assert bool(pack(one, THRESHOLD).buffers) == (size >= THRESHOLD)
    got = comes_back([one, other, one], way, cache)
    assert got[0] is got[2]
    if kind is bytearray:
        assert got[0] is not got[1]
        got[0][:] = b""
        assert got[1] == other
        one += b"still grows"


def test_without_a_threshold_to_speak_of_what_is_empty_stays_in_the_pickle(cache: Cache) -> None:
    """There are no maps of nothing."""
    sent = [np.zeros(0), np.zeros((3, 0), order="F"), b"", bytearray(), pd.DataFrame({"a": []}), np.ones(1), b"x"]
    for threshold in (0, 1):
        packed = pack(sent, threshold)
        assert all(data.nbytes for _, data in packed.buffers)
        got = rebuilt(packed, "maps r", cache)
        assert [content(array) for array in (got[0], got[1], got[5])] == [b"", b"", np.ones(1).tobytes()]
        assert (got[1].shape, got[2], got[3], got[6]) == ((3, 0), b"", bytearray(), b"x")


@each_way
def test_one_array_is_one_and_two_that_are_equal_are_two(way: str, cache: Cache) -> None:
    one, other = np.arange(100.0), np.arange(100.0)
    packed = pack([one, other, {"again": one}], THRESHOLD)
    assert len({name for name, _ in packed.buffers}) == 1
    got = rebuilt(packed, way, cache)
    assert got[0] is got[2]["again"]
    if way in ("bytearrays", "maps c"):
        got[0][0] = 7
        assert got[2]["again"][0] == 7
        assert got[1][0] == 0
    assert other[0] == 0


def test_what_is_copied_on_write_stays_with_its_reader(cache: Cache) -> None:
    array = np.arange(100.0)
    packed = pack(array, THRESHOLD)
    for _ in range(2):
        got = rebuilt(packed, "maps c", cache)
        assert got[0] == 0
        got[:] = 5
    [(name, _)] = packed.buffers
    assert content_name(cache.path(name).read_bytes()) == name


# bundles --------------------------------------------------------------------------------------------------


def batch(*calls: tuple[Any, ...]) -> SimpleNamespace:
    return SimpleNamespace(items=[(f, args, {}) for f, *args in calls], _backend=None, _n_jobs=None)


class Sent:
    """Chunks that were encoded one by one, written as one bundle and made of it as a worker makes them."""

    def __init__(self, encoder: CallEncoder, encoded: list[Any], cache: Cache) -> None:
        data, self.buffers = write_bundle(KEY, "j/t", {"call": "c"}, list(enumerate(encoded)), encoder)
        self._bundle = read_bundle(KEY, "j/t", data)
        self._cache, self.size = cache, len(data)
        self._file = cache.folder / f"bundle-{content_name(data)}"
        self._file.write_bytes(data)
        assert self._bundle.manifest["sizes"] == {name: data.nbytes for name, (_, data) in self.buffers.items()}
        cached(cache, self.buffers.values())
        functions = {number: self._made(record) for number, record in self._bundle.functions.items()}
        self.calls: list[list[tuple[Any, ...]]] = []
        for number in range(len(encoded)):
            calls, _, _ = self._made(self._bundle.chunks[number])
            self.calls.append([(functions[f] if isinstance(f, int) else f, *args) for f, args, _ in calls])

    def _made(self, record: Record) -> Any:
        made: dict[int, Any] = {}

        def part(number: int) -> Any:
            if number not in made:  # once: what two calls of a chunk are given is the same object
                name, names = record.head["parts"][number]
                made[number] = arrays.load(self._map(name), [self._map(name) for name in names], part)
            return made[number]

        if not len(record.body):
            return part(0)
        return arrays.load(record.body, [self._map(name) for name in record.head["buffers"]], part)

    def _map(self, name: str) -> memoryview:
        within = self._bundle.buffers.get(name)
        if within is not None:
            return arrays.Mapping.open(self._file, "c", within.offset, len(within.body))
        return arrays.Mapping.open(self._cache.path(name), "c")

    @property
    def sizes(self) -> list[int]:
        """Of the buffers, within the bundle and beside it."""
        within = [len(record.body) for record in self._bundle.buffers.values()]
        return sorted([*within, *(data.nbytes for _, data in self.buffers.values())])


def long_list(count: int = 60_000) -> list[Any]:
    return [f"element {i}" for i in range(count)]


def fitted_forest() -> Any:
    rng = np.random.default_rng(0)
    points = rng.random((400, 4))
    return RandomForestClassifier(100, random_state=0).fit(points, points[:, 0] > points[:, 1])


@pytest.mark.parametrize("make", [long_list, fitted_forest])
@pytest.mark.parametrize("beside", [False, True])
def test_what_several_chunks_have_in_band_moves_once(make: Callable[[], Any], beside: bool, cache: Cache) -> None:
    shared = make()
    whole = len(pack(shared, 1 << 20).data)
    assert whole > LARGE_PICKLE
    encoder = CallEncoder(1 << 20)
    batches = [batch((identity, n, shared), (identity, -n, shared)) for n in range(6)]
    encoded = [encoder.chunk(b, batches[i + 1 : i + 3] if beside else ()) for i, b in enumerate(batches)]
    # Without a look at those beside it, only the second chunk tells that the first one's argument comes again.
    apart = encoded if beside else encoded[1:]
    assert all(len(chunk.parts) == 1 for chunk in apart)
    assert len({chunk.parts[0].pickle.digest for chunk in apart}) == 1
    sent = Sent(encoder, encoded, cache)
    assert len(sent.sizes) == 1
    assert sent.size < (0 if beside else whole) + 20_000
    for number, calls in enumerate(sent.calls):
        assert [call[1] for call in calls] == [number, -number]
        assert calls[0][2] is calls[1][2]
        if isinstance(shared, list):
            assert calls[0][2] == shared
        else:
            points = np.random.default_rng(1).random((20, 4))
            np.testing.assert_array_equal(calls[0][2].predict_proba(points), shared.predict_proba(points))


def test_a_part_has_its_arrays_beside_it(cache: Cache) -> None:
    shared: dict[str, Any] = {"names": long_list(), "values": np.arange(1000.0)}
    encoder = CallEncoder(1000)
    batches = [batch((identity, n, shared)) for n in range(3)]
    sent = Sent(encoder, [encoder.chunk(b, batches) for b in batches], cache)
    assert len(sent.sizes) == 2
    assert sent.sizes[0] == 8000
    for ((_, _, got),) in sent.calls:
        assert got["names"] == shared["names"]
        assert type(got["values"]) is np.memmap
        assert got["values"].tolist() == shared["values"].tolist()


def test_small_buffers_lie_within_their_bundle_where_arrays_may_lie(cache: Cache) -> None:
    given = [elements(dtype, 300 + n, n) for n, dtype in enumerate(DTYPES) if not dtype.hasobject]
    given += [np.arange(100_000.0), np.arange(301.0)]
    encoder = CallEncoder(THRESHOLD)
    sent = Sent(encoder, [encoder.chunk(batch((identity, *given))), encoder.chunk(batch((identity, given[-1])))], cache)
    assert [data.nbytes for _, data in sent.buffers.values()] == [800_000]
    [[(_, *got)], [(_, last)]] = sent.calls
    for array, found in zip([*given, given[-1]], [*got, last], strict=True):
        assert type(found) is np.memmap
        assert found.flags.aligned
        assert found.flags.writeable
        assert content(found) == content(array)
        found[:1] = found[1:2]
    assert Sent(encoder, [encoder.chunk(batch((identity, given[-1])))], cache).calls[0][0][1][0] == 0


def test_a_large_function_moves_once(cache: Cache) -> None:
    function = holding(long_list())
    encoder = CallEncoder(1 << 20)
    sent = Sent(encoder, [encoder.chunk(batch((function,))) for _ in range(3)], cache)
    assert len(sent.sizes) == 1
    assert sent.size < 10_000
    assert all(call[0][0]() == function() for call in sent.calls)


SHARED: dict[str, Callable[[], Any]] = {
    "list": lambda: [1, 2],
    "dict": lambda: {"a": 1},
    "set": lambda: {1, 2},
    "object": lambda: Box(1),
    "small array": lambda: np.arange(5),
    "large array": lambda: np.arange(5000),
    "small bytearray": lambda: bytearray(b"abc"),
    "closure": lambda: holding([1]),
    "deque": lambda: collections.deque([1, 2]),
}


@pytest.mark.parametrize("kind", list(SHARED))
@pytest.mark.parametrize("where", ["two that are large", "a large one and a small one"])
def test_arguments_that_share_an_object_go_on_sharing_it(kind: str, where: str, cache: Cache) -> None:
    inner = SHARED[kind]()
    first = [inner, long_list()]
    second = [inner, long_list() if where == "two that are large" else 0]
    encoder = CallEncoder(10_000)
    batches = [batch((identity, n, first, second)) for n in range(4)]
    for one in batches:
        sent = Sent(encoder, [encoder.chunk(one, batches)], cache)
        [[(_, _, got_first, got_second)]] = sent.calls
        assert got_first[0] is got_second[0]
        assert got_first[1] == first[1]


def test_what_shares_nothing_is_apart_and_may_share_constants(cache: Cache) -> None:
    words, kind, dtype = ("a", "constant"), Box, np.dtype("f8")
    first, second = [words, kind, dtype, long_list()], [words, kind, dtype, long_list()]
    encoder = CallEncoder(1 << 20)
    batches = [batch((identity, first, second)) for _ in range(3)]
    encoded = [encoder.chunk(one, batches) for one in batches]
    assert all(len(chunk.parts) == 2 for chunk in encoded)
    sent = Sent(encoder, encoded, cache)
    assert all(call[0][1:] == (first, second) for call in sent.calls)


def test_what_changes_between_two_chunks_arrives_changed(cache: Cache) -> None:
    """Not so for arrays, whose bytes are named once a call."""
    large, small = long_list(), [0]
    encoder = CallEncoder(1 << 20)
    encoded = []
    for n in range(5):
        large[0] = small[0] = n
        encoded.append(encoder.chunk(batch((identity, large, small))))
    assert [len(chunk.parts) for chunk in encoded[1:]] == [1, 1, 1, 1]
    sent = Sent(encoder, encoded, cache)
    assert [(call[0][1][0], call[0][2][0]) for call in sent.calls] == [(n, n) for n in range(5)]
    assert len(sent.sizes) == 4


def test_what_comes_to_share_an_object_is_sent_together_again(cache: Cache) -> None:
    first, second = [long_list()], [long_list()]
    encoder = CallEncoder(1 << 20)
    batches = [batch((identity, first, second)) for _ in range(4)]
    encoded = [encoder.chunk(one, batches) for one in batches[:2]]
    inner = [1]
    first.append(inner)
    second.append(inner)
    encoded += [encoder.chunk(one, batches) for one in batches[2:]]
    sent = Sent(encoder, encoded, cache)
    assert [len(call[0][1]) for call in sent.calls] == [1, 1, 2, 2]
    assert all(call[0][1][1] is call[0][2][1] for call in sent.calls[2:])


# outcomes -------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What a call may well return."""

    values: Any
    note: str


def results_of(sizes: list[int], seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    made: list[Any] = []
    for number, size in enumerate(sizes):
        values = rng.random(size)
        made.append([values, {"a": values, "t": values[: size // 2]}, Result(values, "x"), bytes(size)][number % 4])
    return made


def pieces(draw: st.DrawFn, size: int) -> list[tuple[int, int]]:
    cuts = sorted({0, size, *draw(st.lists(st.integers(0, size), max_size=8))})
    return draw(st.permutations(list(itertools.pairwise(cuts))))


@given(sizes=st.lists(st.integers(0, 300_000), min_size=1, max_size=8), seed=st.integers(0, 9), data=st.data())
@some
def test_results_come_back_however_they_arrive(sizes: list[int], seed: int, data: st.DataObject) -> None:
    results = results_of(sizes, seed)
    encoded = encode_outcome(results, each=True)
    if isinstance(encoded, bytes):
        assert len(encoded) < LARGE + 10_000
        got = decode_outcome(encoded)
    else:
        assert isinstance(encoded, Payload)
        content = b"".join(encoded.parts)
        assert len(content) == sum(map(group_size, encoded.groups))
        got, offset = [], 0
        for layout in encoded.groups:
            landing, size = Landing(layout), group_size(layout)
            for begin, end in data.draw(st.composite(pieces)(size)):
                landing.take(begin, content[offset + begin : offset + end])
            found = list(landing.results())
            assert list(landing.results()) == []
            got += found if len(encoded.groups) > 1 or len(found) == len(results) else found[0]
            offset += size
    assert len(got) == len(results)
    for sent, found in zip(results, got, strict=True):
        mine = [(sent, found)]
        if isinstance(sent, dict):
            mine = [(sent[key], found[key]) for key in sent]
        elif isinstance(sent, Result):
            assert found.note == sent.note
            mine = [(sent.values, found.values)]
        for one, other in mine:
            assert type(other) is type(one)
            if isinstance(one, bytes):
                assert other == one
                continue
            np.testing.assert_array_equal(other, one)
            assert other.flags.writeable
            other[...] = 0


def test_results_with_much_in_common_keep_it() -> None:
    values = np.arange(300_000.0)
    encoded = encode_outcome([values, [values], {"v": values}], each=True)
    assert isinstance(encoded, Payload)
    [layout] = encoded.groups
    assert group_size(layout) < 1.5 * values.nbytes
    landing = Landing(layout)
    landing.take(0, b"".join(encoded.parts))
    [[one, two, three]] = landing.results()
    assert one is two[0] is three["v"]


def test_a_result_by_map_is_the_clients_own(cache: Cache) -> None:
    """The client does not see the node's files."""
    mapped = rebuilt(pack(np.arange(200_000.0), THRESHOLD), "maps r", cache)
    encoded = encode_outcome([mapped], each=True)
    assert isinstance(encoded, Payload)
    landing = Landing(encoded.groups[0])
    landing.take(0, b"".join(encoded.parts))
    [got] = landing.results()
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, np.arange(200_000.0))


# names ----------------------------------------------------------------------------------------------------


def backwards(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Give what `map` gives, but begin with the last."""
    return [function(item) for item in reversed(list(items))][::-1]


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE])
def test_a_name_is_of_the_content_alone(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    name = content_name(data)
    with ThreadPoolExecutor(2) as pool:
        assert content_name(data, pool.map) == content_name(data, backwards) == name
    assert content_name(memoryview(bytearray(data))) == name
    if size <= PIECE:
        assert name == hashlib.sha256(data).hexdigest()
    else:
        assert name.endswith(".2")
    for at in {0, size // 2, size - 1} if size else ():
        changed = bytearray(data)
        changed[at] ^= 1
        assert content_name(memoryview(changed)) != name
    assert content_name(data + b"\0") != name
    assert not size or content_name(memoryview(data)[:-1]) != name


def test_pieces_that_change_places_change_the_name() -> None:
    first, second = b"a" * PIECE, b"b" * PIECE
    assert content_name(first + second) != content_name(second + first)
    digests = b"".join(hashlib.sha256(piece).digest() for piece in (first, second))
    # What hashes to the same as the pieces' digests is of one piece, and its name says so.
    assert content_name(digests) != content_name(first + second)
