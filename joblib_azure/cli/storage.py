"""``joblib-azure storage``: what lies in the storage account, and what of it nobody needs any more."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from .blobs import complete_container, delete, get, list_blobs
from .common import columns, count, emit, json_option, show_blobs, size
from .target import Account, on_account

if TYPE_CHECKING:
    from ..storage import Stored

#: What the kinds are called, in the order of the cache's way to a node.
_WORDS = {
    "buffers": "buffers",
    "files": "files for nodes",
    "environment": "environments",
    "given": "files for calls",
    "session": "of sessions",
}
_MOST_DAYS = 36500


@click.group()
def storage() -> None:
    """See what lies in the storage account, and remove what nobody needs."""


@storage.command()
@on_account
@json_option
def usage(account: Account, as_json: bool) -> None:
    """Tell how much there is, by kind."""
    from ..storage import look

    with account.services() as (blobs, batch):
        found = look(blobs, batch)
    totals = [_total(kind, [each for each in found if each.kind == kind]) for kind in _WORDS]
    whole = _total("all", found)
    if as_json:
        emit({"account": account.name, "kinds": totals, "total": whole})
        return
    if not found:
        click.echo(_nothing(account))
        return
    rows = [
        (_WORDS.get(each["kind"], each["kind"]), each["containers"], each["blobs"], size(each["bytes"]))
        for each in [*totals, whole]
    ]
    click.echo(columns(rows, ("what", "containers", "blobs", "size")))
    left = [each for each in found if each.left_over]
    if left:
        said = f"{count(len(left), 'container')} of sessions that have died ({size(sum(each.bytes for each in left))})"
        click.echo(f"\n{said}: `joblib-azure storage gc` removes {'it' if len(left) == 1 else 'them'}.")


@storage.command(name="list")
@click.argument("container", required=False, shell_complete=complete_container)
@click.argument("prefix", required=False)
@click.option("--buffers", "one_by_one", is_flag=True, help="The cached buffers one by one, the largest first.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Of blobs: at most that many. Default: all.")
@on_account
@json_option
def list_stored(
    account: Account, container: str | None, prefix: str | None, one_by_one: bool, limit: int | None, as_json: bool
) -> None:
    """List what there is of joblib_azure, container by container, with its state.

    With CONTAINER, which may be any of the storage account, its blobs; with PREFIX those whose names begin so.
    """
    from ..storage import buffers, look

    if container is not None:
        if one_by_one:
            raise click.UsageError("--buffers lists those of one container; leave CONTAINER out, or --buffers")
        list_blobs(account, container, prefix or "", limit, as_json=as_json)
        return
    if limit is not None and not one_by_one:
        raise click.UsageError("--limit is of --buffers, and of a CONTAINER's blobs: add one of them")
    with account.services() as (blobs, batch):
        if one_by_one:
            _list_buffers(account, buffers(blobs), limit, as_json=as_json)
            return
        found = look(blobs, batch)
    if as_json:
        emit(found)
        return
    if not found:
        click.echo(_nothing(account))
        return
    rows = [
        (each.name, each.kind, each.blobs, size(each.bytes), f"{each.modified:%Y-%m-%d %H:%M:%S}", each.state)
        for each in found
    ]
    click.echo(columns(rows, ("container", "kind", "blobs", "size", "modified (UTC)", "state")))


def _list_buffers(account: Account, found: list[Any], limit: int | None, *, as_json: bool) -> None:
    none = f"There are no buffers in the storage account {account.name}."
    show_blobs(found, limit, ("buffer", "size", "last used (UTC)"), none, as_json=as_json)


@storage.command()
@click.option(
    "--older-than",
    "days",
    default=7.0,
    show_default=True,
    type=click.FloatRange(0, _MOST_DAYS),
    metavar="DAYS",
    help="Remove of the cache what nobody has used for so long.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@on_account
@json_option
def gc(account: Account, days: float, dry_run: bool, as_json: bool) -> None:
    """Remove what nobody has used for long, and what sessions that died have left behind.

    Buffers, files and environments are a cache: what is removed and needed again is stored again. The blobs of a
    session go when its job is over; those that are kept (keepBlobs) stay until their date.
    """
    from ..storage import collect

    with account.services() as (blobs, batch):
        found = collect(blobs, batch, age=timedelta(days=days), dry_run=dry_run)
    freed = sum(each.bytes for each in found.removed)
    if as_json:
        emit({"account": account.name, "dryRun": dry_run, "bytes": freed, "removed": found.removed, "left": found.left})
        return
    verb = "would go" if dry_run else "removed"
    rows = [*_rows(verb, found.removed), *_rows("left", found.left)]
    if not rows:
        click.echo(_nothing(account))
        return
    click.echo(columns(rows, ("", "container", "kind", "blobs", "size", "state")))
    number = count(sum(each.blobs for each in found.removed), "blob")
    if dry_run:
        click.echo(f"\nNothing was removed. Without --dry-run {number} would go, {size(freed)}.")
    else:
        click.echo(f"\nRemoved {number}, {size(freed)}.")


def _rows(verb: str, parts: Iterable[Stored]) -> list[tuple[object, ...]]:
    return [(verb, each.name, each.kind, each.blobs, size(each.bytes), each.state) for each in parts]


def _total(kind: str, found: Iterable[Stored]) -> dict[str, Any]:
    parts = list(found)
    return {
        "kind": kind,
        "containers": len(parts),
        "blobs": sum(each.blobs for each in parts),
        "bytes": sum(each.bytes for each in parts),
    }


def _nothing(account: Account) -> str:
    return f"There is nothing of joblib_azure in the storage account {account.name}."


storage.add_command(get)
storage.add_command(delete)
