"""What the service told a task: its own names, where storage is, and what of the node it may use.

Most of it comes in the environment, the job's and the task's own (`batchjob` writes both); the secrets come on a
stream, since other processes of the user can read what a process was started with.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..retries import SERVICE_SECONDS
from . import place
from .given import working_folder


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """What the service told this task, through its environment and its command line."""

    job: str
    call: str  #: the Parallel call
    task: str
    node: str
    dedicated: bool | None  #: the node's kind; None where the service does not tell
    key: bytes
    inputs: str
    outputs: str
    workers: int
    width: int
    threads: int | None
    root: Path  #: of the package, on this node
    folder: Path  #: in which the calls run
    cache_limit: int | None
    seconds: float  #: for which storage may be out of reach
    node_workers: int | None  #: that may compute at once on the node; None: nobody counts
    log: Path | None  #: where the task's stderr goes

    @property
    def cache(self) -> Path:
        """The node's buffers."""
        return self.root / "buffers"

    def __repr__(self) -> str:
        return f"TaskSettings(job={self.job!r}, task={self.task!r}, node={self.node!r}, …)"

    @classmethod
    def read(cls, environ: Mapping[str, str], secrets: IO[str]) -> TaskSettings:
        """Read the settings; the secrets from where no other process can: key, inputs, outputs."""
        key, inputs, outputs = secrets.readline().split()
        workers, width, threads = cores_of(environ)
        return cls(
            job=environ["AZ_BATCH_JOB_ID"],
            call=environ["JOBLIB_AZURE_CALL"],
            task=environ["AZ_BATCH_TASK_ID"],
            node=environ["AZ_BATCH_NODE_ID"],
            dedicated={"true": True, "false": False}.get(environ.get("AZ_BATCH_NODE_IS_DEDICATED", "").lower()),
            key=base64.b64decode(key),
            inputs=inputs,
            outputs=outputs,
            workers=workers,
            width=width,
            threads=threads,
            root=place.root(environ),
            folder=working_folder(environ),
            seconds=float(environ.get("JOBLIB_AZURE_SERVICE_TIMEOUT", SERVICE_SECONDS)),
            node_workers=int(count) if (count := environ.get("JOBLIB_AZURE_NODE_WORKERS")) else None,
            cache_limit=int(float(limit) * 1e9) if (limit := environ.get("JOBLIB_AZURE_CACHE")) else None,
            log=Path(folder) / "stderr.txt" if (folder := environ.get("AZ_BATCH_TASK_DIR")) else None,
        )


def cores_of(environ: Mapping[str, str]) -> tuple[int, int, int | None]:
    """Return the cores of the task, the chunks that run at once, and ``inner_max_num_threads``."""
    threads = environ.get("JOBLIB_AZURE_THREADS")
    width = int(environ["JOBLIB_AZURE_WIDTH"])
    return int(environ["JOBLIB_AZURE_WORKERS"]), width, int(threads) if threads else None
