"""`LocalCluster`: a `Cluster` whose account is served by processes of this machine.

From `open` on it is a Cluster as any other: the session talks to the Batch emulator and to Azurite through the
same SDKs as to Azure, and does not know the difference.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from ..cluster import Cluster
from ..cluster.connections import Connections
from ..config import AccountConfig, ClusterConfig
from ..errors import JoblibAzureError, LocalClusterError, MissingExtraError
from ..retries import SERVICE_SECONDS
from ..service import BlobService
from .behaviour import emulator_flags, node_seconds
from .host import LocalHost
from .storm import CHAOS_VARIABLE, Storm, chaos_schedule

if TYPE_CHECKING:
    from ..chaos.schedule import Schedule

logger = logging.getLogger(__name__)

#: Seconds that the emulator and Azurite may take to start, Azurite's installation not counted.
_START_SECONDS = 60.0
#: Seconds that the first emulated node may take, beyond those that it is told to boot; it has no machine to boot.
_NODE_SECONDS = 60.0
#: What the extra [local] brings that nothing else does.
_EXTRA = ("starlette", "uvicorn", "psutil")


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")


def check_extra() -> None:
    """:raises MissingExtraError: the extra [local] is not there."""
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"a local cluster needs {', '.join(missing)}, of the extra [local]: "
            'python -m pip install "joblib_azure[local]"'
        )


def machine_cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def shared_cores(nodes: int) -> int:
    """Return the cores of each of so many nodes that share the machine, at least 1."""
    return max(1, machine_cores() // max(1, nodes))


def _sizes(nodes: int, spot: int) -> dict[str, Any]:
    if not spot:
        return {"nodes": nodes, "pool_size": {"autoscale_formula": "FIXED"}}
    both = {"dedicated_nodes": nodes - spot, "spot_nodes": spot}
    bounds = {kind: {"min": count, "max": count} for kind, count in both.items()}
    return {"pool_size": {**bounds, "autoscale_formula": "FIXED"}}


class LocalCluster(Cluster):
    """A pool of emulated nodes on this machine.

    Parameters
    ----------
    nodes : int, default 2
    cores_per_node : int, optional
        By default the cores of the machine divided by the nodes, at least 1. Nodes own different cores as long as
        the machine has enough of them.
    max_tasks_per_node : int, default 1
        Task slots of a node, 1 to 4 for each core.
    workers_per_node : int, optional
        Workers that compute at once on a node, over all of its task slots; by default its cores.
    warm_runners : bool, default True
        Keep processes with the calls' imports done on the nodes between tasks. Without, each task starts its own.
    spot_nodes : int, default 0
        How many of the nodes are spot nodes, which may be preempted (`joblib_azure.emulator.control`).
    service_timeout : float, default 120
        Seconds for which the two servers may refuse requests, or not answer, before the calls fail.
    emulator : mapping of str to object, optional
        Options of the emulated account, as `joblib_azure.emulator.BatchEmulator` takes them by keyword
        (``{"dispatch_seconds": 2.0}``, ``{"latency": "azure", "clock_rate": 20}``), to try how code fares on a slower
        service.
    chaos : int, path or Schedule, optional
        For tests of code, and of this package: the seed of a storm of faults, or a file that says which strike when
        (docs/faults.md). By default what ``JOBLIB_AZURE_CHAOS`` names. `storm` tells what has struck.
    notify : callable, optional
        Called with a line for the user before something takes long, that is an installation of Azurite; by
        default the line is logged as a warning, which Python shows where nobody has configured logging.

    Raises
    ------
    ConfigurationError
        Where a number is out of its bounds, or the emulator has no such option. Nothing was started then.
    MissingExtraError
        Where the package was installed without its extra ``[local]``.

    Notes
    -----
    Everything that it starts ends with it: at `close`, at the end of a ``with`` block, at the interpreter's exit,
    and when this process is killed.

    Examples
    --------
    >>> from joblib import Parallel, delayed, parallel_config
    >>> with LocalCluster(nodes=2) as cluster, parallel_config("azure", cluster=cluster):  # doctest: +SKIP
    ...     Parallel()(delayed(abs)(-i) for i in range(3))
    [0, 1, 2]
    """

    def __init__(
        self,
        nodes: int = 2,
        cores_per_node: int | None = None,
        max_tasks_per_node: int = 1,
        *,
        workers_per_node: int | None = None,
        warm_runners: bool = True,
        spot_nodes: int = 0,
        service_timeout: float = SERVICE_SECONDS,
        emulator: Mapping[str, Any] | None = None,
        chaos: int | str | Path | Schedule | None = None,
        notify: Callable[[str], None] = logger.warning,
    ) -> None:
        check_extra()
        chaos = os.environ.get(CHAOS_VARIABLE) or None if chaos is None else chaos
        self._schedule = None if chaos is None else chaos_schedule(chaos)
        self._emulator_flags = emulator_flags(emulator or {})
        machine = machine_cores()
        cores = shared_cores(nodes) if cores_per_node is None else cores_per_node
        config = ClusterConfig.read(
            {
                "name": "local",
                "vm_size": f"Emulated_C{cores}",
                "cores": cores,
                **_sizes(nodes, spot_nodes),
                "max_tasks_per_node": max_tasks_per_node,
                "workers_per_node": workers_per_node,
                "warm_runners": warm_runners,
                "service_timeout": service_timeout,
                "python": sys.executable,
                "node_timeout": _NODE_SECONDS + node_seconds(emulator or {}),
            },
            f"LocalCluster(nodes={nodes!r}, cores_per_node={cores_per_node!r}, "
            f"max_tasks_per_node={max_tasks_per_node!r}, workers_per_node={workers_per_node!r}, "
            f"warm_runners={warm_runners!r}{f', spot_nodes={spot_nodes!r}' if spot_nodes else ''})",
        )
        if cores > machine:
            raise LocalClusterError(
                f"cores_per_node={cores} is more than the {machine} core(s) of this machine; a node's processes cannot "
                "see cores that are not there. Use more nodes instead: they may share cores"
            )
        # No account yet: the servers choose their ports and keys when they start.
        self._prepare(config)
        self._host: LocalHost | None = None
        self._notify = notify
        self._lock = threading.Lock()

    @property
    def python_path(self) -> tuple[str, ...]:
        """The client's own ``sys.path`` and working folder: an emulated node sees the same files."""
        return tuple(os.path.abspath(entry) for entry in sys.path)

    @property
    def host(self) -> LocalHost:
        """The servers; `LocalClusterError` where they are not started."""
        if self._host is None:
            raise LocalClusterError("the local cluster is not open: use it in a with block, or call open()")
        return self._host

    @property
    def run_id(self) -> str:
        """What every process of the cluster carries in its environment, as ``BATCH_EMULATOR_RUN_ID``."""
        return self.host.run_id

    @property
    def batch_endpoint(self) -> str:
        """URL of the Batch emulator."""
        return self.host.batch_endpoint

    @property
    def account_name(self) -> str:
        """Name of the emulated Batch account."""
        return self.host.account_name

    @property
    def account_key(self) -> str:
        """Its shared key."""
        return self.host.account_key

    @property
    def storage_connection_string(self) -> str:
        """How to reach Azurite."""
        return self.host.storage_connection_string

    @property
    def storm(self) -> Storm:
        """What has struck of its storm of faults; `LocalClusterError` where it has none, or is not started."""
        if self.host.storm is None:
            raise LocalClusterError(f"this cluster has no storm: make one with chaos=, or set {CHAOS_VARIABLE}")
        return self.host.storm

    def open(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Start the servers, if they do not run, and create the pool.

        Raises
        ------
        LocalClusterError
            Where Azurite cannot be installed, or a server does not start.
        """
        with self._lock:
            if self._host is not None and not self._host.alive():
                self._stop()
            if self._host is None:
                host = LocalHost(notify=self._notify, emulator_flags=self._emulator_flags, schedule=self._schedule)
                self.step("starting the Batch emulator and Azurite", _START_SECONDS)
                host.start(_START_SECONDS)
                self._host = host
                account = AccountConfig(
                    batch_account=host.account_name,
                    batch_endpoint=host.batch_endpoint,
                    batch_key=SecretStr(host.account_key),
                    storage_connection_string=SecretStr(host.storage_connection_string),
                )
                self._connections = Connections(account, self.config.service_timeout, host.alive)
            super().open(cancelled)

    def reach(self) -> BlobService:
        """Return the blobs of the storage account, which starts with the rest. :raises LocalClusterError:"""
        self.open()
        return self.blobs

    def check(self) -> None:
        """Raise `LocalClusterError` where the servers have died."""
        if self._host is not None and not self._host.alive():
            raise LocalClusterError(
                f"the local cluster has died: {self._host.failure or 'its servers ended'}. The next Parallel call "
                "starts another"
            )

    def log_command(self, job: str, task: str, node: str | int | None) -> str:
        """Return nothing: no other process knows this cluster's keys."""
        return ""

    def advise(self, exc: JoblibAzureError) -> None:
        """Add nothing, for the same reason."""

    def close(self) -> None:
        """End the cluster's session, if it has one, and stop the servers with everything that runs on them."""
        self._end_sessions()
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        self._disconnect()
        self._connections = None
        host, self._host = self._host, None
        if host is not None:
            host.stop()

    def __enter__(self) -> LocalCluster:
        try:
            self.open()
        except BaseException:
            self.close()  # there is no block whose end would do it
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
