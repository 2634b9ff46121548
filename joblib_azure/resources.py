"""What calls find as files on their nodes: local files and folders, URLs, blobs and containers.

::

    resource_files, inputs ── read ──► Resources: every error that needs no account
                           ── look ──► what storage has; every other error, before anything is created
                           ── ship ──► local ones to containers named by their content, once a storage account
                                       └─► the job preparation task's resource files ─► a node's disk, once a node
                                                                                          └─ links ─► each task's folder

The service downloads them into the folder of the job preparation task, once for all of the job's tasks on a node, and
each task links them into the folder in which its calls run (`node.given`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from .codec import PIECE, content_name
from .errors import ConfigurationError, ContentChangedError, ResourceNotFoundError
from .node.given import FOLDER
from .service import BlobService, FileSpec
from .storage import given_container, touch_container
from .transfer import side_by_side

#: What a file or a folder of this machine, a URL, or one of the account's containers is named by.
Source = str | os.PathLike[str]
Sources = Source | Sequence[Source] | Mapping[str, Source]

#: Read and execute: tasks of a node share them, so none is to write to them.
_MODE = "0550"
#: Files that are hashed or sent at a time.
_STREAMS = 8


@dataclass(kw_only=True)
class _Given:
    """Files that come from one source, and where they go."""

    said: str  #: as the user named it, for errors
    path: str  #: of the file, or of the folder above the files; empty for the folder in which calls run
    #: On the nodes, with what they are here or in storage.
    files: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What only the same source with the same content has."""
        raise NotImplementedError

    def download(self, blobs: BlobService, life: timedelta) -> FileSpec:
        """Store what is only here, and say how nodes get it."""
        raise NotImplementedError


@dataclass(kw_only=True)
class _Url(_Given):
    url: str = field(repr=False)

    @property
    def key(self) -> str:
        return f"{self.path}\0{self.url}"

    def download(self, blobs: BlobService, life: timedelta) -> FileSpec:
        return FileSpec(http_url=self.url, file_path=f"{FOLDER}/{self.path}", file_mode=_MODE)


@dataclass(kw_only=True)
class _Blobs(_Given):
    container: str
    prefix: str
    is_blob: bool = False

    @property
    def key(self) -> str:
        return f"{self.said}\0{self.container}/{self.prefix}"

    def look(self, blobs: BlobService) -> None:
        """Find what there is of it."""
        try:
            found = [each.name for each in blobs.blobs(self.container, self.prefix)]
        except ResourceNotFoundError:
            raise ConfigurationError(
                f"{self.said}: the storage account has no container {self.container!r}; `az storage container list` "
                "shows those that are"
            ) from None
        if not found:
            what = f"blob whose name begins with {self.prefix!r}" if self.prefix else "blob"
            raise ConfigurationError(f"{self.said}: the container {self.container!r} has no {what}")
        self.is_blob, self.files = self.prefix in found, {}
        if self.is_blob:
            self.path = self.path or PurePosixPath(self.prefix).name
            self.files = {self.path: self.prefix}
            return
        for name in found:
            _check_path(name, f"{self.said}: the blob {name!r}")
            self.files[str(PurePosixPath(self.path) / name)] = name

    def download(self, blobs: BlobService, life: timedelta) -> FileSpec:
        if self.is_blob:
            url = blobs.blob_url(self.container, self.prefix, life)
            return FileSpec(http_url=url, file_path=f"{FOLDER}/{self.path}", file_mode=_MODE)
        return _content_of(blobs, self.container, self.prefix, self.path, life)


