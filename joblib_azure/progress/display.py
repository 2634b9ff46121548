"""The display: which there is, the one thread that draws, and what is drawn of each call.

::

    a call's thread ── begin ─► entries ◄─ look, a few times a second ── the display's thread ─► surface
                   └── end ──────┴─► the surface is wiped at once, so that what the call's caller prints stands alone

Looking takes the locks of sessions, drawing takes the terminal's. They are never held together: whoever holds a
session's lock may print or log, which waits for what is being drawn.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from ..errors import ConfigurationError
from .figures import Figures, Pace, Row, running_row, sending_row, step_row, waiting_row
from .lines import Lines
from .notebook import Notebook
from .reporter import SILENT, Reporter
from .terminal import Terminal, is_terminal, others_draw

if TYPE_CHECKING:
    from ..cluster.waiting import Waiting

logger = logging.getLogger(__name__)

#: The variable that switches the display on and off.
VARIABLE = "JOBLIB_AZURE_PROGRESS"
_WISHES = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
#: Seconds of a call of which nothing is shown: most that are short end by then, and need no line.
SHOW_AFTER = 1.0
#: Seconds between two looks.
PAUSE = 0.25
#: Rows that are shown at most; further calls are counted.
_MOST_ROWS = 6
#: Seconds that the end of a call waits for the terminal, which a person may have stopped (Ctrl-S).
_END_SECONDS = 1.0


class Surface(Protocol):
    """Where rows are drawn; by one thread at a time."""

    def prepare(self) -> None:
        """Do what takes long, once, before the first row."""

    def draw(self, rows: Sequence[Row]) -> None:
        """Show these rows in place of those that are shown."""

    def clear(self) -> None:
        """Show none; what others write goes on as if there had been none. Idempotent."""

    def forget(self) -> None:
        """In a forked child: write nothing, and leave the process as if nothing had been shown."""


class _Entry:
    """One call on the display; a `Reporter`. Nothing in it refers to it, so that it is gone once it is dropped."""

    def __init__(self, display: Display, name: str, *, detail: bool) -> None:
        self._display, self._name, self._detail = display, name, detail
        self._state: Callable[[float], Row | None] = lambda now: None
        self.began = time.monotonic()
        self.doing("preparing")

    def row(self, now: float) -> Row | None:
        """Return what there is to show; None where that is nothing."""
        return self._state(now)

    def doing(self, what: str, timeout: float | None = None) -> None:
        begun, name = time.monotonic(), self._name
        self._state = lambda now: step_row(name, what, now - begun, timeout)

    def waiting(self, now: Waiting) -> None:
        # Looks at a pool are up to ten seconds apart, and the seconds are to go on.
        begun = time.monotonic() - now.elapsed
        self._state = lambda moment: waiting_row(now, moment - begun)

    def running(self, look: Callable[[], Figures]) -> None:
        speed, detail = Pace(time.monotonic()), self._detail

        def state(now: float) -> Row | None:
            figures = look()
            speed.take(now, figures)
            # A generator's consumer may take its time over results that are all there.
            if figures.over:
                return None
            return running_row(figures, rate=speed.rate(now), left=speed.left(now), detail=detail)

        self._state = state

    def sending(self, look: Callable[[], Figures]) -> None:
        speed = Pace(time.monotonic())

        def state(now: float) -> Row:
            figures = look()
            speed.take(now, figures)
            return sending_row(figures, rate=speed.rate(now), left=speed.left(now))

        self._state = state

    def end(self) -> None:
        self._display.end(self)


class Display:
    """The calls of this process that are shown, and the thread that draws them.

    Parameters
    ----------
    show_after, pause : float
        Seconds before a call is shown, and between two looks.
    """

    def __init__(self, *, show_after: float = SHOW_AFTER, pause: float = PAUSE) -> None:
        self._show_after, self._pause = show_after, pause
        # The first guards the next three and is held for no longer than that takes; the second is held to draw. The
        # collection of a generator may end its call on any thread, within either.
        self._guard, self._drawing = threading.RLock(), threading.RLock()
        # Weak: a call that is dropped without its end, as by an interrupt at a bad moment, is gone from here too.
        self._references: tuple[weakref.ref[_Entry], ...] = ()
        self._surface: Surface | None = None
        self._thread: threading.Thread | None = None
        #: Whether this is a forked child of the process that imported it.
        self.forked = False

    def begin(self, name: str, surface: Surface, *, detail: bool = False) -> Reporter:
        """Show a call from now on; `surface` is where, unless others are shown already."""
        entry = _Entry(self, name, detail=detail)
        with self._guard:
            if not self._entries():
                self._references, self._surface = (), surface
            if self._thread is None:
                # In the caller's context: by it a notebook knows the cell.
                run = contextvars.copy_context().run
                thread = threading.Thread(target=run, args=(self._run,), name="joblib_azure-progress", daemon=True)
                thread.start()
                self._thread = thread
            self._references += (weakref.ref(entry),)
        return entry

    def _entries(self) -> list[_Entry]:
        """Return the calls; with the guard held."""
        return [entry for each in self._references if (entry := each()) is not None]

    def end(self, entry: _Entry) -> None:
        """A call is over. Where it was the last one, the surface is wiped before this returns."""
        with self._guard:
            entries = self._entries()
            if entry not in entries:
                return
            self._references = tuple(weakref.ref(each) for each in entries if each is not entry)
            surface = None if self._references else self._surface
        # Where the thread is stuck in the terminal, it wipes it when it gets on.
        if surface is not None and self._drawing.acquire(timeout=_END_SECONDS):
            try:
                self._wipe(surface)
            finally:
                self._drawing.release()

    def close(self) -> None:
        """Show nothing any more: the interpreter ends."""
        with self._guard:
            entries = self._entries()
        for entry in entries:
            self.end(entry)

    def hold(self) -> None:
        """Draw nothing until `go_on`: a process that forks within a write leaves its child the stream's lock."""
        self._drawing.acquire(timeout=_END_SECONDS)

    def go_on(self) -> None:
        """Draw again."""
        with contextlib.suppress(RuntimeError):  # `hold` has waited in vain
            self._drawing.release()

    def forget(self) -> None:
        """In a forked child: there is no thread, and the calls are the parent's."""
        self._guard, self._drawing = threading.RLock(), threading.RLock()
        self._references, self._thread, self.forked = (), None, True
        surface, self._surface = self._surface, None
        if surface is not None:
            surface.forget()

    @staticmethod
    def _wipe(surface: Surface) -> None:
        try:
            surface.clear()
        except Exception:
            logger.debug("clearing the display of progress failed", exc_info=True)

    def _run(self) -> None:
        try:
            while (rest := self._look()) is not None:
                # Nobody wakes it: a loop of many short calls starts one thread, and not one a call.
                time.sleep(rest)
        except Exception:
            with self._guard:
                self._references, self._thread, surface = (), None, self._surface
            if surface is not None:
                with self._drawing:
                    self._wipe(surface)
            logger.warning("the display of progress failed, and ends; the calls go on", exc_info=True)

    def _look(self) -> float | None:
        """Draw once; return the seconds until the next time, or None where there is nothing left to show."""
        with self._guard:
            entries, surface = self._entries(), self._surface
            if not entries:
                self._thread = None
        if surface is None:
            return None
        if not entries:
            with self._drawing:
                self._wipe(surface)
            return None
        now = time.monotonic()
        due = [entry for entry in entries if now - entry.began >= self._show_after]
        if not due:
            return min(entry.began for entry in entries) + self._show_after - now
        surface.prepare()
        rows = {entry: row for entry in due if (row := entry.row(now)) is not None}
        with self._drawing:
            with self._guard:
                # What has ended since then was wiped, and is not to come back.
                there = self._entries()
            left = [row for entry, row in rows.items() if entry in there]
            if left:
                surface.draw(_at_most(left))
            else:
                self._wipe(surface)
        return self._pause


