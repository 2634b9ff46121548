"""The user's own modules as archives that travel with the bundles, named by their content.

One archive for each package and one for all single modules, so that an edit moves what was edited. The same files
give the same bytes. Data files inside packages travel too; byte code and what tools leave behind does not.

::

    user code ─► files with time and size ──unchanged──► the archives of last time
                          │ changed
                          └─► zip ─► SHA-256 ─► stored once per content, as buffers are
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from ..codec import Buffer, content_name
from ..errors import PackagesError
from .installed import distributions
from .usercode import UserCode, find_user_code

#: Bytes of all files of an overlay. It is held in memory, stored again where it changes, and unpacked on every node:
#: above that it is data, which has better ways.
MAX_OVERLAY = 100 << 20
_LEFT_OUT = frozenset({"__pycache__", "node_modules"})
#: The files that `importlib.metadata` reads of an editable project.
_METADATA = ("METADATA", "PKG-INFO", "entry_points.txt")

#: Place in the archive, path, size, time.
_File = tuple[str, str, int, int]


@dataclass
class _Part:
    files: tuple[_File, ...]
    buffer: Buffer


class Overlay:
    """Follows the user's modules from one Parallel call to the next.

    Parameters
    ----------
    projects : iterable of Path
        Folders of local projects that travel whether or not they are imported here.
    exclude : iterable of str
        Top-level names that stay at home.
    foreign_platform : bool
        Whether the nodes cannot load the client's extension modules.
    """

    def __init__(
        self, projects: Iterable[Path] = (), exclude: Iterable[str] = (), *, foreign_platform: bool = False
    ) -> None:
        self._projects = tuple(projects)
        self._exclude = frozenset(exclude)
        self._foreign_platform = foreign_platform
        self._parts: dict[str, _Part] = {}

    def look(self) -> tuple[list[Buffer], UserCode]:
        """Return the archives as the files are now, and the user code that they hold.

        Raises
        ------
        PackagesError
            Where they are too large, or hold what the nodes cannot load.
        """
        code = find_user_code(self._exclude)
        for project in self._projects:
            _add_project(code, project)
        wanted = dict(_parts(code))
        self._check(wanted)
        for name in set(self._parts) - set(wanted):
            del self._parts[name]
        for name, files in wanted.items():
            known = self._parts.get(name)
            if known is None or known.files != files:
                data = _archive(files)
                self._parts[name] = _Part(files, Buffer(content_name(data), memoryview(data)))
        return [self._parts[name].buffer for name in sorted(self._parts)], code

    def _check(self, wanted: dict[str, tuple[_File, ...]]) -> None:
        sizes = {name: sum(size for _, _, size, _ in files) for name, files in wanted.items()}
        if sum(sizes.values()) > MAX_OVERLAY:
            largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
            said = ", ".join(f"{name} has {sizes[name] / 1e6:.0f} MB" for name in largest)
            raise PackagesError(
                f"the modules of yours that go to the nodes have {sum(sizes.values()) / 1e6:.0f} MB, and at most "
                f"{MAX_OVERLAY / 1e6:.0f} MB are sent with calls: {said}. Keep data out of the packages (pass it as an "
                "argument, or mount it), or name in environment.exclude what the calls do not need"
            )
        for files in wanted.values() if self._foreign_platform else ():
            for _, path, _, _ in files:
                if path.endswith(tuple(EXTENSION_SUFFIXES)):
                    raise PackagesError(
                        f"{path} was built for this machine, and the nodes are of another kind. Build a wheel of its "
                        "project for them and name it in pythonPackages.wheels, or name it in environment.exclude"
                    )


def _parts(code: UserCode) -> Iterator[tuple[str, tuple[_File, ...]]]:
    for name, folder in code.packages.items():
        yield name, tuple(_tree(folder, name))
    for name, folders in code.namespaces.items():
        yield name, tuple(file for folder in folders for file in _namespace(folder, name))
    singles = [_file(path, path.name) for _, path in sorted(code.modules.items())]
    singles += _editable_metadata(code)
    files = tuple(file for file in singles if file is not None)
    if files:
        # No package can have that name.
        yield "", files


def _file(path: Path | str, place: str) -> _File | None:
    try:
        found = os.stat(path)
    except OSError:
        return None  # gone, or a dangling link
    return (place, str(path), found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _wanted(here: str, name: str) -> bool:
    """Tell whether a folder or a file may be the user's: no caches, no virtual environments."""
    hidden = name in _LEFT_OUT or name.startswith(".")
    return not (hidden or os.path.exists(os.path.join(here, name, "pyvenv.cfg")))


def _tree(folder: Path, place: str) -> Iterator[_File]:
    """Yield all files of a package."""
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if _wanted(here, name))
        inside = Path(place, Path(here).relative_to(folder)).as_posix()
        for name in sorted(names):
            file = None if name.endswith((".pyc", ".pyo")) else _file(os.path.join(here, name), f"{inside}/{name}")
            if file is not None:
                yield file


def _namespace(folder: Path, place: str) -> Iterator[_File]:
    """Yield the modules of a folder without ``__init__.py``, and its packages; it may hold anything else besides."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if not _wanted(str(folder), entry.name):
            continue
        inside = f"{place}/{entry.name}"
        if entry.is_dir():
            whole = os.path.exists(os.path.join(entry.path, "__init__.py"))
            yield from _tree(Path(entry.path), inside) if whole else _namespace(Path(entry.path), inside)
        elif entry.name.endswith((".py", *EXTENSION_SUFFIXES)):
            file = _file(entry.path, inside)
            if file is not None:
                yield file


def _editable_metadata(code: UserCode) -> Iterator[_File | None]:
    """Yield what `importlib.metadata` asks for of the editable projects whose modules travel."""
    for distribution in distributions().values():
        if distribution.info.name.endswith(".dist-info") and distribution.editable:
            names = {distribution.name.replace("-", "_"), *distribution.top_levels}
            if any(name in code for name in names):
                for name in _METADATA:
                    yield _file(distribution.info / name, f"{distribution.info.name}/{name}")


def _add_project(code: UserCode, project: Path) -> None:
    """Add what a local project brings, in either of the usual layouts.

    Raises
    ------
    PackagesError
        Where there is no such folder, or nothing to import in it.
    """
    if not project.is_dir():
        raise PackagesError(f"pythonPackages.editable names {project}, which is not a folder")
    found = False
    root = project / "src" if (project / "src").is_dir() else project
    for entry in sorted(root.iterdir()):
        if (entry / "__init__.py").is_file() and entry.name not in ("tests", "test", "docs"):
            code.packages.setdefault(entry.name, entry.absolute())
            found = True
        elif entry.suffix == ".py" and entry.stem.isidentifier() and entry.name not in ("setup.py", "conftest.py"):
            code.modules.setdefault(entry.stem, entry.absolute())
            found = True
    if not found:
        raise PackagesError(
            f"pythonPackages.editable names {project}, where neither a package with __init__.py nor a module is; "
            "name the folder that holds pyproject.toml"
        )


def _archive(files: Iterable[_File]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for place, path, _, _ in files:
            # A fixed time: the same content gives the same name whenever it was written.
            archive.writestr(zipfile.ZipInfo(place), Path(path).read_bytes(), zipfile.ZIP_DEFLATED)
    return stream.getvalue()
