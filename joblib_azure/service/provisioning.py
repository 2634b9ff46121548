"""An account where there is none: resource group, storage account and Batch account, made and removed through Azure
Resource Manager (an extra: ``joblib_azure[management]``).

What is sent is JSON written here, so that a dry run shows the very bodies that would be. Everything is a PUT: done
twice, it is done once. A resource group is removed only where it was made here and nothing of others is in it.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from azure.core.credentials import TokenCredential

from ..errors import ClusterError
from .credentials import client_options
from .faults import translated
from .management import missing

#: Marks what was made here.
TAG = {"madeBy": "joblib_azure"}
#: Seconds that the making of one resource may take; a storage account takes half a minute.
_PATIENCE = 600.0
#: Seconds between two looks at an operation that goes on.
_LOOK = 3
_BATCH, _STORAGE = "Microsoft.Batch/batchAccounts", "Microsoft.Storage/storageAccounts"

Notify = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class AccountPlan:
    """What is to be made, or removed.

    Parameters
    ----------
    subscription, resource_group, location, batch_account, storage_account : str
        Names as Azure wants them: both accounts in lower-case letters and digits, 3 to 24.
    shared_keys : bool, default True
        Whether the Batch account takes shared keys too, and not only Entra.
    """

    subscription: str
    resource_group: str
    location: str
    batch_account: str
    storage_account: str
    shared_keys: bool = True

    @property
    def _group(self) -> str:
        return f"/subscriptions/{self.subscription}/resourceGroups/{self.resource_group}"

    @property
    def batch_resource_id(self) -> str:
        """Resource id of the Batch account."""
        return f"{self._group}/providers/{_BATCH}/{self.batch_account}"

    @property
    def storage_resource_id(self) -> str:
        """Resource id of the storage account."""
        return f"{self._group}/providers/{_STORAGE}/{self.storage_account}"

    def bodies(self) -> Mapping[str, dict[str, Any]]:
        """Return what is sent for each resource, by its resource id, in order."""
        modes = ["AAD", "SharedKey"] if self.shared_keys else ["AAD"]
        return {
            self._group: {"location": self.location, "tags": TAG},
            self.storage_resource_id: {
                "location": self.location,
                "kind": "StorageV2",
                "sku": {"name": "Standard_LRS"},
                "tags": TAG,
                "properties": {
                    "minimumTlsVersion": "TLS1_2",
                    "supportsHttpsTrafficOnly": True,
                    "allowBlobPublicAccess": False,
                },
            },
            self.batch_resource_id: {
                "location": self.location,
                "tags": TAG,
                "properties": {
                    "autoStorage": {"storageAccountId": self.storage_resource_id},
                    "poolAllocationMode": "BatchService",
                    "allowedAuthenticationModes": modes,
                },
            },
        }


@dataclass(frozen=True, kw_only=True)
class AccountMade:
    """How to reach what was made."""

    plan: AccountPlan
    batch_endpoint: str
    storage_endpoint: str
    batch_key: str = field(default="", repr=False)
    storage_key: str = field(default="", repr=False)


class Provisioning:
    """Makes and removes accounts in a subscription.

    Parameters
    ----------
    plan : AccountPlan
    credential : TokenCredential
        As `credentials.token_credential` gives it.
    endpoint : str
        Of Azure Resource Manager, the cloud's.
    notify : callable, optional
        Gets a line about each thing that is done.
    patience : float
        Seconds that each resource may take.

    Raises
    ------
    MissingExtraError
    """

    def __init__(
        self,
        plan: AccountPlan,
        credential: TokenCredential,
        *,
        endpoint: str,
        notify: Notify = lambda line: None,
        patience: float = _PATIENCE,
    ) -> None:
        try:
            from azure.mgmt.batch import BatchManagementClient
            from azure.mgmt.resource.resources import ResourceManagementClient
            from azure.mgmt.storage import StorageManagementClient
        except ImportError as exc:
            raise missing("azure-mgmt-batch, -resource or -storage", exc) from exc
        self.plan, self.endpoint = plan, endpoint
        self._notify, self._patience = notify, patience
        shared: dict[str, Any] = {
            "base_url": endpoint,
            "credential_scopes": [f"{endpoint}/.default"],
            "polling_interval": _LOOK,
            **client_options(endpoint),
        }
        self._batch: Any = BatchManagementClient(credential, plan.subscription, **shared)
        self._resources: Any = ResourceManagementClient(credential, plan.subscription, **shared)
        self._storage: Any = StorageManagementClient(credential, plan.subscription, **shared)

    def __repr__(self) -> str:
        return f"Provisioning({self.plan.batch_account!r} in {self.plan.resource_group!r})"

    # making ---------------------------------------------------------------------------------------------

    def setup(self) -> AccountMade:
        """Make what is not there, and return how to reach it; what is there is brought to the plan.

        Raises
        ------
        AuthenticationError
            Where the identity may not.
        ClusterError
            Where something is not made in time.
        ServiceError
            Where Azure refuses it: a name that is taken, a location that there is none of.
        """
        plan = self.plan
        group, storage, batch = (io.BytesIO(json.dumps(body).encode()) for body in plan.bodies().values())
        name = plan.resource_group
        with self._doing(f"resource group {name}"):
            # One that is there keeps its location and its tags, which are somebody's.
            if not self._resources.resource_groups.check_existence(name):
                self._resources.resource_groups.create_or_update(name, group)
        self._refuse_others()
        with self._doing(f"storage account {plan.storage_account}") as doing:
            accounts = self._storage.storage_accounts
            self._wait(doing, accounts.begin_create(name, plan.storage_account, storage))
            blobs = accounts.get_properties(name, plan.storage_account).properties.primary_endpoints.blob
            storage_key = accounts.list_keys(name, plan.storage_account).keys_property[0].value
        with self._doing(f"Batch account {plan.batch_account}") as doing:
            accounts = self._batch.batch_account
            self._wait(doing, accounts.begin_create(name, plan.batch_account, batch))
            host = accounts.get(name, plan.batch_account).properties.account_endpoint
            batch_key = accounts.get_keys(name, plan.batch_account).primary if plan.shared_keys else ""
        return AccountMade(
            plan=plan,
            batch_endpoint=f"https://{host.removeprefix('https://')}",
            storage_endpoint=blobs.rstrip("/"),
            batch_key=batch_key or "",
            storage_key=storage_key or "",
        )

    def _refuse_others(self) -> None:
        """Raise where an account of the plan's names is there that was not made here: a PUT would change it."""
        group = self.plan.resource_group
        with translated(f"looking at resource group {group}", self.endpoint):
            there = self._resources_of(group)
        for id in (self.plan.storage_resource_id, self.plan.batch_resource_id):
            if id.lower() in there and not _made_here(there[id.lower()]):
                raise ClusterError(
                    f"{id.rsplit('/', 1)[-1]} is in resource group {group} already and was not made by `joblib-azure "
                    "account setup`, which would change its settings. Give another name, or use the account as it is "
                    "with `joblib-azure init`"
                )

    def _resources_of(self, group: str) -> dict[str, Any]:
        return {each.id.lower(): each for each in self._resources.resources.list_by_resource_group(group)}

    # removing -------------------------------------------------------------------------------------------

    def belongings(self) -> list[str]:
        """Return what `teardown` would remove, as lines for people; empty where nothing is there."""
        return [line for line, _ in self._removals()]

    def teardown(self) -> None:
        """Remove the accounts that were made here with all that is in them, and the resource group where it was made
        here and is empty then; what is gone already is no error, and what somebody else made stays.

        Raises
        ------
        AuthenticationError, ClusterError, ServiceError
        """
        for line, remove in self._removals():
            with self._doing(f"removing the {line}") as doing:
                poller = remove()
                if poller is not None:
                    self._wait(doing, poller)

    def _removals(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        plan = self.plan
        group, groups = plan.resource_group, self._resources.resource_groups
        with translated(f"looking at resource group {group}", self.endpoint):
            if not groups.check_existence(group):
                return
            there = self._resources_of(group)
            whole = groups.get(group)
        names = {plan.batch_resource_id.lower(), plan.storage_resource_id.lower()}
        ours = {id for id in names & there.keys() if _made_here(there[id])}
        if plan.batch_resource_id.lower() in ours:
            yield (
                f"Batch account {plan.batch_account}",
                lambda: self._batch.batch_account.begin_delete(group, plan.batch_account),
            )
        if plan.storage_resource_id.lower() in ours:
            yield (
                f"storage account {plan.storage_account}",
                lambda: self._storage.storage_accounts.delete(group, plan.storage_account),
            )
        if not there.keys() - ours and _made_here(whole):
            yield f"resource group {group}", lambda: groups.begin_delete(group)

    @contextlib.contextmanager
    def _doing(self, what: str) -> Iterator[str]:
        self._notify(what)
        with translated(what, self.endpoint):
            yield what

    def _wait(self, doing: str, poller: Any) -> None:
        end = time.monotonic() + self._patience
        while not poller.done():
            if time.monotonic() > end:
                raise ClusterError(f"{doing}: not done after {self._patience:g} s; do it again to go on from there")
            poller.wait(min(1.0, self._patience))
        poller.result()

    def close(self) -> None:
        """Close connections."""
        for client in (self._batch, self._resources, self._storage):
            client.close()


def _made_here(resource: Any) -> bool:
    return TAG.items() <= (resource.tags or {}).items()
