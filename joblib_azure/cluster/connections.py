"""An account's services, connected when they are first used: shared keys where there are some, Entra where not."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ..config import AccountConfig
from ..errors import ConfigurationError
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
    """

    def __init__(self, account: AccountConfig) -> None:
        self.account = account
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
                    self._batch = connect_batch(endpoint, account=account.batch_account, key=secret)
                else:
                    self._batch = connect_batch(
                        account.batch_endpoint or self._found_endpoint(),
                        credential=self.credential,
                        scope=account.endpoints.batch_scope,
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
                    self._blobs = connect_blobs(endpoint, account=account.storage_account, key=secret)
                else:
                    self._blobs = connect_blobs(endpoint, credential=self.credential)
            return self._blobs

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
