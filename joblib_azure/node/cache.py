"""A node's cache of buffers: files named by their content, fetched once however many tasks want them at once.

::

    <cache>/ab/<name>         a buffer, read-only; its time of change says when it was last used
    <cache>/ab/<name>.lock    held by whoever fetches it
    <cache>/pins/<task>       the names that a task uses, locked by its process: the lock ends with the process
    <cache>/evict.lock        held while names are pinned, and while what is pinned is looked through

What no living process has pinned may be evicted, the least recently used first, once the cache is larger than its
bound. Names are pinned before it is looked whether they are there, so that what was found stays.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from .locks import locked

#: Of the disk, the part that the cache leaves free whatever its bound; and what it takes where it has none: of what is
#: free or its own.
_LEAVE, _SHARE = 0.05, 0.5

Sink = Callable[[int, bytes], object]


class WrongContentError(Exception):
    """What was fetched is not what its name says."""


class Cache:
    """The buffers in a folder of the node.

    Parameters
    ----------
    folder : Path
    limit : int or None
        Bytes; None: half of what the disk has free or holds of the cache.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self.folder = folder
        self._limit = limit
        self._pins = folder / "pins"

    def path(self, name: str) -> Path:
        """Return where the buffer of that name is, once it is there."""
        return self.folder / name[:2] / name

    @contextlib.contextmanager
    def pinned(self, names: Collection[str], holder: str) -> Iterator[None]:
        """Keep the buffers of these names from being evicted.

        Parameters
        ----------
        names : collection of str
        holder : str
            Who does; unique on the node.
        """
        self._pins.mkdir(parents=True, exist_ok=True)
        pin = self._pins / hashlib.sha256(holder.encode()).hexdigest()[:32]
        with contextlib.ExitStack() as stack:
            with locked(self.folder / "evict.lock"):
                # Within it: whoever evicts takes a pin that nobody holds for that of a process that has died.
                file = stack.enter_context(pin.open("w"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.write("\n".join(names))
                file.flush()
            stack.callback(pin.unlink, missing_ok=True)
            for name in names:
                with contextlib.suppress(OSError):
                    os.utime(self.path(name))
            yield

    def bring(self, name: str, size: int, fetch: Callable[[Sink], str]) -> None:
        """Have the buffer of that name, fetching it where it is not there.

        Parameters
        ----------
        name : str
        size : int
            Its bytes.
        fetch : callable
            Gives its pieces to a sink, as `Transfers.download` does, and returns the content name of them all.

        Raises
        ------
        WrongContentError
        OSError
            With ``ENOSPC`` where the disk cannot take it.
        """
        target = self.path(name)
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f"{name}.lock")):
            if target.exists():
                return
            for left in target.parent.glob(f"{name}.*.part"):
                left.unlink(missing_ok=True)  # of a process that was killed: we have its lock
            part = target.with_name(f"{name}.{os.getpid()}.part")
            try:
                fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                try:
                    if size:  # at once: a disk that is too small is to be known before anything is fetched
                        os.posix_fallocate(fd, 0, size)
                    found = fetch(lambda offset, data: _write(fd, offset, data))
                finally:
                    os.close(fd)
                if found != name:
                    raise WrongContentError(f"buffer {name} in storage has the content {found}")
                part.chmod(0o444)
                part.rename(target)
            finally:
                part.unlink(missing_ok=True)

    def make_room(self, needed: int) -> int:
        """Evict what is not pinned until `needed` bytes more are within the bounds; return the bytes evicted.

        Raises
        ------
        OSError
            With ``ENOSPC`` where the disk cannot take them even so.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        evicted = 0
        with locked(self.folder / "evict.lock"):
            self._clean()
            found = sorted(self._buffers())
            held = sum(size for _, size, _ in found)
            disk = shutil.disk_usage(self.folder)
            limit = int((disk.free + held) * _SHARE) if self._limit is None else self._limit
            least_free = needed + int(disk.total * _LEAVE)
            pinned: set[str] | None = None
            for _, size, path in found:
                if held + needed - evicted <= limit and disk.free + evicted >= least_free:
                    break
                pinned = self._pinned() if pinned is None else pinned
                if path.name not in pinned:
                    for file in (path, path.with_name(f"{path.name}.lock")):
                        file.unlink(missing_ok=True)
                    evicted += size
        if disk.free + evicted < needed:
            raise OSError(
                errno.ENOSPC,
                f"the node's disk has {(disk.free + evicted) / 1e9:.1f} GB left and the calls' arguments need "
                f"{needed / 1e9:.1f} GB: take nodes with a larger disk, or fewer calls at once",
            )
        return evicted

    def _buffers(self) -> Iterator[tuple[float, int, Path]]:
        """Yield when each buffer was last used, its size and its path."""
        for path in self.folder.glob("??/*"):
            if path.suffix in (".lock", ".part"):
                continue
            with contextlib.suppress(OSError):
                found = path.stat()
                yield found.st_mtime, found.st_size, path

    def _clean(self) -> None:
        """Remove what processes that were killed had begun to fetch: whoever still does holds the lock."""
        for part in self.folder.glob("??/*.part"):
            name = part.name.rsplit(".", 2)[0]
            with contextlib.suppress(TimeoutError, OSError), locked(part.with_name(f"{name}.lock"), deadline=0.0):
                part.unlink(missing_ok=True)

    def _pinned(self) -> set[str]:
        names: set[str] = set()
        for pin in self._pins.glob("*"):
            with contextlib.suppress(OSError), pin.open("r") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    names.update(file.read().split("\n"))
                else:
                    pin.unlink(missing_ok=True)  # its process has died
        return names


def _write(fd: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
