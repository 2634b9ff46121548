"""The rules between the settings of a cluster, each with an error that says what to write."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from config_examples import IDENTITY, IMAGE, MINIMAL

from joblib_azure.config import AccountConfig, Bounds, ClusterConfig
from joblib_azure.errors import ConfigurationError

DATA = Path(__file__).parent / "data" / "doazureparallel"


def read(**changes: Any) -> ClusterConfig:
    return ClusterConfig.read({**MINIMAL, **changes}, "test")


@pytest.mark.parametrize(
    ("changes", "dedicated", "spot", "fixed"),
    [
        ({}, (0, 1), (0, 0), False),
        ({"nodes": 5}, (0, 5), (0, 0), False),
        ({"nodes": 5, "poolSize": {"autoscaleFormula": "FIXED"}}, (0, 5), (0, 0), True),
        ({"poolSize": {"autoscaleFormula": "queue"}}, (0, 1), (0, 0), False),
        ({"poolSize": {"dedicatedNodes": {"min": 2, "max": 2}}}, (2, 2), (0, 0), True),
        ({"poolSize": {"spotNodes": {"max": 4}}}, (0, 0), (0, 4), False),
        ({"poolSize": {"lowPriorityNodes": {"min": 4, "max": 4}}}, (0, 0), (4, 4), True),
        ({"nodes": 6, "poolSize": {"dedicatedNodes": {"max": 2}, "spotNodes": {"max": 4}}}, (0, 2), (0, 4), False),
    ],
)
def test_nodes_and_bounds(
    changes: dict[str, Any], dedicated: tuple[int, int], spot: tuple[int, int], fixed: bool
) -> None:
    config = read(**changes)
    size = config.pool_size
    assert size.dedicated_nodes == Bounds(min=dedicated[0], max=dedicated[1])
    assert size.spot_nodes == Bounds(min=spot[0], max=spot[1])
    assert config.nodes == dedicated[1] + spot[1]
    assert config.workers == config.nodes * 4
    assert config.fixed is fixed


@pytest.mark.parametrize(("slots", "expected"), [("cores", 4), (16, 16), ("3", 3), (1, 1)])
def test_task_slots(slots: Any, expected: int) -> None:
    assert read(maxTasksPerNode=slots).max_tasks_per_node == expected


@pytest.mark.parametrize(("given", "expected"), [({}, 4), ({"workersPerNode": 1}, 1), ({"workersPerNode": 64}, 64)])
def test_workers_of_a_node(given: dict[str, Any], expected: int) -> None:
    config = read(nodes=3, **given)
    assert (config.node_workers, config.workers) == (expected, 3 * expected)
    assert config.workers_per_node == given.get("workersPerNode")


def test_a_slot_a_core_is_bounded_by_the_service() -> None:
    config = ClusterConfig(name="p", vm_size="Standard_M416s_v2", max_tasks_per_node="cores")
    assert (config.cores, config.max_tasks_per_node) == (416, 256)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nodes": 3, "poolSize": {"spotNodes": {"max": 4}}}, "nodes = 3: the maxima of poolSize add up to 4"),
        ({"poolSize": {"dedicatedNodes": {"min": 0, "max": 0}}}, "poolSize: a pool of no nodes"),
        ({"poolSize": {"dedicatedNodes": {"min": 3, "max": 2}}}, "poolSize.dedicatedNodes.max = 2: less than min = 3"),
        ({"poolSize": {"lowPriorityNodes": {"max": -1}}}, "poolSize.lowPriorityNodes.max = -1"),
        ({"poolSize": {"autoscaleFormula": "QUEU"}}, "poolSize.autoscaleFormula = 'QUEU': expected QUEUE"),
        ({"poolSize": {"autoscaleFormula": "BAD_FORMULA"}}, "or a formula that sets $TargetDedicatedNodes"),
        (
            {"poolSize": {"autoscaleFormula": "MAX_CPU"}},
            "poolSize.autoscaleFormula = 'MAX_CPU': MAX_CPU needs $CPUPercent",
        ),
        (
            {"poolSize": {"autoscaleFormula": "$TargetDedicatedNodes = 1;" * 101}},
            "statements; the service takes 100",
        ),
        ({"poolSize": {"evaluationInterval": 60}}, "poolSize.evaluationInterval = 60: expected greater than"),
        ({"maxTasksPerNode": "core"}, "maxTasksPerNode = 'core'"),
        ({"maxTasksPerNode": 17}, "1 to 16 here, or 'cores'"),
        ({"vmSize": "Standard_M416s_v2", "maxTasksPerNode": 257}, "maxTasksPerNode = 257"),
        ({"customImage": IMAGE}, "nodeAgentSku = None: customImage needs it"),
        (
            {"customImage": IMAGE, "nodeAgentSku": "a", "image": {"publisher": "p", "offer": "o", "sku": "s"}},
            "image and customImage exclude each other",
        ),
        ({"containerRegistry": {"server": "x"}}, "containerRegistry: needs containerImage"),
        (
            {"containerImage": "i", "containerRegistry": {"username": "u", "password": "p", "identity": IDENTITY}},
            "identity takes the place of username and password",
        ),
        ({"subnetId": "subnet"}, "subnetId = 'subnet': expected a resource id as /subscriptions/"),
        ({"identities": ["me"]}, "identities.0 = 'me': expected a resource id"),
        ({"pythonPackages": {"git": ["user/repository"]}}, "'git+https://github.com/user/repository'"),
        ({"pythonPackages": {"wheels": ["a.tar.gz"]}}, "end with .whl"),
        ({"environment": {"python": 3.12}}, "environment.python = 3.12: expected a text"),
        ({"environment": {"mode": "atuo"}}, "did you mean 'auto'"),
        ({"resourceFiles": [{}]}, "give one of httpUrl, storageContainerUrl and autoStorageContainerName"),
        ({"resourceFiles": [{"httpUrl": "https://x/y"}]}, "httpUrl needs filePath"),
        ({"resourceFiles": [{"httpUrl": "file:///x", "filePath": "x"}]}, "resourceFiles.0.httpUrl = 'file:///x'"),
        (
            {"mounts": [{"kind": "azure_files", "account": "abc", "source": "s", "path": "p", "sas": "x"}]},
            "takes exactly one of key",
        ),
        ({"mounts": [{"kind": "blob_container", "account": "abc", "source": "s", "path": "p"}]}, "key, sas, identity"),
        (
            {"mounts": [{"kind": "azure_files", "account": "abc", "source": "s", "path": "../p", "key": "x"}]},
            "mounts.0.path = '../p'",
        ),
        ({"metadata": {"n": 1}}, "metadata.n = 1: expected a text"),
        ({"jobLease": 1e300}, "jobLease = 1e+300"),
        ({"keepBlobs": "on_eror"}, "'always' or 'never'; did you mean 'on_error'"),
        ({"keepDays": 0}, "keepDays = 0: expected greater than 0"),
        ({"nodeCache": -1}, "nodeCache = -1: expected greater than 0"),
        ({"workersPerNode": 0}, "workersPerNode = 0: expected greater than or equal to 1"),
        ({"workersPerNode": 257}, "workersPerNode = 257: expected less than or equal to 256"),
        ({"workersPerNode": "cores"}, "workersPerNode = 'cores': expected a valid integer"),
        ({"maxCallsPerWorker": 0}, "maxCallsPerWorker = 0: expected greater than or equal to 1"),
        ({"warmRunners": 3}, "warmRunners = 3"),
        ({"python_packges": {}}, "did you mean 'python_packages'"),
        ({"somethingElse": 1}, "known are name, vmSize, cores"),
        ({"resourceFiles": [None], "resource_files": []}, "resourceFiles.0 = None: expected an object"),
        (
            {"resourceFiles": [], "resource_files": []},
            "resource_files: this setting is there twice, also as 'resourceFiles'",
        ),
        (
            {"poolSize": {"spotNodes": {"max": 1}, "lowPriorityNodes": {"max": 1}}},
            "lowPriorityNodes: this setting is there",
        ),
        ({"vm_size": "Standard_F2"}, "there twice, also as 'vmSize'"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(**changes)
    assert said in str(caught.value)


def test_all_errors_come_at_once_each_with_its_path() -> None:
    with pytest.raises(ConfigurationError) as caught:
        ClusterConfig.read(
            {
                "vmSize": "Standard_D4s_v55",
                "maxTasksPerNode": 0,
                "poolSize": {"spotNodes": {"min": 2, "max": 1}, "deallocation": "never"},
                "resourceFiles": [{"autoStorageContainerName": "ok"}, {"fileMode": "rwx"}],
                "rPackages": {"cran": ["xml2"]},
                "retrys": 3,
            },
            "cluster.json",
        )
    lines = str(caught.value).splitlines()
    assert lines[0] == "cluster.json is not usable:"
    assert {line.split(":")[0].split(" = ")[0].strip() for line in lines[1:]} == {
        "name",
        "vmSize",
        "maxTasksPerNode",
        "poolSize.spotNodes.max",
        "poolSize.deallocation",
        "resourceFiles.1.fileMode",
        "resourceFiles.1.autoStorageContainerName",
        "rPackages",
        "retrys",
    }


def test_a_keyword_of_the_constructor_is_told_as_it_was_written() -> None:
    with pytest.raises(ConfigurationError, match=r"pool_size\.spot_nodes\.max: missing"):
        ClusterConfig(name="p", vm_size="Standard_F2", pool_size={"spot_nodes": {}})


def test_a_formula_of_the_user() -> None:
    formula = "$TargetDedicatedNodes = min(4, $PendingTasks.GetSample(1));"
    assert read(poolSize={"autoscaleFormula": formula}).pool_size.autoscale_formula == formula


def test_a_formula_that_a_fixed_pool_does_not_use_is_not_checked() -> None:
    """doAzureParallel's files name one always."""
    size = {"dedicatedNodes": {"min": 2, "max": 2}, "autoscaleFormula": "MAX_CPU"}
    assert read(poolSize=size).fixed


