"""What a user may set: the cluster and the account, from keywords, the environment and files.

A configuration is a frozen value. Every error of it is told at once, before anything is created, with the
key, the value, what is allowed and the nearest valid name. Secrets are masked wherever it is shown.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from .errors import ConfigurationError

#: The service's bound on task slots a node: 4 for each core, 256 in all.
SLOTS_PER_CORE, MAX_SLOTS = 4, 256
#: vCPUs in the name of an Azure size: Standard_F2, Standard_D4s_v5, Standard_E16-8s_v5 (8 of 16 active).
_SIZE_NAME = re.compile(r"^(?:standard|basic|emulated)_[a-z]+(\d+)(?:-(\d+))?[a-z]*(?:_.*)?$", re.IGNORECASE)
_POOL_NAME = r"^[A-Za-z0-9_-]{1,64}$"
_M = TypeVar("_M", bound="_Settings")


class _Settings(BaseModel):
    """Frozen, with camelCase names beside the Python ones, and no unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    @classmethod
    def read(cls: type[_M], values: Mapping[str, Any], where: str) -> _M:
        """Check `values`.

        Raises
        ------
        ConfigurationError
            All that is wrong, at once. `where` says where the values come from.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as exc:
            raise ConfigurationError(_explain(cls, exc, values, where)) from None

    @classmethod
    def load(cls: type[_M], path: str | os.PathLike[str]) -> _M:
        """Read a JSON file; `ConfigurationError` where it is missing, no JSON or wrong."""
        try:
            values = json.loads(Path(path).read_text())
        except OSError as exc:
            raise ConfigurationError(f"cannot read {path}: {exc.strerror}") from exc
        except json.JSONDecodeError as exc:
            raise ConfigurationError(f"{path}, line {exc.lineno}: not valid JSON: {exc.msg}") from exc
        if not isinstance(values, dict):
            raise ConfigurationError(f"{path}: expected a JSON object, found {type(values).__name__}")
        return cls.read(values, str(path))


class ClusterConfig(_Settings):
    """A pool, and how its nodes are used.

    Parameters
    ----------
    name : str
        Id of the pool: letters, digits, ``_`` and ``-``, at most 64.
    vm_size : str
        Azure's name of the nodes' size, for example ``Standard_D4s_v5``.
    cores : int, optional
        Cores of a node; by default the number in the name of the size.
    nodes : int, default 1
        Dedicated nodes of the pool.
    max_tasks_per_node : int, default 1
        Task slots of a node, 1 to 4 for each core and at most 256. With 1 a call has the whole node for its
        nested loops; with one a core, each call has one core.
    python : str, default "python3"
        The command that starts Python on a node.
    python_path : tuple of str, default ()
        Further entries of ``sys.path`` for the calls, where the nodes see the client's file system.
    node_timeout : float, default 900
        Seconds that the first node may take to come up. The source of 15 minutes is the service's own
        default for a resize; nodes take 3 to 8 minutes.
    job_lease : float, default 3600
        Seconds after which the service ends the job of a client that has died.
    idle_timeout : float, default 600
        Seconds without a Parallel call after which a session ends its job.
    retries : int, default 2
        How often a bundle that the infrastructure lost is run again.
    """

    name: Annotated[str, Field(pattern=_POOL_NAME, validation_alias=AliasChoices("name", "pool"))]
    vm_size: str
    cores: Annotated[int, Field(ge=1)]
    nodes: Annotated[int, Field(ge=1, le=10_000)] = 1
    max_tasks_per_node: Annotated[int, Field(ge=1, le=MAX_SLOTS)] = 1
    python: Annotated[str, Field(min_length=1)] = "python3"
    python_path: tuple[str, ...] = ()
    node_timeout: Annotated[float, Field(gt=0)] = 900.0
    # 3600 s: see DESIGN.md, decision 8. The service takes no constraint below a minute seriously.
    job_lease: Annotated[float, Field(ge=60)] = 3600.0
    idle_timeout: Annotated[float, Field(gt=0)] = 600.0
    retries: Annotated[int, Field(ge=0, le=10)] = 2

    @model_validator(mode="before")
    @classmethod
    def _cores_from_size(cls, values: Any) -> Any:
        if isinstance(values, dict) and "cores" not in values:
            size = values.get("vm_size", values.get("vmSize"))
            found = _SIZE_NAME.match(size) if isinstance(size, str) else None
            if found:
                return {**values, "cores": int(found[2] or found[1])}
        return values

    @field_validator("vm_size")
    @classmethod
    def _check_size(cls, size: str) -> str:
        if not re.fullmatch(r"[A-Za-z]+_[A-Za-z0-9_-]+", size):
            raise ValueError("expected a name as Standard_D4s_v5")
        return size

    @model_validator(mode="after")
    def _check_slots(self) -> ClusterConfig:
        most = min(SLOTS_PER_CORE * self.cores, MAX_SLOTS)
        if self.max_tasks_per_node > most:
            raise ValueError(
                f"max_tasks_per_node={self.max_tasks_per_node} is more than Batch allows on {self.cores} "
                f"core(s): at most {SLOTS_PER_CORE} a core and {MAX_SLOTS} in all, so 1 to {most} here"
            )
        return self

    @property
    def workers(self) -> int:
        """Cores of the whole pool: what ``n_jobs=-1`` means."""
        return self.nodes * self.cores


class AccountConfig(_Settings):
    """The Batch account and the storage account, with shared keys.

    Parameters
    ----------
    batch_account, batch_endpoint, batch_key : str
        Name, URL and shared key of the Batch account.
    storage_connection_string : str
        As the portal gives it.
    """

    batch_account: Annotated[str, Field(min_length=1)]
    batch_endpoint: Annotated[str, Field(pattern=r"^https?://")]
    batch_key: SecretStr
    storage_connection_string: SecretStr

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> AccountConfig:
        """Read the variables that the Azure tools use; a file named by ``JOBLIB_AZURE_CREDENTIALS`` first.

        Raises
        ------
        ConfigurationError
            Naming every variable that is missing.
        """
        environ = os.environ if environ is None else environ
        if path := environ.get("JOBLIB_AZURE_CREDENTIALS"):
            return cls.load(path)
        names = {
            "batch_account": "AZURE_BATCH_ACCOUNT",
            "batch_key": "AZURE_BATCH_ACCESS_KEY",
            "batch_endpoint": "AZURE_BATCH_ENDPOINT",
        }
        values = {key: environ[name] for key, name in names.items() if environ.get(name)}
        missing = [name for key, name in names.items() if key not in values]
        if connection := environ.get("AZURE_STORAGE_CONNECTION_STRING"):
            values["storage_connection_string"] = connection
        elif environ.get("AZURE_STORAGE_ACCOUNT") and environ.get("AZURE_STORAGE_KEY"):
            values["storage_connection_string"] = (
                f"DefaultEndpointsProtocol=https;AccountName={environ['AZURE_STORAGE_ACCOUNT']};"
                f"AccountKey={environ['AZURE_STORAGE_KEY']};EndpointSuffix=core.windows.net"
            )
        else:
            missing.append("AZURE_STORAGE_CONNECTION_STRING (or AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY)")
        if missing:
            raise ConfigurationError(
                f"the account is not known: {', '.join(missing)} not set, nor JOBLIB_AZURE_CREDENTIALS (a "
                'JSON file with batchAccount, …). Without an account, cluster="local" runs on this machine'
            )
        return cls.read(values, "the environment")


def _explain(cls: type[BaseModel], exc: ValidationError, values: Mapping[str, Any], where: str) -> str:
    names = [alias or name for name, field in cls.model_fields.items() for alias in (name, field.alias)]
    lines = []
    for error in exc.errors(include_url=False):
        key = ".".join(str(part) for part in error["loc"]) or "together"
        field = cls.model_fields.get(key) or next(
            (field for field in cls.model_fields.values() if field.alias == key), None
        )
        secret = field is not None and field.annotation is SecretStr
        if error["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(cls.model_fields)}"
            lines.append(f"{key}: there is no such setting{hint}")
        elif error["type"] == "missing":
            lines.append(f"{key}: missing")
        else:
            shown = "" if key == "together" or secret else f" = {values.get(key)!r}"
            lines.append(f"{key}{shown}: {error['msg'].removeprefix('Value error, ')}")
    return f"{where} is not usable:\n  " + "\n  ".join(lines)
