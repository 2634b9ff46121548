"""Exactly-once delivery: session, submitter and monitor against a model of the service that does whatever it may.

In whatever order tasks begin, run again, are lost, are seen, and say what they have computed: each call's outcome is
delivered once, and it is the right one; a call fails for the faults of nodes only where its task was lost more often
than `retries` allow. A call may run more than once: that is why its first outcome counts.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from joblib.parallel import BatchedCalls

sys.path.insert(0, str(Path(__file__).parent))
from service_model import ModelCluster, Task

import joblib_azure.monitor
from joblib_azure.bundler import CallSettings
from joblib_azure.call import Call, ChunkFuture
from joblib_azure.errors import TaskFailedError
from joblib_azure.node.nested import NestedBackend
from joblib_azure.session import Session

#: How often a bundle is sent again, and seconds that all calls may take once nothing goes wrong any more.
RETRIES, DEADLINE = 2, 30.0
SETTINGS = CallSettings(n_jobs=4, max_nbytes=None, mmap_mode=None, inner_max_num_threads=None, path=())
PLACES = st.integers(0, 30)


def triple(number: int) -> int:
    if number % 11 == 10:
        raise ValueError(f"{number} fails")
    return 3 * number


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the model as often as its listings change: it costs nothing, and an example is to take no second."""
    for name in ("FIRST_LOOK", "LAST_LOOK", "FIRST_TASK_LOOK", "LAST_TASK_LOOK"):
        monkeypatch.setattr(joblib_azure.monitor, name, 0.01)


