"""Blobs by their names, for a person: fetched into files, and deleted where nothing needs them.

A blob's name is anything that somebody with access to the account has chosen. It becomes a path below the folder that
was named, or it is refused.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

from ..errors import ConfigurationError, ConflictError, ResourceNotFoundError
from ..service import BatchService, BlobItem, BlobService
from ..transfer import side_by_side
from .names import kind_of
from .survey import needed

#: Blobs that are fetched, or deleted, at a time.
_STREAMS = 8
#: What no part of a path may be or have, on any system that the files may be on.
_NO_PART = re.compile(r"|\.|\.\.|.*[\\\0:].*", re.DOTALL)

#: Is told how many further bytes have come.
Moved = Callable[[int], object]


def places(items: Sequence[BlobItem], folder: Path, *, force: bool = False) -> list[tuple[BlobItem, Path]]:
    """Return where each blob goes below a folder; nothing is written.

    Raises
    ------
    ConfigurationError
        Where a blob's name is no path below it, two of them cannot both be files, or a file is there and is not to be
        replaced (`force`).
    """
    root = folder.resolve()
    found, files = [], {item.name for item in items}
    for item in items:
        parts = item.name.split("/")
        path = folder.joinpath(*parts)
        if any(_NO_PART.fullmatch(part) for part in parts) or not path.resolve().is_relative_to(root):
            raise ConfigurationError(
                f"blob {item.name!r} is not fetched: its name would not be a path below {folder}. Fetch it by itself, "
                "into a file that --output names"
            )
        above = next((name for at in range(1, len(parts)) if (name := "/".join(parts[:at])) in files), None)
        if above is not None:
            raise ConfigurationError(
                f"blobs {above!r} and {item.name!r} cannot both be files: one is the folder of the other. Fetch one of "
                "them by itself"
            )
        check_free(path, force=force)
        found.append((item, path))
    return found


def check_free(path: Path, *, force: bool) -> None:
    """:raises ConfigurationError: there is a file, which is not to be replaced, or a folder."""
    if path.is_dir():
        raise ConfigurationError(f"{path} is a folder: name a file with --output")
    if not force and os.path.lexists(path):
        raise ConfigurationError(f"{path} is there: --force replaces it, --output names another place")


def fetch(
    blobs: BlobService,
    container: str,
    where: Sequence[tuple[BlobItem, Path]],
    *,
    force: bool = False,
    moved: Moved = lambda size: None,
) -> None:
    """Fetch blobs into files, several at a time; each file is there when all of it is, and not before.

    Raises
    ------
    ConfigurationError
        Where a file has come to be there meanwhile.
    ConflictError
        Where a blob is written to at this moment.
    ServiceError
    """
    given_up = threading.Event()

    def come(size: int) -> None:
        if given_up.is_set():
            raise CancelledError
        moved(size)

    with ThreadPoolExecutor(_STREAMS, thread_name_prefix="joblib_azure-files") as pool:
        futures = [pool.submit(_fetch_one, blobs, container, *each, force=force, moved=come) for each in where]
        try:
            for future in futures:
                future.result()
        except BaseException:  # Ctrl-C too: what is under way ends with its next piece
            given_up.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _fetch_one(blobs: BlobService, container: str, item: BlobItem, path: Path, *, force: bool, moved: Moved) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.part")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:

        def sink(offset: int, data: bytes) -> None:
            view = memoryview(data)
            while view:
                done = os.pwrite(descriptor, view, offset)
                view, offset = view[done:], offset + done
            moved(len(data))

        try:
            if item.size:
                blobs.fetch(container, item.name, 0, item.size, sink)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        now = blobs.stat(container, item.name)
        if now is None or (now.size, now.modified) != (item.size, item.modified):
            raise ConflictError(
                f"blob {item.name!r} of {container} was written to, or deleted, while it was fetched. Fetch it again "
                "once nobody writes to it"
            )
        check_free(path, force=force)
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        raise


def check_removable(blobs: BlobService, batch: BatchService, container: str, *, force: bool = False) -> None:
    """Check that what is in a container may be deleted.

    Raises
    ------
    ConfigurationError
        Where it is not a container of ours.
    ConflictError
        Where a job that runs, or may run, needs it, unless that is to be ignored (`force`).
    ServiceError
    """
    if kind_of(container) is None:
        raise ConfigurationError(
            f"{container!r} is no container of joblib_azure, and nothing of it is deleted here. `joblib-azure storage "
            f"list` shows those that are; `az storage container delete --name {container}` deletes any"
        )
    why = "" if force else needed(blobs, batch, container)
    if why:
        raise ConflictError(
            f"{container} is not touched: {why}. Wait for its end, end it (`joblib-azure job cancel`), or delete it "
            "with --force all the same: what still needs it fails then",
            container=container,
        )


def remove(blobs: BlobService, container: str, names: Sequence[str] | None = None) -> int:
    """Delete blobs, or the whole container where no names are given; return how many blobs were deleted.

    What of them is gone already is no error, and is not counted. `check_removable` says whether it is a good idea.

    Raises
    ------
    ServiceError
    """
    if names is None:
        with contextlib.suppress(ResourceNotFoundError):
            number = len(list(blobs.blobs(container, "")))
            blobs.delete_container(container)
            return number
        return 0
    with ThreadPoolExecutor(_STREAMS, thread_name_prefix="joblib_azure-files") as pool:
        return sum(side_by_side(pool, lambda name: blobs.delete(container, name), names))
