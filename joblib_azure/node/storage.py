"""A task's requests to storage: its bundle and buffers in, its outcomes out.

The only module of the node that imports azure-storage-blob, and it does so late: the runner starts
meanwhile.
"""

from __future__ import annotations

import concurrent.futures
import copy
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..codec import FAILED
from ..retries import SERVICE_SECONDS, request_timeout
from ..transfer import Transfers, transport

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient, ContainerClient

#: Runs of one Batch task that may begin: the service itself runs a task again after a node was lost, without
#: a bound of its own, and a bundle that kills its nodes must end.
MAX_RUNS = 5
#: Pieces that move at a time, each way: more of them than a core can serve hold each other up.
_STREAMS_A_CORE, _MOST_STREAMS = 4, 16


class TooManyRunsError(RuntimeError):
    """The task was begun `MAX_RUNS` times already."""


def load() -> None:
    """Import the SDK now: a process that is forked later has it then."""
    from azure.storage.blob import BlobClient, ContainerClient  # noqa: F401

    from ..retries import policy  # noqa: F401


class TaskStorage:
    """The containers of one job, as one of its tasks may use them.

    Parameters
    ----------
    inputs, outputs : str
        URLs of the job's containers with SAS tokens: read on the first; add, create and write on the second.
    task : str
        Id of the task.
    workers : int, default 1
        Its cores.
    seconds : float
        For which storage may refuse a request for now, or be out of reach.
    """

    def __init__(
        self, inputs: str, outputs: str, task: str, workers: int = 1, seconds: float = SERVICE_SECONDS
    ) -> None:
        from azure.storage.blob import ContainerClient

        timeouts = {"connection_timeout": 10, "read_timeout": request_timeout(seconds)}
        self._options: dict[str, Any] = {**timeouts, "transport": transport(**timeouts)}
        self._seconds = seconds
        self._inputs: ContainerClient = ContainerClient.from_container_url(inputs, **self._client_options())
        self._outputs: ContainerClient = ContainerClient.from_container_url(outputs, **self._client_options())
        self._which = (inputs, outputs, workers)
        self._task = task
        streams = min(_MOST_STREAMS, _STREAMS_A_CORE * workers)
        self._transfers = Transfers(streams, streams)
        self._appended: BlobClient | None = None
        self._position = 0
        self.run = -1

    def _client_options(self) -> dict[str, Any]:
        """Return the options of a further client: its policies are its own."""
        from ..retries.policy import Patience

        return {**self._options, "retry_policy": Patience(self._seconds)}

    def serves(self, inputs: str, outputs: str, workers: int) -> bool:
        """Tell whether a task that is given these may use the connections of this one."""
        return self._which == (inputs, outputs, workers)

    def renewed(self, task: str) -> TaskStorage:
        """Return the same for another task of the job; this one is not to be used any more."""
        other = copy.copy(self)
        other._task, other._appended, other.run = task, None, -1
        return other

    def read_bundle(self) -> bytes:
        """Return the bytes of the task's bundle."""
        return self._inputs.download_blob(f"bundles/{self._task}", max_concurrency=4).readall()

    def aborted(self, call: str) -> bool:
        """Tell whether the client gave up the Parallel call."""
        return self._inputs.get_blob_client(f"aborted/{call}").exists()

    def open_outcomes(self, call: str) -> tuple[str, bool]:
        """Create the append blob of this run of the task; return its name, and whether the client gave up the call.

        Raises
        ------
        TooManyRunsError
            Where the task was run `MAX_RUNS` times before.
        """
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            aborted = pool.submit(self.aborted, call)
            name = self._open_outcomes(call)
            return name, aborted.result()

    def _open_outcomes(self, prefix: str) -> str:
        from azure.core import MatchConditions
        from azure.core.exceptions import ResourceExistsError

        for run in range(MAX_RUNS):
            name = f"{prefix}/{self._task}/{run:03d}"
            blob = self._outputs.get_blob_client(name)
            try:
                blob.create_append_blob(match_condition=MatchConditions.IfMissing)
            except ResourceExistsError:
                continue  # an earlier run of this task, before its node was lost
            self._appended, self._position, self.run = blob, 0, run
            return name
        raise TooManyRunsError(f"task {self._task} was begun {MAX_RUNS} times and never ended")

    def append(self, data: bytes) -> None:
        """Append records to this run's outcomes, once, whatever becomes of the answers."""
        from azure.core.exceptions import HttpResponseError

        if self._appended is None:
            raise RuntimeError("open_outcomes() comes before append()")
        try:
            self._appended.append_block(data, appendpos_condition=self._position)
        except HttpResponseError as exc:
            # Nobody else writes there: what lies behind the position is an earlier try's, whose answer was lost.
            if exc.status_code != 412 or not _has(self._appended, self._position + len(data)):
                raise
        self._position += len(data)

    def mark_failed(self) -> None:
        """Have the client read this run's outcomes as soon as it sees them: a call has raised."""
        if self._appended is None:
            raise RuntimeError("open_outcomes() comes before mark_failed()")
        self._outputs.upload_blob(f"{self._appended.blob_name}.{FAILED}", b"", overwrite=True)

    def put_payload(self, name: str, data: memoryview, groups: list[int]) -> list[str]:
        """Store a large outcome as a blob of its own, in blocks side by side; return its groups' content names."""
        return self._transfers.upload(self._outputs.get_blob_client(name), data, groups=groups)

    def put_file(self, url: str, name: str, path: Path) -> None:
        """Store a file as a blob of the container of a URL, in blocks side by side."""
        from azure.storage.blob import ContainerClient

        blob = ContainerClient.from_container_url(url, **self._options).get_blob_client(name)
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                self._transfers.upload(blob, b"")
                return
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as data:
                self._transfers.upload(blob, data)

    def fetch_buffer(
        self, url: str, size: int, sink: Callable[[int, bytes], object], wait: Callable[[], bool] | None
    ) -> str:
        """Fetch a buffer in pieces side by side, and return its content name.

        Parameters
        ----------
        url : str
        size : int
            Its bytes.
        sink : callable
            Takes the pieces, as `Transfers.download` has it.
        wait : callable or None
            Where the buffer may be on its way to storage: called between two looks, until it returns False.

        Raises
        ------
        KeyError
            Where storage does not hold it (any more), or not all of it.
        """
        from azure.core.exceptions import HttpResponseError

        blob = self._buffer(url)
        # One small request a look: many would slow the very upload that is waited for.
        while wait is not None and not _has(blob, size):
            if not wait():
                raise KeyError(blob.blob_name)
        try:
            return self._transfers.download(blob, 0, size, sink)
        except HttpResponseError as exc:
            if exc.status_code in (404, 416):
                raise KeyError(blob.blob_name) from exc
            raise

    def has_buffer(self, url: str, size: int) -> bool:
        """Tell whether storage holds a buffer whole."""
        return _has(self._buffer(url), size)

    def _buffer(self, url: str) -> BlobClient:
        from azure.storage.blob import BlobClient

        return BlobClient.from_blob_url(url, **self._client_options())


def _has(blob: BlobClient, size: int) -> bool:
    from azure.core.exceptions import ResourceNotFoundError

    try:
        return bool(blob.get_blob_properties().size == size)
    except ResourceNotFoundError:
        return False