def test_one_command_may_stand_without_a_list() -> None:
    assert read(commandLine="apt-get update").command_line == ("apt-get update",)


# doAzureParallel ---------------------------------------------------------------------------------------------


def load(name: str) -> Any:
    return json.loads((DATA / name).read_text())


@pytest.mark.parametrize("name", sorted(path.name for path in DATA.glob("cluster_*.json")))
def test_its_cluster_files_are_read_unchanged(name: str) -> None:
    written = load(name)
    written = {**written, **written.get("pool", {})}
    config = ClusterConfig.load(DATA / name)
    size = config.pool_size
    assert (config.name, config.vm_size, config.max_tasks_per_node) == (
        written["name"],
        written["vmSize"],
        written["maxTasksPerNode"],
    )
    assert size.dedicated_nodes.model_dump() == written["poolSize"]["dedicatedNodes"]
    assert size.spot_nodes.model_dump() == written["poolSize"]["lowPriorityNodes"]
    assert size.autoscale_formula == "QUEUE"
    assert list(config.command_line) == written["commandLine"]
    assert config.subnet_id is None


def test_its_documented_cluster_is_read_but_for_r_packages() -> None:
    with pytest.raises(ConfigurationError) as caught:
        ClusterConfig.load(DATA / "cluster.json")
    text = str(caught.value)
    assert text.splitlines()[1].strip().startswith("rPackages: nodes run Python here")
    assert '"git": ["git+https://github.com/user/repository"]' in text
    assert len(text.splitlines()) == 2
    written = load("cluster.json")
    del written["rPackages"]
    config = ClusterConfig.read(written, "test")
    assert (config.nodes, config.fixed, config.cores) == (12, False, 2)


