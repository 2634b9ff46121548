"""The account of the smoke suite, and its one pool.

``make test-live`` sets ``JOBLIB_AZURE_LIVE=1``; the account is then the environment's (``JOBLIB_AZURE_CREDENTIALS``, or
``AZURE_BATCH_ACCOUNT``, ``AZURE_BATCH_ENDPOINT``, ``AZURE_STORAGE_ACCOUNT`` …), ``JOBLIB_AZURE_LIVE_SIZE`` the size of
its nodes. It costs a node for about a quarter of an hour. Without it, the same suite runs on an emulator.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import live_account
import pytest

from joblib_azure.cluster import Cluster
from joblib_azure.config import ClusterConfig
from joblib_azure.registry import close_sessions


@pytest.fixture(scope="session")
def place() -> Iterator[live_account.Place]:
    with live_account.place() as found:
        yield found


@pytest.fixture(scope="session")
def config(place: live_account.Place) -> ClusterConfig:
    """A small pool that scales to zero, with a name that nobody has."""
    return ClusterConfig(
        name=f"joblib_azure-live-{secrets.token_hex(4)}",
        pool_size={"dedicated_nodes": {"max": 1}, "idle_shutdown": 60},
        command_line=["echo a node of the smoke suite"],
        metadata={"purpose": "smoke suite of joblib_azure; safe to delete"},
        **place.settings,
    )


@pytest.fixture(scope="session")
def cluster(config: ClusterConfig, place: live_account.Place) -> Iterator[Cluster]:
    """Whatever happens, the pool is deleted."""
    made = Cluster.create(config, place.account)
    try:
        yield made
    finally:
        close_sessions(made)
        made.delete(wait=True, timeout=1200)
        made.close()
