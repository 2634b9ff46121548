"""Resource files: what a task wants downloaded into its working directory before it starts.

Everything here blocks and runs in a worker thread; `stop` is looked at between pieces.
"""

from __future__ import annotations

import http.client
import os
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from . import errors

DEFAULT_MODE = 0o770  # documented at ResourceFile.fileMode
TIMEOUT_SECONDS = 30.0
#: Seconds for which what may be otherwise a moment later is tried again, and between two tries.
_PATIENCE, _FIRST_PAUSE, _LAST_PAUSE = 30.0, 0.1, 5.0
_PIECE = 1 << 18
_MODE = re.compile(r"(0o)?0*[0-7]{1,4}")
Result = TypeVar("Result")
_SOURCES = ("httpUrl", "storageContainerUrl", "autoStorageContainerName")


class DownloadFailed(Exception):
    """The task cannot run: with the `failureInfo` that says why."""

    def __init__(self, category: str, code: str, message: str, url: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing
        # a SAS is a secret: the query stays out of what is shown
        details = [{"name": "FilePath", "value": url.partition("?")[0]}]
        self.failure = {"category": category, "code": code, "message": message, "details": details}


def check(files: list[dict[str, Any]], where: str) -> None:
    """Refuse what the service refuses when the task is added.

    Raises
    ------
    BatchError
        400 for combinations that exclude each other and paths that leave the working directory; 501 for managed
        identities and auto-storage, which exist in Azure only.
    """
    for index, item in enumerate(files):
        name = f"{where}[{index}]"
        given = [source for source in _SOURCES if source in item]
        if len(given) != 1:
            raise errors.invalid_property(name, given, f"Specify exactly one of {', '.join(_SOURCES)}.")
        if given == ["autoStorageContainerName"]:
            raise errors.not_implemented("autoStorageContainerName (the account has no auto-storage)")
        if "identityReference" in item:
            raise errors.not_implemented("identityReference of resource files (use a SAS in the URL)")
        if given == ["httpUrl"] and not item.get("filePath"):
            raise errors.missing_property(f"{name}.filePath")
        if "blobPrefix" in item and given == ["httpUrl"]:
            raise errors.invalid_property(f"{name}.blobPrefix", item["blobPrefix"], "Not allowed with httpUrl.")
        if not _is_url(item[given[0]]):
            raise errors.invalid_property(f"{name}.{given[0]}", item[given[0]], "The URL must be http or https.")
        path = PurePosixPath(item.get("filePath", ""))
        if path.is_absolute() or ".." in path.parts or "\0" in str(path):
            raise errors.invalid_property(f"{name}.filePath", path, "The path must stay in the working directory.")
        if "fileMode" in item and not _MODE.fullmatch(item["fileMode"]):
            raise errors.invalid_property(f"{name}.fileMode", item["fileMode"], "Octal expected.")


def _is_url(text: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(text)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.netloc)


def download_all(files: list[dict[str, Any]], directory: Path, stop: threading.Event) -> None:
    """Download all files below `directory`.

    Raises
    ------
    DownloadFailed
        At the first that fails.
    """
    for item in files:
        if stop.is_set():
            return
        mode = int(item["fileMode"], 8) if "fileMode" in item else DEFAULT_MODE
        if "httpUrl" in item:
            target = _inside(directory, item["filePath"])
            _persistently(partial(_download, item["httpUrl"], target, mode, stop), stop)
            continue
        container = item["storageContainerUrl"]
        base = _inside(directory, item.get("filePath", "."))
        for name in _persistently(partial(_list_blobs, container, item.get("blobPrefix", "")), stop) or ():
            if stop.is_set():
                return
            _persistently(partial(_download, _blob_url(container, name), _inside(base, name), mode, stop), stop)


def _persistently(action: Callable[[], Result], stop: threading.Event) -> Result | None:
    """Try again what fails by no fault of the user's, as the service's agent does; None where it was stopped."""
    end, pause = time.monotonic() + _PATIENCE, _FIRST_PAUSE
    while not stop.is_set():
        try:
            return action()
        except DownloadFailed as exc:
            if not exc.passing or time.monotonic() + pause > end:
                raise
        stop.wait(pause)
        pause = min(2 * pause, _LAST_PAUSE)
    return None


def _inside(directory: Path, relative: str) -> Path:
    """A path below the directory, over none of the links that an earlier try of the task may have left there."""
    target: Path | None
    try:
        target = Path(os.path.realpath(directory / relative))
    except ValueError:  # a name that no file can have
        target = None
    if target is None or not target.is_relative_to(os.path.realpath(directory)):
        raise DownloadFailed("usererror", "ResourceFileCreateFailed", "The path leaves the directory.", relative)
    return target


def open_url(request: urllib.request.Request, timeout: float) -> Any:
    """The answer to a request; proxies of the machine do not see its loopback."""
    host = urllib.parse.urlsplit(request.full_url).hostname or ""
    local = host == "localhost" or host.startswith("127.")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({} if local else None))
    return opener.open(request, timeout=timeout)


