"""Clusters: a pool plus what is needed to use it, from creation to deletion.

::

    ClusterConfig, AccountConfig ─► core.Cluster ─► lifecycle: create, reuse, resize, delete ─┐
                                       │   │   └──► waiting: nodes, one by one, or why not    ├─► service
                                       │   └──────► demand ─► floor: nodes at once            │
                                       └──────────► view: status, nodes, files ───────────────┘
                                    spec, images: what a pool is made of, and how one that is there differs
"""

from __future__ import annotations

from .core import Cluster
from .floor import Floor
from .spec import Difference
from .view import ClusterStatus
from .waiting import Progress, Waiting, ready_and_starting

__all__ = ["Cluster", "ClusterStatus", "Difference", "Floor", "Progress", "Waiting", "ready_and_starting"]
