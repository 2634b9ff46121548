"""The backends that the benchmarks compare: each with two workers, active for joblib, and ended with its block.

::

    with PEERS["dask"]() as started:
        Parallel()(…)
        started.cost()
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from _common import AccessLogs, settle
from joblib import parallel_config

if TYPE_CHECKING:
    from joblib_azure import LocalCluster

WORKERS = 2
Figures = dict[str, float]


def _nothing() -> Figures:
    return {}


@dataclass(frozen=True, kw_only=True)
class Started:
    """A peer that is up.

    Attributes
    ----------
    cost : callable
        Waits until nothing of the last call is under way and returns what the calls so far cost, as growing counts.
    cluster : LocalCluster or None
        Of the peer azure only.
    """

    cost: Callable[[], Figures] = _nothing
    cluster: LocalCluster | None = None


@contextlib.contextmanager
def _loky() -> Iterator[Started]:
    from joblib.externals.loky import get_reusable_executor

    with parallel_config("loky", n_jobs=WORKERS):
        yield Started()
    get_reusable_executor().shutdown(wait=True, kill_workers=True)


@contextlib.contextmanager
def _azure() -> Iterator[Started]:
    from joblib_azure import LocalCluster
    from joblib_azure.registry import session_for

    with LocalCluster(nodes=WORKERS, cores_per_node=1) as cluster:
        cluster.wait_for_node()
        logs = AccessLogs(cluster.host)

        def cost() -> Figures:
            session = session_for(cluster)
            settle(session)
            return {"tasks": session.work.tasks_added, "requests": logs.counts().total()}

        with parallel_config("azure", cluster=cluster, n_jobs=WORKERS):
            yield Started(cost=cost, cluster=cluster)


@contextlib.contextmanager
def _dask() -> Iterator[Started]:
    import dask
    from distributed import Client, LocalCluster

    with (
        tempfile.TemporaryDirectory(prefix="dask-") as folder,
        dask.config.set({"temporary-directory": folder}),
        LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster),
        parallel_config("dask", n_jobs=WORKERS),
    ):
        yield Started()


@contextlib.contextmanager
def _ray() -> Iterator[Started]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it would ask the network
    import ray
    from ray.util.joblib import register_ray

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        ray.init(num_cpus=WORKERS, _temp_dir=folder, **quiet)
        try:
            register_ray()
            with parallel_config("ray", n_jobs=WORKERS):
                yield Started()
        finally:
            ray.shutdown()


#: The first is the base.
PEERS: dict[str, Callable[[], AbstractContextManager[Started]]] = {
    "loky": _loky,
    "azure": _azure,
    "dask": _dask,
    "ray": _ray,
}
BASE = next(iter(PEERS))
#: What a peer needs that this package does not bring, by import name.
_NEEDS = {"dask": "distributed", "ray": "ray"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--peers`` and ``--pairs``."""
    parser.add_argument("--peers", default=",".join(PEERS), help=f"some of {','.join(PEERS)}")
    parser.add_argument("--pairs", type=int, default=3)


def known(parser: argparse.ArgumentParser, names: str, there_are: Collection[str]) -> list[str]:
    """Return the names of a comma-separated option; the parser ends the program where one is unknown."""
    found = names.split(",")
    if unknown := set(found) - set(there_are):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(there_are)}")
    return found


def installed(peers: list[str]) -> list[str]:
    """Return the peers that are installed, and say which are not."""
    lacking = [peer for peer in peers if peer in _NEEDS and importlib.util.find_spec(_NEEDS[peer]) is None]
    if lacking:
        print(f"left out, since not installed: {', '.join(lacking)}; pip install '.[bench]' brings them\n")
    return [peer for peer in peers if peer not in lacking]
