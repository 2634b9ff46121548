"""``joblib-azure account``: against a server that takes what the management plane's reference documents."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cli_lab
import cli_process
import pytest
from click.testing import CliRunner

pytest.importorskip("azure.mgmt.batch", reason="needs the extra [management]")
from entra_lab import TENANT, Entra
from test_management import Manager

from joblib_azure.cli import main
from joblib_azure.config import CLOUDS, AccountConfig
from joblib_azure.emulator import BatchEmulator
from joblib_azure.emulator.tls import make_certificate

SUBSCRIPTION = "00000000-0000-0000-0000-000000000001"
WHERE = ["--subscription", SUBSCRIPTION, "--location", "westeurope", "--resource-group", "fresh"]
NAMES = ["--batch-account", "freshbatch", "--storage-account", "freshstore"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def entra(certificate: tuple[Path, Path]) -> Iterator[Entra]:
    with Entra(*certificate) as running:
        yield running


@pytest.fixture(scope="module")
def emulator() -> Iterator[BatchEmulator]:
    with BatchEmulator() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cli_lab.at_home(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def manager(
    certificate: tuple[Path, Path],
    entra: Entra,
    emulator: BatchEmulator,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Manager]:
    """Signed in as the service principal that the environment names."""
    variables = {
        "REQUESTS_CA_BUNDLE": str(certificate[0]),
        "AZURE_AUTHORITY_HOST": entra.endpoint,
        "AZURE_TENANT_ID": TENANT,
        "AZURE_CLIENT_ID": entra.client_id,
        "AZURE_CLIENT_SECRET": entra.secret,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with Manager(*certificate, emulator) as running:
        monkeypatch.setitem(CLOUDS, "public", dataclasses.replace(CLOUDS["public"], management=running.endpoint))
        yield running


def run(*arguments: str, exit_code: int = 0, **more: Any) -> str:
    done = CliRunner().invoke(main, ["account", *arguments], **more)
    assert done.exit_code == exit_code, done.output
    assert "Traceback" not in done.output
    return done.output


def test_setup_and_teardown(manager: Manager) -> None:
    said = run("setup", *WHERE, *NAMES)
    assert "Next: joblib-azure init" in said
    assert "resource group fresh …" in said
    account = AccountConfig.load("credentials.json")
    assert account.batch_endpoint == "https://freshbatch.westeurope.batch.azure.com"
    assert account.storage_endpoint == "https://freshstore.blob.core.windows.net"
    assert account.batch_key is not None
    assert account.batch_key.get_secret_value() not in said
    assert stat.S_IMODE(os.stat("credentials.json").st_mode) == 0o600
    assert "credentials.json" in Path(".gitignore").read_text().splitlines()
    # Again: what is there stays.
    before = Path("credentials.json").read_bytes()
    assert "kept" in run("setup", *WHERE, *NAMES)
    assert Path("credentials.json").read_bytes() == before
    # `init` takes the account as it is, and writes what is missing.
    done = CliRunner().invoke(main, ["init", "--name", "pool"])
    assert done.exit_code == 0, done.output
    assert Path("credentials.json").read_bytes() == before

    assert "add --yes" in run("teardown", exit_code=2)
    assert len(manager.resources) == 2
    said = run("teardown", "--yes")
    assert "Removed: Batch account freshbatch, storage account freshstore, resource group fresh" in said
    assert (manager.resources, manager.groups) == ({}, {})
    assert "Nothing of it is there any more" in run("teardown", "--yes")


def test_an_account_without_keys(manager: Manager) -> None:
    said = run("setup", *WHERE, *NAMES, "--entra")
    assert "Storage Blob Data Contributor" in said
    account = AccountConfig.load("credentials.json")
    assert account.batch_key is account.storage_key is None
    assert account.batch_resource_id is not None
    (batch,) = (each for path, each in manager.resources.items() if "/Microsoft.Batch/" in path)
    assert batch["properties"]["allowedAuthenticationModes"] == ["AAD"]


def test_killed_half_way_it_goes_on(manager: Manager, folder: Path) -> None:
    environment = {name: os.environ[name] for name in os.environ if name.startswith(("AZURE_", "REQUESTS_"))}
    before = (
        "import dataclasses; from joblib_azure.config import CLOUDS\n"
        f"CLOUDS['public'] = dataclasses.replace(CLOUDS['public'], management={manager.endpoint!r})\n"
    )
    cli_process.killed_at("replace", 2, folder, "account", "setup", *WHERE, before=before, **environment)
    assert len(manager.resources) == 2
    assert not Path("credentials.json").exists()
    run("setup", *WHERE)
    assert len(manager.resources) == 2  # names that are made up are the same again
    assert AccountConfig.load("credentials.json").batch_account.startswith("joblib")
    run("teardown", "--yes")
    assert manager.resources == {}


def test_who_may_not(manager: Manager) -> None:
    manager.forbidden = True
    assert "resource group fresh: the service refused the credentials" in run("setup", *WHERE, exit_code=1)
    assert not Path("credentials.json").exists()


def test_a_file_of_another_account_stays(manager: Manager) -> None:
    values = {"batchAccount": "a", "batchEndpoint": "https://a.b.batch.azure.com", "storageAccount": "st"}
    Path("credentials.json").write_text(json.dumps(values))
    assert "of another account: add --force" in run("setup", *WHERE, exit_code=2)
    assert manager.requests == []
    assert "Nothing is removed" in run("teardown", "--yes", exit_code=1)
    assert manager.requests == []
    run("setup", *WHERE, *NAMES, "--credentials", "new.json")
    assert AccountConfig.load("new.json").batch_account == "freshbatch"
    assert "new.json" in Path(".gitignore").read_text()


def test_a_dry_run_needs_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("azure.mgmt.batch", "azure.mgmt.resource", "azure.mgmt.storage"):
        monkeypatch.setitem(sys.modules, name, None)
    said = run("setup", *WHERE, "--dry-run")
    for part in ("PUT /subscriptions/", "resourceGroups/fresh", "Microsoft.Batch", "Nothing was made"):
        assert part in said
    found = json.loads(run("setup", *WHERE, *NAMES, "--dry-run", "--json"))
    assert [path.rpartition("/")[2] for path in found["put"]] == ["fresh", "freshstore", "freshbatch"]
    assert list(folder.iterdir()) == []
    group = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/fresh/providers"
    values = {
        "batchResourceId": f"{group}/Microsoft.Batch/batchAccounts/b",
        "storageResourceId": f"{group}/Microsoft.Storage/storageAccounts/s",
        "batchEndpoint": "https://b.westeurope.batch.azure.com",
    }
    Path("credentials.json").write_text(json.dumps(values))
    assert "Nothing was removed" in run("teardown", "--dry-run")
    assert json.loads(run("teardown", "--dry-run", "--json"))["removes"] == ["Batch account b", "storage account s"]
    # The real thing names what is missing.
    assert "joblib_azure[management]" in run("teardown", "--yes", exit_code=1)


def test_what_is_wrong_is_told_at_once(folder: Path) -> None:
    said = run("setup", "--batch-account", "Not A Name", "--resource-group", "a/b", exit_code=2)
    for part in ("--subscription", "AZURE_SUBSCRIPTION_ID", "--location", "'Not A Name'", "'a/b'"):
        assert part in said
