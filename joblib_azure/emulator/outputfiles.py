"""Output files: what a task wants uploaded from its node once its process has exited.

https://learn.microsoft.com/azure/batch/batch-task-output-files. As there, uploads are told of in ``fileuploadout.txt``
and ``fileuploaderr.txt`` beside the task's stdout, and one that fails is the `failureInfo` of a task that has ended.

Everything here blocks and runs in a worker thread; `stop` is looked at between files.
"""

from __future__ import annotations

import fnmatch
import http.client
import os
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from . import errors
from .resourcefiles import TIMEOUT_SECONDS, open_url

OUT, ERR = "fileuploadout.txt", "fileuploaderr.txt"
_WILDCARDS = re.compile(r"[*?\[]")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


class UploadFailed(Exception):
    """Not all that was to be uploaded was: with the `failureInfo` that says why."""

    def __init__(self, code: str, message: str, where: str) -> None:
        super().__init__(message)
        self.where = where
        details = [{"name": "FilePath", "value": where}]
        self.failure = {"category": "usererror", "code": code, "message": message, "details": details}


def check(files: list[dict[str, Any]], where: str) -> None:
    """Refuse what the service refuses when the task is added.

    Raises
    ------
    BatchError
        400 for what leads nowhere; 501 for managed identities, which exist in Azure only.
    """
    for index, item in enumerate(files):
        name = f"{where}[{index}]"
        if not item["filePattern"]:
            raise errors.invalid_property(f"{name}.filePattern", "", "The pattern is empty.")
        container = item["destination"].get("container")
        if container is None:
            raise errors.missing_property(f"{name}.destination.container")
        if "uploadCondition" not in item["uploadOptions"]:
            raise errors.missing_property(f"{name}.uploadOptions.uploadCondition")
        if "identityReference" in container:
            raise errors.not_implemented("identityReference of output files (use a SAS in the URL)")
        if not urllib.parse.urlsplit(container["containerUrl"]).scheme.startswith("http"):
            # Without its query: a SAS is a secret.
            shown = container["containerUrl"].partition("?")[0]
            raise errors.invalid_property(f"{name}.containerUrl", shown, "The URL must be http or https.")


def wanted(files: list[dict[str, Any]], exit_code: int) -> list[dict[str, Any]]:
    """Those whose condition an exit code meets."""
    condition = "tasksuccess" if exit_code == 0 else "taskfailure"
    return [item for item in files if item["uploadOptions"]["uploadCondition"] in (condition, "taskcompletion")]


def upload_all(
    files: list[dict[str, Any]], directory: Path, environment: Mapping[str, str], stop: threading.Event
) -> None:
    """Upload what these patterns match; `directory` is the task's, whose ``wd`` they are relative to.

    Raises
    ------
    UploadFailed
        Where something could not be uploaded; the rest was all the same.
    """
    failed: UploadFailed | None = None
    with open(directory / OUT, "a") as out, open(directory / ERR, "a") as err:
        for item in files:
            try:
                _upload(item, directory / "wd", environment, stop, out)
            except UploadFailed as exc:
                err.write(f"{exc.failure['code']}: {exc} {exc.where}\n")
                failed = failed or exc
    if failed is not None:
        raise failed


def _upload(item: dict[str, Any], wd: Path, environment: Mapping[str, str], stop: threading.Event, out: TextIO) -> None:
    pattern = _VARIABLE.sub(lambda found: environment.get(found[1] or found[2], ""), item["filePattern"])
    container = item["destination"]["container"]
    path = container.get("path", "").strip("/")
    headers = {header["name"]: header.get("value", "") for header in container.get("uploadHeaders", [])}
    found = list(matches(wd, pattern))
    out.write(f"{len(found)} file(s) match {item['filePattern']}\n")
    several = bool(_WILDCARDS.search(pattern))
    if not found and not several:
        text = "The file to upload does not exist."
        raise UploadFailed("FileUploadMiscError", text, pattern)
    for file, name in found:
        if stop.is_set():
            return
        # Without wildcards the path is the blob's own name, with them the folder above it.
        blob = f"{path}/{name}".lstrip("/") if several else path or name
        _put(container["containerUrl"], blob, file, headers)
        out.write(f"{file} -> {blob}\n")


def matches(wd: Path, pattern: str) -> Iterator[tuple[Path, str]]:
    """The files that a pattern matches, each with its name below what of the pattern has no wildcards."""
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    base = Path("/") if pattern.startswith("/") else wd
    fixed = 0
    while fixed < len(parts) - 1 and not _WILDCARDS.search(parts[fixed]):
        base /= parts[fixed]
        fixed += 1
    base = Path(os.path.normpath(base))
    for file in sorted(set(_walk(base, tuple(parts[fixed:])))):
        yield file, file.relative_to(base).as_posix()


def _walk(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    part, *rest = parts
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    if part == "**":
        # Any folder, and none.
        yield from _walk(folder, tuple(rest) or ("*",))
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                yield from _walk(folder / entry.name, parts)
        return
    for entry in entries:
        if not fnmatch.fnmatchcase(entry.name, part) or (entry.name.startswith(".") and not part.startswith(".")):
            continue
        if rest and entry.is_dir():
            yield from _walk(folder / entry.name, tuple(rest))
        elif not rest and entry.is_file():
            yield folder / entry.name


def _put(container: str, blob: str, file: Path, headers: dict[str, str]) -> None:
    base, _, token = container.partition("?")
    url = f"{base.rstrip('/')}/{urllib.parse.quote(blob)}"
    try:
        with open(file, "rb") as data:
            request = urllib.request.Request(f"{url}?{token}", data, method="PUT")
            sent = {"x-ms-blob-type": "BlockBlob", "Content-Type": "application/octet-stream", **headers}
            for name, value in {**sent, "Content-Length": str(file.stat().st_size)}.items():
                request.add_header(name, value)
            open_url(request, TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError as exc:
        exc.close()
        if exc.code == 404:
            text = "One of the specified Azure container(s) was not found while attempting to upload an output file."
            raise UploadFailed("FileUploadContainerNotFound", text, base) from exc
        if exc.code in (401, 403):
            text = "Access was denied while attempting to upload an output file."
            raise UploadFailed("FileUploadAccessDenied", text, base) from exc
        raise _misc(exc, file) from exc
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as exc:
        raise _misc(exc, file) from exc


def _misc(exc: Exception, file: Path) -> UploadFailed:
    text = f"A miscellaneous error was encountered while uploading an output file: {exc}."
    return UploadFailed("FileUploadMiscError", text, str(file))
