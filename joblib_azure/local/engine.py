"""A local account that stays: started once, used by many clients, there again after a restart.

::

    start ─► settings.json ─► keeper ─► LocalHost ─► guard ─► Batch emulator, Azurite
      └──────► cluster.json, credentials.json, the pool ◄── any client, of any process
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cluster import Cluster
from ..config import AccountConfig, ClusterConfig
from ..errors import ConfigurationError, LocalClusterError, masked
from . import install
from .behaviour import emulator_flags, node_seconds
from .cluster import check_extra, machine_cores, shared_cores
from .guarded import GUARD_GRACE, tail
from .home import Home, new_account
from .keeper import START_SECONDS
from .storm import Storm, StormReport, chaos_schedule

__all__ = ["Engine", "start", "status", "stop"]

#: Seconds beyond the servers' own for the keeper's start, and between two looks.
_SLACK, _LOOK = 15.0, 0.05


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A local account that is served.

    Parameters
    ----------
    name : str
    pid : int
        Of the keeper.
    since : str
        When it was started (ISO 8601, UTC).
    folder : Path
        With all that it keeps.
    batch_account, batch_endpoint, batch_key : str
    storage_account, blob_endpoint, storage_key, storage_connection_string : str
    cluster_file, credentials_file : Path
        For ``parallel_config("azure", cluster=…)`` and all commands.
    fresh : bool
        Whether this call has started it.
    """

    name: str
    pid: int
    since: str
    folder: Path
    batch_account: str
    batch_endpoint: str
    batch_key: str = field(repr=False)
    storage_account: str
    blob_endpoint: str
    storage_key: str = field(repr=False)
    storage_connection_string: str = field(repr=False)
    cluster_file: Path
    credentials_file: Path
    fresh: bool = field(default=False, repr=False)

    def variables(self) -> dict[str, str]:
        """Return the environment that points other programs at it.

        The names are those of the Azure CLI (``az batch``, ``az storage``), of the storage tools, and of this package.
        """
        return {
            "AZURE_BATCH_ACCOUNT": self.batch_account,
            "AZURE_BATCH_ACCESS_KEY": self.batch_key,
            "AZURE_BATCH_ENDPOINT": self.batch_endpoint,
            "AZURE_STORAGE_CONNECTION_STRING": self.storage_connection_string,
            "JOBLIB_AZURE_CLUSTER": str(self.cluster_file),
            "JOBLIB_AZURE_CREDENTIALS": str(self.credentials_file),
        }


def start(
    name: str = "default",
    *,
    nodes: int | None = None,
    cores: int | None = None,
    max_tasks_per_node: int | None = None,
    batch_port: int | None = None,
    storage_port: int | None = None,
    emulator: Mapping[str, Any] | None = None,
    chaos: int | str | None = None,
    notify: Callable[[str], None] = lambda line: None,
) -> Engine:
    """Serve a local account from now on, until `stop`; one that is served already is returned as it is.

    Parameters
    ----------
    name : str
        Of the account; each has a folder, keys and ports of its own.
    nodes, cores, max_tasks_per_node : int, optional
        Of the pool ``local`` that it has; by default what it had, at first 2 nodes that share the machine's cores,
        with one task slot.
    batch_port, storage_port : int, optional
        On 127.0.0.1; by default those that it had, at first any.
    emulator : mapping, optional
        Options of the emulated account, as `joblib_azure.emulator.BatchEmulator` takes them by keyword.
    chaos : int or path, optional
        The seed of a storm of faults, or its file.
    notify : callable
        Called with a line before something takes long.

    Raises
    ------
    ConfigurationError
        For values out of bounds; nothing was started.
    LocalClusterError
        Where it does not start, or is served with other settings than these.
    MissingExtraError
    """
    check_extra()
    home = Home(name)
    before = home.settings()
    settings = _settings(before, nodes, cores, max_tasks_per_node, batch_port, storage_port, emulator, chaos)
    config = _config(home, settings)
    if home.served():
        other = [key for key, value in settings.items() if before is None or before.get(key) != value]
        if other:
            raise LocalClusterError(
                f"the local account {name!r} is served already, with another {', '.join(other)}: end it with "
                f"`joblib-azure local stop --name {name}` first"
            )
        return _wait(home, fresh=False)
    install.find_azurite(notify)
    home.make()
    home.write("settings.json", settings)
    _launch(home)
    engine = _wait(home, fresh=True)
    try:
        _prepare(home, engine, config)
    except BaseException:
        stop(name)
        raise
    return engine


def stop(name: str = "default", *, delete: bool = False, seconds: float = GUARD_GRACE + _SLACK) -> bool:
    """End a local account's servers, and all that runs on its nodes; what it holds stays for the next start.

    Parameters
    ----------
    name : str
    delete : bool
        Remove all that it holds too.
    seconds : float
        For its end.

    Returns
    -------
    bool
        Whether it was served.

    Raises
    ------
    LocalClusterError
        Where there is no such account, or it has not ended in time.
    """
    home = _home(name)
    running = home.running()
    if running is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(running["pid"], signal.SIGTERM)
    end = time.monotonic() + seconds
    while home.served():
        if time.monotonic() > end:
            pid = "that starts" if running is None else f"(process {running['pid']})"
            raise LocalClusterError(f"the keeper of {name!r} {pid} has not ended within {seconds:.0f} s")
        time.sleep(_LOOK)
    if delete:
        home.remove()
    return running is not None


def status(name: str = "default") -> tuple[Engine | None, StormReport | None]:
    """Return a local account's engine, None where it is not served, and what its storm has done.

    Raises
    ------
    LocalClusterError
        Where there is no such account.
    """
    home = _home(name)
    running = home.running()
    if running is None:
        return None, None
    engine = _engine(home, running)
    chaos = (home.settings() or {}).get("chaos")
    if chaos is None:
        return engine, None
    return engine, Storm(chaos_schedule(chaos), engine.batch_endpoint, engine.batch_key).report()


