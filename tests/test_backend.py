"""joblib on the local cluster, end to end: the same results, the same exceptions, the same habits."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import TimeoutError
from typing import Any

import numpy as np
import pytest
from joblib import Parallel, cpu_count, delayed, parallel_backend, parallel_config

from joblib_azure import AzureBackend, LocalCluster
from joblib_azure.errors import CallExitedError, ResultPicklingError, TaskPicklingError
from joblib_azure.registry import session_for


def square(i: int) -> int:
    return i * i


def who(i: int) -> tuple[int, str, int]:
    return i, os.environ["AZ_BATCH_NODE_ID"], os.getpid()


def fails_at(i: int, at: int) -> int:
    if i == at:
        error = ValueError(f"call {i} fails")
        if sys.version_info >= (3, 11):
            error.add_note("a note of the call")
        raise error
    return i


def interval(seconds: float) -> tuple[float, float]:
    begun = time.time()
    time.sleep(seconds)
    return begun, time.time()


@pytest.fixture(autouse=True)
def azure(cluster: LocalCluster) -> Iterator[None]:
    with parallel_config("azure", cluster=cluster):
        yield


def test_results_in_order_from_both_nodes() -> None:
    found = Parallel()(delayed(who)(i) for i in range(40))
    assert [i for i, _, _ in found] == list(range(40))
    assert len({node for _, node, _ in found}) == 2
    assert os.getpid() not in {pid for _, _, pid in found}


def test_every_way_in(cluster: LocalCluster) -> None:
    expected = [square(i) for i in range(5)]
    with parallel_backend("azure", cluster=cluster):
        assert Parallel()(delayed(square)(i) for i in range(5)) == expected
    assert Parallel(backend="azure", n_jobs=2)(delayed(square)(i) for i in range(5)) == expected
    assert Parallel(backend=AzureBackend(cluster), n_jobs=2)(delayed(square)(i) for i in range(5)) == expected


def test_the_same_session_serves_them(cluster: LocalCluster) -> None:
    session = session_for(cluster)
    before = session.work.tasks_added
    Parallel()(delayed(square)(i) for i in range(4))
    assert session_for(cluster) is session
    assert session.work.tasks_added > before


def test_closures_and_lambdas_of_here() -> None:
    offset = 10
    assert Parallel()(delayed(lambda x: x + offset)(i) for i in range(3)) == [10, 11, 12]
    results = [Parallel()([delayed(lambda x, k=k: x + k)(1), delayed(square)(2)]) for k in (1, 2)]
    assert results == [[2, 4], [3, 4]]


@pytest.mark.parametrize("batch_size", ["auto", 1, 7])
@pytest.mark.parametrize("pre_dispatch", ["2 * n_jobs", "all", 3])
def test_every_call_once_whatever_the_dispatch(batch_size: Any, pre_dispatch: Any) -> None:
    pool = Parallel(batch_size=batch_size, pre_dispatch=pre_dispatch)
    assert pool(delayed(square)(i) for i in range(50)) == [square(i) for i in range(50)]


def test_nothing_to_do() -> None:
    assert Parallel()(delayed(square)(i) for i in range(0)) == []


def test_generators() -> None:
    ordered = Parallel(return_as="generator")(delayed(square)(i) for i in range(30))
    assert list(ordered) == [square(i) for i in range(30)]
    unordered = Parallel(return_as="generator_unordered")(delayed(square)(i) for i in range(30))
    assert sorted(unordered) == [square(i) for i in range(30)]


def test_results_come_while_the_rest_runs() -> None:
    calls = [delayed(interval)(seconds) for seconds in (0.01, 0.01, 5, 5)]
    results = Parallel(return_as="generator")(calls)
    next(results)
    arrived = time.time()
    assert arrived < max(ended for _, ended in results)


def test_a_generator_dropped_early_cancels_its_calls() -> None:
    results = Parallel(return_as="generator", batch_size=1)(delayed(interval)(0.2) for _ in range(100))
    next(results)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results.close()
    assert any("cancelled" in str(warning.message) for warning in caught)
    assert Parallel()(delayed(square)(i) for i in range(3)) == [0, 1, 4]


def test_a_slow_generator_is_not_waited_for() -> None:
    generated = 0

    def slowly() -> Iterator[Any]:
        nonlocal generated
        for i in range(20):
            generated += 1
            yield delayed(square)(i)
            time.sleep(0.5)

    results = Parallel(return_as="generator")(slowly())
    assert next(results) == 0
    assert generated < 20
    assert list(results) == [square(i) for i in range(1, 20)]


def test_an_error_of_the_generator_reaches_the_caller() -> None:
    def broken() -> Iterator[Any]:
        yield from (delayed(square)(i) for i in range(20))
        raise LookupError("no more calls")

    with pytest.raises(LookupError, match="no more calls"):
        Parallel()(broken())


def test_an_exception_arrives_as_itself() -> None:
    with pytest.raises(ValueError, match="call 5 fails") as caught:
        Parallel()(delayed(fails_at)(i, 5) for i in range(10))
    assert type(caught.value) is ValueError
    if sys.version_info >= (3, 11):
        assert caught.value.__notes__ == ["a note of the call"]
    cause = str(caught.value.__cause__)
    assert "in fails_at" in cause
    assert "run_chunk" not in cause
    assert all(word in cause for word in ("node tvmps_", "task c", "job joblib-"))


def test_a_managed_parallel_goes_on_after_an_error() -> None:
    with Parallel() as pool:
        with pytest.raises(ValueError, match="fails"):
            pool(delayed(fails_at)(i, 0) for i in range(4))
        assert pool(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]
        assert pool(delayed(square)(i) for i in range(2)) == [0, 1]


def test_sys_exit_in_a_call_does_not_end_the_client() -> None:
    with pytest.raises(CallExitedError, match=r"SystemExit\(3\)"):
        Parallel()(delayed(sys.exit)(3) for _ in range(2))


def test_what_cannot_be_sent_is_told() -> None:
    with pytest.raises(TaskPicklingError, match="the task to send"):
        Parallel()(delayed(square)(threading.Lock()) for _ in range(3))


class TwoArguments(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


def raises_what_does_not_unpickle() -> None:
    raise TwoArguments("first", "second")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (threading.Lock, "result .lock. cannot be pickled"),
        (raises_what_does_not_unpickle, "raised TwoArguments: first"),
    ],
)
def test_what_cannot_be_sent_back_is_told(function: Any, said: str) -> None:
    with pytest.raises(ResultPicklingError, match=said) as caught:
        Parallel()(delayed(function)() for _ in range(2))
    assert "node tvmps_" in str(caught.value.__cause__)


def test_the_timeout_is_joblibs() -> None:
    with pytest.raises(TimeoutError):
        Parallel(timeout=1)(delayed(time.sleep)(20) for _ in range(2))


def test_sharedmem_runs_in_threads_of_the_client() -> None:
    seen: list[int] = []
    Parallel(n_jobs=2, require="sharedmem")(delayed(seen.append)(i) for i in range(5))
    assert sorted(seen) == list(range(5))


def test_large_arrays_arrive_read_only_and_right() -> None:
    array = np.random.default_rng(0).random(300_000)

    def look(a: Any, i: int) -> tuple[float, bool]:
        return float(a[i]), bool(a.flags.writeable)

    found = Parallel()(delayed(look)(array, i) for i in range(6))
    assert found == [(float(array[i]), False) for i in range(6)]
    assert Parallel(max_nbytes=None)([delayed(look)(array, 0)] * 2) == [(float(array[0]), True)] * 2


def test_large_results_come_back_whole() -> None:
    found = Parallel()(delayed(np.full)(1_000_000, i) for i in range(3))
    assert [(a.shape, int(a[0]), int(a[-1])) for a in found] == [((1_000_000,), i, i) for i in range(3)]


def test_parallel_calls_of_several_threads_do_not_share_their_fate(cluster: LocalCluster) -> None:
    def run(fail: bool) -> Any:
        with parallel_config("azure", cluster=cluster):
            return Parallel()(delayed(fails_at)(i, 2 if fail else -1) for i in range(6))

    with ThreadPoolExecutor(3) as threads:
        good, bad, other = (threads.submit(run, fail) for fail in (False, True, False))
        assert good.result(60) == other.result(60) == list(range(6))
        with pytest.raises(ValueError, match="call 2 fails"):
            bad.result(60)


def test_inner_threads_are_limited(cluster: LocalCluster) -> None:
    def threads() -> set[int]:
        import threadpoolctl

        return {info["num_threads"] for info in threadpoolctl.threadpool_info()}

    with parallel_config("azure", cluster=cluster, inner_max_num_threads=3):
        assert all(found <= {3} and found for found in Parallel()(delayed(threads)() for _ in range(2)))
    assert all(found == {1} for found in Parallel()(delayed(threads)() for _ in range(2)))


def test_verbose_speaks_as_joblib_does(capsys: pytest.CaptureFixture[str]) -> None:
    Parallel(verbose=10)(delayed(square)(i) for i in range(4))
    said = "".join(capsys.readouterr())
    assert "Using backend AzureBackend with 2 concurrent workers." in said
    assert "Done   4 out of   4" in said or "tasks" in said


def test_a_call_sees_no_secret() -> None:
    def environment() -> dict[str, str]:
        return dict(os.environ)

    for found in Parallel()(delayed(environment)() for _ in range(2)):
        assert not {"JOBLIB_AZURE_KEY", "JOBLIB_AZURE_INPUTS", "JOBLIB_AZURE_OUTPUTS"} & set(found)
        assert not [value for value in found.values() if "sig=" in value]


def test_the_backend_named_inside_a_call_is_the_calls_own_cores() -> None:
    def inside() -> list[int]:
        return list(Parallel(n_jobs=2, backend="azure")(delayed(square)(i) for i in range(3)))

    assert Parallel()(delayed(inside)() for _ in range(2)) == [[0, 1, 4]] * 2
    assert cpu_count() >= 1
