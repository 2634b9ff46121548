"""How outcomes are found in storage, few or very many of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from service_model import Blobs

from joblib_azure import outcomes
from joblib_azure.codec import FAILED, Record, new_key, seal, seal_outcomes
from joblib_azure.codec.streams import MOST_SHARING, MOST_TOGETHER, SMALL
from joblib_azure.jobs.names import task_id, tasks_between
from joblib_azure.outcomes import OutcomeReader, Place, stems, task_of
from joblib_azure.tally import Tally

KEY = new_key()


class Listed(Blobs):
    """Blobs in memory, and how many were listed."""

    def __init__(self) -> None:
        super().__init__()
        self.listed: list[int] = []

    def blobs(self, container: str, prefix: str) -> list[outcomes.BlobItem]:
        found = list(super().blobs(container, prefix))
        self.listed.append(len(found))
        return found


@pytest.fixture
def blobs() -> Listed:
    found = Listed()
    found.create_container("out")
    return found


@pytest.fixture
def reader(blobs: Listed) -> OutcomeReader:
    return OutcomeReader(lambda: blobs, "out", KEY, "job")


def task(number: int) -> str:
    return f"c1-{32 * number:07d}-0-{number:08x}"


def say(blobs: Listed, number: int, position: int = 0) -> None:
    name = f"c1/{task(number)}/000"
    blobs.append("out", name, seal(KEY, f"job/{name}#{position}", {"chunk": 32 * number + position}, b"x"))


def taken(reader: OutcomeReader, wanted: set[str]) -> list[int]:
    """Read what is new; return the chunks."""
    found: list[int] = []

    def take(record: Record, place: Place) -> None:
        found.append(record.head["chunk"])

    for item in reader.grown("c1", wanted.__contains__, wanted):
        reader.read(item, take)
    return sorted(found)


def test_what_few_or_many_names_begin_with() -> None:
    assert stems([], 8) == []
    assert stems(["abc"], 8) == ["abc"]
    names = [task(number) for number in range(1000, 3000)]
    found = stems(names, 8)
    assert 1 < len(found) <= 8
    assert all(any(name.startswith(stem) for stem in found) for name in names)
    assert not any(task(10_000).startswith(stem) for stem in found)


def test_a_call_of_few_tasks_is_listed_at_once(blobs: Listed, reader: OutcomeReader) -> None:
    for number in range(20):
        say(blobs, number)
    assert taken(reader, {task(3), task(7)}) == [96, 224]
    assert blobs.listed == [20]


def test_tasks_that_ended_long_ago_are_not_listed_again(blobs: Listed, reader: OutcomeReader) -> None:
    many = 5000
    for number in range(many):
        say(blobs, number)
    assert len(taken(reader, {task(number) for number in range(many)})) == many
    blobs.listed.clear()
    running = {task(number) for number in range(many - 100, many + 100)}
    for number in range(many, many + 100):
        say(blobs, number)
    say(blobs, many - 50, 1)
    expected = [32 * (many - 50) + 1, *(32 * number for number in range(many, many + 100))]
    assert taken(reader, running) == expected
    assert len(blobs.listed) <= 8
    assert sum(blobs.listed) < 1000
    assert taken(reader, running) == []


def test_one_that_is_sent_again_is_found_among_those_of_long_ago(blobs: Listed, reader: OutcomeReader) -> None:
    for number in range(3000):
        say(blobs, number)
    taken(reader, {task(number) for number in range(3000)})
    name = "c1/c1-0000032-1-00000000/000"
    blobs.append("out", name, seal(KEY, f"job/{name}#0", {"chunk": 32}, b"x"))
    again = {"c1-0000032-1-00000000", task(2999)}
    assert taken(reader, again) == [32]


def test_it_forgets_what_has_ended(blobs: Listed, reader: OutcomeReader) -> None:
    for start in range(0, 12_000, 3000):
        for number in range(start, start + 3000):
            say(blobs, number)
        taken(reader, {task(number) for number in range(start, start + 3000)})
    taken(reader, {task(11_999)})
    assert len(reader._streams) <= 3000


@given(st.lists(st.integers(0, 9000), max_size=12), st.integers(0, 3))
def test_outcomes_come_as_they_were_sent_and_each_can_be_read_again(sizes: list[int], before: int) -> None:
    blobs, name = Listed(), f"c1/{task(0)}/000"
    blobs.create_container("out")
    sent = [({"chunk": number, "ok": number % 3 > 0}, bytes([number]) * size) for number, size in enumerate(sizes)]
    first = [({"chunk": 100 + number}, b"") for number in range(before)]
    records = [seal(KEY, f"job/{name}#{number}", *each) for number, each in enumerate(first)]
    records += seal_outcomes(KEY, f"job/{name}", len(first), sent)
    blobs.append("out", name, b"".join(records))
    reader = OutcomeReader(lambda: blobs, "out", KEY, "job")
    found: list[tuple[dict[str, Any], bytes]] = []
    places: list[Place] = []

    def take(record: Record, place: Place) -> None:
        found.append((record.head, bytes(record.body)))
        places.append(place)

    for item in reader.grown("c1", lambda name: True):
        reader.read(item, take)
    assert found == first + sent
    assert [bytes(reader.read_again(place)) for place in places] == [body for _, body in found]


def test_small_outcomes_share_records_of_a_bounded_size() -> None:
    small: list[tuple[dict[str, Any], bytes]] = [({"chunk": number}, b"x" * 100) for number in range(1000)]
    assert len(list(seal_outcomes(KEY, "p", 0, small))) == -(-1000 // MOST_SHARING)
    records = list(seal_outcomes(KEY, "p", 0, [({}, b"x" * (SMALL - 1))] * 100))
    assert 1 < len(records) < 10
    assert all(len(record) < MOST_TOGETHER + 8000 for record in records)
    assert len(list(seal_outcomes(KEY, "p", 0, [({}, b"x" * SMALL)] * 5))) == 5


def test_a_call_that_has_raised_is_seen_in_the_listing(blobs: Listed, reader: OutcomeReader) -> None:
    say(blobs, 1)
    say(blobs, 2)
    blobs.put("out", f"c1/{task(2)}/000.{FAILED}", b"")
    items = reader.grown("c1", lambda name: True)
    assert [(task_of(item.name), reader.failed(item)) for item in items] == [(task(1), False), (task(2), True)]


def test_a_tally_counts_each_number_to_a_byte() -> None:
    tally = Tally()
    assert tally.add(5) == 0
    assert tally.add(5) == 1
    assert (tally[5], tally[4], tally[10**9], len(tally)) == (2, 0, 0, 1)
    assert 5 in tally
    assert 4 not in tally
    for _ in range(300):
        tally.add(70_000)
    assert (tally[70_000], len(tally)) == (255, 2)


def test_the_tasks_between_two_calls_in_few_words() -> None:
    for low, high in ((0, 0), (0, 7), (5, 12), (0, 10**9 - 1), (640_017, 703_411), (999, 1000), (10**8, 10**8 + 9)):
        found = tasks_between("c", low, high)
        assert 0 < len(found) <= 8
        for first in (low, (low + high) // 2, high):
            assert any(task_id("c", first, 32).startswith(stem) for stem in found), (low, high, found)
    assert not any(task_id("c", 100_000, 32).startswith(stem) for stem in tasks_between("c", 640_017, 703_411))
