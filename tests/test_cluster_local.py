"""A local cluster is a cluster as any: what a pool on Azure can be asked, it can be asked."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from typing import Any

import pytest
from joblib import Parallel, delayed, parallel_config

from joblib_azure import LocalCluster
from joblib_azure.cluster import Cluster
from joblib_azure.errors import ClusterError, MissingExtraError, QuotaError
from joblib_azure.registry import close_sessions, session_for


@pytest.fixture(scope="module")
def local() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, cores_per_node=1) as running:
        yield running


def test_all_verbs_work_on_it(local: LocalCluster) -> None:
    local.wait_for_nodes()
    status = local.status()
    assert (status.counts.dedicated, status.pool.target_dedicated, status.jobs) == ({"idle": 2}, 2, ())
    assert [node.state for node in local.nodes()] == ["idle", "idle"]
    assert "startup" in {file.name for file in local.files(local.nodes()[0].id)}
    local.resize(dedicated=1, wait=True)
    assert [node.state for node in local.nodes()] == ["idle"]
    local.resize(dedicated=2, wait=True)
    local.demand(5)  # nothing: it does not scale
    attached = Cluster.attach(local.config.name, local.account)
    assert attached.config.nodes == 2
    attached.close()
    assert [pool.id for pool in Cluster.list(local.account)] == ["local"]


def test_closing_it_ends_its_session_first(local: LocalCluster) -> None:
    with parallel_config("azure", cluster=local):
        assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
    session = session_for(local)
    assert not session.closed
    jobs = local.status().jobs
    assert [job.id for job in jobs] == [session.job]
    local.close()
    assert session.closed
    with pytest.raises(ClusterError, match="is not open"):
        local.status()
    local.open()
    local.wait_for_node()
    assert local.status().jobs == ()


def test_a_cluster_on_an_account_ends_its_session_too(local: LocalCluster, caplog: pytest.LogCaptureFixture) -> None:
    attached = Cluster.attach(local.config.name, local.account, python=sys.executable, environment={"mode": "none"})
    attached.config = attached.config.model_copy(update={"python_path": local.python_path})
    with parallel_config("azure", cluster=attached):
        assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
    session = session_for(attached)
    attached.close()
    assert session.closed
    assert not [record for record in caplog.records if "closing session" in record.getMessage()]
    # Not only closed, but gone from the service.
    assert session.job not in {job.id for job in local.status().jobs if job.state == "active"}
    close_sessions(attached)


def test_a_slower_service() -> None:
    with LocalCluster(1, 1, emulator={"dispatch_seconds": 1.5}) as slow, parallel_config("azure", cluster=slow):
        assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
        began = time.monotonic()
        assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
        assert time.monotonic() - began >= 1.5  # where all is warm too


def test_a_service_as_slow_as_azure_on_a_faster_clock() -> None:
    assert LocalCluster(1, 1, emulator={"latency": "azure"}).config.node_timeout > 480
    with LocalCluster(1, 1, emulator={"latency": "azure", "clock_rate": 100}) as slow:
        with parallel_config("azure", cluster=slow):
            assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
        (node,) = slow.nodes()
        assert node.state in ("idle", "running")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def find(name: str, *more: Any) -> ModuleSpec | None:
        return None if name == "uvicorn" else real(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(MissingExtraError, match=r'needs uvicorn, .*python -m pip install "joblib_azure\[local\]"'):
        LocalCluster()


def test_a_block_that_does_not_begin_leaves_nothing() -> None:
    before = set(threading.enumerate())
    with pytest.raises(QuotaError), LocalCluster(1, 1, emulator={"pool_quota": 0}):
        pytest.fail("there is no room for its pool")
    assert [each.name for each in threading.enumerate() if each not in before and "guard" in each.name] == []
