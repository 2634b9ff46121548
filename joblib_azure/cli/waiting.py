"""Shows a wait for nodes: a table that changes on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from .common import count

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..cluster.waiting import Waiting
    from ..service import NodeState

#: Nodes that are shown one by one; more than a screen of them tells nobody anything.
_SHOWN = 16
#: Seconds after which a wait without any change says that it goes on.
_SILENCE = 60.0


class NodeProgress:
    """A progress callback of a wait for nodes, and the context in which it draws.

    It writes to stderr, so that what a command says at its end can be piped.
    """

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        self._notes: frozenset[str] = frozenset()
        self._line = ""
        self._told = 0.0
        self._live: Any = None
        self._begun = time.monotonic()

    def __enter__(self) -> NodeProgress:
        self._begun = time.monotonic()
        if sys.stderr.isatty():
            # Late: 0.1 s that a program's pipe does not pay.
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True, highlight=False), transient=True, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, now: Waiting) -> None:
        """Show where the wait is."""
        if self._live is not None:
            self._live.update(_table(now))
        else:
            self._tell(now)

    def _tell(self, now: Waiting) -> None:
        lines = list(self._changes(now.nodes))
        head = summary(now)
        if head != self._line or time.monotonic() - self._told > _SILENCE:
            lines.insert(0, head)
        lines += sorted(frozenset(now.notes) - self._notes)
        self._line, self._notes = head, self._notes | frozenset(now.notes)
        for line in lines:
            self._told = time.monotonic()
            click.echo(f"{now.elapsed:5.0f} s  {line}", err=True)

    def _changes(self, nodes: Sequence[NodeState]) -> Iterator[str]:
        changed = [node for node in nodes if self._states.get(node.id) != node.state]
        self._states = {node.id: node.state for node in nodes}
        if len(changed) > _SHOWN:
            yield f"{count(len(changed), 'node')} changed: {_counted(nodes)}"
            return
        for node in changed:
            errors = f": {'; '.join(node.errors)}" if node.errors else ""
            yield f"node {node.id} is {node.state}{errors}"


def summary(now: Waiting) -> str:
    """Say in a line what is waited for and how far it is."""
    if not now.wanted:
        return now.doing
    return f"{now.doing}: {now.ready} of {now.wanted} ready"


def _counted(nodes: Sequence[NodeState]) -> str:
    return ", ".join(f"{number} {state}" for state, number in Counter(node.state for node in nodes).most_common())


def _table(now: Waiting) -> RenderableType:
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    for node in now.nodes[:_SHOWN]:
        kind = "dedicated" if node.dedicated else "spot"
        # What a service says may hold brackets; it is no markup.
        table.add_row(f"  {node.id}", kind, node.state, escape("; ".join(node.errors)))
    rest = now.nodes[_SHOWN:]
    lines: list[RenderableType] = [Text(f"{now.elapsed:.0f} s of at most {now.timeout:.0f} s  {summary(now)}"), table]
    if rest:
        lines.append(Text(f"  and {count(len(rest), 'more node')}: {_counted(rest)}"))
    lines += [Text(f"  note: {note}") for note in now.notes]
    return Group(*lines)


@contextmanager
def shown() -> Iterator[NodeProgress]:
    """Draw for the time of a block."""
    with NodeProgress() as progress:
        yield progress
