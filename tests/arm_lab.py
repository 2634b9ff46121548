"""Azure Resource Manager on loopback: takes what the REST reference documents, and nothing else.

https://learn.microsoft.com/rest/api/batchmanagement/pool/create and
https://learn.microsoft.com/rest/api/batchmanagement/batch-account/create,
https://learn.microsoft.com/rest/api/storagerp/storage-accounts/create,
https://learn.microsoft.com/rest/api/resources/resource-groups/create-or-update
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cluster_lab import account_of, config_of
from entra_lab import JsonHandler, TlsServer

from joblib_azure.cluster import Cluster
from joblib_azure.emulator import BatchEmulator
from joblib_azure.service import ImageSpec, PoolSpec

SUBSCRIPTION = "00000000-0000-0000-0000-000000000001"
GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/lab"
ACCOUNT_ID = f"{GROUP}/providers/Microsoft.Batch/batchAccounts/emulated"

_TEXT, _NUMBER, _FLAG = (str,), (int,), (bool,)
_REFERENCE = {"resourceId": _TEXT}
_SETTINGS = [{"name!": _TEXT, "value": _TEXT}]
#: The documented body of a pool: a name with "!" is required, "*" stands for any name, a list for items.
POOL = {
    "identity": {"type!": ("UserAssigned",), "userAssignedIdentities": {"*": {}}},
    "properties!": {
        "vmSize!": _TEXT,
        "taskSlotsPerNode": _NUMBER,
        "displayName": _TEXT,
        "metadata": [{"name!": _TEXT, "value!": _TEXT}],
        "taskSchedulingPolicy": {"nodeFillType!": ("Spread", "Pack")},
        "networkConfiguration": {"subnetId": _TEXT},
        "scaleSettings!": {
            "fixedScale": {
                "targetDedicatedNodes": _NUMBER,
                "targetLowPriorityNodes": _NUMBER,
                "resizeTimeout": _TEXT,
            },
            "autoScale": {"formula!": _TEXT, "evaluationInterval": _TEXT},
        },
        "deploymentConfiguration!": {
            "virtualMachineConfiguration!": {
                "imageReference!": {"id": _TEXT, "publisher": _TEXT, "offer": _TEXT, "sku": _TEXT, "version": _TEXT},
                "nodeAgentSkuId!": _TEXT,
                "containerConfiguration": {
                    "type!": ("DockerCompatible",),
                    "containerImageNames": [_TEXT],
                    "containerRegistries": [
                        {
                            "registryServer": _TEXT,
                            "username": _TEXT,
                            "password": _TEXT,
                            "identityReference": _REFERENCE,
                        }
                    ],
                },
            }
        },
        "startTask": {
            "commandLine!": _TEXT,
            "resourceFiles": [
                {
                    "httpUrl": _TEXT,
                    "storageContainerUrl": _TEXT,
                    "autoStorageContainerName": _TEXT,
                    "filePath": _TEXT,
                    "blobPrefix": _TEXT,
                    "fileMode": _TEXT,
                    "identityReference": _REFERENCE,
                }
            ],
            "environmentSettings": _SETTINGS,
            "userIdentity": {"autoUser": {"scope": ("Pool",), "elevationLevel": ("Admin",)}},
            "maxTaskRetryCount": _NUMBER,
            "waitForSuccess": _FLAG,
        },
        "mountConfiguration": [
            {
                "azureBlobFileSystemConfiguration": {
                    "accountName!": _TEXT,
                    "containerName!": _TEXT,
                    "relativeMountPath!": _TEXT,
                    "accountKey": _TEXT,
                    "sasKey": _TEXT,
                    "blobfuseOptions": _TEXT,
                    "identityReference": _REFERENCE,
                },
                "azureFileShareConfiguration": {
                    "accountName!": _TEXT,
                    "accountKey!": _TEXT,
                    "azureFileUrl!": _TEXT,
                    "relativeMountPath!": _TEXT,
                    "mountOptions": _TEXT,
                },
            }
        ],
    },
}
STORAGE = {
    "location!": _TEXT,
    "kind!": ("StorageV2",),
    "sku!": {"name!": ("Standard_LRS",)},
    "tags": {"*": _TEXT},
    "properties": {
        "minimumTlsVersion": ("TLS1_2",),
        "supportsHttpsTrafficOnly": _FLAG,
        "allowBlobPublicAccess": _FLAG,
    },
}
BATCH = {
    "location!": _TEXT,
    "tags": {"*": _TEXT},
    "properties": {
        "autoStorage": {"storageAccountId!": _TEXT},
        "poolAllocationMode": ("BatchService", "UserSubscription"),
        "allowedAuthenticationModes": [("SharedKey", "AAD", "TaskAuthenticationToken")],
    },
}
RESOURCE_GROUP = {"location!": _TEXT, "tags": {"*": _TEXT}}


def problems(value: Any, shape: Any, where: str = "body") -> list[str]:
    """What of a body the reference does not document."""
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{where}: no list"]
        return [each for i, item in enumerate(value) for each in problems(item, shape[0], f"{where}[{i}]")]
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{where}: no object"]
        known = {name.rstrip("!"): (name, inner) for name, inner in shape.items()}
        found = [
            f"{where}.{name}: missing" for name, (full, _) in known.items() if full.endswith("!") and name not in value
        ]
        for name, inner in value.items():
            if name in known or "*" in known:
                found += problems(inner, known.get(name, known.get("*"))[1], f"{where}.{name}")  # type: ignore[index]
            else:
                found.append(f"{where}.{name}: not documented")
        return found
    if any(isinstance(each, type) for each in shape):
        right = isinstance(value, shape) and (bool in shape or not isinstance(value, bool))
        return [] if right else [f"{where}: {value!r}"]
    return [] if value in shape else [f"{where}: {value!r} is none of {shape}"]


class Manager(TlsServer):
    """Resource Manager as the reference describes it, with the Batch account of an emulator in it."""

    def __init__(self, certificate: Path, key: Path, emulator: BatchEmulator) -> None:
        self.pools: dict[str, Any] = {}
        self.resources: dict[str, Any] = {}
        self.quotas: dict[str, Any] = {}
        self.groups: dict[str, Any] = {}
        self.requests: list[str] = []
        self.forbidden = False
        manager = self

        class Handler(JsonHandler):
            def handle_any(self) -> None:
                body = self.body()
                url = urlsplit(self.path)
                manager.requests.append(f"{self.command} {url.path}")
                if "api-version" not in parse_qs(url.query):
                    return self._refuse(
                        400, "MissingApiVersionParameter", "The api-version query parameter is required."
                    )
                claims = self.headers.get("Authorization", "").removeprefix("Bearer ").split(".")
                if (
                    len(claims) != 3
                    or json.loads(base64.urlsafe_b64decode(claims[1] + "=="))["aud"] != manager.endpoint
                ):
                    return self._refuse(401, "InvalidAuthenticationToken", "The access token is invalid.")
                if manager.forbidden:
                    return self._refuse(403, "AuthorizationFailed", "The client does not have authorization.")
                return self._route(url.path, json.loads(body) if body else None)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

            def _refuse(self, status: int, code: str, text: str) -> None:
                self.answer(status, {"error": {"code": code, "message": text}})

            def _route(self, path: str, body: Any) -> None:
                if found := re.fullmatch(rf"{re.escape(ACCOUNT_ID)}/pools/([^/]+)", path):
                    return self._pool(found[1], body)
                if path == ACCOUNT_ID and self.command == "GET" and ACCOUNT_ID not in manager.resources:
                    host = emulator.endpoint.removeprefix("https://")
                    return self.answer(
                        200, {"id": ACCOUNT_ID, "properties": {"accountEndpoint": host, **manager.quotas}}
                    )
                if found := re.fullmatch(r"/subscriptions/[^/]+/resource[gG]roups/([^/]+)", path):
                    return self._group(found[1], body)
                if path.endswith("/resources"):
                    group = path.rpartition("/")[0].lower()
                    there = [each for each in manager.resources.values() if each["id"].lower().startswith(group)]
                    return self.answer(200, {"value": there})
                if path.endswith(("/listKeys", "/listkeys")):
                    keys = {"keys": [{"keyName": "key1", "value": "c3RvcmFnZS1rZXk="}], "primary": "YmF0Y2gta2V5"}
                    return self.answer(200, keys)
                return self._account(path, body)

            def _pool(self, name: str, body: Any) -> None:
                if self.command != "PUT":
                    return self._refuse(405, "MethodNotAllowed", self.command)
                if self.headers.get("If-None-Match") == "*" and name in manager.pools:
                    return self._refuse(412, "PreconditionFailed", "A pool of that name exists.")
                if wrong := problems(body, POOL):
                    return self._refuse(400, "InvalidRequestBody", "; ".join(wrong))
                manager.pools[name] = body
                _make(emulator, name, body)
                return self.answer(200, {"id": self.path, "name": name, **body}, ETag='"1"')

            def _group(self, name: str, body: Any) -> None:
                if self.command == "HEAD":
                    return self.answer(204 if name in manager.groups else 404, None)
                if self.command == "PUT":
                    if wrong := problems(body, RESOURCE_GROUP):
                        return self._refuse(400, "InvalidRequestContent", "; ".join(wrong))
                    manager.groups[name] = {"id": self.path, "name": name, **body}
                if self.command == "DELETE":
                    del manager.groups[name]
                    return self.answer(200, None)
                return self.answer(200, manager.groups[name])

            def _account(self, path: str, body: Any) -> None:
                storage = "/Microsoft.Storage/" in path
                if self.command == "PUT":
                    if wrong := problems(body, STORAGE if storage else BATCH):
                        return self._refuse(400, "InvalidRequestContent", "; ".join(wrong))
                    name = path.rpartition("/")[2]
                    made = {"primaryEndpoints": {"blob": f"https://{name}.blob.core.windows.net/"}}
                    if not storage:
                        made = {"accountEndpoint": f"{name}.westeurope.batch.azure.com"}  # type: ignore[dict-item]
                    properties = {**body["properties"], **made, "provisioningState": "Succeeded"}
                    manager.resources[path] = {**body, "id": path, "name": name, "properties": properties}
                elif self.command == "DELETE":
                    return self.answer(200 if manager.resources.pop(path, None) else 204, None)
                elif path not in manager.resources:
                    return self._refuse(404, "ResourceNotFound", "The resource was not found.")
                return self.answer(200, manager.resources[path])

        super().__init__(Handler, certificate, key)


def _make(emulator: BatchEmulator, name: str, body: dict[str, Any]) -> None:
    """What Resource Manager creates is in the Batch account; here without what the emulator does not know."""
    properties = body["properties"]
    cluster = Cluster(config_of(name=name), account_of(emulator))
    image = ImageSpec(publisher="canonical", offer="ubuntu-24_04-lts", sku="server")
    cluster.batch.create_pool(
        PoolSpec(
            id=name,
            vm_size=properties["vmSize"],
            task_slots_per_node=properties["taskSlotsPerNode"],
            image=image,
            node_agent_sku="batch.node.ubuntu 24.04",
            dedicated_nodes=properties["scaleSettings"].get("fixedScale", {}).get("targetDedicatedNodes", 0),
        )
    )
    cluster.close()