@contextlib.contextmanager
def cluster_of(engine: Engine) -> Iterator[Cluster]:
    """Its pool ``local``, for a look."""
    cluster = Cluster(ClusterConfig.load(engine.cluster_file), AccountConfig.load(engine.credentials_file))
    with contextlib.closing(cluster):
        yield cluster


# parts --------------------------------------------------------------------------------------------------------


def _home(name: str) -> Home:
    home = Home(name)
    if home.settings() is None:
        raise LocalClusterError(
            f"there is no local account {name!r} in {home.folder.parent}: `joblib-azure local start --name {name}` "
            "makes it"
        )
    return home


def _settings(
    before: Mapping[str, Any] | None,
    nodes: int | None,
    cores: int | None,
    slots: int | None,
    batch_port: int | None,
    storage_port: int | None,
    emulator: Mapping[str, Any] | None,
    chaos: int | str | None,
) -> dict[str, Any]:
    """Put what is given over what there was. What is for one start only does not last: the behaviour, the storm."""
    if before is None:
        count = 2 if nodes is None else nodes
        before = {
            **new_account(),
            "nodes": count,
            "cores": shared_cores(count),
            "max_tasks_per_node": 1,
        }
    given = {
        "nodes": nodes,
        "cores": cores,
        "max_tasks_per_node": slots,
        "batch_port": batch_port,
        "storage_port": storage_port,
    }
    if chaos is not None:
        chaos_schedule(chaos)
        chaos = chaos if isinstance(chaos, int) or str(chaos).isdigit() else os.path.abspath(chaos)
    emulator_flags(emulator or {})
    changed = {key: value for key, value in given.items() if value is not None}
    return {**before, **changed, "emulator": dict(emulator or {}), "chaos": chaos}


def _config(home: Home, settings: Mapping[str, Any]) -> ClusterConfig:
    cores, machine = settings["cores"], machine_cores()
    if cores > machine:
        raise ConfigurationError(f"cores={cores} is more than the {machine} core(s) of this machine; use more nodes")
    return ClusterConfig.read(_pool(settings), f"the local account {home.name!r}")


def _pool(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cluster's file: nodes use this very Python, with what is installed there."""
    return {
        "name": "local",
        "vmSize": f"Emulated_C{settings['cores']}",
        "cores": settings["cores"],
        "nodes": settings["nodes"],
        "poolSize": {"autoscaleFormula": "FIXED"},
        "maxTasksPerNode": settings["max_tasks_per_node"],
        "python": sys.executable,
        "environment": {"mode": "none"},
        "nodeTimeout": 120 + node_seconds(settings["emulator"]),
    }


def _launch(home: Home) -> None:
    """Start the keeper, which has left this process alone once that returns."""
    with open(os.open(home.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
        try:
            subprocess.run(
                [sys.executable, "-m", "joblib_azure.local.keeper", home.name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # It outlives the terminal, and keeps no folder busy but its own.
                start_new_session=True,
                cwd=home.folder,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(_paths())},
                timeout=START_SECONDS,
                check=True,
            )
        except subprocess.SubprocessError as exc:
            raise _not_started(home, "did not start") from exc


def _not_started(home: Home, why: str) -> LocalClusterError:
    return LocalClusterError(f"the local account {home.name!r} {why}; {home.log} ends with:\n{masked(tail(home.log))}")


def _paths() -> list[str]:
    """Have the keeper find this very package, also where it is a checkout that only this process's path knows."""
    given = os.environ.get("PYTHONPATH", "")
    return [str(Path(__file__).parents[2]), *([given] if given else [])]


def _wait(home: Home, *, fresh: bool) -> Engine:
    """Wait until the account is served."""
    end = time.monotonic() + START_SECONDS + _SLACK
    while (running := home.running()) is None:
        if not home.served():
            raise _not_started(home, "did not start")
        if time.monotonic() > end:
            raise _not_started(home, f"was not ready within {START_SECONDS + _SLACK:.0f} s")
        time.sleep(_LOOK)
    return _engine(home, running, fresh=fresh)


def _engine(home: Home, running: Mapping[str, Any], *, fresh: bool = False) -> Engine:
    settings = home.settings() or {}
    return Engine(
        name=home.name,
        pid=running["pid"],
        since=running["since"],
        folder=home.folder,
        batch_account=settings["account"],
        batch_endpoint=running["batch_endpoint"],
        batch_key=settings["key"],
        storage_account=settings["account"],
        blob_endpoint=running["blob_endpoint"],
        storage_key=settings["storage_key"],
        storage_connection_string=running["storage_connection_string"],
        cluster_file=home.cluster_file,
        credentials_file=home.credentials_file,
        fresh=fresh,
    )


def _prepare(home: Home, engine: Engine, config: ClusterConfig) -> None:
    """Write the clients' files, and have the pool as the settings want it."""
    settings = home.settings() or {}
    home.write(home.cluster_file.name, _pool(settings))
    home.write(
        home.credentials_file.name,
        {
            "batchAccount": engine.batch_account,
            "batchEndpoint": engine.batch_endpoint,
            "batchKey": engine.batch_key,
            "storageConnectionString": engine.storage_connection_string,
        },
    )
    with cluster_of(engine) as cluster:
        there = any(pool.id == config.name for pool in cluster.batch.pools(config.name))
        if there and cluster.batch.pool(config.name).target_dedicated != config.nodes:
            cluster.resize(config.nodes, wait=True)
        cluster.open()
        cluster.wait_for_nodes(timeout=config.node_timeout)
