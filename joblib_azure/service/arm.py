"""The one question to Azure Resource Manager that needs no further package: a Batch account's URL and quotas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from azure.core import PipelineClient
from azure.core.credentials import TokenCredential
from azure.core.pipeline.policies import (
    BearerTokenCredentialPolicy,
    HttpLoggingPolicy,
    RequestIdPolicy,
)
from azure.core.rest import HttpRequest

from ..errors import ServiceError
from .credentials import client_options
from .faults import translated

_API_VERSION = "2024-07-01"


@dataclass(frozen=True, kw_only=True)
class BatchAccount:
    """What Azure Resource Manager tells of a Batch account; a quota that it does not tell is None.

    The names are those of https://learn.microsoft.com/rest/api/batchmanagement/batch-account/get.

    Parameters
    ----------
    endpoint : str
        Its URL.
    dedicated_cores, spot_cores : int or None
        Cores that its pools may have in all.
    family_cores : mapping of str to int
        Dedicated cores by family of sizes, in lower case, where the quota is kept by family.
    pools, active_jobs : int or None
        How many there may be; job schedules count among the jobs.
    """

    endpoint: str
    dedicated_cores: int | None = None
    spot_cores: int | None = None
    family_cores: Mapping[str, int] = field(default_factory=dict)
    pools: int | None = None
    active_jobs: int | None = None


def batch_account(resource_id: str, credential: TokenCredential, *, endpoint: str) -> BatchAccount:
    """Ask about a Batch account.

    Parameters
    ----------
    resource_id : str
        ``/subscriptions/…/resourceGroups/…/providers/Microsoft.Batch/batchAccounts/…``.
    credential : TokenCredential
    endpoint : str
        Of Azure Resource Manager.

    Raises
    ------
    AuthenticationError
        Where the identity may not read the account.
    ServiceError
    """
    options = client_options(endpoint)
    policies: list[Any] = [
        RequestIdPolicy(),
        options.pop("retry_policy"),
        BearerTokenCredentialPolicy(credential, f"{endpoint}/.default"),
        HttpLoggingPolicy(),
    ]
    with (
        translated(f"asking where {resource_id.rpartition('/')[2]} is", endpoint),
        PipelineClient(endpoint, policies=policies, **options) as client,
    ):
        url = client.format_url(resource_id)
        response = client.send_request(HttpRequest("GET", url, params={"api-version": _API_VERSION}))
        response.raise_for_status()
        told: dict[str, Any] = response.json().get("properties") or {}
    host = str(told.get("accountEndpoint") or "")
    if not host:
        raise ServiceError("Azure Resource Manager does not say where the account is: give its batchEndpoint")
    families = told.get("dedicatedCoreQuotaPerVMFamily") if told.get("dedicatedCoreQuotaPerVMFamilyEnforced") else None
    return BatchAccount(
        endpoint=f"https://{host.removeprefix('https://').rstrip('/')}",
        dedicated_cores=told.get("dedicatedCoreQuota"),
        spot_cores=told.get("lowPriorityCoreQuota"),
        family_cores={str(each["name"]).lower(): int(each["coreQuota"]) for each in families or ()},
        pools=told.get("poolQuota"),
        active_jobs=told.get("activeJobAndJobScheduleQuota"),
    )
