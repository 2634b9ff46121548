"""Which pool a command is about: the one of the cluster's file, or another one of the account by its name.

And which storage account.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import ClusterError, ResourceNotFoundError
from .common import cluster_option, credentials_option, load_account, load_cluster, offered

if TYPE_CHECKING:
    from ..cluster import Cluster
    from ..config import AccountConfig
    from ..service import BatchService, BlobService

F = TypeVar("F", bound=Callable[..., Any])


class Target:
    """The pool that a command is about, and the account that it is on.

    Parameters
    ----------
    cluster_file, credentials_file : str or None
        As given.
    name : str or None
        Of another pool of the account, in place of the cluster's file.
    """

    def __init__(self, cluster_file: str | None, credentials_file: str | None, name: str | None = None) -> None:
        self._cluster_file, self._credentials_file, self._name = cluster_file, credentials_file, name

    @property
    def account(self) -> AccountConfig:
        return load_account(self._credentials_file, self._cluster_file)

    @contextlib.contextmanager
    def handle(self) -> Iterator[Cluster]:
        """A cluster to look at or to delete: nothing is asked yet, whatever state the pool is in."""
        from ..cluster import Cluster
        from ..config import ClusterConfig

        if self._name is None:
            config = load_cluster(self._cluster_file)
        else:
            # Only the name of it is used; what the pool is made of, the service says.
            config = ClusterConfig.read({"name": self._name, "vmSize": "Standard_D1_v2"}, "--name")
        cluster = Cluster(config, self.account)
        with contextlib.closing(cluster):
            try:
                yield cluster
            except ResourceNotFoundError as exc:
                if exc.context.get("code") != "PoolNotFound":
                    raise
                raise ClusterError(
                    f"there is no pool {config.name!r} on the account {cluster.account.batch_account!r}: `joblib-azure "
                    "cluster list` shows those that are, `joblib-azure cluster create` makes one"
                ) from exc

    @contextlib.contextmanager
    def attached(self) -> Iterator[Cluster]:
        """A cluster whose pool is there."""
        from ..cluster import Cluster

        name = self._name or load_cluster(self._cluster_file).name
        cluster = Cluster.attach(name, self.account)
        with contextlib.closing(cluster):
            yield cluster


class Account:
    """The storage account that a command is about, and the Batch account whose sessions use it."""

    def __init__(self, cluster_file: str | None, credentials_file: str | None) -> None:
        self._config = load_account(credentials_file, cluster_file)

    @property
    def name(self) -> str:
        return self._config.storage_account

    @contextlib.contextmanager
    def services(self) -> Iterator[tuple[BlobService, BatchService]]:
        from ..cluster.connections import Connections

        with contextlib.closing(Connections(self._config)) as connections:
            yield connections.blobs, connections.batch


def on_account(command: F) -> F:
    """Add the options that say which account is meant; the command gets an `Account` as its first argument."""

    @cluster_option
    @credentials_option
    @wraps(command)
    def wrapper(*args: Any, cluster_file: str | None, credentials_file: str | None, **kw: Any) -> Any:
        return command(Account(cluster_file, credentials_file), *args, **kw)

    return wrapper  # type: ignore[return-value]


def _complete_pool(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return offered(ctx, lambda found: (pool.id for pool in found.batch.pools(incomplete)))


def on_target(command: F) -> F:
    """Add the options that say which pool is meant; the command gets a `Target` as its first argument."""

    @click.option(
        "--name",
        metavar="POOL",
        shell_complete=_complete_pool,
        help="Another pool of the account, in place of the cluster's file.",
    )
    @cluster_option
    @credentials_option
    @wraps(command)
    def wrapper(*args: Any, cluster_file: str | None, credentials_file: str | None, name: str | None, **kw: Any) -> Any:
        return command(Target(cluster_file, credentials_file, name), *args, **kw)

    return wrapper  # type: ignore[return-value]
