"""The display of progress: who wishes it, the thread that draws, and the drawing on a real pseudo-terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pty
import re
import select
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import cloudpickle
import pytest
from rich.console import Console
from rich.file_proxy import FileProxy

sys.path.insert(0, str(Path(__file__).parent))
from terminal import Screen

from joblib_azure import AzureBackend, LocalCluster
from joblib_azure.errors import ConfigurationError
from joblib_azure.progress import SILENT, Figures, reporter
from joblib_azure.progress.display import Display, wish_of
from joblib_azure.progress.figures import Row
from joblib_azure.progress.lines import Lines
from joblib_azure.progress.terminal import Terminal

WIDTH = 100


class Pty:
    """A terminal's stream, and the screen behind it."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.stream = io.TextIOWrapper(io.FileIO(slave, "w"), encoding="utf-8", line_buffering=True)
        self.stream.mode = "w"  # as that of sys.stdout has, by which cloudpickle knows a file
        self.screen = Screen(WIDTH)

    def look(self) -> Screen:
        self.stream.flush()
        while select.select([self._master], [], [], 0.05)[0]:
            self.screen.feed(os.read(self._master, 65536).decode())
        return self.screen

    def close(self) -> None:
        self.stream.close()
        os.close(self._master)


@pytest.fixture
def tty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pty]:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setenv("TERM", "xterm-256color")
    with contextlib.closing(Pty()) as found:
        yield found


def _at(done: int, total: int | None = 100, running: int = 4, **more: object) -> Figures:
    queued = (100 if total is None else total) - done - running
    return Figures(**{"done": done, "running": running, "queued": queued, "total": total, "begun": True, **more})


# who wishes it ----------------------------------------------------------------------------------------------


def test_the_parameter_comes_before_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOBLIB_AZURE_PROGRESS", raising=False)
    assert wish_of(None) is None
    for said, wish in (("0", False), ("1", True), ("False", False), ("on", True), ("", None)):
        monkeypatch.setenv("JOBLIB_AZURE_PROGRESS", said)
        assert wish_of(None) is wish
        assert wish_of(True) is True
        assert wish_of(False) is False


def test_a_variable_that_says_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBLIB_AZURE_PROGRESS", "maybe")
    with pytest.raises(ConfigurationError, match="JOBLIB_AZURE_PROGRESS='maybe' is neither 1 nor 0"):
        AzureBackend(LocalCluster(1, 1))


def _tqdm(**bar: bool) -> SimpleNamespace:
    """Return what of tqdm tells of its bars."""
    return SimpleNamespace(tqdm=SimpleNamespace(_instances=[SimpleNamespace(**bar)] if bar else []))


def _is_shown(wish: bool | None = None, *, lasting: bool = False) -> bool:
    found = reporter(wish, "cluster local", detail=False, lasting=lasting)
    found.end()
    return found is not SILENT


def test_it_is_shown_on_a_terminal_that_is_free_for_it(tty: Pty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not _is_shown()
    assert _is_shown(True)  # as lines
    monkeypatch.setattr(sys, "stderr", tty.stream)
    assert _is_shown()
    assert _is_shown(lasting=True)
    assert not _is_shown(False)
    with monkeypatch.context() as patch:
        patch.setenv("TERM", "dumb")
        assert not _is_shown()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "ps1", ">>> ", raising=False)
        assert _is_shown()
        assert not _is_shown(lasting=True)  # the prompt comes back meanwhile
        assert _is_shown(True, lasting=True)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tqdm.std", _tqdm(disable=True))
        assert _is_shown()
        patch.setitem(sys.modules, "tqdm.std", _tqdm(disable=False))
        assert not _is_shown()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", FileProxy(Console(file=tty.stream), tty.stream))
        assert not _is_shown()


# the thread -------------------------------------------------------------------------------------------------


