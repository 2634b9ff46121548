"""``joblib-azure cluster``: a pool from its creation to its deletion, and what can be seen of it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigurationError, NodesUnavailableError, ResourceNotFoundError
from .common import (
    Bounds,
    Interrupted,
    ask,
    bounds_line,
    cluster_option,
    cluster_path,
    columns,
    count,
    credentials_option,
    emit,
    json_option,
    load_account,
    load_cluster,
)
from .target import Target, on_target

if TYPE_CHECKING:
    from ..config import AccountConfig
    from ..report import Estimate
    from ..service import NodeFile

#: Bytes of a node's file that are fetched for its last lines.
_TAIL_BYTES = 1 << 16


@click.group()
def cluster() -> None:
    """Create a pool, look at it, change its size, delete it."""


# creating -------------------------------------------------------------------------------------------------


@cluster.command()
@cluster_option
@credentials_option
@click.option("--wait/--no-wait", default=True, help="Wait until its nodes are up. Default: --wait.")
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Of the wait. Default: nodeTimeout.")
@click.option("--dry-run", is_flag=True, help="Print what would be created, and create nothing.")
@click.option("--json", "as_json", is_flag=True, help="Write JSON, for programs.")
def create(
    cluster_file: str | None,
    credentials_file: str | None,
    wait: bool,
    timeout: float | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Create the pool, or use the one of that name where it is the same.

    It may be run again at any time. With --dry-run the pool's JSON, its formula, its start task and what it costs an
    hour are printed.
    """
    config = load_cluster(cluster_file)
    if dry_run:
        _dry_run(cluster_file, credentials_file, as_json=as_json)
        return
    from ..cluster import Cluster
    from .leftovers import remove_doctors_pool
    from .waiting import shown

    account = load_account(credentials_file, cluster_file)
    try:
        with shown() as progress:
            with contextlib.closing(Cluster(config, account)) as handle:
                remove_doctors_pool(handle)
                there = any(
                    pool.id == config.name and pool.state == "active" for pool in handle.batch.pools(config.name)
                )
            made = Cluster.create(config, account, wait=wait, timeout=timeout, progress=progress)
    except KeyboardInterrupt:
        raise Interrupted(
            f"The pool {config.name} may be there, and its nodes go on starting.\n"
            "  joblib-azure cluster create    waits for it again\n"
            "  joblib-azure cluster delete    removes it"
        ) from None
    except NodesUnavailableError as exc:
        raise click.ClickException(
            f"{exc}\nThe pool stays: `joblib-azure cluster show` looks at it, `joblib-azure cluster delete` removes it"
        ) from exc
    with contextlib.closing(made):
        status = made.status()
    if as_json:
        emit({"created": not there, "status": status})
        return
    nodes = _counts_line(status.counts) or "no nodes yet"
    grows = ""
    if status.pool.autoscale is not None:
        grows = f"; it grows to {count(config.nodes, 'node')} when there is work"
    click.echo(f"Pool {config.name} {'was there' if there else 'is created'}: {nodes}{grows}.")
    click.echo(
        f'\nNext: with parallel_config("azure", cluster="{cluster_path(cluster_file)}"): … in your script, and\n'
        "      joblib-azure cluster delete when you are done"
    )


def _dry_run(cluster_file: str | None, credentials_file: str | None, *, as_json: bool) -> None:
    from .preview import preview

    account: AccountConfig | None = None
    # The account is not needed for it; a wrong one is told by what needs it.
    with contextlib.suppress(ConfigurationError):
        account = load_account(credentials_file, cluster_file)
    config = load_cluster(cluster_file)
    found = preview(config, account)
    if as_json:
        emit({**vars(found), "cost_per_hour": found.cost_per_hour.data()})
        return
    click.echo(found)
    where = f" on the account {account.batch_account}" if account is not None else ""
    click.echo(f"\nNothing was created. `joblib-azure cluster create` creates the pool {config.name}{where}.")


# looking --------------------------------------------------------------------------------------------------


@cluster.command(name="list")
@click.option("--prefix", default="", help="Only pools whose names begin so.")
@cluster_option
@credentials_option
@json_option
def list_pools(prefix: str, cluster_file: str | None, credentials_file: str | None, as_json: bool) -> None:
    """List the account's pools."""
    from ..cluster import Cluster

    account = load_account(credentials_file, cluster_file)
    pools = Cluster.list(account, prefix)
    if as_json:
        emit(pools)
        return
    if not pools:
        begin = f" whose names begin with {prefix!r}" if prefix else ""
        click.echo(f"There are no pools{begin} on the account {account.batch_account}: nothing costs anything.")
        return
    rows = [
        (
            pool.id,
            pool.state if pool.allocation == "steady" else f"{pool.state}, {pool.allocation}",
            pool.vm_size,
            pool.task_slots_per_node,
            f"{pool.current_dedicated}/{pool.target_dedicated}",
            f"{pool.current_spot}/{pool.target_spot}",
            "autoscale" if pool.autoscale is not None else "fixed",
        )
        for pool in pools
    ]
    click.echo(columns(rows, ("pool", "state", "size", "slots", "dedicated", "spot", "nodes")))