class Service(RuleBasedStateMachine):
    """What hypothesis may let happen, and what must be so in the end."""

    calls: list[Call]

    @initialize(nodes=st.integers(1, 3), slots=st.sampled_from([1, 2]))
    def open(self, nodes: int, slots: int) -> None:
        self.cluster = ModelCluster(nodes, slots, RETRIES)
        self.session = Session(self.cluster)
        self.session.open()
        self.lock = threading.Lock()
        self.calls = []
        #: Numbers of each chunk; and what was delivered of it.
        self.given: dict[tuple[int, int], list[int]] = {}
        self.delivered: dict[tuple[int, int], list[ChunkFuture]] = {}
        self.losses: Counter[tuple[int, int]] = Counter()
        self.counted: set[str] = set()
        self.begun(True)

    @property
    def model(self) -> Any:
        return self.cluster.model

    # the client -------------------------------------------------------------------------------------------

    @rule(watched=st.booleans())
    def begun(self, watched: bool) -> None:
        """A Parallel call begins; several may run at once."""
        if len(self.calls) < 3:
            settings = replace(SETTINGS, return_as="generator" if watched else "list")
            self.calls.append(self.session.start_call(settings))

    @rule(which=PLACES, sizes=st.lists(st.integers(1, 4), min_size=1, max_size=12))
    def submitted(self, which: int, sizes: list[int]) -> None:
        place = which % len(self.calls)
        call = self.calls[place]
        if call.exhausted:
            return
        for size in sizes:
            numbers = [100 * len(self.given) + step for step in range(size)]
            batch = BatchedCalls([(triple, (number,), {}) for number in numbers], (NestedBackend(1), None))
            with self.lock:
                key = place, sum(first == place for first, _ in self.given)
                self.given[key] = numbers
                self.delivered[key] = []
            future = call.add(batch, lambda future, key=key: self._take(key, future))
            assert future.chunk == key[1]
            self.session.work.ready(call, future.chunk, size, "triple(int)")

    def _take(self, key: tuple[int, int], future: ChunkFuture) -> None:
        with self.lock:
            self.delivered[key].append(future)

    @rule(which=PLACES)
    def exhausted(self, which: int) -> None:
        self.session.work.exhaust(self.calls[which % len(self.calls)])

    @rule(seconds=st.sampled_from([0.0, 0.02, 0.05]))
    def time_passes(self, seconds: float) -> None:
        time.sleep(seconds)

    # the service ------------------------------------------------------------------------------------------

    def _task(self, which: int) -> Task | None:
        found = self.model.of_calls()
        return found[which % len(found)] if found else None

    @rule(which=PLACES)
    def task_begins(self, which: int) -> None:
        task = self._task(which)
        if task is not None:
            self.model.begin(task)

    @rule(which=PLACES, run=st.integers(0, 3), outcomes=st.integers(1, 3))
    def run_says_something(self, which: int, run: int, outcomes: int) -> None:
        """The latest one, or one before it whose node was only thought to be lost."""
        task = self._task(which)
        if task is not None and task.runs:
            self.model.say(task, task.runs[run % len(task.runs)], outcomes)

    @rule(which=PLACES)
    def task_ends_well(self, which: int) -> None:
        task = self._task(which)
        if task is not None:
            self.model.finish(task)

    @rule(which=PLACES)
    def task_is_lost(self, which: int) -> None:
        task = self._task(which)
        if task is not None:
            self._lose(task)

    def _lose(self, task: Task) -> None:
        """Count it for those of its chunks that the client may be waiting for."""
        self.model.begin(task)  # so that the model knows what is in it
        self.model.lose(task)
        if task.runs and task.end is not None and task.end.exit_code and task.spec.id not in self.counted:
            self.counted.add(task.spec.id)
            name = task.spec.environment["JOBLIB_AZURE_CALL"]
            place = next(place for place, call in enumerate(self.calls) if call.id == name)
            self.losses.update((place, chunk) for chunk, _ in task.runs[0].chunks)

    @rule(which=PLACES)
    def node_is_preempted(self, which: int) -> None:
        task = self._task(which)
        if task is not None:
            self.model.preempt(task)

    @rule(ends=st.integers(0, 4))
    def listings_are_late(self, ends: int) -> None:
        self.model.hidden = ends

    @rule(backwards=st.booleans())
    def listings_have_another_order(self, backwards: bool) -> None:
        self.model.backwards = self.cluster.model_blobs.backwards = backwards

    @rule(times=st.integers(1, 3))
    def requests_fail(self, times: int) -> None:
        self.model.failing = self.cluster.model_blobs.failing = times

    # the end ----------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "counted"):
            return  # it did not open
        try:
            self._heal()
            self._check()
        finally:
            self.session.close()
        left = [thread.name for thread in self.session._threads if thread.is_alive()]
        assert left == []

    def _heal(self) -> None:
        """From now on everything works; wait until all is delivered."""
        self.model.hidden = self.model.failing = self.cluster.model_blobs.failing = 0
        for call in self.calls:
            self.session.work.exhaust(call)
        end = time.monotonic() + DEADLINE
        while not all(self.delivered.values()):
            for task in self.model.of_calls():
                self.model.begin(task)
                self.model.finish(task)
            missing = [key for key, found in self.delivered.items() if not found]
            assert time.monotonic() < end, f"{missing} were not delivered within {DEADLINE:.0f} s"
            assert not self.session.closed, [call.failure for call in self.calls]
            time.sleep(0.005)
        time.sleep(0.03)  # what is delivered twice would be so by then

    def _check(self) -> None:
        for key, numbers in self.given.items():
            assert len(self.delivered[key]) == 1, f"chunk {key} was delivered {len(self.delivered[key])} times"
            (future,) = self.delivered[key]
            failing = [number for number in numbers if number % 11 == 10]
            found, error = _outcome(future)
            if isinstance(error, TaskFailedError):
                assert self.losses[key] > RETRIES, f"{key} failed after {self.losses[key]} losses: {error}"
            elif failing:
                assert isinstance(error, ValueError)
                assert str(error) == f"{failing[0]} fails"
            else:
                assert (found, error) == ([3 * number for number in numbers], None)