class Board:
    """A surface that remembers what was drawn on it."""

    def __init__(self) -> None:
        self.drawn: list[list[Row]] = []
        self.now: list[Row] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def prepare(self) -> None:
        pass

    def draw(self, rows: Sequence[Row]) -> None:
        self.now = list(rows)
        self.drawn.append(self.now)
        self.go_on.wait(30)

    def clear(self) -> None:
        self.now = []

    def forget(self) -> None:
        self.now = []


def _until(said: Callable[[], object], limit: float = 20.0) -> None:
    end = time.monotonic() + limit
    while not said():
        assert time.monotonic() < end
        time.sleep(0.005)


def _threads() -> int:
    return sum(thread.name == "joblib_azure-progress" for thread in threading.enumerate())


def test_a_call_is_shown_while_it_lasts() -> None:
    display, board, done = Display(show_after=0.0, pause=0.01), Board(), iter(range(10**9))
    call = display.begin("cluster local", board)
    _until(lambda: board.now)
    assert str(board.now[0]) == "cluster local: preparing, 0 s"
    call.running(lambda: _at(0, total=None, queued=next(done)))
    _until(lambda: len({str(rows) for rows in board.drawn}) > 5)
    call.end()
    assert board.now == []
    seen = len(board.drawn)
    time.sleep(0.1)
    assert len(board.drawn) == seen
    _until(lambda: _threads() == 0)
    call.end()


def test_a_short_call_is_not_shown_and_many_of_them_need_one_thread() -> None:
    display, board, threads = Display(show_after=0.5, pause=0.01), Board(), set()
    for _ in range(20):
        call = display.begin("cluster local", board)
        threads |= {thread.ident for thread in threading.enumerate() if thread.name == "joblib_azure-progress"}
        call.end()
    assert len(threads) == 1
    _until(lambda: _threads() == 0)
    assert board.drawn == []


def test_calls_at_once_share_the_surface() -> None:
    display, board, other = Display(show_after=0.0, pause=0.01), Board(), Board()
    first, second = display.begin("one", board), display.begin("two", other)
    _until(lambda: [row.name for row in board.now] == ["one", "two"])
    first.end()
    _until(lambda: [row.name for row in board.now] == ["two"])
    second.end()
    assert board.now == []
    assert other.drawn == []


def test_a_call_that_nobody_has_any_more_is_not_shown() -> None:
    display, board = Display(show_after=0.0, pause=0.01), Board()
    call = display.begin("one", board)
    _until(lambda: board.now)
    del call
    _until(lambda: not board.now and _threads() == 0)


def test_of_many_calls_some_are_counted_only() -> None:
    display, board = Display(show_after=0.0, pause=0.01), Board()
    many = [display.begin(f"call {i}", board) for i in range(20)]
    _until(lambda: board.now and str(board.now[-1]) == "…: and 14 further Parallel calls")
    for call in many:
        call.end()
    assert board.now == []


def test_what_is_all_there_is_not_shown_while_its_consumer_takes_its_time() -> None:
    display, board, figures = Display(show_after=0.0, pause=0.01), Board(), [_at(10)]
    call = display.begin("one", board)
    call.running(lambda: figures[0])
    _until(lambda: board.now and board.now[0].fraction == pytest.approx(0.1))
    figures[0] = _at(100, running=0)
    _until(lambda: not board.now)
    call.end()


def test_an_error_ends_the_display_alone(caplog: pytest.LogCaptureFixture) -> None:
    display, board = Display(show_after=0.0, pause=0.01), Board()
    call = display.begin("one", board)
    _until(lambda: board.now)

    def broken() -> Figures:
        raise ZeroDivisionError("no figures")

    with caplog.at_level(logging.WARNING):
        call.running(broken)
        _until(lambda: _threads() == 0)
    assert "the display of progress failed" in caplog.text
    assert "no figures" in caplog.text
    assert board.now == []
    call.end()
    # The next call has one again.
    call = display.begin("two", board)
    _until(lambda: [row.name for row in board.now] == ["two"])
    call.end()


