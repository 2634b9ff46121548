"""What the storage itself can do: bare uploads and downloads with azure-storage-blob, at its best settings.

As the data of a Parallel call travel, and nothing else: one process uploads an array and as many processes as there
are nodes download it side by side, each the whole; results are uploaded by as many processes as there are nodes and
downloaded by one. Downloads go nowhere, not even to memory. Processes, connections' clients and payloads are there
before the clock starts; where two processes work, it runs from the first one's start to the last one's end.
"""

from __future__ import annotations

import io
import multiprocessing
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
from azure.storage.blob import BlobServiceClient, ContainerClient

#: Seconds until both processes are ready.
_WAIT = 120.0
#: MiB of a request that takes all of a blob.
WHOLE = 1024


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How blobs are moved.

    Parameters
    ----------
    concurrency : int
        Requests of one blob at once (``max_concurrency``).
    mebibytes : int
        Size of a block or range, also of what goes in a single request (``max_block_size``, ``max_single_put_size``,
        ``max_chunk_get_size``, ``max_single_get_size``).
    blobs : int
        Blobs at once.
    checked : bool
        Uploads carry their MD5 (``validate_content``). Azurite needs some 70 ms in JavaScript for the CRC-64 of each
        8 MiB block that comes without; it has one thread.
    """

    concurrency: int
    mebibytes: int
    blobs: int = 1
    checked: bool = False

    def __str__(self) -> str:
        requests = "one request" if self.mebibytes == WHOLE else f"{self.concurrency} × {self.mebibytes} MiB"
        blobs = f", {self.blobs} blobs at once" if self.blobs > 1 else ""
        return requests + (" with MD5" if self.checked else "") + blobs


_PLAIN = tuple(Setting(concurrency=concurrency, mebibytes=8) for concurrency in (1, 2, 4, 8))
_CHECKED = tuple(Setting(concurrency=concurrency, mebibytes=8, checked=True) for concurrency in (1, 2, 4, 8))
_SMALL = Setting(concurrency=4, mebibytes=4)
_ONE_REQUEST = Setting(concurrency=1, mebibytes=WHOLE)
_TWO_BLOBS = Setting(concurrency=1, mebibytes=WHOLE, blobs=2)
#: What is tried for an array, and for results.
ARRAY_SETTINGS = {
    "upload": (_PLAIN[0], _PLAIN[2], *_CHECKED, replace(_SMALL, checked=True), _ONE_REQUEST),
    "download": (*_PLAIN, _SMALL, _ONE_REQUEST),
}
RESULT_SETTINGS = {
    "upload": (_PLAIN[0], _PLAIN[2], *_CHECKED[:3], replace(_SMALL, checked=True), _ONE_REQUEST, _TWO_BLOBS),
    "download": (*_PLAIN[:3], _SMALL, _ONE_REQUEST, _TWO_BLOBS),
}


class _Nowhere(io.RawIOBase):
    """Takes a download and keeps nothing."""

    _at = 0

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset
        return offset

    def write(self, data: Any) -> int:
        self._at += len(data)
        return len(data)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What one process does."""

    upload: bool
    names: tuple[str, ...]
    size: int
    setting: Setting
    parties: int


_state: dict[str, Any] = {}


def _prepare(connection: str, container: str, barrier: Any) -> None:
    _state.update(connection=connection, container=container, barrier=barrier, payload=b"")


def _work(job: _Job) -> tuple[float, float]:
    if job.upload and len(_state["payload"]) != job.size:
        _state["payload"] = np.random.default_rng().bytes(job.size)
    size, setting = job.setting.mebibytes << 20, job.setting
    options = ("max_block_size", "max_single_put_size", "max_chunk_get_size", "max_single_get_size")
    with (
        ContainerClient.from_connection_string(
            _state["connection"], _state["container"], **dict.fromkeys(options, size)
        ) as container,
        ThreadPoolExecutor(setting.blobs) as threads,
    ):
        one = partial(_upload if job.upload else _download, container, setting)
        if job.parties > 1:
            _state["barrier"].wait(_WAIT)
        begin = time.monotonic()
        for _ in threads.map(one, job.names):
            pass
        return begin, time.monotonic()


