"""A new user's way, as real processes in an empty folder: init, doctor, cluster create, a script, cluster delete.

The Batch emulator and Azurite are the only account. Then each step is killed half-way, and the next command puts in
order what that has left.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cli_process
import pytest

from joblib_azure.cli.leftovers import doctors_pool
from joblib_azure.cluster import Cluster
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.local.host import LocalHost

SCRIPT = """
import time
from joblib import Parallel, delayed, parallel_config
import joblib_azure

def work(i):
    time.sleep({seconds})
    return i * i

if __name__ == "__main__":
    with parallel_config("azure", cluster="cluster.json"):
        print("squares", Parallel()(delayed(work)(i) for i in range(8)))
"""


@pytest.fixture(scope="module")
def host() -> Iterator[LocalHost]:
    with cli_process.account() as host:
        yield host


def ok(folder: Path, *arguments: str) -> str:
    done = cli_process.run(folder, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def python(folder: Path, seconds: float) -> list[str]:
    (folder / "script.py").write_text(SCRIPT.format(seconds=seconds))
    return [cli_process.sys.executable, "script.py"]


def cluster_of(folder: Path) -> Cluster:
    return Cluster(ClusterConfig.load(folder / "cluster.json"), AccountConfig.load(folder / "credentials.json"))


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def containers(host: LocalHost) -> set[str]:
    from azure.storage.blob import BlobServiceClient

    with BlobServiceClient.from_connection_string(host.storage_connection_string) as client:
        return {each.name for each in client.list_containers()}


def test_a_new_user(host: LocalHost, tmp_path: Path) -> None:
    said = ok(tmp_path, "init", *cli_process.init_flags(host, "new"), "--dedicated-nodes", "2:2")
    assert "Next: joblib-azure doctor" in said
    said = ok(tmp_path, "doctor")
    assert "All is well. Next: joblib-azure cluster create" in said
    assert len(said.splitlines()) == 11
    said = ok(tmp_path, "cluster", "create", "--wait")
    assert "Pool new is created" in said
    assert 'parallel_config("azure", cluster="cluster.json")' in said
    with cli_process.Running(tmp_path, program=python(tmp_path, 0.0)) as script:
        assert script.end() == 0, script.output
        assert f"squares {[i * i for i in range(8)]}" in script.output
    assert "new" in ok(tmp_path, "cluster", "list")
    assert "Pool new is deleted." in ok(tmp_path, "cluster", "delete", "--yes", "--wait")
    assert "There are no pools" in ok(tmp_path, "cluster", "list")
    # Nothing is left: no job, and no container but those that all sessions share.
    assert not [name for name in containers(host) if name.endswith(("-in", "-out"))]


def test_each_killed_half_way(host: LocalHost, tmp_path: Path) -> None:
    flags = [*cli_process.init_flags(host, "killed", commandLine=["sleep 1"]), "--dedicated-nodes", "1:1"]
    # init: the credentials are there, the cluster's file is not.
    cli_process.killed_at("replace", 3, tmp_path, "init", *flags)
    assert not (tmp_path / "cluster.json").exists()
    ok(tmp_path, "init", *flags)
    cluster = cluster_of(tmp_path)
    batch = cluster.batch

    # doctor: its pool, its job and a node that starts.
    with cli_process.Running(tmp_path, "doctor") as running:
        running.expect("waitingforstarttask", 40)
        running.kill()
    assert doctors_pool("killed") in [pool.id for pool in batch.pools()]

    # create, which removes those and is killed itself while its own pool's node starts.
    with cli_process.Running(tmp_path, "cluster", "create") as running:
        running.expect("waitingforstarttask", 40)
        running.kill()
    assert batch.jobs(doctors_pool("killed")) == []
    said = ok(tmp_path, "cluster", "create", "--wait")
    assert "1 node idle" in said

    # The script: its job stays, with its containers, and another script runs beside that.
    with cli_process.Running(tmp_path, program=python(tmp_path, 60.0)) as script:
        until(lambda: len(batch.jobs("killed")) == 1 and any(node.running_tasks for node in cluster.nodes()))
        script.kill()
    (left,) = batch.jobs("killed")
    shown = json.loads(ok(tmp_path, "cluster", "show", "--json"))
    assert [job["id"] for job in shown["jobs"]] == [left.id]
    assert f"{left.id}-in" in containers(host)

    # delete, in place of the answer to its first request for that; and again, with what the script has left.
    with cli_process.Running(tmp_path, "cluster", "delete", "--wait", terminal=True) as running:
        running.expect("Delete the pool killed with")
        running.kill()
    assert batch.pool("killed").state == "active"
    said = ok(tmp_path, "cluster", "delete", "--yes", "--wait")
    assert "Pool killed is deleted." in said
    assert "1 job of sessions that had not ended is deleted too." in said
    assert batch.pools("killed") == []
    assert not [name for name in containers(host) if name.startswith(left.id)]
    assert "nothing to delete" in ok(tmp_path, "cluster", "delete", "--yes")
    cluster.close()
    assert sorted(os.listdir(tmp_path)) == [".gitignore", "cluster.json", "credentials.json", "script.py"]
