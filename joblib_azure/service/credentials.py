"""Who asks, and the clients that ask: shared keys or Entra, for Batch, for blobs and for the management plane.

::

    account's key ──────────────► AzureNamedKeyCredential ─┐
    service principal ─► ClientSecretCredential ───────────┼─► BatchClient, BlobServiceClient, azure-mgmt-*
    neither ───────────► DefaultAzureCredential ───────────┘

A key or a token crosses the network under TLS only; loopback, where an emulator answers, is the one exception, and
is never asked for through a proxy.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from azure.core.credentials import AzureNamedKeyCredential
from azure.core.credentials import TokenCredential as TokenCredential
from azure.core.pipeline import Pipeline, PipelineRequest
from azure.core.pipeline.policies import BearerTokenCredentialPolicy, SansIOHTTPPolicy

from ..errors import ConfigurationError
from ..retries import SERVICE_SECONDS, request_timeout
from ..retries.policy import Patience

if TYPE_CHECKING:
    from .batch import AzureBatch
    from .blob import AzureBlobs

#: Options for every client of all SDKs.
_OPTIONS: dict[str, Any] = {
    "connection_timeout": 10,
    # No bodies and no headers in the log, whatever the environment says (AZURE_SDK_LOGGING_…).
    "logging_enable": False,
}
PUBLIC_AUTHORITY = "login.microsoftonline.com"
BATCH_SCOPE = "https://batch.core.windows.net//.default"
#: Where requests looks for further certificate authorities; on loopback, where it may not look, we do.
_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


def on_loopback(endpoint: str) -> bool:
    """Whether a URL's host is this machine itself."""
    host = urlsplit(endpoint).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def client_options(
    endpoint: str, seconds: float = SERVICE_SECONDS, wanted: Callable[[], bool] = lambda: True
) -> dict[str, Any]:
    """Return the options of one client of `endpoint`.

    Parameters
    ----------
    endpoint : str
    seconds : float
        For which a request is tried again where the service refuses it for now, or is out of reach.
    wanted : callable
        Whether somebody still waits for its answers.

    Raises
    ------
    ConfigurationError
        Where the endpoint is plain http and not on loopback.
    """
    if not on_loopback(endpoint):
        if not endpoint.lower().startswith("https://"):
            raise ConfigurationError(
                f"{endpoint} is not https: a key or a token would cross the network in the clear. Only an emulator on "
                "this machine (127.0.0.1, localhost) may be asked over plain http"
            )
        return _options(seconds, wanted)
    # A proxy of the environment must not be asked for loopback: it would look for the server on its own machine.
    options = {**_options(seconds, wanted), "use_env_settings": False}
    bundle = next((os.environ[name] for name in _CA_VARIABLES if os.environ.get(name)), None)
    return options if bundle is None else {**options, "connection_verify": bundle}


def _options(seconds: float, wanted: Callable[[], bool]) -> dict[str, Any]:
    # azure-storage-blob's own policy would not keep to Retry-After, nor to a time.
    return {**_OPTIONS, "read_timeout": request_timeout(seconds), "retry_policy": Patience(seconds, wanted)}


def token_credential(
    *, authority: str = PUBLIC_AUTHORITY, tenant_id: str = "", client_id: str = "", secret: str = ""
) -> TokenCredential:
    """Return the credential that fetches tokens; nothing is asked of anybody yet.

    Parameters
    ----------
    authority : str
        Host that signs in. ``AZURE_AUTHORITY_HOST`` is heard, as by all of azure-identity, in place of the public one.
    tenant_id, client_id, secret : str
        A service principal; without a `client_id`, `DefaultAzureCredential` asks whom the machine knows.

    Raises
    ------
    ConfigurationError
        Where the service principal is incomplete.
    """
    # Late: 0.3 s, which those with shared keys do not pay.
    from azure.identity import ClientSecretCredential, DefaultAzureCredential

    known = authority
    if authority == PUBLIC_AUTHORITY:
        authority = os.environ.get("AZURE_AUTHORITY_HOST") or authority
    url = authority if "://" in authority else f"https://{authority}"
    options: dict[str, Any] = {"authority": url}
    host = urlsplit(url).hostname or ""
    if host != known and not host.startswith("login."):
        # An authority of one's own is not listed where MSAL looks them up.
        options["disable_instance_discovery"] = True
    if on_loopback(url):
        options |= {name: value for name, value in client_options(url).items() if name in _LOOPBACK_OPTIONS}
    if not client_id:
        # Not a browser's window in the middle of a program.
        return DefaultAzureCredential(exclude_interactive_browser_credential=True, **options)
    if not (tenant_id and secret):
        raise ConfigurationError("the service principal needs tenantId, clientId and credential, all three")
    return ClientSecretCredential(tenant_id, client_id, secret, **options)


