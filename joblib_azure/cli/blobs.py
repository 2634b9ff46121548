"""``joblib-azure storage list CONTAINER``, ``get`` and ``delete``: blobs by their names.

Looked at and fetched is whatever the account lets one read; deleted is only what is of joblib_azure.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import ResourceNotFoundError
from .common import ask, count, emit, json_option, offered, show_blobs, size
from .target import Account, on_account

if TYPE_CHECKING:
    from ..service import BlobItem, BlobService

# completion -------------------------------------------------------------------------------------------------


def complete_container(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a container."""
    return offered(ctx, lambda found: (each.name for each in found.blobs.containers(incomplete)))


def _complete_blob(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    container = ctx.params.get("container")
    if not container:
        return []
    return offered(ctx, lambda found: (each.name for each in found.blobs.blobs(container, incomplete)))


# looking ----------------------------------------------------------------------------------------------------


def list_blobs(account: Account, container: str, prefix: str, limit: int | None, *, as_json: bool) -> None:
    """List a container's blobs."""
    with account.services() as (blobs, _):
        found = _found(blobs, account, container, prefix)
    none = f"There are no blobs {f'that begin with {prefix!r} ' if prefix else ''}in {container}."
    show_blobs(found, limit, ("blob", "size", "modified (UTC)"), none, as_json=as_json)


def _found(blobs: BlobService, account: Account, container: str, prefix: str) -> list[BlobItem]:
    try:
        return list(blobs.blobs(container, prefix))
    except ResourceNotFoundError as exc:
        raise click.ClickException(
            f"there is no container {container!r} in the storage account {account.name}: `joblib-azure storage list` "
            "shows those of joblib_azure"
        ) from exc


def _one(blobs: BlobService, account: Account, container: str, name: str) -> BlobItem:
    # A listing, and not a look at the blob: it tells a container that is not there from a blob that is not.
    for each in _found(blobs, account, container, name):
        if each.name == name:
            return each
    raise click.ClickException(
        f"there is no blob {name!r} in {container}: `joblib-azure storage list {container}` shows its blobs. For all "
        "that begin so, write --prefix before it"
    )


# fetching ---------------------------------------------------------------------------------------------------


@click.command()
@click.argument("container", shell_complete=complete_container)
@click.argument("blob", required=False, shell_complete=_complete_blob)
@click.option("--prefix", metavar="PREFIX", help='All blobs whose names begin so, into a folder; "" for all.')
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The file, or the folder that it goes into. Default: here, by the last part of its name; with --prefix a "
    "folder named as the container.",
)
@click.option("--force", is_flag=True, help="Replace files that are there.")
@on_account
@json_option
def get(
    account: Account,
    container: str,
    blob: str | None,
    prefix: str | None,
    output: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Fetch a blob into a file, or all that begin with a prefix into a folder.

    A file is there when all of it is; one that is there already stays, unless --force is given.
    """
    from ..storage import fetch, places
    from ..storage.files import check_free

    _one_of(blob, prefix)
    with account.services() as (blobs, _):
        if blob is not None:
            item = _one(blobs, account, container, blob)
            where = [(item, _file(item, output))]
            check_free(where[0][1], force=force)
        else:
            found = _found(blobs, account, container, prefix or "")
            where = places(found, output or Path(container), force=force)
        total = sum(item.size for item, _ in where)
        try:
            with _bar(total) as moved:
                fetch(blobs, container, where, force=force, moved=moved)
        except OSError as exc:
            raise click.ClickException(f"{exc}: nothing of that file was written") from exc
    if as_json:
        emit({"container": container, "files": [{**vars(item), "path": str(path)} for item, path in where]})
        return
    target = where[0][1] if blob is not None else output or Path(container)
    number = "" if blob is not None else f"{count(len(where), 'file')}, "
    click.echo(f"{number}{size(total)} in {target}" if where else f"There are no such blobs in {container}.")


def _file(item: BlobItem, output: Path | None) -> Path:
    name = item.name.rpartition("/")[2]
    if output is not None and not output.is_dir():
        return output
    if name in ("", ".", "..") or any(each in name for each in "\\\0:"):
        raise click.UsageError(f"blob {item.name!r} gives no name of a file: name one with --output")
    return (output or Path()) / name


def _one_of(blob: str | None, prefix: str | None) -> None:
    if (blob is None) == (prefix is None):
        raise click.UsageError('name one BLOB, or all that begin alike with --prefix PREFIX (--prefix "" for all)')


@contextlib.contextmanager
def _bar(total: int) -> Iterator[Callable[[int], object]]:
    """Show on a terminal how far a transfer is."""
    if not sys.stderr.isatty():
        yield lambda size: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    shown = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*shown, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda size: progress.advance(task, size)


# deleting ---------------------------------------------------------------------------------------------------


@click.command()
@click.argument("container", shell_complete=complete_container)
@click.argument("blob", required=False, shell_complete=_complete_blob)
@click.option("--prefix", metavar="PREFIX", help="All blobs whose names begin so.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also what a job still needs, which then fails.")
@on_account
def delete(account: Account, container: str, blob: str | None, prefix: str | None, yes: bool, force: bool) -> None:
    """Delete a blob of joblib_azure, all that begin with a prefix, or a whole container.

    Of other containers nothing is deleted. `joblib-azure job delete` removes a job with all that it has, and
    `joblib-azure storage gc` what nobody has used for long.
    """
    from ..storage import remove
    from ..storage.files import check_removable

    if blob is not None and prefix is not None:
        raise click.UsageError("name one BLOB, or --prefix PREFIX, or neither for the whole container")
    with account.services() as (blobs, batch):
        check_removable(blobs, batch, container, force=force)
        names: list[str] | None = None
        if blob is not None:
            names, what = [_one(blobs, account, container, blob).name], f"blob {blob} of {container}"
        else:
            found = _found(blobs, account, container, prefix or "")
            amount = f"{count(len(found), 'blob')}, {size(sum(each.size for each in found))}"
            what = f"the container {container} ({amount})"
            if prefix is not None:
                names, what = [each.name for each in found], f"of {container} what begins with {prefix!r} ({amount})"
        if not yes:
            ask(f"Delete {what}?")
        # Somebody may have begun to use it while a person thought about it.
        check_removable(blobs, batch, container, force=force)
        number = remove(blobs, container, names)
    click.echo(f"Deleted {count(number, 'blob')}{f', and the container {container}' if names is None else ''}.")
