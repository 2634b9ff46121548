"""``joblib-azure account``: makes an account where there is none, writes its credentials.json, and removes it again.

Setup is a row of PUTs and writes the file last: killed half-way it is run again. What teardown is about it reads from
that file, where setup has left the accounts' resource ids.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigurationError
from .common import (
    CREDENTIALS_FILE,
    CREDENTIALS_VARIABLE,
    Interrupted,
    as_file,
    columns,
    emit,
    ignore_in_git,
    on_terminal,
    write_file,
)

if TYPE_CHECKING:
    from ..service.provisioning import AccountPlan, Provisioning

_RESOURCE_ID = re.compile(
    r"/subscriptions/(?P<subscription>[^/]+)/resourceGroups/(?P<group>[^/]+)/providers/[^/]+/[^/]+/(?P<name>[^/]+)",
    re.IGNORECASE,
)
_NAME = re.compile(r"[a-z0-9]{3,24}")
_FILE = click.option(
    "--credentials",
    "credentials_file",
    metavar="FILE",
    help=f"The account's file. Default: what {CREDENTIALS_VARIABLE} names, then ./{CREDENTIALS_FILE}.",
)
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Print what would be done, ask nobody and do nothing.")
_JSON = click.option("--json", "as_json", is_flag=True, help="With --dry-run: write JSON, for programs.")


@click.group()
def account() -> None:
    """Make a Batch account and a storage account in your subscription, or remove them."""


@account.command()
@click.option("--subscription", envvar="AZURE_SUBSCRIPTION_ID", help="Its id. Default: AZURE_SUBSCRIPTION_ID.")
@click.option("--location", help="Azure's name of the region, for example westeurope.")
@click.option("--resource-group", default="joblib-azure", show_default=True)
@click.option("--batch-account", help="Its name: 3 to 24 lower-case letters and digits. Default: made up.")
@click.option("--storage-account", help="The same for the storage account.")
@click.option("--entra", is_flag=True, help="An account without shared keys: everybody signs in through Entra.")
@click.option("--cloud", default="public", show_default=True, type=click.Choice(["public", "china", "usgov"]))
@_FILE
@click.option("--force", is_flag=True, help="Write a file anew that is there.")
@_DRY_RUN
@_JSON
def setup(
    subscription: str | None,
    location: str | None,
    resource_group: str,
    batch_account: str | None,
    storage_account: str | None,
    entra: bool,
    cloud: str,
    credentials_file: str | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Make the resource group, the storage account and the Batch account, and write credentials.json.

    You sign in as `az login` has you. It may be run again: what is there stays. The accounts themselves cost nothing;
    nodes and stored blobs do.
    """
    plan = _plan(subscription, location, resource_group, batch_account, storage_account, entra=entra)
    path = _path(credentials_file)
    if dry_run:
        _show_plan(plan, path, as_json=as_json)
        return
    kept = _check_kept(path, plan, force=force)
    with _provisioning(plan, cloud) as provisioning:
        try:
            made = provisioning.setup()
        except KeyboardInterrupt:
            raise Interrupted(
                f"The resource group {plan.resource_group} may hold a part of it.\n"
                "  joblib-azure account setup …    with the same options goes on\n"
                f"  az group delete --name {plan.resource_group}    removes all that is in it"
            ) from None
    values = {
        "batchAccount": plan.batch_account,
        "batchEndpoint": made.batch_endpoint,
        "batchResourceId": plan.batch_resource_id,
        "batchKey": "" if entra else made.batch_key,
        "storageAccount": plan.storage_account,
        "storageEndpoint": made.storage_endpoint,
        "storageResourceId": plan.storage_resource_id,
        "storageKey": "" if entra else made.storage_key,
        "cloud": cloud,
    }
    if not kept:
        try:
            ignore_in_git(path)
            write_file(path, as_file({key: value for key, value in values.items() if value}), private=True)
        except OSError as exc:
            raise click.ClickException(
                f"cannot write {exc.filename}: {exc.strerror}. The accounts are there: run this again with "
                "--credentials FILE"
            ) from exc
    rows = [
        ("made", f"Batch account {plan.batch_account}", made.batch_endpoint),
        ("made", f"storage account {plan.storage_account}", made.storage_endpoint),
        ("kept" if kept else "wrote", str(path), "readable by you alone"),
    ]
    click.echo(columns(rows))
    if entra:
        click.echo(
            "\nGive those who use it the roles Azure Batch Data Contributor on the Batch account, and\n"
            "Storage Blob Data Contributor on the storage account."
        )
    click.echo("\nNext: joblib-azure init for cluster.json, then joblib-azure doctor")


