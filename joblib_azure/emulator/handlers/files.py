"""Operations of files: those of a task (below its folder) and those of a node (below its root). Nothing outside is
reachable."""

from __future__ import annotations

import asyncio
import mimetypes
import os
import re
import shutil
import stat
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from .. import conditions, errors, odata, times, wire
from ..calls import Answer, Call, handles
from . import nodes, tasks

#: A file has at most 19 digits of bytes; Python takes longer numbers for an attack.
_RANGE = re.compile(r"\s*bytes\s*=\s*(?P<first>[0-9]{1,19})\s*-\s*(?P<last>[0-9]{1,19})?\s*")
_FIELDS = {"name": odata.prefix(lambda entry: entry[0])}


def _task_root(call: Call) -> tuple[Path, str]:
    task = tasks.find(call)
    url = f"{wire.task_url(call.base, task)}/files"
    if task.directory is None or task.node is None:
        raise errors.task_files_unavailable("The task has not run on a node.")
    if task.node.id not in task.node.pool.nodes:
        raise errors.task_files_unavailable(f"The node {task.node.id} has left the pool.")
    if not task.directory.is_dir():
        if task.state == "completed":
            raise errors.task_files_cleaned_up()
        raise errors.task_files_unavailable("The task has not started on its node.")
    return task.directory, url


def _node_root(call: Call) -> tuple[Path, str]:
    node = nodes.find(call)
    if node.state in ("preempted", "deallocating", "deallocated"):
        raise errors.invalid_for_state(f"The node is {node.state}: its disk is gone.")
    if call.engine.processes.has_disk and not node.root.is_dir():
        raise errors.conflict("NodeBeingCreated", "The specified node is being created.")
    return node.root, f"{wire.node_url(call.base, node)}/files"


def _resolve(root: Path, relative: str) -> Path:
    """The file or folder below `root`; whatever leaves it, by ``..`` or over a symbolic link, does not exist.

    Nor does what is neither: who opens a pipe waits for whoever writes into it.
    """
    pure = PurePosixPath(relative)
    if pure.is_absolute() or ".." in pure.parts or "\0" in relative:
        raise errors.file_not_found()
    real_root = root.resolve()
    found = real_root / pure
    try:
        real = found.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError):
        raise errors.file_not_found() from None
    if not real.is_relative_to(real_root) or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise errors.file_not_found()
    return real


