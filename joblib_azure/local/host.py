"""The client's end of a local cluster's processes: start them, know whether they live, stop them.

`LocalHost` owns one guard process (`guard.py`, seen through `guarded.py`), which owns the rest. The client
finds Azurite, makes the folder and the keys, sends the guard one JSON request over a pipe, and keeps that pipe
open: closing it, in whatever way, is what stops a cluster. Secrets travel in that pipe and in the servers'
environments only.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import sysconfig
import tempfile
import time
import uuid
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joblib_azure.errors import LocalClusterError, masked
from joblib_azure.local import azurite, guard, install
from joblib_azure.local.guard import processes_of
from joblib_azure.local.guarded import EMULATOR_GRACE, GUARD_GRACE, GuardProcess, tail
from joblib_azure.local.home import Identity, new_key
from joblib_azure.local.storm import NAME as STORM
from joblib_azure.local.storm import Storm, storm_spec

if TYPE_CHECKING:
    from joblib_azure.chaos.schedule import Schedule

__all__ = ["LocalHost", "processes_of"]

logger = logging.getLogger(__name__)

# The emulator's line on stdout, {"endpoint": "http://127.0.0.1:…", "account_name": …, "pid": …}.
_EMULATOR_READY = r'^\{.*"endpoint":\s*"(http://[^"]+)".*\}\s*$'
# Azurite writes its metadata when it is asked to end; nobody wants them unless the folder is kept.
_AZURITE_GRACE = 2.0


class LocalHost:
    """The servers of one local cluster: the Batch emulator and Azurite.

    They end with this object: at `stop`, at the end of a ``with`` block, when the object is collected, when
    the interpreter exits, and when this process dies in any way. A forked child of this process may use the
    servers, but never stops them.

    Parameters
    ----------
    keep : bool
        Leave `folder` where it is when the cluster is stopped.
    notify : callable, optional
        Called with a line for the user before something takes long (an installation of Azurite).
    running_azurite_port : int or None
        Where to look for an Azurite that runs already; None starts an own one in any case.
    emulator_command : sequence of str, optional
        The program that speaks for the emulator, in place of ``python -m joblib_azure.emulator``.
    emulator_flags : sequence of str
        How the emulated account behaves; see `behaviour.emulator_flags`.
    schedule : Schedule, optional
        Of faults between the servers and their clients (`joblib_azure.chaos`), which always start an Azurite of their
        own.
    identity : Identity, optional
        Of a cluster that stays: its folder, with all that is in it, its account and its ports. By default each is new
        and goes with the cluster.
    in_memory : bool
        Whether Azurite keeps what it holds in memory, for very many blobs of little content.

    Attributes
    ----------
    run_id : str
        What every process of this cluster carries as ``BATCH_EMULATOR_RUN_ID`` in its environment (the
        guard and Azurite with ``.host`` behind it); see `processes_of`.
    folder : Path
        Holds ``nodes/``, ``azurite/`` and the logs (mode 0700). Exists between `start` and `stop`.
    """

    def __init__(
        self,
        *,
        keep: bool = False,
        notify: Callable[[str], None] | None = None,
        running_azurite_port: int | None = azurite.USUAL_PORT,
        emulator_command: Sequence[str] | None = None,
        emulator_flags: Sequence[str] = (),
        schedule: Schedule | None = None,
        identity: Identity | None = None,
        in_memory: bool = False,
    ) -> None:
        self.run_id = uuid.uuid4().hex
        self._stays = identity is not None
        if identity is None:
            folder = Path(tempfile.gettempdir()) / f"joblib_azure-{self.run_id}"
            account = f"local{self.run_id[:8]}"
            identity = Identity(folder=folder, account=account, key=new_key(), storage_key=new_key())
        self._identity = identity
        self.folder = identity.folder
        self._keep = keep or self._stays
        self._in_memory = in_memory
        self._notify = notify
        self._running_azurite_port = None if self._stays or schedule is not None else running_azurite_port
        self._schedule = schedule
        self.storm: Storm | None = None
        self._emulator_command = tuple(emulator_command or (sys.executable, "-m", "joblib_azure.emulator"))
        self._emulator_flags = tuple(emulator_flags)
        self._endpoint: str | None = None
        self._storage: str | None = None
        self._own_azurite = False
        self._guard: GuardProcess | None = None
        self._finalizer: weakref.finalize[..., LocalHost] | None = None

    def start(self, deadline: float = 30.0) -> LocalHost:
        """Start the servers and wait until they answer.

        Parameters
        ----------
        deadline : float
            Seconds. An installation of Azurite has a bound of its own and comes on top, once.

        Returns
        -------
        LocalHost
            Itself.

        Raises
        ------
        AzuriteUnavailable
            Azurite is not there and cannot be installed.
        LocalClusterError
            A server did not start in time (the message holds the end of its log), or `start` was called
            before.
        """
        if self._guard is not None:
            raise LocalClusterError("This local cluster was started before; make a new one.")
        self.folder.mkdir(mode=0o700, exist_ok=self._stays)
        guard_process = self._guard = GuardProcess(self.run_id, self.folder, self._keep)
        # At exit too, and before the modules are torn down; must not refer to `self`.
        self._finalizer = weakref.finalize(self, guard_process.stop, GUARD_GRACE)
        try:
            guard_process.start()  # gets ready while we look for Azurite
            servers = [self._emulator(), *self._find_storage()]
            if self._schedule is not None:
                servers = [storm_spec(self._schedule, self._identity, *servers)]
            for log in (self.batch_access_log, *(Path(server["log"]) for server in servers)):
                log.unlink(missing_ok=True)  # an earlier run's says where that has listened
            end = time.monotonic() + deadline
            guard_process.request(servers, deadline)
            self._await_ready(guard_process, end, deadline)
        except BaseException:  # Ctrl-C among them
            self.stop()
            raise
        logger.info("%r is ready", self)
        return self

    def stop(self, deadline: float = GUARD_GRACE) -> None:
        """Stop everything that was started and remove `folder`. May be called again.

        Parameters
        ----------
        deadline : float
            Seconds after which a guard that has not finished is killed, and what is left with it.
        """
        if self._guard is not None and self._finalizer is not None:
            self._finalizer.detach()
            self._guard.stop(deadline)

    def alive(self) -> bool:
        """Whether the servers run, as far as is known: False from the moment one of them has died."""
        return self._guard is not None and self._endpoint is not None and self._guard.alive()

    @property
    def failure(self) -> str | None:
        """Why the servers ended although nobody asked for it; None if they did not."""
        return None if self._guard is None or not self._guard.failure else masked(self._guard.failure)

    @property
    def batch_endpoint(self) -> str:
        """The emulator's URL."""
        return self._started(self._endpoint)

    @property
    def account_name(self) -> str:
        """The Batch account that the emulator serves."""
        return self._identity.account

    @property
    def account_key(self) -> str:
        """The Batch account's key, Base64."""
        return self._identity.key

    @property
    def storage_connection_string(self) -> str:
        """Where the blobs go."""
        return self._started(self._storage)

    @property
    def batch_access_log(self) -> Path:
        """The emulator's log of requests."""
        return self.folder / "batch-access.log"

    @property
    def storage_access_log(self) -> Path | None:
        """Azurite's log (see `azurite.count_requests`); None where somebody else's Azurite is used."""
        return self.folder / "azurite.log" if self._own_azurite else None

    def __enter__(self) -> LocalHost:
        return self if self._guard is not None else self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "running" if self.alive() else "not started" if self._guard is None else "stopped"
        where = f", batch={self._endpoint!r}" if self._endpoint else ""
        return f"<LocalHost {state}{where}, account={self.account_name!r}, run_id={self.run_id!r}>"

    def _started(self, value: str | None) -> str:
        if value is None:
            raise LocalClusterError("This local cluster was not started; call start() first.")
        return value

    def _emulator(self) -> dict[str, Any]:
        nodes = self.folder / "nodes"
        nodes.mkdir(exist_ok=True)
        options = ["--port", str(self._port(self._identity.batch_port)), "--account", self.account_name]
        options += ["--root", str(nodes)]
        if self._stays:
            options += ["--state", str(self.folder / "state.json")]
        package_home = Path(__file__).parents[2]
        installed = package_home == Path(sysconfig.get_paths()["purelib"])
        return {
            "name": "the Batch emulator",
            "command": [
                *self._emulator_command,
                *(*options, "--access-log", str(self.batch_access_log), *self._emulator_flags),
            ],
            "environment": {"BATCH_EMULATOR_ACCOUNT_KEY": self.account_key, guard.RUN_ID_VARIABLE: self.run_id},
            # ``-m`` finds this very package in the current folder, also when it is a checkout that only
            # this client's sys.path knows.
            "folder": str(self.folder if installed else package_home),
            "log": str(self.folder / "batch.log"),
            "ready": _EMULATOR_READY,
            "grace": EMULATOR_GRACE,
            # Should the guard be killed, the emulator must live long enough to end its tasks.
            "death_signal": int(signal.SIGTERM),
        }

    def _port(self, wanted: int) -> int:
        # Behind a storm it is the storm that clients meet there.
        return 0 if self._schedule is not None else wanted

    def _find_storage(self) -> list[dict[str, Any]]:
        if self._running_azurite_port is not None:
            self._storage = azurite.find_running(self._running_azurite_port)
            if self._storage is not None:
                return []
        program = install.find_azurite(self._notify)
        location = self.folder / "azurite"
        location.mkdir(exist_ok=True)
        self._own_azurite = True
        return [
            {
                "name": "Azurite",
                "command": program.arguments(
                    None if self._in_memory else location, self._port(self._identity.storage_port)
                ),
                "environment": program.environment(self.account_name, self._identity.storage_key),
                "folder": str(location),
                "log": str(self.folder / "azurite.log"),
                "ready": azurite.READY_LINE,
                "grace": _AZURITE_GRACE if self._keep else 0.0,
                "death_signal": int(signal.SIGKILL),
            }
        ]

    def _await_ready(self, guard_process: GuardProcess, end: float, deadline: float) -> None:
        # Takes as long as a server's start, which it uses: the client needs the SDK anyway.
        import azure.storage.blob  # noqa: F401
        from azure.core.exceptions import AzureError

        # The guard gives up first, and can say on whom; the second more is for its word to arrive.
        ready = guard_process.wait_ready(max(0.0, end - time.monotonic()) + 1.0)
        if ready is None:
            guard_process.stop(GUARD_GRACE)  # waits for what it may still have to say
            why = guard_process.failure or f"its guard did not answer within {deadline:.0f} s"
            raise LocalClusterError(f"The local cluster did not start: {masked(why)}")
        if self._schedule is not None:
            said = json.loads(ready[STORM])
            ready = {"the Batch emulator": said["batch"], "Azurite": said["storage"]}
            self.storm = Storm(self._schedule, said["batch"], self.account_key)
        if self._own_azurite:
            port = int(ready["Azurite"])
            connection = azurite.connection_string(self.account_name, self._identity.storage_key, port)
            try:
                if self._schedule is None:  # what a storm answers says nothing
                    azurite.check_storage(connection, max(1.0, end - time.monotonic()))
            except AzureError as error:
                raise LocalClusterError(
                    f"Azurite listens on port {port}, but does not answer as it should: {error}\n"
                    f"azurite.log ends with:\n{masked(tail(self.folder / 'azurite.log'))}"
                ) from error
            self._storage = connection
        self._endpoint = ready["the Batch emulator"]
