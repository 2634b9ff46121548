"""``joblib-azure init``: from questions, flags and variables to two files, whatever happens in between."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
from pathlib import Path

import cli_lab
import cli_process
import pytest
from click.testing import CliRunner

from joblib_azure.cli import main
from joblib_azure.config import AccountConfig, ClusterConfig

ENDPOINT = "https://acc.westeurope.batch.azure.com"
KEY, STORAGE_KEY = "c2VjcmV0LW9uZQ==", "c2VjcmV0LXR3bw=="
CONNECTION = (
    f"DefaultEndpointsProtocol=https;AccountName=store;AccountKey={STORAGE_KEY};EndpointSuffix=core.windows.net"
)
FLAGS = ["--batch-endpoint", ENDPOINT, "--batch-key", KEY, "--storage-connection-string", CONNECTION]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "my project"
    folder.mkdir()
    cli_lab.at_home(folder, monkeypatch)
    return folder


def init(*arguments: str, exit_code: int = 0) -> str:
    done = CliRunner().invoke(main, ["init", *arguments])
    assert done.exit_code == exit_code, done.output
    return done.output


def test_flags_alone_write_both_files(folder: Path) -> None:
    said = init(*FLAGS)
    account = AccountConfig.load("credentials.json")
    assert account.batch_account == "acc"
    assert account.batch_key is not None
    assert account.batch_key.get_secret_value() == KEY
    assert account.storage_key is not None
    assert account.storage_key.get_secret_value() == STORAGE_KEY
    config = ClusterConfig.load("cluster.json")
    assert (config.name, config.vm_size, config.nodes) == ("my-project", "Standard_D4s_v5", 4)
    assert config.pool_size.dedicated_nodes.min == 0
    assert stat.S_IMODE(os.stat("credentials.json").st_mode) == 0o600
    assert "credentials.json" in Path(".gitignore").read_text().splitlines()
    assert "Next: joblib-azure doctor" in said
    assert KEY not in said
    assert STORAGE_KEY not in said


def test_flags_of_the_pool(folder: Path) -> None:
    init(*FLAGS, "--name", "p", "--vm-size", "Standard_D8s_v5", "--spot-nodes", "1:9", "--max-tasks-per-node", "cores")
    config = ClusterConfig.load("cluster.json")
    assert (config.pool_size.spot_nodes.min, config.pool_size.spot_nodes.max) == (1, 9)
    assert config.pool_size.dedicated_nodes.max == 0
    assert config.max_tasks_per_node == 8
    init(*FLAGS, "--force", "--dedicated-nodes", "2", "--set", "environment.mode=none", "--set", "cores=3")
    config = ClusterConfig.load("cluster.json")
    assert (config.cores, config.environment.mode, config.nodes) == (3, "none", 2)


def test_the_environment_may_say_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_BATCH_ENDPOINT", ENDPOINT)
    monkeypatch.setenv("AZURE_BATCH_ACCESS_KEY", KEY)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "store")
    monkeypatch.setenv("AZURE_STORAGE_KEY", STORAGE_KEY)
    init()
    found = json.loads(Path("credentials.json").read_text())
    assert found == {
        "batchAccount": "acc",
        "batchEndpoint": ENDPOINT,
        "batchKey": KEY,
        "storageAccount": "store",
        "storageKey": STORAGE_KEY,
    }
    # A flag goes before a variable now, and the variable before the file later: that is told.
    said = init("--force", "--batch-key", STORAGE_KEY)
    assert json.loads(Path("credentials.json").read_text())["batchKey"] == STORAGE_KEY
    assert "AZURE_BATCH_ACCESS_KEY in the environment goes before" in said


def test_entra_needs_no_keys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_BATCH_ACCESS_KEY", KEY)
    said = init("--entra", "--batch-endpoint", ENDPOINT, "--storage-account", "store")
    assert "Entra" in said
    account = AccountConfig.load("credentials.json")
    assert account.batch_key is account.storage_key is None
    assert account.storage_endpoint == "https://store.blob.core.windows.net"
    assert "--entra" in init("--force", "--entra", *FLAGS, exit_code=2)


def test_what_is_missing_is_named_in_one_error(folder: Path) -> None:
    said = init(exit_code=2)
    for name in ("--batch-endpoint", "--batch-key", "--storage-connection-string", "--storage-account", "--entra"):
        assert name in said
    for name in ("AZURE_BATCH_ENDPOINT", "AZURE_BATCH_ACCESS_KEY", "AZURE_STORAGE_CONNECTION_STRING"):
        assert name in said
    assert list(folder.iterdir()) == []


def test_what_is_wrong_is_told_at_once_and_nothing_is_written(folder: Path) -> None:
    without_key = CONNECTION.replace("AccountKey", "AccuntKey")
    said = init(*FLAGS[:-1], without_key, "--vm-size", "Standard", "--set", "nodse=3", exit_code=1)
    for hint in ("storageConnectionString", "vmSize", "did you mean 'nodes'"):
        assert hint in said
    assert STORAGE_KEY not in said
    assert list(folder.iterdir()) == []
    for wrong in ("nodes", "=1", "a..b=1", "name.x=1"):
        assert "--set" in init(*FLAGS, "--set", wrong, exit_code=2)
    assert "0 ≤ MIN ≤ MAX" in init(*FLAGS, "--dedicated-nodes", "4:1", exit_code=2)


def test_nothing_is_overwritten_without_force(folder: Path) -> None:
    init(*FLAGS, "--vm-size", "Standard_D2s_v5")
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert "kept" in init()
    assert "kept" in init(*FLAGS)  # they say the same
    assert "another vmSize: add --force" in init("--vm-size", "Standard_D4s_v5", exit_code=2)
    said = init("--batch-key", STORAGE_KEY, exit_code=2)
    assert "another batchKey: add --force" in said
    assert STORAGE_KEY not in said
    assert "another batchKey" in init("--entra", exit_code=2)
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    init(*FLAGS, "--vm-size", "Standard_D4s_v5", "--force")
    assert ClusterConfig.load("cluster.json").cores == 4


def test_a_gitignore_of_the_users_own_is_added_to(folder: Path) -> None:
    Path(".gitignore").write_text("*.pyc\n/credentials.json")
    os.chmod(".gitignore", 0o640)
    init(*FLAGS)
    lines = Path(".gitignore").read_text().splitlines()
    assert lines == ["*.pyc", "/credentials.json", "credentials.json.new"]
    assert stat.S_IMODE(os.stat(".gitignore").st_mode) == 0o640


def test_other_places(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("secrets").mkdir()
    monkeypatch.setenv("JOBLIB_AZURE_CLUSTER", "pool.json")
    init(*FLAGS, "--credentials", "secrets/batch.json")
    assert ClusterConfig.load("pool.json").nodes == 4
    assert AccountConfig.load("secrets/batch.json").batch_account == "acc"
    assert "batch.json" in Path("secrets/.gitignore").read_text()
    assert not Path(".gitignore").exists()
    assert "cannot write" in init(*FLAGS, "--credentials", "nowhere/batch.json", exit_code=1)


@pytest.mark.parametrize(("function", "number"), [("replace", 1), ("replace", 2), ("fsync", 2), ("replace", 3)])
def test_killed_at_any_file_it_is_repeated_as_it_was(function: str, number: int, folder: Path) -> None:
    """The n-th file is complete under another name and not in its place yet, or (fsync) not complete."""
    cli_process.killed_at(function, number, folder, "init", *FLAGS)
    for path in folder.glob("credentials.json*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.name in (folder / ".gitignore").read_text().splitlines()
    for path in folder.glob("*.json"):
        assert json.loads(path.read_text())
    init(*FLAGS)
    assert sorted(path.name for path in folder.iterdir()) == [".gitignore", "cluster.json", "credentials.json"]
    assert ClusterConfig.load("cluster.json").nodes == 4


def test_it_asks_on_a_terminal(folder: Path) -> None:
    with cli_process.Running(folder, "init", terminal=True) as running:
        running.answer("URL of the Batch account", "batch")  # no URL: asked again
        running.answer("URL of the Batch account", ENDPOINT)
        running.answer("Name of the Batch account [acc]", "")
        running.answer("Key of the Batch account", KEY)
        running.answer("Connection string", CONNECTION.replace(STORAGE_KEY, ""))
        running.answer("Connection string", CONNECTION)
        running.answer("Name of the pool [my-project]", "no spaces please")
        running.answer("Name of the pool [my-project]", "mine")
        running.answer("Size of its nodes [Standard_D4s_v5]", "")
        running.answer("Dedicated nodes at most [4]", "many")
        running.answer("Dedicated nodes at most [4]", "1:2")
        running.answer("Spot nodes at most [0]", "")
        running.answer("Task slots of a node", "17")
        running.answer("Task slots of a node", "cores")
        assert running.end() == 0
        assert "Next: joblib-azure doctor" in running.output
        assert KEY not in running.output
    config = ClusterConfig.load("cluster.json")
    assert (config.name, config.nodes, config.max_tasks_per_node) == ("mine", 2, 4)
    account = AccountConfig.load("credentials.json")
    assert account.batch_key is not None
    assert account.batch_key.get_secret_value() == KEY


def test_ctrl_c_at_a_question(folder: Path) -> None:
    with cli_process.Running(folder, "init", terminal=True) as running:
        running.expect("URL of the Batch account")
        # input() of CPython sleeps through a signal that comes between its check and its select(): press again.
        while running.process.poll() is None:
            running.type("\x03")
            # Not while it ends already: that is one signal too many for an interpreter that shuts down.
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(10)
        assert running.end() == 130
        assert "Nothing was written" in running.output
        assert "Traceback" not in running.output
    assert list(folder.iterdir()) == []
