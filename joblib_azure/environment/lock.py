"""A lock: one file for each package, by name, version and SHA-256, as uv resolves them for the nodes' platform.

::

    requirements, the client's versions as constraints ─► uv pip compile ─► pylock.toml ─► one file a package
                                                              │ kept for a day, by all that went in
                                                              └─► the same lock again without asking an index

No URL counts for a lock's digest, and no credentials are in it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import platformdirs

from ..errors import PackagesError
from .indexes import Indexes

#: A part of every digest: another way to build environments is another environment.
_FORMAT = 1
#: Seconds for which a resolution is used again: what the client pins does not change, the rest may.
_KEPT_SECONDS = 86400.0
#: Seconds that uv may take to resolve, downloads of metadata and builds included.
_UV_SECONDS = 600.0
_STDERR_TAIL = 3000
_WHEEL = re.compile(r"-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<platform>[^-]+)\.whl$")


@dataclass(frozen=True, kw_only=True)
class LockedFile:
    """A package as the lock has it: one file, on an index or on this machine."""

    name: str
    version: str
    file: str
    sha256: str  #: empty where the index does not say it
    url: str = ""
    path: str = ""

    @property
    def is_wheel(self) -> bool:
        """Whether it can be installed as it is."""
        return self.file.endswith(".whl")


def digest_of(files: Iterable[LockedFile], python: str, platform: str | None) -> str:
    """Return the name of an environment: the same packages for the same Python and platform have the same."""
    packages = sorted([file.name, file.version, file.sha256] for file in files)
    text = json.dumps([_FORMAT, python, platform, packages])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def cache_folder() -> Path:
    """Return where locks, built wheels and downloads are kept on the client."""
    folder = Path(platformdirs.user_cache_dir("joblib_azure", appauthor=False)) / "environment"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def uv_program() -> str:
    """Return the path of uv.

    Raises
    ------
    PackagesError
        Where there is none.
    """
    try:
        return str(importlib.import_module("uv").find_uv_bin())
    except (ImportError, FileNotFoundError, AttributeError):
        found = shutil.which("uv")
    if found is None:
        raise PackagesError(
            "uv is needed to find out which packages the nodes get, and is not installed: `pip install uv`. Where the "
            'nodes have everything already, environment.mode = "none" does without'
        )
    return found


@functools.cache
def uv_version() -> str:
    """Return the version of the client's uv, which is what the nodes use too."""
    said = subprocess.run([uv_program(), "--version"], capture_output=True, text=True, timeout=60).stdout.split()
    return said[1] if len(said) > 1 else ""


