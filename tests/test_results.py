"""The window: results are fetched ahead within a budget, in order, once, and never wait for each other."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from joblib_azure import results
from joblib_azure.codec import Payload, content_name, encode_outcome, group_size
from joblib_azure.errors import IntegrityError, JoblibAzureError, ServiceUnreachableError
from joblib_azure.results import Results, Window

MB = 1 << 20


class Shelf:
    """Blobs in memory, fetched as storage does: by range, in pieces, on any thread."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.fetched: list[str] = []
        self.deleted: list[str] = []
        self.open = threading.Event()
        self.open.set()
        self.faults = 0

    def fetch(self, blob: str, offset: int, size: int, sink: Callable[[int, bytes], Any]) -> str:
        assert self.open.wait(20)
        self.fetched.append(blob)
        if self.faults:
            self.faults -= 1
            raise ServiceUnreachableError("nothing answers")
        data = self.blobs[blob][offset : offset + size]
        for at in reversed(range(0, size, MB)):
            sink(at, data[at : at + MB])
        return content_name(data)

    def put(self, window: Window, name: str, values: list[Any], number: int, *, bounded: bool = True) -> Results:
        payload = encode_outcome(values, each=True)
        assert isinstance(payload, Payload)
        self.blobs[name] = data = b"".join(payload.parts)
        names, offset = [], 0
        for layout in payload.groups:
            names.append(content_name(data[offset : offset + group_size(layout)]))
            offset += group_size(layout)
        return window.payload(name, payload.groups, names, order=(0, number), bounded=bounded)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def window(shelf: Shelf) -> Window:
    return Window(shelf.fetch, shelf.deleted.append, budget=10 * MB)


def value(number: int, size: int = 4 * MB) -> bytes:
    return bytes([number]) * size


def test_results_come_as_they_were_and_their_blob_goes(shelf: Shelf, window: Window) -> None:
    values = [value(n, 3 * MB) for n in range(5)] + ["small", None]
    found = shelf.put(window, "a", values, 0)
    assert list(found) == values
    assert list(found) == []
    assert shelf.deleted == ["a"]
    assert (window.left, window.held) == (0, 0)


def test_what_is_ahead_stays_within_the_budget(shelf: Shelf, window: Window) -> None:
    found = [shelf.put(window, str(n), [value(n)], n) for n in range(8)]
    until(lambda: len(shelf.fetched) == 2)
    for n, each in enumerate(found):
        assert window.held <= 10 * MB
        assert list(each) == [value(n)]
    assert window.left == 0
    assert sorted(shelf.fetched) == [str(n) for n in range(8)]


def test_a_list_is_fetched_without_a_budget(shelf: Shelf, window: Window) -> None:
    found = [shelf.put(window, str(n), [value(n)], n, bounded=False) for n in range(8)]
    until(lambda: len(shelf.fetched) == 8)
    assert [list(each) for each in found] == [[value(n)] for n in range(8)]


def test_a_chunk_in_several_parts_is_left_until_its_last_is_taken(shelf: Shelf, window: Window) -> None:
    found = [shelf.put(window, str(n), [value(n, 5 * MB) for n in range(3)], 0) for n in range(2)]
    assert (window.left_of(0), window.chunks_left_of(0)) == (6, 2)
    first = iter(found[0])
    next(first)
    assert (window.left_of(0), window.chunks_left_of(0)) == (5, 2)
    assert len(list(first)) == 2
    assert (window.left_of(0), window.chunks_left_of(0)) == (3, 1)
    assert len(list(found[1])) == 3
    assert (window.left_of(0), window.chunks_left_of(0)) == (0, 0)


def test_one_that_is_larger_than_the_budget_comes_too(shelf: Shelf, window: Window) -> None:
    found = [shelf.put(window, str(n), [value(n, 12 * MB)], n) for n in range(3)]
    assert [len(next(iter(each))) for each in found] == [12 * MB] * 3


