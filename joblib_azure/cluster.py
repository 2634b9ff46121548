"""A pool plus what is needed to use it: the account and the storage."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType

from .config import AccountConfig, ClusterConfig
from .errors import ClusterError, NodesUnavailableError, ResourceExistsError, ResourceNotFoundError
from .service import BatchService, BlobService, NodeState, PoolSpec

logger = logging.getLogger(__name__)

#: Node states in which a task can run, or will without anybody's help.
USABLE = frozenset({"idle", "running"})
COMING = frozenset({"creating", "starting", "waitingforstarttask", "rebooting", "reimaging", "unknown"})
#: Seconds between two looks while nodes start: at first for a local cluster, then for a pool on Azure.
_FIRST_LOOK, _LAST_LOOK = 0.05, 10.0

#: The image of a pool that this package creates. Ubuntu 24.04 LTS carries Python 3.12 as python3.
_IMAGE = {"publisher": "canonical", "offer": "ubuntu-24_04-lts", "sku": "server", "version": "latest"}
_NODE_AGENT = "batch.node.ubuntu 24.04"


class Cluster:
    """A pool of nodes on a Batch account.

    Creating the object asks nothing of the service; `open` does.

    Parameters
    ----------
    config : ClusterConfig
    account : AccountConfig
    """

    def __init__(self, config: ClusterConfig, account: AccountConfig) -> None:
        self.config = config
        self._account: AccountConfig | None = account
        self._batch: BatchService | None = None
        self._blobs: BlobService | None = None

    def __repr__(self) -> str:
        config = self.config
        return f"<{type(self).__name__} {config.name!r}: {config.nodes} × {config.vm_size}>"

    @property
    def account(self) -> AccountConfig:
        """The account that the cluster is on."""
        if self._account is None:
            raise ClusterError(f"{self!r} is not open")
        return self._account

    @property
    def batch(self) -> BatchService:
        """The Batch service of the account."""
        if self._batch is None:
            # Late: the SDK takes 0.1 s to import, and a configuration can be wrong without it.
            from .service.batch import AzureBatch

            account = self.account
            key = account.batch_key.get_secret_value()
            self._batch = AzureBatch(account.batch_endpoint, account.batch_account, key)
        return self._batch

    @property
    def blobs(self) -> BlobService:
        """The blobs of the storage account."""
        if self._blobs is None:
            from .service.blob import AzureBlobs

            self._blobs = AzureBlobs(self.account.storage_connection_string.get_secret_value())
        return self._blobs

    #: States of nodes that run tasks, or will.
    hopeful = USABLE | COMING

    @property
    def python_path(self) -> tuple[str, ...]:
        """Further entries of ``sys.path`` for the calls of a Parallel that starts now."""
        return self.config.python_path

    def open(self) -> None:
        """Make sure that the pool is there: attach to it, or create it.

        Raises
        ------
        ClusterError
            Where a pool of that name has other slots, or is being deleted.
        ServiceError
        """
        config = self.config
        try:
            found = self.batch.pool(config.name)
        except ResourceNotFoundError:
            self._create()
            return
        if found.state != "active":
            raise ClusterError(
                f"pool {config.name!r} is {found.state}; wait until it is gone, or use another name",
                pool=config.name,
            )
        if found.task_slots_per_node != config.max_tasks_per_node:
            raise ClusterError(
                f"pool {config.name!r} has {found.task_slots_per_node} task slot(s) a node and not "
                f"{config.max_tasks_per_node}; that is fixed when a pool is created. Set max_tasks_per_node "
                f"to {found.task_slots_per_node}, or use another name",
                pool=config.name,
            )

    def _create(self) -> None:
        config = self.config
        try:
            self.batch.create_pool(
                PoolSpec(
                    id=config.name,
                    vm_size=config.vm_size,
                    task_slots_per_node=config.max_tasks_per_node,
                    dedicated_nodes=config.nodes,
                    image=_IMAGE,
                    node_agent_sku=_NODE_AGENT,
                )
            )
        except ResourceExistsError:
            logger.debug("pool %s was created by somebody else meanwhile", config.name)

    def check(self) -> None:
        """Raise a `ClusterError` where the cluster is known to be gone; a pool on Azure is asked by requests only."""

    def wait_for_node(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Wait until a node can run tasks.

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
        config = self.config
        end = time.monotonic() + config.node_timeout
        pause = _FIRST_LOOK
        while not cancelled():
            nodes = self.batch.nodes(config.name)
            if any(node.state in USABLE for node in nodes):
                return
            if nodes and not any(node.state in COMING for node in nodes):
                raise NodesUnavailableError(f"no node can come up: {self.describe(nodes)}", pool=config.name)
            if time.monotonic() > end:
                raise NodesUnavailableError(
                    f"no node came up within node_timeout = {config.node_timeout:g} s: {self.describe(nodes)}. "
                    "Raise node_timeout, or look at the pool's resize errors and quota",
                    pool=config.name,
                )
            logger.info("waiting for the first node of %s: %s", config.name, self.describe(nodes))
            time.sleep(min(pause, max(0.0, end - time.monotonic())))
            pause = min(pause * 1.5, _LAST_LOOK)

    def describe(self, nodes: list[NodeState]) -> str:
        """Say what the nodes do, with errors and the start task's stderr where it failed."""
        parts = [f"{count} {state}" for state, count in Counter(node.state for node in nodes).items()]
        text = ", ".join(parts) or "the pool has no nodes yet"
        errors = self.batch.pool(self.config.name).resize_errors
        if errors:
            text += f"; resize errors: {'; '.join(errors)}"
        for node in nodes:
            if node.errors:
                text += f"; node {node.id}: {'; '.join(node.errors)}"
            if node.state == "starttaskfailed":
                tail = self.batch.node_file_tail(self.config.name, node.id, "startup/stderr.txt")
                text += f"; its start task's stderr ends:\n{tail}" if tail else ""
                break
        return text

    def close(self) -> None:
        """Close the connections; the pool stays."""
        for service in (self._batch, self._blobs):
            if service is not None:
                service.close()
        self._batch = self._blobs = None

    def __enter__(self) -> Cluster:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
