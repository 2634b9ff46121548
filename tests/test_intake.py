"""Which streams of running tasks are read, and when: a request is paid for what somebody waits for.

On the model of the blobs, with the work, the calls and the window of results as they are; no task runs.
"""

from __future__ import annotations

import concurrent.futures
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from joblib.parallel import BatchedCalls

sys.path.insert(0, str(Path(__file__).parent))
from service_model import Blobs

from joblib_azure import intake
from joblib_azure.bundler import CallSettings
from joblib_azure.call import Call, ChunkFuture, UnderWay
from joblib_azure.capacity import Capacity
from joblib_azure.codec import FAILED, encode_outcome, seal_outcomes
from joblib_azure.intake import Intake
from joblib_azure.results import Window
from joblib_azure.work import Work

KEY = b"k" * 32
#: Tasks that run at once, and calls.
LANES, CALLS = 30, 3000
SETTINGS = CallSettings(
    n_jobs=LANES, max_nbytes=None, mmap_mode=None, inner_max_num_threads=None, path=(), return_as="list"
)


class Reads(Blobs):
    """Notes which blobs are read."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def read(self, container: str, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self.asked.append(name)
        return super().read(container, name, offset, length)


class Pool:
    """Tasks of one call on a pool, and what they have said."""

    def __init__(self, settings: CallSettings = SETTINGS) -> None:
        self.blobs = Reads()
        self.blobs.create_container("out")
        self.work = Work(Capacity(nodes=LANES, workers_per_node=1, slots_per_node=1))
        self.window = Window(lambda *where: "")
        self.call = Call("c1", settings, number=1)
        self.results: list[ChunkFuture] = []
        self.ended: list[str] = []
        self.work.begin(self.call)
        for _ in range(CALLS):
            future = self.call.add(BatchedCalls([(abs, (1,), {})], (None, None)), self.results.append)
            self.work.ready(self.call, future.chunk, 1, "abs")
        self.work.planner.observe(self.call.id, 1000, 5000.0)
        self.entries: list[UnderWay] = []
        for bundle in self.work.planner.plan(time.monotonic() + 1):
            task = f"c1-{bundle.chunks[0]:07d}-0-00000000"
            self.entries.append(UnderWay(bundle, self.call, task, 0.0, set(bundle.chunks)))
            self.work.under_way[task] = self.entries[-1]
        self._records, self._said = [0] * len(self.entries), [0] * len(self.entries)
        executor = concurrent.futures.ThreadPoolExecutor(2)
        cluster = SimpleNamespace(blobs=self.blobs)
        holdings = SimpleNamespace(window=self.window)
        session: Any = SimpleNamespace(
            cluster=cluster, holdings=holdings, outputs="out", key=KEY, job="job", pool=executor, work=self.work
        )
        self.intake = Intake(session, lambda entry, end: self.ended.append(entry.task))

    def name(self, number: int) -> str:
        return f"c1/{self.entries[number].task}/000"

    def say(self, number: int, count: int, *, ok: bool = True) -> None:
        """Let a task append the outcomes of its next calls."""
        name, said = self.name(number), self._said[number]
        chunks = self.entries[number].bundle.chunks[said : said + count]
        self._said[number] += len(chunks)
        body = encode_outcome([1], each=True)
        assert isinstance(body, bytes)
        heads: list[tuple[dict[str, Any], bytes]] = [
            ({"chunk": chunk, "ok": ok, "seconds": 5.0, "calls": 1}, body) for chunk in chunks
        ]
        records = list(seal_outcomes(KEY, f"job/{name}", self._records[number], heads))
        self._records[number] += len(records)
        self.blobs.append("out", name, b"".join(records))

    def consume(self, count: int) -> None:
        """Take all results, once so many of them have arrived."""
        deadline = time.monotonic() + 10
        while len(self.results) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        taken, self.results[:] = list(self.results), []
        assert [list(future.result()) for future in taken] == [[1]] * count

    def look(self, **options: Any) -> set[int]:
        """Look once; return the tasks whose streams were read."""
        self.blobs.asked.clear()
        self.intake.look(**options)
        return {number for number in range(len(self.entries)) if self.name(number) in self.blobs.asked}


@pytest.fixture
def pool() -> Iterator[Pool]:
    found = started(Pool())
    yield found
    found.call.close()


def started(pool: Pool) -> Pool:
    """The first look reads all that there is: nothing is known of the outcomes' sizes."""
    assert len(pool.entries) > LANES, "nothing waits behind what runs"
    pool.say(0, len(pool.entries[0].bundle.chunks))
    assert pool.look() == {0}
    return pool