@dataclass(kw_only=True)
class _Local(_Given):
    #: Below the folder of the source, or its name; with its content name.
    contents: dict[str, str] = field(default_factory=dict)
    single: bool

    @property
    def key(self) -> str:
        return f"{self.path}\0{self.digest}"

    @property
    def digest(self) -> str:
        """Names all of it: what lies where, and its content."""
        lines = "\n".join(f"{name}\0{content}" for name, content in sorted(self.contents.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    def download(self, blobs: BlobService, life: timedelta) -> FileSpec:
        container = given_container(self.digest)
        stored: set[str] = set()
        if not blobs.create_container(container):
            touch_container(blobs, container)
            # A blob is there whole, or not at all.
            stored = {item.name for item in blobs.blobs(container, "")}
        path = PurePosixPath(self.path)
        above = path.parent if self.single else path
        local = {str(PurePosixPath(at).relative_to(above)): Path(file) for at, file in self.files.items()}
        missing = [name for name in local if name not in stored]

        def store(name: str) -> None:
            try:
                with _mapped(local[name]) as data:
                    blobs.put(container, name, data, content=self.contents[name])
            except (ContentChangedError, OSError) as exc:
                raise ContentChangedError(
                    f"{local[name]} has changed since the calls were given it; run them again"
                ) from exc

        with concurrent.futures.ThreadPoolExecutor(_STREAMS, thread_name_prefix="joblib_azure-files") as pool:
            side_by_side(pool, store, missing)
        return _content_of(blobs, container, "", str(above), life)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """All that the calls of a job are given as files."""

    given: tuple[_Given, ...] = ()

    @property
    def key(self) -> str:
        """What only the same files at the same paths have; empty where there are none."""
        return "\n".join(each.key for each in self.given)

    @property
    def paths(self) -> list[str]:
        """Where the files are, relative to the folder in which calls run; of containers only after `look`."""
        return [path for each in self.given for path in each.files]

    def look(self, reach: Callable[[], BlobService]) -> None:
        """Find out what storage has of it; nothing is created.

        Parameters
        ----------
        reach : callable
            Returns the storage account's blobs.

        Raises
        ------
        ConfigurationError
            Where a container or a blob is not there, or two sources have the same path.
        ServiceError
        """
        for each in self.given:
            if isinstance(each, _Blobs):
                each.look(reach())
        _check_distinct(self.given)

    def ship(self, blobs: BlobService, life: timedelta) -> list[FileSpec]:
        """Store what is only here, and return what the nodes are to download.

        Raises
        ------
        ContentChangedError, ServiceError
        """
        return [each.download(blobs, life) for each in self.given]


def read(resource_files: Sources | None, inputs: Sources | None) -> Resources:
    """Read what a user has named; files are hashed, and nothing is created.

    Parameters
    ----------
    resource_files : path, URL, sequence of these, or mapping of str to these
        Files and folders of this machine, and URLs; a mapping says the path of each on the nodes.
    inputs : str, sequence of str, or mapping of str to str
        ``container`` or ``container/prefix`` in the storage account, in the same forms.

    Raises
    ------
    ConfigurationError
    """
    given: list[_Given] = []
    for said, path, source in _named(resource_files, "resource_files"):
        given.append(_file(said, path, source))
    for said, path, source in _named(inputs, "inputs"):
        given.append(_blobs(said, path, source))
    _check_distinct(given)
    local = [each for each in given if isinstance(each, _Local)]
    if local:
        _hash(local)
    return Resources(given=tuple(given))


def _named(sources: Sources | None, setting: str) -> Iterator[tuple[str, str | None, str]]:
    """Yield each source with how the user named it, and its path where he said one."""
    pairs: Iterable[tuple[str | None, Source]]
    if sources is None:
        return
    if isinstance(sources, str | os.PathLike):
        pairs = [(None, sources)]
    elif isinstance(sources, Mapping):
        pairs = sources.items()
    elif isinstance(sources, Sequence):
        pairs = [(None, source) for source in sources]
    else:
        raise ConfigurationError(
            f"{setting}={sources!r}: a path, a list of paths, or a mapping of paths on the nodes to what lies there "
            "is needed"
        )
    for path, source in pairs:
        said = f"{setting}: {source!s}" if path is None else f"{setting}[{path!r}]"
        if not isinstance(source, str | os.PathLike) or not str(os.fspath(source)):
            raise ConfigurationError(f"{said}: {source!r} names nothing")
        if path is not None and not isinstance(path, str):
            raise ConfigurationError(f"{said}: the path on the nodes is a text")
        yield said, None if path is None else _normal(path, said), str(os.fspath(source))


def _normal(path: str, said: str) -> str:
    """Return a path relative to the folder in which calls run; empty for that itself."""
    _check_path(path, said)
    found = str(PurePosixPath(path))
    return "" if found == "." else found


def _check_path(path: str, said: str) -> None:
    parts = PurePosixPath(path).parts
    problem = ""
    if path.startswith("/") or ".." in parts:
        problem = "has to stay below the folder in which the calls run: relative, and without '..'"
    elif "\\" in path or not path.isprintable():
        problem = "has a backslash, or what cannot be printed"
    elif parts[:1] == (".joblib_azure",):
        problem = "is used by joblib_azure itself"
    if problem:
        raise ConfigurationError(f"{said}: the path {path!r} {problem}")


def _file(said: str, path: str | None, source: str) -> _Given:
    if source.startswith(("http://", "https://")):
        return _url(said, path, source)
    if "://" in source:
        raise ConfigurationError(f"{said}: {source!r} is a URL of a kind that nodes cannot fetch: http or https")
    local = Path(source).expanduser()
    if not local.exists():
        raise ConfigurationError(f"{said}: there is no file or folder {str(local.absolute())!r}")
    if path is None:
        path = _normal(local.resolve().name, said)
    if not local.is_dir():
        if not path:
            raise ConfigurationError(f"{said}: {source!r} is a file; its path on the nodes needs a name")
        return _Local(said=said, path=path, files={path: str(local)}, single=True)
    files = {str(PurePosixPath(path) / name): str(local / name) for name in sorted(_walk(local, said))}
    if not files:
        raise ConfigurationError(f"{said}: the folder {str(local.absolute())!r} has no files")
    return _Local(said=said, path=path, files=files, single=False)


def _walk(folder: Path, said: str) -> Iterator[str]:
    for above, folders, files in os.walk(folder):
        for name in folders:
            if (Path(above) / name).is_symlink():
                raise ConfigurationError(
                    f"{said}: {str(Path(above) / name)!r} is a link to a folder; name that folder itself"
                )
        for name in files:
            file = Path(above) / name
            found = file.relative_to(folder).as_posix()
            _check_path(found, said)
            if not file.is_file():
                raise ConfigurationError(f"{said}: {str(file)!r} is no file, or a link to none")
            yield found


def _url(said: str, path: str | None, url: str) -> _Given:
    # Without its query in errors: a SAS is a secret.
    shown, _, _ = url.partition("?")
    said = said.replace(url, shown)
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    if not host or any(letter.isspace() for letter in url):
        raise ConfigurationError(f"{said}: {shown!r} is no URL")
    if path is None:
        path = _normal(PurePosixPath(unquote(parts.path)).name, said)
    if not path:
        raise ConfigurationError(f"{said}: say what it is called on the nodes: {{'name': {shown!r}}}")
    return _Url(said=said, path=path, files={path: shown}, url=url)


def _blobs(said: str, path: str | None, source: str) -> _Given:
    container, _, prefix = source.partition("/")
    check_container(container, said)
    return _Blobs(said=said, path=path or "", container=container, prefix=prefix)


def check_container(name: str, said: str) -> None:
    """:raises ConfigurationError: it cannot be the name of a container."""
    letters = all(letter in "abcdefghijklmnopqrstuvwxyz0123456789-" for letter in name)
    if not (letters and 3 <= len(name) <= 63 and "--" not in name and name == name.strip("-")):
        raise ConfigurationError(
            f"{said}: {name!r} cannot be the name of a container: 3 to 63 lower-case letters, digits and single hyphens"
        )


def _check_distinct(given: Iterable[_Given]) -> None:
    """:raises ConfigurationError: two sources have files at one path, or one where the other has a folder."""
    owners: dict[str, _Given] = {}
    folders: dict[str, _Given] = {}
    for each in given:
        for path in each.files:
            parents = [str(parent) for parent in PurePosixPath(path).parents][:-1]
            clash = owners.get(path) or folders.get(path)
            at = path
            for parent in parents:
                if clash is None and parent in owners:
                    clash, at = owners[parent], parent
            if clash is not None and clash is not each:
                raise ConfigurationError(
                    f"{each.said}: {at!r} is there already, from {clash.said}; give one another path"
                )
            owners[path] = each
            folders.update((parent, each) for parent in parents)


def _hash(local: Sequence[_Local]) -> None:
    """Name the contents of files, side by side."""
    with concurrent.futures.ThreadPoolExecutor(_STREAMS, thread_name_prefix="joblib_azure-hash") as pool:
        for each in local:
            above = PurePosixPath(each.path).parent if each.single else PurePosixPath(each.path)
            names = [str(PurePosixPath(path).relative_to(above)) for path in each.files]
            contents = side_by_side(pool, _content, each.files.values())
            each.contents = dict(zip(names, contents, strict=True))


def _content(file: str) -> str:
    try:
        with _mapped(Path(file)) as data:
            return content_name(data)
    except OSError as exc:
        raise ConfigurationError(f"resource_files: {file!r} cannot be read: {exc}") from exc


@contextlib.contextmanager
def _mapped(file: Path) -> Iterator[bytes | memoryview]:
    """Have the bytes of a file, which are not all in memory."""
    with file.open("rb") as opened:
        if os.fstat(opened.fileno()).st_size <= PIECE:
            yield opened.read()
            return
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
            yield view


def _content_of(blobs: BlobService, container: str, prefix: str, path: str, life: timedelta) -> FileSpec:
    return FileSpec(
        storage_container_url=blobs.container_url(container, "rl", life),
        blob_prefix=prefix,
        file_path=f"{FOLDER}/{path}" if path not in ("", ".") else FOLDER,
        file_mode=_MODE,
    )