def run_uv(arguments: Sequence[str], indexes: Indexes, what: str, variables: Mapping[str, str] | None = None) -> str:
    """Run uv on the client and return its stdout.

    Raises
    ------
    PackagesError
        With what uv said, without credentials.
    """
    command = [uv_program(), *arguments]
    try:
        done = subprocess.run(
            command,
            env={**indexes.uv_environment(), **(variables or {})},
            capture_output=True,
            text=True,
            timeout=_UV_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise PackagesError(f"{what} took more than {_UV_SECONDS:.0f} s") from None
    if done.returncode != 0:
        raise PackagesError(f"{what} failed. uv says:\n{indexes.mask(done.stderr)[-_STDERR_TAIL:].strip()}")
    return done.stdout


def resolve(
    requirements: Sequence[str],
    constraints: Sequence[str],
    excludes: Sequence[str],
    *,
    python: str,
    platform: str | None,
    indexes: Indexes,
) -> list[LockedFile]:
    """Resolve requirements for the nodes, uv itself among them.

    Parameters
    ----------
    requirements, constraints : sequence of str
        As pip reads them.
    excludes : sequence of str
        Names that are left out, whoever needs them.
    python : str
        Minor version.
    platform : str or None
        As uv's ``--python-platform`` takes it; None for the client's own.
    indexes : Indexes

    Raises
    ------
    PackagesError
    """
    asked = [
        [*requirements, f"uv=={uv_version()}"],
        [*constraints],
        [*excludes],
        [python, platform or sys.platform, uv_version()],
        [indexes.mask(url) for url in (*indexes.all, *indexes.find_links)],
    ]
    name = hashlib.sha256(json.dumps([_FORMAT, *asked]).encode()).hexdigest()[:32]
    kept = cache_folder() / f"lock-{name}.json"
    found = _read_kept(kept)
    if found is None:
        found = _parse(_compile(asked[0], constraints, excludes, python, platform, indexes))
        part = kept.with_suffix(f".{time.monotonic_ns()}")
        part.write_text(json.dumps([asdict(file) for file in found]))
        part.replace(kept)
    return found


def _read_kept(kept: Path) -> list[LockedFile] | None:
    try:
        if time.time() - kept.stat().st_mtime > _KEPT_SECONDS:
            return None
        found = [LockedFile(**values) for values in json.loads(kept.read_text())]
    except (OSError, ValueError, TypeError):
        return None
    return found if all(not file.path or Path(file.path).exists() for file in found) else None


def _compile(
    requirements: Sequence[str],
    constraints: Sequence[str],
    excludes: Sequence[str],
    python: str,
    platform: str | None,
    indexes: Indexes,
) -> str:
    with tempfile.TemporaryDirectory(prefix="joblib_azure-") as folder:
        names = {"requirements.in": requirements, "constraints.txt": constraints, "excludes.txt": excludes}
        for name, lines in names.items():
            Path(folder, name).write_text("".join(f"{line}\n" for line in lines))
        command = ["pip", "compile", f"{folder}/requirements.in", "--format", "pylock.toml", "--quiet", "--no-header"]
        command += ["--constraints", f"{folder}/constraints.txt", "--python-version", python]
        command += ["--python", sys.executable]
        command += ["--excludes", f"{folder}/excludes.txt"] if excludes else []
        command += ["--python-platform", platform] if platform else []
        command += ["--no-index"] if indexes.no_index else []
        try:
            return run_uv(command, indexes, "finding the packages for the nodes")
        except PackagesError as exc:
            raise PackagesError(f"{exc}\n{_advice(str(exc), constraints)}") from None


def _advice(said: str, constraints: Sequence[str]) -> str:
    """Return the next step, naming the versions that no index has."""
    local = sorted(line for line in constraints if "+" in line and line.partition("==")[0] in said)
    lines = []
    if local:
        lines.append(
            f"Here {', '.join(local)} is installed, which is a local build: say where the nodes find it with "
            "pythonPackages.extraIndexUrls or pythonPackages.wheels, or name another version in pythonPackages.pypi."
        )
    lines.append(
        "The nodes get the versions that are installed here. Where one is not to be had for them, name another in "
        "pythonPackages.pypi, or its index in pythonPackages.extraIndexUrls, or leave it out with environment.exclude."
    )
    return " ".join(lines)


def _parse(text: str) -> list[LockedFile]:
    # The standard library has it from Python 3.11 on.
    toml: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    return [_choose(package) for package in toml.loads(text).get("packages", [])]


def _choose(package: dict[str, Any]) -> LockedFile:
    """Return the one file of a package that the nodes install."""
    wheels = sorted(package.get("wheels", ()), key=lambda wheel: _preference(_file_name(wheel)))
    given = wheels[-1] if wheels else package.get("archive") or package.get("sdist")
    if given is None:
        raise PackagesError(
            f"{package['name']} comes as neither a wheel nor a source distribution: build a wheel of it and name that "
            "in pythonPackages.wheels"
        )
    url = given.get("url", "")
    path = given.get("path", "")
    if url.startswith("file:"):
        url, path = "", unquote(urlsplit(url).path)
    return LockedFile(
        name=package["name"],
        version=package.get("version", "0"),
        file=_file_name(given),
        sha256=given.get("hashes", {}).get("sha256", ""),
        url=url,
        path=path,
    )


def _file_name(given: dict[str, Any]) -> str:
    place = given.get("name") or urlsplit(given.get("url", "")).path or given.get("path", "")
    return unquote(str(place)).rpartition("/")[2]


def _preference(file: str) -> tuple[bool, list[int], list[int], str]:
    """Order wheels, all of which fit: an own ABI before a stable one, newer tags before older ones."""
    tags = _WHEEL.search(file)
    if tags is None:
        return False, [], [], file
    own = tags["abi"].startswith("cp")
    numbers = [int(number) for number in re.findall(r"\d+", tags["python"])]
    systems = [int(number) for number in re.findall(r"manylinux_2_(\d+)", tags["platform"])]
    return own, numbers, sorted(systems, reverse=True), file
