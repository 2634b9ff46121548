"""`BlobService` over the unmodified azure-storage-blob SDK, with an account key."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
from azure.storage.blob import BlobServiceClient, generate_blob_sas, generate_container_sas

from ..errors import ConfigurationError
from .faults import CLIENT_OPTIONS, translates
from .interfaces import BlobItem

#: azure-storage-blob has a retry policy of its own, which begins with 15 s.
_RETRIES: dict[str, Any] = {"initial_backoff": 0.5, "increment_base": 2, "random_jitter_range": 0}
#: Blocks in parallel for a large blob; Azurite and one client on loopback gain nothing from more.
_STREAMS = 4
#: A SAS begins this long ago: the clocks of the client, the nodes and the service differ.
_CLOCK_SKEW = timedelta(minutes=15)


class AzureBlobs:
    """The blobs of a storage account.

    Parameters
    ----------
    connection_string : str
        As the Azure portal gives it, with the account key.

    Raises
    ------
    ConfigurationError
        Where the connection string has no account key or is malformed.
    """

    def __init__(self, connection_string: str) -> None:
        try:
            client = BlobServiceClient.from_connection_string(
                connection_string, max_single_put_size=8 << 20, max_block_size=8 << 20, **CLIENT_OPTIONS, **_RETRIES
            )
            self._key: str = client.credential.account_key
        except (ValueError, AttributeError) as exc:
            raise ConfigurationError(
                f"the storage connection string is not usable: {exc}. It needs AccountName, AccountKey and "
                "an endpoint, as `az storage account show-connection-string` prints it"
            ) from exc
        self._client = client
        self.endpoint: str = client.primary_endpoint
        self._account = str(client.account_name)

    def __repr__(self) -> str:
        return f"AzureBlobs({self.endpoint!r})"

    def close(self) -> None:
        self._client.close()

    @translates("creating a blob container")
    def create_container(self, container: str) -> bool:
        try:
            self._client.create_container(container)
        except ResourceExistsError:
            return False
        return True

    @translates("deleting a blob container")
    def delete_container(self, container: str) -> None:
        try:
            self._client.delete_container(container)
        except ResourceNotFoundError:
            pass

    @translates("storing a blob")
    def put(self, container: str, name: str, data: bytes | memoryview, *, overwrite: bool = True) -> bool:
        blob = self._client.get_blob_client(container, name)
        content: Any = bytes(data) if isinstance(data, memoryview) else data
        try:
            blob.upload_blob(content, overwrite=overwrite, max_concurrency=_STREAMS)
        except ResourceExistsError:
            return False
        return True

    @translates("listing blobs")
    def blobs(self, container: str, prefix: str) -> list[BlobItem]:
        found = self._client.get_container_client(container).list_blobs(name_starts_with=prefix)
        return [BlobItem(name=blob.name, size=blob.size) for blob in found]

    @translates("reading a blob")
    def read(self, container: str, name: str, offset: int = 0, length: int | None = None) -> bytes:
        blob = self._client.get_blob_client(container, name)
        data: bytes = blob.download_blob(offset=offset, length=length, max_concurrency=_STREAMS).readall()
        return data

    def container_url(self, container: str, permissions: str, lifetime: timedelta) -> str:
        token = generate_container_sas(
            self._account,
            container,
            account_key=self._key,
            permission=permissions,
            **self._validity(lifetime),
        )
        return f"{self._client.get_container_client(container).url}?{token}"

    def blob_url(self, container: str, name: str, lifetime: timedelta) -> str:
        token = generate_blob_sas(
            self._account, container, name, account_key=self._key, permission="r", **self._validity(lifetime)
        )
        return f"{self._client.get_blob_client(container, name).url}?{token}"

    def _validity(self, lifetime: timedelta) -> dict[str, Any]:
        now = datetime.now(timezone.utc)
        # Only a loopback endpoint is plain http; elsewhere a token must never cross the network in the clear.
        protocol = "https" if self.endpoint.startswith("https:") else "https,http"
        return {"start": now - _CLOCK_SKEW, "expiry": now + lifetime, "protocol": protocol}
