"""The group of commands. Each imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

import click

from .. import __version__
from .common import Commands

#: Commands by name: module beside this one, name in it, one line of help.
_COMMANDS = {
    "account": ("account", "account", "Make an account in your subscription, or remove it."),
    "cluster": ("cluster", "cluster", "Create a pool, look at it, change its size, delete it."),
    "config": ("config", "config", "Show what is set and where, or check a file."),
    "doctor": ("doctor", "doctor", "Try all that a call needs, and say what to do."),
    "init": ("init", "init", "Write cluster.json and credentials.json."),
    "job": ("job", "job", "See jobs that were submitted, collect results, end them."),
    "local": ("local", "local", "Serve an account on this machine, for many clients."),
    "storage": ("storage", "storage", "See what lies in storage, and remove what nobody needs."),
}


@click.group(cls=Commands, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="joblib-azure")
def main() -> None:
    """Run joblib and scikit-learn code on Azure Batch."""


@main.command(short_help="Compare loky and a local cluster on a grid search.")
@click.option("--nodes", default=2, show_default=True, type=click.IntRange(1), help="Nodes of the local cluster.")
@click.option("--cores-per-node", default=None, type=click.IntRange(1), help="By default the machine's, divided.")
@click.option(
    "--max-tasks-per-node", default=1, show_default=True, type=click.IntRange(1), help="Task slots of a node."
)
def demo(nodes: int, cores_per_node: int | None, max_tasks_per_node: int) -> None:
    """Run a scikit-learn grid search with loky, then on a local cluster, and compare.

    The local cluster is the project's Batch emulator and Azurite, on this machine; all of it is stopped at the
    end. The exit code is 1 where the results differ.
    """
    from ..errors import JoblibAzureError
    from .demo import run_demo

    try:
        different = run_demo(nodes, cores_per_node, max_tasks_per_node)
    except JoblibAzureError as exc:
        raise click.ClickException(str(exc)) from exc
    if different:
        lines = "\n  ".join(different)
        raise click.ClickException(f"loky and the local cluster gave different results; please report this:\n  {lines}")
