"""What the client makes of a service that refuses, loses answers or is away: one policy, bounded in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cluster_lab import config_of
from joblib import Parallel, delayed, parallel_config

from joblib_azure import LocalCluster
from joblib_azure.chaos.schedule import Schedule
from joblib_azure.cluster import Cluster
from joblib_azure.cluster.connections import Connections
from joblib_azure.errors import (
    NodesUnavailableError,
    QuotaError,
    ResourceExistsError,
    ResourceNotFoundError,
    ServiceError,
    ServiceUnreachableError,
    SessionClosedError,
)
from joblib_azure.registry import close_sessions, session_for
from joblib_azure.retries import policy
from joblib_azure.service import TaskSpec
from joblib_azure.service.credentials import connect_batch

#: More than any test asks.
ALWAYS = 10_000


@pytest.fixture
def connect(stormy: LocalCluster) -> Iterator[Callable[[float], Connections]]:
    """Connects to the account with a patience of so many seconds."""
    made: list[Connections] = []

    def connection(seconds: float) -> Connections:
        made.append(Connections(stormy.account, seconds))
        return made[-1]

    yield connection
    for each in made:
        each.close()


def told(action: Callable[[], Any], kind: type[BaseException] = ServiceError) -> tuple[BaseException, float]:
    """Return what an action raises, and after how many seconds."""
    begun = time.monotonic()
    with pytest.raises(kind) as caught:
        action()
    return caught.value, time.monotonic() - begun


# the policy ---------------------------------------------------------------------------------------------------


def test_a_wait_that_the_service_asks_for_is_kept(
    stormy: LocalCluster, connect: Callable[[float], Connections]
) -> None:
    stormy.storm.strike("throttled", service="batch", target="/jobs/waits?", times=2)
    _, seconds = told(lambda: connect(30).batch.job("waits"), ResourceNotFoundError)
    assert seconds >= 2.0  # twice a Retry-After of 1 s


def test_a_wait_that_is_longer_than_the_patience_is_given_up_at_once(
    stormy: LocalCluster, connect: Callable[[float], Connections]
) -> None:
    stormy.storm.strike("throttled", service="batch", target="/jobs/impatient?", times=ALWAYS)
    error, seconds = told(lambda: connect(1).batch.job("impatient"))
    assert isinstance(error, ServiceError)
    assert error.context["status"] == 429
    assert seconds < 1.0


@pytest.mark.parametrize("fault", ["busy-bare", "throttled-bare", "reset", "internal-error"])
def test_a_service_that_never_comes_back_is_told_within_the_patience(
    stormy: LocalCluster, connect: Callable[[float], Connections], fault: str
) -> None:
    connections = connect(2)
    with pytest.raises(ResourceNotFoundError):
        connections.batch.job("nobody")  # it has answered once
    stormy.storm.strike(fault, service="batch", target=f"/jobs/gone-{fault}?", times=ALWAYS)
    _, seconds = told(lambda: connections.batch.job(f"gone-{fault}"))
    assert 0.5 < seconds < 10


@pytest.mark.parametrize("fault", ["busy-bare", "reset"])
def test_adding_tasks_ends_within_the_patience_too(
    stormy: LocalCluster, connect: Callable[[float], Connections], fault: str
) -> None:
    """azure-batch by itself asks again without end."""
    stormy.storm.strike(fault, service="batch", target=f"POST /jobs/none-{fault}/", times=ALWAYS)
    task = TaskSpec(id="t", command="true", environment={})
    _, seconds = told(lambda: connect(2).batch.add_tasks(f"none-{fault}", [task]))
    assert seconds < 10


def test_an_endpoint_that_never_answered_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "FIRST_CONTACT", 0.5)
    batch = connect_batch("http://127.0.0.1:9", account="a", key="a2V5", seconds=100)
    _, seconds = told(batch.pools, ServiceUnreachableError)
    assert seconds < 10
    batch.close()


def test_a_first_request_that_is_taken_and_not_answered_is_tried_again(
    stormy: LocalCluster, connect: Callable[[float], Connections], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time is that of a whole endpoint that never answers, which this one is not."""
    monkeypatch.setattr(policy, "FIRST_CONTACT", 0.5)
    stormy.storm.strike("time-out", service="batch", target="/jobs/first?", seconds=1.0)
    _, seconds = told(lambda: connect(30).batch.job("first"), ResourceNotFoundError)
    assert seconds >= 1.0


