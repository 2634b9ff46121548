"""A ready environment as one archive in storage: packed once, by the first node of a lock, unpacked by the others.

It holds the folders of a virtual environment without its interpreter, which each node puts in for itself: so the
same archive serves nodes whose Python lies elsewhere. The blob's metadata carry the SHA-256 of its content. It is
created with If-None-Match and with a SAS that cannot overwrite: the first one stays.

Used by the job preparation's program, under whatever Python the node has: the standard library of 3.8 only.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import email.utils
import gzip
import hashlib
import os
import shutil
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, Any

#: Above that the service takes no blob in one request, and blocks would need a SAS that may overwrite.
#: https://learn.microsoft.com/rest/api/storageservices/put-blob#remarks
MAX_ARCHIVE = 5000 << 20
#: Bytes that one thread compresses at a time; a gzip file may have any number of members.
_MEMBER = 4 << 20
#: Fast: the node that packs has tasks waiting, and storage is next door.
_LEVEL = 1
_TIMEOUT, _PUT_SECONDS = 60.0, 600.0
#: Seconds after which a node that claimed the publication is taken for gone.
_CLAIM_SECONDS = 180.0
#: What marks a finished environment; written last, and on each node anew.
READY = "ready.json"
_SHA256_HEADER = "x-ms-meta-sha256"


class ArchiveError(Exception):
    """An archive that is not what its metadata say, or that cannot be had; the environment is installed then."""


class _Hashing:
    """Reads a stream and hashes what it read."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.found = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._stream.read(size)
        self.found.update(data)
        return data


def unpack(url: str, folder: Path) -> bool:
    """Unpack the archive at `url` into `folder`; False where there is none.

    Raises
    ------
    ArchiveError
        What is in `folder` then is to be thrown away.
    """
    try:
        with open_url(url) as answer:
            stream: Any = _Hashing(answer)
            made: set[str] = set()
            with gzip.GzipFile(fileobj=stream) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
                for member in tar:
                    _extract(tar, member, folder, made)
            while stream.read(1 << 20):
                pass
            expected = answer.headers.get(_SHA256_HEADER)
            if stream.found.hexdigest() != expected:
                raise ArchiveError(f"it has the SHA-256 {stream.found.hexdigest()} and not {expected}")
    except urllib.error.HTTPError as exc:
        if exc.code == 404:
            return False
        raise ArchiveError(f"storage answered {exc.code} {exc.reason}") from exc
    except (OSError, EOFError, tarfile.TarError, ValueError) as exc:
        raise ArchiveError(f"{type(exc).__name__}: {exc}") from exc
    return True


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, made: set[str]) -> None:
    # Nothing of it has run or been verified yet: only plain files and folders, and only inside.
    if os.path.isabs(member.name) or ".." in member.name.split("/"):
        raise ArchiveError(f"it has a member {member.name!r}")
    target = os.path.join(folder, member.name)
    parent = target if member.isdir() else os.path.dirname(target)
    if parent not in made:
        os.makedirs(parent, exist_ok=True)
        made.add(parent)
    if member.isdir():
        return
    source = tar.extractfile(member) if member.isreg() else None
    if source is None:
        raise ArchiveError(f"it has a member {member.name!r} that is no plain file")
    with open(target, "wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    os.chmod(target, member.mode & 0o755 | 0o600)
    # Byte code is valid for a source of the same time only.
    os.utime(target, (member.mtime, member.mtime))


def claim(url: str) -> bool:
    """Tell whether this node is the one to publish: the first to ask, unless that one has not for long.

    Packing takes seconds of all cores, and several jobs may begin with the same lock.
    """
    try:
        with open_url(_put(url, b"", 0)):
            return True
    except urllib.error.HTTPError as exc:
        if exc.code not in (409, 412):
            return False
    except OSError:
        return False
    try:
        with open_url(urllib.request.Request(url, method="HEAD")) as answer:
            claimed = email.utils.parsedate_to_datetime(answer.headers["Last-Modified"])
            now = email.utils.parsedate_to_datetime(answer.headers["Date"])
    except (OSError, TypeError, ValueError):
        return False
    return (now - claimed).total_seconds() > _CLAIM_SECONDS


def publish(url: str, folder: Path, scratch: Path) -> str:
    """Store the environment in `folder` at `url` and return what happened, for the log."""
    try:
        with scratch.open("wb") as file:
            digest = _pack(folder, file)
        size = scratch.stat().st_size
        if size > MAX_ARCHIVE:
            return f"its archive of {size >> 20} MiB is larger than one request may store: every node installs it"
        with scratch.open("rb") as content, open_url(_put(url, content, size, digest), timeout=_PUT_SECONDS):
            return f"stored its archive of {size / 1e6:.0f} MB"
    except OSError as exc:
        # The environment is ready; that other nodes have to install it themselves is no reason to fail.
        return f"its archive was not stored, other nodes install it too: {exc}"
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()


def _put(url: str, content: Any, size: int, digest: str = "") -> urllib.request.Request:
    headers = {
        "Content-Length": str(size),
        "Content-Type": "application/octet-stream",
        "If-None-Match": "*",
        "x-ms-blob-type": "BlockBlob",
        "x-ms-version": _version(url),
    }
    if digest:
        headers[_SHA256_HEADER] = digest
    return urllib.request.Request(url, data=content, headers=headers, method="PUT")


def _version(url: str) -> str:
    """Return the service version that the SAS was made for."""
    return urllib.parse.parse_qs(urllib.parse.urlsplit(url).query).get("sv", ["2021-12-02"])[0]


def open_url(request: Any, timeout: float = _TIMEOUT, context: Any = None) -> Any:
    """Open a URL or a request, without the machine's proxies where it goes to the machine itself."""
    url = request if isinstance(request, str) else request.full_url
    host = urllib.parse.urlsplit(url).hostname or ""
    handlers: list[Any] = [urllib.request.HTTPSHandler(context=context)]
    if host == "localhost" or host.startswith("127."):
        handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers).open(request, timeout=timeout)


def _pack(folder: Path, file: IO[bytes]) -> str:
    """Write the archive of `folder` and return its SHA-256."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        writer: Any = _Writer(file, pool, 2 * threads)
        with tarfile.open(fileobj=writer, mode="w|", bufsize=_MEMBER, format=tarfile.PAX_FORMAT) as tar:
            tar.add(folder, arcname="", filter=_member)
        writer.close()
        digest: str = writer.found.hexdigest()
    return digest


def _member(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    # Links lead to the interpreter, whose place is each node's own.
    if not (info.isreg() or info.isdir()) or info.name in ("pyvenv.cfg", READY):
        return None
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = int(info.mtime)
    return info


class _Writer:
    """What `tarfile` writes to: pieces, each compressed by a thread as a member of its own, few of them at a time."""

    def __init__(self, file: IO[bytes], pool: concurrent.futures.Executor, most: int) -> None:
        self._file, self._pool, self._most = file, pool, most
        self._pieces: collections.deque[concurrent.futures.Future[bytes]] = collections.deque()
        self.found = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._pieces.append(self._pool.submit(gzip.compress, bytes(data), _LEVEL))
        while len(self._pieces) > self._most or self._pieces[0].done():
            self._flush()
            if not self._pieces:
                break
        return len(data)

    def close(self) -> None:
        """Write what is left."""
        while self._pieces:
            self._flush()

    def _flush(self) -> None:
        piece = self._pieces.popleft().result()
        self.found.update(piece)
        self._file.write(piece)