def test_a_terminal_that_is_stuck_holds_no_call_up_for_long() -> None:
    display, board = Display(show_after=0.0, pause=0.01), Board()
    call = display.begin("one", board)
    board.go_on.clear()
    _until(lambda: board.now)
    begun = time.monotonic()
    call.end()
    assert time.monotonic() - begun < 10.0
    board.go_on.set()
    _until(lambda: _threads() == 0)
    assert board.now == []


# on a terminal ----------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(tty: Pty) -> Terminal:
    found = Terminal(tty.stream)
    found.prepare()
    return found


ROW = Row(name="square", parts=("12 of 40 calls", "2 running"), fraction=0.3)


def test_a_row_is_drawn_over_and_wiped(tty: Pty, drawn: Terminal) -> None:
    drawn.draw([ROW])
    assert tty.look().lines == [f"square {'━' * 6}{'─' * 14} 12 of 40 calls, 2 running"]
    drawn.draw([ROW, Row(name="cube", parts=("3 calls",), below=("Batch tasks: 2 running",))])
    assert tty.look().lines[1:] == ["cube 3 calls", "  Batch tasks: 2 running"]
    drawn.draw([Row(name="cube", parts=("4 calls",))])
    assert tty.look().lines == ["cube 4 calls"]
    drawn.clear()
    screen = tty.look()
    assert screen.lines == []
    assert (screen.row, screen.column, screen.cursor) == (0, 0, True)


def test_what_others_write_is_above_and_stays_as_it_is(tty: Pty, drawn: Terminal) -> None:
    long = "[Parallel(n_jobs=2)]: " + "[bold] \\[x] :smile: " * 12
    print("before", file=tty.stream)
    drawn.draw([ROW])
    print("one", "two", file=tty.stream)
    drawn.draw([ROW])
    tty.stream.write(f"{long}\n")
    tty.stream.writelines(["three\n", "four\n"])
    drawn.draw([ROW])
    drawn.clear()
    print("after", file=tty.stream)
    lines = tty.look().lines
    assert lines[:2] == ["before", "one two"]
    assert lines[-3:] == ["three", "four", "after"]
    assert "".join(line.ljust(WIDTH) for line in lines[2:-3]).rstrip() == long.rstrip()


def test_a_line_that_somebody_has_begun_is_theirs_to_end(tty: Pty, drawn: Terminal) -> None:
    tty.stream.write("fitting ...")
    drawn.draw([ROW])
    # What was begun before anybody could see it stays; the row is below.
    assert tty.look().lines[0] == "fitting ..."
    assert tty.look().lines[1].startswith("square")
    tty.stream.write("folding ...")
    drawn.draw([ROW])
    assert tty.look().lines == ["fitting ...", "folding ..."]
    tty.stream.write(" done\n")
    drawn.draw([ROW])
    assert tty.look().lines[:2] == ["fitting ...", "folding ... done"]
    assert tty.look().lines[2].startswith("square")
    drawn.clear()
    assert tty.look().lines == ["fitting ...", "folding ... done"]


def test_a_bar_of_somebody_elses_is_left_alone(tty: Pty, drawn: Terminal) -> None:
    drawn.draw([ROW])
    for percent in (10, 20, 30):
        tty.stream.write(f"\r{percent}%")
        drawn.draw([ROW])
    assert tty.look().lines == ["30%"]
    tty.stream.write("\n")
    drawn.clear()
    assert tty.look().lines == ["30%"]


