"""Where each setting comes from: keyword > environment > file > default."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..errors import ConfigurationError
from .account import AccountConfig
from .base import Settings
from .explain import field_key, models_in, names_of
from .reading import read_json

_M = TypeVar("_M", bound=Settings)
_Path = tuple[str, ...]

#: The credentials that are found without being named, beside the cluster's file.
CREDENTIALS_FILE = "credentials.json"


@dataclass(frozen=True, kw_only=True)
class Resolved(Generic[_M]):
    """A configuration, and where its values come from.

    Attributes
    ----------
    config : ClusterConfig or AccountConfig
    sources : mapping of str to str
        For each setting, by its dotted key in a file (``poolSize.spotNodes.max``): ``keyword``,
        ``environment NAME``, ``file PATH``, ``default``, or ``from KEY (…)`` where it follows from another.
    """

    config: _M
    sources: Mapping[str, str]

    def rows(self) -> Iterator[tuple[str, Any, str]]:
        """Yield each key, its value for JSON with secrets masked, and its source."""
        values = dict(_leaves(self.config.to_dict()))
        for key, source in self.sources.items():
            yield key, values[key], source


def resolve(
    kind: type[_M],
    file: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    **keywords: Any,
) -> Resolved[_M]:
    """Return a configuration made of all sources, and the source of each value.

    Parameters
    ----------
    kind : type
        `ClusterConfig` or `AccountConfig`.
    file : path, optional
        By default what ``JOBLIB_AZURE_CLUSTER`` or ``JOBLIB_AZURE_CREDENTIALS`` names, if set.
    environ : mapping, optional
        In place of ``os.environ``.
    **keywords
        Settings by their Python names; nested ones as mappings, of which only what they have is set.

    Raises
    ------
    ConfigurationError
        All that is wrong, at once.
    """
    environ = os.environ if environ is None else environ
    path = file if file is not None else environ.get(kind.file_variable) or None
    layers: list[tuple[str, Mapping[str, Any]]] = []
    spelling: dict[str, str] = {}
    if path is not None:
        shown, written = os.fspath(path), read_json(path)
        spelling = kind.spelling(written)
        layers.append((f"file {shown}", kind.prepare(written, shown)))
    for variable, field in kind.variables.items():
        if environ.get(variable):
            layers.append((f"environment {variable}", {field: environ[variable]}))
    if keywords:
        layers.append(("keyword", keywords))
    values, origins = _merge(kind, layers)
    folder = Path(path).absolute().parent if path is not None else None
    config = kind.check(values, _where(layers) or kind.__name__, folder=folder, spelling=spelling)
    return Resolved(config=config, sources=_sources(config, origins))


def resolve_account(
    file: str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    beside: str | os.PathLike[str] | None = None,
    **keywords: Any,
) -> Resolved[AccountConfig]:
    """`resolve` for the account, which says what to do where nothing tells of one.

    Parameters
    ----------
    beside : path, optional
        The cluster's file: where no other is named, a ``credentials.json`` in the same folder is read.

    Raises
    ------
    ConfigurationError
        All that is wrong or missing, at once.
    """
    environ = os.environ if environ is None else environ
    path = file if file is not None else environ.get(AccountConfig.file_variable) or None
    if path is None and beside is not None and (found := Path(beside).parent / CREDENTIALS_FILE).is_file():
        path = found
    if path is None and not keywords:
        missing = [name for name in ("AZURE_BATCH_ACCOUNT", "AZURE_BATCH_ENDPOINT") if not environ.get(name)]
        if not environ.get("AZURE_STORAGE_CONNECTION_STRING") and not environ.get("AZURE_STORAGE_ACCOUNT"):
            missing.append("AZURE_STORAGE_CONNECTION_STRING (or AZURE_STORAGE_ACCOUNT)")
        if missing:
            raise ConfigurationError(
                f"the account is not known: {', '.join(missing)} not set, nor {AccountConfig.file_variable} (a "
                'JSON file with batchAccount, …). Without an account, cluster="local" runs on this machine'
            )
    return resolve(AccountConfig, path, environ=environ, **keywords)


def resolved_by(config: _M, source: str) -> Resolved[_M]:
    """Return a configuration whose every value comes from one source."""
    return Resolved(config=config, sources={key: source for _, key in _paths(config)})


def _where(layers: list[tuple[str, Mapping[str, Any]]]) -> str:
    names = [label.removeprefix("file ") for label, _ in layers]
    return " with ".join([names[0], *([", ".join(names[1:])] if names[1:] else [])]) if names else ""


def _merge(
    kind: type[Settings], layers: list[tuple[str, Mapping[str, Any]]]
) -> tuple[dict[str, Any], dict[_Path, str]]:
    """Lay the stronger sources over the weaker ones, and note where each value came from."""
    merged: dict[str, Any] = {}
    origins: dict[_Path, str] = {}
    for label, values in layers:
        canonical = _canonical(kind, values)
        for strong, weak in kind.supersedes.items():
            at = tuple(strong.split("."))
            if _get(canonical, at) not in (None, _get(merged, at)):
                _drop(merged, origins, weak)
        _lay(merged, canonical, (), label, origins)
    return merged, origins


def _canonical(kind: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Name the settings as Python does, so that all sources speak of the same keys."""
    known = dict(names_of(kind))
    names = {id(field): name for name, field in kind.model_fields.items()}
    found: dict[str, Any] = {}
    for key, value in values.items():
        field = known.get(key)
        # A key that is there in two spellings keeps the second, and is told as such.
        name = names[id(field)] if field is not None and names[id(field)] not in found else key
        inner = next(models_in(field.annotation), None) if field is not None else None
        if isinstance(value, Settings):
            value = {each: getattr(value, each) for each in value.model_fields_set}
        if inner is not None and issubclass(inner, Settings) and isinstance(value, Mapping):
            value = _canonical(inner, value)
        found[name] = value
    return found


