"""Nested loops: the outer one over the nodes, the inner one over the cores of each node."""

from __future__ import annotations

import os

from joblib import Parallel, delayed, parallel_config

from joblib_azure import LocalCluster


def inner(fold: int, i: int) -> float:
    return sum((fold + i + k) ** 0.5 for k in range(200_000))


def outer(fold: int) -> tuple[str, float]:
    values = Parallel(n_jobs=-1)(delayed(inner)(fold, i) for i in range(20))
    return os.environ["AZ_BATCH_NODE_ID"], sum(values)


if __name__ == "__main__":
    with LocalCluster(nodes=2) as cluster, parallel_config("azure", cluster=cluster):
        for node, total in Parallel()(delayed(outer)(fold) for fold in range(6)):
            print(f"{node[:14]}…  {total:.3f}")
