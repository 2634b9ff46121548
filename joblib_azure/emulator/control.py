"""What a person or a test does to the emulated account that no request to Batch can do.

Routes below ``/_emulator``, outside the Batch API, with the account's key itself in the header ``x-emulator-key``::

    POST /_emulator/pools/{pool}/nodes/{node}/preempt?seconds=30   a spot node is preempted (and comes back then)
    POST /_emulator/pools/{pool}/nodes/{node}/unusable             a node becomes unusable
    POST /_emulator/pools/{pool}/nodes/{node}/restore              a preempted or unusable node boots again

An answer is 204, or an error as Batch writes it. `BatchEmulator` has a method for each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import errors
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
        parts = path.removeprefix(PREFIX).strip("/").split("/")
        if len(parts) != 5 or (parts[0], parts[2]) != ("pools", "nodes"):
            raise errors.invalid_uri(path)
        if method != "POST":
            raise errors.unsupported_verb(method, ["POST"])
        node = self._node(parts[1], parts[3])
        lives = self._engine.lives
        if parts[4] == "preempt":
            lives.preempt(node, _seconds(query))
        elif parts[4] == "unusable":
            lives.mark_unusable(node)
        elif parts[4] == "restore":
            lives.restore(node)
        else:
            raise errors.invalid_uri(path)
        return Answer(status=204)

    def _node(self, pool_id: str, node_id: str) -> Node:
        pool = self._engine.account.pools.get(pool_id.lower())
        if pool is None:
            raise errors.pool_not_found()
        for node in pool.nodes.values():
            if node.id.lower() == node_id.lower():
                return node
        raise errors.node_not_found()


def _seconds(query: dict[str, str]) -> float | None:
    text = query.get("seconds")
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        raise errors.invalid_query("seconds", text, "A number is expected.") from None
