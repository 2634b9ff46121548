"""What a node's Python has, against what a call's pickles were made with.

The job preparation writes the node's inventory once; every task compares it with what the bundle's manifest needs
before anything is unpickled, for the price of one small file.

The inventory is made by the job preparation's program: the standard library of 3.8 only.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

#: The inventory's file, in the folder of the node code.
INVENTORY = "versions.json"
#: The folder of a distribution's metadata.
INFO_FOLDER = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+?)(?:-py[\d.]+)?\.(?:dist|egg)-info$")


def normalized(name: str) -> str:
    """Return a distribution's name as PyPI compares them."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed(path: list[str]) -> dict[str, str]:
    """Return the distributions on `path` and their versions, by the names of their folders: no file is opened."""
    found: dict[str, str] = {}
    for entry in path:
        try:
            names = os.listdir(entry or ".")
        except OSError:
            continue
        for name in names:
            match = INFO_FOLDER.match(name)
            if match:
                found.setdefault(normalized(match["name"]), match["version"])
    return found


def write_inventory(folder: Path) -> None:
    """Leave in `folder` what the running interpreter has."""
    have = {"python": platform.python_version(), "executable": sys.executable, "packages": installed(sys.path)}
    (folder / INVENTORY).write_text(json.dumps(have))


def read_inventory(folder: Path) -> dict[str, Any] | None:
    """Return what `write_inventory` left, or None."""
    try:
        have: dict[str, Any] = json.loads((folder / INVENTORY).read_text())
    except (OSError, ValueError):
        return None
    return have


def differences(needs: dict[str, Any], have: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Compare a client with a node.

    Parameters
    ----------
    needs : dict
        ``python``, ``packages`` (name to version) and ``required``: names that must be there at all.
    have : dict
        As `write_inventory` has it.

    Returns
    -------
    serious : list of str
        Differences with which a pickle may not load, or load as something else.
    slight : list of str
        Patch levels.
    """
    serious: list[str] = []
    slight: list[str] = []
    if _release(needs["python"]) != _release(have["python"]):
        serious.append(f"Python is {have['python']} on the node and {needs['python']} on the client")
    for name, version in sorted(needs["packages"].items()):
        found = have["packages"].get(normalized(name))
        if found is None:
            if name in needs["required"]:
                serious.append(f"{name} is not on the node ({version} on the client)")
        elif found != version:
            kind = slight if _release(found) == _release(version) else serious
            kind.append(f"{name} is {found} on the node and {version} on the client")
    return serious, slight


def _release(version: str) -> tuple[str, ...]:
    """Return major and minor of a version; a local version's label and the patch level do not count."""
    numbers = re.match(r"v?(\d+)(?:\.(\d+))?", version)
    return (numbers[1], numbers[2] or "0") if numbers else (version,)
