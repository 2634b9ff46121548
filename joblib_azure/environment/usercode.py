"""Which modules are the user's own, and what they import.

A module is the user's own where it lies neither in the standard library nor in a ``site-packages``: the script's
neighbours, editable projects, what ``PYTHONPATH`` adds. It travels with the bundles. What it imports from a
distribution has to be in the nodes' environment. An import inside a function has not happened yet, so the sources are
read as well as ``sys.modules``; of a notebook, the cells that ran.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import re
import sys
import sysconfig
import types
from dataclasses import dataclass, field
from pathlib import Path

_OWN = __package__.partition(".")[0]
#: What development tools load from folders of their own.
_DEBUGGERS = re.compile(r"_?pydev|debugpy")
#: Lines of a notebook's cell that are IPython's and not Python's.
_MAGIC = re.compile(r"^\s*[%!?].*$|^.*\?\s*$", re.MULTILINE)


@dataclass
class UserCode:
    """The user's own modules, and what they import from elsewhere."""

    #: Top-level packages (name to folder), with all that lies in the folder.
    packages: dict[str, Path] = field(default_factory=dict)
    #: Packages without ``__init__.py`` (name to its folders).
    namespaces: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    #: Top-level modules (name to file).
    modules: dict[str, Path] = field(default_factory=dict)
    #: Full names of what they import from elsewhere.
    foreign: set[str] = field(default_factory=set)

    def __contains__(self, top_level: str) -> bool:
        return top_level in self.packages or top_level in self.namespaces or top_level in self.modules


@functools.cache
def _library_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple({os.path.realpath(paths[key]) + os.sep for key in ("stdlib", "platstdlib")})


@functools.lru_cache(maxsize=65536)
def is_own_file(path: str) -> bool:
    """Tell whether a module's file is the user's own code."""
    if not path or not os.path.isabs(path) or path.startswith("<"):
        return False
    parts = Path(path).parts
    if "site-packages" in parts or "dist-packages" in parts:
        return False
    return not os.path.realpath(path).startswith(_library_folders())


def find_user_code(exclude: frozenset[str] = frozenset()) -> UserCode:
    """Look at what is loaded, and follow its imports.

    Parameters
    ----------
    exclude : frozenset of str
        Top-level names that stay at home.
    """
    scan = _Scan(exclude)
    for name, module in list(sys.modules.items()):
        top_level = name.partition(".")[0]
        if top_level in sys.stdlib_module_names or not isinstance(module, types.ModuleType):
            continue
        scan.loaded(name, module)
    scan.main(sys.modules.get("__main__"))
    scan.follow()
    return scan.found


