"""Local clusters that tests share: real processes, so a module starts one and all its tests use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import conformance
import pytest
from conformance import conforms as conforms
from hypothesis import settings

from joblib_azure import LocalCluster
from joblib_azure.chaos.schedule import Schedule
from joblib_azure.local.host import processes_of

# A busy machine is no failure: what hangs is ended by pytest's own limit.
settings.register_profile("joblib_azure", deadline=None)
settings.load_profile("joblib_azure")


def pytest_configure(config: pytest.Config) -> None:
    conformance.start()
    config.pluginmanager.register(conformance.Report())


def _cluster(**shape: Any) -> Iterator[LocalCluster]:
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
def narrow() -> Iterator[LocalCluster]:
    """One node of one core: the main thread of a runner has all calls."""
    yield from _cluster(nodes=1, cores_per_node=1)


@pytest.fixture(scope="module")
def wide_cluster() -> Iterator[LocalCluster]:
    """One node of two cores and one task slot: a task has both cores."""
    yield from _cluster(nodes=1, cores_per_node=2)


@pytest.fixture(scope="module")
def slotted_cluster() -> Iterator[LocalCluster]:
    """Two nodes of two cores and two task slots each: a task has one core."""
    yield from _cluster(nodes=2, cores_per_node=2, max_tasks_per_node=2)


@pytest.fixture(scope="module")
def stormy() -> Iterator[LocalCluster]:
    """Two nodes, one of them a spot node, behind a storm of which nothing strikes but what a test asks for."""
    yield from _cluster(nodes=2, cores_per_node=1, spot_nodes=1, chaos=Schedule(), service_timeout=40)
