"""The job preparation task: makes sure that the node has the environment of the job's lock, then the node code.

The environment's Python prepares the node code: it is kept below the package's root, once for each environment, with
its byte code. Publishing the environment's archive is a task of its own, behind the job's first ones: they must not
wait for it.

Where the nodes have everything already there is no lock, and only the second half is done: byte code, the
inventory that tasks compare with what their bundle needs, and whether what the node code imports is there.

It runs before the environment is there, under whatever Python the node has: the standard library of 3.8 only.
"""

from __future__ import annotations

import compileall
import hashlib
import importlib.util
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from . import archive, place, versions
from .begin import READY, begin
from .environment import NEEDED, Environment, PreparationError, run, say
from .locks import locked

#: The resource file that describes the environment; without it the node has everything already.
DESCRIPTION = "joblib_azure_environment.json"
#: What the job's tasks find in the preparation's folder: links to the node code and to the environment.
CODE, ENVIRONMENT = "joblib_azure_node", "joblib_azure_environment"
#: The node code as it was shipped.
ARCHIVE = "joblib_azure_node.zip"
#: The blob that describes its publication.
PUBLICATION = "publication.json"
#: Seconds after which node code goes that nobody used; it is small.
_UNUSED_SECONDS = 14 * 86400.0


def main(argv: list[str]) -> int:
    """Prepare the node for the job; 1, with the reason on stderr, where that fails."""
    folder = Path(sys.argv[0]).resolve()
    try:
        if argv == ["code"]:
            _prepare_code(folder, Path(sys.prefix))
        elif argv == ["publish"]:
            Environment(_read_publication()).publish()
        elif Path(DESCRIPTION).exists():
            python = Environment(json.loads(Path(DESCRIPTION).read_text())).ensure()
            # It holds SAS tokens that only this program needs.
            Path(DESCRIPTION).unlink()
            run([str(python), str(folder), "prepare", "code"], "preparing the node code")
        else:
            _check_imports()
            _prepare_code(folder, None)
    except (PreparationError, TimeoutError) as exc:
        sys.stderr.write(f"\njoblib_azure: {exc}\n")
        return 1
    return 0


def _read_publication() -> dict[str, Any]:
    """Return what the publication needs; with SAS tokens, so that it is in the job's own container."""
    base, _, token = os.environ.pop("JOBLIB_AZURE_INPUTS").partition("?")
    with archive.open_url(f"{base}/{PUBLICATION}?{token}") as answer:
        data: bytes = answer.read()
    if hashlib.sha256(data).hexdigest() != os.environ["JOBLIB_AZURE_PUBLICATION"]:
        raise PreparationError(f"{base}/{PUBLICATION} is not what the client stored")
    found: dict[str, Any] = json.loads(data)
    return found


def _prepare_code(folder: Path, environment: Path | None) -> None:
    """Put the node code where it outlives the job, once for each environment, and name both for the tasks."""
    if environment is not None:
        _link(ENVIRONMENT, environment)
    code = _settle(folder)
    _link(CODE, code)
    begin(code, os.environ)


def _link(name: str, target: Path) -> None:
    """Name a folder in the preparation's own, which is there already where it runs again: a retry, or a reboot."""
    link = Path(name)
    if link.is_symlink():
        link.unlink()
    link.symlink_to(target)


def _settle(folder: Path) -> Path:
    """Return the code's folder below our root; `folder` itself where the node has no place for it."""
    name = hashlib.sha256(f"{sys.executable} {sys.version}\n".encode() + Path(ARCHIVE).read_bytes()).hexdigest()[:16]
    try:
        codes = place.root(os.environ) / "code"
        codes.mkdir(exist_ok=True)
        target = codes / name
        with locked(codes / f"{name}.lock"):
            if not (target / READY).exists():
                _clean(codes)
                part = codes / f"{name}.{os.getpid()}.part"
                shutil.copytree(folder, part)
                _compile_code(part)
                (part / READY).touch()
                shutil.rmtree(target, ignore_errors=True)
                part.rename(target)
            os.utime(target)
    except OSError as exc:
        say(f"no warm runners, since the node code cannot be kept: {exc}")
        _compile_code(folder)
        return folder
    return target


def _clean(codes: Path) -> None:
    """Remove the code that nobody used for long; what a supervisor runs from was used with its last task."""
    for left in codes.iterdir():
        if left.is_dir() and time.time() - left.stat().st_mtime > _UNUSED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _compile_code(folder: Path) -> None:
    # What every task starts with. The rest of the package is there for modules of the user's that import it.
    package = folder / "joblib_azure"
    for module in ("__init__", "ending", "errors", "transfer"):
        compileall.compile_file(str(package / f"{module}.py"), quiet=2)
    for part in ("codec", "node", "retries"):
        compileall.compile_dir(str(package / part), quiet=2)
    versions.write_inventory(folder)


def _check_imports() -> None:
    # Said here, once a node, and not by every task: what the environment lacks. Looked for, not imported: that would
    # take longer than all else here, while the client uploads and the first tasks wait.
    lacks = [name for name in NEEDED if not _is_there(name)]
    if lacks:
        raise PreparationError(
            f"{sys.executable} (Python {sys.version.split()[0]}) on this node lacks what tasks import: "
            f'{", ".join(lacks)}. Leave environment.mode at "auto", so that the nodes get what the client has, or '
            "install joblib, cloudpickle, threadpoolctl and azure-storage-blob in the nodes' image"
        )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # a package above it is not
        return False
