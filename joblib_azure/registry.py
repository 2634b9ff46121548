"""Clusters by what the user wrote, and the one session of each.

Leaving ``parallel_config`` calls nothing, so sessions cannot live in it: they live here, end by idleness or
at the interpreter's exit, and a child process that was forked forgets them without ending its parent's.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from pathlib import Path

from .cluster import Cluster
from .config import AccountConfig, ClusterConfig
from .errors import ConfigurationError
from .session import Session

_lock = threading.RLock()
_clusters: dict[tuple[ClusterConfig, AccountConfig], Cluster] = {}
_sessions: dict[int, Session] = {}
#: All that are alive: one that has ended may still hold results for whoever consumes them.
_opened: weakref.WeakSet[Session] = weakref.WeakSet()
_local: list[Cluster] = []
_exit_hook: list[object] = []


def resolve_cluster(cluster: str | os.PathLike[str] | ClusterConfig | Cluster | None) -> Cluster:
    """Return the cluster that the user means; the same object for the same configuration.

    Raises
    ------
    ConfigurationError
    """
    if isinstance(cluster, Cluster):
        return cluster
    if cluster is None:
        cluster = os.environ.get("JOBLIB_AZURE_CLUSTER")
        if not cluster:
            raise ConfigurationError(
                'no cluster is named: write parallel_config("azure", cluster="local") to run on this machine, '
                'cluster="cluster.json" for a pool on Azure, or set JOBLIB_AZURE_CLUSTER'
            )
    beside = None
    with _lock:
        if cluster == "local":
            return _default_local()
        if isinstance(cluster, str | os.PathLike):
            beside = cluster
            if not Path(cluster).exists():
                raise ConfigurationError(
                    f'cluster={os.fspath(cluster)!r} is neither "local" nor a file; write the path of a JSON file with '
                    "name, vmSize, nodes and maxTasksPerNode, or a ClusterConfig"
                )
            cluster = ClusterConfig.load(cluster)
        if not isinstance(cluster, ClusterConfig):
            raise ConfigurationError(
                f"cluster={cluster!r} is a {type(cluster).__name__}; "
                'expected "local", a path, a ClusterConfig or a Cluster'
            )
        account = AccountConfig.from_environment(beside=beside)
        return _clusters.setdefault((cluster, account), Cluster(cluster, account))


def _default_local() -> Cluster:
    """Return this process's local cluster; it starts when it is first used and ends with the process."""
    from .local import LocalCluster

    if not _local:
        _local.append(LocalCluster())
    return _local[0]


def session_for(cluster: Cluster) -> Session:
    """Return the open session of a cluster, opening one where there is none.

    Raises
    ------
    ClusterError, ServiceError
    """
    with _lock:
        session = _sessions.get(id(cluster))
        if session is None or session.closed:
            session = Session(cluster)
            session.open()
            cluster.on_close(close_sessions)
            _sessions[id(cluster)] = session
            _opened.add(session)
            if not _exit_hook:
                # Registered this late, it runs before the hooks that end a local cluster's servers.
                _exit_hook.append(atexit.register(_close_all))
        return session


def close_sessions(cluster: Cluster | None = None) -> None:
    """End the session of a cluster, or all of them: their jobs end on the service."""
    with _lock:
        ending = [s for s in _sessions.values() if cluster is None or s.cluster is cluster]
        for session in ending:
            _sessions.pop(id(session.cluster), None)
        ending += [s for s in _opened if s.closed and (cluster is None or s.cluster is cluster)]
    for session in ending:
        session.close()
        session.release()


def _close_all() -> None:
    close_sessions()
    for cluster in _local:
        cluster.close()


def _forget() -> None:
    """In a forked child: the threads are gone, and the jobs are the parent's."""
    global _lock
    _lock = threading.RLock()
    _clusters.clear()
    _sessions.clear()
    _opened.clear()
    _local.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
