"""What a program that was killed leaves behind, and how the next command knows it and removes it.

A session leaves its job (which ends by its lease) and the job's two containers; ``doctor`` the pool that it had made to
try one. That pool has a name of its own, so that no script comes to use it, and carries a mark.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .. import storage
from ..errors import ResourceNotFoundError, ServiceError

if TYPE_CHECKING:
    from ..cluster import Cluster
    from ..service import JobState

logger = logging.getLogger(__name__)

#: Metadata of a pool that ``doctor`` made for its own task alone.
MARK = "joblib_azure_doctor"
_SUFFIX, _LONGEST = "-doctor", 64


def doctors_pool(name: str) -> str:
    """Return the name of the pool that ``doctor`` makes where the one it is about is not there."""
    return f"{name[: _LONGEST - len(_SUFFIX)]}{_SUFFIX}"


def end_sessions(cluster: Cluster, jobs: Iterable[JobState]) -> int:
    """Delete the jobs of sessions on a pool that goes, and their containers; return how many there were."""
    ended = 0
    for job in jobs:
        if not storage.is_session(job.id):
            continue
        try:
            storage.remove_job(cluster.batch, cluster.blobs, job.id)
        except ServiceError as exc:
            logger.warning("job %s and its blobs could not be removed: %s", job.id, exc)
        else:
            ended += 1
    return ended


def remove_doctors_pool(cluster: Cluster) -> bool:
    """Delete the pool that a doctor has made for want of this cluster's, with the doctor's job.

    Returns
    -------
    bool
        Whether there was one.

    Raises
    ------
    ServiceError
    """
    batch, name = cluster.batch, doctors_pool(cluster.config.name)
    try:
        found = batch.pool(name)
    except ResourceNotFoundError:
        return False
    if MARK not in found.spec.metadata or found.state != "active":
        return False
    end_sessions(cluster, batch.jobs(name))
    batch.delete_pool(name)
    return True