@cluster.command()
@on_target
@json_option
def show(target: Target, as_json: bool) -> None:
    """Show what the pool is, does and costs: nodes by state, autoscale, errors, jobs."""
    from ..prices import PriceLookup

    with target.handle() as cluster:
        prices = PriceLookup(cluster.config.vm_size, cluster.batch.endpoint, cluster.config.prices)
        prices.start()
        status = cluster.status()
    cost = status.hourly_cost(prices.wait())
    if as_json:
        emit({**vars(status), "cost_per_hour": cost.data()})
        return
    pool = status.pool
    rows: list[tuple[str, object]] = [
        ("pool", pool.id),
        ("state", f"{pool.state}, allocation {pool.allocation}"),
        ("size", f"{pool.vm_size}, {count(pool.task_slots_per_node, 'task slot')} a node"),
        ("dedicated", _kind_line(pool.current_dedicated, pool.target_dedicated, status.counts.dedicated)),
        ("spot", _kind_line(pool.current_spot, pool.target_spot, status.counts.spot)),
        ("autoscale", _autoscale_line(pool)),
        ("cost an hour", _cost_line(cost)),
    ]
    if status.floor is not None:
        rows.append(("floor", status.floor))
    rows += [("resize error", error) for error in pool.resize_errors]
    rows += [("job", f"{job.id}, {job.state}") for job in status.jobs] or [("jobs", "none")]
    click.echo(columns(rows))
    if "starttaskfailed" in {*status.counts.dedicated, *status.counts.spot}:
        click.echo("\nNext: joblib-azure cluster nodes; joblib-azure cluster file NODE startup/stderr.txt")


@cluster.command()
@on_target
@json_option
def nodes(target: Target, as_json: bool) -> None:
    """List the pool's nodes, with their errors."""
    with target.handle() as cluster:
        found = cluster.nodes()
    if as_json:
        emit(found)
        return
    if not found:
        click.echo("The pool has no nodes.")
        return
    rows = [
        (
            node.id,
            "dedicated" if node.dedicated else "spot",
            node.state,
            node.running_tasks,
            f"{node.since:%Y-%m-%d %H:%M:%S}" if node.since is not None else "",
            "; ".join(node.errors),
        )
        for node in found
    ]
    click.echo(columns(rows, ("node", "kind", "state", "tasks", "since (UTC)", "errors")))


@cluster.command()
@click.argument("node")
@click.argument("path", required=False)
@click.option("--tail", type=click.IntRange(1), metavar="LINES", help="Only the last lines.")
@on_target
@json_option
def file(target: Target, node: str, path: str | None, tail: int | None, as_json: bool) -> None:
    """Print a file of a node, for example startup/stderr.txt; without PATH, list its files."""
    with target.handle() as cluster:
        try:
            if path is None:
                _list_files(cluster.files(node, recursive=True), as_json=as_json)
                return
            content = cluster.file(node, path, tail=None if tail is None else _TAIL_BYTES)
        except ResourceNotFoundError as exc:
            if exc.context.get("code") == "PoolNotFound":
                raise
            raise click.ClickException(
                f"there is no {f'file {path} on the ' if path else ''}node {node}: `joblib-azure cluster nodes` lists "
                "the nodes, and `joblib-azure cluster file NODE` the files of one"
            ) from exc
    if tail is not None:
        content = b"".join(content.splitlines(keepends=True)[-tail:])
    if as_json:
        emit({"node": node, "path": path, "content": content.decode(errors="replace")})
    else:
        click.echo(content, nl=False)


def _list_files(files: Sequence[NodeFile], *, as_json: bool) -> None:
    if as_json:
        emit(files)
        return
    rows = [(each.name, each.size) for each in files if not each.directory]
    click.echo(columns(rows, ("file", "bytes")) if rows else "The node has no files yet.")


# changing -------------------------------------------------------------------------------------------------