def _upload(container: ContainerClient, setting: Setting, name: str) -> None:
    options: dict[str, Any] = {"max_concurrency": setting.concurrency, "validate_content": setting.checked}
    container.upload_blob(name, _state["payload"], overwrite=True, **options)


def _download(container: ContainerClient, setting: Setting, name: str) -> None:
    container.download_blob(name, max_concurrency=setting.concurrency).readinto(_Nowhere())


class Yardstick(AbstractContextManager["Yardstick"]):
    """Bare transfers to and from a container of its own, which is deleted at the end.

    Parameters
    ----------
    connection : str
        The storage's connection string.
    nodes : int
    """

    def __init__(self, connection: str, nodes: int) -> None:
        self._connection, self._nodes = connection, nodes
        self._container = f"yardstick-{secrets.token_hex(4)}"

    def __enter__(self) -> Yardstick:
        self._service = BlobServiceClient.from_connection_string(self._connection)
        self._service.create_container(self._container)
        context = multiprocessing.get_context("spawn")
        arguments = (self._connection, self._container, context.Barrier(self._nodes))
        self._pool = context.Pool(self._nodes, _prepare, arguments)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.terminate()
        self._pool.join()
        self._service.delete_container(self._container)
        self._service.close()

    def array(self, size: int, chosen: dict[str, Any] | None) -> dict[str, Any]:
        """Measure one array's upload and its download by each node; `chosen` is what an earlier call returned."""
        up, down = (("array",),), (("array",),) * self._nodes
        return self._measure(up, down, size, ARRAY_SETTINGS, chosen, sweep_part=1)

    def results(self, count: int, size: int, chosen: dict[str, Any] | None) -> dict[str, Any]:
        """Measure the upload of results by the nodes and their download by one process."""
        names = [f"result-{number}" for number in range(count)]
        up = tuple(tuple(names[node :: self._nodes]) for node in range(self._nodes))
        return self._measure(up, (tuple(names),), size, RESULT_SETTINGS, chosen, sweep_part=4)

    def _measure(
        self,
        up: tuple[tuple[str, ...], ...],
        down: tuple[tuple[str, ...], ...],
        size: int,
        settings: dict[str, tuple[Setting, ...]],
        chosen: dict[str, Any] | None,
        sweep_part: int,
    ) -> dict[str, Any]:
        """Find the best settings with a part of the blobs, if they are not `chosen`; measure twice, take the better."""
        found: dict[str, Any] = {}
        for what, parts in (("upload", up), ("download", down)):
            if chosen is None:
                some = tuple(names[: max(1, len(names) // sweep_part)] for names in parts)
                sweep = {setting: self._seconds(what, some, size, setting) for setting in settings[what]}
                best = min(sweep, key=lambda setting: sweep[setting])
                found[f"{what}_sweep"] = {str(setting): round(seconds, 3) for setting, seconds in sweep.items()}
            else:
                best = Setting(**chosen[f"{what}_chosen"])
            times = [self._seconds(what, parts, size, best) for _ in range(2)]
            found[f"{what}_seconds"] = round(min(times), 3)
            found[f"{what}_setting"], found[f"{what}_chosen"] = str(best), asdict(best)
        found["seconds"] = found["upload_seconds"] + found["download_seconds"]
        return found

    def _seconds(self, what: str, parts: tuple[tuple[str, ...], ...], size: int, setting: Setting) -> float:
        jobs = [
            _Job(upload=what == "upload", names=names, size=size, setting=setting, parties=len(parts))
            for names in parts
        ]
        # All parties meet at the barrier, so no process can take two of the jobs.
        spans = self._pool.map(_work, jobs, chunksize=1)
        return max(end for _, end in spans) - min(begin for begin, _ in spans)
