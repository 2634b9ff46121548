"""Task slots beyond a node's cores: however many tasks are on it, no more calls compute than it has workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import warm_lab as lab
from joblib import Parallel, delayed, parallel_config

from joblib_azure import LocalCluster
from joblib_azure.local.host import processes_of

CORES = 2


@pytest.fixture(scope="module", params=[2, 4], ids=["2 slots a core", "4 slots a core"])
def deep(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """One node of two cores with more slots than those."""
    with LocalCluster(nodes=1, cores_per_node=CORES, max_tasks_per_node=request.param * CORES) as cluster:
        run_id = cluster.run_id
        yield cluster
    assert processes_of(run_id) == []


@pytest.mark.parametrize(
    ("warm", "workers"),
    [(True, None), (True, 1), (True, 3), (False, None), (False, 3)],
    ids=["warm", "warm, 1 worker", "warm, 3 workers", "cold", "cold, 3 workers"],
)
def test_no_more_calls_compute_than_the_node_has_workers(deep: LocalCluster, warm: bool, workers: int | None) -> None:
    with (
        lab.beside(deep, warm_runners=warm, workers_per_node=workers) as other,
        parallel_config("azure", cluster=other),
    ):
        spans = Parallel(batch_size=1)(delayed(lab.times)(0.15) for _ in range(24))
    most = lab.most_at_once(spans)
    assert most <= (workers or CORES)
    assert most == (workers or CORES)  # and none is idle all the time


def test_tasks_of_the_whole_node_and_small_ones_of_another_session(deep: LocalCluster) -> None:
    """Each has all that it needs, and in all it is no more than there is."""
    spans: list[tuple[int, float, float]] = []
    inner: list[list[tuple[int, float, float]]] = []

    def whole() -> None:
        with lab.beside(deep) as other, parallel_config("azure", cluster=other):
            for _ in range(2):
                inner.extend(Parallel()([delayed(lab.below)(4, 0.15)]))

    thread = threading.Thread(target=whole)
    thread.start()
    try:
        with parallel_config("azure", cluster=deep):
            while thread.is_alive():
                spans += Parallel(batch_size=1)(delayed(lab.times)(0.1) for _ in range(8))
    finally:
        thread.join(lab.PATIENCE)
    assert [lab.most_at_once(each) for each in inner] == [CORES] * 2
    assert lab.most_at_once(spans) == CORES
    assert lab.most_at_once([*spans, *(span for each in inner for span in each)]) == CORES
