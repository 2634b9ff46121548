"""A small HTML display below a notebook's cell."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from .figures import Row


def as_html(rows: Sequence[Row]) -> str:
    """Return rows as HTML, of a single ``div``."""
    return f'<div style="font-size: 90%">{"".join(map(_row, rows))}</div>'


def _row(row: Row) -> str:
    bar = "" if row.fraction is None else f'<progress max="1" value="{row.fraction:.4f}"></progress> '
    below = "".join(f'<div style="opacity: 0.7">{html.escape(line)}</div>' for line in row.below)
    text = html.escape(", ".join(row.parts))
    return f"<div><b>{html.escape(row.name)}</b> {bar}{text}</div>{below}"


class Notebook:
    """Draws below the cell whose code runs."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown = ""

    def prepare(self) -> None:
        """Nothing: a notebook has IPython imported."""

    def draw(self, rows: Sequence[Row]) -> None:
        """Show these rows."""
        from IPython.display import HTML, display

        text = as_html(rows)
        if self._handle is None:
            self._handle = display(HTML(text), display_id=True)
        elif text != self._shown:
            self._handle.update(HTML(text))
        self._shown = text

    def clear(self) -> None:
        """Leave the display empty; the next rows are in the same place."""
        if self._handle is not None and self._shown:
            from IPython.display import HTML

            self._handle.update(HTML(""))
            self._shown = ""

    def forget(self) -> None:
        """In a forked child."""
        self._handle = None
