"""A cluster and an account that set every key there is, to something else than its default."""

from __future__ import annotations

from typing import Any

SUBSCRIPTION = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/group/providers"
IDENTITY = f"{SUBSCRIPTION}/Microsoft.ManagedIdentity/userAssignedIdentities/me"
IMAGE = f"{SUBSCRIPTION}/Microsoft.Compute/galleries/g/images/i/versions/1.0.0"
SUBNET = f"{SUBSCRIPTION}/Microsoft.Network/virtualNetworks/v/subnets/s"

MINIMAL: dict[str, Any] = {"name": "pool", "vmSize": "Standard_D4s_v5"}

CLUSTER: dict[str, Any] = {
    "name": "every-key",
    "vmSize": "Standard_E16-8s_v5",
    "cores": 6,
    "maxTasksPerNode": 3,
    "workersPerNode": 24,
    "nodes": 9,
    "poolSize": {
        "dedicatedNodes": {"min": 1, "max": 4},
        "spotNodes": {"min": 2, "max": 5},
        "autoscaleFormula": "WORKDAY",
        "evaluationInterval": 600,
        "idleShutdown": 60,
        "spotFallback": True,
        "deallocation": "requeue",
    },
    "image": {"publisher": "microsoft-dsvm", "offer": "ubuntu-hpc", "sku": "2204", "version": "22.04.1"},
    "nodeAgentSku": "batch.node.ubuntu 22.04",
    "containerImage": "registry.example/image:1",
    "containerRegistry": {"server": "registry.example", "username": "user", "password": "canary-registry"},
    "python": "/opt/python/bin/python3.12",
    "pythonPackages": {
        "pypi": ["lightgbm>=4"],
        "git": ["git+https://user:canary-git@example.com/repository.git@v1"],
        "wheels": ["https://example.com/a-1.0-py3-none-any.whl"],
        "editable": ["/home/me/project"],
        "conda": ["pytables"],
        "indexUrl": "https://user:canary-index@example.com/simple",
        "extraIndexUrls": ["https://user:canary-extra@example.com/simple"],
    },
    "prices": {"currency": "EUR", "dedicated": 1.25, "spot": 0.25},
    "environment": {"mode": "none", "offline": True, "python": "3.12", "exclude": ["notebook"]},
    "commandLine": ["mount -o username=me,password=canary-command //host/share /mnt", "apt-get update"],
    "resourceFiles": [
        {"httpUrl": "https://example.com/f?sv=1&sig=canary-signature", "filePath": "f", "fileMode": "0755"},
        {"storageContainerUrl": "https://s.blob.core.windows.net/c", "blobPrefix": "p/", "identity": IDENTITY},
        {"autoStorageContainerName": "data"},
    ],
    "subnetId": SUBNET,
    "identities": [IDENTITY],
    "mounts": [
        {"kind": "azure_files", "account": "store", "source": "share", "path": "files", "key": "canary-mount-key"},
        {"kind": "blob_container", "account": "store", "source": "c", "path": "blobs", "sas": "canary-mount-sas"},
        {
            "kind": "blob_container",
            "account": "store",
            "source": "c",
            "path": "more",
            "identity": IDENTITY,
            "options": "-o allow_other",
        },
    ],
    "metadata": {"team": "analysis"},
    "pythonPath": ["/shared/lib"],
    "nodeTimeout": 1200.0,
    "jobLease": 7200.0,
    "idleTimeout": 300.0,
    "keepBlobs": "always",
    "keepDays": 30.0,
    "nodeCache": 12.5,
    "maxCallsPerWorker": 500,
    "warmRunners": False,
    "retries": 4,
    "serviceTimeout": 45.0,
}
#: Keys that exclude one of those above.
CLUSTER_CUSTOM_IMAGE = {**MINIMAL, "customImage": IMAGE, "nodeAgentSku": "batch.node.ubuntu 24.04"}
CLUSTER_REGISTRY_IDENTITY = {
    **MINIMAL,
    "containerImage": "r.azurecr.io/i:1",
    "containerRegistry": {"server": "r.azurecr.io", "identity": IDENTITY},
}

ACCOUNT: dict[str, Any] = {
    "batchResourceId": f"{SUBSCRIPTION}/Microsoft.Batch/batchAccounts/batch",
    "storageResourceId": f"{SUBSCRIPTION}/Microsoft.Storage/storageAccounts/store",
    "batchAccount": "batch",
    "batchEndpoint": "https://batch.chinaeast2.batch.chinacloudapi.cn",
    "batchKey": "canary-batch",
    "storageAccount": "store",
    "storageKey": "canary-storage",
    "cloud": "china",
    "storageEndpoint": "https://store.blob.core.chinacloudapi.cn",
    "servicePrincipal": {"tenantId": "tenant", "clientId": "client", "credential": "canary-principal"},
    "dockerAuthentication": {"server": "docker.example", "username": "user", "password": "canary-docker"},
    "githubToken": "canary-github",
}


def canaries(value: Any) -> set[str]:
    """Return the secrets of an example, by the word that they begin with."""
    if isinstance(value, dict):
        return set().union(*map(canaries, value.values())) if value else set()
    if isinstance(value, list):
        return set().union(*map(canaries, value)) if value else set()
    start = str(value).find("canary-")
    if start < 0:
        return set()
    found = str(value)[start:]
    return {found[: next((i for i, char in enumerate(found) if not (char.isalpha() or char == "-")), len(found))]}