def _lay(into: dict[str, Any], values: Mapping[str, Any], at: _Path, label: str, origins: dict[_Path, str]) -> None:
    for key, value in values.items():
        path = (*at, key)
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _lay(into[key], value, path, label, origins)
            continue
        for old in [old for old in origins if old[: len(path)] == path]:
            del origins[old]
        into[key] = _copy(value)
        for leaf, _ in _leaves_of(value, path) if isinstance(value, Mapping) and value else [(path, value)]:
            origins[leaf] = label


def _copy(value: Any) -> Any:
    return {key: _copy(each) for key, each in value.items()} if isinstance(value, Mapping) else value


def _get(values: Any, path: _Path) -> Any:
    for part in path:
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _drop(values: dict[str, Any], origins: dict[_Path, str], keys: tuple[str, ...]) -> None:
    for key in keys:
        *parents, last = path = tuple(key.split("."))
        if isinstance(holder := _get(values, tuple(parents)) if parents else values, dict):
            holder.pop(last, None)
        for old in [old for old in origins if old[: len(path)] == path]:
            del origins[old]


def _leaves_of(values: Mapping[str, Any], at: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves_of(value, (*at, key))
        else:
            yield (*at, key), value


def _leaves(values: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for path, value in _leaves_of(values):
        yield ".".join(path), value


def _sources(config: Settings, origins: Mapping[_Path, str]) -> dict[str, str]:
    """Return the source of each leaf of `config`, by its dotted key in a file."""
    found = {}
    for path, key in _paths(config):
        source = _origin(path, origins)
        if source is None:
            for name, others in type(config).follows.items():
                if path[: len(name.split("."))] == tuple(name.split(".")):
                    source = _derived(config, others, origins)
        found[key] = source or "default"
    return found


def _origin(path: _Path, origins: Mapping[_Path, str]) -> str | None:
    return next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), None)


def _derived(config: Settings, others: tuple[str, ...], origins: Mapping[_Path, str]) -> str | None:
    for other in others:
        path = tuple(other.split("."))
        given = next((label for at, label in origins.items() if at[: len(path)] == path), None)
        if given is not None:
            return f"from {_key(type(config), path)} ({given})"
    return None


def _key(kind: type[Any], path: _Path) -> str:
    parts = []
    for name in path:
        parts.append(field_key(kind, name))
        kind = next(models_in(kind.model_fields[name].annotation), kind)
    return ".".join(parts)


def _paths(config: Settings, at: _Path = (), key: str = "") -> Iterator[tuple[_Path, str]]:
    """Yield each leaf by the Python names and by the dotted key, in the order of the fields."""
    for name, field in type(config).model_fields.items():
        if field.exclude:
            continue
        value, path, dotted = getattr(config, name), (*at, name), f"{key}{field_key(type(config), name)}"
        if isinstance(value, Settings):
            yield from _paths(value, path, f"{dotted}.")
        elif isinstance(value, Mapping) and value:
            yield from (((*path, each), f"{dotted}.{each}") for each in value)
        else:
            yield path, dotted
