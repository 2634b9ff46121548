"""What goes wrong on nodes when somebody asks for it: a failing start task, a full disk, a node that is lost.

The states and error codes are those of
https://learn.microsoft.com/azure/batch/batch-pool-node-error-checking; who asks is `control`.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import errors
from .processes import carriers
from .runner import LOST

if TYPE_CHECKING:
    from .engine import Engine
    from .state import Node

#: What a start or preparation task that is to fail runs in place of its own.
_FAILING = "sh -c 'echo this {} task fails, as the emulator was told >&2; exit 1'"
#: Seconds after which the service has seen that a node's disk is full.
_NOTICED = 0.5
_FULL = {
    "code": "DiskFull",
    "message": "The VM disk is full. Delete jobs, tasks, or files on the node to free up space and then reboot the "
    "node.",
}


class Mishaps:
    """Counts what is still to fail, and does to nodes what happens to them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._failing = {"start": 0, "preparation": 0}
        self._failing_nodes = engine.options.failing_start_tasks

    def fail_next(self, kind: str, count: int) -> None:
        """Let so many further tries of tasks of a kind (``start``, ``preparation``) fail with exit code 1."""
        self._failing[kind] += count

    def of_a_node(self) -> Callable[[], str | None]:
        """Return what tells what each try of the start task of a node that boots now runs in its place."""
        if self._failing_nodes <= 0:
            return lambda: self.in_its_place("start")
        self._failing_nodes -= 1
        return lambda: _FAILING.format("start")

    def in_its_place(self, kind: str) -> str | None:
        """Return what a try of a task of this kind runs in place of its own command line, if it is to fail."""
        if self._failing[kind] <= 0:
            return None
        self._failing[kind] -= 1
        return _FAILING.format(kind)

    def lose(self, node: Node, seconds: float | None) -> None:
        """The service loses contact with a node: its tasks are queued again, and what it runs goes on there, unseen.

        Raises
        ------
        BatchError
            409 where its state forbids it.
        """
        _check_up(node)
        node.move("unknown")
        self._engine.spawn(self._engine.runner.stop(node.assigned, LOST))
        self._engine.lives.restore_later(node, seconds)

    def fill_disk(self, node: Node, seconds: float | None) -> None:
        """A node's disk is full: nothing that runs there can write any more; then the service sees it.

        Raises
        ------
        BatchError
            409 where its state forbids it.
        """
        _check_up(node)
        for pid in carriers([{"AZ_BATCH_NODE_ID": node.id}]):
            # Files of a limited size in place of a disk of a limited size: EFBIG and not ENOSPC, but as final.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]))
        self._engine.spawn(self._notice(node, seconds))

    async def _notice(self, node: Node, seconds: float | None) -> None:
        await asyncio.sleep(_NOTICED)
        if node.state in ("idle", "running"):
            self._engine.lives.mark_unusable(node)
            node.errors = [_FULL]
            self._engine.lives.restore_later(node, seconds)


def _check_up(node: Node) -> None:
    if node.state not in ("idle", "running"):
        raise errors.invalid_for_state(f"The node is {node.state}.")
