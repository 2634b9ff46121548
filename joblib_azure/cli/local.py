"""``joblib-azure local``: a Batch account and a storage account on this machine, for many clients."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from ..errors import JoblibAzureError
from .common import columns, count, emit, json_option, plain, size

if TYPE_CHECKING:
    from ..local.engine import Engine

_PORT = click.IntRange(0, 65535)


def _name_option(command: Any) -> Any:
    return click.option(
        "--name", default="default", show_default=True, help="Of the account; each has a folder, keys and ports."
    )(command)


@click.group()
def local() -> None:
    """Serve a Batch account and its storage on this machine: started once, for many clients, until it is stopped."""


@local.command()
@_name_option
@click.option("--nodes", type=click.IntRange(1), help="Nodes of its pool `local`. Default: as before, at first 2.")
@click.option("--cores", type=click.IntRange(1), help="Cores of a node. Default: at first the machine's, divided.")
@click.option("--max-tasks-per-node", type=click.IntRange(1), help="Task slots of a node. Default: at first 1.")
@click.option("--port", "batch_port", type=_PORT, help="Of the Batch account. Default: as before, at first any.")
@click.option("--storage-port", type=_PORT, help="Of the storage account. Default: as before, at first any.")
@click.option(
    "--set",
    "options",
    metavar="OPTION=VALUE",
    multiple=True,
    help="How the emulated account behaves, for example dispatch-seconds=2 (docs/emulator.md).",
)
@click.option("--latency", help="As slow as what: none, or azure, which takes minutes for its nodes. Default: none.")
@click.option("--chaos", metavar="SEED|FILE", help="Faults between clients and servers (docs/faults.md).")
@json_option
def start(name: str, options: tuple[str, ...], latency: str | None, as_json: bool, **settings: Any) -> None:
    """Start it, and say what points clients at it.

    What is on stdout is for a shell: `eval "$(joblib-azure local start)"` points this package, the Azure CLI and the
    storage tools at it. What the accounts hold is kept from one start to the next.
    """
    from ..local import engine
    from ..local.behaviour import read_options

    behaviour = read_options(options) | ({} if latency is None else {"latency": latency})
    found = engine.start(name, emulator=behaviour, notify=lambda line: click.echo(line, err=True), **settings)
    if as_json:
        emit({**plain(found), "variables": found.variables(), "started": found.fresh})
        return
    verb = "Serving" if found.fresh else "Already serving"
    click.echo(f"{verb} the local account {name!r} (process {found.pid}) from {found.folder}.", err=True)
    for key, value in found.variables().items():
        click.echo(f"export {key}={shlex.quote(value)}")
    click.echo(
        f'\nFor a shell: eval "$(joblib-azure local start --name {name})". In Python: parallel_config("azure", '
        f"cluster={str(found.cluster_file)!r}).\nEnd it with `joblib-azure local stop --name {name}`.",
        err=True,
    )


@local.command()
@_name_option
@json_option
def status(name: str, as_json: bool) -> None:
    """Tell whether it is served, and what it holds. The exit code is 1 where it is not served."""
    from ..local import engine

    found, storm = engine.status(name)
    held: dict[str, Any] = {} if found is None else _held(found)
    if storm is not None:
        held["storm"] = {"seed": storm.seed, "struck": dict(storm.struck), "missed": list(storm.missed)}
    if as_json:
        emit({"name": name, "served": found is not None, **({} if found is None else plain(found)), **held})
    elif found is None:
        click.echo(f"The local account {name!r} is not served: `joblib-azure local start --name {name}` starts it.")
    else:
        rows = [
            ("served", f"since {found.since}, by process {found.pid}"),
            ("Batch", f"{found.batch_endpoint}, account {found.batch_account}"),
            ("blobs", found.blob_endpoint),
            ("folder", f"{found.folder}, {size(held['bytes'])}"),
            *((f"pool {each['id']}", _nodes(each)) for each in held["pools"]),
            ("jobs under way", ", ".join(f"{number} {state}" for state, number in held["jobs"].items()) or "none"),
        ]
        if storm is not None:
            rows.append(("storm", f"seed {storm.seed}: {count(sum(storm.struck.values()), 'strike')}"))
        click.echo(columns(rows))
    if found is None:
        click.get_current_context().exit(1)


@local.command()
@_name_option
@click.option("--delete", is_flag=True, help="Remove all that it holds too: pools, jobs, blobs, keys.")
@json_option
def stop(name: str, delete: bool, as_json: bool) -> None:
    """End it, with all that runs on its nodes. What it holds stays for the next start."""
    from ..local import engine

    served = engine.stop(name, delete=delete)
    if as_json:
        emit({"name": name, "stopped": served, "deleted": delete})
        return
    ended = f"The local account {name!r} {'has ended' if served else 'was not served'}"
    kept = (
        "what it held is removed" if delete else f"`joblib-azure local start --name {name}` goes on with what it holds"
    )
    click.echo(f"{ended}; {kept}.")


def _held(found: Engine) -> dict[str, Any]:
    """Ask the account what it holds, and see how much of the disk that is."""
    from ..local.engine import cluster_of

    pools, jobs = [], Counter[str]()
    try:
        with cluster_of(found) as cluster:
            for pool in cluster.batch.pools(""):
                states = Counter(str(node.state) for node in cluster.batch.nodes(pool.id))
                pools.append({"id": pool.id, "nodes": dict(states)})
                jobs.update(job.state for job in cluster.batch.jobs(pool.id))
    except JoblibAzureError as exc:
        raise click.ClickException(f"the local account is served, and does not answer: {exc}") from exc
    files = (path for path in found.folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {"pools": pools, "jobs": dict(jobs), "bytes": sum(path.stat().st_size for path in files)}


def _nodes(pool: dict[str, Any]) -> str:
    return ", ".join(f"{number} {state}" for state, number in pool["nodes"].items()) or "no nodes"
