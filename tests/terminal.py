"""As much of a terminal as a program of lines needs, to see what a person would see."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|\x1b(.)")


class Screen:
    """The lines that a terminal of `width` columns shows after what was fed to it, and those that it showed meanwhile.

    As on a real one, the cursor stays behind the last column until the next character comes.

    Attributes
    ----------
    text : str
        All that was fed to it.
    wiped : list of str
        Lines that were emptied, as they were before.
    cursor : bool
        Whether the cursor can be seen.
    """

    def __init__(self, width: int = 120, text: str = "") -> None:
        self.width = width
        self.rows: list[list[str]] = [[]]
        self.row = self.column = 0
        self.cursor = True
        self.wiped: list[str] = []
        self.text = ""
        self.feed(text)

    @property
    def lines(self) -> list[str]:
        """What is shown, without empty lines at the end."""
        lines = ["".join(row).rstrip() for row in self.rows]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def feed(self, text: str) -> Screen:
        """Take what a program has written."""
        place = 0
        self.text += text
        while place < len(text):
            found = _CONTROL.match(text, place)
            if found is not None:
                self._control(found)
                place = found.end()
                continue
            self._character(text[place])
            place += 1
        return self

    def _character(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self._down()
        elif character >= " ":
            if self.column == self.width:
                self.column = 0
                self._down()
            row = self.rows[self.row]
            row.extend(" " * (self.column + 1 - len(row)))
            row[self.column] = character
            self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append([])

    def _control(self, found: re.Match[str]) -> None:
        private, numbers, letter, _ = found.groups()
        if private and numbers == "25" and letter in "lh":
            self.cursor = letter == "h"
        elif letter == "A":
            self.row = max(0, self.row - int(numbers or 1))
        elif letter == "K" and numbers == "2":
            self.wiped.append("".join(self.rows[self.row]).rstrip())
            self.rows[self.row] = []
        elif letter != "m":  # colours
            raise NotImplementedError(f"this terminal does not know {found[0]!r}")