def test_an_image_for_r_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "joblib_azure"):
        ClusterConfig.load(DATA / "cluster_customize.json")
    assert "'rocker/tidyverse:3.4.1' is an image for R" in caplog.text


def test_its_shared_key_is_read_unchanged() -> None:
    config = AccountConfig.load(DATA / "credentials_shared_key.json")
    assert config.batch_account == "batchaccountname"
    assert config.batch_endpoint == "https://batchaccountname.region.batch.azure.com"
    assert config.batch_key is not None
    assert config.batch_key.get_secret_value() == "batchaccountkey"
    assert config.storage_key is not None
    assert config.storage_key.get_secret_value() == "storageaccountkey"
    assert config.storage_endpoint == "https://storageaccountname.blob.core.windows.net"
    assert (config.github_token, config.docker_authentication, config.service_principal) == (None, None, None)
    older = AccountConfig.load(DATA / "credentials_before_0_6.json")
    assert older == config


def test_its_service_principal_is_read_unchanged() -> None:
    config = AccountConfig.load(DATA / "credentials_service_principal.json")
    principal, docker = config.service_principal, config.docker_authentication
    assert principal is not None
    assert (principal.tenant_id, principal.client_id) == (
        "72f988bf-0000-0000-0000-2d7cd011db47",
        "a1b2c3d4-0000-0000-0000-000000000001",
    )
    assert principal.credential.get_secret_value() == "clientsecretvalue"
    assert (
        config.batch_resource_id
        == load("credentials_service_principal.json")["servicePrincipal"]["batchAccountResourceId"]
    )
    # Its endpoint is not in the file: it has to be looked up by the id.
    assert (config.batch_account, config.batch_endpoint, config.batch_key) == ("doazpbatch", None, None)
    assert config.storage_endpoint == "https://doazpstorage.blob.core.windows.net"
    assert docker is not None
    assert docker.password is not None
    assert (docker.server, docker.username, docker.password.get_secret_value()) == (
        "myregistry.azurecr.io",
        "dockeruser",
        "dockerpassword",
    )
    assert config.github_token is not None
    assert config.github_token.get_secret_value() == "githubtokenvalue"


