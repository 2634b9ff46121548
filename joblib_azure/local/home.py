"""The folder of a local account that stays: its settings, its data, and who serves it.

::

    <state of the user>/joblib_azure/local/<name>/
        settings.json      what it was started with, its keys and ports
        running.json       written by the keeper while it serves
        lock               held by the keeper while it lives
        keeper.log
        cluster.json, credentials.json     for clients
        data/              the cluster's own folder: disks of nodes, blobs, the account's state, logs

All of it is this user's alone: it holds keys.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import platformdirs

from joblib_azure.errors import ConfigurationError, LocalClusterError

__all__ = ["DEFAULT_NAME", "Home", "Identity", "new_account", "new_key"]

DEFAULT_NAME = "default"
#: Seconds for which somebody may hold the lock who only looks whether it is held.
_PATIENCE = 2.0
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a local cluster is known by, from one start to the next.

    Parameters
    ----------
    folder : Path
        Of its data; it stays when the cluster ends.
    account, key, storage_key : str
    batch_port, storage_port : int
        0 for ports that are free.
    """

    folder: Path
    account: str
    key: str
    storage_key: str
    batch_port: int = 0
    storage_port: int = 0


class Home:
    """The folder of a local account.

    Parameters
    ----------
    name : str
        Lower-case letters, digits and ``-``.

    Raises
    ------
    ConfigurationError
        Where the name is none.
    """

    def __init__(self, name: str = DEFAULT_NAME) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"{name!r} is no name of a local account: 1 to 31 lower-case letters, digits and '-', a letter or a "
                "digit first"
            )
        self.name = name
        self.folder = Path(platformdirs.user_state_dir("joblib_azure", appauthor=False)) / "local" / name

    def __repr__(self) -> str:
        return f"Home({self.name!r})"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "keeper.log"

    @property
    def cluster_file(self) -> Path:
        return self.folder / "cluster.json"

    @property
    def credentials_file(self) -> Path:
        return self.folder / "credentials.json"

    def make(self) -> None:
        """Make the folder. :raises LocalClusterError: it cannot be made."""
        try:
            self.data.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(0o700)
        except OSError as exc:
            raise LocalClusterError(f"the folder of the local account cannot be made: {exc}") from exc

    # files ----------------------------------------------------------------------------------------------

    def read(self, name: str) -> dict[str, Any] | None:
        """Return what a file of JSON holds, None where there is none."""
        try:
            found: dict[str, Any] = json.loads((self.folder / name).read_text())
        except FileNotFoundError:
            return None
        except ValueError as exc:
            raise LocalClusterError(f"{self.folder / name} cannot be read: {exc}") from exc
        return found

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Put a file of JSON in its place, whole, for this user alone."""
        temporary = self.folder / f".{name}.{os.getpid()}"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(content, file, indent=2)
        temporary.replace(self.folder / name)

    def settings(self) -> dict[str, Any] | None:
        """Return what it was started with last; None where it never was."""
        return self.read("settings.json")

    def identity(self, settings: Mapping[str, Any]) -> Identity:
        """Return what it is known by, as its settings have it."""
        named = {name: settings[name] for name in ("account", "key", "storage_key", "batch_port", "storage_port")}
        return Identity(folder=self.data, **named)

    # who serves it --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Be the one that serves it, for a block. :raises LocalClusterError: somebody else does."""
        with open(self.folder / "lock", "w") as lock:
            end = time.monotonic() + _PATIENCE
            while not _locked(lock, fcntl.LOCK_EX):
                if time.monotonic() > end:
                    raise LocalClusterError(f"another process serves the local account {self.name!r}")
                time.sleep(0.02)
            try:
                yield
            finally:
                with contextlib.suppress(FileNotFoundError):
                    (self.folder / "running.json").unlink()

    def served(self) -> bool:
        """Tell whether somebody serves it."""
        try:
            with open(self.folder / "lock") as lock:
                return not _locked(lock, fcntl.LOCK_SH)
        except FileNotFoundError:
            return False

    def running(self) -> dict[str, Any] | None:
        """Return what the keeper says of itself; None where there is none, or it is not ready yet."""
        return self.read("running.json") if self.served() else None

    def remove(self) -> None:
        """Remove all that it has, which nobody may serve."""
        with self.serving():
            shutil.rmtree(self.folder)


def _locked(file: IO[str], how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def new_account() -> dict[str, Any]:
    """Return the settings of an account that there was not before."""
    return {
        "account": f"local{secrets.token_hex(4)}",
        "key": new_key(),
        "storage_key": new_key(),
        "batch_port": 0,
        "storage_port": 0,
    }


def new_key() -> str:
    """Return a key as long as Azure's own, Base64."""
    return base64.b64encode(secrets.token_bytes(64)).decode()