@account.command()
@_FILE
@click.option("--yes", is_flag=True, help="Do not ask.")
@_DRY_RUN
@_JSON
def teardown(credentials_file: str | None, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Remove the accounts that setup has made, with all pools, jobs and blobs in them.

    Which ones, the credentials file says. The resource group goes too where setup made it and nothing else is in it.
    """
    from ..config import AccountConfig
    from ..service.provisioning import AccountPlan

    path = _path(credentials_file)
    found = AccountConfig.load(path)
    batch, storage = (
        _RESOURCE_ID.fullmatch(each or "") for each in (found.batch_resource_id, found.storage_resource_id)
    )
    if batch is None or storage is None or batch["group"].lower() != storage["group"].lower():
        raise ConfigurationError(
            f"{path} is not of an account that `joblib-azure account setup` has made: it has no batchResourceId and "
            "storageResourceId of one resource group. Nothing is removed"
        )
    plan = AccountPlan(
        subscription=batch["subscription"],
        resource_group=batch["group"],
        location="",
        batch_account=batch["name"],
        storage_account=storage["name"],
    )
    if dry_run:
        things = [f"Batch account {plan.batch_account}", f"storage account {plan.storage_account}"]
        group = f"resource group {plan.resource_group}"
        if as_json:
            emit({"removes": things, "removesWhereMadeBySetupAndEmpty": group})
            return
        click.echo("Would remove, with all that is in them:\n  " + "\n  ".join(things))
        click.echo(f"and, where setup made it and nothing else is in it, the {group}.\n\nNothing was removed.")
        return
    with _provisioning(plan, found.cloud) as provisioning:
        belongings = provisioning.belongings()
        if not belongings:
            click.echo(f"Nothing of it is there any more. {path} stays: remove it by hand.")
            return
        if not yes:
            click.echo("To be removed, with all that is in them:\n  " + "\n  ".join(belongings))
            if not on_terminal():
                raise click.UsageError("Nobody is here to be asked: add --yes")
            click.confirm("Remove them?", abort=True)
        try:
            provisioning.teardown()
        except KeyboardInterrupt:
            raise Interrupted("A part of it may be removed: `joblib-azure account teardown` goes on.") from None
    click.echo(f"Removed: {', '.join(belongings)}. {path} stays: remove it by hand.")


def _plan(
    subscription: str | None,
    location: str | None,
    group: str,
    batch: str | None,
    storage: str | None,
    *,
    entra: bool,
) -> AccountPlan:
    from ..service.provisioning import AccountPlan

    wrong = []
    if not subscription:
        wrong.append("--subscription or AZURE_SUBSCRIPTION_ID: `az account show --query id -o tsv` prints it")
    if not location:
        wrong.append("--location: `az account list-locations -o table` lists them, for example westeurope")
    # The same for the same place, so that a setup that was killed finds what it has made.
    made_up = f"joblib{hashlib.sha256(f'{subscription}/{group}'.lower().encode()).hexdigest()[:12]}"
    names = {"--batch-account": batch or made_up, "--storage-account": storage or made_up}
    wrong += [
        f"{flag} = {name!r}: expected 3 to 24 lower-case letters and digits"
        for flag, name in names.items()
        if not _NAME.fullmatch(name)
    ]
    if not re.fullmatch(r"[\w().-]{1,89}[\w()-]", group):
        wrong.append(f"--resource-group = {group!r}: expected letters, digits, '_', '-', '.' and brackets, at most 90")
    if wrong:
        raise click.UsageError("not known, or wrong:\n  " + "\n  ".join(wrong))
    return AccountPlan(
        subscription=subscription or "",
        resource_group=group,
        location=location or "",
        batch_account=names["--batch-account"],
        storage_account=names["--storage-account"],
        shared_keys=not entra,
    )


def _path(given: str | None) -> Path:
    return Path(given or os.environ.get(CREDENTIALS_VARIABLE) or CREDENTIALS_FILE)


def _check_kept(path: Path, plan: AccountPlan, *, force: bool) -> bool:
    """Whether the file is there and of this account; refuse one of another before anything is made."""
    from ..config.reading import read_json

    if force or not path.exists():
        return False
    if read_json(path).get("batchResourceId") == plan.batch_resource_id:
        return True
    raise click.UsageError(
        f"{path} is there, and is of another account: add --force, or name another with --credentials"
    )


@contextlib.contextmanager
def _provisioning(plan: AccountPlan, cloud: str) -> Iterator[Provisioning]:
    from ..config import CLOUDS
    from ..service.credentials import token_credential
    from ..service.provisioning import Provisioning

    def tell(line: str) -> None:
        click.echo(f"{line} …", err=True)

    where = CLOUDS[cloud]
    credential = token_credential(authority=where.authority)
    with contextlib.closing(Provisioning(plan, credential, endpoint=where.management, notify=tell)) as provisioning:
        yield provisioning


def _show_plan(plan: AccountPlan, path: Path, *, as_json: bool) -> None:
    bodies: dict[str, Any] = dict(plan.bodies())
    if as_json:
        emit({"put": bodies, "writes": str(path)})
        return
    for resource, body in bodies.items():
        click.echo(f"PUT {resource}\n{json.dumps(body, indent=2)}\n")
    click.echo(f"Then {path} is written. Nothing was made.")
