"""The environment of a lock on the node: installed by the first process that needs it, ready for all others.

::

    this lock's folder is there ──yes──────────────────────────────────────────► 0 installs
         │ no; one process at a time
    its archive is in storage ──yes──► unpack, verify ─────────────┐
         │ no                                                      ├─► check ─► rename ─► tasks
    uv, wheels (from the index, or from storage) ──► uv installs ──┘

It is used before the environment is there, under whatever Python the node has: the standard library of 3.8 only.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any, NoReturn

from . import archive, interpreter, place
from .locks import locked

#: What the node code imports beside the standard library.
NEEDED = ("joblib", "cloudpickle", "threadpoolctl", "azure.storage.blob")
#: Seconds for an installation, and for another job's preparation that makes the same environment.
_INSTALL_SECONDS = 3600.0
#: Below so many free bytes, environments go that nobody used for so many seconds.
_ENOUGH_SPACE, _UNUSED_SECONDS = 5 << 30, 86400.0
#: Times that a download is tried.
_TRIES = 3


class PreparationError(Exception):
    """The node cannot have the environment; the message goes to the preparation task's stderr."""


class Environment:
    """The environment of one lock on this node.

    Parameters
    ----------
    description : dict
        As `joblib_azure.environment` writes it.
    """

    def __init__(self, description: dict[str, Any]) -> None:
        self._is = description
        self._root = place.root(os.environ)
        self._folders = self._root / "environments"
        self._target: Path = self._folders / description["digest"]
        self._certificates: Path | None = None

    def ensure(self) -> Path:
        """Return the environment's Python, having made the environment where it was not there."""
        self._folders.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        with locked(self._target.with_suffix(".lock"), _INSTALL_SECONDS):
            how = "was ready" if (self._target / archive.READY).exists() else self._make()
            os.utime(self._target)
        say(f"environment {self._is['digest']}: {how} ({time.monotonic() - begun:.1f} s)")
        return self._target / "bin" / "python"

    def publish(self) -> None:
        """Store the environment's archive for the nodes to come, if nobody does."""
        os.nice(10)
        begun = time.monotonic()
        if archive.claim(self._is["claim"]):
            self._compile()
            scratch = self._target.with_suffix(f".{os.getpid()}.tar.gz")
            done = archive.publish(self._is["archive"], self._target, scratch)
        else:
            done = "another node stores its archive"
        say(f"environment {self._is['digest']}: {done} ({time.monotonic() - begun:.1f} s)")

    def _make(self) -> str:
        self._make_room()
        # Nobody else works on them: the lock is held.
        for left in self._folders.glob(f"{self._is['digest']}.*.part"):
            shutil.rmtree(left, ignore_errors=True)
        part = self._target.with_suffix(f".{os.getpid()}.part")
        shutil.rmtree(self._target, ignore_errors=True)
        how = ""
        try:
            if archive.unpack(self._is["archive"], part):
                how = "unpacked from storage"
        except archive.ArchiveError as exc:
            say(f"the archive in storage is not used: {exc}")
            shutil.rmtree(part, ignore_errors=True)
        python = interpreter.make_venv(part, self._interpreter())
        if not how:
            self._install(part, python)
            how = f"installed {len(self._is['packages'])} packages"
        run([str(python), "-c", f"import {', '.join(NEEDED)}"], "importing what tasks need from the new environment")
        (part / archive.READY).write_text(json.dumps({"how": how}))
        part.rename(self._target)
        return how

    def _compile(self) -> None:
        """Compile what the client has loaded: the other nodes get it with the archive, and this one needs it next."""
        packages = self._target / "lib" / f"python{self._is['python']}" / "site-packages"
        files = "".join(f"{packages / name}\n" for name in self._is["modules"])
        command = [str(self._target / "bin" / "python"), "-m", "compileall", "-q", "-j", "0", "-i", "-"]
        subprocess.run(
            command,
            input=files.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_INSTALL_SECONDS,
        )

    def _make_room(self) -> None:
        if shutil.disk_usage(self._folders).free > _ENOUGH_SPACE:
            return
        for ready in self._folders.glob(f"*/{archive.READY}"):
            if time.time() - ready.parent.stat().st_mtime > _UNUSED_SECONDS:
                ready.unlink()
                shutil.rmtree(ready.parent, ignore_errors=True)
        shutil.rmtree(self._root / "uv-cache", ignore_errors=True)

    # Python ---------------------------------------------------------------------------------------------

    def _interpreter(self) -> interpreter.Interpreter:
        minor, managed = self._is["python"], self._root / "python"
        commands = [*self._is["commands"], sys.executable]
        found = interpreter.find(minor, commands, managed)
        if found is not None:
            return found
        here = interpreter.ask(commands[0]) or interpreter.ask(sys.executable)
        lacks = f"this node has Python {here.version if here else '?'} and the client has {minor}"
        managed.mkdir(parents=True, exist_ok=True)
        with locked(managed / f"{minor}.lock", _INSTALL_SECONDS):
            if self._is["python_archive"]:
                with tarfile.open(self._fetch(self._is["python_archive"])) as tar:
                    tar.extractall(managed)
            elif self._is["offline"]:
                raise PreparationError(
                    f"{lacks}; environment.offline forbids to fetch it, and the client could not either. Use an image "
                    f"with Python {minor}, or run the client with the nodes' version"
                )
            else:
                fetch = ["python", "install", "--no-bin", "--install-dir", str(managed), minor]
                self._uv(fetch, f"{lacks}; fetching that")
        found = interpreter.find(minor, commands, managed)
        if found is None:
            raise PreparationError(f"{lacks}; that was fetched, but does not run on this node")
        say(f"{lacks}; that was fetched")
        return found

    # packages -------------------------------------------------------------------------------------------

    def _install(self, part: Path, python: Path) -> None:
        lines = ['lock-version = "1.0"', 'created-by = "joblib_azure"']
        for package in self._is["packages"]:
            where = f'url = "{package["url"]}"'
            if package["shipped"]:
                where = f"path = {json.dumps(str(self._fetch(package)))}"
            file = f'{{ {where}, hashes = {{ sha256 = "{package["sha256"]}" }} }}'
            kind = f"wheels = [{file}]" if package["file"].endswith(".whl") else f"sdist = {file}"
            name, version = json.dumps(package["name"]), json.dumps(package["version"])
            lines += ["[[packages]]", f"name = {name}", f"version = {version}", kind]
        lock = part / "pylock.toml"
        lock.write_text("\n".join(lines) + "\n")
        install = ["pip", "install", "--python", str(python), "--no-deps", "-r", str(lock)]
        # What is in uv's cache has the lock's hashes already; left to itself uv asks the index about each file again,
        # which takes longer than all the rest.
        if not self._is["offline"] and (self._root / "uv-cache").exists():
            try:
                self._uv(install, "installing the packages from the node's cache", offline=True)
                return
            except PreparationError:
                pass  # something of the lock is not in the cache yet
        self._uv(install, "installing the packages")

    def _uv(self, arguments: list[str], what: str, *, offline: bool = False) -> None:
        program: Path = self._root / "uv" / self._is["uv"]["sha256"][:16] / "uv"
        if not program.exists():
            wheel = self._fetch(self._is["uv"])
            program.parent.mkdir(parents=True, exist_ok=True)
            part = program.with_suffix(f".{os.getpid()}")
            with zipfile.ZipFile(wheel) as content:
                member = next(name for name in content.namelist() if name.endswith(".data/scripts/uv"))
                part.write_bytes(content.read(member))
            part.chmod(0o755)
            part.rename(program)
        environment = {
            # What builds a package must not see the job's key.
            **{name: value for name, value in os.environ.items() if not name.startswith("JOBLIB_AZURE_")},
            "UV_CACHE_DIR": str(self._root / "uv-cache"),
            "UV_NO_CONFIG": "1",
            "UV_NO_PROGRESS": "1",
            "UV_PREVIEW_FEATURES": "pylock",
            "UV_SYSTEM_CERTS": "1",
            "NO_COLOR": "1",
            **self._is["uv_environment"],
        }
        if offline or self._is["offline"]:
            environment["UV_OFFLINE"] = "1"
        if self._trusted() is not None:
            environment["SSL_CERT_FILE"] = str(self._trusted())
        run([str(program), *arguments], what, environment)

    # files ----------------------------------------------------------------------------------------------

    def _trusted(self) -> Path | None:
        """Return the certificates that the client's pip trusts, where it was told which."""
        if self._certificates is None and self._is["certificates"]:
            self._certificates = self._fetch(self._is["certificates"])
        return self._certificates

    def _fetch(self, file: dict[str, Any]) -> Path:
        """Return a file of the index, or of storage, once a node however many ask for it."""
        folder: Path = self._root / "files" / file["sha256"]
        target: Path = folder / file["file"]
        if target.exists():
            return target
        folder.mkdir(parents=True, exist_ok=True)
        context = None
        if not file["shipped"]:
            context = ssl.create_default_context()
            trusted = self._trusted()
            if trusted is not None:
                context.load_verify_locations(trusted)
        part = folder / f".{os.getpid()}.part"
        for tried in range(1, _TRIES + 1):
            try:
                _download(file, part, context)
                break
            except (OSError, urllib.error.URLError) as exc:
                if tried == _TRIES:
                    # Without its query: a SAS is a secret.
                    where = file["url"].partition("?")[0]
                    raise PreparationError(f"downloading {where} failed: {exc}") from exc
                time.sleep(tried)
        part.rename(target)
        return target


