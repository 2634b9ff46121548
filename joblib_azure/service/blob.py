"""`BlobService` over the unmodified azure-storage-blob SDK, with an account key or with tokens.

With a key, SAS are signed with it. With tokens, they are signed with a user delegation key that the storage account
gives for at most 7 days; what needs to live longer needs a pool's identity instead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.storage.blob import BlobServiceClient, UserDelegationKey, generate_blob_sas, generate_container_sas

from ..codec import PIECE
from ..errors import AuthenticationError, ConfigurationError
from ..transfer import Transfers
from .faults import error_code, translated, translates
from .interfaces import BlobItem, ContainerItem
from .lightblobs import LightBlobs

#: Up to this size a blob goes in one request. `Transfers` sends larger ones in blocks of its own.
LARGE_PUT: dict[str, Any] = {"max_single_put_size": PIECE}
#: Pieces that are fetched at a time: a client has its user's memory to think of.
_STREAMS = 4
#: A SAS begins this long ago: the clocks of the client, the nodes and the service differ.
_CLOCK_SKEW = timedelta(minutes=15)
#: The longest that a user delegation key lives, by the service's clock; a little less by ours.
#: https://learn.microsoft.com/rest/api/storageservices/get-user-delegation-key
LONGEST_DELEGATION = timedelta(days=7)
_DELEGATION = LONGEST_DELEGATION - timedelta(minutes=5)
#: A SAS may end this much earlier than was asked for, so that one key serves many.
_TOLERANCE = timedelta(hours=1)


class AzureBlobs:
    """The blobs of a storage account.

    Parameters
    ----------
    client : BlobServiceClient
        With credentials, as `credentials.connect_blobs` makes it.
    key : str
        The account's key; empty where the client has tokens.
    light : LightBlobs
        For what is asked most often, with the client's retries and credentials.
    """

    def __init__(self, client: BlobServiceClient, *, key: str, light: LightBlobs) -> None:
        self._client, self._light = client, light
        self._key = key
        self.endpoint: str = client.primary_endpoint
        self._account = str(client.account_name)
        self._lock = threading.Lock()
        self._transfers = Transfers(down=_STREAMS)
        self._delegation: tuple[UserDelegationKey, datetime] | None = None

    def __repr__(self) -> str:
        return f"AzureBlobs({self.endpoint!r})"

    @property
    def moved(self) -> tuple[int, int]:
        return self._transfers.sent, self._transfers.fetched

    def close(self) -> None:
        self._transfers.close()
        self._light.close()
        self._client.close()

    # containers -----------------------------------------------------------------------------------------

    @translates("creating a blob container")
    def create_container(self, container: str, *, metadata: Mapping[str, str] | None = None) -> bool:
        try:
            self._client.create_container(container, metadata=dict(metadata or {}))
        except ResourceExistsError:
            return False
        return True

    @translates("listing blob containers")
    def containers(self, prefix: str) -> list[ContainerItem]:
        found = self._client.list_containers(name_starts_with=prefix, include_metadata=True)
        return [ContainerItem(name=c.name, modified=c.last_modified, metadata=c.metadata or {}) for c in found]

    @translates("marking a blob container")
    def mark_container(self, container: str, metadata: Mapping[str, str]) -> bool:
        try:
            self._client.get_container_client(container).set_container_metadata(dict(metadata))
        except ResourceNotFoundError:
            return False
        return True

    @translates("deleting a blob container")
    def delete_container(self, container: str) -> None:
        try:
            self._client.delete_container(container)
        except ResourceNotFoundError:
            pass
        except ResourceExistsError as exc:
            if error_code(exc) != "ContainerBeingDeleted":  # by an earlier try, whose answer was lost
                raise

    # blobs ----------------------------------------------------------------------------------------------

    @translates("storing a blob")
    def put(
        self,
        container: str,
        name: str,
        data: bytes | memoryview,
        *,
        overwrite: bool = True,
        content: str | None = None,
        wanted: Callable[[], bool] | None = None,
    ) -> bool:
        if overwrite and content is None and isinstance(data, bytes) and len(data) <= PIECE:
            self._light.put(container, name, data)
            self._transfers.count(sent=len(data))
            return True
        blob = self._client.get_blob_client(container, name)
        try:
            self._transfers.upload(blob, data, overwrite=overwrite, name=content, wanted=wanted)
        except ResourceExistsError:
            return False
        return True

    @translates("listing blobs")
    def blobs(self, container: str, prefix: str) -> list[BlobItem]:
        return self._light.blobs(container, prefix)

    @translates("looking for a blob")
    def stat(self, container: str, name: str) -> BlobItem | None:
        try:
            found = self._client.get_blob_client(container, name).get_blob_properties()
        except ResourceNotFoundError:
            return None
        return BlobItem(name=name, size=found.size, modified=found.last_modified)

    @translates("touching a blob")
    def touch(self, container: str, name: str) -> bool:
        try:
            self._client.get_blob_client(container, name).set_blob_metadata({})
        except ResourceNotFoundError:
            return False
        return True

    @translates("deleting a blob")
    def delete(self, container: str, name: str, *, unmodified_since: datetime | None = None) -> bool:
        blob = self._client.get_blob_client(container, name)
        condition: dict[str, Any] = {} if unmodified_since is None else {"if_unmodified_since": unmodified_since}
        try:
            blob.delete_blob(**condition)
        except ResourceNotFoundError:
            return False
        except HttpResponseError as exc:
            if exc.status_code == 412:
                return False
            raise
        return True

    @translates("reading a blob")
    def read(self, container: str, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if length is not None and 0 < length <= PIECE:
            data: bytes = self._light.read(container, name, offset, length)
        else:
            blob = self._client.get_blob_client(container, name)
            data = blob.download_blob(offset=offset, length=length, max_concurrency=_STREAMS).readall()
        self._transfers.count(fetched=len(data))
        return data

    @translates("fetching a blob")
    def fetch(self, container: str, name: str, offset: int, size: int, sink: Callable[[int, bytes], Any]) -> str:
        return self._transfers.download(self._client.get_blob_client(container, name), offset, size, sink)

    def container_url(self, container: str, permissions: str, lifetime: timedelta) -> str:
        token = generate_container_sas(self._account, container, permission=permissions, **self._signature(lifetime))
        return f"{self._client.get_container_client(container).url}?{token}"

    def blob_url(self, container: str, name: str, lifetime: timedelta) -> str:
        token = generate_blob_sas(self._account, container, name, permission="r", **self._signature(lifetime))
        return f"{self._client.get_blob_client(container, name).url}?{token}"

    def _signature(self, lifetime: timedelta) -> dict[str, Any]:
        now = datetime.now(timezone.utc)
        # Only a loopback endpoint is plain http; elsewhere a token must never cross the network in the clear.
        protocol = "https" if self.endpoint.startswith("https:") else "https,http"
        shape: dict[str, Any] = {"start": now - _CLOCK_SKEW, "protocol": protocol}
        if self._key:
            return {**shape, "expiry": now + lifetime, "account_key": self._key}
        if lifetime > LONGEST_DELEGATION:
            raise ConfigurationError(
                f"a SAS for {lifetime} cannot be had without the storage account's key: one that Entra signs lives 7 "
                "days at most. Shorten what is to live so long, or give the pool an identity (identities) and its "
                "files that identity"
            )
        key, expiry = self._delegation_key(now, now + lifetime)
        return {**shape, "expiry": min(now + lifetime, expiry), "user_delegation_key": key}

    def _delegation_key(self, now: datetime, needed: datetime) -> tuple[UserDelegationKey, datetime]:
        with self._lock:
            if self._delegation is None or self._delegation[1] + _TOLERANCE < needed:
                expiry = now + _DELEGATION
                try:
                    with translated("asking for a user delegation key", self.endpoint):
                        key = self._client.get_user_delegation_key(now - _CLOCK_SKEW, expiry)
                except AuthenticationError as exc:
                    raise AuthenticationError(
                        f"{exc.message}. SAS for the nodes are signed with a user delegation key: the identity needs "
                        "the role Storage Blob Data Contributor (or Storage Blob Delegator) on the storage account",
                        **exc.context,
                    ) from exc
                self._delegation = key, expiry
            return self._delegation
