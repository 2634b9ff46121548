"""A task's requests to storage: its bundle and buffers in, its outcomes out.

The only module of the node that imports azure-storage-blob, and it does so late: the runner starts
meanwhile.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .locks import locked

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient, ContainerClient

#: Runs of one Batch task that may begin: the service itself runs a task again after a node was lost, without
#: a bound of its own, and a bundle that kills its nodes must end.
MAX_RUNS = 5
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
    """

    def __init__(self, inputs: str, outputs: str, task: str) -> None:
        from azure.storage.blob import ContainerClient

        options: dict[str, Any] = {
            "connection_timeout": 10,
            "read_timeout": _TIMEOUT,
            "retry_total": 5,
            "initial_backoff": 0.5,  # the SDK's own policy begins with 15 s
            "increment_base": 2,
        }
        self._inputs: ContainerClient = ContainerClient.from_container_url(inputs, **options)
        self._outputs: ContainerClient = ContainerClient.from_container_url(outputs, **options)
        self._options = options
        self._task = task
        self._appended: BlobClient | None = None
        self.run = -1

    def read_bundle(self) -> bytes:
        """Return the bytes of the task's bundle."""
        return self._inputs.download_blob(f"bundles/{self._task}", max_concurrency=4).readall()

    def aborted(self, call: str) -> bool:
        """Tell whether the client gave up the Parallel call."""
        return self._inputs.get_blob_client(f"aborted/{call}").exists()

    def open_outcomes(self, prefix: str) -> str:
        """Create the append blob of this run of the task and return its name.

        Raises
        ------
        TooManyRunsError
            Where the task was run `MAX_RUNS` times before.
        """
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

    def put(self, name: str, data: bytes) -> None:
        """Store a large outcome as a blob of its own, in blocks side by side."""
        self._outputs.get_blob_client(name).upload_blob(data, overwrite=True, max_concurrency=4)

    def fetch_buffer(self, url: str, digest: str, cache: Path) -> None:
        """Bring a buffer into the node's cache, once however many tasks ask for it.

        Raises
        ------
        KeyError
            Where storage does not hold it (any more).
        """
        from azure.core.exceptions import ResourceNotFoundError
        from azure.storage.blob import BlobClient

        target = cache / digest[:2] / digest
        if target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_suffix(".lock")):
            if target.exists():
                return
            part = target.with_suffix(f".{os.getpid()}.part")
            found = hashlib.sha256()
            try:
                with part.open("wb") as file:
                    blob = BlobClient.from_blob_url(url, **self._options)
                    for piece in blob.download_blob(max_concurrency=4).chunks():
                        found.update(piece)
                        file.write(piece)
                if found.hexdigest() != digest:
                    raise KeyError(f"buffer {digest} has the SHA-256 {found.hexdigest()}")
                part.chmod(0o444)
                part.rename(target)
            except ResourceNotFoundError as exc:
                raise KeyError(digest) from exc
            finally:
                part.unlink(missing_ok=True)