def _type(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


def _scan(root: Path, recursive: bool) -> Iterator[tuple[str, os.stat_result]]:
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue  # gone since
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if stat.S_ISDIR(found.st_mode):
                if recursive:
                    folders.append(Path(entry.path))
            elif not stat.S_ISREG(found.st_mode):
                continue  # links, sockets and pipes are no files of the service
            yield os.path.relpath(entry.path, root), found


def _shape(entry: tuple[str, os.stat_result], url: str) -> dict[str, Any]:
    name, found = entry
    directory = stat.S_ISDIR(found.st_mode)
    shape: dict[str, Any] = {"name": name, "url": f"{url}/{quote(os.fsencode(name))}", "isDirectory": directory}
    if not directory:
        shape["properties"] = {
            "creationTime": times.iso(_moment(found.st_ctime)),
            "lastModified": times.iso(_moment(found.st_mtime)),
            "contentLength": str(found.st_size),
            "contentType": _type(Path(name)),
            "fileMode": f"0o{found.st_mode:o}",
        }
    return shape


async def _list(call: Call, root: Path, url: str) -> Answer:
    recursive = call.flag("recursive")
    found = await asyncio.to_thread(lambda: sorted(_scan(root, recursive)))
    return call.listing(found, lambda entry: _shape(entry, url), metadata="files", fields=_FIELDS)


def _headers(path: Path, found: os.stat_result, url: str) -> dict[str, str]:
    directory = stat.S_ISDIR(found.st_mode)
    return {
        "ETag": f'"0x{found.st_mtime_ns:X}"',
        "Last-Modified": times.http_date(_moment(found.st_mtime)),
        "ocp-creation-time": times.http_date(_moment(found.st_ctime)),
        "ocp-batch-file-isdirectory": str(directory).lower(),
        "ocp-batch-file-url": url,
        "ocp-batch-file-mode": f"0o{found.st_mode:o}",
        "Content-Type": "application/octet-stream" if directory else _type(path),
    }


def _open(call: Call, root: Path, url: str) -> tuple[Path, os.stat_result, dict[str, str]]:
    relative = call.params["filePath"]
    path = _resolve(root, relative)
    try:
        found = path.stat()
    except OSError:  # gone since
        raise errors.file_not_found() from None
    headers = _headers(path, found, f"{url}/{quote(relative)}")
    conditions.check(call.headers, headers["ETag"].strip('"'), _moment(found.st_mtime), read=True)
    return path, found, headers


def _range(text: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte of an ``ocp-range`` (``bytes=first-last``, ``bytes=first-``)."""
    if not text:
        return None
    found = _RANGE.fullmatch(text)
    if found is None:
        raise errors.invalid_header("ocp-range", text, "Expected bytes=first-last.")
    start = int(found["first"])
    end = int(found["last"]) if found["last"] else size - 1
    if start >= size or end < start:
        raise errors.invalid_range(text, size)
    return start, min(end, size - 1)


def _read(path: Path, start: int, count: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(count)
    except OSError:  # gone since, or its owner lets nobody read it
        raise errors.file_not_found() from None


async def _download(call: Call, root: Path, url: str) -> Answer:
    path, found, headers = _open(call, root, url)
    if stat.S_ISDIR(found.st_mode):
        raise errors.invalid_for_state("The path is that of a directory; list its files instead.")
    wanted = _range(call.headers.get("ocp-range") or call.headers.get("range"), found.st_size)
    if wanted is None:
        body = await asyncio.to_thread(_read, path, 0, found.st_size)
        return Answer(status=200, headers=headers, body=body)
    start, end = wanted
    body = await asyncio.to_thread(_read, path, start, end - start + 1)
    headers["Content-Range"] = f"bytes {start}-{end}/{found.st_size}"
    # 200, not 206: the description knows no other success, and generated clients accept no other
    return Answer(status=200, headers=headers, body=body)


async def _properties(call: Call, root: Path, url: str) -> Answer:
    _, found, headers = _open(call, root, url)
    size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
    return Answer(status=200, headers={**headers, "Content-Length": str(size)})


async def _delete(call: Call, root: Path) -> Answer:
    path = _resolve(root, call.params["filePath"])
    if path == root.resolve():
        raise errors.invalid_for_state("The root cannot be deleted.")
    if path.is_dir():
        if not call.flag("recursive") and any(path.iterdir()):
            raise errors.invalid_for_state("The directory is not empty; set recursive to true.")
        await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return call.done()


@handles("list_task_files")
async def list_task_files(call: Call) -> Answer:
    return await _list(call, *_task_root(call))


@handles("download_task_file")
async def download_task_file(call: Call) -> Answer:
    return await _download(call, *_task_root(call))


@handles("get_task_file_properties")
async def get_task_file_properties(call: Call) -> Answer:
    return await _properties(call, *_task_root(call))


@handles("delete_task_file")
async def delete_task_file(call: Call) -> Answer:
    return await _delete(call, _task_root(call)[0])


@handles("list_node_files")
async def list_node_files(call: Call) -> Answer:
    return await _list(call, *_node_root(call))


@handles("download_node_file")
async def download_node_file(call: Call) -> Answer:
    return await _download(call, *_node_root(call))


@handles("get_node_file_properties")
async def get_node_file_properties(call: Call) -> Answer:
    return await _properties(call, *_node_root(call))


@handles("delete_node_file")
async def delete_node_file(call: Call) -> Answer:
    return await _delete(call, _node_root(call)[0])
