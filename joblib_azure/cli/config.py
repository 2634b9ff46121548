"""``joblib-azure config``: what is set and where, whether a file is right, and the schema for editors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigurationError
from .common import CLUSTER_FILE, CLUSTER_VARIABLE, cluster_option, columns, credentials_option, emit, json_option

if TYPE_CHECKING:
    from ..config.base import Settings
    from ..config.resolve import Resolved

_KIND = click.Choice(["cluster", "credentials"])
#: Keys that only a credentials file has, in any of its shapes.
_CREDENTIALS = ("sharedkey", "serviceprincipal", "batchaccount", "batchendpoint", "batchresourceid", "storageaccount")


@click.group()
def config() -> None:
    """Look at the configuration: what is set and where, whether a file is right."""


@config.command()
@cluster_option
@credentials_option
@json_option
def show(cluster_file: str | None, credentials_file: str | None, as_json: bool) -> None:
    """Print each setting with its value and where it comes from.

    Secrets are masked. The exit code is 1 where the cluster or the account is wrong or not known; what is right is
    printed all the same.
    """
    path = cluster_file or os.environ.get(CLUSTER_VARIABLE) or CLUSTER_FILE
    asked: dict[str, Callable[[], Resolved[Any]]] = {"cluster": lambda: _cluster(path)}
    # The account of the local cluster is its own, and new each time.
    if path != "local" or credentials_file is not None:
        asked["credentials"] = lambda: _account(credentials_file, path)
    found: dict[str, Resolved[Any]] = {}
    errors: dict[str, str] = {}
    for kind, how in asked.items():
        try:
            found[kind] = how()
        except ConfigurationError as exc:
            errors[kind] = str(exc)
    if as_json:
        shown = {
            kind: {key: {"value": value, "source": source} for key, value, source in resolved.rows()}
            for kind, resolved in found.items()
        }
        emit({**shown, "errors": errors})
    else:
        for kind, resolved in found.items():
            rows = [(key, json.dumps(value, ensure_ascii=False), source) for key, value, source in resolved.rows()]
            click.echo(columns(rows, (kind, "value", "source")) + "\n")
        for kind, text in errors.items():
            click.echo(f"{kind}: {text}", err=True)
    if errors:
        raise SystemExit(1)


def _cluster(path: str) -> Resolved[Any]:
    from ..config import ClusterConfig
    from ..config.resolve import resolve, resolved_by

    if path == "local":
        from ..local import LocalCluster

        return resolved_by(LocalCluster().config, "local cluster")
    if not Path(path).exists():
        raise ConfigurationError(
            f"{path} is not there. Write one with `joblib-azure init`, or name one with --cluster FILE"
        )
    return resolve(ClusterConfig, path)


def _account(path: str | None, cluster: str) -> Resolved[Any]:
    from ..config.resolve import resolve_account

    return resolve_account(path, beside=cluster)


@config.command()
@click.argument("file")
@click.option("--kind", type=_KIND, help="By default what the file's keys tell.")
@json_option
def check(file: str, kind: str | None, as_json: bool) -> None:
    """Tell all that is wrong with a cluster's or a credentials' file.

    Nothing is asked of Azure. The exit code is 1 where something is wrong.
    """
    from ..config.reading import read_json
    from ..config.reference import FILES

    error, shown = "", ""
    try:
        kind = kind or _kind_of(read_json(file))
        shown = _describe(FILES[kind].load(file))
    except ConfigurationError as exc:
        error = str(exc)
    if as_json:
        emit({"file": file, "kind": kind, "ok": not error, "error": error or None})
    elif error:
        click.echo(error, err=True)
    else:
        click.echo(f"{file}: ok: {shown}")
    if error:
        raise SystemExit(1)


def _kind_of(values: dict[str, Any]) -> str:
    keys = {key.lower().replace("_", "") for key in values}
    return "credentials" if keys & set(_CREDENTIALS) else "cluster"


def _describe(found: Settings) -> str:
    from ..config import AccountConfig, ClusterConfig

    if isinstance(found, ClusterConfig):
        size, bounds = found.pool_size, []
        for kind, each in (("dedicated", size.dedicated_nodes), ("spot", size.spot_nodes)):
            if each.max:
                fixed = found.fixed or each.min == each.max
                bounds.append(f"{each.max if fixed else f'{each.min} to {each.max}'} {kind}")
        scaling = "fixed" if found.fixed else size.autoscale_formula.partition("\n")[0][:40]
        return (
            f"pool {found.name!r}, {' and '.join(bounds)} node(s) of {found.vm_size} × {found.cores} core(s), "
            f"{found.max_tasks_per_node} task slot(s) a node, autoscale {scaling}"
        )
    if isinstance(found, AccountConfig):
        entra = "a service principal" if found.service_principal else "Entra's default credential"
        batch = "its key" if found.batch_key else entra
        storage = "its key" if found.storage_key else entra
        return (
            f"Batch account {found.batch_account!r} with {batch}, storage account {found.storage_account!r} with "
            f"{storage}, {found.cloud} cloud"
        )
    raise TypeError(type(found).__name__)


@config.command()
@click.argument("kind", type=_KIND, default="cluster")
def schema(kind: str) -> None:
    """Print the JSON Schema of a file, for completion and checks in an editor."""
    from ..config.reference import FILES, json_schema

    click.echo(json.dumps(json_schema(FILES[kind]), indent=2, ensure_ascii=False))


@config.command()
def reference() -> None:
    """Print the reference of every setting, as Markdown."""
    from ..config.reference import markdown

    click.echo(markdown(), nl=False)
