"""Calls that fail in each way that a call can; pickled by name: a node imports this module and no test of it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from joblib import Parallel, delayed

#: The call that fails, of so many.
AT, CALLS = 3, 6


class TwoWords(Exception):
    """One that pickles well and does not load."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


class Unloadable:
    """What the client can send and no node can read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("seven",)


class NotSendable:
    def __reduce__(self) -> tuple[Any, ...]:
        raise OSError("a handle of this process")


def only(number: int, at: int, fault: Callable[[], Any]) -> Any:
    return fault() if number == at else number


def raises() -> None:
    try:
        {}["k"]
    except KeyError as exc:
        raise ValueError("a bad row") from exc


def exits() -> None:
    print("what the call said before", file=sys.stderr, flush=True)
    os._exit(3)


def killed() -> None:
    print("what the call said before", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def returns_a_lock() -> Any:
    return threading.Lock()


def raises_two_words() -> None:
    raise TwoWords("no", "way")


def leaves() -> None:
    sys.exit(4)


def imports() -> None:
    import no_such_module  # type: ignore[import-not-found]  # noqa: F401


def raises_below() -> None:
    Parallel(n_jobs=2, prefer="threads")(delayed(raises)() for _ in range(2))


def takes(value: object) -> object:
    return value


def speaks_and_sleeps(seconds: float) -> None:
    print("about to sleep", file=sys.stderr, flush=True)
    time.sleep(seconds)
