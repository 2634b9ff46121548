"""Clients that nobody here wrote, against the emulator: azure-batch 14.2 and 15.1, and the Azure CLI.

Besides what is asserted here, each of their requests and each answer is held to the API description (`conformance`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from clients_lab import AzureCli, environment, run_script

from joblib_azure.emulator import BatchEmulator

pytestmark = pytest.mark.timeout(900)  # with what is installed for the first time
IMAGE = ("--image", "canonical:ubuntu-24_04-lts:server", "--node-agent-sku-id", "batch.node.ubuntu 24.04")


@pytest.fixture(scope="module")
def emulator() -> Iterator[BatchEmulator]:
    with BatchEmulator() as running:
        yield running


def test_azure_batch_14_2(emulator: BatchEmulator, tmp_path: Path) -> None:
    found = run_script(environment("azure-batch==14.2.0"), "sdk_14.py", emulator, tmp_path)
    assert found == {
        "pool": "steady",
        "pools": ["old"],
        "metadata": "c",
        "counts": [1],
        "node": "idle",
        "node file": "up\n",
        "tasks": 101,
        "task": ["completed", 0, "success"],
        "file": "7\n",
        "files": ["stderr.txt", "stdout.txt", "wd"],
        "size": 2,
        "priority": 5,
        "schedule": ["old-schedule:job-1"],
        "error": ["JobNotFound", "en-US"],
    }


def test_azure_batch_15_1_synchronous_and_asynchronous(emulator: BatchEmulator, tmp_path: Path) -> None:
    found = run_script(environment("azure-batch==15.1.0", "aiohttp==3.*"), "sdk_15.py", emulator, tmp_path)
    assert found == 2 * [
        {
            "node file": "up\n",
            "tasks": 120,
            "task": ["completed", 0, "success"],
            "file": "7\n",
            "priority": 5,
            "error": "JobNotFound",
        }
    ]


# -- the Azure CLI ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def az(emulator: BatchEmulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureCli]:
    with AzureCli(environment("azure-cli==2.*"), emulator, tmp_path_factory.mktemp("home")) as running:
        yield running


def until(what: Callable[[], Any], seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return value


@pytest.fixture(scope="module")
def pool(az: AzureCli) -> str:
    """A pool of one node."""
    size = ("--vm-size", "Standard_D2s_v5", "--target-dedicated-nodes", "1", "--task-slots-per-node", "2")
    start = ("--start-task-command-line", "echo up", "--start-task-wait-for-success")
    az("pool", "create", "--id", "cli", *size, *IMAGE, *start)
    until(lambda: [node["state"] for node in az("node", "list", "--pool-id", "cli")] == ["idle"])
    return "cli"


def test_pools_and_nodes(az: AzureCli, pool: str) -> None:
    named = ("--pool-id", pool)
    assert json.loads(az.once("pool", "list"))[0]["id"] == pool
    assert az("pool", "show", *named)["allocationState"] == "steady"
    az("pool", "set", *named, "--metadata", "a=b")
    assert az("pool", "show", *named)["metadata"] == [{"name": "a", "value": "b"}]
    az("pool", "reset", *named, "--start-task-command-line", "echo again")
    assert not az("pool", "show", *named).get("metadata")
    assert az("pool", "node-counts", "list")[0]["dedicated"]["total"] == 1
    assert len(az("pool", "supported-images", "list")) > 5
    assert az("pool", "usage-metrics", "list") == []
    formula = ("--auto-scale-formula", "$TargetDedicatedNodes=1;")
    az("pool", "autoscale", "enable", *named, *formula)
    assert "$TargetDedicatedNodes=1" in az("pool", "autoscale", "evaluate", *named, *formula)["results"]
    az("pool", "autoscale", "disable", *named)
    node = az("node", "list", *named)[0]["id"]
    both = (*named, "--node-id", node)
    assert az("node", "show", *both)["isDedicated"] is True
    assert "startup/stdout.txt" in {each["name"] for each in az("node", "file", "list", *both, "--recursive")}
    az("node", "scheduling", "disable", *both)
    az("node", "scheduling", "enable", *both)
    az("node", "reboot", *both)
    until(lambda: az("node", "show", *both)["state"] == "idle")
    refused = az.tried("node", "remote-login-settings", "show", *both)
    assert refused["code"] != 0
    assert "logging in to nodes" in refused["words"]


def test_jobs_tasks_and_files(az: AzureCli, pool: str, tmp_path: Path) -> None:
    az("job", "create", "--id", "work", "--pool-id", pool)
    job = ("--job-id", "work")
    az("task", "create", *job, "--task-id", "hello", "--command-line", "echo hello")
    tasks = tmp_path / "tasks.json"
    tasks.write_text(json.dumps([{"id": f"t{i}", "commandLine": f"echo {i}"} for i in range(5)]))
    az("task", "create", *job, "--json-file", str(tasks))
    until(lambda: az("job", "task-counts", "show", *job)["taskCounts"]["succeeded"] == 6)
    one = (*job, "--task-id", "hello")
    assert az("task", "show", *one)["executionInfo"]["exitCode"] == 0
    assert len(az("task", "list", *job)) == 6
    assert az("task", "subtask", "list", *one) in ([], {"value": []})
    assert {each["name"] for each in az("task", "file", "list", *one)} >= {"stdout.txt", "stderr.txt"}
    target = tmp_path / "out.txt"
    az("task", "file", "download", *one, "--file-path", "stdout.txt", "--destination", str(target))
    assert target.read_text() == "hello\n"
    az("job", "set", *job, "--priority", "5")
    assert az("job", "show", *job)["priority"] == 5
    az("job", "reset", *job, "--pool-id", pool, "--priority", "3")
    az("job", "disable", *job, "--disable-tasks", "requeue")
    until(lambda: az("job", "show", *job)["state"] == "disabled")
    az("job", "enable", *job)
    az("task", "delete", *job, "--task-id", "t0", "--yes")
    az("job", "stop", *job)
    until(lambda: az("job", "show", *job)["state"] == "completed")
    refused = az.tried("task", "create", *one, "--command-line", "true")
    assert refused["code"] != 0
    assert "already in a completed state" in refused["words"]
    az("job", "delete", *job, "--yes")


def test_options_of_jobs_and_tasks(az: AzureCli, pool: str, tmp_path: Path) -> None:
    bounds = ("--job-max-task-retry-count", "1", "--job-max-wall-clock-time", "PT1H", "--max-parallel-tasks", "3")
    manager = ("--job-manager-task-id", "manager", "--job-manager-task-command-line", "sleep 600")
    settings = ("--job-manager-task-environment-settings", "A=B", "--required-slots", "1")
    how = ("--priority", "-2", "--on-all-tasks-complete", "noaction", "--uses-task-dependencies", "--metadata", "a=b")
    az("job", "create", "--id", "options", "--pool-id", pool, *bounds, *manager, *settings, *how)
    found = az("job", "show", "--job-id", "options")
    assert found["constraints"] == {"maxTaskRetryCount": 1, "maxWallClockTime": "PT1H"} | found["constraints"]
    assert (found["priority"], found["maxParallelTasks"], found["usesTaskDependencies"]) == (-2, 3, True)
    assert found["jobManagerTask"]["environmentSettings"] == [{"name": "A", "value": "B"}]
    assert az("task", "show", "--job-id", "options", "--task-id", "manager")["commandLine"] == "sleep 600"
    az("job", "delete", "--job-id", "options", "--yes")
    az("job", "create", "--id", "plain", "--pool-id", pool)
    limits = ("--max-task-retry-count", "2", "--max-wall-clock-time", "PT5M", "--retention-time", "PT1H")
    more = ("--environment-settings", "A=B", "--affinity-id", "TVM:none")
    one = ("--job-id", "plain", "--task-id", "t")
    az("task", "create", *one, "--command-line", "sh -c 'echo $A'", *limits, *more)
    until(lambda: az("task", "show", *one)["state"] == "completed")
    limited = az("task", "show", *one)["constraints"]
    assert limited == {"maxTaskRetryCount": 2, "maxWallClockTime": "PT5M", "retentionTime": "PT1H"}
    az("task", "file", "download", *one, "--file-path", "stdout.txt", "--destination", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "B\n"
    az("task", "create", *one[:2], "--task-id", "waits", "--command-line", "sleep 600")
    az("task", "reset", *one[:2], "--task-id", "waits", "--max-task-retry-count", "3")
    az("job", "delete", "--job-id", "plain", "--yes")


def test_pools_in_files(az: AzureCli, tmp_path: Path) -> None:
    image = {"publisher": "canonical", "offer": "ubuntu-24_04-lts", "sku": "server", "version": "latest"}
    given = {
        "id": "filed",
        "vmSize": "standard_d2s_v5",
        "virtualMachineConfiguration": {"imageReference": image, "nodeAgentSKUId": "batch.node.ubuntu 24.04"},
        "enableAutoScale": True,
        "autoScaleFormula": "$TargetDedicatedNodes=0;",
        "autoScaleEvaluationInterval": "PT5M",
        "taskSchedulingPolicy": {"nodeFillType": "Pack"},
    }
    (tmp_path / "pool.json").write_text(json.dumps(given))
    az("pool", "create", "--json-file", str(tmp_path / "pool.json"))
    found = az("pool", "show", "--pool-id", "filed")
    assert (found["enableAutoScale"], found["autoScaleEvaluationInterval"]) == (True, "PT5M")
    assert found["taskSchedulingPolicy"] == {"nodeFillType": "pack"}
    az("pool", "delete", "--pool-id", "filed", "--yes")


def test_job_schedules(az: AzureCli, pool: str, tmp_path: Path) -> None:
    named = ("--job-schedule-id", "nightly")
    times = ("--recurrence-interval", "PT1H", "--start-window", "PT30M", "--do-not-run-after", "2099-01-01T00:00:00Z")
    az("job-schedule", "create", "--id", "nightly", "--pool-id", pool, *times, "--priority", "4")
    assert az("job", "show", "--job-id", "nightly:job-1")["priority"] == 4
    assert [each["id"] for each in az("job", "list", *named)] == ["nightly:job-1"]
    assert [each["state"] for each in az("job-schedule", "list")] == ["active"]
    az("job-schedule", "set", *named, "--metadata", "a=b")
    assert az("job-schedule", "show", *named)["metadata"] == [{"name": "a", "value": "b"}]
    az("job-schedule", "disable", *named)
    az("job-schedule", "enable", *named)
    az("job-schedule", "stop", *named)
    until(lambda: az("job-schedule", "show", *named)["state"] == "completed")
    az("job-schedule", "delete", *named, "--yes")


def test_the_pool_goes(az: AzureCli, pool: str) -> None:
    az("pool", "resize", "--pool-id", pool, "--target-dedicated-nodes", "0")
    until(lambda: az("node", "list", "--pool-id", pool) == [])
    az("pool", "delete", "--pool-id", pool, "--yes")
    until(lambda: az("pool", "list") == [])
