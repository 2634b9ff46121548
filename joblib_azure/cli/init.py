"""``joblib-azure init``: asks for the account and the pool, or takes flags, and writes their two files.

::

    flags ─► environment ─► (on a terminal) questions ─► checked by the configuration's own models
                                                            └─► .gitignore ─► credentials.json ─► cluster.json

Nothing is written before all is checked, and each file at once; the line in .gitignore first, so that the secrets
are never there without it. A file that is there is kept, so that a run that was killed is repeated as it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import ConfigurationError
from .common import (
    CREDENTIALS_FILE,
    CREDENTIALS_VARIABLE,
    Bounds,
    Interrupted,
    as_file,
    bounds_line,
    cluster_option,
    cluster_path,
    columns,
    count,
    credentials_option,
    ignore_in_git,
    on_terminal,
    write_file,
)
from .questions import ACCOUNT_SETTINGS, DEFAULT_NODES, DEFAULT_SIZE, account_values, flag_of, pool_flags, pool_values


@click.command()
@click.option("--name", help="Name of the pool. Default: this folder's name.")
@click.option("--vm-size", help=f"Azure's name of the nodes' size. Default: {DEFAULT_SIZE}.")
@click.option(
    "--dedicated-nodes",
    "--nodes",
    "dedicated_nodes",
    type=Bounds(),
    help=f"Dedicated nodes. Default: 0:{DEFAULT_NODES}, or 0 beside spot nodes.",
)
@click.option("--spot-nodes", type=Bounds(), help="Spot nodes: cheaper, and may be preempted. Default: 0.")
@click.option("--max-tasks-per-node", metavar="N|cores", help="Task slots of a node. Default: 1.")
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Any other setting of the cluster, for example environment.offline=true or python=python3.12.",
)
@click.option("--batch-account", help="Name of the Batch account. Default: what its URL begins with.")
@click.option("--batch-endpoint", metavar="URL", help="URL of the Batch account.")
@click.option("--batch-key", help="Its key. Better: AZURE_BATCH_ACCESS_KEY, since others can see a command line.")
@click.option("--storage-connection-string", metavar="TEXT", help="Better: AZURE_STORAGE_CONNECTION_STRING.")
@click.option("--storage-account", help="Name of the storage account, in place of its connection string.")
@click.option("--storage-key", help="Its key. Better: AZURE_STORAGE_KEY.")
@click.option("--storage-endpoint", metavar="URL", help="URL of its blobs, where it is not the usual one.")
@click.option("--entra", is_flag=True, help="No keys: sign in through Entra (az login, a managed identity, …).")
@cluster_option
@credentials_option
@click.option("--force", is_flag=True, help="Write files anew that are there.")
def init(cluster_file: str | None, credentials_file: str | None, entra: bool, force: bool, **flags: Any) -> None:
    """Write cluster.json and credentials.json.

    Asks on a terminal for what the flags and the variables AZURE_BATCH_… and AZURE_STORAGE_… do not say. Files that are
    there are kept. The credentials can be read by you alone, and git is told to leave them out.
    """
    cluster = cluster_path(cluster_file)
    credentials = Path(credentials_file or os.environ.get(CREDENTIALS_VARIABLE) or CREDENTIALS_FILE)
    account = pool = None
    try:
        if force or not credentials.exists():
            account = account_values(flags, entra=entra, asked=on_terminal())
        else:
            given = {setting.key: flag_of(setting, flags) for setting in ACCOUNT_SETTINGS}
            _check_kept(credentials, {key: value for key, value in given.items() if value}, ["batchKey"] * entra)
        if force or not cluster.exists():
            pool = pool_values(flags, asked=on_terminal())
        else:
            _check_kept(cluster, pool_flags(flags))
    except (KeyboardInterrupt, click.Abort):
        raise Interrupted("Nothing was written.") from None
    _check(cluster, pool, credentials, account)
    done: list[tuple[object, ...]] = []
    try:
        ignored = ignore_in_git(credentials)
        done.append(("wrote" if ignored else "kept", ".gitignore", f"leaves {credentials.name} out"))
        if account is not None:
            write_file(credentials, as_file(account), private=True)
        done.append((_verb(account), credentials, _about_account(credentials)))
        if pool is not None:
            write_file(cluster, as_file(pool))
        done.append((_verb(pool), cluster, _about_pool(cluster)))
    except OSError as exc:
        raise click.ClickException(f"cannot write {exc.filename}: {exc.strerror}") from exc
    click.echo(columns(done))
    _warn_of_variables(account)
    click.echo("\nNext: joblib-azure doctor")


def _verb(written: object) -> str:
    return "kept" if written is None else "wrote"


def _check_kept(path: Path, wanted: Mapping[str, Any], refused: Sequence[str] = ()) -> None:
    """Refuse flags that say something else than a file that is kept: they would be lost without a word."""
    from ..config.reading import read_json

    present = read_json(path)
    other = [key for key in wanted if not _within({key: wanted[key]}, present)] + [
        key for key in refused if present.get(key)
    ]
    if other:
        raise click.UsageError(f"{path} is there and has another {', '.join(other)}: add --force to write it anew")


def _within(part: Any, whole: Any) -> bool:
    if isinstance(part, Mapping):
        return isinstance(whole, Mapping) and all(key in whole and _within(part[key], whole[key]) for key in part)
    return bool(part == whole)


def _check(cluster: Path, pool: Mapping[str, Any] | None, credentials: Path, account: Mapping[str, Any] | None) -> None:
    """Raise all that is wrong with either file, at once."""
    from ..config import AccountConfig, ClusterConfig

    checks: Sequence[Callable[[], object]] = (
        lambda: AccountConfig.load(credentials) if account is None else AccountConfig.read(account, str(credentials)),
        lambda: ClusterConfig.load(cluster) if pool is None else ClusterConfig.read(pool, str(cluster)),
    )
    errors = []
    for check in checks:
        try:
            check()
        except ConfigurationError as exc:
            errors.append(str(exc))
    if errors:
        raise ConfigurationError("\n".join(errors))


# files ------------------------------------------------------------------------------------------------------


def _about_account(path: Path) -> str:
    from ..config import AccountConfig

    account = AccountConfig.load(path)
    how = "shared keys" if account.batch_key is not None else "Entra"
    return f"account {account.batch_account}, {how}; readable by you alone"


def _about_pool(path: Path) -> str:
    from ..config import ClusterConfig

    config = ClusterConfig.load(path)
    return (
        f"pool {config.name}: {bounds_line(config.pool_size)} of {config.vm_size} ({count(config.cores, 'core')}), "
        f"{count(config.max_tasks_per_node, 'task slot')} a node"
    )


def _warn_of_variables(account: Mapping[str, Any] | None) -> None:
    """Variables go before the file: say so where they would say something else."""
    if account is None:
        return
    other = [
        setting.variable
        for setting in ACCOUNT_SETTINGS
        if setting.variable
        and os.environ.get(setting.variable)
        and os.environ[setting.variable] != account.get(setting.key)
    ]
    if other:
        click.echo(f"\nNote: {', '.join(other)} in the environment goes before what the file says.")
