"""`Cluster`: a pool, the account that it is on, and all that can be done with the two."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..config import AccountConfig, ClusterConfig
from ..errors import (
    AuthenticationError,
    ClusterError,
    ConflictError,
    JoblibAzureError,
    ResourceNotFoundError,
    ServiceError,
)
from ..retries import SERVICE_SECONDS
from ..service import NodeState, PoolState
from . import lifecycle
from .connections import Connections
from .spec import config_of, recorded_size
from .stranded import log_command
from .view import PoolView
from .waiting import NodeWait, Progress

if TYPE_CHECKING:
    from ..service.arm import BatchAccount

logger = logging.getLogger(__name__)

#: Seconds that a pool of the same name may take to be gone, and that a deletion is waited for: with nodes it takes
#: minutes, and the service promises nothing.
DELETION_SECONDS = 900.0
#: Bounds of a resize: nodes of (minimum, maximum), or one number.
Nodes = int | tuple[int, int] | None


class Cluster(PoolView):
    """A pool of nodes on a Batch account.

    Creating the object asks nothing of the service; `open`, `create` and `attach` do.

    Parameters
    ----------
    config : ClusterConfig
    account : AccountConfig, optional
        By default the environment's.
    """

    def __init__(self, config: ClusterConfig, account: AccountConfig | None = None) -> None:
        self._prepare(config)
        self._connections = Connections(account or AccountConfig.from_environment(), config.service_timeout)

    # making one -----------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        config: ClusterConfig,
        account: AccountConfig | None = None,
        wait: bool = True,
        *,
        timeout: float | None = None,
        progress: Progress | None = None,
    ) -> Cluster:
        """Create the pool, or reuse the one of that name where it is the same.

        Parameters
        ----------
        config : ClusterConfig
        account : AccountConfig, optional
            By default the environment's.
        wait : bool, default True
            Whether to wait until its nodes are up: those that it is to have now, which for a pool that scales to zero
            may be none.
        timeout : float, optional
            Seconds; by default the configuration's ``node_timeout``.
        progress : callable, optional
            Gets a `Waiting` at every look.

        Raises
        ------
        PoolDiffersError
            Where a pool of that name differs in what is fixed when a pool is created; every difference is named. A pool
            that differs in its size only is used as it is, with a warning.
        NodesUnavailableError
            Where no node can come up, or none did in time. The pool stays.
        ClusterError, ServiceError, ConfigurationError
        """
        cluster = cls(config, account)
        cluster.progress = progress
        cluster._ensure(strict=True, cancelled=lambda: False)
        if wait:
            cluster.wait_for_nodes(timeout=timeout)
        return cluster

    def batch_account(self) -> BatchAccount | None:
        """Return the Batch account with its quotas; None where Azure Resource Manager cannot be asked for them.

        It takes no shared keys, and it wants the account's ``batch_resource_id``.

        Raises
        ------
        AuthenticationError, ServiceError
        """
        return self.connections.batch_account()

    @classmethod
    def attach(cls, cluster: str | ClusterConfig, account: AccountConfig | None = None, **settings: Any) -> Cluster:
        """Use a pool that is there; nothing is created or changed.

        Parameters
        ----------
        cluster : str or ClusterConfig
            Name of the pool, or its configuration.
        account : AccountConfig, optional
            By default the environment's.
        **settings
            Of `ClusterConfig`, where only a name is given and the pool does not say: ``cores`` of an unusual size,
            ``nodes`` of a pool that another program made, ``python``, timeouts.

        Raises
        ------
        ClusterError
            Where there is no such pool, or it is being deleted.
        PoolDiffersError
            Where it differs in what its use depends on.
        """
        if isinstance(cluster, str):
            name, seconds = cluster, settings.get("service_timeout", SERVICE_SECONDS)
        else:
            name, seconds = cluster.name, cluster.service_timeout
        connections = Connections(account or AccountConfig.from_environment(), seconds)
        try:
            found = connections.batch.pool(name)
        except ResourceNotFoundError as exc:
            raise ClusterError(
                f"there is no pool {name!r} on the account {connections.account.batch_account!r}: `joblib-azure "
                "cluster list` shows those that are, `joblib-azure cluster create` makes one",
                pool=name,
            ) from exc
        if found.state != "active":
            raise ClusterError(
                f"pool {name!r} is {found.state}. Once `joblib-azure cluster list` shows it no more, `joblib-azure "
                "cluster create` makes it anew",
                pool=name,
            )
        config = config_of(found, **settings) if isinstance(cluster, str) else cluster
        attached = cls(config, connections.account)
        attached._connections = connections
        attached._found(found)
        if not isinstance(cluster, str):
            lifecycle.check(connections, config, found, strict=False)
        return attached

    @classmethod
    def list(cls, account: AccountConfig | None = None, prefix: str = "") -> tuple[PoolState, ...]:
        """Return the account's pools whose names begin with `prefix`."""
        connections = Connections(account or AccountConfig.from_environment())
        try:
            return tuple(connections.batch.pools(prefix))
        finally:
            connections.close()

    # for sessions ---------------------------------------------------------------------------------------

    def open(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Make sure that the pool is there: attach to it, or create it.

        Raises
        ------
        ClusterError
            Where a pool of that name has other slots, or is still being deleted at the deadline.
        ServiceError
        """
        try:
            self._ensure(strict=False, cancelled=cancelled)
        except ServiceError as exc:
            self.advise(exc)
            raise

    def _ensure(self, *, strict: bool, cancelled: Callable[[], bool]) -> None:
        found = lifecycle.ensure_pool(
            self.connections,
            self.config,
            strict=strict,
            timeout=DELETION_SECONDS,
            progress=self._teller(),
            cancelled=cancelled,
        )
        if found is None:
            self._asked, self._mark = True, None
        else:
            self._found(found)

    def _found(self, pool: PoolState) -> None:
        self._size = recorded_size(pool) or self.config.pool_size

    def check(self) -> None:
        """Raise a `ClusterError` where the cluster is known to be gone; a pool on Azure is asked by requests only."""

    def log_command(self, job: str, task: str, node: str | int | None) -> str:
        """Return the command that shows what a task of a session has written; empty where there is none."""
        return log_command(self.config.name, job, task, node)

    def advise(self, exc: JoblibAzureError) -> None:
        """Add to an error of the services what finds out more."""
        exc.advise("`joblib-azure doctor` tries each step of the way by itself")

    def wait_for_node(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Wait until a node can run tasks; a pool that scales and has none is asked for one.

        Parameters
        ----------
        cancelled : callable
            Asked between two looks; the wait ends where it says True.

        Raises
        ------
        NodesUnavailableError
            Where no node can come up, or none did within ``node_timeout``; it says what the nodes do, with the
            start task's stderr.
        """
        self.wait_for_nodes(1, cancelled=cancelled)

    def wait_for_nodes(
        self,
        count: int | None = None,
        *,
        timeout: float | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> tuple[NodeState, ...]:
        """Wait until nodes can run tasks, and go on with those that came up where others cannot.

        Parameters
        ----------
        count : int, optional
            By default all that the pool is to have now.
        timeout : float, optional
            Seconds; by default the configuration's ``node_timeout``.

        Returns
        -------
        tuple of NodeState
            Those that are ready.

        Raises
        ------
        NodesUnavailableError
            Where none is ready and none can come up, or none did in time.
        """
        wait = NodeWait(
            self.batch,
            self.config.name,
            self.config.node_timeout if timeout is None else timeout,
            progress=self._teller(),
            cancelled=cancelled,
            help=lambda pool: self._help(pool, cancelled),
            fresh=self._is_ours,
        )
        return tuple(wait.run(count))

    def demand(self, nodes: int, *, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Have `nodes` nodes at once, within the pool's bounds, where the pool scales by itself; else do nothing.

        The pool keeps them until its formula had time to see the tasks; asking again is cheap, and moves that on.

        Raises
        ------
        ClusterError
            Where the pool has no nodes and this identity may not ask for any, or the pool takes no floor in time.
        ServiceError
        """
        size = self._size
        dedicated = min(nodes, size.dedicated_nodes.max)
        spot = min(nodes - dedicated, size.spot_nodes.max)
        if dedicated + spot <= 0:
            return
        # Until the nodes are up and two evaluations have seen what they do.
        seconds = self.config.node_timeout + 2 * size.evaluation_interval
        before = self._demand.raise_to(dedicated, spot, seconds, cancelled=cancelled, progress=self._teller())
        if before is not None:
            self._asked, self._mark = True, before.allocation_since

    def release(self, job: str = "") -> bool:
        """Let the nodes go that `demand` has asked for, unless another job is on the pool: its formula decides then.

        Parameters
        ----------
        job : str
            That needs them no more.

        Returns
        -------
        bool
            Whether that is so now; else they stay until the end of what was asked for, at most.
        """
        return self._demand.lower(job)

    def _help(self, pool: PoolState, cancelled: Callable[[], bool]) -> bool:
        """Nothing is there and nothing is coming: do what can be done about it."""
        if pool.autoscale is not None:
            self.demand(1, cancelled=cancelled)
            return True
        if not pool.target_nodes:
            return False
        # A resize that failed some time ago is not tried again by the service.
        try:
            self.batch.resize_pool(pool.id, pool.target_dedicated, pool.target_spot)
        except AuthenticationError:
            return False
        except ConflictError:
            return True
        self._asked, self._mark = True, pool.allocation_since
        return True

    def resize(
        self,
        dedicated: Nodes = None,
        spot: Nodes = None,
        *,
        formula: str | None = None,
        interval: int | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Give the pool other bounds, or another formula.

        Parameters
        ----------
        dedicated, spot : int or tuple of int, optional
            Nodes at least and at most; a single number is the number of nodes in a pool that does not scale, and the
            upper bound in one that does. None leaves them as they are.
        formula : str, optional
            Name or text of an autoscale formula; ``FIXED`` for none, so that the pool has its maxima at all times.
        interval : int, optional
            Seconds between two evaluations.
        wait : bool, default False
            Whether to wait until the nodes are up.
        timeout : float, optional
            Seconds; by default the configuration's ``node_timeout``.

        Raises
        ------
        ConfigurationError
            Where a number is out of bounds. Nothing was changed then.
        ClusterError
            Where the pool is still being resized at the deadline.
        ServiceError
        """
        name = self.config.name
        seconds = self.config.node_timeout if timeout is None else timeout
        found = self.batch.pool(name)
        self._found(found)
        size = lifecycle.new_size(
            found, self._size, dedicated, spot, autoscale_formula=formula, evaluation_interval=interval
        )
        lifecycle.resize_pool(self.batch, found, size, lifecycle.Patience(name, seconds, self.progress))
        self._asked, self._mark, self._size = True, found.allocation_since, size
        most = size.dedicated_nodes.max + size.spot_nodes.max
        # A pool may be resized to nothing; a configuration of no nodes would be none.
        self.config = self.config.model_copy(update={"pool_size": size, "nodes": max(1, most)})
        if wait:
            self.wait_for_nodes(timeout=seconds)

    def delete(self, wait: bool = False, *, timeout: float | None = None) -> None:
        """End the cluster's session, if this process has one, and delete the pool; one that is gone is no error.

        Parameters
        ----------
        wait : bool, default False
            Whether to wait until it is gone.
        timeout : float, optional
            Seconds; 900 by default.

        Raises
        ------
        ClusterError
            Where it is still there at the deadline.
        ServiceError
        """
        self._end_sessions()
        seconds = DELETION_SECONDS if timeout is None else timeout
        patience = lifecycle.Patience(self.config.name, seconds, self.progress)
        lifecycle.delete_pool(self.batch, self.config.name, wait=wait, patience=patience)

    def __enter__(self) -> Cluster:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
