"""What ``joblib-azure init`` asks: every value with its flag, its variable and its question.

An answer is checked by the configuration's own models, with the question coming again where it is wrong.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from ..errors import ConfigurationError
from .common import Bounds

#: What the questions offer. A pool of 0 to 4 nodes costs nothing while nothing runs.
DEFAULT_SIZE, DEFAULT_NODES = "Standard_D4s_v5", 4


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A value that is asked for: where it may come from, and how to ask."""

    key: str  #: in the file
    flag: str
    variable: str = ""
    question: str
    secret: bool = False
    where: str = ""  #: a person finds it there

    @property
    def sources(self) -> str:
        """How to give it without being asked."""
        return f"{self.flag} or {self.variable}" if self.variable else self.flag


_ENDPOINT = Setting(
    key="batchEndpoint",
    flag="--batch-endpoint",
    variable="AZURE_BATCH_ENDPOINT",
    question="URL of the Batch account",
    where="portal: Batch account, Overview; https://NAME.REGION.batch.azure.com",
)
_ACCOUNT = Setting(
    key="batchAccount",
    flag="--batch-account",
    variable="AZURE_BATCH_ACCOUNT",
    question="Name of the Batch account",
)
_BATCH_KEY = Setting(
    key="batchKey",
    flag="--batch-key",
    variable="AZURE_BATCH_ACCESS_KEY",
    question="Key of the Batch account (hidden)",
    secret=True,
    where="portal: Batch account, Keys",
)
_CONNECTION = Setting(
    key="storageConnectionString",
    flag="--storage-connection-string",
    variable="AZURE_STORAGE_CONNECTION_STRING",
    question="Connection string of the storage account (hidden)",
    secret=True,
    where="portal: storage account, Access keys",
)
_STORAGE = Setting(
    key="storageAccount",
    flag="--storage-account",
    variable="AZURE_STORAGE_ACCOUNT",
    question="Name of the storage account",
)
_STORAGE_KEY = Setting(
    key="storageKey",
    flag="--storage-key",
    variable="AZURE_STORAGE_KEY",
    question="Key of the storage account (hidden)",
    secret=True,
)
_STORAGE_ENDPOINT = Setting(key="storageEndpoint", flag="--storage-endpoint", question="URL of the blobs")
ACCOUNT_SETTINGS = (_ACCOUNT, _ENDPOINT, _BATCH_KEY, _CONNECTION, _STORAGE, _STORAGE_KEY, _STORAGE_ENDPOINT)
_SECRETS = (_BATCH_KEY, _CONNECTION, _STORAGE_KEY)


# the values -------------------------------------------------------------------------------------------------


def account_values(flags: Mapping[str, Any], *, entra: bool, asked: bool) -> dict[str, Any]:
    """Return what credentials.json is to hold: from flags, then the environment, then answers.

    Parameters
    ----------
    flags : mapping
        Values of the command's options.
    entra : bool
        Without keys.
    asked : bool
        Whether somebody can be asked.

    Raises
    ------
    click.UsageError
        Naming all that is missing.
    """
    given = {setting.key: _given(setting, flags, secrets=not entra) for setting in ACCOUNT_SETTINGS}
    found = {key: value for key, value in given.items() if value}
    if entra and any(flag_of(setting, flags) for setting in _SECRETS):
        raise click.UsageError("--entra signs in without keys: leave the keys and the connection string out")
    if asked:
        _ask_account(found, entra)
    if "batchAccount" not in found and "batchEndpoint" in found:
        found["batchAccount"] = _account_of(found["batchEndpoint"])
    keys = not entra
    missing = [setting.sources for setting in (_ENDPOINT, _ACCOUNT) if not found.get(setting.key)]
    if keys and _BATCH_KEY.key not in found:
        missing.append(f"{_BATCH_KEY.sources}; or --entra, to sign in without keys")
    if _CONNECTION.key in found:
        # It says all three, and nothing may say otherwise.
        for setting in (_STORAGE, _STORAGE_KEY, _STORAGE_ENDPOINT):
            if flag_of(setting, flags):
                raise click.UsageError(f"{setting.flag} is in --storage-connection-string: give one of the two")
            found.pop(setting.key, None)
    elif keys and not (found.get(_STORAGE.key) and found.get(_STORAGE_KEY.key)):
        missing.append(f"{_CONNECTION.sources}; or {_STORAGE.sources} with {_STORAGE_KEY.sources}")
    elif not found.get(_STORAGE.key):
        missing.append(_STORAGE.sources)
    if missing:
        raise click.UsageError(
            "nobody is here to be asked, and this is not known:\n  " + "\n  ".join(missing) + "\nGive it as flags or "
            "variables, or run `joblib-azure init` in a terminal"
        )
    return {key: found[key] for key in given if found.get(key)}


def _given(setting: Setting, flags: Mapping[str, Any], *, secrets: bool) -> str | None:
    if setting.secret and not secrets:
        return None
    return flag_of(setting, flags) or os.environ.get(setting.variable) or None


def flag_of(setting: Setting, flags: Mapping[str, Any]) -> str | None:
    """Return what was given on the command line."""
    value: str | None = flags[setting.flag.removeprefix("--").replace("-", "_")]
    return value


def _account_of(endpoint: str) -> str:
    """``https://NAME.REGION.batch.azure.com`` says the name; an address in its place does not."""
    host = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}").hostname or ""
    return host.partition(".")[0] if re.search(r"\.batch\.", host) else ""


