"""doAzureParallel's two files, read as they are.

https://github.com/Azure/doAzureParallel/blob/master/docs/01-getting-started.md shows them; its
``generateCredentialsConfig`` and ``generateClusterConfig`` write what is not set as ``""``, ``[]`` or ``{}``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from .values import blank_is_none

logger = logging.getLogger(__name__)

R_PACKAGES = (
    "nodes run Python here, and R packages have no use there. Remove rPackages; Python packages that the client has "
    "reach the nodes by themselves, and others go into pythonPackages: "
    '{"pypi": ["scikit-learn"], "git": ["git+https://github.com/user/repository"]}'
)
#: Images that doAzureParallel documents or uses. They have R and no joblib.
_R_IMAGES = ("rocker/", "nuest/mro", "jrowen/dcaret")
#: What ``generateCredentialsConfig`` writes for what is still to be filled in.
PLACEHOLDERS = frozenset(
    {
        "batch_account_name",
        "batch_account_key",
        "batch_account_url",
        "storage_account_name",
        "storage_account_key",
        "batchAccountResourceId",
        "storageAccountResourceId",
    }
)


def cluster_values(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Turn a ``cluster.json`` of doAzureParallel into this package's; other values pass."""
    values.pop("$schema", None)
    # Before its release 0.3.2 the pool was an object of its own.
    if isinstance(values.get("pool"), Mapping):
        pool = values.pop("pool")
        values = {**pool, **values}
    packages = values.get("rPackages")
    if packages is None or (isinstance(packages, Mapping) and not any(packages.values())):
        values.pop("rPackages", None)
    image = values.get("containerImage")
    if isinstance(image, str) and image.lower().startswith(_R_IMAGES):
        logger.warning(
            "%s: containerImage %r is an image for R. Leave containerImage out for nodes with Python, or name an image "
            "that has Python, joblib and what your calls import",
            where,
            image,
        )
    return values


def account_values(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Turn a ``credentials.json`` of doAzureParallel, in any of its shapes, into this package's."""
    values.pop("$schema", None)
    # Before its release 0.6 the two accounts stood at the top.
    shared = values.pop("sharedKey", None)
    if shared is None and isinstance(values.get("batchAccount"), Mapping):
        shared = {key: values.pop(key) for key in ("batchAccount", "storageAccount") if key in values}
        values.pop("settings", None)
    if isinstance(shared, Mapping):
        values = {**_shared_key(shared), **values}
    elif shared is not None:
        values["sharedKey"] = shared
    principal = values.get("servicePrincipal")
    if isinstance(principal, Mapping):
        values = {**values, **_service_principal(principal)}
    for theirs, ours in (
        ("githubAuthenticationToken", "githubToken"),
        ("dockerAuthentication", "dockerAuthentication"),
    ):
        if theirs in values:
            value = values.pop(theirs)
            if isinstance(value, Mapping):
                value = {key: each for key, each in value.items() if blank_is_none(each) is not None}
            if blank_is_none(value) is not None:
                values[ours] = value
    insights = values.pop("applicationInsights", None)
    if isinstance(insights, Mapping) and any(insights.values()):
        logger.warning("%s: applicationInsights is not used", where)
    return values


#: Keys of doAzureParallel's objects, and this package's.
_ACCOUNTS = {
    "batchAccount": {"name": "batchAccount", "key": "batchKey", "url": "batchEndpoint"},
    "storageAccount": {"name": "storageAccount", "key": "storageKey", "endpointSuffix": "storageEndpointSuffix"},
}
_PRINCIPAL = {
    "batchAccountResourceId": "batchResourceId",
    "storageAccountResourceId": "storageResourceId",
    "storageEndpointSuffix": "storageEndpointSuffix",
}


def account_spelling(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys that a ``credentials.json`` of doAzureParallel was written with, by this package's."""
    found = {}
    at = "sharedKey." if isinstance(values.get("sharedKey"), Mapping) else ""
    if at or isinstance(values.get("batchAccount"), Mapping):
        for part, keys in _ACCOUNTS.items():
            found.update({ours: f"{at}{part}.{theirs}" for theirs, ours in keys.items()})
    if isinstance(principal := values.get("servicePrincipal"), Mapping):
        found.update({ours: f"servicePrincipal.{theirs}" for theirs, ours in _PRINCIPAL.items() if theirs in principal})
    return found


def _shared_key(shared: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten the two accounts of a shared key."""
    found: dict[str, Any] = {}
    for part, value in shared.items():
        if part in _ACCOUNTS and isinstance(value, Mapping):
            # What is unknown keeps its path, for the error.
            found.update({_ACCOUNTS[part].get(key, f"sharedKey.{part}.{key}"): each for key, each in value.items()})
        else:
            found[f"sharedKey.{part}"] = value
    if blank_is_none(found.get("storageEndpointSuffix")) is None:
        found.pop("storageEndpointSuffix", None)
    for key in ("batchKey", "storageKey"):
        # Elsewhere no key means Entra. Who writes sharedKey means a key, and False is none.
        if blank_is_none(found.get(key)) is None:
            found[key] = False
    return found


def _service_principal(principal: Mapping[str, Any]) -> dict[str, Any]:
    """Lift what belongs to the accounts out of the service principal."""
    rest, found = dict(principal), dict[str, Any]()
    for theirs, ours in _PRINCIPAL.items():
        if blank_is_none(value := rest.pop(theirs, None)) is not None:
            found[ours] = value
    return {**found, "servicePrincipal": rest}