@cluster.command()
@click.option("--dedicated-nodes", type=Bounds(single=True), help="N: that many, or in a pool that scales at most.")
@click.option("--spot-nodes", type=Bounds(single=True), help="The same for spot nodes.")
@click.option("--formula", help="QUEUE, QUEUE_AND_RUNNING, WORKDAY, WEEKEND, FIXED for none, or a formula's text.")
@click.option("--interval", type=int, metavar="SECONDS", help="Between two evaluations of the formula.")
@click.option("--wait/--no-wait", default=False, help="Wait until the nodes are up. Default: --no-wait.")
@on_target
def resize(
    target: Target, dedicated_nodes: Any, spot_nodes: Any, formula: str | None, interval: int | None, wait: bool
) -> None:
    """Give the pool other numbers of nodes, or another formula."""
    if all(each is None for each in (dedicated_nodes, spot_nodes, formula, interval)):
        raise click.UsageError("say what is to change: --dedicated-nodes, --spot-nodes, --formula or --interval")
    from .waiting import shown

    with target.attached() as cluster, shown() as cluster.progress:
        name = cluster.config.name
        try:
            cluster.resize(dedicated_nodes, spot_nodes, formula=formula, interval=interval, wait=wait)
        except KeyboardInterrupt:
            raise Interrupted(f"The resize of {name} may go on: `joblib-azure cluster show` tells.") from None
        size = cluster.config.pool_size
    how = "fixed" if cluster.config.fixed else _formula_name(size.autoscale_formula)
    click.echo(f"Pool {name}: {bounds_line(size)}, {how}.")
    click.echo(
        "A new pool is made as the cluster's file says: write the same there. `joblib-azure cluster show` looks."
    )


@cluster.command()
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--wait/--no-wait", default=False, help="Wait until the pool is gone. Default: --no-wait.")
@on_target
def delete(target: Target, yes: bool, wait: bool) -> None:
    """Delete the pool and its nodes, and end the jobs that sessions have left on it."""
    from .leftovers import end_sessions, remove_doctors_pool
    from .waiting import shown

    with target.handle() as cluster:
        name = cluster.config.name
        remove_doctors_pool(cluster)
        try:
            status = cluster.status()
        except ResourceNotFoundError:
            click.echo(f"There is no pool {name}: nothing to delete.")
            return
        jobs = f" and {count(len(status.jobs), 'job')} on it" if status.jobs else ""
        if not yes:
            ask(f"Delete the pool {name} with {count(status.pool.current_nodes, 'node')}{jobs}?")
        try:
            with shown() as cluster.progress:
                cluster.delete()
                ended = end_sessions(cluster, status.jobs)
                if wait:
                    cluster.delete(wait=True)
        except KeyboardInterrupt:
            raise Interrupted(f"The deletion of {name} may go on: `joblib-azure cluster list` tells.") from None
    click.echo(f"Pool {name} {'is deleted' if wait else 'is being deleted: nothing more to do'}.")
    if ended:
        click.echo(f"{count(ended, 'job')} of sessions that had not ended {'is' if ended == 1 else 'are'} deleted too.")


# words ----------------------------------------------------------------------------------------------------


def _counts_line(counts: Any) -> str:
    states: dict[str, int] = {}
    for each in (counts.dedicated, counts.spot):
        for state, number in each.items():
            states[state] = states.get(state, 0) + number
    return ", ".join(f"{count(number, 'node')} {state}" for state, number in states.items())


def _kind_line(current: int, target: int, counts: Any) -> str:
    states = ", ".join(f"{number} {state}" for state, number in counts.items())
    aim = "" if current == target else f", on the way to {target}"
    return f"{current}{aim}{f' ({states})' if states else ''}"


def _cost_line(cost: Estimate) -> str:
    if cost.prices.free:
        return f"none: {cost.prices.source}"
    if cost.amount is None:
        return f"not known: {cost.why}"
    return f"{cost.short} with the nodes of now, estimated ({cost.prices})"


def _autoscale_line(pool: Any) -> str:
    from ..cluster.spec import recorded_size

    if pool.autoscale is None:
        return "none: the numbers are fixed"
    size = recorded_size(pool)
    text = _formula_name(size.autoscale_formula) if size is not None else "a formula"
    text += f", every {pool.autoscale.interval.total_seconds():.0f} s"
    run = pool.autoscale_run
    if run is None:
        return text
    if run.error:
        return f"{text}; FAILED at {run.moment:%H:%M:%S} UTC: {run.error}"
    # The formula's own variables are for who wrote it: --json has them.
    targets = ", ".join(part.strip() for part in run.results.split(";") if part.strip().startswith("$Target"))
    return f"{text}; last at {run.moment:%H:%M:%S} UTC: {targets}"


def _formula_name(formula: str) -> str:
    """A name says what it is; the text of a formula does not fit into a line."""
    return f"formula {formula}" if formula.isidentifier() else "a formula of your own"
