"""What the calls of detached jobs do; pickled by name, so that a node imports this module and no test of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """Wait until `condition` holds and return what it returned."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s until {what}")
        time.sleep(0.02)
    return found


def square(number: int) -> int:
    return number * number


def marked(folder: str, number: int, seconds: float = 0.0) -> int:
    """Leave a mark for each time that this call runs, once it has."""
    time.sleep(seconds)
    with (Path(folder) / str(number)).open("a") as file:
        file.write("x")
    return number * number


def waits(folder: str, number: int) -> int:
    """Run until there is a file ``stop``."""
    (Path(folder) / f"started-{number}").touch()
    end = time.monotonic() + 60
    while not (Path(folder) / "stop").exists() and time.monotonic() < end:
        time.sleep(0.02)
    return number


def odd_ones_fail(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number


def fails_at(number: int, which: int) -> int:
    if number == which:
        raise ValueError(f"{number} fails")
    return number


def fails_without(folder: str, number: int) -> int:
    (Path(folder) / "there").stat()
    return number


def third_dies(number: int) -> int:
    if number == 3:
        os._exit(7)
    return number


def large(number: int) -> np.ndarray:
    return np.full(1 << 18, float(number))


def speaks(word: str, seconds: float = 0.0) -> str:
    print(f"{word} to stdout")
    print(f"{word} to stderr: é", file=sys.stderr)
    sys.stderr.flush()
    time.sleep(seconds)
    print(f"{word} ends", file=sys.stderr)
    return word


def reads(*paths: str) -> list[str]:
    """Return what the files of these paths hold, in the folder in which the call runs."""
    return [Path(path).read_text() for path in paths]


def sees() -> dict[str, tuple[int, bool]]:
    """Return all files of the folder in which the call runs: their sizes, and whether it may write to them."""
    found = [path for path in Path().rglob("*") if path.is_file() and ".joblib_azure" not in path.parts]
    return {path.as_posix(): (path.stat().st_size, os.stat(path).st_mode & 0o222 != 0) for path in sorted(found)}


def meets(folder: str, number: int, others: int, path: str) -> tuple[str, str]:
    """Return what a file holds, and the folder, once all others are there too: they run side by side."""
    (Path(folder) / str(number)).touch()
    until(lambda: len(list(Path(folder).iterdir())) == others, "the others are there")
    Path(f"mine-{number}").touch()
    return Path(path).read_text(), os.getcwd()


def leaves(number: int, fails: bool = False) -> int:
    """Leave files, and fail."""
    Path("out/deep").mkdir(parents=True, exist_ok=True)
    Path(f"out/{number}.txt").write_text(f"text {number}")
    Path(f"out/deep/{number}.bin").write_bytes(bytes(number))
    Path(f"{number}.log").write_text(f"log {number}")
    print(f"call {number} said so")
    if fails:
        raise ValueError(f"{number} fails")
    return number


def leaves_and_dies(number: int) -> int:
    leaves(number)
    os._exit(3)


def leaves_and_waits(number: int) -> int:
    leaves(number)
    time.sleep(60)
    return number
