"""``joblib-azure storage``: what lies in the storage account, and what of it nobody needs any more."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .common import cluster_option, columns, count, credentials_option, emit, json_option, load_account

if TYPE_CHECKING:
    from ..service import BatchService, BlobService
    from ..storage import Stored

F = TypeVar("F", bound=Callable[..., Any])

#: What the kinds are called, in the order of the cache's way to a node.
_WORDS = {
    "buffers": "buffers",
    "files": "files for nodes",
    "environment": "environments",
    "session": "of sessions",
}
_MOST_DAYS = 36500


class Account:
    """The storage account that a command is about, and the Batch account whose sessions use it."""

    def __init__(self, cluster_file: str | None, credentials_file: str | None) -> None:
        self._config = load_account(credentials_file, cluster_file)

    @property
    def name(self) -> str:
        return self._config.storage_account

    @contextlib.contextmanager
    def services(self) -> Iterator[tuple[BlobService, BatchService]]:
        from ..cluster.connections import Connections

        with contextlib.closing(Connections(self._config)) as connections:
            yield connections.blobs, connections.batch


def _on_account(command: F) -> F:
    """Add the options that say which account is meant; the command gets an `Account` as its first argument."""

    @cluster_option
    @credentials_option
    @wraps(command)
    def wrapper(*args: Any, cluster_file: str | None, credentials_file: str | None, **kw: Any) -> Any:
        return command(Account(cluster_file, credentials_file), *args, **kw)

    return wrapper  # type: ignore[return-value]


@click.group()
def storage() -> None:
    """See what lies in the storage account, and remove what nobody needs."""


@storage.command()
@_on_account
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
@click.option("--buffers", "one_by_one", is_flag=True, help="The cached buffers one by one, the largest first.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="With --buffers: at most that many. Default: all.")
@_on_account
@json_option
def list_stored(account: Account, one_by_one: bool, limit: int | None, as_json: bool) -> None:
    """List what there is, container by container, with its state."""
    from ..storage import buffers, look

    if limit is not None and not one_by_one:
        raise click.UsageError("--limit is of --buffers: add that")
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
    shown = found[:limit]
    if as_json:
        emit(shown)
        return
    if not found:
        click.echo(f"There are no buffers in the storage account {account.name}.")
        return
    rows = [(each.name, size(each.size), f"{each.modified:%Y-%m-%d %H:%M:%S}") for each in shown]
    click.echo(columns(rows, ("buffer", "size", "last used (UTC)")))
    if len(shown) < len(found):
        rest = found[len(shown) :]
        click.echo(f"and {len(rest)} more, {size(sum(each.size for each in rest))} together")


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
@_on_account
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


def size(number: int) -> str:
    """Return bytes as a person reads them.

    Examples
    --------
    >>> size(999), size(12_345), size(3_400_000_000)
    ('999 B', '12.3 kB', '3.4 GB')
    """
    amount, units = float(number), iter(("B", "kB", "MB", "GB", "TB", "PB"))
    unit = next(units)
    for larger in units:
        if round(amount, 1) < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{number} B" if unit == "B" else f"{amount:.1f} {unit}"
