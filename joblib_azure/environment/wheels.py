"""Wheels that no node can fetch by itself: built from git, packed from what is installed here, downloaded.

All of them land in the client's cache, under names that tell their content, and are made once.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from ..errors import PackagesError
from .indexes import Indexes, without_credentials
from .installed import Distribution
from .lock import LockedFile, cache_folder, run_uv

_GIT_SECONDS = 600.0
_DOWNLOAD_SECONDS = 60.0
_TRIES = 3


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def runs_on_nodes(wheel: str, *, foreign_platform: bool) -> bool:
    """Tell from a wheel's name whether nodes can load it, given that it was built or taken here."""
    return wheel.endswith("-none-any.whl") or not foreign_platform


# git ----------------------------------------------------------------------------------------------------


def build_from_git(requirement: str, indexes: Indexes, token: str | None) -> tuple[str, Path]:
    """Build the wheel of a ``git+https://…@tag#subdirectory=…`` with the client's own git.

    Parameters
    ----------
    requirement : str
        With or without ``name @`` before it.
    indexes : Indexes
        Where what it is built with comes from.
    token : str or None
        A token for github.com.

    Returns
    -------
    name : str
        Of the distribution.
    path : Path
        Of its wheel.
    """
    url = requirement.partition("git+")[2]
    url, _, fragment = url.partition("#")
    # The last @ behind the host begins the revision; one before it is a user.
    place = re.match(r"(?P<repository>\w+://[^/]*/.*?)(?:@(?P<revision>[^@/].*))?$", url)
    if place is None:
        raise PackagesError(f"pythonPackages.git: {indexes.mask(requirement)!r} is not 'git+https://…'")
    repository, revision = place["repository"], place["revision"] or "HEAD"
    shown = without_credentials(repository)
    if shutil.which("git") is None:
        raise PackagesError(f"pythonPackages.git names {shown}, and git is not installed on this machine")
    subdirectory = parse_qs(fragment).get("subdirectory", [""])[0]
    with tempfile.TemporaryDirectory(prefix="joblib_azure-") as folder:
        _git(["init", "--quiet", folder], folder, shown, token, indexes)
        _git(["remote", "add", "origin", repository], folder, shown, token, indexes)
        try:
            _git(["fetch", "--quiet", "--depth", "1", "origin", revision], folder, shown, token, indexes)
            _git(["checkout", "--quiet", "FETCH_HEAD"], folder, shown, token, indexes)
        except PackagesError:
            # Servers need not give a commit that is no branch's end: take all of it.
            _git(["fetch", "--quiet", "--tags", "origin"], folder, shown, token, indexes)
            _git(["checkout", "--quiet", revision], folder, shown, token, indexes)
        commit = _git(["rev-parse", "HEAD"], folder, shown, token, indexes).strip()
        key = hashlib.sha256(f"{shown} {commit} {subdirectory} {sys.version_info[:2]}".encode()).hexdigest()[:32]
        kept = cache_folder() / "git" / key
        built = sorted(kept.glob("*.whl"))
        wheel = built[0] if built else build(Path(folder, subdirectory), kept, indexes, f"{shown} at {commit[:12]}")
    return wheel.name.partition("-")[0], wheel


def _git(arguments: list[str], folder: str, shown: str, token: str | None, indexes: Indexes) -> str:
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    if token is not None:
        # In the environment: a command line is there for everybody on this machine to read.
        header = base64.b64encode(f"x-access-token:{token}".encode()).decode()
        environment.update(
            GIT_CONFIG_COUNT="1",
            GIT_CONFIG_KEY_0="http.https://github.com/.extraHeader",
            GIT_CONFIG_VALUE_0=f"Authorization: Basic {header}",
        )
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=_GIT_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise PackagesError(f"git took more than {_GIT_SECONDS:.0f} s for {shown}") from None
    if done.returncode != 0:
        raise PackagesError(
            f"git {arguments[0]} of {shown} failed: {indexes.mask(done.stderr).strip()}. Check the address and the "
            "revision; for a private repository on GitHub set githubToken in the credentials"
        )
    return done.stdout


