"""Results of any size on a cluster: as they come, as long as somebody wants them, and gone after that."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

from joblib_azure import LocalCluster
from joblib_azure.cluster import Cluster
from joblib_azure.errors import JoblibAzureError, ResourceNotFoundError, ResultPicklingError
from joblib_azure.registry import close_sessions, session_for
from joblib_azure.session import Session

MB = 1 << 20


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def full(number: int, size: int) -> Any:
    return np.full(size // 8, number, dtype=np.float64)


def payloads(session: Session) -> list[str]:
    try:
        return [blob.name for blob in session.cluster.blobs.blobs(session.outputs, "") if "." in blob.name]
    except ResourceNotFoundError:
        return []


def containers(session: Session) -> set[str]:
    return {item.name for item in session.cluster.blobs.containers(session.job)}


@pytest.fixture(params=["generator", "generator_unordered"])
def stream(request: pytest.FixtureRequest, cluster: LocalCluster) -> Iterator[tuple[Session, Any]]:
    """Twelve results of 8 MB, of which none was consumed, and a window that holds two."""
    with parallel_config("azure", cluster=cluster):
        session = session_for(cluster)
        budget, session.holdings.window._budget = session.holdings.window._budget, 20 * MB
        yield session, Parallel(return_as=request.param)(delayed(full)(n, 8 * MB) for n in range(12))
        session.holdings.window._budget = budget


def test_what_nobody_consumed_stays_in_storage_and_goes_when_it_is_consumed(stream: tuple[Session, Any]) -> None:
    session, results = stream
    until(lambda: session.holdings.window.left == 12 or len(payloads(session)) == 10)
    until(lambda: not session.work.under_way)
    assert session.holdings.window.held <= 20 * MB
    assert len(payloads(session)) >= 9
    seen = set()
    for array in results:
        assert array.flags.writeable
        seen.add(float(array[0]))
        assert (array == array[0]).all()
        assert session.holdings.window.held <= 20 * MB
    assert seen == set(range(12))
    until(lambda: not payloads(session))
    assert session.holdings.window.left == 0


def test_results_outlive_their_session(stream: tuple[Session, Any]) -> None:
    session, results = stream
    first = next(results)
    until(lambda: not session.work.under_way)
    session.close("the session was idle and ended")
    assert containers(session) == {session.outputs}
    assert len({float(array[0]) for array in [first, *results]}) == 12
    until(lambda: not containers(session))


def test_a_generator_that_is_dropped_leaves_nothing(stream: tuple[Session, Any]) -> None:
    session, results = stream
    next(results)
    until(lambda: not session.work.under_way)
    session.close("the session was idle and ended")
    with pytest.warns(UserWarning, match="but not used"):
        results.close()
    del results
    gc.collect()
    until(lambda: not containers(session))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_after_the_cluster_was_closed_it_is_told(stream: tuple[Session, Any], cluster: LocalCluster) -> None:
    session, results = stream
    next(results)
    until(lambda: not session.work.under_way)
    close_sessions(cluster)
    with pytest.raises(JoblibAzureError, match="consume a generator before that"):
        for _ in results:
            pass
    assert not containers(session)


def test_small_results_of_a_generator_come_in_order(cluster: LocalCluster) -> None:
    with parallel_config("azure", cluster=cluster):
        session = session_for(cluster)
        budget, session.holdings.window._budget = session.holdings.window._budget, MB
        results = Parallel(return_as="generator", batch_size=5)(delayed(full)(n, 64 << 10) for n in range(100))
        first = next(results)
        until(lambda: not session.work.under_way)
        assert [float(array[0]) for array in [first, *results]] == list(range(100))
        session.holdings.window._budget = budget


class LargeError(Exception):
    """An exception with a large argument."""


def test_a_large_exception_arrives(cluster: LocalCluster) -> None:
    def fail() -> None:
        raise LargeError("it", b"x" * (3 * MB))

    with parallel_config("azure", cluster=cluster):
        with pytest.raises(LargeError) as caught:
            Parallel()(delayed(fail)() for _ in range(2))
        assert caught.value.args == ("it", b"x" * (3 * MB))
        assert "in fail\n" in str(caught.value.__cause__)


def test_a_large_result_that_cannot_be_pickled_is_told(cluster: LocalCluster) -> None:
    def fail() -> Any:
        return [np.zeros(MB), (n for n in range(3))]

    with parallel_config("azure", cluster=cluster), pytest.raises(ResultPicklingError, match="cannot be pickled"):
        Parallel()(delayed(fail)() for _ in range(2))


def test_results_of_one_chunk_come_one_by_one(cluster: LocalCluster) -> None:
    """Layouts and flags survive, and what is made of maps is an array of its own."""
    data = np.asfortranarray(np.random.default_rng(0).random((1000, 700)))

    def views(data: Any) -> Any:
        frozen = data * 2
        frozen.flags.writeable = False
        return data, data[::2], data.T, frozen, data[:0], "text"

    with parallel_config("azure", cluster=cluster):
        for back in Parallel(batch_size=3)(delayed(views)(data) for _ in range(6)):
            same, strided, turned, frozen, empty, text = back
            assert type(same) is np.ndarray
            assert same.flags.f_contiguous
            assert (same == data).all()
            assert strided.flags.f_contiguous
            assert (strided == data[::2]).all()
            assert turned.flags.c_contiguous
            assert (turned == data.T).all()
            assert not frozen.flags.writeable
            assert empty.shape == (0, 700)
            assert text == "text"


@pytest.mark.parametrize(("wish", "failed", "stays"), [("always", False, True), ("on_error", True, True)])
def test_blobs_stay_as_long_as_the_user_asks(cluster: LocalCluster, wish: str, failed: bool, stays: bool) -> None:
    other = Cluster(cluster.config.model_copy(update={"keep_blobs": wish, "keep_days": 2.0}), cluster.account)
    with parallel_config("azure", cluster=other):
        Parallel()(delayed(full)(n, 2 * MB) for n in range(2))
    session = session_for(other)
    session.failed = failed
    close_sessions(other)
    kept = {item.name: dict(item.metadata) for item in cluster.blobs.containers(session.job)}
    assert set(kept) == {session.inputs, session.outputs}
    assert all(metadata["joblib_azure_keep_until"] for metadata in kept.values())
    for container in kept:
        cluster.blobs.delete_container(container)
