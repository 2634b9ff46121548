"""Azure's clouds: where each signs in and what its endpoints end with.

https://learn.microsoft.com/azure/china/resources-developer-guide,
https://learn.microsoft.com/azure/azure-government/compare-azure-government-global-azure
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """What differs between Azure's clouds.

    Attributes
    ----------
    name : str
    authority : str
        Host that signs in, as `azure.identity` wants it.
    batch_scope, storage_scope, management_scope : str
        Scopes of tokens.
    batch_suffix, storage_suffix : str
        Ends of the hosts of accounts.
    management : str
        URL of the management plane.
    """

    name: str
    authority: str
    batch_scope: str
    batch_suffix: str
    storage_suffix: str
    management: str
    # One for all clouds: https://learn.microsoft.com/azure/storage/blobs/authorize-access-azure-active-directory
    storage_scope: str = "https://storage.azure.com/.default"

    @property
    def management_scope(self) -> str:
        return f"{self.management}/.default"


CLOUDS = {
    cloud.name: cloud
    for cloud in (
        Cloud(
            name="public",
            authority="login.microsoftonline.com",
            batch_scope="https://batch.core.windows.net//.default",
            batch_suffix="batch.azure.com",
            storage_suffix="core.windows.net",
            management="https://management.azure.com",
        ),
        Cloud(
            name="china",
            authority="login.chinacloudapi.cn",
            batch_scope="https://batch.chinacloudapi.cn//.default",
            batch_suffix="batch.chinacloudapi.cn",
            storage_suffix="core.chinacloudapi.cn",
            management="https://management.chinacloudapi.cn",
        ),
        Cloud(
            name="usgov",
            authority="login.microsoftonline.us",
            batch_scope="https://batch.core.usgovcloudapi.net//.default",
            batch_suffix="batch.usgovcloudapi.net",
            storage_suffix="core.usgovcloudapi.net",
            management="https://management.usgovcloudapi.net",
        ),
    )
}


def cloud_of_host(host: str) -> Cloud | None:
    """Return the cloud that an account's host belongs to, or None where its end tells nothing."""
    host = host.lower()
    for cloud in CLOUDS.values():
        if host.endswith((f".{cloud.batch_suffix}", f".{cloud.storage_suffix}")):
            return cloud
    return None
