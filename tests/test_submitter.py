"""What is encoded, uploaded and added when, against a model of the service that a test drives step by step."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from joblib.parallel import BatchedCalls

sys.path.insert(0, str(Path(__file__).parent))
from jobs_lab import until
from service_model import ModelCluster, Task

import joblib_azure.monitor
from joblib_azure.bundler import CallSettings
from joblib_azure.call import Call
from joblib_azure.capacity import COLLECTION
from joblib_azure.node.nested import NestedBackend
from joblib_azure.planner.core import REFILL
from joblib_azure.session import Session
from joblib_azure.submitter import _ENCODED, _STREAMS

NODES = 200
SETTINGS = CallSettings(n_jobs=2 * NODES, max_nbytes=None, mmap_mode=None, inner_max_num_threads=None, path=())
#: Tasks that run or wait in the service, at least, where there is enough to do.
MANY = 2 * NODES - NODES // REFILL


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    for name in ("FIRST_LOOK", "LAST_LOOK", "FIRST_TASK_LOOK", "LAST_TASK_LOOK", "CALM_LOOK", "CALM_TASK_LOOK"):
        monkeypatch.setattr(joblib_azure.monitor, name, 0.05)
    session = Session(ModelCluster(NODES))
    session.open()
    yield session
    session.close("the test is over")


def model(session: Session) -> Any:
    cluster = session.cluster
    assert isinstance(cluster, ModelCluster)
    return cluster.model


class Counted:
    """Counts how often one was pickled."""

    pickled = 0

    def __reduce__(self) -> tuple[type, tuple[()]]:
        Counted.pickled += 1
        return Counted, ()


def nothing(argument: object) -> None:
    pass


def give(session: Session, call: Call, number: int, argument: Callable[[int], object] = int) -> None:
    for each in range(number):
        batch = BatchedCalls([(nothing, (argument(each),), {})], (NestedBackend(1), None))
        future = call.add(batch, None)
        session.work.ready(call, future.chunk, 1, "nothing(int)")


def test_no_more_is_encoded_than_is_uploaded_soon(session: Session) -> None:
    """What waits for its upload is a copy of what the calls are given."""
    Counted.pickled = 0
    blobs = session.cluster.blobs
    blobs.gate.clear()  # type: ignore[attr-defined]
    try:
        give(session, session.start_call(SETTINGS), NODES, lambda _: Counted())
        until(lambda: Counted.pickled == _STREAMS + _ENCODED, "as many are encoded as there is room for")
        time.sleep(0.5)
        assert Counted.pickled == _STREAMS + _ENCODED
        assert len(session.work.planner.bundles) > 2 * Counted.pickled
    finally:
        blobs.gate.set()  # type: ignore[attr-defined]
    until(lambda: sum(model(session).requests) == Counted.pickled == NODES, "all are encoded and added")


def fill(session: Session, call: Call) -> list[Task]:
    """Let about as many tasks of a minute wait in the service as run there; return those that were first."""
    service = model(session)
    service.seconds = 60.0
    give(session, call, NODES)
    until(lambda: sum(service.requests) == NODES, "each slot has a task")
    first: list[Task] = service.of_calls()
    for task in first:
        service.begin(task)
    for task in first[:20]:
        service.finish(task)
    give(session, call, 4000)
    until(lambda: len(session.work.planner.bundles) > MANY, "about as many wait as run")
    time.sleep(0.5)
    return first


def test_what_waits_behind_others_is_added_by_full_requests(session: Session) -> None:
    """The slots have something to do, so that a request may wait until it is full; but not once they had not."""
    service, requests, planned = model(session), model(session).requests, session.work.planner
    first = fill(session, session.start_call(SETTINGS))
    before = len(requests)
    for task in first[20 : 40 + COLLECTION]:
        service.finish(task)
    until(lambda: len(requests) > before and len(planned.bundles) > MANY, "what has ended is made up for")
    time.sleep(0.5)
    assert set(requests[before:]) == {COLLECTION}

    full = sum(requests)
    for task in service.of_calls():
        service.begin(task)
        service.finish(task)
    until(lambda: sum(requests) >= full + NODES, "the slots are filled once nothing waits for them in the service")


def test_tasks_that_are_being_ended_hold_up_nobody(session: Session) -> None:
    """Each is a request: until the last is ended, the first slots have been free for long."""
    service, requests = model(session), model(session).requests
    call = session.start_call(SETTINGS)
    fill(session, call)
    service.terminations = threading.Semaphore(100)
    session.end_call(call)
    until(lambda: len(session.work.under_way) < 2 * NODES - 50, "some are ended")
    began, before = time.monotonic(), sum(requests)
    try:
        give(session, session.start_call(SETTINGS), 40)
        until(lambda: sum(requests) > before, "the next call has tasks")
        assert time.monotonic() - began < 10.0  # by what waits in the service it would be half a minute
    finally:
        service.terminations.release(NODES * 4)


def test_a_session_ends_while_nothing_can_be_stored(session: Session) -> None:
    blobs = session.cluster.blobs
    blobs.gate.clear()  # type: ignore[attr-defined]
    try:
        call = session.start_call(SETTINGS)
        give(session, call, NODES)
        until(lambda: len(session.work.planner.bundles) == NODES, "they are planned")
        began = time.monotonic()
        session.close("the test ends it")
        until(lambda: call.failure is not None or call.closed, "the call has ended")
        assert time.monotonic() - began < 30.0
    finally:
        blobs.gate.set()  # type: ignore[attr-defined]