def test_what_is_wanted_first_waits_for_nothing(shelf: Shelf, window: Window) -> None:
    """Later ones have filled the window when the first arrives."""
    later = [shelf.put(window, str(n), [value(n)], n) for n in (5, 6, 7)]
    until(lambda: len(shelf.fetched) == 2)
    first = shelf.put(window, "0", [value(0)], 0)
    assert list(first) == [value(0)]
    assert [list(each) for each in later] == [[value(n)] for n in (5, 6, 7)]


def test_what_is_dropped_gives_its_room_back(shelf: Shelf, window: Window) -> None:
    found = [shelf.put(window, str(n), [value(n)], n) for n in range(6)]
    until(lambda: len(shelf.fetched) == 2)
    del found[1:5]
    gc.collect()
    assert list(found[0]) == [value(0)]
    assert list(found[1]) == [value(5)]
    assert (window.left, window.held) == (0, 0)


def test_it_is_told_when_nobody_waits_any_more(shelf: Shelf, window: Window) -> None:
    found = [shelf.put(window, str(n), [value(n)], n) for n in range(3)]
    over = threading.Event()
    window.retire(over.set)
    assert list(found.pop()) == [value(2)]
    assert not over.is_set()
    found.clear()  # a generator that its consumer let go of
    gc.collect()
    assert over.wait(20)


def test_it_is_told_at_once_where_there_is_nothing(window: Window) -> None:
    over = threading.Event()
    window.retire(over.set)
    assert over.is_set()


def test_small_ones_are_kept_within_a_part_of_the_budget_and_read_again_above_it(window: Window) -> None:
    again: list[int] = []
    bodies = [encode_outcome([n, b"x" * (MB // 2)], each=True) for n in range(10)]

    def reader(number: int) -> Callable[[], bytes]:
        def read() -> bytes:
            again.append(number)
            body = bodies[number]
            assert isinstance(body, bytes)
            return body

        return read

    found = []
    for number, body in enumerate(bodies):
        assert isinstance(body, bytes)
        found.append(window.record(body, reader(number), order=(0, number)))
    assert [next(iter(each)) for each in found] == list(range(10))
    assert again
    assert 0 not in again  # the first ones were within it
    assert window.held == 0


def test_a_wrong_content_is_refused_and_named(shelf: Shelf, window: Window) -> None:
    shelf.open.clear()
    found = shelf.put(window, "a/b", [value(1)], 0)
    data = bytearray(shelf.blobs["a/b"])
    data[-7] ^= 1
    shelf.blobs["a/b"] = bytes(data)
    shelf.open.set()
    with pytest.raises(IntegrityError, match="a/b"):
        list(found)


def test_storage_that_is_away_for_a_while_loses_nothing(
    shelf: Shelf, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "_PAUSE", 0.01)
    shelf.faults = 3
    assert list(shelf.put(window, "a", [value(1)], 0)) == [value(1)]
    impatient = Window(shelf.fetch, patience=0.0)
    shelf.faults = 1
    with pytest.raises(ServiceUnreachableError):
        list(shelf.put(impatient, "b", [value(1)], 1))


def test_after_its_end_it_says_what_to_do(shelf: Shelf, window: Window) -> None:
    found = [shelf.put(window, str(n), [value(n)], n) for n in range(6)]
    until(lambda: len(shelf.fetched) == 2)
    window.close("the cluster was closed")
    with pytest.raises(JoblibAzureError, match="consume a generator before that"):
        list(found[5])


def test_results_that_nobody_consumed_hold_up_no_interpreter() -> None:
    """A program may end with some in its hands; they are collected when no thread can be started any more."""
    program = (
        "import atexit\n"
        "from joblib_azure.codec import encode_outcome\n"
        "from joblib_azure.results import Window\n"
        "window = Window(None)\n"
        "body = encode_outcome([1], each=True)\n"
        "results = [window.record(body, bytes, order=(0, n)) for n in range(100)]\n"
        "large = [window.payload('b', [[[8]]], ['x'], order=(0, n), bounded=True) for n in range(5)]\n"
        "results[0] = None\n"
        "atexit.register(results.pop)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
