"""``joblib-azure doctor --leaks``: what nobody uses any more, of this account and of this machine, and its removal.

::

    account ─► jobs ─► pools ─► storage ─┐
    this machine ─► processes, folders ──┴─► shown, each with its reason ─► asked for, or --yes ─► removed

What is found is what can be shown to be unused; what only may be is named as left alone, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

from ..errors import ConfigurationError, JoblibAzureError
from .common import Interrupted, count, emit, load_account, on_terminal, size

if TYPE_CHECKING:
    from ..config import AccountConfig


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Something that nobody uses any more.

    Parameters
    ----------
    kind : str
        ``job``, ``floor``, ``pool``, ``blobs``, ``processes`` or ``folder``.
    name, why : str
    since : datetime, optional
        Since when nobody uses it, as far as is known.
    removal : str
        What would be done.
    nodes : int
        That it keeps: node-hours an hour.
    bytes : int
        That it takes in storage, or on this machine's disk.
    remove : callable
        Does it. What has come into use since it was found stays.
    """

    kind: str
    name: str
    why: str
    removal: str
    since: datetime | None = None
    nodes: int = 0
    bytes: int = 0
    remove: Callable[[], object] = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Spared:
    """Something that looks unused, and is left alone; `nodes` as in `Leak`."""

    kind: str
    name: str
    why: str
    nodes: int = 0


@dataclass(kw_only=True)
class Findings:
    """What was found; empty at first."""

    leaks: list[Leak] = field(default_factory=list)
    spared: list[Spared] = field(default_factory=list)


def run(cluster_file: str | None, credentials_file: str | None, *, idle: timedelta, yes: bool, as_json: bool) -> None:
    """Find what is left, show it, and remove what the user agrees to.

    Parameters
    ----------
    cluster_file, credentials_file : str or None
        As given.
    idle : timedelta
        For which the nodes of a pool that does not scale must have had nothing to do.
    yes : bool
        Agree to all.
    as_json : bool

    Raises
    ------
    SystemExit
        With 1 where something is left.
    ConfigurationError, ServiceError
    """
    from ..cluster.connections import Connections
    from .leaks_account import examine
    from .leaks_here import look_here

    found = Findings()
    notes: list[str] = []
    account = _account(cluster_file, credentials_file, notes)
    connections = None if account is None else Connections(account)
    try:
        if connections is not None:
            examine(connections.batch, connections.blobs, found, idle=idle)
        look_here(found)
        if not as_json:
            _show(found, account, notes)
        removed, failed = _remove(found.leaks, yes=yes, as_json=as_json)
    finally:
        if connections is not None:
            connections.close()
    left = [leak for leak in found.leaks if leak not in removed]
    if as_json:
        emit(
            {
                "account": None if account is None else account.batch_account,
                "leaks": found.leaks,
                "nodeHoursPerHour": sum(leak.nodes for leak in found.leaks),
                "spared": found.spared,
                "removed": [f"{leak.kind} {leak.name}" for leak in removed],
                "failed": failed,
                "notes": notes,
            }
        )
    elif left and not (failed or on_terminal()):
        click.echo("\nNothing was removed: `joblib-azure doctor --leaks --yes` does that.")
    if left:
        raise SystemExit(1)


def _account(cluster_file: str | None, credentials_file: str | None, notes: list[str]) -> AccountConfig | None:
    try:
        return load_account(credentials_file, cluster_file)
    except ConfigurationError as exc:
        if cluster_file or credentials_file:
            raise
        notes.append(f"no account was looked at: {exc}")
        return None


def _show(found: Findings, account: AccountConfig | None, notes: Iterable[str]) -> None:
    for note in notes:
        click.echo(f"Note: {note}", err=True)
    where = "this machine" if account is None else f"the account {account.batch_account} and this machine"
    if found.leaks:
        click.echo(f"Left on {where}, and used by nobody:")
    for leak in found.leaks:
        _show_leak(leak)
    if found.spared:
        click.echo(f"{chr(10) if found.leaks else ''}Left alone:")
    for each in found.spared:
        click.echo(f"  {each.kind} {each.name}: {each.why}{_cost(each.nodes)}")
    if not found.leaks:
        click.echo(f"{chr(10) if found.spared else ''}Nothing is left on {where} that nobody uses.")
        return
    nodes = sum(leak.nodes for leak in found.leaks)
    click.echo(f"\n{count(len(found.leaks), 'thing')} left{_cost(nodes)}.")


def _show_leak(leak: Leak) -> None:
    since = f", since {leak.since:%Y-%m-%d %H:%M} UTC" if leak.since is not None else ""
    taken = f"; {size(leak.bytes)}" if leak.bytes else ""
    click.echo(f"  {leak.kind} {leak.name}: {leak.why}{since}{taken}{_cost(leak.nodes)}")
    click.echo(f"    → {leak.removal}")


def _cost(nodes: int) -> str:
    return f"; costs {count(nodes, 'node-hour')} an hour" if nodes else ""


def _remove(leaks: Iterable[Leak], *, yes: bool, as_json: bool) -> tuple[list[Leak], list[str]]:
    removed: list[Leak] = []
    failed: list[str] = []
    ask = not yes and not as_json and on_terminal()
    if not (yes or ask):
        return removed, failed
    if not as_json:
        click.echo()
    for leak in leaks:
        named = f"{leak.kind} {leak.name}"
        try:
            if ask and not click.confirm(f"{leak.removal[0].upper()}{leak.removal[1:]} ({named})?"):
                continue
            leak.remove()
        except JoblibAzureError as exc:
            failed.append(f"{named}: {exc}")
            click.echo(f"Warning: {failed[-1]}", err=True)
            continue
        except (KeyboardInterrupt, click.Abort):
            said = ", ".join(f"{each.kind} {each.name}" for each in removed)
            raise Interrupted(f"Removed so far: {said or 'nothing'}.") from None
        removed.append(leak)
        if not as_json:
            click.echo(f"Done: {named}.")
    return removed, failed
