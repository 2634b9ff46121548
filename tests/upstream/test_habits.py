"""Habits of joblib's default backend that its own tests cannot show of this one.

They share a `multiprocessing` manager with the workers, or look for memory maps in the client's folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

from joblib_azure import LocalCluster


@pytest.fixture(autouse=True)
def _azure(wide_cluster: LocalCluster) -> Iterator[None]:
    with parallel_config("azure", cluster=wide_cluster, n_jobs=2):
        yield


def _initialize(name: str) -> None:
    seen = vars(sys).setdefault("_test_habits", [])
    seen.append(name)


def _initialized() -> tuple[int, tuple[str, ...]]:
    return os.getpid(), tuple(vars(sys).get("_test_habits", ()))


def _fail() -> None:
    raise LookupError("no table")


def test_an_initializer_runs_once_in_every_worker(wide_cluster: LocalCluster) -> None:
    found = Parallel(initializer=_initialize, initargs=("a",))(delayed(_initialized)() for _ in range(20))
    assert {seen for _, seen in found} == {("a",)}
    with parallel_config("azure", cluster=wide_cluster, n_jobs=2, initializer=_initialize, initargs=("b",)):
        found = Parallel()(delayed(_initialized)() for _ in range(20))
    assert {seen[-1] for _, seen in found} == {"b"}


def test_an_initializer_that_fails_fails_the_call() -> None:
    with pytest.raises(LookupError, match="no table"):
        Parallel(initializer=_fail)(delayed(_initialized)() for _ in range(4))


def _inner(array: Any) -> tuple[int, str, float]:
    return os.getpid(), array.filename, float(array.sum())


def _outer(array: Any) -> tuple[str, list[tuple[int, str, float]]]:
    return array.filename, Parallel(n_jobs=2)(delayed(_inner)(array) for _ in range(4))


def test_nested_loops_share_the_map_of_an_array() -> None:
    array = np.arange(500_000, dtype=float)
    (path, found), _ = Parallel(max_nbytes="1M")(delayed(_outer)(array) for _ in range(2))
    assert {(name, total) for _, name, total in found} == {(path, float(array.sum()))}


def test_a_map_that_a_call_returns_is_an_array_here() -> None:
    array = np.arange(500_000, dtype=float)
    for result in Parallel(max_nbytes="1M")(delayed(lambda a: a)(array) for _ in range(2)):
        assert type(result) is np.ndarray
        np.testing.assert_array_equal(result, array)