def _outcome(future: ChunkFuture) -> tuple[list[Any], BaseException | None]:
    try:
        return list(future.result()), None
    except Exception as exc:
        return [], exc


def run(examples: int, steps: int) -> None:
    Service.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    Service.TestCase().runTest()


def test_each_outcome_is_delivered_once() -> None:
    run(examples=25, steps=40)


@pytest.mark.large
@pytest.mark.timeout(1800)
def test_each_outcome_is_delivered_once_in_many_more_histories() -> None:
    run(examples=1000, steps=60)


@pytest.fixture
def session() -> Iterator[Session]:
    """One on two nodes."""
    session = Session(ModelCluster(nodes=2, slots=1, retries=RETRIES))
    session.open()
    yield session
    session.close()


class Calls:
    """Calls of ``abs``, each a chunk, and what was delivered of them."""

    def __init__(self, session: Session, count: int) -> None:
        self._call = session.start_call(SETTINGS)
        self.found: dict[int, ChunkFuture] = {}
        for number in range(count):
            batch = BatchedCalls([(abs, (-number,), {})], (NestedBackend(1), None))
            self._call.add(batch, lambda future: self.found.update({future.chunk: future}))
            session.work.ready(self._call, number, 1, "abs(int)")
        session.work.exhaust(self._call)

    def wait(self, model: Any, happens: Callable[[Task, list[int]], object], until: Callable[[], bool]) -> None:
        """Begin tasks, and let something happen to those that run, with their chunks, until all is as it is to be."""
        end = time.monotonic() + DEADLINE
        while not until():
            assert time.monotonic() < end
            for task in model.of_calls():
                model.begin(task)
                if task.state == "running":
                    happens(task, [chunk for chunk, _ in task.runs[-1].chunks])
            time.sleep(0.005)


def test_a_call_that_takes_its_task_with_it_each_time_fails_alone(session: Session) -> None:
    """The calls that travel with it, before and behind it, have their results."""
    model, deadly, sizes = session.cluster.batch, 7, list[int]()
    calls = Calls(session, 20)

    def happens(task: Task, chunks: list[int]) -> None:
        if deadly not in chunks:
            model.finish(task)
            return
        sizes.append(len(chunks))
        width = int(task.spec.environment["JOBLIB_AZURE_WIDTH"])
        model.say(task, task.runs[-1], max(0, chunks.index(deadly) - width + 1))
        model.lose(task)

    calls.wait(model, happens, lambda: len(calls.found) == 20)
    with pytest.raises(TaskFailedError, match=f"lost {len(sizes)} times"):
        calls.found[deadly].result()
    assert [list(calls.found[number].result()) for number in range(20) if number != deadly] == [
        [number] for number in range(20) if number != deadly
    ]
    assert sizes[-1] == 1
    assert len(sizes) == RETRIES + 1
    assert any(size > 1 for size in sizes)


def test_an_end_that_is_listed_when_later_ones_were_seen_is_found(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listings begin where the last one ended, with some overlap; one that lags by more is looked back for."""
    monkeypatch.setattr(joblib_azure.monitor, "REVIEW", 0.2)
    monkeypatch.setattr(joblib_azure.monitor, "DOUBT", 0.1)
    model, lost = session.cluster.batch, list[str]()
    calls = Calls(session, 2)

    def happens(task: Task, chunks: list[int]) -> None:
        if 0 in chunks and not lost:
            lost.append(task.spec.id)
            model.unlisted.add(task.spec.id)
            model.lose(task)
            model.time_passes(3600.0)
        elif 0 not in chunks:
            model.finish(task)

    calls.wait(model, happens, lambda: 1 in calls.found)
    time.sleep(0.1)  # the end of the other one was listed by then
    model.unlisted.clear()
    calls.wait(model, lambda task, chunks: model.finish(task), lambda: 0 in calls.found)
    assert list(calls.found[0].result()) == [0]
