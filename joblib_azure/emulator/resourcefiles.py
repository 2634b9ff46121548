"""Resource files: what a task wants downloaded into its working directory before it starts.

Everything here blocks and runs in a worker thread; `stop` is looked at between pieces.
"""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ElementTree
from pathlib import Path, PurePosixPath
from typing import Any

from . import errors

DEFAULT_MODE = 0o770  # documented at ResourceFile.fileMode
TIMEOUT_SECONDS = 30.0
_PIECE = 1 << 18
_SOURCES = ("httpUrl", "storageContainerUrl", "autoStorageContainerName")


class DownloadFailed(Exception):
    """The task cannot run: with the `failureInfo` that says why."""

    def __init__(self, category: str, code: str, message: str, url: str) -> None:
        super().__init__(message)
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
        if not urllib.parse.urlsplit(item[given[0]]).scheme.startswith("http"):
            raise errors.invalid_property(f"{name}.{given[0]}", item[given[0]], "The URL must be http or https.")
        path = PurePosixPath(item.get("filePath", ""))
        if path.is_absolute() or ".." in path.parts:
            raise errors.invalid_property(f"{name}.filePath", path, "The path must stay in the working directory.")
        if "fileMode" in item:
            try:
                int(item["fileMode"], 8)
            except ValueError:
                raise errors.invalid_property(f"{name}.fileMode", item["fileMode"], "Octal expected.") from None


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
            _download(item["httpUrl"], _inside(directory, item["filePath"]), mode, stop)
            continue
        container = item["storageContainerUrl"]
        base = _inside(directory, item.get("filePath", "."))
        for name in _list_blobs(container, item.get("blobPrefix", "")):
            if stop.is_set():
                return
            _download(_blob_url(container, name), _inside(base, name), mode, stop)


def _inside(directory: Path, relative: str) -> Path:
    target = directory / relative
    if not Path(os.path.normpath(target)).is_relative_to(directory):
        raise DownloadFailed("UserError", "ResourceFileCreateFailed", "The path leaves the directory.", relative)
    return target


def _open(url: str) -> Any:
    host = urllib.parse.urlsplit(url).hostname or ""
    local = host == "localhost" or host.startswith("127.")
    # proxies of the machine do not see its loopback
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({} if local else None))
    try:
        return opener.open(url, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as exc:
        exc.close()
        if exc.code == 404:
            raise DownloadFailed("UserError", "BlobNotFound", "The specified blob does not exist.", url) from exc
        if exc.code in (401, 403):
            text = "Access for the specified blob is denied."
            raise DownloadFailed("UserError", "BlobAccessDenied", text, url) from exc
        raise _misc(exc, url) from exc
    except TimeoutError as exc:
        raise DownloadFailed("ServerError", "BlobDownloadTimedOut", "Downloading took too long.", url) from exc
    except (urllib.error.URLError, OSError, ValueError) as exc:
        raise _misc(exc, url) from exc


def _misc(exc: Exception, url: str) -> DownloadFailed:
    return DownloadFailed("ServerError", "BlobDownloadMiscError", f"Downloading failed: {exc}.", url)


def _download(url: str, target: Path, mode: int, stop: threading.Event) -> None:
    with _open(url) as answer:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "wb") as file:
                while not stop.is_set() and (piece := answer.read(_PIECE)):
                    file.write(piece)
            target.chmod(mode)
        except TimeoutError as exc:
            raise DownloadFailed("ServerError", "BlobDownloadTimedOut", "Downloading took too long.", url) from exc
        except OSError as exc:
            raise DownloadFailed("ServerError", "ResourceFileWriteFailed", f"Writing failed: {exc}.", url) from exc


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
            tree = ElementTree.fromstring(answer.read())
        names += [name.text for name in tree.iterfind("./Blobs/Blob/Name") if name.text]
        marker = tree.findtext("NextMarker") or ""
        if not marker:
            return names
