"""Keyword > environment > file > default, and `config show` says which it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_examples import SUBSCRIPTION

from joblib_azure.config import AccountConfig, Bounds, ClusterConfig, PoolSize
from joblib_azure.config.resolve import Resolved, resolve, resolve_account
from joblib_azure.errors import ConfigurationError

FILE: dict[str, Any] = {
    "batchAccount": "filebatch",
    "batchEndpoint": "https://filebatch.westeurope.batch.azure.com",
    "batchKey": "file-key",
    "storageAccount": "filestore",
    "storageKey": "file-storage-key",
}
CONNECTION = "DefaultEndpointsProtocol=https;AccountName=other;AccountKey=b3RoZXI=;EndpointSuffix=core.windows.net"


def write(folder: Path, values: dict[str, Any], name: str = "file.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(values))
    return path


def account(folder: Path, environ: dict[str, str] | None = None, **keywords: Any) -> Resolved[AccountConfig]:
    return resolve_account(write(folder, FILE), environ=environ or {}, **keywords)


def test_the_strongest_source_of_each_key_counts(tmp_path: Path) -> None:
    environ = {"AZURE_BATCH_ACCESS_KEY": "environment-key", "AZURE_STORAGE_KEY": "environment-storage-key"}
    found = account(tmp_path, environ, storage_key="keyword-key")
    config, sources = found.config, found.sources
    assert config.batch_key is not None
    assert config.storage_key is not None
    assert config.batch_account == "filebatch"
    assert config.batch_key.get_secret_value() == "environment-key"
    assert config.storage_key.get_secret_value() == "keyword-key"
    assert sources["batchAccount"] == f"file {tmp_path / 'file.json'}"
    assert sources["batchKey"] == "environment AZURE_BATCH_ACCESS_KEY"
    assert sources["storageKey"] == "keyword"
    assert sources["githubToken"] == "default"
    assert sources["cloud"].startswith("from batchEndpoint (file ")


def test_every_key_has_a_source_and_a_value(tmp_path: Path) -> None:
    rows = {key: (value, source) for key, value, source in account(tmp_path).rows()}
    assert rows["batchKey"] == ("**********", f"file {tmp_path / 'file.json'}")
    cluster = resolve(ClusterConfig, write(tmp_path, {"name": "p", "vmSize": "Standard_F2"}), environ={})
    keys = [key for key, _, _ in cluster.rows()]
    assert {"poolSize.spotNodes.max", "environment.mode", "pythonPackages.pypi", "retries"} <= set(keys)


def test_another_account_brings_its_own_key(tmp_path: Path) -> None:
    """The file's key is not the key of the account that the environment names."""
    environ = {"AZURE_BATCH_ACCOUNT": "other", "AZURE_BATCH_ENDPOINT": "https://other.northeurope.batch.azure.com"}
    config = account(tmp_path, environ).config
    assert (config.batch_account, config.batch_key) == ("other", None)
    assert config.batch_endpoint == environ["AZURE_BATCH_ENDPOINT"]
    assert config.storage_key is not None
    # The same account is the same one.
    kept = account(tmp_path, {"AZURE_BATCH_ACCOUNT": "filebatch"}).config
    assert kept.batch_key is not None
    with pytest.raises(ConfigurationError, match="batchEndpoint: missing"):
        account(tmp_path, {"AZURE_BATCH_ACCOUNT": "other"})


def test_a_connection_string_is_a_whole_account(tmp_path: Path) -> None:
    environ = {
        "AZURE_STORAGE_CONNECTION_STRING": CONNECTION,
        "AZURE_STORAGE_ACCOUNT": "third",
        "AZURE_STORAGE_KEY": "x",
    }
    found = account(tmp_path, environ)
    assert found.config.storage_account == "other"
    assert found.config.storage_endpoint == "https://other.blob.core.windows.net"
    assert found.config.storage_key is not None
    assert found.config.storage_key.get_secret_value() == "b3RoZXI="
    for key in ("storageAccount", "storageKey", "storageEndpoint"):
        assert found.sources[key] == "from storageConnectionString (environment AZURE_STORAGE_CONNECTION_STRING)"


