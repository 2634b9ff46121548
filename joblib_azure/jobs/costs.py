"""What a job costs: its run, what the service knows of the nodes, and what such nodes cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config import NodePriceConfig
from ..errors import ResourceNotFoundError
from ..prices import PriceLookup
from ..report import History
from ..report.cost import Estimate, JobCost
from ..report.nodetime import NodeFacts, node_time
from .history import history_of

if TYPE_CHECKING:
    from .job import Job


def history_and_cost(job: Job) -> tuple[History, JobCost]:
    """Return a job's run and what it costs; the prices are looked up while the run is read.

    Raises
    ------
    JobError
        Where it, or its blobs, are gone.
    ServiceError, IntegrityError
    """
    description = job.description()
    prices = PriceLookup(description.vm_size, job.batch.endpoint, NodePriceConfig(**description.prices))
    prices.start()
    history = history_of(job)
    kept, used = node_time(history, _facts(job))
    cost = JobCost(
        job=job.name,
        pool=job.pool,
        vm_size=description.vm_size,
        running=history.running,
        nodes=len(history.cores),
        kept=Estimate(hours=kept, prices=prices.wait()),
        used=used,
    )
    return history, cost


def _facts(job: Job) -> NodeFacts:
    try:
        nodes = job.batch.nodes(job.pool)
    except ResourceNotFoundError:  # the pool is gone
        return NodeFacts()
    return NodeFacts(
        dedicated={node.id: node.dedicated for node in nodes},
        allocated={node.id: node.allocated.timestamp() for node in nodes if node.allocated is not None},
    )