def _at_most(rows: list[Row]) -> list[Row]:
    more = len(rows) - _MOST_ROWS
    if more < 2:
        return rows
    return [*rows[:_MOST_ROWS], Row(name="…", parts=(f"and {more} further Parallel calls",))]


# which --------------------------------------------------------------------------------------------------------

_display = Display()
atexit.register(_display.close)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_display.hold, after_in_parent=_display.go_on, after_in_child=_display.forget)


def wish_of(progress: bool | None) -> bool | None:
    """Return what the user wishes: the parameter, else the variable, else None.

    Raises
    ------
    ConfigurationError
        Where the variable is neither yes nor no.
    """
    if progress is not None:
        return bool(progress)
    said = os.environ.get(VARIABLE, "").strip().lower()
    if said and said not in _WISHES:
        raise ConfigurationError(f"{VARIABLE}={said!r} is neither 1 nor 0: 1 shows progress, 0 does not")
    return _WISHES.get(said)


def reporter(wish: bool | None, name: str, *, detail: bool, lasting: bool) -> Reporter:
    """Return what a call tells of itself to.

    Parameters
    ----------
    wish : bool or None
        As `wish_of` returns it.
    name : str
        Of what the call waits for at first.
    detail : bool
        Whether to show more than a line.
    lasting : bool
        Whether the call goes on when Parallel has returned, as generators do.
    """
    if wish is False or (wish is None and _display.forked):
        return SILENT
    try:
        surface = _surface(wish, lasting)
        return SILENT if surface is None else _display.begin(name, surface, detail=detail)
    except Exception:
        logger.warning("there is no display of progress", exc_info=True)
        return SILENT


def _surface(wish: bool | None, lasting: bool) -> Surface | None:
    if in_notebook():
        return Notebook()
    stream = sys.stderr
    if stream is None:
        return None
    if not is_terminal(stream):
        return Lines(stream) if wish else None
    # The prompt of an interactive interpreter comes back while a generator's calls run, and is not to be drawn over.
    prompt = lasting and hasattr(sys, "ps1")
    if others_draw() or (wish is None and prompt):
        return None
    others = [sys.stdout] if is_terminal(sys.stdout) and sys.stdout is not stream else []
    return Terminal(stream, *others)


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook, and not IPython in a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and "ipykernel" in sys.modules else None
    return getattr(shell, "kernel", None) is not None
