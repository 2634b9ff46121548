"""The parts of a cluster's configuration: sizes of the pool, image, packages, files and mounts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, Field, ValidationInfo, field_validator

from .base import Settings
from .values import Blank, IdentityId, Link, Matching, Secret, Text

#: Nodes that a pool may have; the service's quota is nearly always lower.
MAX_NODES = 10_000
#: The service's bounds on the interval of an autoscale formula's evaluations, in seconds.
MIN_INTERVAL, MAX_INTERVAL = 300, 168 * 3600
#: Of a node and hour, in any currency.
MAX_PRICE = 100_000_000

NodeCount = Annotated[int, Field(ge=0, le=MAX_NODES)]


class Bounds(Settings):
    """How many nodes of a kind there may be.

    Parameters
    ----------
    min : int, default 0
        Nodes that are kept even where there is nothing to do.
    max : int
        Nodes at most.
    """

    min: NodeCount = 0
    max: NodeCount

    @field_validator("max")
    @classmethod
    def _not_below_min(cls, most: int, info: ValidationInfo) -> int:
        least = info.data.get("min")
        if least is not None and most < least:
            raise ValueError(f"less than min = {least}")
        return most


class PoolSize(Settings):
    """How many nodes the pool has, and how it grows and shrinks.

    Parameters
    ----------
    dedicated_nodes : Bounds, default 0 to 0
        Dedicated nodes. Where neither these nor spot nodes are given, ``nodes`` counts: 0 to ``nodes``.
    spot_nodes : Bounds, default 0 to 0
        Spot nodes, which cost less and may be preempted. doAzureParallel's name ``lowPriorityNodes`` is read too.
    autoscale_formula : str, default "QUEUE_AND_RUNNING"
        ``QUEUE``, ``QUEUE_AND_RUNNING``, ``WORKDAY``, ``WEEKEND`` or ``MAX_CPU``; ``FIXED`` for a pool that has its
        ``max`` nodes at all times; or the text of a formula in Batch's autoscale language.
    evaluation_interval : int, default 300
        Seconds between two evaluations of the formula, 300 (5 minutes) to 604800 (168 hours).
    idle_shutdown : int, default 900
        Seconds that nodes stay without demand.
    spot_fallback : bool, default False
        Whether dedicated nodes take the place of spot nodes that the service does not give.
    deallocation : str, default "taskcompletion"
        What becomes of the tasks on a node that goes: they end first (``taskcompletion``), run again elsewhere
        (``requeue``), are terminated (``terminate``), or end first with their files kept for the time of their
        retention (``retaineddata``).
    """

    dedicated_nodes: Bounds = Bounds(max=0)
    spot_nodes: Annotated[
        Bounds,
        Field(validation_alias=AliasChoices("spotNodes", "lowPriorityNodes"), serialization_alias="spotNodes"),
    ] = Bounds(max=0)
    autoscale_formula: Annotated[str, Field(min_length=1)] = "QUEUE_AND_RUNNING"
    evaluation_interval: Annotated[int, Field(ge=MIN_INTERVAL, le=MAX_INTERVAL)] = 300
    idle_shutdown: Annotated[int, Field(ge=0, le=MAX_INTERVAL)] = 900
    spot_fallback: bool = False
    deallocation: Literal["taskcompletion", "requeue", "terminate", "retaineddata"] = "taskcompletion"

    @field_validator("spot_nodes")
    @classmethod
    def _some_nodes(cls, spot: Bounds, info: ValidationInfo) -> Bounds:
        dedicated = info.data.get("dedicated_nodes")
        if spot.max + (dedicated.max if dedicated is not None else 1) > MAX_NODES:
            raise ValueError(f"more than {MAX_NODES} nodes, dedicated ones included")
        return spot

    @field_validator("autoscale_formula")
    @classmethod
    def _as_it_is_spelt(cls, formula: str) -> str:
        # A name in any case; a text stays as it is. Which there are is checked where the whole pool is known.
        return formula.strip().upper() if re.fullmatch(r"\s*[A-Za-z_]+\s*", formula) else formula


class Image(Settings):
    """An image of the marketplace for the nodes.

    Parameters
    ----------
    publisher : str
        As the service lists its supported images, for example ``canonical``.
    offer : str
        For example ``ubuntu-24_04-lts``.
    sku : str
        For example ``server``.
    version : str, default "latest"
        Version of the image.
    """

    publisher: Text
    offer: Text
    sku: Text
    version: Text = "latest"


class ContainerRegistry(Settings):
    """A private registry of container images.

    Parameters
    ----------
    server : str, default "docker.io"
        Host of the registry. doAzureParallel's name ``registry`` is read too.
    username : str, optional
        Name to sign in with.
    password : str, optional
        With a user name.
    identity : str, optional
        Resource id of a user-assigned identity of the pool that may pull; in place of name and password.
    """

    server: Annotated[
        str, Field(validation_alias=AliasChoices("server", "registry"), serialization_alias="server", min_length=1)
    ] = "docker.io"
    username: Text | None = None
    identity: IdentityId | None = None
    # After what it is checked against.
    password: Annotated[Secret | None, Field(validate_default=True)] = None

    @field_validator("password")
    @classmethod
    def _one_credential(cls, password: Any, info: ValidationInfo) -> Any:
        username, identity = info.data.get("username"), info.data.get("identity")
        if identity is not None and (username or password):
            raise ValueError("identity takes the place of username and password: give one or the other")
        if "username" in info.data and (username is None) != (password is None):
            raise ValueError("username and password go together")
        return password


def _from_folder(values: Any, info: ValidationInfo) -> Any:
    """Make relative paths absolute: to the file that they are in, not to where the program happens to run."""
    folder = (info.context or {}).get("folder")
    if folder is None or not isinstance(values, list | tuple):
        return values
    return tuple(
        str(Path(folder, value)) if isinstance(value, str) and value and "://" not in value else value
        for value in values
    )


Paths = Annotated[tuple[Link, ...], BeforeValidator(_from_folder)]


class PythonPackages(Settings):
    """Python packages of the nodes beyond those that the client's lock has.

    Parameters
    ----------
    pypi : tuple of str
        Requirements as pip reads them, for example ``lightgbm>=4``.
    git : tuple of str
        ``git+https://…`` or ``name @ git+https://…``, with ``@tag`` at the end where wanted.
    wheels : tuple of str
        Files or URLs of wheels. Relative paths start at the folder of the configuration's file.
    editable : tuple of str
        Folders of local projects. Relative paths start at the folder of the configuration's file.
    conda : tuple of str
        Packages by their conda names, where these differ from PyPI's.
    index_url : str, optional
        URL of the index in place of PyPI; treated as a secret, since it may carry a token.
    extra_index_urls : tuple of str
        Further indexes; secrets too.
    """

    pypi: tuple[Text, ...] = ()
    git: tuple[Link, ...] = ()
    wheels: Paths = ()
    editable: Paths = ()
    conda: tuple[Text, ...] = ()
    index_url: Secret | None = None
    extra_index_urls: tuple[Secret, ...] = ()

    @field_validator("git")
    @classmethod
    def _git_urls(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if not re.search(r"(?:^|@\s*)git\+(?:https?|ssh|file|git)://", value):
                raise ValueError(
                    "expected 'git+https://…' or 'name @ git+https://…'; doAzureParallel's 'user/repository' is "
                    "'git+https://github.com/user/repository'"
                )
        return values

    @field_validator("wheels")
    @classmethod
    def _wheel_names(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if not re.sub(r"[?#].*$", "", value).endswith(".whl"):
                raise ValueError("expected paths or URLs that end with .whl")
        return values


class NodePriceConfig(Settings):
    """What a node costs an hour, for estimates; by default Azure's public retail price.

    Parameters
    ----------
    currency : str, default "USD"
        Three letters, as ``EUR``: of the prices here, and of those that are looked up.
    dedicated : float, optional
        Of a dedicated node, in that currency; by default what Azure's price list has.
    spot : float, optional
        The same of a spot node.
    """

    currency: Annotated[str, Matching("[A-Z]{3}", "three capital letters as 'EUR'")] = "USD"
    dedicated: Annotated[float | None, Field(ge=0, le=MAX_PRICE)] = None
    spot: Annotated[float | None, Field(ge=0, le=MAX_PRICE)] = None


class EnvironmentConfig(Settings):
    """How the nodes get their Python environment.

    Parameters
    ----------
    mode : str, default "auto"
        ``auto``: what the client has, at the client's versions. ``none``: the nodes have everything already.
    offline : bool, default False
        Whether the nodes have no internet: everything then comes from the client, through storage.
    python : str, optional
        Minor version of Python, for example ``3.12``; by default the client's.
    exclude : tuple of str
        Packages that the nodes do without.
    """

    mode: Literal["auto", "none"] = "auto"
    offline: bool = False
    python: Annotated[str, Matching(r"3\.[1-9]\d?", "a minor version of Python as '3.12', in quotes")] | None = None
    exclude: tuple[Text, ...] = ()


class ResourceFile(Settings):
    """A file, or files, that each node downloads before its start commands run.

    Parameters
    ----------
    http_url : str
        URL of a file.
    storage_container_url : str
        URL of a blob container.
    auto_storage_container_name : str
        Container of the Batch account's own storage account. One of these three is given.
    file_path : str, optional
        Where it goes on the node, relative to the start task's folder; needed with ``http_url``.
    blob_prefix : str, optional
        Only blobs that start with it; with a container.
    file_mode : str, optional
        Octal permissions, for example ``0755``.
    identity : str, optional
        Resource id of a user-assigned identity of the pool that may read it, in place of a SAS.
    """

    file_path: Text | None = None
    blob_prefix: Text | None = None
    file_mode: Annotated[str, Matching(r"[0-7]{3,4}", "octal permissions as '0755', in quotes")] | None = None
    identity: IdentityId | None = None
    http_url: Link | None = None
    storage_container_url: Link | None = None
    auto_storage_container_name: Annotated[Text | None, Field(validate_default=True)] = None

    @field_validator("http_url", "storage_container_url")
    @classmethod
    def _is_url(cls, url: str | None) -> str | None:
        if url is not None and not re.match(r"https?://", url):
            raise ValueError("expected a URL that starts with https://")
        return url

    @field_validator("auto_storage_container_name")
    @classmethod
    def _one_source(cls, container: str | None, info: ValidationInfo) -> str | None:
        given = info.data
        if not {"http_url", "storage_container_url"} <= given.keys():
            return container
        sources = [given["http_url"], given["storage_container_url"], container]
        if sum(source is not None for source in sources) != 1:
            raise ValueError("give one of httpUrl, storageContainerUrl and autoStorageContainerName")
        if given["http_url"] is not None and "file_path" in given and given["file_path"] is None:
            raise ValueError("httpUrl needs filePath, the file's name on the node")
        if given["http_url"] is not None and given.get("blob_prefix") is not None:
            raise ValueError("blobPrefix goes with a container, not with httpUrl")
        return container


class Mount(Settings):
    """A share or a blob container that each node mounts.

    Parameters
    ----------
    kind : str
        A share of Azure Files, or a container of blobs.
    account : str
        Name of the storage account.
    source : str
        Name of the share or of the container.
    path : str
        Folder below the node's ``AZ_BATCH_NODE_MOUNTS_DIR``.
    key : str, optional
        Key of the storage account; needed for Azure Files.
    sas : str, optional
        A SAS of the container.
    identity : str, optional
        Resource id of a user-assigned identity of the pool that may read the container. Of these three one is given.
    options : str, optional
        Options of the mount command, or of blobfuse.
    """

    #: https://learn.microsoft.com/azure/batch/virtual-file-mount: Azure Files is mounted with the account's key alone.
    credentials: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "azure_files": ("key",),
        "blob_container": ("key", "sas", "identity"),
    }

    kind: Literal["azure_files", "blob_container"]
    account: Annotated[
        str, Matching(r"[a-z0-9]{3,24}", "a storage account's name: 3 to 24 lower-case letters and digits")
    ]
    source: Text
    path: Annotated[str, Matching(r"(?!/)(?!.*\.\.).+", "a folder's name, relative and without '..'")]
    key: Secret | None = None
    sas: Secret | None = None
    options: Annotated[Link | None, Blank] = None
    identity: Annotated[IdentityId | None, Field(validate_default=True)] = None

    @field_validator("identity")
    @classmethod
    def _one_credential(cls, identity: str | None, info: ValidationInfo) -> str | None:
        kind = info.data.get("kind")
        if kind is None or not {"key", "sas"} <= info.data.keys():
            return identity
        given = {name for name, value in {**info.data, "identity": identity}.items() if value is not None}
        allowed = cls.credentials[kind]
        found = given & {"key", "sas", "identity"}
        if len(found) != 1 or not found <= set(allowed):
            raise ValueError(f"a mount of kind {kind!r} takes exactly one of {', '.join(allowed)}")
        return identity
