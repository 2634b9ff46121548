"""Whether anything can still run a job's tasks, and what is told where that, or the job, is gone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..errors import (
    JoblibAzureError,
    NodesUnavailableError,
    ResourceNotFoundError,
    ServiceError,
    SessionClosedError,
    stderr_end,
)
from ..service import BatchService, NodeState
from .waiting import COMING, PREEMPTED, USABLE, describe

if TYPE_CHECKING:
    from .core import Cluster

#: Bytes of a preparation's stderr that an error shows.
_TAIL = 2000
#: What the services answer where somebody has ended or removed what a job cannot do without. No patience helps.
#: https://learn.microsoft.com/rest/api/batchservice/batch-status-and-error-codes
_POOL = frozenset({"PoolNotFound", "PoolBeingDeleted"})
_JOB = frozenset({"JobNotFound", "JobBeingDeleted", "JobBeingTerminated", "JobCompleted"})
_BLOBS = frozenset({"ContainerNotFound", "ContainerBeingDeleted"})
#: States of jobs that take tasks, now or when they are enabled again.
_ALIVE = ("active", "disabling", "disabled", "enabling")
_JOB_OVER = (
    "the Batch job of this session {} while its calls ran, by somebody else or by the service. Run them again: the "
    'next Parallel call makes another job. With job="…" beside the cluster what had been computed is not computed again'
)
#: What the service calls the job preparation task, where it runs.
PREPARATION = "jobpreparation"
#: States of nodes that run tasks, or will; the preempted ones when the service has capacity again.
HOPEFUL = USABLE | COMING | {PREEMPTED}


def stranded(
    batch: BatchService,
    pool: str,
    job: str,
    nodes: Sequence[NodeState],
    tell: Callable[[Sequence[NodeState]], str] | None = None,
    log: Callable[[str, str, str], str] | None = None,
) -> str | None:
    """Return why no node can run a job's tasks; None where one can, or where the pool has none now.

    Parameters
    ----------
    batch : BatchService
    pool, job : str
    nodes : sequence of NodeState
        All of the pool.
    tell : callable, optional
        Says what they do.
    log : callable, optional
        Returns the command that shows the stderr of a job's task on a node, where there is one.

    Raises
    ------
    ServiceError
    """
    failures = batch.preparation_failures(job)
    if not nodes or any(node.state in HOPEFUL and node.id not in failures for node in nodes):
        return None
    said = ""
    for node, failure in failures.items():
        path = log_path(job, PREPARATION)
        command = log_command(pool, job, PREPARATION, node) if log is None else log(job, PREPARATION, node)
        step = f" `{command}` shows what it wrote." if command else ""
        said = f"; the job preparation task failed on every node, on {node}: {failure}.{step}"
        said += stderr_end(batch.node_file_tail(pool, node, path, _TAIL))
        break
    return f"{describe(batch, batch.pool(pool), nodes) if tell is None else tell(nodes)}{said}"


def log_path(job: str, task: str) -> str:
    """Return where a task's stderr lies on its node.

    https://learn.microsoft.com/azure/batch/files-and-directories
    """
    return f"workitems/{job}/job-1/{task}/stderr.txt"


def log_command(pool: str, job: str, task: str, node: str | int | None) -> str:
    """Return the command that shows what a task has written, where its node is known."""
    return f"joblib-azure cluster file {node} {log_path(job, task)} --name {pool}" if node else ""


def gone(exc: ServiceError) -> bool:
    """Whether the service says that a job, its pool or its blobs are gone, or ended, for good."""
    return exc.context.get("code") in _POOL | _JOB | _BLOBS


def explained(exc: BaseException, cluster: Cluster, job: str) -> BaseException:
    """Return what is told of an error that ends a session: what somebody has taken away, and what to do.

    Other errors are told as they are, those of the service with the command that finds out more.
    """
    if not isinstance(exc, ServiceError):
        return exc
    code, pool = exc.context.get("code"), cluster.config.name
    told: JoblibAzureError
    if code in _POOL:
        told = NodesUnavailableError(
            f"pool {pool!r} is gone: somebody has deleted it while calls ran. The next Parallel call makes it anew, as "
            "`joblib-azure cluster create` does",
            pool=pool,
            job=job,
        )
    elif code in _JOB:
        over = None
        with contextlib.suppress(ServiceError):  # which is not to hide this error
            over = job_over(cluster, job)
        told = over or SessionClosedError(_JOB_OVER.format("was ended"), job=job, pool=pool)
    elif code in _BLOBS:
        told = SessionClosedError(
            "a storage container that this session needs is gone: somebody has removed it while its calls ran. Run "
            "them again: the next Parallel call makes what it needs; `joblib-azure storage list` shows what there is",
            job=job,
        )
    else:
        cluster.advise(exc)
        return exc
    told.__cause__ = exc
    return told


def job_over(cluster: Cluster, job: str) -> SessionClosedError | None:
    """Return what is told where a session's job takes no more tasks; None where it does.

    Raises
    ------
    ServiceError
    """
    try:
        found = cluster.batch.job(job)
    except ResourceNotFoundError:
        ending = "was deleted"
    else:
        if found.state in _ALIVE:
            return None
        ending = f"was ended ({found.reason or found.state})"
    return SessionClosedError(_JOB_OVER.format(ending), job=job, pool=cluster.config.name)
