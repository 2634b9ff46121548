"""``joblib-azure doctor``: tries one after the other what a Parallel call needs, and says what to do about what fails.

::

    configuration, account ─► batch ─► quota, image ─► storage ─► environment ─► pool ─► task: there and back

It goes on after a failure with the checks that still make sense. Where the pool is not there it makes a small one for
its task, under a name of its own, and removes it again; one left by a doctor that was killed the next command removes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import click

from ..errors import AuthenticationError, ClusterError, JoblibAzureError
from .common import (
    Interrupted,
    bounds_line,
    cluster_option,
    cluster_path,
    count,
    credentials_option,
    emit,
    json_option,
    load_account,
    load_cluster,
)

if TYPE_CHECKING:
    from ..cluster import Cluster
    from ..config import AccountConfig, ClusterConfig

#: What a check may say. A note is no failure: something that cannot be seen, or is worth knowing.
OK, NOTE, FAILED, SKIPPED = "ok", "note", "failed", "skipped"
#: The blob that goes to storage and back, in a container that every session uses.
_BLOB = "doctor"
#: Hours that a pool of a fixed size may be without work: a night, so that a lunch is no reason to lose it.
_IDLE = 12.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found.

    Parameters
    ----------
    check, state, message : str
    action : str
        What to do about it.
    seconds : float
        That the check took.
    """

    check: str
    state: str
    message: str
    action: str = ""
    seconds: float = 0.0


class Noted(Exception):
    """A check that found nothing wrong, and something to know."""