#: https://learn.microsoft.com/azure/storage/blobs/authorize-access-azure-active-directory
_STORAGE_SCOPE = "https://storage.azure.com/.default"
_LOOPBACK_OPTIONS = frozenset({"use_env_settings", "connection_verify"})


class LoopbackBearerPolicy(BearerTokenCredentialPolicy[Any, Any]):
    """Sends tokens to an emulator without TLS, which azure-core refuses to do unless it is told request by request."""

    def on_request(self, request: PipelineRequest[Any]) -> None:
        request.context.options.setdefault("enforce_https", False)
        super().on_request(request)


def connect_batch(
    endpoint: str,
    *,
    account: str = "",
    key: str = "",
    credential: TokenCredential | None = None,
    scope: str = BATCH_SCOPE,
    seconds: float = SERVICE_SECONDS,
    wanted: Callable[[], bool] = lambda: True,
) -> AzureBatch:
    """Return the Batch service of an account, with its key or with a token credential.

    `seconds` and `wanted` as `client_options` has them.

    Raises
    ------
    ConfigurationError
        Where the endpoint is not safe, or the key no Base64.
    """
    from azure.batch import BatchClient

    from .batch import AzureBatch

    endpoint = endpoint.rstrip("/")
    options = client_options(endpoint, seconds, wanted)
    if credential is None:
        _check_key(key, "the Batch account's key")
        named: Any = AzureNamedKeyCredential(account, key)
        return AzureBatch(BatchClient(endpoint, named, **options), endpoint)
    # Batch's own name ends with a slash, which a scope therefore has twice; a token for the name without it is refused.
    scope = f"{scope.removesuffix('/.default').rstrip('/')}//.default"
    if endpoint.startswith("http://"):
        options["authentication_policy"] = LoopbackBearerPolicy(credential, scope)
    return AzureBatch(BatchClient(endpoint, credential, credential_scopes=[scope], **options), endpoint)


def connect_blobs(
    endpoint: str = "",
    *,
    account: str = "",
    key: str = "",
    connection_string: str = "",
    credential: TokenCredential | None = None,
    seconds: float = SERVICE_SECONDS,
    wanted: Callable[[], bool] = lambda: True,
) -> AzureBlobs:
    """Return the blobs of a storage account: by its connection string, its key, or with a token credential.

    `seconds` and `wanted` as `client_options` has them.

    Raises
    ------
    ConfigurationError
        Where the endpoint is not safe, or the key or the connection string not usable.
    """
    from azure.storage.blob import BlobServiceClient

    from ..transfer import transport
    from .blob import LARGE_PUT, AzureBlobs
    from .lightblobs import LightBlobs, SharedKey, SharedKeyPolicy
    from .lighttransport import LightTransport

    if connection_string:
        try:
            parsed = BlobServiceClient.from_connection_string(connection_string)
            endpoint, account, key = parsed.primary_endpoint, str(parsed.account_name), parsed.credential.account_key
        except (ValueError, AttributeError) as exc:
            raise ConfigurationError(
                f"the storage connection string is not usable: {exc}. It needs AccountName, AccountKey and "
                "an endpoint, as `az storage account show-connection-string` prints it"
            ) from exc
    endpoint = endpoint.rstrip("/")
    options = client_options(endpoint, seconds, wanted)
    options["transport"] = transport(**options)
    # A policy belongs to one pipeline; the connections are shared.
    signs: SharedKey | None = None
    shows: SansIOHTTPPolicy[Any, Any] | BearerTokenCredentialPolicy[Any, Any]
    if credential is not None:
        bearer = LoopbackBearerPolicy if endpoint.startswith("http://") else BearerTokenCredentialPolicy
        shows = bearer(credential, _STORAGE_SCOPE)
        client = BlobServiceClient(endpoint, credential, **LARGE_PUT, **options)
    else:
        _check_key(key, "the storage account's key")
        signs = SharedKey(account, key)
        shows = SharedKeyPolicy(signs)
        client = BlobServiceClient(endpoint, AzureNamedKeyCredential(account, key), **LARGE_PUT, **options)
    light = LightTransport(
        connect=options["connection_timeout"],
        read=options["read_timeout"],
        verify=options.get("connection_verify"),
        from_environment=options.get("use_env_settings", True),
    )
    pipeline = Pipeline(light, [Patience(seconds, wanted), shows])
    past = LightBlobs(
        pipeline, client.primary_endpoint, str(client.api_version), None if signs is None else (light, signs)
    )
    return AzureBlobs(client, key="" if credential is not None else key, light=past)


def _check_key(key: str, what: str) -> None:
    """The SDKs find out when they sign their first request, with an error that shows the key."""
    try:
        base64.b64decode(key, validate=True)
    except binascii.Error:
        raise ConfigurationError(f"{what} is not Base64; copy it whole, with the = at its end") from None
