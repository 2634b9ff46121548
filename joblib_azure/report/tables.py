"""Small tables for notebooks; every cell is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

#: Notebooks put everything to the right.
_LEFT = 'style="text-align:left"'


def table(title: str, rows: Mapping[str, object]) -> str:
    """Return names and values as a table with a title; values that say nothing are left out."""
    body = "".join(
        f'<tr><th scope="row" {_LEFT}>{_text(name)}</th><td {_LEFT}>{_text(value)}</td></tr>'
        for name, value in rows.items()
        if value not in (None, "")
    )
    return f"<table><caption {_LEFT}><b>{_text(title)}</b></caption><tbody>{body}</tbody></table>"


def grid(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return rows under a head, their first cells as the rows' heads."""
    top = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{_text(first)}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def counts(numbers: Mapping[str, int]) -> str:
    """Return ``3 idle, 1 starting``; empty where there are none."""
    return ", ".join(f"{number} {state}" for state, number in numbers.items() if number)


def _text(value: object) -> str:
    return html.escape(str(value))