def _open(url: str) -> Any:
    try:
        return open_url(urllib.request.Request(url), TIMEOUT_SECONDS)
    except urllib.error.HTTPError as exc:
        exc.close()
        if exc.code == 404:
            raise DownloadFailed("usererror", "BlobNotFound", "The specified blob does not exist.", url) from exc
        if exc.code in (401, 403):
            text = "Access for the specified blob is denied."
            raise DownloadFailed("usererror", "BlobAccessDenied", text, url) from exc
        raise _misc(exc, url) from exc
    except TimeoutError as exc:
        raise _late(url) from exc
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as exc:
        raise _misc(exc, url) from exc


def _late(url: str) -> DownloadFailed:
    return DownloadFailed("servererror", "BlobDownloadTimedOut", "Downloading took too long.", url, passing=True)


def _misc(exc: Exception, url: str) -> DownloadFailed:
    passing = not isinstance(exc, urllib.error.HTTPError) or exc.code in (408, 429) or exc.code >= 500
    return DownloadFailed("servererror", "BlobDownloadMiscError", f"Downloading failed: {exc}.", url, passing=passing)


def _download(url: str, target: Path, mode: int, stop: threading.Event) -> None:
    with _open(url) as answer:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            length, got = answer.headers.get("Content-Length"), 0
            with open(target, "wb") as file:
                while not stop.is_set() and (piece := _read(answer, url)):
                    got += file.write(piece)
            if length is not None and got != int(length) and not stop.is_set():
                raise _misc(EOFError(f"the answer breaks off after {got} of {length} bytes"), url)
            target.chmod(mode)
        except OSError as exc:
            raise DownloadFailed("servererror", "ResourceFileWriteFailed", f"Writing failed: {exc}.", url) from exc


def _read(answer: Any, url: str) -> bytes:
    try:
        return bytes(answer.read(_PIECE))
    except TimeoutError as exc:
        raise _late(url) from exc
    except (OSError, http.client.HTTPException) as exc:
        raise _misc(exc, url) from exc


def _blob_url(container: str, name: str) -> str:
    parts = urllib.parse.urlsplit(container)
    path = f"{parts.path.rstrip('/')}/{urllib.parse.quote(name)}"
    return urllib.parse.urlunsplit(parts._replace(path=path))


def _list_blobs(container: str, prefix: str) -> list[str]:
    names: list[str] = []
    marker = ""
    while True:
        parts = urllib.parse.urlsplit(container)
        query = [("restype", "container"), ("comp", "list")]
        query += [(key, value) for key, value in (("prefix", prefix), ("marker", marker)) if value]
        listing = "&".join(filter(None, [parts.query, urllib.parse.urlencode(query)]))
        with _open(urllib.parse.urlunsplit(parts._replace(query=listing))) as answer:
            try:
                tree = ElementTree.fromstring(answer.read())
            except ElementTree.ParseError as exc:  # nor will it be one a moment later
                text = f"The listing cannot be read: {exc}."
                raise DownloadFailed("servererror", "BlobDownloadMiscError", text, container) from exc
            except (OSError, http.client.HTTPException) as exc:
                raise _misc(exc, container) from exc
        names += [name.text for name in tree.iterfind("./Blobs/Blob/Name") if name.text]
        marker = tree.findtext("NextMarker") or ""
        if not marker:
            return names