def test_keywords_reach_into_nested_settings(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {
            "name": "p",
            "vmSize": "Standard_F2",
            "poolSize": {"lowPriorityNodes": {"min": 1, "max": 4}, "idleShutdown": 60},
        },
    )
    found = resolve(ClusterConfig, path, environ={}, pool_size={"spot_nodes": {"max": 8}}, maxTasksPerNode=2)
    size = found.config.pool_size
    assert (size.spot_nodes, size.idle_shutdown, found.config.max_tasks_per_node) == (Bounds(min=1, max=8), 60, 2)
    assert found.sources["poolSize.spotNodes.max"] == "keyword"
    assert found.sources["poolSize.spotNodes.min"] == found.sources["poolSize.idleShutdown"] == f"file {path}"
    assert found.sources["maxTasksPerNode"] == "keyword"
    whole = resolve(ClusterConfig, path, environ={}, pool_size=PoolSize(spot_nodes=Bounds(max=3)))
    assert whole.config.nodes == 3


@pytest.mark.parametrize(
    ("written", "keywords", "expected"),
    [
        ({"poolSize": {"spotNodes": {"max": 4}}}, {"nodes": 2}, {"nodes": 2}),
        ({"nodes": 5}, {"pool_size": {"spot_nodes": {"max": 3}}}, {"nodes": 3}),
        ({"cores": 16}, {"vm_size": "Standard_D8s_v5"}, {"cores": 8}),
        (
            {"image": {"publisher": "p", "offer": "o", "sku": "s"}},
            {"custom_image": f"{SUBSCRIPTION}/Microsoft.Compute/images/i", "node_agent_sku": "batch.node.ubuntu 24.04"},
            {"image": None},
        ),
    ],
)
def test_what_a_stronger_source_replaces_no_longer_counts(
    written: dict[str, Any], keywords: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    path = write(tmp_path, {"name": "p", "vmSize": "Standard_F2", **written})
    config = resolve(ClusterConfig, path, environ={}, **keywords).config
    assert {key: getattr(config, key) for key in expected} == expected


def test_the_environment_names_the_files(tmp_path: Path) -> None:
    path = write(tmp_path, {"name": "p", "vmSize": "Standard_F2"})
    assert resolve(ClusterConfig, environ={"JOBLIB_AZURE_CLUSTER": str(path)}).config.name == "p"
    named = write(tmp_path, FILE)
    assert AccountConfig.from_environment({"JOBLIB_AZURE_CREDENTIALS": str(named)}).batch_account == "filebatch"


def test_credentials_beside_the_cluster_are_found_and_others_are_stronger(tmp_path: Path) -> None:
    cluster = tmp_path / "cluster.json"
    write(tmp_path, FILE, "credentials.json")
    assert AccountConfig.from_environment({}, beside=cluster).batch_account == "filebatch"
    other = write(tmp_path, {**FILE, "batchAccount": "named"}, "named.json")
    named = AccountConfig.from_environment({"JOBLIB_AZURE_CREDENTIALS": str(other)}, beside=cluster)
    assert named.batch_account == "named"
    with pytest.raises(ConfigurationError, match="account is not known"):
        AccountConfig.from_environment({}, beside=tmp_path / "elsewhere" / "cluster.json")


def test_the_environment_alone_is_enough_with_and_without_keys() -> None:
    environ = {
        "AZURE_BATCH_ACCOUNT": "a",
        "AZURE_BATCH_ENDPOINT": "a.westeurope.batch.azure.com/",
        "AZURE_STORAGE_ACCOUNT": "s",
    }
    config = AccountConfig.from_environment(environ)
    assert config.batch_endpoint == "https://a.westeurope.batch.azure.com"
    assert (config.batch_key, config.storage_key, config.storage_connection_string) == (None, None, None)
    assert config.storage_endpoint == "https://s.blob.core.windows.net"
    with_key = AccountConfig.from_environment({**environ, "AZURE_STORAGE_KEY": "a2V5"})
    assert with_key.storage_connection_string is not None
    assert "AccountKey=a2V5;BlobEndpoint=https://s.blob" in with_key.storage_connection_string.get_secret_value()
    with pytest.raises(ConfigurationError) as caught:
        AccountConfig.from_environment({"AZURE_BATCH_ACCOUNT": "a"})
    assert "AZURE_BATCH_ENDPOINT, AZURE_STORAGE_CONNECTION_STRING" in str(caught.value)
    assert "AZURE_BATCH_ACCOUNT" not in str(caught.value)


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    packages = {"wheels": ["w/a.whl", "https://x/b.whl"], "editable": ["../project", "/absolute"]}
    path = write(tmp_path, {"name": "p", "vmSize": "Standard_F2", "pythonPackages": packages})
    for config in (ClusterConfig.load(path), resolve(ClusterConfig, path, environ={}).config):
        assert config.python_packages.wheels == (str(tmp_path / "w/a.whl"), "https://x/b.whl")
        assert config.python_packages.editable == (str(tmp_path / "../project"), "/absolute")


@pytest.mark.parametrize(
    ("changes", "cloud", "suffix"),
    [
        ({}, "public", "core.windows.net"),
        ({"batchEndpoint": "https://b.chinaeast2.batch.chinacloudapi.cn"}, "china", "core.chinacloudapi.cn"),
        ({"batchEndpoint": "https://b.usgovvirginia.batch.usgovcloudapi.net"}, "usgov", "core.usgovcloudapi.net"),
        ({"batchEndpoint": "http://127.0.0.1:9", "cloud": "usgov"}, "usgov", "core.usgovcloudapi.net"),
    ],
)
def test_clouds(changes: dict[str, Any], cloud: str, suffix: str) -> None:
    config = AccountConfig.read({**FILE, **changes}, "test")
    assert config.cloud == config.endpoints.name == cloud
    assert config.storage_endpoint == f"https://filestore.blob.{suffix}"
    assert config.endpoints.batch_scope.startswith("https://batch.")
    assert config.endpoints.management_scope == f"{config.endpoints.management}/.default"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cloud": "usgov"}, "cloud = 'usgov': the endpoints are in the cloud 'public'"),
        ({"cloud": "chna"}, "did you mean 'china'"),
        ({"storageEndpointSuffix": "core.cloudapi.de"}, "Azure Germany was closed"),
        ({"batchEndpoint": "ftp://x"}, "batchEndpoint = 'ftp://x': expected a URL"),
        ({"batchEndpoint": "https://h:99999"}, "batchEndpoint = 'https://h:99999': expected a URL"),
        (
            {"batchResourceId": f"{SUBSCRIPTION}/Microsoft.Batch/batchAccounts/x"},
            "the resource id is of the account 'x'",
        ),
        ({"batchResourceId": "/subscriptions/x"}, "expected a resource id as /subscriptions/"),
        ({"storageConnectionString": "AccountName=filestore"}, "has no AccountKey"),
        ({"storageConnectionString": CONNECTION}, "the connection string is of the account 'other'"),
        ({"storageConnectionString": "BlobEndpoint=https://x;SharedAccessSignature=sv=1"}, "holds a SAS"),
        ({"batchKey": ["x"]}, "batchKey: expected a text"),
        ({"servicePrincipal": {"tenantId": "t", "clientId": "c"}}, "servicePrincipal.credential: missing"),
        ({"dockerAuthentication": {"username": "u"}}, "username and password go together"),
        ({"githubTokn": "x"}, "did you mean 'githubToken'"),
        ({"batch_account": "x"}, "there twice, also as 'batchAccount'"),
    ],
)
def test_what_is_wrong_with_an_account_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        AccountConfig.read({**FILE, **changes}, "test")
    assert said in str(caught.value)