def build(source: Path, folder: Path, indexes: Indexes, what: str) -> Path:
    """Build the wheel of a project or of a source distribution into `folder`, which appears with it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        command = ["build", "--wheel", "--quiet", "--no-create-gitignore", "--python", sys.executable]
        run_uv([*command, "--out-dir", str(part), str(source)], indexes, f"building a wheel of {what}")
        if not folder.exists():
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return min(folder.glob("*.whl"))


# what is installed here ---------------------------------------------------------------------------------


def pack_installed(distribution: Distribution) -> Path:
    """Pack a distribution that came from no index into a wheel again.

    Raises
    ------
    PackagesError
        Where it has extension modules, which the nodes may not be able to load, or where its files are gone.
    """
    root = distribution.info.parent
    record = distribution.read("RECORD")
    # Paths with commas are quoted; scripts lie outside of the folder, and the wheel's entry points bring them back.
    listed = [line.rsplit(",", 2)[0].strip('"') for line in record.splitlines() if line.strip()]
    inside = [name for name in listed if not name.startswith("..") and not name.endswith(".pyc")]
    where = distribution.source.get("url", "a local file")
    if not inside or any(name.endswith(tuple(EXTENSION_SUFFIXES)) for name in inside):
        raise PackagesError(
            f"{distribution.name} {distribution.version} was installed from {without_credentials(where)} and has parts "
            "that were built for this machine. Build a wheel of it for the nodes and name that in "
            "pythonPackages.wheels, or leave it out with environment.exclude"
        )
    contents: dict[str, bytes] = {}
    info = distribution.info.name
    for name in inside:
        if name.startswith(f"{info}/") and name.rpartition("/")[2] in (
            "RECORD", "INSTALLER", "REQUESTED", "direct_url.json",
        ):  # fmt: skip
            continue
        try:
            contents[name] = (root / name).read_bytes()
        except OSError as exc:
            raise PackagesError(f"{distribution.name} is installed here, but {name} of it is gone: {exc}") from exc
    lines = [f"{name},sha256={_record_hash(data)},{len(data)}" for name, data in sorted(contents.items())]
    contents[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()
    key = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]
    stem = info.removesuffix(".dist-info")
    target = cache_folder() / "installed" / key / f"{stem}-py3-none-any.whl"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{time.monotonic_ns()}")
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in sorted(contents.items()):
                archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
        part.replace(target)
    return target


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


# downloads ----------------------------------------------------------------------------------------------


def download(file: LockedFile, indexes: Indexes) -> Path:
    """Return a locked file of an index, downloaded once, with the index' credentials.

    Raises
    ------
    PackagesError
        Where it cannot be had or is not what the lock says.
    """
    name = file.sha256 or hashlib.sha256(without_credentials(file.url).encode()).hexdigest()
    target = cache_folder() / "files" / name / file.file
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    shown = without_credentials(file.url)
    context = ssl.create_default_context()
    if indexes.certificates is not None:
        context.load_verify_locations(indexes.certificates)
    plain = urlsplit(file.url)
    # urllib takes no user in a URL.
    url = plain._replace(netloc=plain.netloc.rpartition("@")[2]).geturl()
    request = urllib.request.Request(url, headers=indexes.authorization(file.url))
    part = target.with_suffix(f".{time.monotonic_ns()}")
    for tried in range(1, _TRIES + 1):
        try:
            answer = urllib.request.urlopen(request, timeout=_DOWNLOAD_SECONDS, context=context)
            with answer, part.open("wb") as out:
                shutil.copyfileobj(answer, out, 1 << 20)
            break
        except (OSError, urllib.error.URLError) as exc:
            final = isinstance(exc, urllib.error.HTTPError) and exc.code < 500
            if final or tried == _TRIES:
                raise PackagesError(f"downloading {shown} failed: {indexes.mask(str(exc))}") from None
            time.sleep(tried)
    found = sha256_of(part)
    if file.sha256 and found != file.sha256:
        part.unlink()
        raise PackagesError(f"{shown} has the SHA-256 {found}, and the index says {file.sha256}")
    part.replace(target)
    return target
