"""A task's requests to storage: its bundle and buffers in, its outcomes out.

The only module of the node that imports azure-storage-blob, and it does so late: the runner starts
meanwhile.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..transfer import Transfers, transport

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient, ContainerClient

#: Runs of one Batch task that may begin: the service itself runs a task again after a node was lost, without
#: a bound of its own, and a bundle that kills its nodes must end.
MAX_RUNS = 5
#: Pieces that move at a time, each way: more of them than a core can serve hold each other up.
_STREAMS_A_CORE, _MOST_STREAMS = 4, 16
#: Seconds for one request; azure-core retries within it are bounded by their count.
_TIMEOUT = 60


class TooManyRunsError(RuntimeError):
    """The task was begun `MAX_RUNS` times already."""


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
    """

    def __init__(self, inputs: str, outputs: str, task: str, workers: int = 1) -> None:
        from azure.storage.blob import ContainerClient

        timeouts = {"connection_timeout": 10, "read_timeout": _TIMEOUT}
        options: dict[str, Any] = {
            **timeouts,
            "transport": transport(**timeouts),
            "retry_total": 5,
            "initial_backoff": 0.5,  # the SDK's own policy begins with 15 s
            "increment_base": 2,
        }
        self._inputs: ContainerClient = ContainerClient.from_container_url(inputs, **options)
        self._outputs: ContainerClient = ContainerClient.from_container_url(outputs, **options)
        self._options = options
        self._task = task
        streams = min(_MOST_STREAMS, _STREAMS_A_CORE * workers)
        self._transfers = Transfers(streams, streams)
        self._appended: BlobClient | None = None
        self.run = -1

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
            self._appended, self.run = blob, run
            return name
        raise TooManyRunsError(f"task {self._task} was begun {MAX_RUNS} times and never ended")

    def append(self, data: bytes) -> None:
        """Append records to this run's outcomes."""
        if self._appended is None:
            raise RuntimeError("open_outcomes() comes before append()")
        self._appended.append_block(data)

    def put_payload(self, name: str, data: memoryview, groups: list[int]) -> list[str]:
        """Store a large outcome as a blob of its own, in blocks side by side; return its groups' content names."""
        return self._transfers.upload(self._outputs.get_blob_client(name), data, groups=groups)

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

        return BlobClient.from_blob_url(url, **self._options)


def _has(blob: BlobClient, size: int) -> bool:
    from azure.core.exceptions import ResourceNotFoundError

    try:
        return bool(blob.get_blob_properties().size == size)
    except ResourceNotFoundError:
        return False
