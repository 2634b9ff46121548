"""``joblib-azure doctor``: each line says ok or what to do, and what was made for it is removed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cli_lab
import cli_process
import pytest
from click.testing import CliRunner

from joblib_azure.cli import main
from joblib_azure.cli.leftovers import MARK, doctors_pool
from joblib_azure.cluster import Cluster
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.local.host import LocalHost

CHECKS = ["configuration", "account", "batch", "quota", "image", "storage", "environment", "pool", "task"]


@pytest.fixture(scope="module")
def host() -> Iterator[LocalHost]:
    with cli_process.account() as host:
        yield host


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cli_lab.at_home(tmp_path, monkeypatch)
    return tmp_path


def init(host: LocalHost, name: str, *flags: str, **settings: object) -> None:
    done = CliRunner().invoke(main, ["init", *cli_process.init_flags(host, name, **settings), *flags])
    assert done.exit_code == 0, done.output


def doctor(*arguments: str, exit_code: int = 0, **more: Any) -> str:
    done = CliRunner().invoke(main, ["doctor", *arguments], **more)
    assert done.exit_code == exit_code, done.output
    assert "Traceback" not in done.output
    return done.output


def states(*arguments: str, **env: str) -> dict[str, str]:
    done = CliRunner().invoke(main, ["doctor", "--no-task", "--json", *arguments], env=env)
    found = json.loads(done.stdout)
    assert done.exit_code == (0 if found["ok"] else 1)
    # Whatever fails is said with its reason and a remedy, and nothing with a remedy is well.
    for check in found["checks"]:
        assert check["message"]
        assert not check["action"] or check["state"] == "failed"
    return {check["check"]: check["state"] for check in found["checks"]}


@pytest.fixture
def cluster(folder: Path, host: LocalHost) -> Iterator[Cluster]:
    """A look at the pool of cluster.json."""
    init(host, "examined")
    found = Cluster(ClusterConfig.load("cluster.json"), AccountConfig.load("credentials.json"))
    yield found
    found.delete(wait=True)
    found.close()


def pools(cluster: Cluster) -> list[str]:
    return [pool.id for pool in cluster.batch.pools() if pool.state == "active"]


def test_all_is_well(cluster: Cluster) -> None:
    said = doctor()
    assert [line.split()[1] for line in said.splitlines() if line.split()[:1] in (["ok"], ["note"])] == CHECKS
    assert "All is well. Next: joblib-azure cluster create" in said
    assert "there and back in" in said
    assert "made for it, is being deleted" in said
    assert pools(cluster) == []
    # The service deletes it in its own time.
    end = time.monotonic() + 20
    while cluster.batch.jobs(doctors_pool("examined")) and time.monotonic() < end:
        time.sleep(0.05)
    assert cluster.batch.jobs(doctors_pool("examined")) == []


def test_a_pool_that_is_there_stays(cluster: Cluster) -> None:
    cluster.open()
    # The task is run on it; whether it has nodes then is its own formula's business.
    said = doctor()
    assert "examined is active" in said
    assert "being deleted" not in said
    assert pools(cluster) == ["examined"]


def test_without_a_task_nothing_is_made(cluster: Cluster, host: LocalHost) -> None:
    before = host.batch_access_log.read_text()
    assert list(states()) == CHECKS[:-1]
    asked = host.batch_access_log.read_text()[len(before) :]
    assert "GET" in asked
    assert "POST" not in asked
    assert "PUT" not in asked


def test_it_goes_on_after_a_failure(folder: Path, host: LocalHost) -> None:
    everything = dict.fromkeys(CHECKS[:-1], "skipped")
    failed = {"configuration": "failed", "account": "failed"}
    assert states() == {**everything, **failed}
    init(host, "unseen")
    # A key that is refused says nothing of the storage, and the environment needs neither.
    well = {**dict.fromkeys(CHECKS[:-1], "ok"), "quota": "note", "pool": "note"}
    no_batch = {**well, "batch": "failed", "quota": "skipped", "image": "skipped", "pool": "skipped"}
    assert states(AZURE_BATCH_ACCESS_KEY="d3Jvbmc=") == no_batch
    assert states(AZURE_BATCH_ENDPOINT="http://127.0.0.1:9") == no_batch
    said = doctor("--no-task", exit_code=1, env={"AZURE_BATCH_ACCESS_KEY": "d3Jvbmc="})
    assert "refused the credentials" in said
    assert "→ the portal shows name, URL and keys" in said
    assert "Not well: batch." in said
    wrong_storage = host.storage_connection_string.replace("AccountKey=", "AccountKey=AAAA")
    assert states(AZURE_STORAGE_CONNECTION_STRING=wrong_storage) == {**well, "storage": "failed"}
    assert states(AZURE_STORAGE_CONNECTION_STRING="nonsense")["account"] == "failed"
    # Without a usable cluster the account is looked at all the same.
    Path("cluster.json").write_text("{}")
    found = states()
    assert (found["configuration"], found["batch"], found["storage"]) == ("failed", "ok", "ok")
    assert found["environment"] == found["pool"] == "skipped"


def test_images_and_packages_that_cannot_be_had(folder: Path, host: LocalHost) -> None:
    image = {"publisher": "canonical", "offer": "ubuntu-24_04-lts", "sku": "servr"}
    other = "3.10" if sys.version_info[:2] != (3, 10) else "3.11"
    init(host, "unhad", image=image, python="python3", environment={"mode": "auto", "python": other})
    found = states()
    assert (found["image"], found["environment"], found["pool"]) == ("failed", "failed", "note")
    said = doctor("--no-task", exit_code=1)
    assert "canonical/ubuntu-24_04-lts/server" in said  # the nearest one
    assert f"environment.python is {other}" in said


@pytest.mark.parametrize("next_command", ["doctor --no-task", "cluster delete --yes"])
def test_killed_at_its_task(next_command: str, cluster: Cluster, folder: Path) -> None:
    """The pool that it had made, with a job and a node, is removed by whatever is run next."""
    with cli_process.Running(folder, "doctor") as running:
        running.expect("waiting for the first node", 40)
        running.kill()
    left = doctors_pool("examined")
    assert pools(cluster) == [left]
    assert MARK in cluster.batch.pool(left).spec.metadata
    done = CliRunner().invoke(main, next_command.split())
    assert done.exit_code == 0, done.output
    assert pools(cluster) == (["examined"] if next_command == "cluster create" else [])
    assert cluster.batch.jobs(left) == []


def test_a_pool_that_only_has_the_name_is_not_touched(cluster: Cluster, host: LocalHost) -> None:
    name = doctors_pool("examined")
    theirs = Cluster(cluster.config.model_copy(update={"name": name}), cluster.account)
    theirs.open()
    assert "note     pool           examined is not there yet" in doctor("--no-task")
    assert pools(cluster) == [name]
    theirs.delete(wait=True)
    theirs.close()
    assert len(doctors_pool("n" * 64)) == 64


def test_ctrl_c_removes_what_was_made(cluster: Cluster, folder: Path) -> None:
    with cli_process.Running(folder, "doctor") as running:
        running.expect("waiting for the first node", 40)
        running.interrupt()
        assert running.end() == 130
        assert "Traceback" not in running.output
        assert "Stopped." in running.output
    assert pools(cluster) == []
    assert cluster.batch.jobs(doctors_pool("examined")) == []
