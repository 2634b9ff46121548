"""A few lines at the bottom of a terminal, above which everybody else writes.

rich makes the lines; it is imported here and nowhere else below the command line, on the display's thread. Its own
live display is not used, since it puts other objects in the place of ``sys.stdout`` and ``sys.stderr``: cloudpickle
does not know the real ones then, what goes to a file lands on the terminal, and long lines are broken. Here the streams
stay what they are, and their ``write`` makes way for what is written.

The cursor is never hidden, so that however the process ends there is nothing to put right.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from .figures import Row

#: To the beginning of the line, which is emptied; and to the one above it.
_WIPE, _UP = "\r\x1b[2K", "\x1b[1A\x1b[2K"
#: Columns of a bar, and what it has beside it at least.
_BAR, _BESIDE = 20, 40


class Terminal:
    """Draws on the terminal that `stream` writes to.

    Parameters
    ----------
    stream : text stream
    *others : text stream
        Further ones that write to it.
    """

    def __init__(self, stream: TextIO, *others: TextIO) -> None:
        self._stream = stream
        self._lock = threading.RLock()
        self._console: Any = None
        self._height = 0
        self._shown: list[str] = []
        self._midline = False  # somebody has written a line that is not complete
        self._watched = [_Watched(each, self) for each in (stream, *others)]
        self._put = self._watched[0].write

    def prepare(self) -> None:
        """Import rich."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(file=self._stream, highlight=False, emoji=False, markup=False)

    def draw(self, rows: Sequence[Row]) -> None:
        """Show these rows, unless somebody has begun a line, or a display of his own."""
        lines = self._lines(rows)
        with self._lock:
            if others_draw():
                self._hide()
                return
            if self._midline or (self._height and lines == self._shown):
                return
            fresh = "" if self._height else self._begin()
            self._write(fresh + self._wiping() + "\r\n".join(lines))
            self._height, self._shown = len(lines), lines

    def clear(self) -> None:
        """Wipe what is shown, and let go of the streams."""
        with self._lock:
            self._hide()
            for watched in self._watched:
                watched.restore()
            self._midline = False

    def forget(self) -> None:
        """In a forked child: what is on the terminal is the parent's."""
        self._lock, self._height = threading.RLock(), 0
        for watched in self._watched:
            watched.restore()

    @contextlib.contextmanager
    def making_way(self, text: str) -> Iterator[None]:
        """Wipe what is shown, while somebody else writes `text`."""
        with self._lock:
            self._hide()
            yield
            if text:
                self._midline = not text.endswith("\n")

    def _begin(self) -> str:
        """Return what brings the cursor to an empty line, wherever it is."""
        for watched in self._watched:
            watched.watch()
        # So many blanks end in the first column of the next line, but for those that began in the first column. A line
        # that somebody had begun before stays.
        return " " * int(self._console.width) + "\r"

    def _hide(self) -> None:
        if self._height:
            self._write(self._wiping())
            self._height = 0

    def _wiping(self) -> str:
        return _WIPE + _UP * (self._height - 1)

    def _write(self, text: str) -> None:
        self._put(text)
        self._stream.flush()

    # with rich --------------------------------------------------------------------------------------------

    def _lines(self, rows: Sequence[Row]) -> list[str]:
        width = int(self._console.width) - 1  # a cursor behind the last column is somewhere else on each terminal
        # What has left the screen at its upper end could not be wiped.
        return [line for row in rows for line in self._row(row, width)][: max(1, int(self._console.height) - 1)]

    def _row(self, row: Row, width: int) -> list[str]:
        from rich.text import Text

        head = Text.assemble((row.name, "bold"), " ")
        rest = width - head.cell_len
        if row.fraction is not None and rest >= _BAR + 1 + _BESIDE:
            done = round(_BAR * row.fraction)
            full, empty = "#." if self._console.options.ascii_only else "━─"
            head.append(full * done, "cyan").append(empty * (_BAR - done), "bright_black")
            head.append(" ")
            rest -= _BAR + 1
        head.append(row.fit(rest))
        return [self._styled(each, width) for each in (head, *(Text(f"  {line}", "dim") for line in row.below))]

    def _styled(self, text: Any, width: int) -> str:
        text.truncate(width, overflow="ellipsis")
        with self._console.capture() as captured:
            self._console.print(text, end="", no_wrap=True, crop=True, overflow="ignore")
        return str(captured.get())


class _Watched:
    """A stream whose ``write`` makes way first.

    The method is replaced on the object: whoever got hold of the stream earlier, as handlers of `logging` do, is seen
    too, and `sys.stderr` stays the object that it is.
    """

    def __init__(self, stream: TextIO, terminal: Terminal) -> None:
        self._stream, self._terminal = stream, terminal
        self.write: Callable[[str], int] = stream.write
        self._ours: Callable[[str], int] | None = None

    def watch(self) -> None:
        if self._ours is not None:
            return
        write, terminal = self.write, self._terminal

        def ours(text: str) -> int:
            with terminal.making_way(text):
                return write(text)

        with contextlib.suppress(AttributeError, TypeError):  # a stream of somebody's own that takes none
            vars(self._stream)["write"] = ours
            self._ours = ours

    def restore(self) -> None:
        # Where somebody has put his own in its place, which calls ours, ours goes on and does nothing more.
        if self._ours is not None and vars(self._stream).get("write") is self._ours:
            del vars(self._stream)["write"]
        self._ours = None


def others_draw() -> bool:
    """Whether somebody else draws on the terminal: a bar of tqdm around the calls, a live display of rich."""
    if type(sys.stderr).__module__.startswith("rich."):
        return True
    tqdm = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    try:
        return any(not bar.disable for bar in list(getattr(tqdm, "_instances", ())))
    except RuntimeError:  # one has just begun
        return True


def is_terminal(stream: object) -> bool:
    """Whether a stream is a terminal that can move its cursor."""
    try:
        found = bool(stream.isatty())  # type: ignore[attr-defined]
    except (AttributeError, ValueError):  # none, somebody's own, or closed
        return False
    return found and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
