"""The codec: what goes in comes out, and nothing forged is unpickled."""

from __future__ import annotations

import contextlib
import functools
import pickle
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from joblib_azure.codec import (
    CallEncoder,
    Digests,
    content_name,
    pack,
    read_bundle,
    seal,
    unpack,
    unseal,
    unseal_all,
    write_bundle,
)
from joblib_azure.errors import ContentChangedError, IntegrityError, TaskPicklingError

KEY = b"k" * 32


def batch(*calls: tuple[Any, ...]) -> SimpleNamespace:
    return SimpleNamespace(items=[(f, args, {}) for f, *args in calls], _backend=None, _n_jobs=None)


@given(head=st.dictionaries(st.text(), st.integers() | st.text() | st.none()), body=st.binary(max_size=500))
def test_a_record_comes_back(head: dict[str, Any], body: bytes) -> None:
    data = seal(KEY, "job/blob#0", head, body)
    record = unseal(KEY, "job/blob#0", data)
    assert record is not None
    assert (record.head, bytes(record.body), record.end) == (head, body, len(data))
    assert data[record.offset : record.offset + len(body)] == body


@given(st.data())
def test_any_changed_byte_is_refused(data: st.DataObject) -> None:
    sealed = bytearray(seal(KEY, "p", {"a": 1}, b"some body"))
    # A changed length may also make the record look cut short; it is never accepted.
    at = data.draw(st.integers(0, len(sealed) - 1))
    sealed[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(IntegrityError):
        assert unseal(KEY, "p", bytes(sealed)) is None


@pytest.mark.parametrize(("key", "place"), [(b"x" * 32, "p"), (KEY, "q"), (KEY, "p#1")])
def test_another_key_or_place_is_refused(key: bytes, place: str) -> None:
    with pytest.raises(IntegrityError, match="does not fit"):
        unseal(key, place, seal(KEY, "p", {}, b"x"))


@given(st.integers(0, 200))
def test_a_cut_stream_gives_its_whole_records(cut: int) -> None:
    stream = b"".join(seal(KEY, f"p#{n}", {"n": n}, b"x" * n) for n in range(3))
    found = [record.head["n"] for record in unseal_all(KEY, "p", stream[:cut])]
    assert found == [0, 1, 2][: len(found)]


def test_moved_records_are_refused() -> None:
    first, second = (seal(KEY, f"p#{n}", {}, b"") for n in range(2))
    with pytest.raises(IntegrityError):
        list(unseal_all(KEY, "p", second + first))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(10_000.0),
        np.asfortranarray(np.arange(10_000.0).reshape(100, 100)),
        np.arange(10_000.0)[::3],
        np.zeros((0, 5)),
        np.array([("a", 1)] * 500, dtype=[("name", "U5"), ("n", "i8")]),
        np.arange("2020", "2024", dtype="datetime64[D]"),
        np.array([object, None, "x"], dtype=object),
    ],
    ids=["plain", "fortran", "strided", "empty", "structured", "datetime", "object"],
)
def test_arrays_survive(array: Any) -> None:
    data, buffers = pack({"a": array}, threshold=1000)
    back = unpack(data, [bytes(buffer.data) for buffer in buffers])["a"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert (back == array).all()
    assert back.flags.f_contiguous == array.flags.f_contiguous or array.ndim == 1


def test_a_buffer_is_hashed_once_while_it_lives() -> None:
    digests = Digests()
    array = np.ones(1000)
    names = [pack({"a": array, "n": n}, 100, digests)[1][0].digest for n in range(3)]
    assert len(set(names)) == 1
    assert len(digests) == 1
    del array
    assert pack(np.zeros(1000), 100, digests)[1][0].digest != names[0]


def test_large_buffers_go_beside_and_small_ones_do_not() -> None:
    large, small = np.ones(1000), np.ones(10)
    data, buffers = pack((large, small, large), threshold=8000)
    assert len({buffer.digest for buffer in buffers}) == 1
    assert len(data) < 1000
    assert pack(large, threshold=None)[1] == []


def test_a_bundle_comes_back_with_each_function_once() -> None:
    encoder = CallEncoder(None)

    def function(x: int) -> int:
        return x + 1

    chunks = [(n, encoder.chunk(batch((function, n), (max, n, 5)))) for n in range(3)]
    data, _ = write_bundle(KEY, "j/t", {"call": "c"}, chunks, encoder)
    bundle = read_bundle(KEY, "j/t", data)
    assert sorted(bundle.functions) == [0, 1]
    assert sorted(bundle.chunks) == [0, 1, 2]
    calls, _, _ = unpack(bundle.chunks[2].body)
    functions = {n: unpack(record.body) for n, record in bundle.functions.items()}
    assert [functions[f](*args, **kwargs) for f, args, kwargs in calls] == [3, 5]
    with pytest.raises(IntegrityError, match="cut short"):
        read_bundle(KEY, "j/t", data[:-1])


def test_callables_with_state_travel_with_their_call() -> None:
    encoder = CallEncoder(None)
    box = [1]
    partial = functools.partial(sum, box)
    first = encoder.chunk(batch((partial,)))
    box.append(2)
    second = encoder.chunk(batch((partial,)))
    results = [unpack(chunk.data)[0][0][0]() for chunk in (first, second)]
    assert results == [1, 3]


def test_an_unpicklable_argument_is_told() -> None:
    with pytest.raises(pickle.PicklingError, match="the task to send") as caught:
        CallEncoder(None).chunk(batch((print, threading.Lock())))
    assert isinstance(caught.value, TaskPicklingError)
    assert isinstance(caught.value.__cause__, TypeError)


class Rows(list):  # type: ignore[type-arg]
    """Pickles its rows as it makes them: nobody holds one while the next is made."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Rows, (), None, (row(i) for i in range(200))


def row(i: int) -> bytearray:
    made = bytearray(5000)
    made[0] = i
    return made


def test_bytearrays_that_live_for_a_moment_come_back() -> None:
    data, buffers = pack(Rows(), 1000)
    assert [found[0] for found in unpack(data, [bytes(b.data) for b in buffers])] == list(range(200))


def identity(*args: Any) -> Any:
    return args


def test_a_large_bytearray_that_two_arguments_share_stays_one() -> None:
    shared = bytearray(20_000)
    first, second = [shared, [f"element {i}" for i in range(60_000)]], [shared]
    encoder = CallEncoder(10_000)
    batches = [SimpleNamespace(items=[(identity, (first, second), {})], _backend=None, _n_jobs=None)] * 3
    for batch in batches:
        chunk = encoder.chunk(batch, batches)
        # Where the first is a part of its own, the second's bytearray is another one on the node.
        assert not chunk.parts


def test_a_small_array_never_arrives_with_the_content_of_another_that_changed() -> None:
    """`kept` never changes; it was once equal to `changed`, so both have one name."""
    changed, kept = np.zeros(1000), np.zeros(1000)
    encoder = CallEncoder(1000)

    def chunk() -> Any:
        return encoder.chunk(SimpleNamespace(items=[(identity, (changed, kept), {})], _backend=None, _n_jobs=None))

    chunk()
    changed[:] = 5
    with pytest.raises(ContentChangedError):
        write_bundle(b"k" * 32, "j/t", {}, [(1, chunk())], encoder)
    encoder.forget()
    data, _ = write_bundle(b"k" * 32, "j/t", {}, [(1, chunk())], encoder)
    bundle = read_bundle(b"k" * 32, "j/t", data)
    record = bundle.chunks[1]
    buffers = [bundle.buffers[name].body for name in record.head["buffers"]]
    [(_, (first, got), _)], _, _ = unpack(record.body, buffers)
    assert (first.min(), got.max()) == (5, 0)
    for name, record in bundle.buffers.items():
        assert content_name(record.body) == name