def test_a_bar_around_the_calls_has_the_terminal_for_itself(
    tty: Pty, drawn: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may begin after the calls, around the generator of their results, and it had the stream's write before."""
    write = tty.stream.write
    drawn.draw([ROW])
    monkeypatch.setitem(sys.modules, "tqdm.std", _tqdm(disable=False))
    write("\r10%")
    drawn.draw([ROW])
    write("\r20%")
    drawn.draw([ROW])
    assert tty.look().lines == ["20%"]
    monkeypatch.setitem(sys.modules, "tqdm.std", _tqdm())
    write("\n")
    drawn.draw([ROW])
    assert tty.look().lines[0] == "20%"
    assert tty.look().lines[1].startswith("square")


def test_a_handler_that_had_the_stream_before_makes_way_too(tty: Pty, drawn: Terminal) -> None:
    logger = logging.Logger("test")
    logger.addHandler(logging.StreamHandler(tty.stream))
    drawn.draw([ROW])
    logger.warning("careful")
    drawn.draw([ROW])
    assert tty.look().lines[0] == "careful"
    drawn.clear()
    assert tty.look().lines == ["careful"]


def test_the_stream_is_as_it_was(tty: Pty, drawn: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", tty.stream)
    before = dict(vars(tty.stream))
    drawn.draw([ROW])
    assert sys.stdout is tty.stream
    # cloudpickle knows it by identity; a call's globals may hold it.
    assert cloudpickle.loads(cloudpickle.dumps(tty.stream)) is tty.stream
    drawn.clear()
    assert vars(tty.stream) == before


def test_somebody_who_has_put_his_own_write_over_ours_keeps_it(tty: Pty, drawn: Terminal) -> None:
    drawn.draw([ROW])
    ours = tty.stream.write
    tty.stream.write = lambda text: ours(text.upper())  # type: ignore[method-assign]
    drawn.clear()
    tty.stream.write("loud\n")
    assert tty.look().lines == ["LOUD"]


def test_a_file_beside_the_terminal_gets_what_was_written_to_it(tty: Pty, tmp_path: Path) -> None:
    with open(tmp_path / "out.txt", "w") as file:
        found = Terminal(tty.stream)
        found.prepare()
        found.draw([ROW])
        file.write("a line\n")
        found.clear()
    assert (tmp_path / "out.txt").read_text() == "a line\n"
    assert tty.look().lines == []


@pytest.mark.parametrize("width", [10, 40, 79])
def test_a_narrow_terminal_has_one_line_too(
    tty: Pty, drawn: Terminal, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    found, tty.screen = Terminal(tty.stream), Screen(width)
    found.prepare()
    row = Row(name="square", parts=("12 of 40 calls", "2 running", "26 queued"), fraction=0.3, below=("x" * 200,))
    for _ in range(3):
        found.draw([row])
    assert len(tty.look().lines) == 2
    assert tty.look().lines[0].startswith("square")
    assert ("12 of 40 calls" in tty.look().lines[0]) is (width > 10)
    found.clear()
    assert tty.look().lines == []


def test_a_low_terminal_shows_what_it_can_wipe(tty: Pty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINES", "5")
    found = Terminal(tty.stream)
    found.prepare()
    found.draw([Row(name=f"call {i}", parts=("x",)) for i in range(9)])
    assert tty.look().lines == [f"call {i} x" for i in range(4)]


def test_a_forked_child_draws_nothing_and_writes_as_usual(tty: Pty, drawn: Terminal) -> None:
    drawn.draw([ROW])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads that other tests have left
        child = os.fork()
    if not child:
        drawn.forget()
        tty.stream.write("\nchild\n")
        drawn.clear()
        os._exit(0)
    os.waitpid(child, 0)
    assert tty.look().lines[1:] == ["child"]
    assert tty.look().lines[0].startswith("square")


def test_a_log_gets_a_line_now_and_then() -> None:
    stream = io.StringIO()
    lines = Lines(stream, every=60.0)
    for _ in range(3):
        lines.draw([ROW, Row(name="cube", parts=("3 calls",), below=("1 up",))])
    lines.clear()
    assert re.fullmatch("square: 12 of 40 calls, 2 running\ncube: 3 calls\n1 up\n", stream.getvalue())
