"""Jobs by their names, on whichever account is meant."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .. import labels
from ..config import AccountConfig, ClusterConfig
from ..errors import JobError, ResourceNotFoundError
from ..service import JobDetails
from ..storage import remove_job

if TYPE_CHECKING:
    from ..cluster import Cluster
    from ..cluster.connections import Connections


def find(connections: Connections, name: str) -> JobDetails:
    """Return the job of a name, with its environment.

    Raises
    ------
    ConfigurationError
        Where it cannot be a name.
    JobError
        Where there is none, or it is being deleted.
    ServiceError
    """
    batch = connections.batch
    found = labels.jobs_of(batch, labels.check_name(name))
    if not found:
        raise _none(connections, name)
    latest = found[-1]
    if labels.kind_of(latest) == "script":
        raise JobError(
            f'job {name!r} is a script\'s: run that again with parallel_config("azure", …, job={name!r}), and it '
            f"computes what is missing only. `joblib-azure job delete {name}` removes what it has computed",
            job=latest.id,
        )
    if latest.state == "deleting":
        raise JobError(
            f"job {name!r} is being deleted; its results are gone. Once `joblib-azure job list` shows it no more, the "
            "name can be used again",
            job=latest.id,
        )
    try:
        return batch.job(latest.id)
    except ResourceNotFoundError as exc:
        raise JobError(f"job {name!r} was deleted just now", job=latest.id) from exc


def remove(connections: Connections, name: str) -> int:
    """Delete all jobs of a name, with their blobs, and return how many there were.

    Raises
    ------
    ConfigurationError
    JobError
        Where there is none.
    ServiceError
    """
    jobs = labels.jobs_of(connections.batch, labels.check_name(name))
    found = [details for details in jobs if details.state != "deleting"]
    if not found:
        raise _none(connections, name)
    for details in found:
        remove_job(connections.batch, connections.blobs, details.id)
    return len(found)


def _none(connections: Connections, name: str) -> JobError:
    return JobError(
        f"there is no job {name!r} on the account {connections.account.batch_account!r}: `joblib-azure job list` shows "
        "those that are"
    )


def connections_of(
    cluster: str | os.PathLike[str] | ClusterConfig | Cluster | None, account: AccountConfig | None
) -> tuple[Connections, bool]:
    """Return the account's services, and whether they are the caller's to close."""
    from ..cluster.connections import Connections
    from ..registry import resolve_cluster

    if account is not None:
        return Connections(account), True
    if cluster is None and not os.environ.get("JOBLIB_AZURE_CLUSTER"):
        return Connections(AccountConfig.from_environment()), True
    return resolve_cluster(cluster).connections, False


@contextlib.contextmanager
def borrowed(
    cluster: str | os.PathLike[str] | ClusterConfig | Cluster | None, account: AccountConfig | None
) -> Iterator[Connections]:
    """Have an account's services within a block; closed at its end where they are nobody else's."""
    connections, owns = connections_of(cluster, account)
    try:
        yield connections
    finally:
        if owns:
            connections.close()
