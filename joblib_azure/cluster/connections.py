"""An account's services, connected when they are first used: shared keys where there are some, Entra where not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..config import AccountConfig
from ..errors import ConfigurationError
from ..retries import SERVICE_SECONDS
from ..service import BatchService, BlobService

if TYPE_CHECKING:
    from ..service.arm import BatchAccount
    from ..service.credentials import TokenCredential
    from ..service.management import AzureManagement


class Connections:
    """Batch, blobs and the management plane of an account. The SDKs take 0.1 s and more to import, so they come late.

    Parameters
    ----------
    account : AccountConfig
    seconds : float
        For which a service may refuse what is asked for now, or be out of reach, before that is an error.
    alive : callable
        Whether the services are there at all, as far as is known without asking them.
    """

    def __init__(
        self, account: AccountConfig, seconds: float = SERVICE_SECONDS, alive: Callable[[], bool] = lambda: True
    ) -> None:
        self.account = account
        self._seconds, self._alive = seconds, alive
        self._closed = threading.Event()
        self._lock = threading.RLock()
        self._batch: BatchService | None = None
        self._blobs: BlobService | None = None
        self._credential: TokenCredential | None = None

    def __repr__(self) -> str:
        return f"Connections({self.account.batch_account!r})"

    @property
    def batch(self) -> BatchService:
        """The Batch service. :raises ConfigurationError: its endpoint is not safe, or its key none."""
        with self._lock:
            if self._batch is None:
                from ..service.credentials import connect_batch

                account, key = self.account, self.account.batch_key
                if key is not None:
                    endpoint = account.batch_endpoint
                    if endpoint is None:
                        raise ConfigurationError("batchEndpoint: needed where the Batch account's key is used")
                    secret = key.get_secret_value()
                    self._batch = connect_batch(endpoint, account=account.batch_account, key=secret, **self._patience())
                else:
                    self._batch = connect_batch(
                        account.batch_endpoint or self._found_endpoint(),
                        credential=self.credential,
                        scope=account.endpoints.batch_scope,
                        **self._patience(),
                    )
            return self._batch

    @property
    def blobs(self) -> BlobService:
        """The storage account's blobs; the same errors."""
        with self._lock:
            if self._blobs is None:
                from ..service.credentials import connect_blobs

                account, key = self.account, self.account.storage_key
                endpoint = account.storage_endpoint or ""
                if key is not None:
                    secret = key.get_secret_value()
                    self._blobs = connect_blobs(
                        endpoint, account=account.storage_account, key=secret, **self._patience()
                    )
                else:
                    self._blobs = connect_blobs(endpoint, credential=self.credential, **self._patience())
            return self._blobs

    def _patience(self) -> dict[str, Any]:
        # Nothing of this object: what is dropped is to close its connections then, not when the collector comes to it.
        alive, closed = self._alive, self._closed
        return {"seconds": self._seconds, "wanted": lambda: alive() and not closed.is_set()}

    @property
    def credential(self) -> TokenCredential:
        """The credential that fetches tokens from Entra."""
        with self._lock:
            if self._credential is None:
                from ..service.credentials import token_credential

                principal = self.account.service_principal
                self._credential = token_credential(
                    authority=self.account.endpoints.authority,
                    tenant_id=principal.tenant_id if principal is not None else "",
                    client_id=principal.client_id if principal is not None else "",
                    secret=principal.credential.get_secret_value() if principal is not None else "",
                )
            return self._credential

    def management(self, reasons: tuple[str, ...]) -> AzureManagement:
        """Return what creates pools through Azure Resource Manager.

        Parameters
        ----------
        reasons : tuple of str
            The settings that need it, for the error.

        Raises
        ------
        ConfigurationError
            Where the account has shared keys only, or its resource id is not known.
        MissingExtraError
        """
        from ..service.management import AzureManagement

        account, named = self.account, ", ".join(reasons)
        if account.batch_key is not None and account.service_principal is None:
            raise ConfigurationError(
                f"{named}: such a pool is created through Azure Resource Manager, which takes no shared keys. Leave "
                "batchKey out of the account and sign in through Entra (`az login`, or a servicePrincipal)"
            )
        if account.batch_resource_id is None:
            raise ConfigurationError(
                f"{named}: such a pool is created through Azure Resource Manager, which needs the account's "
                "batchResourceId (/subscriptions/…/resourceGroups/…/providers/Microsoft.Batch/batchAccounts/…)"
            )
        return AzureManagement(account.batch_resource_id, self.credential, endpoint=account.endpoints.management)

    def batch_account(self) -> BatchAccount | None:
        """Ask Azure Resource Manager about the Batch account; None where it cannot be asked.

        It takes no shared keys, and it wants the account's resource id.

        Raises
        ------
        AuthenticationError, ServiceError
        """
        from ..service.arm import batch_account

        account = self.account
        if account.batch_resource_id is None or (account.batch_key is not None and account.service_principal is None):
            return None
        return batch_account(account.batch_resource_id, self.credential, endpoint=account.endpoints.management)

    def _found_endpoint(self) -> str:
        found = self.batch_account()
        if found is None:
            raise ConfigurationError("the account's batchEndpoint is not known: give it, or sign in through Entra")
        return found.endpoint

    def close(self) -> None:
        """Close what is open; it opens again when it is used again."""
        with self._lock:
            for service in (self._batch, self._blobs, self._credential):
                close = getattr(service, "close", None)
                if close is not None:
                    close()
            self._batch = self._blobs = self._credential = None
            self._closed.set()
            self._closed = threading.Event()
