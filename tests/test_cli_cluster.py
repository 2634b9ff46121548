"""``joblib-azure cluster``: every verb against the emulator, with what people and programs read of it."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import cli_lab
import cli_process
import pytest
from cli_lab import read, run
from click.testing import CliRunner

from joblib_azure.cli import main
from joblib_azure.local.host import LocalHost

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def host() -> Iterator[LocalHost]:
    with cli_process.account("--failing-sizes", "Emulated_C3=0", "--dedicated-core-quota", "64") as host:
        yield host


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cli_lab.at_home(tmp_path, monkeypatch)
    return tmp_path


def init(host: LocalHost, *flags: str, size: str = "Emulated_C1", **settings: object) -> str:
    name = f"pool{next(_numbers)}"
    run("init", *cli_process.init_flags(host, name, size, **settings), *flags)
    return name


def test_a_pool_comes_and_goes(host: LocalHost, folder: Path) -> None:
    name = init(host, "--dedicated-nodes", "2:2")
    said = run("cluster", "create")
    assert f"Pool {name} is created: 2 nodes idle." in said
    assert "Next: with parallel_config" in said
    assert f"Pool {name} was there: 2 nodes idle." in run("cluster", "create")
    assert read("cluster", "create")["created"] is False
    shown = run("cluster", "show")
    for part in (name, "active, allocation steady", "2 (2 idle)", "the numbers are fixed", "1 task slot a node"):
        assert part in shown
    assert read("cluster", "show")["counts"] == {"dedicated": {"idle": 2}, "spot": {}}
    listed = run("cluster", "list")
    assert listed.splitlines()[0].split() == ["pool", "state", "size", "slots", "dedicated", "spot", "nodes"]
    assert any(line.split()[:2] == [name, "active"] for line in listed.splitlines())
    assert [pool["id"] for pool in read("cluster", "list", "--prefix", name)] == [name]
    assert "There are no pools whose names begin with 'no'" in run("cluster", "list", "--prefix", "no")
    nodes = read("cluster", "nodes")
    assert [node["state"] for node in nodes] == ["idle", "idle"]
    assert nodes[0]["id"] in run("cluster", "nodes")
    assert "is deleted" in run("cluster", "delete", "--yes", "--wait")
    assert "nothing to delete" in run("cluster", "delete", "--yes")
    for command in ("show", "nodes"):
        assert f"there is no pool '{name}'" in run("cluster", command, exit_code=1)


def test_a_pool_that_scales_begins_with_no_nodes(host: LocalHost, folder: Path) -> None:
    name = init(host, "--dedicated-nodes", "3")
    assert f"{name} is created: no nodes yet; it grows to 3 nodes" in run("cluster", "create")
    assert "formula QUEUE_AND_RUNNING, every 300 s" in run("cluster", "show")
    assert "The pool has no nodes." in run("cluster", "nodes")
    assert "0 to 2 dedicated nodes, formula QUEUE." in run(
        "cluster", "resize", "--dedicated-nodes", "0:2", "--formula", "QUEUE"
    )
    assert "formula QUEUE, every 300 s" in run("cluster", "show")
    said = run("cluster", "resize", "--dedicated-nodes", "1:1", "--wait")
    assert "1 dedicated node, fixed." in said
    assert len(read("cluster", "nodes")) == 1
    assert "say what is to change" in run("cluster", "resize", exit_code=2)
    assert "not a number of nodes" in run("cluster", "resize", "--dedicated-nodes", "many", exit_code=2)
    assert "equal to 300" in run("cluster", "resize", "--interval", "1", exit_code=1)
    run("cluster", "delete", "--yes", "--name", name)


def test_files_of_a_node(host: LocalHost, folder: Path) -> None:
    init(host, "--dedicated-nodes", "1:1", commandLine=["seq 1 30", "echo oh no >&2"])
    run("cluster", "create")
    node = read("cluster", "nodes")[0]["id"]
    assert "startup/stdout.txt" in run("cluster", "file", node)
    assert "startup/stdout.txt" in [each["name"] for each in read("cluster", "file", node)]
    assert run("cluster", "file", node, "startup/stdout.txt").split() == [str(i) for i in range(1, 31)]
    assert run("cluster", "file", node, "startup/stdout.txt", "--tail", "2").split() == ["29", "30"]
    assert read("cluster", "file", node, "startup/stderr.txt")["content"] == "oh no\n"
    assert "no file startup/x on the node" in run("cluster", "file", node, "startup/x", exit_code=1)
    assert "there is no node nobody" in run("cluster", "file", "nobody", exit_code=1)
    run("cluster", "delete", "--yes")


def test_a_start_task_that_fails_is_told_with_its_log(host: LocalHost, folder: Path) -> None:
    name = init(host, "--dedicated-nodes", "1:1", commandLine=["echo the disk is full >&2; exit 3"])
    said = run("cluster", "create", exit_code=1)
    assert "the disk is full" in said
    assert "The pool stays" in said
    shown = run("cluster", "show")
    assert "starttaskfailed" in shown
    assert "Next: joblib-azure cluster nodes" in shown
    assert "exit code 3" in run("cluster", "nodes")
    doctor = CliRunner().invoke(main, ["doctor", "--no-task"])
    assert doctor.exit_code == 1
    assert "the disk is full" in doctor.output
    assert f"failed   pool           {name}" in doctor.output
    run("cluster", "delete", "--yes")


def test_no_nodes_to_be_had(host: LocalHost, folder: Path) -> None:
    init(host, "--dedicated-nodes", "1:1", size="Emulated_C3")
    said = run("cluster", "create", exit_code=1)
    assert "AllocationFailed" in said
    assert "another size" in said
    assert "resize error  AllocationFailed" in run("cluster", "show")
    doctor = CliRunner().invoke(main, ["doctor", "--no-task"])
    assert doctor.exit_code == 1
    assert "another size" in doctor.output
    run("cluster", "delete", "--yes")


def test_another_pool_of_that_name(host: LocalHost, folder: Path) -> None:
    name = init(host, "--dedicated-nodes", "2")
    run("cluster", "create")
    run("init", *cli_process.init_flags(host, name, "Emulated_C2"), "--force")
    said = run("cluster", "create", exit_code=1)
    assert "vmSize" in said
    assert "cluster delete" in said
    found = json.loads(CliRunner().invoke(main, ["doctor", "--no-task", "--json"]).stdout)
    assert found["ok"] is False
    assert [check["check"] for check in found["checks"] if check["state"] == "failed"] == ["pool"]
    run("cluster", "delete", "--yes", "--wait")
    # Gone or still going: the next creation waits for that.
    assert "is created" in run("cluster", "create")
    run("cluster", "delete", "--yes")
    assert "is created" in run("cluster", "create", "--no-wait")
    run("cluster", "delete", "--yes")


def test_a_dry_run_creates_nothing_and_asks_nobody(host: LocalHost, folder: Path) -> None:
    name = init(host, "--dedicated-nodes", "4", commandLine=["apt-get update", "curl https://me:s3cret@host/x"])
    before = host.batch_access_log.read_text()
    said = run("cluster", "create", "--dry-run")
    for part in (f'"id": "{name}"', "$TargetDedicatedNodes", "evaluated every 300 s", "apt-get update", "Nothing was"):
        assert part in said
    assert "s3cret" not in said
    found = read("cluster", "create", "--dry-run")
    assert found["pool"]["autoScaleFormula"] == found["formula"]
    assert "apt-get update" in found["start_task"]
    assert host.batch_access_log.read_text() == before
    # Nor is an account needed.
    os.remove("credentials.json")
    assert "the account is not known" in run("cluster", "create", "--dry-run")
    assert "credentials.json" not in run("cluster", "create", "--dry-run")


def test_a_dry_run_masks_all_secrets(folder: Path) -> None:
    secret = "c2VjcmV0LW9uZQ=="
    identity = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/me"
    values = {
        "name": "masked",
        "vmSize": "Standard_D2s_v5",
        "nodes": 1,
        "containerImage": "registry.example/image:1",
        "containerRegistry": {"server": "registry.example", "username": "me", "password": secret},
        "mounts": [
            {"kind": "azure_files", "account": "store", "source": "share", "path": "data", "key": secret},
            {"kind": "blob_container", "account": "store", "source": "box", "path": "box", "sas": f"?sig={secret}"},
        ],
        "resourceFiles": [{"httpUrl": f"https://store/f?sv=1&sig={secret}", "filePath": "f"}],
    }
    Path("cluster.json").write_text(json.dumps(values))
    assert secret not in run("cluster", "create", "--dry-run")
    said = run("cluster", "create", "--dry-run", "--json")
    assert secret not in said
    assert json.loads(said)["pool"]["mountConfiguration"][0]["azureFileShareConfiguration"]["accountName"] == "store"
    Path("cluster.json").write_text(json.dumps({**values, "identities": [identity]}))
    said = run("cluster", "create", "--dry-run")
    assert secret not in said
    assert "identities: created through Azure Resource Manager" in said


def test_deleting_asks_first(host: LocalHost, folder: Path) -> None:
    name = init(host, "--dedicated-nodes", "1:1")
    run("cluster", "create", "--no-wait")
    assert "add --yes" in run("cluster", "delete", exit_code=2)
    with cli_process.Running(folder, "cluster", "delete", terminal=True) as running:
        running.answer(f"Delete the pool {name}", "n")
        assert running.end() == 130
    assert name in run("cluster", "list")
    with cli_process.Running(folder, "cluster", "delete", "--wait", terminal=True) as running:
        running.answer(f"Delete the pool {name}", "y")
        assert running.end() == 0
        assert "is deleted" in running.output


def test_files_and_accounts_that_are_not_there(host: LocalHost, folder: Path) -> None:
    assert "joblib-azure init" in run("cluster", "show", exit_code=1)
    assert "nothing to manage" in run("cluster", "show", exit_code=1, env={"JOBLIB_AZURE_CLUSTER": "local"})
    init(host)
    wrong = {"AZURE_BATCH_ACCESS_KEY": "d3Jvbmc="}
    assert "refused the credentials" in run("cluster", "list", exit_code=1, env=wrong)
    nobody = {"AZURE_BATCH_ENDPOINT": "http://127.0.0.1:9"}
    assert "nothing answers" in run("cluster", "list", exit_code=1, env=nobody)
    Path("cluster.json").rename("other.json")
    assert "There are no pools" in run("cluster", "list", "--prefix", "none")
    assert "other.json" not in run("cluster", "show", "--cluster", "other.json", exit_code=1)


def test_a_wait_that_ctrl_c_ends(host: LocalHost, folder: Path) -> None:
    name = init(host, "--dedicated-nodes", "1:1", commandLine=["sleep 60"])
    with cli_process.Running(folder, "cluster", "create") as running:
        running.expect("is waitingforstarttask")  # node by node, in lines
        running.interrupt()
        assert running.end() == 130
        assert f"The pool {name} may be there" in running.output
        assert "joblib-azure cluster delete" in running.output
        assert "Traceback" not in running.output
    with cli_process.Running(folder, "cluster", "create", terminal=True) as running:
        running.expect("waitingforstarttask")  # and in a table that changes
        running.expect("0 of 1 ready")
        running.type("\x03")
        assert running.end() == 130
        assert "Traceback" not in running.output
    run("cluster", "delete", "--yes")