class Doctor:
    """The checks, in order; each uses what those before it have found.

    Parameters
    ----------
    cluster_file, credentials_file : str or None
        As given.
    task : bool
        Whether a task is run.
    """

    #: A check's name, the checks that it cannot do without, what to do where it fails and its error does not say.
    CHECKS = (
        ("configuration", (), "`joblib-azure init` writes the file, `joblib-azure config show` explains it"),
        ("account", (), "`joblib-azure init` writes the file, `joblib-azure config show` explains it"),
        ("batch", ("account",), "the portal shows name, URL and keys: Batch account, Keys"),
        ("quota", ("configuration", "batch"), ""),
        ("image", ("configuration", "batch"), "leave image and nodeAgentSku out for the default, Ubuntu 24.04"),
        ("storage", ("account",), "the portal shows the connection string: storage account, Access keys"),
        ("environment", ("configuration",), "change pythonPackages or environment in the cluster's file"),
        ("pool", ("configuration", "batch"), "`joblib-azure cluster show` and `joblib-azure cluster nodes` say more"),
        (
            "task",
            ("configuration", "batch", "image", "storage", "environment", "pool"),
            "`joblib-azure cluster show` and `joblib-azure cluster nodes` say more",
        ),
    )

    def __init__(self, cluster_file: str | None, credentials_file: str | None, *, task: bool = True) -> None:
        self._cluster_file, self._credentials_file, self._with_task = cluster_file, credentials_file, task
        self._failed: set[str] = set()
        self._config: ClusterConfig | None = None
        self._account: AccountConfig | None = None
        self._cluster: Cluster | None = None

    def run(self) -> Iterator[Finding]:
        """Yield what each check finds, as it finds it."""
        try:
            for name, needs, action in self.CHECKS:
                if name == "task" and not self._with_task:
                    continue
                yield self._run(name, needs, action)
        finally:
            if self._cluster is not None:
                self._cluster.close()

    def _run(self, name: str, needs: tuple[str, ...], action: str) -> Finding:
        lacking = [each for each in needs if each in self._failed]
        if lacking:
            self._failed.add(name)
            return Finding(check=name, state=SKIPPED, message=f"needs {', '.join(lacking)}")
        check: Callable[[], str] = getattr(self, f"_check_{name}")
        begun = time.monotonic()
        state, message = OK, ""
        try:
            message = check()
        except Noted as note:
            state, message = NOTE, str(note)
        except JoblibAzureError as exc:
            state, message = FAILED, str(exc)
            self._failed.add(name)
        seconds = round(time.monotonic() - begun, 3)
        return Finding(
            check=name, state=state, message=message, action=action if state == FAILED else "", seconds=seconds
        )

    # what the checks share ------------------------------------------------------------------------------

    @property
    def config(self) -> ClusterConfig:
        if self._config is None:
            self._config = load_cluster(self._cluster_file)
        return self._config

    @property
    def account(self) -> AccountConfig:
        if self._account is None:
            self._account = load_account(self._credentials_file, self._cluster_file)
        return self._account

    @property
    def cluster(self) -> Cluster:
        """The account's services; without a configuration they are asked all the same."""
        if self._cluster is None:
            from ..cluster import Cluster
            from ..config import ClusterConfig

            config = ClusterConfig(name="unknown", vm_size="Standard_D1_v2") if self._no_config else self.config
            self._cluster = Cluster(config, self.account)
        return self._cluster

    @property
    def _no_config(self) -> bool:
        return "configuration" in self._failed

    # the checks -----------------------------------------------------------------------------------------

    def _check_configuration(self) -> str:
        config = self.config
        return (
            f"{cluster_path(self._cluster_file)}: pool {config.name}, {bounds_line(config.pool_size)} of "
            f"{config.vm_size}, {count(config.max_tasks_per_node, 'task slot')} a node"
        )

    def _check_account(self) -> str:
        account = self.account
        how = "shared key" if account.batch_key is not None else "Entra"
        storage = "shared key" if account.storage_key is not None else "Entra"
        return f"Batch account {account.batch_account} ({how}), storage account {account.storage_account} ({storage})"

    def _check_batch(self) -> str:
        pools = self.cluster.batch.pools()
        return f"signed in; {count(len(pools), 'pool')} on the account"

    def _check_quota(self) -> str:
        """The service tells its quotas to Azure Resource Manager alone; what is asked of them can be told always."""
        from ..config.sizes import cores_of

        size, cores = self.config.pool_size, self.config.cores
        wanted = {"dedicated": size.dedicated_nodes.max * cores, "spot": size.spot_nodes.max * cores}
        others = dict.fromkeys(wanted, 0)
        for pool in self.cluster.batch.pools():
            if pool.id.lower() != self.config.name.lower():
                try:
                    each = cores_of(pool.vm_size)
                except ValueError:
                    each = 1
                others["dedicated"] += pool.current_dedicated * each
                others["spot"] += pool.current_spot * each
        try:
            told = self.cluster.batch_account()
        except AuthenticationError:
            told = None
        asks = " and ".join(
            f"{number} {kind} core(s) (other pools have {others[kind]} now)"
            for kind, number in wanted.items()
            if number
        )
        if told is None or told.dedicated_cores is told.spot_cores is None:
            raise Noted(
                "cannot be seen with shared keys, nor without the right to read the account. The pool may take "
                f"{asks}: the portal shows what the account may (Batch account, Quotas)"
            )
        allowed = {"dedicated": told.dedicated_cores, "spot": told.spot_cores}
        for kind, limit in allowed.items():
            if limit is not None and wanted[kind] + others[kind] > limit:
                raise ClusterError(
                    f"the account may have {limit} {kind} cores and the pool asks for {wanted[kind]} beside "
                    f"{others[kind]} of other pools: ask for more in the portal (Batch account, Quotas), or lower "
                    f"poolSize.{kind}Nodes.max"
                )
        return f"{asks} of {allowed['dedicated']} dedicated and {allowed['spot']} spot"

    def _check_image(self) -> str:
        from ..cluster.images import resolve_image

        if self.config.custom_image is not None:
            raise Noted(f"an image of your own with {self.config.node_agent_sku}: only a node can tell")
        image, agent = resolve_image(self.config, self.cluster.batch.supported_images())
        return f"{image} with {agent}"

    def _check_storage(self) -> str:
        from datetime import timedelta
        from uuid import uuid4

        from ..errors import ServiceError
        from ..storage import BUFFERS

        blobs, sent, begun = self.cluster.blobs, uuid4().hex.encode(), time.monotonic()
        blobs.create_container(BUFFERS)
        blobs.put(BUFFERS, _BLOB, sent)
        found = blobs.read(BUFFERS, _BLOB)
        if found != sent:
            raise ServiceError(f"storing a blob: {len(found)} other bytes came back; somebody else writes there too")
        taken = time.monotonic() - begun
        # Nodes read with a SAS, which an identity may be refused although it may read itself.
        blobs.blob_url(BUFFERS, _BLOB, timedelta(minutes=5))
        return f"a blob went there and back in {taken:.2f} s, and nodes can be given a SAS"

    def _check_environment(self) -> str:
        from ..environment import plan

        config = self.config
        account = self.account if "account" not in self._failed else None
        found = plan(config, account)
        if found.lock is None:
            where = "the container image" if config.container_image is not None else "the nodes"
            return f"{where} have all that calls import, with {config.python}: nothing is installed"
        return (
            f"Python {found.lock.python} with {count(len(found.lock.files), 'package')}, as here; what your script "
            "imports is added when it runs"
        )

    def _check_pool(self) -> str:
        from .doctor_pool import examine
        from .leftovers import doctors_pool, remove_doctors_pool

        if remove_doctors_pool(self.cluster):
            name = doctors_pool(self.config.name)
            click.echo(f"The pool {name}, left by a doctor that was stopped, is being deleted.", err=True)
        return examine(self.cluster)

    def _check_task(self) -> str:
        from .doctor_pool import run_task

        return run_task(self.cluster)