def test_whoever_closes_ends_what_is_tried_again(stormy: LocalCluster, connect: Callable[[float], Connections]) -> None:
    connections = connect(300)
    stormy.storm.strike("throttled", service="batch", target="/jobs/closed?", times=ALWAYS)
    ended = threading.Event()

    def ask() -> None:
        with pytest.raises(ServiceError):
            connections.batch.job("closed")
        ended.set()

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(1.5)
    connections.close()
    assert ended.wait(10)
    thread.join()


# what has taken effect although nobody said so ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "target"),
    [
        ("storage", "comp=appendblock"),
        ("storage", "PUT "),
        ("batch", "POST /jobs?"),
        ("batch", "/addtaskcollection"),
        ("batch", "DELETE /jobs"),
    ],
)
def test_what_took_effect_although_its_answer_was_lost_is_not_done_twice(
    stormy: LocalCluster, service: str, target: str
) -> None:
    close_sessions(stormy)
    before = stormy.storm.report().struck["lost-answer"]
    with parallel_config("azure", cluster=stormy):
        stormy.storm.strike("lost-answer", service=service, target=target)
        assert Parallel(batch_size=1)(delayed(pow)(i, 2) for i in range(20)) == [i * i for i in range(20)]
    close_sessions(stormy)
    assert stormy.storm.report().struck["lost-answer"] == before + 1


def test_a_job_of_somebody_else_is_not_taken_for_one_s_own(stormy: LocalCluster) -> None:
    with parallel_config("azure", cluster=stormy):
        Parallel()([delayed(abs)(-1)])
    job = session_for(stormy).batch_job
    other = type(job)(stormy, job.id)
    other.plan = job.plan
    with pytest.raises(ResourceExistsError):
        other.create(lifetime=job.life)


# quotas, and what somebody else does --------------------------------------------------------------------------


def test_a_full_quota_of_jobs_is_waited_out(stormy: LocalCluster, caplog: pytest.LogCaptureFixture) -> None:
    close_sessions(stormy)
    stormy.storm.strike("quota", service="batch", times=2)
    with parallel_config("azure", cluster=stormy):
        assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
    assert "Waiting for another job's end" in caplog.text


def test_a_quota_that_stays_full_is_told_within_node_timeout(stormy: LocalCluster) -> None:
    other = Cluster(stormy.config.model_copy(update={"node_timeout": 1.0}), stormy.account)
    stormy.storm.strike("quota", service="batch", times=3)
    with parallel_config("azure", cluster=other), pytest.raises(QuotaError, match="end jobs that nobody needs"):
        Parallel()(delayed(abs)(-i) for i in range(3))
    other.close()


def test_a_job_that_somebody_ends_between_two_calls_is_replaced(stormy: LocalCluster) -> None:
    with parallel_config("azure", cluster=stormy):
        Parallel()([delayed(abs)(-1)])
        before = session_for(stormy).job
        stormy.storm.strike("job-ended")
        time.sleep(1.5)
        assert Parallel()([delayed(abs)(-2)]) == [2]
        assert session_for(stormy).job != before


def test_a_job_that_somebody_ends_during_a_call_is_the_call_s_end(stormy: LocalCluster) -> None:
    with parallel_config("azure", cluster=stormy):
        Parallel()([delayed(abs)(-1)])
        threading.Timer(1.0, lambda: stormy.storm.strike("job-ended")).start()
        begun = time.monotonic()
        with pytest.raises(SessionClosedError, match="EndedBySomebody"):
            Parallel()(delayed(time.sleep)(60) for _ in range(4))
        assert time.monotonic() - begun < 40
        assert Parallel()([delayed(abs)(-2)]) == [2]


def test_a_pool_that_somebody_deletes_during_a_call_is_the_call_s_end() -> None:
    with (
        LocalCluster(nodes=1, cores_per_node=1, chaos=Schedule()) as cluster,
        parallel_config("azure", cluster=cluster),
    ):
        Parallel()([delayed(abs)(-1)])
        threading.Timer(1.0, lambda: cluster.storm.strike("pool-deleted")).start()
        begun = time.monotonic()
        with pytest.raises(NodesUnavailableError, match="local"):
            Parallel()(delayed(time.sleep)(60) for _ in range(4))
        assert time.monotonic() - begun < 60


def test_the_patience_is_the_cluster_s(stormy: LocalCluster) -> None:
    assert stormy.config.service_timeout == 40
    assert config_of(1).service_timeout == 120