def _download(file: dict[str, Any], part: Path, context: ssl.SSLContext | None) -> None:
    """Download a file once. :raises OSError: another try may do better. :raises PreparationError: none will."""
    found, size = hashlib.sha256(), 0
    with archive.open_url(file["url"], context=context) as answer, part.open("wb") as out:
        while True:
            piece = answer.read(1 << 20)
            if not piece:
                break
            found.update(piece)
            size += len(piece)
            out.write(piece)
        expected = answer.headers.get("Content-Length")
    if expected is not None and size != int(expected):
        raise OSError(f"{size} of {expected} bytes arrived")
    if found.hexdigest() != file["sha256"]:
        where = file["url"].partition("?")[0]
        raise PreparationError(f"{where} has the SHA-256 {found.hexdigest()} and not {file['sha256']}")


def run(command: list[str], what: str, environment: dict[str, str] | None = None) -> None:
    """Run a program whose output goes to this task's stderr."""
    sys.stdout.flush()
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr, timeout=_INSTALL_SECONDS
        )
    except subprocess.TimeoutExpired:
        _fail(what, f"it took more than {_INSTALL_SECONDS:.0f} s")
    except OSError as exc:
        _fail(what, str(exc))
    if done.returncode != 0:
        _fail(what, f"exit code {done.returncode}; what it said is above")


def _fail(what: str, why: str) -> NoReturn:
    raise PreparationError(f"{what} failed: {why}")


def say(line: str) -> None:
    """Write a line to this task's stdout."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
