"""Which Python of this node runs an environment, and the virtual environment around it.

Used by the job preparation's program, under whatever Python the node has: the standard library of 3.8 only.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

_ASK = (
    "import json, sys, sysconfig; print(json.dumps([list(sys.version_info[:3]), "
    "getattr(sys, '_base_executable', None) or sys.executable, sys.implementation.name, "
    "bool(sysconfig.get_config_var('Py_GIL_DISABLED'))]))"
)


class Interpreter(NamedTuple):
    """A Python of this node."""

    executable: str
    version: str

    @property
    def minor(self) -> str:
        """As ``3.12``."""
        return ".".join(self.version.split(".")[:2])


def ask(command: str) -> Interpreter | None:
    """Return what is behind a command, the base interpreter where it is a virtual environment's; None where nothing."""
    path = shutil.which(command)
    if path is None:
        return None
    try:
        done = subprocess.run([path, "-c", _ASK], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
        version, executable, implementation, free_threaded = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    if implementation != "cpython" or free_threaded:
        return None
    return Interpreter(executable, ".".join(str(part) for part in version))


def find(minor: str, commands: list[str], managed: Path) -> Interpreter | None:
    """Return an interpreter of that minor version: behind one of `commands`, on the path, or below `managed`."""
    own = sorted(str(path) for path in managed.glob(f"*/**/bin/python{minor}"))
    for command in [*commands, f"python{minor}", *own]:
        found = ask(command)
        if found is not None and found.minor == minor:
            return found
    return None


def make_venv(folder: Path, python: Interpreter) -> Path:
    """Make a virtual environment, or put another interpreter into one, and return its Python.

    By hand, since that takes neither a module that Linux distributions split off nor half a second.
    """
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "lib" / f"python{python.minor}" / "site-packages").mkdir(parents=True, exist_ok=True)
    if not (folder / "lib64").exists():
        os.symlink("lib", folder / "lib64")
    for name in ("python", "python3", f"python{python.minor}"):
        os.symlink(python.executable, folder / "bin" / name)
    lines = {
        "home": os.path.dirname(python.executable),
        "implementation": "CPython",
        "version_info": python.version,
        "include-system-site-packages": "false",
        # uv then writes scripts that find their interpreter beside themselves.
        "relocatable": "true",
    }
    (folder / "pyvenv.cfg").write_text("".join(f"{key} = {value}\n" for key, value in lines.items()))
    return folder / "bin" / "python"