def test_its_national_clouds() -> None:
    assert AccountConfig.load(DATA / "credentials_national_cloud.json").cloud == "usgov"
    written = load("credentials_service_principal.json")
    written["servicePrincipal"]["storageEndpointSuffix"] = "core.chinacloudapi.cn"
    assert AccountConfig.read(written, "test").cloud == "china"


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        (
            "batchAccount",
            "url",
            "batch_account_url",
            "sharedKey.batchAccount.url = 'batch_account_url': still the placeh",
        ),
        ("batchAccount", "key", "", "sharedKey.batchAccount.key: expected a text"),
        (
            "storageAccount",
            "name",
            "storage_account_name",
            "sharedKey.storageAccount.name = 'storage_account_name': still",
        ),
        ("storageAccount", "endpointSuffix", "core.cloudapi.de", "sharedKey.storageAccount.endpointSuffix"),
        ("storageAccount", "nme", "x", "sharedKey.storageAccount.nme: there is no such setting"),
    ],
)
def test_what_is_wrong_in_its_shape_is_told_by_its_keys(part: str, key: str, value: str, said: str) -> None:
    written = load("credentials_shared_key.json")
    written["sharedKey"][part][key] = value
    with pytest.raises(ConfigurationError) as caught:
        AccountConfig.read(written, "test")
    assert str(caught.value).startswith(f"test is not usable:\n  {said}")


def test_its_templates_are_told_to_be_filled_in() -> None:
    written = load("credentials_service_principal.json")
    written["servicePrincipal"].update(credential="<AAD App Password>", batchAccountResourceId="batchAccountResourceId")
    with pytest.raises(ConfigurationError) as caught:
        AccountConfig.read(written, "test")
    text = str(caught.value)
    assert "servicePrincipal.credential: still the placeholder" in text
    assert "servicePrincipal.batchAccountResourceId = 'batchAccountResourceId': still the placeholder" in text
