"""What the nodes of a size are, and what of an environment has to come from this machine.

Nodes fetch by themselves what an index gives to anybody. What is on this machine, behind credentials, or wanted
offline is brought here first, and built where there is no wheel of it.
"""

from __future__ import annotations

import concurrent.futures
import logging
import platform
import re
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ..errors import PackagesError
from .indexes import Indexes
from .lock import LockedFile, cache_folder, run_uv
from .wheels import build, download, runs_on_nodes, sha256_of

logger = logging.getLogger(__name__)

_STREAMS = 8


def node_platform(vm_size: str) -> str | None:
    """Return the platform of a size's nodes as uv names it; None for emulated nodes, which are this machine.

    Examples
    --------
    >>> node_platform("Standard_D4s_v5"), node_platform("Standard_D4ps_v5")
    ('x86_64-manylinux_2_28', 'aarch64-manylinux_2_28')
    """
    if vm_size.lower().startswith("emulated_"):
        return None
    features = re.match(r"^[A-Za-z]+_[A-Za-z]+\d+(?:-\d+)?([a-z]*)", vm_size)
    # https://learn.microsoft.com/azure/virtual-machines/vm-naming-conventions: p is ARM. glibc 2.28 is the oldest
    # among the images that Batch supports.
    arm = features is not None and "p" in features[1]
    return f"{'aarch64' if arm else 'x86_64'}-manylinux_2_28"


def is_foreign(target: str | None) -> bool:
    """Tell whether what was built on this machine does not run on the nodes."""
    if target is None:
        return False
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    return sys.platform != "linux" or not target.startswith(machine)


def obtain(files: Iterable[LockedFile], indexes: Indexes, *, offline: bool, foreign: bool) -> list[LockedFile]:
    """Bring onto this machine what the nodes cannot fetch by themselves."""

    def bring(file: LockedFile) -> LockedFile:
        if not file.path and file.sha256 and not offline and indexes.node_fetches(file.url):
            return file
        path = Path(file.path) if file.path else download(file, indexes)
        sha256 = sha256_of(path)
        if file.path and file.sha256 and sha256 != file.sha256:
            raise PackagesError(f"{path} has changed while it was being used")
        if not file.is_wheel:
            # Nodes that could not fetch it could not fetch what it is built with either.
            path = build(path, cache_folder() / "built" / sha256, indexes, f"{file.name} {file.version}")
            sha256 = sha256_of(path)
            if not runs_on_nodes(path.name, foreign_platform=foreign):
                raise PackagesError(
                    f"{file.name} {file.version} has no wheel for the nodes, and what was built of it here runs here "
                    "only. Build a wheel for the nodes and name it in pythonPackages.wheels, or leave it out with "
                    "environment.exclude"
                )
        return replace(file, file=path.name, sha256=sha256, url="", path=str(path))

    with concurrent.futures.ThreadPoolExecutor(_STREAMS) as pool:
        return list(pool.map(bring, files))


def certificates(indexes: Indexes) -> LockedFile | None:
    """Return the certificate authorities of the user's indexes; None where there are none of their own."""
    path = indexes.certificates
    if path is None:
        return None
    return LockedFile(name="certificates", version="", file="certificates.pem", sha256=sha256_of(path), path=str(path))


def python_archive(python: str, target: str, indexes: Indexes) -> LockedFile | None:
    """Return an archive of Python for nodes that have another one and no internet; None where it cannot be had.

    Nodes whose image has that version do without, so its lack is no error yet.
    """
    machine = target.partition("-")[0]
    name = f"cpython-{python}-linux-{machine}-gnu"
    kept = cache_folder() / "python" / f"{name}.tar.gz"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="joblib_azure-") as folder:
            fetch = ["python", "install", "--no-bin", "--no-registry", "--install-dir", folder, name]
            try:
                run_uv(fetch, indexes, f"fetching Python {python} for the nodes", {"UV_PYTHON_DOWNLOADS": "automatic"})
            except PackagesError as exc:
                logger.warning("nodes without Python %s cannot be used offline: %s", python, exc)
                return None
            part = kept.with_suffix(".part")
            with tarfile.open(part, "w:gz", compresslevel=1) as tar:
                for entry in sorted(Path(folder).glob("cpython-*")):
                    if not entry.is_symlink():
                        tar.add(entry, arcname=entry.name)
            part.replace(kept)
    return LockedFile(name="python", version=python, file=kept.name, sha256=sha256_of(kept), path=str(kept))
