"""What a person or a test does to the emulated account that no request to Batch can do.

Routes below ``/_emulator``, outside the Batch API, with the account's key itself in the header ``x-emulator-key``::

    POST /_emulator/pools/{pool}/nodes/{node}/preempt?seconds=30   a spot node is preempted (and comes back then)
    POST /_emulator/pools/{pool}/nodes/{node}/unusable?seconds=30  a node becomes unusable
    POST /_emulator/pools/{pool}/nodes/{node}/lose?seconds=30      the service loses contact with a node
    POST /_emulator/pools/{pool}/nodes/{node}/fill?seconds=30      its disk is full, and so it becomes unusable
    POST /_emulator/pools/{pool}/nodes/{node}/restore              a node boots again after any of these
    POST /_emulator/tasks/start/fail?count=1                       the next tries of start tasks fail
    POST /_emulator/tasks/preparation/fail?count=1                 the next tries of job preparation tasks fail
    POST /_emulator/clock?ahead=-90                                the service's clock is off by so many seconds

Without ``seconds`` only ``restore`` brings a node back. An answer is 204, or an error as Batch writes it.
`BatchEmulator.control` asks for any of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from . import errors, times
from .auth import Authentication
from .calls import Answer
from .state import Node

if TYPE_CHECKING:
    from .engine import Engine

PREFIX = "/_emulator/"
KEY_HEADER = "x-emulator-key"


class Control:
    """Answers the routes."""

    def __init__(self, engine: Engine, auth: Authentication) -> None:
        self._engine = engine
        self._auth = auth

    def answer(self, method: str, path: str, query: dict[str, str], key: str) -> Answer:
        """Do what the path says.

        Raises
        ------
        BatchError
            403 without the key, 404 for what is not there, 409 where the node's state forbids it.
        """
        if not self._auth.holds_key(key):
            raise errors.authentication_failed(f"The header {KEY_HEADER} does not hold the account's key.")
        if method != "POST":
            raise errors.unsupported_verb(method, ["POST"])
        match path.removeprefix(PREFIX).strip("/").split("/"):
            case ["pools", pool, "nodes", node, what]:
                self._strike(self._node(pool, node), what, path, _number(query, "seconds"))
            case ["tasks", ("start" | "preparation") as kind, "fail"]:
                self._engine.mishaps.fail_next(kind, int(_number(query, "count") or 1))
            case ["clock"]:
                times.set_skew(_number(query, "ahead") or 0.0)
            case _:
                raise errors.invalid_uri(path)
        return Answer(status=204)

    def _strike(self, node: Node, what: str, path: str, seconds: float | None) -> None:
        lives, mishaps = self._engine.lives, self._engine.mishaps
        if what == "preempt":
            lives.preempt(node, seconds)
        elif what == "unusable":
            lives.mark_unusable(node)
            lives.restore_later(node, seconds)
        elif what == "lose":
            mishaps.lose(node, seconds)
        elif what == "fill":
            mishaps.fill_disk(node, seconds)
        elif what == "restore":
            lives.restore(node)
        else:
            raise errors.invalid_uri(path)

    def _node(self, pool_id: str, node_id: str) -> Node:
        pool = self._engine.account.pools.get(pool_id.lower())
        if pool is None:
            raise errors.pool_not_found()
        for node in pool.nodes.values():
            if node.id.lower() == node_id.lower():
                return node
        raise errors.node_not_found()


def _number(query: dict[str, str], name: str) -> float | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found) or (found < 0 and name != "ahead"):
        raise errors.invalid_query(name, text, "A number is expected.")
    return found
