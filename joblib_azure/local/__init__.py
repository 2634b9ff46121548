"""The local cluster: the Batch emulator and Azurite on this machine, behind the same `Cluster` as a pool on Azure."""

from __future__ import annotations

from .cluster import LocalCluster

__all__ = ["LocalCluster"]
