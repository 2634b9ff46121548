"""A line now and then, for logs: where progress was asked for and there is neither a terminal nor a notebook."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TextIO

from .figures import Row

#: Seconds between two lines.
EVERY = 10.0


class Lines:
    """Writes a line for each row to `stream`, every so many seconds."""

    def __init__(self, stream: TextIO, every: float = EVERY) -> None:
        self._stream: TextIO | None = stream
        self._every = every
        self._next = 0.0

    def prepare(self) -> None:
        """Nothing."""

    def draw(self, rows: Sequence[Row]) -> None:
        """Write them, if the last ones were written long enough ago."""
        now = time.monotonic()
        if self._stream is not None and now >= self._next:
            self._next = now + self._every
            self._stream.write("".join(f"{line}\n" for row in rows for line in (str(row), *row.below)))
            self._stream.flush()

    def clear(self) -> None:
        """Nothing: what was written stays."""

    def forget(self) -> None:
        """In a forked child."""
        self._stream = None