def test_a_stream_waits_until_it_has_all_that_its_task_has_left(pool: Pool) -> None:
    calls = len(pool.entries[1].bundle.chunks)
    assert calls > 4
    pool.say(1, 2)
    pool.say(2, calls)
    assert pool.look() == {2}
    assert not pool.entries[2].remaining
    assert len(pool.entries[1].remaining) == calls
    pool.say(1, calls - 2)
    assert pool.look() == {1}
    assert not pool.entries[1].remaining
    assert pool.look() == set()


def test_it_does_not_wait_for_ever(pool: Pool) -> None:
    pool.say(1, 3)
    assert pool.look() == set()
    longest = LANES / intake._READS
    assert longest < 2
    time.sleep(longest + 0.1)
    assert pool.look() == {1}
    assert len(pool.entries[1].remaining) == len(pool.entries[1].bundle.chunks) - 3


def test_where_a_call_has_raised_it_is_read_at_once(pool: Pool) -> None:
    pool.say(1, 1)
    pool.say(2, 1, ok=False)
    pool.blobs.put("out", f"{pool.name(2)}.{FAILED}", b"")
    assert pool.look() == {2}


def test_what_has_ended_is_read(pool: Pool) -> None:
    pool.say(1, 1)
    pool.say(2, 1)
    assert pool.look(whole={pool.entries[2].task}) == {2}


def test_at_the_end_of_a_call_each_outcome_is_awaited(pool: Pool) -> None:
    pool.say(1, 1)
    assert pool.look() == set()
    for entry in pool.entries[LANES:]:
        pool.work.finish(entry)
    assert pool.look() == {1}


def test_joblibs_clock_is_not_kept_waiting() -> None:
    pool = started(Pool(replace(SETTINGS, timed=True)))
    pool.say(1, 1)
    assert pool.look() == {1}
    pool.call.close()


def test_a_consumer_who_waits_gets_what_comes_next() -> None:
    pool = started(Pool(replace(SETTINGS, return_as="generator")))
    pool.consume(len(pool.entries[0].bundle.chunks))
    # The calls of tasks that were planned together lie among each other.
    left = {number: min(entry.remaining) for number, entry in enumerate(pool.entries) if entry.remaining}
    for number in left:
        pool.say(number, 1)
    read = pool.look()
    assert {number for number, chunk in left.items() if chunk < LANES} <= read
    whole = {number for number, entry in enumerate(pool.entries) if len(entry.bundle.chunks) == 1}
    assert not ({number for number, chunk in left.items() if chunk > 4 * LANES} - whole) & read
    # He has those and has not taken one of them since: he has enough.
    pool.say(1, 1)
    assert pool.look() == set()
    pool.call.close()


def test_a_consumer_who_has_enough_is_given_no_more() -> None:
    pool = started(Pool(replace(SETTINGS, return_as="generator_unordered")))
    calls = len(pool.entries[0].bundle.chunks)
    pool.say(1, 1)
    assert pool.look() == set(), "of all results he has taken none"
    pool.consume(calls)
    assert pool.look() == {1}
    pool.say(2, 1)
    assert pool.look() == set(), "one is there"
    pool.consume(1)
    assert pool.look() == {2}
    pool.call.close()
