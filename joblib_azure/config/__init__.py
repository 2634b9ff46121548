"""What a user may set: the cluster and the account, from keywords, the environment and files.

A configuration is a frozen value. Every error of it is told at once, before anything is created, with the
key, the value, what is allowed and the nearest valid name. Secrets are masked wherever it is shown.

::

    file ─► reading ─► doazureparallel (its shapes into ours) ─┐
    environment, keywords ─────────────────────────► resolve ──┴─► models (cluster, account, parts) ─► a frozen value
                                                                       └─ errors ─► explain ─► ConfigurationError
"""

from __future__ import annotations

from .account import AccountConfig, ServicePrincipal
from .clouds import CLOUDS, Cloud
from .cluster import MAX_SLOTS, SLOTS_PER_CORE, ClusterConfig
from .parts import (
    Bounds,
    ContainerRegistry,
    EnvironmentConfig,
    Image,
    Mount,
    NodePriceConfig,
    PoolSize,
    PythonPackages,
    ResourceFile,
)

__all__ = [
    "CLOUDS",
    "MAX_SLOTS",
    "SLOTS_PER_CORE",
    "AccountConfig",
    "Bounds",
    "Cloud",
    "ClusterConfig",
    "ContainerRegistry",
    "EnvironmentConfig",
    "Image",
    "Mount",
    "NodePriceConfig",
    "PoolSize",
    "PythonPackages",
    "ResourceFile",
    "ServicePrincipal",
]
