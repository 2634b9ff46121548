"""From one run of a script to the next: what it leaves behind, and how another takes over.

A run writes down which calls are in each bundle, before its task is added, and now and then that it lives. The next one
makes sure that nobody is there, ends what is left, and reads what there is.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from . import labels
from .codec import seal
from .errors import JobError, ResourceNotFoundError
from .history import JOURNALS, History, Trace
from .storage import session_containers

if TYPE_CHECKING:
    from .batchjob import BatchJob
    from .cluster import Cluster
    from .service import JobDetails

logger = logging.getLogger(__name__)

#: Seconds between two signs of life of a client, and for which another one's is waited for.
HEARTBEAT, _WATCH = 5.0, 12.0
#: Seconds that the job of a client that died may take to end: its tasks must write no more when they are read.
_ENDING, _LOOK = 120.0, 0.25
#: Seconds that nodes have after it to store what calls had finished.
_SETTLING = 1.0
#: The blob that says that a client lives.
_ALIVE = "alive"


# what a run leaves for the next one ---------------------------------------------------------------------------


def put_journal(job: BatchJob, task: str, call: str, number: int, chunks: Mapping[int, Trace]) -> None:
    """Store which calls a bundle has; before its task is added.

    Raises
    ------
    ServiceError
    """
    name = f"{JOURNALS}{task}"
    said = {
        "call": call,
        "number": number,
        "task": task,
        "chunks": {str(chunk): trace for chunk, trace in chunks.items()},
    }
    job.cluster.blobs.put(job.inputs, name, seal(job.key, f"{job.id}/{name}", {}, json.dumps(said).encode()))


def put_sign_of_life(job: BatchJob) -> None:
    """Say that the job's client lives.

    Raises
    ------
    ServiceError
    """
    said = {"host": socket.gethostname(), "pid": os.getpid(), "at": time.monotonic()}
    job.cluster.blobs.put(job.inputs, _ALIVE, json.dumps(said).encode())


# what a run finds of those before -----------------------------------------------------------------------------


def take_over(cluster: Cluster, label: str, cancelled: Callable[[], bool]) -> tuple[History, int]:
    """End what is left of a script's earlier runs, read their results, and return them with the next generation.

    Parameters
    ----------
    cluster : Cluster
        Open.
    label : str
    cancelled : callable
        Whether nobody waits any more.

    Raises
    ------
    JobError
        Where a detached job has that name, another client runs the script at this moment, or another version of this
        package has run it.
    ServiceError, IntegrityError
    """
    batch, history = cluster.batch, History()
    found = labels.jobs_of(batch, label)
    for details in found:
        if labels.kind_of(details) != "script":
            raise JobError(
                f"job={label!r} is the name of a detached job: choose another, or remove that with "
                f"`joblib-azure job delete {label}`",
                job=details.id,
            )
        labels.check_format(details)
    for details in found:
        if details.state == "deleting":
            continue
        if details.state != "completed":
            _check_nobody_is_there(cluster, label, details)
            batch.end_job(details.id, delete=False, reason="Superseded")
            _await_end(cluster, details, cancelled)
            time.sleep(_SETTLING)
        try:
            history.add(cluster, batch.job(details.id))
        except ResourceNotFoundError:
            continue  # it was deleted just now
    return history, 1 + max(map(labels.generation_of, found), default=0)


def _check_nobody_is_there(cluster: Cluster, label: str, details: JobDetails) -> None:
    """:raises JobError: the client of that run lives."""
    first = _sign_of_life(cluster, details)
    if first is None or (first["host"] == socket.gethostname() and not labels.is_there(first["pid"])):
        return
    end = time.monotonic() + _WATCH
    who = f"process {first['pid']} on {first['host']}"
    logger.info("looking for %.0f s whether %s still runs job %s", _WATCH, who, label)
    while time.monotonic() < end:
        time.sleep(_LOOK)
        if _sign_of_life(cluster, details) != first:
            raise JobError(
                f"job={label!r} is being run at this moment, by {who}: wait for its end, or choose another name for "
                "this run",
                job=details.id,
            )


def _sign_of_life(cluster: Cluster, details: JobDetails) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(cluster.blobs.read(session_containers(details.id)[0], _ALIVE))
    except ResourceNotFoundError:
        return None
    return found


def _await_end(cluster: Cluster, details: JobDetails, cancelled: Callable[[], bool]) -> None:
    end = time.monotonic() + _ENDING
    while not cancelled():
        try:
            if cluster.batch.job(details.id).state in ("completed", "deleting"):
                return
        except ResourceNotFoundError:
            return
        if time.monotonic() > end:
            logger.warning("job %s, of a run that died, is not over after %.0f s; going on", details.id, _ENDING)
            return
        time.sleep(_LOOK)
