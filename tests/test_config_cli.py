"""``joblib-azure config``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from config_examples import ACCOUNT, CLUSTER, canaries

from joblib_azure.cli import main
from joblib_azure.config import ClusterConfig
from joblib_azure.config.reference import json_schema, markdown

DATA = Path(__file__).parent / "data" / "doazureparallel"


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("JOBLIB_AZURE_CLUSTER", "JOBLIB_AZURE_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("ACCOUNT", "ENDPOINT", "ACCESS_KEY"):
        monkeypatch.delenv(f"AZURE_BATCH_{name}", raising=False)
    for name in ("CONNECTION_STRING", "ACCOUNT", "KEY"):
        monkeypatch.delenv(f"AZURE_STORAGE_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    done = CliRunner().invoke(main, ["config", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


def both(**changes: Any) -> set[str]:
    Path("cluster.json").write_text(json.dumps({**CLUSTER, **changes}))
    Path("credentials.json").write_text(json.dumps(ACCOUNT))
    return canaries(CLUSTER) | canaries(ACCOUNT)


def test_show_tells_values_and_sources_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = both()
    monkeypatch.setenv("AZURE_BATCH_ACCESS_KEY", "canary-environment")
    done = run("show")
    assert done.exit_code == 0, done.output
    lines = {line.split()[0]: line for line in done.output.splitlines() if line}
    assert lines["batchKey"].endswith("environment AZURE_BATCH_ACCESS_KEY")
    assert lines["poolSize.spotNodes.max"].split() == ["poolSize.spotNodes.max", "5", "file", "cluster.json"]
    assert "**********" in lines["batchKey"]
    assert [secret for secret in (*secrets, "canary") if secret in done.output] == []


def test_show_as_json() -> None:
    both()
    done = run("show", "--json")
    shown = json.loads(done.stdout)
    assert shown["errors"] == {}
    assert shown["cluster"]["nodes"] == {"value": 9, "source": "file cluster.json"}
    assert shown["cluster"]["pythonPath"]["value"] == ["/shared/lib"]
    assert shown["credentials"]["cloud"]["value"] == "china"
    assert "canary" not in done.output


def test_show_prints_what_is_right_and_says_what_is_wrong() -> None:
    both(retries=99)
    done = run("show")
    assert done.exit_code == 1
    assert "retries = 99" in done.stderr
    assert "batchAccount" in done.stdout
    shown = json.loads(run("show", "--json").stdout)
    assert "retries = 99" in shown["errors"]["cluster"]
    assert "credentials" in shown


def test_show_without_anything() -> None:
    done = run("show")
    assert done.exit_code == 1
    assert "cluster.json is not there" in done.stderr
    assert "the account is not known" in done.stderr


def test_show_the_local_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBLIB_AZURE_CLUSTER", "local")
    done = run("show", "--json")
    assert done.exit_code == 0
    shown = json.loads(done.stdout)
    assert shown["cluster"]["name"] == {"value": "local", "source": "local cluster"}
    assert "credentials" not in shown


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cluster_generated.json", "pool 'myPoolName', 3 dedicated and 3 spot node(s) of Standard_D2_v2 × 2 core(s)"),
        ("cluster_before_0_3_2.json", "2 dedicated and 1 to 10 spot node(s)"),
        ("credentials_shared_key.json", "Batch account 'batchaccountname' with its key"),
        ("credentials_service_principal.json", "with a service principal"),
    ],
)
def test_check_says_what_a_right_file_means(name: str, said: str) -> None:
    done = run("check", str(DATA / name))
    assert done.exit_code == 0, done.output
    assert "ok: " in done.stdout
    assert said in done.stdout


def test_check_tells_all_that_is_wrong() -> None:
    Path("c.json").write_text('{"vmSize": "Standard_F3", "nodes": 0}')
    done = run("check", "c.json")
    assert done.exit_code == 1
    assert all(key in done.stderr for key in ("name: missing", "vmSize = 'Standard_F3'", "nodes = 0"))
    shown = json.loads(run("check", "c.json", "--json").stdout)
    assert (shown["ok"], shown["kind"]) == (False, "cluster")
    assert "nodes = 0" in shown["error"]
    assert run("check", "nowhere.json").exit_code == 1
    assert "batchAccount: missing" in run("check", "c.json", "--kind", "credentials").stderr


def test_schema_and_reference() -> None:
    assert json.loads(run("schema").stdout) == json_schema(ClusterConfig)
    assert "batchAccount" in json.loads(run("schema", "credentials").stdout)["properties"]
    assert run("reference").stdout == markdown()