class _Scan:
    def __init__(self, exclude: frozenset[str]) -> None:
        self.found = UserCode()
        self._exclude = exclude | {_OWN, "__main__", "__mp_main__"}
        self._waiting: list[tuple[str, Path]] = []
        self._read: set[Path] = set()
        self._names: set[str] = set()

    def loaded(self, name: str, module: types.ModuleType) -> None:
        """Take a loaded module, if it is the user's."""
        top_level = name.partition(".")[0]
        if top_level in self._exclude or _DEBUGGERS.match(top_level):
            return
        file = getattr(module, "__file__", None)
        if file is None or not is_own_file(os.path.abspath(file)):
            return
        path = Path(os.path.abspath(file))
        self._place(top_level, sys.modules.get(top_level), path if name == top_level else None)
        if top_level in self.found and path.suffix == ".py":
            self._waiting.append((name if path.name == "__init__.py" else name.rpartition(".")[0], path))

    def _place(self, top_level: str, module: types.ModuleType | None, path: Path | None) -> None:
        """Note where a top-level name of the user's lies."""
        if top_level in self.found or module is None:
            return
        if path is None:
            file = getattr(module, "__file__", None)
            path = Path(os.path.abspath(file)) if file else None
        if path is None:
            folders = tuple(Path(entry) for entry in getattr(module, "__path__", ()))
            own = tuple(folder for folder in folders if is_own_file(str(folder / "x.py")))
            if own:
                self.found.namespaces[top_level] = own
        elif hasattr(module, "__path__"):
            self.found.packages[top_level] = path.parent
        else:
            self.found.modules[top_level] = path

    def main(self, module: types.ModuleType | None) -> None:
        """Take the imports of the script, or of the notebook's cells, and what its globals are."""
        if module is None:
            return
        file = getattr(module, "__file__", None)
        if file and Path(file).suffix == ".py" and Path(file).exists():
            package = (getattr(module, "__package__", None) or "").strip()
            if is_own_file(os.path.abspath(file)):
                self._waiting.append((package, Path(os.path.abspath(file))))
        cells = vars(module).get("In")
        for cell in list(cells) if isinstance(cells, list) else []:
            if isinstance(cell, str):
                self._take(_imports_of(_MAGIC.sub("pass", cell), ""))
        for value in list(vars(module).values()):
            home = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
            if isinstance(home, str):
                self._take({home})

    def follow(self) -> None:
        """Read the sources of the user's modules, and of what they import of the user's."""
        while self._waiting:
            package, path = self._waiting.pop()
            if path not in self._read:
                self._read.add(path)
                self._take(imports_of(path, package))

    def _take(self, names: set[str] | frozenset[str]) -> None:
        for name in names:
            top_level = name.partition(".")[0]
            if top_level in sys.stdlib_module_names or top_level in self._exclude:
                continue
            if name not in self._names:
                self._names.add(name)
                if not self._of_the_user(name, top_level):
                    self.found.foreign.add(name)

    def _of_the_user(self, name: str, top_level: str) -> bool:
        if top_level not in self.found:
            path = _locate(top_level)
            if path is None or not is_own_file(str(path)):
                return False
            if path.name == "__init__.py":
                self.found.packages[top_level] = path.parent
            else:
                self.found.modules[top_level] = path
        # The module itself, or the attribute's module; and every package above it.
        if top_level in self.found.packages:
            folder = self.found.packages[top_level]
            parts = name.split(".")[1:]
            for depth in range(len(parts) + 1):
                inside = folder.joinpath(*parts[:depth])
                package = ".".join([top_level, *parts[:depth]])
                for path in (inside / "__init__.py", inside.with_suffix(".py")):
                    if path.is_file() and path not in self._read:
                        above = package if path.name == "__init__.py" else package.rpartition(".")[0]
                        self._waiting.append((above, path))
        elif top_level in self.found.modules:
            self._waiting.append(("", self.found.modules[top_level]))
        return True


def _locate(top_level: str) -> Path | None:
    """Return the file of a top-level module that may not be loaded; nothing is imported."""
    loaded = sys.modules.get(top_level)
    file = getattr(loaded, "__file__", None)
    if loaded is None:
        try:
            spec = importlib.util.find_spec(top_level)
        except (ImportError, ValueError, AttributeError):
            return None
        file = spec.origin if spec is not None and spec.has_location else None
    return Path(os.path.abspath(file)) if file else None


def imports_of(path: Path, package: str) -> frozenset[str]:
    """Return the full names of the modules that a source imports anywhere in it.

    Parameters
    ----------
    path : Path
    package : str
        What its relative imports are relative to.
    """
    try:
        stat = path.stat()
    except OSError:
        return frozenset()
    return _imports_of_file(str(path), stat.st_mtime_ns, stat.st_size, package)


@functools.lru_cache(maxsize=4096)
def _imports_of_file(path: str, _time: int, _size: int, package: str) -> frozenset[str]:
    try:
        return frozenset(_imports_of(Path(path).read_bytes(), package))
    except OSError:
        return frozenset()


def _imports_of(source: str | bytes, package: str) -> set[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return set()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")
                above = above[: len(above) - (node.level - 1)] if node.level > 1 else above
                base = ".".join(part for part in (*above, base) if part)
            if base:
                found.add(base)
                found.update(f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
    return found
