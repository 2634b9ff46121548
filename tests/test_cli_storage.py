"""``joblib-azure storage``: on a real Azurite, with what people and programs read of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import cli_lab
import cli_process
import pytest
from cli_lab import read, run

from joblib_azure import storage
from joblib_azure.cli.common import size
from joblib_azure.cluster import Cluster
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.local.host import LocalHost
from joblib_azure.service import BlobService
from joblib_azure.storage import ARCHIVES, BUFFERS, FILES

JOB, OTHER = "joblib-20260131-235959-0a1b2c3d", "joblib-20260131-235959-0a1b2c3e"
SCRIPT = """
import time
from joblib import Parallel, delayed, parallel_config
import joblib_azure

if __name__ == "__main__":
    with parallel_config("azure", cluster="cluster.json"):
        Parallel()(delayed(time.sleep)(60) for i in range(2))
"""


@pytest.fixture(scope="module")
def host() -> Iterator[LocalHost]:
    with cli_process.account() as host:
        yield host


@pytest.fixture
def folder(host: LocalHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cli_lab.at_home(tmp_path, monkeypatch)
    run("init", *cli_process.init_flags(host, "pool"), "--dedicated-nodes", "1")
    return tmp_path


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    made = Cluster(ClusterConfig.load(folder / "cluster.json"), AccountConfig.load(folder / "credentials.json"))
    yield made
    for container in made.blobs.containers(""):
        made.blobs.delete_container(container.name)
    made.close()


@pytest.fixture
def blobs(cluster: Cluster) -> BlobService:
    """A cache, a session whose client was killed, and one of another Batch account."""
    blobs = cluster.blobs
    accounts = {JOB: cluster.batch.endpoint, OTHER: "https://other.westeurope.batch.azure.com"}
    for container in (BUFFERS, FILES, f"{ARCHIVES}lock"):
        blobs.create_container(container)
    for job, endpoint in accounts.items():
        for container in storage.session_containers(job):
            blobs.create_container(container, metadata=storage.session_metadata(job, batch_account=endpoint))
    blobs.put(BUFFERS, "small", bytes(10))
    blobs.put(BUFFERS, "large", bytes(2000))
    blobs.put(FILES, "file", bytes(300))
    blobs.put(f"{ARCHIVES}lock", "environment.tar.gz", bytes(4000))
    blobs.put(f"{JOB}-in", "bundles/one", bytes(50))
    return blobs


def later(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    """Let the client's clock go fast: what was stored now is old."""
    monkeypatch.setattr(storage.survey, "_now", lambda: datetime.now(timezone.utc) + by)


def lines(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines()]


def test_an_account_with_nothing_in_it(cluster: Cluster) -> None:
    for command in ("usage", "list", "gc"):
        assert "There is nothing of joblib_azure in the storage account" in run("storage", command)
    assert "There are no buffers" in run("storage", "list", "--buffers")
    assert read("storage", "list") == read("storage", "list", "--buffers") == []
    assert read("storage", "usage")["total"] == {"kind": "all", "containers": 0, "blobs": 0, "bytes": 0}
    found = read("storage", "gc")
    assert (found["removed"], found["left"], found["bytes"]) == ([], [], 0)