@click.command()
@cluster_option
@credentials_option
@click.option(
    "--task/--no-task", default=True, help="Run one task there and back, which needs a node. Default: --task."
)
@click.option("--leaks", is_flag=True, help="Find what nobody uses any more, and remove it: nothing else is done.")
@click.option("--yes", "-y", is_flag=True, help="With --leaks: do not ask.")
@click.option(
    "--idle",
    type=click.FloatRange(0.25, 8760),
    metavar="HOURS",
    help="With --leaks: for which the nodes of a pool that does not scale must have had nothing to do. "
    f"Default: {_IDLE:g}.",
)
@json_option
def doctor(
    cluster_file: str | None,
    credentials_file: str | None,
    task: bool,
    leaks: bool,
    yes: bool,
    idle: float | None,
    as_json: bool,
) -> None:
    """Check account, image, storage, environment and pool, then run one task.

    Each line says ok, or what to do. Where the pool is not there, a small one is made for the task and deleted again.
    The exit code is 1 where something failed.

    With --leaks it looks for pools, jobs, blobs and local processes that nobody uses any more, says of each why, since
    when and what it costs, and removes it once you agree; the exit code is 1 where something is left.
    """
    if leaks:
        from datetime import timedelta

        from .leaks import run

        hours = timedelta(hours=_IDLE if idle is None else idle)
        run(cluster_file, credentials_file, idle=hours, yes=yes, as_json=as_json)
        return
    if yes or idle is not None:
        raise click.UsageError("--yes and --idle are of --leaks: add that")
    found = []
    width = max(len(name) for name, _, _ in Doctor.CHECKS)
    try:
        for finding in Doctor(cluster_file, credentials_file, task=task).run():
            found.append(finding)
            if not as_json:
                _show(finding, width)
    except KeyboardInterrupt:
        raise Interrupted("What the doctor had made is removed, now or by the next `joblib-azure doctor`.") from None
    failed = [finding.check for finding in found if finding.state == FAILED]
    if as_json:
        emit({"ok": not failed, "checks": [asdict(finding) for finding in found]})
    elif failed:
        click.echo(f"\nNot well: {', '.join(failed)}. Run `joblib-azure doctor` again when that is done.")
    else:
        click.echo("\nAll is well. Next: joblib-azure cluster create")
    if failed:
        raise SystemExit(1)


def _show(finding: Finding, width: int) -> None:
    first, *more = finding.message.splitlines() or [""]
    click.echo(f"{finding.state:<7}  {finding.check:<{width}}  {first}")
    indent = " " * (width + 11)
    for line in more:
        click.echo(f"{indent}{line}")
    if finding.action:
        click.echo(f"{indent}→ {finding.action}")
