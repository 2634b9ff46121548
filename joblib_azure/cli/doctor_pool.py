"""The doctor's look at the pool, and its one task there and back on a pool that it may have to make."""

from __future__ import annotations

import contextlib
import logging
import platform
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import ClusterError, NodesUnavailableError, PoolDiffersError, ResourceNotFoundError, ServiceError
from .common import count
from .leftovers import MARK, doctors_pool, remove_doctors_pool

if TYPE_CHECKING:
    from ..cluster import Cluster
    from ..config import ClusterConfig
    from ..service import NodeState, PoolState

logger = logging.getLogger(__name__)

#: States of nodes that will not run anything before somebody does something about them.
_BROKEN = frozenset({"starttaskfailed", "unusable", "offline", "unknown"})


def examine(cluster: Cluster) -> str:
    """Say what is wrong with the pool.

    Raises
    ------
    ClusterError
        Where it cannot be used.
    Noted
    """
    from ..cluster.spec import differences, pool_spec
    from .doctor import Noted

    name = cluster.config.name
    try:
        status = cluster.status()
    except ResourceNotFoundError:
        raise Noted(f"{name} is not there yet: `joblib-azure cluster create` makes it") from None
    pool = status.pool
    if pool.state != "active":
        raise Noted(f"{name} is {pool.state}: what needs it waits until it is gone, and makes it again")
    wanted = pool_spec(cluster.config, cluster.account, pool.spec.image, pool.spec.node_agent_sku)
    different = differences(cluster.config, wanted, pool)
    fatal = [each for each in different if not each.changeable]
    if fatal:
        raise PoolDiffersError(
            f"{name} differs in what is fixed when a pool is created:\n" + "\n".join(map(str, fatal)) + "\nUse its "
            "settings or another name, or delete it: `joblib-azure cluster delete`"
        )
    nodes = cluster.nodes()
    _check_nodes(cluster, pool, nodes)
    if different:
        raise Noted(
            "\n".join([f"{name} is used as it is:", *map(str, different), "`joblib-azure cluster resize` changes it"])
        )
    return f"{name} is {pool.state}, {count(len(nodes), 'node')}{_old_errors(pool)}"


def _check_nodes(cluster: Cluster, pool: PoolState, nodes: tuple[NodeState, ...]) -> None:
    from ..cluster.waiting import COMING, USABLE, describe, remedy

    run = pool.autoscale_run
    if run is not None and run.error:
        raise ClusterError(
            f"{pool.id}: its autoscale formula failed: {run.error}. `joblib-azure cluster resize --formula …` gives it "
            "another one"
        )
    hopeful = [node for node in nodes if node.state in USABLE | COMING]
    broken = [node for node in nodes if node.state in _BROKEN - COMING]
    if broken and not hopeful:
        raise NodesUnavailableError(f"{pool.id}: {describe(cluster.batch, pool, broken)}")
    if broken:
        from .doctor import Noted

        raise Noted(f"{pool.id}: {count(len(broken), 'node')} failed: {describe(cluster.batch, pool, broken)}")
    if pool.resize_errors and not nodes and pool.target_nodes:
        raise NodesUnavailableError(f"{pool.id}: no nodes: {'; '.join(pool.resize_errors)}{remedy(pool.resize_errors)}")


def _old_errors(pool: PoolState) -> str:
    return f"; errors of its last resize: {'; '.join(pool.resize_errors)}" if pool.resize_errors else ""


# the task -------------------------------------------------------------------------------------------------


def run_task(cluster: Cluster) -> str:
    """Run one call on the pool, through Parallel as a user's script would; a pool made for it is deleted again.

    Raises
    ------
    JoblibAzureError
    """
    from .waiting import shown

    with _pool(cluster) as used, shown() as used.progress:
        begun = time.monotonic()
        version = _call(used)
        seconds = time.monotonic() - begun
    text = f"there and back in {seconds:.1f} s; Python {version} there, {platform.python_version()} here"
    name = used.config.name
    return text if name == cluster.config.name else f"{text}; the pool {name}, made for it, is being deleted"


@contextlib.contextmanager
def _pool(cluster: Cluster) -> Iterator[Cluster]:
    """Yield a cluster that can run a task: the one that is meant, or a small one for this alone."""
    from ..cluster import Cluster

    config = cluster.config
    try:
        cluster.batch.pool(config.name)
        own = False
    except ResourceNotFoundError:
        config, own = _small(config), True
    used = Cluster(config, cluster.account)
    try:
        yield used
    finally:
        try:
            used.close()  # ends its session, and the session's job
        finally:
            if own:
                _remove(cluster)


def _remove(cluster: Cluster) -> None:
    try:
        remove_doctors_pool(cluster)
    except ServiceError as exc:
        # What the task has said, or why it failed, matters more.
        name = doctors_pool(cluster.config.name)
        hint = f"`joblib-azure cluster delete --name {name}` does it"
        logger.warning("the pool %s could not be deleted (%s): %s", name, exc, hint)


def _small(config: ClusterConfig) -> ClusterConfig:
    """One node at most, and none when idle: what a doctor that is killed leaves costs nothing for long."""
    from ..config import Bounds

    size = config.pool_size
    spot = size.dedicated_nodes.max == 0
    bounds = {"dedicated_nodes": Bounds(max=0 if spot else 1), "spot_nodes": Bounds(max=1 if spot else 0)}
    formula = {"autoscale_formula": "QUEUE_AND_RUNNING"}
    return config.model_copy(
        update={
            "name": doctors_pool(config.name),
            "pool_size": size.model_copy(update={**bounds, **formula}),
            "nodes": 1,
            "metadata": {**config.metadata, MARK: "1"},
        }
    )


def _call(cluster: Cluster) -> str:
    from joblib import Parallel, delayed, parallel_config

    with parallel_config("azure", cluster=cluster):
        # A function of the standard library: the nodes have it, and it says something of them.
        found: list[Any] = Parallel()([delayed(platform.python_version)()])
    return str(found[0])
