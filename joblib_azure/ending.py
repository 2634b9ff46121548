"""Whether the interpreter is ending: pools of threads take no work any more then, which is no failure of anybody's."""

from __future__ import annotations

import threading

# Its own hook is to be there before ours: the last one is called first.
import concurrent.futures.thread  # isort: skip  # noqa: F401

__all__ = ["ending"]

_ending = threading.Event()


def ending() -> bool:
    """Tell whether the interpreter is ending."""
    return _ending.is_set() or not threading.main_thread().is_alive()


# Python ends its pools of threads, and waits for them, before the main thread counts as ended and before any `atexit`
# hook. It tells of that in this way only, which has no public name (CPython's Lib/threading.py, 3.9 and later).
_register = getattr(threading, "_register_atexit", None)
if _register is not None:
    _register(_ending.set)