def _ask_account(found: dict[str, Any], entra: bool) -> None:
    """Ask for what is not known of the account."""
    if _ENDPOINT.key not in found:
        found[_ENDPOINT.key] = _ask(_ENDPOINT)
    if _ACCOUNT.key not in found:
        found[_ACCOUNT.key] = _ask(_ACCOUNT, default=_account_of(found[_ENDPOINT.key]) or None)
    if entra:
        if _STORAGE.key not in found:
            found[_STORAGE.key] = _ask(_STORAGE)
        return
    if _BATCH_KEY.key not in found:
        found[_BATCH_KEY.key] = _ask(_BATCH_KEY)
    if _CONNECTION.key not in found and not (_STORAGE.key in found and _STORAGE_KEY.key in found):
        if _STORAGE.key in found:
            found[_STORAGE_KEY.key] = _ask(_STORAGE_KEY)
        else:
            found[_CONNECTION.key] = _ask(_CONNECTION)


def _ask(setting: Setting, default: str | None = None) -> str:
    text = f"{setting.question} ({setting.where})" if setting.where else setting.question
    answer: str = click.prompt(
        text, default=default, hide_input=setting.secret, value_proc=_checked(setting.key, _account_error)
    )
    return answer


def pool_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the flags say of the cluster, as its file has it."""
    slots = flags["max_tasks_per_node"]
    values: dict[str, Any] = {
        "name": flags["name"],
        "vmSize": flags["vm_size"],
        "maxTasksPerNode": None if slots is None else _number(slots),
    }
    values = {key: value for key, value in values.items() if value is not None}
    for key, bounds in (("dedicatedNodes", flags["dedicated_nodes"]), ("spotNodes", flags["spot_nodes"])):
        if bounds is not None:
            values.setdefault("poolSize", {})[key] = {"min": bounds[0], "max": bounds[1]}
    for setting in flags["settings"]:
        _set(values, setting)
    return values


def pool_values(flags: Mapping[str, Any], *, asked: bool) -> dict[str, Any]:
    """Return what cluster.json is to hold: from flags, then answers, then defaults."""
    flags = dict(flags)
    folder = re.sub(r"[^A-Za-z0-9_-]+", "-", Path.cwd().name).strip("-")[:64] or "joblib"
    if asked:
        flags["name"] = flags["name"] or _ask_pool("name", "Name of the pool", folder)
        flags["vm_size"] = flags["vm_size"] or _ask_pool("vmSize", "Size of its nodes", DEFAULT_SIZE)
        if flags["dedicated_nodes"] is None and flags["spot_nodes"] is None:
            flags["dedicated_nodes"] = click.prompt(
                "Dedicated nodes at most", default=str(DEFAULT_NODES), type=Bounds()
            )
            flags["spot_nodes"] = click.prompt("Spot nodes at most", default="0", type=Bounds())
        if flags["max_tasks_per_node"] is None:
            question = "Task slots of a node (1: a call has all of its cores)"
            size = {"vmSize": flags["vm_size"]}
            checked = _checked("maxTasksPerNode", lambda each: _pool_error({**size, **each}))
            flags["max_tasks_per_node"] = click.prompt(question, default="1", value_proc=checked)
    spot = flags["spot_nodes"] or (0, 0)
    dedicated = flags["dedicated_nodes"] or (0, 0 if spot[1] else DEFAULT_NODES)
    flags.update(
        name=flags["name"] or folder,
        vm_size=flags["vm_size"] or DEFAULT_SIZE,
        max_tasks_per_node=flags["max_tasks_per_node"] or "1",
        dedicated_nodes=dedicated,
        spot_nodes=spot,
        settings=("poolSize.autoscaleFormula=QUEUE_AND_RUNNING", *flags["settings"]),
    )
    return pool_flags(flags)


def _ask_pool(key: str, question: str, default: str) -> str:
    answer: str = click.prompt(question, default=default, value_proc=_checked(key, _pool_error))
    return answer


def _set(values: dict[str, Any], setting: str) -> None:
    path, equals, text = setting.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise click.BadParameter(f"{setting!r}: expected KEY=VALUE, as environment.offline=true", param_hint="--set")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    place = values
    for key in keys[:-1]:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise click.BadParameter(f"{setting!r}: {key} has no settings of its own", param_hint="--set")
    place[keys[-1]] = value


def _number(text: str) -> int | str:
    return int(text) if re.fullmatch(r"\d+", text) else text


# checks -----------------------------------------------------------------------------------------------------


def _checked(key: str, error: Callable[[dict[str, Any]], str]) -> Callable[[str], str]:
    """Return a check of one answer; what it raises makes the question come again."""

    def check(answer: str) -> str:
        answer = answer.strip()
        # The other settings that are missing have their own questions.
        value = _number(answer) if key == "maxTasksPerNode" else answer
        said = [line for line in error({key: value}).splitlines() if line.strip().startswith(key)]
        if said:
            raise click.UsageError("\n".join(line.strip() for line in said))
        return answer

    return check


def _account_error(values: Mapping[str, Any]) -> str:
    from ..config import AccountConfig

    return _error(AccountConfig.read, values)


def _pool_error(values: Mapping[str, Any]) -> str:
    from ..config import ClusterConfig

    return _error(ClusterConfig.read, values)


def _error(read: Callable[[Mapping[str, Any], str], object], values: Mapping[str, Any]) -> str:
    try:
        read(values, "the answer")
    except ConfigurationError as exc:
        return str(exc)
    return ""