def test_usage(blobs: BlobService, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run("storage", "usage")
    assert lines(said)[0] == ["what", "containers", "blobs", "size"]
    for line in (
        ["buffers", "1", "2", "2.0", "kB"],
        ["files", "for", "nodes", "1", "1", "300", "B"],
        ["environments", "1", "1", "4.0", "kB"],
        ["of", "sessions", "4", "1", "50", "B"],
        ["all", "7", "5", "6.4", "kB"],
    ):
        assert line in lines(said)
    assert "have died" not in said
    later(monkeypatch, timedelta(hours=2))
    assert "2 containers of sessions that have died (50 B): `joblib-azure storage gc`" in run("storage", "usage")
    found = read("storage", "usage")
    assert [each["kind"] for each in found["kinds"]] == ["buffers", "files", "environment", "given", "session"]
    assert found["total"]["bytes"] == 6360


def test_list(blobs: BlobService, monkeypatch: pytest.MonkeyPatch) -> None:
    later(monkeypatch, timedelta(hours=2))
    said = run("storage", "list")
    assert lines(said)[0] == ["container", "kind", "blobs", "size", "modified", "(UTC)", "state"]
    assert any(line[0] == f"{JOB}-in" and line[-2:] == ["left", "over"] for line in lines(said))
    assert "of the Batch account other.westeurope.batch.azure.com" in said
    found = {each["name"]: each for each in read("storage", "list")}
    assert found[BUFFERS]["state"] == "cache"
    assert found[f"{JOB}-in"]["job"] == JOB
    storage.keep(blobs, f"{JOB}-in", 3)
    assert "kept until" in run("storage", "list")
    said = run("storage", "list", "--buffers", "--limit", "1")
    assert lines(said)[1][:3] == ["large", "2.0", "kB"]
    assert "and 1 more, 10 B together" in said
    assert "more" not in run("storage", "list", "--buffers")
    assert [each["name"] for each in read("storage", "list", "--buffers")] == ["large", "small"]
    assert len(read("storage", "list", "--buffers", "--limit", "1")) == 1
    assert "--limit is of --buffers" in run("storage", "list", "--limit", "1", exit_code=2)


def test_gc(blobs: BlobService, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Removed 0 blobs, 0 B." in run("storage", "gc")
    later(monkeypatch, timedelta(hours=2))
    said = run("storage", "gc", "--dry-run")
    assert "Nothing was removed. Without --dry-run 1 blob would go, 50 B." in said
    assert any(line[:3] == ["would", "go", f"{JOB}-in"] for line in lines(said))
    assert ["left", BUFFERS, "buffers", "2", "2.0", "kB", "used", "within", "7", "days"] in lines(said)
    assert read("storage", "gc", "--dry-run")["dryRun"] is True
    storage.keep(blobs, f"{JOB}-out", 30)
    said = run("storage", "gc")
    assert "Removed 1 blob, 50 B." in said
    assert any(line[:2] == ["left", f"{JOB}-out"] and "kept" in line for line in lines(said))
    assert {each.name for each in blobs.containers(JOB)} == {f"{JOB}-out"}


def test_gc_of_the_cache(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = cluster.blobs
    for container in (BUFFERS, f"{ARCHIVES}lock"):
        blobs.create_container(container)
        blobs.put(container, "one", bytes(70))
    later(monkeypatch, timedelta(days=3))
    assert "Removed 0 blobs" in run("storage", "gc")
    found = read("storage", "gc", "--older-than", "2.5")
    assert found["bytes"] == 140
    assert [each["name"] for each in found["removed"]] == [BUFFERS, f"{ARCHIVES}lock"]
    assert found["left"] == []
    assert [each.name for each in blobs.containers("")] == [BUFFERS]


def test_a_session_that_runs_is_left_alone(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("script.py").write_text(SCRIPT)
    with cli_process.Running(Path.cwd(), program=[cli_process.sys.executable, "script.py"]) as script:
        end = time.monotonic() + 60
        while not (cluster.batch.running_jobs("joblib-") and list(cluster.blobs.containers("joblib-2"))):
            assert time.monotonic() < end, script.output
            assert script.process.poll() is None, script.end()
            time.sleep(0.1)
        later(monkeypatch, timedelta(days=1))
        (job,) = cluster.batch.running_jobs("joblib-")
        found = read("storage", "gc", "--older-than", "0")
        assert {each["state"] for each in found["left"] if each["job"] == job} == {"in use"}
        assert [each["name"] for each in found["removed"] if each["kind"] == "session"] == []
        script.kill()
    cluster.delete()
    cluster.batch.end_job(job, delete=True)


def test_what_cannot_be(host: LocalHost, folder: Path) -> None:
    wrong = {
        "AZURE_STORAGE_CONNECTION_STRING": host.storage_connection_string.replace("AccountKey=", "AccountKey=AAAA")
    }
    assert "refused the credentials" in run("storage", "usage", exit_code=1, env=wrong)
    assert "--older-than" in run("storage", "gc", "--older-than", "-1", exit_code=2)
    assert "See what lies in storage" in run("--help")
    Path("credentials.json").unlink()
    assert "batchAccount" in run("storage", "list", exit_code=1)


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_950, "1.0 MB"), (3e18, "3000.0 PB")],
)
def test_sizes(number: float, said: str) -> None:
    assert size(int(number)) == said
