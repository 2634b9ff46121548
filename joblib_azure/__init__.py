"""joblib on Azure Batch.

``import joblib_azure`` registers the backend ``"azure"``::

    from joblib import Parallel, delayed, parallel_config
    import joblib_azure

    with parallel_config("azure", cluster="local"):
        Parallel()(delayed(pow)(i, 2) for i in range(100))

The import is light: azure-batch and the rest are loaded when the backend is first used.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backend import AzureBackend
    from .cluster import Cluster
    from .config import AccountConfig, ClusterConfig
    from .errors import JoblibAzureError
    from .jobs import Job, OutputFile, submit
    from .local import LocalCluster

__version__ = "0.1.0"
__all__ = [
    "AccountConfig",
    "AzureBackend",
    "Cluster",
    "ClusterConfig",
    "Job",
    "JoblibAzureError",
    "LocalCluster",
    "OutputFile",
    "__version__",
    "submit",
]

_HOMES = {
    "AccountConfig": "config",
    "Cluster": "cluster",
    "AzureBackend": "backend",
    "ClusterConfig": "config",
    "Job": "jobs",
    "JoblibAzureError": "errors",
    "LocalCluster": "local",
    "OutputFile": "jobs",
    "submit": "jobs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def _backend(**params: Any) -> Any:
    from .backend import AzureBackend

    return AzureBackend(**params)


# On a node the name means the cores that the call has; `node.chunk` registers that. The task's own process
# imports this package too and does without joblib, whose import would cost it more than all the rest.
if "JOBLIB_AZURE_NODE" not in os.environ:
    from joblib import register_parallel_backend

    register_parallel_backend("azure", _backend)
