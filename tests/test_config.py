"""Configuration: every error at once, with what to write instead, and no secret in sight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from joblib import Parallel, delayed, parallel_config

from joblib_azure import AzureBackend, ClusterConfig, LocalCluster
from joblib_azure.config import AccountConfig
from joblib_azure.errors import ConfigurationError, LocalClusterError

GOOD = {"name": "pool", "vmSize": "Standard_D4s_v5", "maxTasksPerNode": 4, "nodes": 3}


def read(**changes: Any) -> ClusterConfig:
    return ClusterConfig.read({**GOOD, **changes}, "test")


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps(GOOD))
    config = ClusterConfig.load(path)
    assert (config.cores, config.max_tasks_per_node, config.workers) == (4, 4, 12)


@pytest.mark.parametrize(
    ("size", "cores"),
    [("Standard_F2", 2), ("standard_d16s_v5", 16), ("Standard_E16-8s_v5", 8), ("Standard_NC24ads_A100_v4", 24)],
)
def test_cores_come_from_the_name_of_the_size(size: str, cores: int) -> None:
    assert read(vmSize=size, maxTasksPerNode=1).cores == cores


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"maxTasksPerNode": 17}, "1 to 16 here"),
        ({"maxTasksPerNode": 0}, "max"),
        ({"nodes": -1}, "nodes = -1"),
        ({"maxTaskPerNode": 2}, "did you mean 'maxTasksPerNode'"),
        ({"name": "a pool"}, "name = 'a pool'"),
        ({"vmSize": "Standard_X"}, "vmSize = 'Standard_X'"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(**changes)
    assert said in str(caught.value)


def test_all_errors_come_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(nodes=0, name="", python="")
    assert all(key in str(caught.value) for key in ("nodes", "name", "python"))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_file_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"c\.json"):
        ClusterConfig.load(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("cluster", "said"), [("nowhere.json", "neither"), (42, "is a int"), (None, "no cluster is named")]
)
def test_a_wrong_cluster_is_refused_before_anything_is_created(
    cluster: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JOBLIB_AZURE_CLUSTER", raising=False)
    with pytest.raises(ConfigurationError, match=said), parallel_config("azure", cluster=cluster):
        pass


def test_the_environment_names_the_cluster_and_the_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps(GOOD))
    monkeypatch.setenv("JOBLIB_AZURE_CLUSTER", str(path))
    monkeypatch.delenv("JOBLIB_AZURE_CREDENTIALS", raising=False)
    for name in ("AZURE_BATCH_ACCOUNT", "AZURE_BATCH_ACCESS_KEY", "AZURE_BATCH_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match="AZURE_BATCH_ACCOUNT"):
        AzureBackend()
    monkeypatch.setenv("AZURE_BATCH_ACCOUNT", "a")
    monkeypatch.setenv("AZURE_BATCH_ACCESS_KEY", "secret-key")
    monkeypatch.setenv("AZURE_BATCH_ENDPOINT", "https://a.westeurope.batch.azure.com")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "s")
    monkeypatch.setenv("AZURE_STORAGE_KEY", "secret-key")
    backend = AzureBackend()
    assert backend.effective_n_jobs(-1) == 12
    for shown in (repr(backend), repr(backend.cluster), repr(backend.cluster.account), str(backend.cluster.account)):
        assert "secret-key" not in shown


def test_a_wrong_secret_is_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        AccountConfig.read({"batch_key": 12345678, "batch_endpoint": "ftp://x"}, "test")
    assert "12345678" not in str(caught.value)
    assert "batchAccount: missing" in str(caught.value)


def test_a_local_cluster_checks_its_shape() -> None:
    with pytest.raises(ConfigurationError, match="1 to 4 here"):
        LocalCluster(cores_per_node=1, max_tasks_per_node=5)
    with pytest.raises(ConfigurationError, match="nodes"):
        LocalCluster(nodes=0)
    with pytest.raises(ConfigurationError, match="workers_per_node = 0"):
        LocalCluster(1, 1, workers_per_node=0)
    with pytest.raises(LocalClusterError, match="more than the"):
        LocalCluster(cores_per_node=10_000)


def test_workers_of_a_local_cluster() -> None:
    config = LocalCluster(2, 1, workers_per_node=4).config
    assert (config.cores, config.node_workers, config.workers) == (1, 4, 8)
    assert AzureBackend(LocalCluster(2, 1, workers_per_node=4)).effective_n_jobs(-1) == 8


@pytest.mark.parametrize(
    ("emulator", "said"),
    [
        ({"dispatch_second": 1}, "dispatch_second: the emulator has no such option; did you mean 'dispatch_seconds'"),
        ({"port": 1}, "port: the emulator has no such option; known are active_job_quota"),
        ({"dispatch_seconds": -1}, "dispatch_seconds is -1, below 0"),
        ({"boot_seconds": "soon"}, "boot_seconds is 'soon', not a number"),
        ({"failing_sizes": 3}, "not usable"),
        ({"latency": "azur"}, "latency is 'azur'; known are none, azure"),
    ],
)
def test_wrong_options_of_the_emulator_are_told_before_anything_is_started(emulator: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match="the emulator's options are not usable") as caught:
        LocalCluster(1, 1, emulator=emulator)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "n_jobs", "expected"), [(2, -1, 2), (1, -1, 2), (4, -2, 3), (4, -9, 1), (2, 7, 7), (2, None, 1)]
)
def test_n_jobs_are_workers(nodes: int, n_jobs: int | None, expected: int) -> None:
    assert AzureBackend(LocalCluster(nodes, 1)).effective_n_jobs(n_jobs) == expected


def test_zero_jobs_have_no_meaning() -> None:
    with pytest.raises(ValueError, match="n_jobs == 0 in Parallel has no meaning"):
        AzureBackend(LocalCluster(1, 1)).effective_n_jobs(0)


def test_one_worker_runs_here_and_starts_nothing() -> None:
    cluster = LocalCluster(1, 1)
    with parallel_config("azure", cluster=cluster, n_jobs=1):
        assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
    with pytest.raises(LocalClusterError, match="not open"):
        _ = cluster.host
