"""How an executor (see `simulated`) is named for the emulator's process, and found there."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def name_of(executor: str | Callable[..., Any]) -> str:
    """Return how another process finds an executor: ``FILE.py:NAME`` or ``MODULE:NAME``.

    Raises
    ------
    ValueError
        For a name of another form, and for what is no asynchronous function of a file's top level.
    """
    if isinstance(executor, str):
        source, separator, name = executor.rpartition(":")
        if not (separator and source and name.isidentifier()):
            raise ValueError(f"executor is {executor!r}, neither FILE.py:NAME nor MODULE:NAME")
        return f"{Path(source).resolve()}:{name}" if source.endswith(".py") else executor
    name = getattr(executor, "__qualname__", "")
    if not inspect.iscoroutinefunction(executor) or not name.isidentifier():
        raise ValueError(f"executor is {executor!r}, not an asynchronous function of a file's top level")
    return f"{Path(inspect.getfile(executor)).resolve()}:{name}"


def load(executor: str) -> Any:
    """Return the executor of a name that `name_of` gave.

    Raises
    ------
    ImportError, AttributeError
        Where it is not there.
    """
    source, _, name = executor.rpartition(":")
    if not source.endswith(".py"):
        return getattr(importlib.import_module(source), name)
    path = Path(source)
    # As if it were run: what lies beside it can be imported.
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded as a module")
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)
