"""Local clusters that tests share: real processes, so a module starts one and all its tests use it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from joblib_azure import LocalCluster
from joblib_azure.local.host import processes_of


def _cluster(**shape: int) -> Iterator[LocalCluster]:
    cluster = LocalCluster(**shape)
    with cluster:
        run_id = cluster.run_id
        yield cluster
    assert processes_of(run_id) == []


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two nodes of one core and one task slot each."""
    yield from _cluster(nodes=2, cores_per_node=1)


@pytest.fixture(scope="module")
def wide_cluster() -> Iterator[LocalCluster]:
    """One node of two cores and one task slot: a task has both cores."""
    yield from _cluster(nodes=1, cores_per_node=2)


@pytest.fixture(scope="module")
def slotted_cluster() -> Iterator[LocalCluster]:
    """Two nodes of two cores and two task slots each: a task has one core."""
    yield from _cluster(nodes=2, cores_per_node=2, max_tasks_per_node=2)
