"""The one question to Azure Resource Manager that needs no further package: where a Batch account is."""

from __future__ import annotations

from typing import Any

from azure.core import PipelineClient
from azure.core.credentials import TokenCredential
from azure.core.pipeline.policies import (
    BearerTokenCredentialPolicy,
    HttpLoggingPolicy,
    RequestIdPolicy,
    RetryPolicy,
)
from azure.core.rest import HttpRequest

from ..errors import ServiceError
from .credentials import client_options
from .faults import translated

_API_VERSION = "2024-07-01"


def batch_endpoint(resource_id: str, credential: TokenCredential, *, endpoint: str) -> str:
    """Return the URL of a Batch account.

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
        RetryPolicy(**options),
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
        host = str((response.json().get("properties") or {}).get("accountEndpoint") or "")
    if not host:
        raise ServiceError("Azure Resource Manager does not say where the account is: give its batchEndpoint")
    return f"https://{host.removeprefix('https://').rstrip('/')}"
