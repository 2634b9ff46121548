"""`AccountConfig`: the Batch account, the storage account, and how to sign in to them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from .base import Settings
from .clouds import CLOUDS, Cloud, cloud_of_host
from .doazureparallel import PLACEHOLDERS, account_spelling, account_values
from .parts import ContainerRegistry
from .values import BatchAccountId, Blank, Secret, StorageAccountId, Text

_MISSING: Any = None
_STORAGE = (
    "storage_account",
    "storage_resource_id",
    "storage_connection_string",
    "storage_key",
    "storage_endpoint",
    "storage_endpoint_suffix",
)


def _url(value: Any) -> Any:
    """An endpoint with its scheme and without a slash at the end."""
    if not isinstance(value, str):
        return value
    value = value.strip().rstrip("/")
    # The portal shows the Batch account's host with and without https://, on different pages.
    return f"https://{value}" if re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", value) else value


def _check_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("expected a URL that starts with https://")
    return value


def _filled_in(value: Any) -> Any:
    if isinstance(value, str) and (value in PLACEHOLDERS or re.fullmatch("<.*>", value)):
        raise ValueError("still the placeholder; the Azure portal shows the value at the account")
    return value


Endpoint = Annotated[Text, BeforeValidator(_url)]
_Filled = BeforeValidator(_filled_in)


class ServicePrincipal(Settings):
    """An application of Entra that signs in with a secret.

    Parameters
    ----------
    tenant_id : str
        Id of the directory.
    client_id : str
        Id of the application.
    credential : str
        The application's secret. ``clientSecret`` is read too.
    """

    tenant_id: Annotated[Text, _Filled]
    client_id: Annotated[Text, _Filled]
    credential: Annotated[
        Secret,
        _Filled,
        Field(validation_alias=AliasChoices("credential", "clientSecret"), serialization_alias="credential"),
    ]


class AccountConfig(Settings):
    """The Batch account, the storage account, and how to sign in to them.

    With keys, those are used. Without, Entra is: the service principal where one is given, else what
    `azure.identity.DefaultAzureCredential` finds (``az login``, a managed identity, ``AZURE_CLIENT_ID`` …).

    Parameters
    ----------
    batch_resource_id : str, optional
        Resource id of the Batch account; it names the account, and lets its endpoint be looked up.
    storage_resource_id : str, optional
        Resource id of the storage account; it names the account.
    batch_account : str
        Name of the Batch account; needed unless its resource id is given.
    batch_endpoint : str
        Its URL, ``https://name.region.batch.azure.com``; may be left out where ``batch_resource_id`` is given.
    batch_key : str, optional
        Its shared key.
    storage_connection_string : str, optional
        As the portal gives it; in place of the storage account's name, endpoint and key, and stronger than they.
    storage_account : str
        Name of the storage account; needed unless its resource id or connection string is given.
    storage_key : str, optional
        Its shared key.
    cloud : str, optional
        Azure's cloud; by default what the endpoints end with tells, else ``public``.
    storage_endpoint_suffix : str, optional
        What the storage account's host ends with; by default the cloud's, for example ``core.windows.net``.
    storage_endpoint : str, optional
        URL of the storage account's blobs; by default made of its name and the suffix.
    service_principal : ServicePrincipal, optional
        The application to sign in as.
    docker_authentication : ContainerRegistry, optional
        Private registry of container images, where the cluster names none.
    github_token : str, optional
        Token for packages in private repositories of GitHub. ``githubAuthenticationToken`` is read too.

    Raises
    ------
    ConfigurationError
        All that is wrong, at once.
    """

    file_variable: ClassVar[str] = "JOBLIB_AZURE_CREDENTIALS"
    #: The names that the Azure tools already use.
    variables: ClassVar[Mapping[str, str]] = {
        "AZURE_BATCH_ACCOUNT": "batch_account",
        "AZURE_BATCH_ENDPOINT": "batch_endpoint",
        "AZURE_BATCH_ACCESS_KEY": "batch_key",
        "AZURE_STORAGE_ACCOUNT": "storage_account",
        "AZURE_STORAGE_KEY": "storage_key",
        # The last of them, so that it counts where both are set, as it does for the Azure tools.
        "AZURE_STORAGE_CONNECTION_STRING": "storage_connection_string",
    }
    # Another account by name is another account: the first one's key and endpoint are not its.
    supersedes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "batch_account": ("batch_resource_id", "batch_endpoint", "batch_key", "cloud"),
        "batch_resource_id": ("batch_account", "batch_endpoint", "batch_key", "cloud"),
        **{
            key: tuple(other for other in _STORAGE if other != key)
            for key in ("storage_account", "storage_resource_id", "storage_connection_string")
        },
    }
    follows: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "batch_account": ("batch_resource_id",),
        "cloud": ("batch_endpoint", "storage_endpoint_suffix"),
        "storage_account": ("storage_connection_string", "storage_resource_id"),
        "storage_key": ("storage_connection_string",),
        "storage_endpoint": ("storage_connection_string", "storage_endpoint_suffix", *_STORAGE[:2]),
    }

    batch_resource_id: Annotated[BatchAccountId | None, _Filled, Blank] = None
    storage_resource_id: Annotated[StorageAccountId | None, _Filled, Blank] = None
    batch_account: Annotated[Text, _Filled] = Field(default=_MISSING, validate_default=True)
    batch_endpoint: Annotated[Endpoint | None, _Filled, Blank] = Field(default=None, validate_default=True)
    batch_key: Annotated[Secret | None, _Filled, Blank] = None
    storage_connection_string: Annotated[Secret | None, Blank, Field(exclude=True)] = None
    storage_account: Annotated[Text, _Filled] = Field(default=_MISSING, validate_default=True)
    storage_key: Annotated[Secret | None, _Filled, Blank] = None
    storage_endpoint_suffix: Annotated[Text | None, Blank, Field(exclude=True)] = None
    cloud: Literal["public", "china", "usgov"] = Field(default=_MISSING, validate_default=True)
    storage_endpoint: Annotated[Endpoint | None, Blank] = Field(default=None, validate_default=True)
    service_principal: Annotated[ServicePrincipal | None, Blank] = None
    docker_authentication: Annotated[ContainerRegistry | None, Blank] = None
    github_token: Annotated[
        Secret | None,
        Blank,
        Field(
            validation_alias=AliasChoices("githubToken", "githubAuthenticationToken"),
            serialization_alias="githubToken",
        ),
    ] = None

    @classmethod
    def prepare(cls, values: dict[str, Any], where: str) -> dict[str, Any]:
        """Read doAzureParallel's shapes too."""
        return account_values(values, where)

    @classmethod
    def spelling(cls, values: Mapping[str, Any]) -> dict[str, str]:
        """Return doAzureParallel's keys by this model's, where the values have its shape."""
        return account_spelling(values)

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] | None = None, *, beside: str | os.PathLike[str] | None = None
    ) -> AccountConfig:
        """Read the variables that the Azure tools use, over the file that ``JOBLIB_AZURE_CREDENTIALS`` names.

        Parameters
        ----------
        environ : mapping, optional
            In place of ``os.environ``.
        beside : path, optional
            The cluster's file: where the variable is not set, a ``credentials.json`` in the same folder is read.

        Raises
        ------
        ConfigurationError
            Naming every variable that is missing.
        """
        from .resolve import resolve_account

        return resolve_account(environ=environ, beside=beside).config

    @field_validator("batch_account", mode="before")
    @classmethod
    def _batch_name(cls, name: Any, info: ValidationInfo) -> Any:
        return _name_of(name, info, "batch_resource_id")

    @field_validator("batch_endpoint")
    @classmethod
    def _batch_url(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url is not None:
            return _check_url(url)
        if info.data.get("batch_resource_id") is None:
            raise PydanticCustomError("missing", "missing")
        return None

    @field_validator("storage_connection_string")
    @classmethod
    def _readable(cls, connection: SecretStr | None) -> SecretStr | None:
        if connection is not None:
            parts = _parts_of(connection)
            if "sharedaccesssignature" in parts:
                raise ValueError(
                    "holds a SAS, which cannot give nodes a SAS of their own: write one with AccountKey, or leave it "
                    "out and sign in through Entra"
                )
            lacking = [name for name in ("AccountName", "AccountKey") if not parts.get(name.lower())]
            if lacking:
                raise ValueError(f"has no {' and no '.join(lacking)}; copy it from the portal, Access keys")
        return connection

    @field_validator("storage_account", mode="before")
    @classmethod
    def _storage_name(cls, name: Any, info: ValidationInfo) -> Any:
        connection = info.data.get("storage_connection_string")
        if connection is None:
            if name is None and "storage_connection_string" not in info.data:
                return "unknown"  # The connection string's own error is told already.
            return _name_of(name, info, "storage_resource_id")
        found = _parts_of(connection)["accountname"]
        if name is not None and name != found:
            raise ValueError(f"the connection string is of the account {found!r}: write one of the two")
        return found

    @field_validator("cloud", mode="before")
    @classmethod
    def _cloud_of_endpoints(cls, name: Any, info: ValidationInfo) -> Any:
        host = urlsplit(info.data.get("batch_endpoint") or "").hostname or ""
        found = cloud_of_host(host) or cloud_of_host(f".{info.data.get('storage_endpoint_suffix') or ''}")
        if name is None:
            return found.name if found else "public"
        if found and name in list(CLOUDS) and found.name != name:
            raise ValueError(f"the endpoints are in the cloud {found.name!r}")
        return name

    @field_validator("storage_endpoint_suffix")
    @classmethod
    def _open_cloud(cls, suffix: str | None) -> str | None:
        if suffix == "core.cloudapi.de":
            raise ValueError("Azure Germany was closed on 29 October 2021; its accounts are gone")
        return suffix

    @field_validator("storage_endpoint")
    @classmethod
    def _storage_url(cls, url: str | None, info: ValidationInfo) -> str | None:
        data = info.data
        connection = data.get("storage_connection_string")
        if connection is not None:
            return _check_url(_endpoint_of(connection))
        if url is not None:
            return _check_url(url)
        if "cloud" not in data or "storage_account" not in data:
            return None  # Their own errors are told already.
        suffix = data.get("storage_endpoint_suffix") or CLOUDS[data["cloud"]].storage_suffix
        return f"https://{data['storage_account']}.blob.{suffix}"

    @model_validator(mode="after")
    def _one_storage_shape(self) -> AccountConfig:
        """Say the same of the storage account whichever way it was written; frozen from here on."""
        given, key = self.storage_connection_string, self.storage_key
        if given is not None:
            key = SecretStr(_parts_of(given)["accountkey"])
            self.__dict__["storage_key"] = key
        if key is not None:
            endpoint = self.storage_endpoint or ""
            self.__dict__["storage_connection_string"] = SecretStr(
                f"DefaultEndpointsProtocol={urlsplit(endpoint).scheme};AccountName={self.storage_account};"
                f"AccountKey={key.get_secret_value()};BlobEndpoint={endpoint};"
            )
        self.__dict__["storage_endpoint_suffix"] = None
        return self

    @property
    def endpoints(self) -> Cloud:
        """What is particular to the account's cloud: where it signs in, and the scopes of tokens."""
        return CLOUDS[self.cloud]


def _name_of(name: Any, info: ValidationInfo, resource: str) -> Any:
    found = info.data.get(resource)
    if found is not None:
        of_id = found.rstrip("/").rpartition("/")[2]
        if isinstance(name, str) and name and name.lower() != of_id.lower():
            raise ValueError(f"the resource id is of the account {of_id!r}")
        return of_id if name is None or name == "" else name
    if name is None or name == "":
        raise PydanticCustomError("missing", "missing")
    return name


def _parts_of(connection: SecretStr) -> dict[str, str]:
    """Return the parts of a connection string by their names in lower case."""
    pairs = (part.partition("=") for part in connection.get_secret_value().split(";") if part.strip())
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _endpoint_of(connection: SecretStr) -> str:
    parts = _parts_of(connection)
    if endpoint := parts.get("blobendpoint"):
        return endpoint.rstrip("/")
    protocol = parts.get("defaultendpointsprotocol", "https")
    return f"{protocol}://{parts['accountname']}.blob.{parts.get('endpointsuffix', 'core.windows.net')}"
