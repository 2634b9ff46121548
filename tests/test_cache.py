"""The node's cache among processes: fetched once, never wrong, never half, never taken from whoever uses it."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joblib_azure.codec import content_name
from joblib_azure.node.cache import Cache, Sink, WrongContentError

#: Fresh interpreters: pytest's own threads and locks are not the node's.
processes = multiprocessing.get_context("spawn")
LONG = 60.0


def data_of(number: int, size: int = 1000) -> bytes:
    return bytes([number % 256]) * size


def name_of(number: int, size: int = 1000) -> str:
    return content_name(data_of(number, size))


def fetching(data: bytes, log: Path | None = None) -> Callable[[Sink], str]:
    """Return what gives some bytes in two pieces, the last one first, and notes that it was asked."""

    def fetch(sink: Sink) -> str:
        if log is not None:
            with log.open("a") as file:
                file.write(f"{os.getpid()}\n")
        half = len(data) // 2
        sink(half, data[half:])
        sink(0, data[:half])
        return content_name(data)

    return fetch


def put(cache: Cache, number: int, size: int = 1000) -> Path:
    """Bring a buffer; return its path."""
    cache.bring(name_of(number, size), size, fetching(data_of(number, size)))
    return cache.path(name_of(number, size))


def used(path: Path, when: float) -> None:
    """Let a buffer have been last used then."""
    os.utime(path, (when, when))


def held(cache: Cache) -> dict[str, int]:
    """Return the buffers that are there, and their sizes."""
    found = {}
    for path in cache.folder.glob("??/*"):
        if path.suffix not in (".lock", ".part"):
            found[path.name] = path.stat().st_size
    return found


def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, f"waited {LONG:.0f} s for {what}"
        time.sleep(0.005)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "buffers")


@pytest.fixture
def start() -> Iterator[Callable[..., BaseProcess]]:
    """Start processes that end with the test."""
    started: list[BaseProcess] = []

    def start(target: Callable[..., None], *args: Any) -> BaseProcess:
        process = processes.Process(target=target, args=args)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join(LONG)
        process.close()


def joined(process: BaseProcess) -> int | None:
    process.join(LONG)
    return process.exitcode


# bringing -------------------------------------------------------------------------------------------------


def bring(folder: Path, log: Path, gate: Path) -> None:
    """Bring the same buffers as the others, at the same time."""
    cache = Cache(folder)
    until(gate.exists, "the others")
    for number in range(10):
        data = data_of(number, 100_000)
        cache.bring(content_name(data), len(data), fetching(data, log))
        assert cache.path(content_name(data)).read_bytes() == data


def test_many_processes_fetch_a_buffer_once(cache: Cache, tmp_path: Path, start: Callable[..., BaseProcess]) -> None:
    log, gate = tmp_path / "log", tmp_path / "gate"
    started = [start(bring, cache.folder, log, gate) for _ in range(5)]
    gate.touch()
    assert [joined(process) for process in started] == [0] * 5
    assert len(log.read_text().split()) == 10
    assert len(held(cache)) == 10


def test_what_is_there_is_read_only_and_not_fetched_again(cache: Cache, tmp_path: Path) -> None:
    path = put(cache, 1)
    assert path.stat().st_mode & 0o222 == 0
    log = tmp_path / "log"
    cache.bring(path.name, 1000, fetching(data_of(1), log))
    assert not log.exists()


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_a_buffer_of_any_size(size: int, cache: Cache) -> None:
    assert put(cache, 7, size).read_bytes() == data_of(7, size)


def left_over(cache: Cache) -> list[str]:
    """Return the files that are neither buffers nor locks."""
    return [path.name for path in cache.folder.glob("??/*") if path.suffix == ".part"]


def test_wrong_content_is_not_kept(cache: Cache) -> None:
    name = name_of(1)
    with pytest.raises(WrongContentError, match=name):
        cache.bring(name, 1000, fetching(data_of(2)))
    assert held(cache) == {}
    assert left_over(cache) == []
    assert put(cache, 1).read_bytes() == data_of(1)


@pytest.mark.parametrize("size", [999, 1001, 0])
def test_another_size_is_wrong_content(size: int, cache: Cache) -> None:
    with pytest.raises(WrongContentError):
        cache.bring(name_of(1), 1000, fetching(data_of(1, size)))
    assert held(cache) == {}
    assert left_over(cache) == []


def test_a_fetch_that_fails_leaves_nothing(cache: Cache) -> None:
    def fails(sink: Sink) -> str:
        sink(0, b"half")
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        cache.bring(name_of(1), 1000, fails)
    assert held(cache) == {}
    assert left_over(cache) == []
    put(cache, 1)


def begin(folder: Path, size: int, said: Path) -> None:
    """Begin to fetch, and be killed."""

    def stuck(sink: Sink) -> str:
        sink(0, data_of(1, size // 2))
        said.touch()
        time.sleep(LONG)
        return ""

    Cache(folder).bring(name_of(1, size), size, stuck)


def test_a_process_that_is_killed_while_it_fetches(
    cache: Cache, tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    said = tmp_path / "said"
    process = start(begin, cache.folder, 1000, said)
    until(said.exists, "the fetch to begin")
    assert held(cache) == {}
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    assert joined(process) == -signal.SIGKILL
    assert held(cache) == {}
    assert put(cache, 1).read_bytes() == data_of(1)


def test_whoever_waits_for_a_process_that_is_killed_fetches_itself(
    cache: Cache, tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    said, log, gate = (tmp_path / name for name in ("said", "log", "gate"))
    gate.touch()
    first = start(begin, cache.folder, 100_000, said)
    until(said.exists, "the fetch to begin")
    second = start(bring, cache.folder, log, gate)  # of ten buffers, one is the one that is stuck
    until(lambda: len(held(cache)) >= 1, "the second to begin")
    first.kill()
    assert joined(second) == 0
    assert len(log.read_text().split()) == 10


# evicting -------------------------------------------------------------------------------------------------


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=5000)
    order = [3, 0, 4, 1, 2]
    for number in range(5):
        put(cache, number)
    for when, number in enumerate(order):
        used(cache.path(name_of(number)), 1000.0 + when)
    for gone in range(5):
        assert set(held(cache)) == {name_of(number) for number in order[gone:]}
        assert cache.make_room(gone * 1000) == 0
        assert cache.make_room((gone + 1) * 1000) == 1000
    assert held(cache) == {}


def test_what_is_pinned_counts_as_used(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=2000)
    for number in range(2):
        used(put(cache, number), 1000.0 + number)
    with cache.pinned([name_of(0)], "task"):
        pass
    cache.make_room(1000)
    assert set(held(cache)) == {name_of(0)}


def test_no_more_is_evicted_than_is_needed(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=10_000)
    for number in range(5):
        used(put(cache, number, 2000), 1000.0 + number)
    assert cache.make_room(0) == 0
    assert cache.make_room(2001) == 4000
    assert set(held(cache)) == {name_of(number, 2000) for number in (2, 3, 4)}


def test_a_bound_that_is_below_all_empties_the_cache_of_what_nobody_uses(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=0)
    for number in range(3):
        put(cache, number)
    with cache.pinned([name_of(1)], "task"):
        assert cache.make_room(0) == 2000
        assert set(held(cache)) == {name_of(1)}
    assert cache.make_room(0) == 1000


def pin(folder: Path, numbers: list[int], said: Path) -> None:
    """Pin buffers until killed."""
    with Cache(folder).pinned([name_of(number) for number in numbers], f"task {os.getpid()}"):
        said.touch()
        time.sleep(2 * LONG)


def test_what_a_living_process_has_pinned_stays_and_a_dead_ones_does_not(
    tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    cache = Cache(tmp_path / "buffers", limit=0)
    for number in range(4):
        put(cache, number)
    pins = {}
    for number, numbers in enumerate(([0, 1], [1, 2])):
        said = tmp_path / f"said{number}"
        pins[number] = start(pin, cache.folder, numbers, said)
        until(said.exists, "the pin")
    assert cache.make_room(0) == 1000
    assert set(held(cache)) == {name_of(number) for number in (0, 1, 2)}
    pins[0].kill()
    assert joined(pins[0]) == -signal.SIGKILL
    assert cache.make_room(0) == 1000
    assert set(held(cache)) == {name_of(number) for number in (1, 2)}
    pins[1].kill()
    assert joined(pins[1]) == -signal.SIGKILL
    assert cache.make_room(0) == 2000
    assert list((cache.folder / "pins").iterdir()) == []


def test_a_pin_is_for_what_comes_too(cache: Cache) -> None:
    """Names are pinned before it is looked whether they are there."""
    bounded = Cache(cache.folder, limit=0)
    with bounded.pinned([name_of(1)], "task"):
        put(bounded, 1)
        assert bounded.make_room(0) == 0
    assert bounded.make_room(0) == 1000


def test_a_pin_ends_where_its_holder_fails(cache: Cache) -> None:
    bounded = Cache(cache.folder, limit=0)
    put(bounded, 1)
    with pytest.raises(ZeroDivisionError), bounded.pinned([name_of(1)], "task"):
        raise ZeroDivisionError
    assert bounded.make_room(0) == 1000


ACTIONS = st.one_of(
    st.tuples(st.just("bring"), st.integers(0, 9)),
    st.tuples(st.just("pin"), st.integers(0, 9)),
    st.tuples(st.just("unpin"), st.integers(0, 9)),
    st.tuples(st.just("room"), st.integers(0, 6000)),
)


@given(limit=st.integers(0, 8000), actions=st.lists(ACTIONS, max_size=30))
@settings(deadline=None, max_examples=60)
def test_the_bound_holds_whatever_happens(
    limit: int, actions: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("buffers")
    cache, clock, last = Cache(folder, limit=limit), 1000.0, dict[str, float]()
    with contextlib.ExitStack() as all_pins:
        pins: dict[int, contextlib.ExitStack] = {}

        def room(needed: int) -> None:
            before = held(cache)
            pinned = {name_of(number, size(number)) for number in pins}
            evicted = cache.make_room(needed)
            after = held(cache)
            assert sum(before.values()) - sum(after.values()) == evicted
            assert pinned & set(before) <= set(after)
            loose = set(after) - pinned
            assert not loose or sum(after.values()) + needed <= limit
            gone = set(before) - set(after)
            # In the order of their use, and no more of them than necessary.
            assert all(last[one] < last[other] for one in gone for other in loose)
            if gone:
                latest = max(gone, key=last.__getitem__)
                assert sum(after.values()) + before[latest] + needed > limit

        for what, number in actions:
            clock += 1
            name = name_of(number, size(number))
            if what == "room":
                room(number)
            elif what == "bring":
                if not cache.path(name).exists():
                    room(size(number))
                used(put(cache, number, size(number)), clock)
                last[name] = clock
            elif what == "pin" and number not in pins:
                pins[number] = all_pins.enter_context(contextlib.ExitStack())
                pins[number].enter_context(cache.pinned([name], f"task {number}"))
                if cache.path(name).exists():
                    used(cache.path(name), clock)
                    last[name] = clock
            elif what == "unpin" and number in pins:
                pins.pop(number).close()
    shutil.rmtree(folder)


def size(number: int) -> int:
    return 100 + 200 * number


# the disk -------------------------------------------------------------------------------------------------


def test_more_than_the_disk_can_take_is_told(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=1 << 60)
    put(cache, 1)
    with pytest.raises(OSError, match="a larger disk") as caught:
        cache.make_room(1 << 55)
    assert caught.value.errno == errno.ENOSPC


def test_what_is_pinned_stays_where_the_disk_is_too_small(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.pinned([name_of(1)], "task"):
        put(cache, 1)
        with pytest.raises(OSError, match="need"):
            cache.make_room(1 << 55)
        assert set(held(cache)) == {name_of(1)}


def test_a_disk_that_is_too_small_is_known_before_anything_is_fetched(cache: Cache, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(OSError) as caught:
        cache.bring(name_of(1), 1 << 60, fetching(data_of(1), log))
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert not log.exists()
    assert held(cache) == {}
    assert left_over(cache) == []
    put(cache, 1)


def test_without_a_bound_a_part_of_the_disk_is_left(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for number in range(3):
        put(cache, number)
    assert cache.make_room(1000) == 0
    free = shutil.disk_usage(tmp_path).free
    assert cache.make_room(int(free * 0.9)) == 3000  # it has room for that, and would be above its share


def test_what_a_killed_process_had_fetched_does_not_stay_on_the_disk(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "buffers", limit=0)
    process = processes.Process(target=begin, args=(cache.folder, 1 << 20, tmp_path / "said"))
    process.start()
    until((tmp_path / "said").exists, "the fetch to begin")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    joined(process)
    put(cache, 1, 1 << 20)
    cache.make_room(0)
    assert left_over(cache) == []


def pins(folder: Path, number: int) -> None:
    """Pin a buffer again and again; what was there once it was pinned stays."""
    cache = Cache(folder, limit=0)
    for _ in range(3000):
        with cache.pinned([name_of(number)], f"task {number}"):
            put(cache, number)
            for _ in range(3):
                if not cache.path(name_of(number)).exists():
                    os._exit(3)


def test_what_is_pinned_stays_while_others_evict(tmp_path: Path) -> None:
    started = [processes.Process(target=pins, args=(tmp_path, number)) for number in range(2)]
    for process in started:
        process.start()
    over = threading.Event()

    def evicts() -> None:
        cache = Cache(tmp_path, limit=0)
        while not over.is_set():
            put(cache, 99)
            cache.make_room(0)

    thread = threading.Thread(target=evicts)
    thread.start()
    codes = [joined(process) for process in started]
    over.set()
    thread.join()
    assert codes == [0, 0]
