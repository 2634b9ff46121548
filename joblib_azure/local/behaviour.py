"""How the emulated account of a local cluster is to behave: from keywords and command lines to the emulator's flags."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from joblib_azure.errors import ConfigurationError

if TYPE_CHECKING:
    from joblib_azure.emulator.options import Options

__all__ = ["emulator_flags", "node_seconds", "read_options"]


def read_options(texts: Iterable[str]) -> dict[str, Any]:
    """Read options as a command line has them, ``dispatch-seconds=2``, by their names in Python.

    Raises
    ------
    ConfigurationError
        For what is no ``OPTION=VALUE``, and a value of another kind than the option's.
    """
    from joblib_azure.emulator.options import Options

    defaults = {each.name: getattr(Options(), each.name) for each in dataclasses.fields(Options)}
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise ConfigurationError(f"{text!r}: expected OPTION=VALUE")
        default = defaults.get(name)
        try:
            if isinstance(default, bool):
                found[name] = {"true": True, "false": False}[value.lower()]
            elif isinstance(default, Mapping):
                size, _, number = value.rpartition("=")
                found[name] = {**found.get(name, {}), size: int(number)}
            elif isinstance(default, tuple):
                found[name] = (*found.get(name, ()), value)
            elif isinstance(default, int) or name.endswith("quota"):
                found[name] = int(value)
            else:
                found[name] = float(value) if isinstance(default, float) else value
        except (KeyError, ValueError):
            kind = "true or false" if isinstance(default, bool) else "SIZE=COUNT" if default == {} else "a number"
            raise ConfigurationError(f"{text!r}: expected {kind} after {name}=") from None
    return found


def emulator_flags(given: Mapping[str, Any]) -> list[str]:
    """Return options of the emulated account as the flags of the emulator's command line.

    Parameters
    ----------
    given : mapping of str to object
        As `joblib_azure.emulator.BatchEmulator` takes them by keyword: ``{"dispatch_seconds": 2.0}``.

    Raises
    ------
    ConfigurationError
        For a name that there is not, and a value out of range.
    """
    return _emulator_options(given).arguments()


def node_seconds(given: Mapping[str, Any]) -> float:
    """Return the most that a node of the emulated account takes until its start task, of the same options."""
    return float(_emulator_options(given).node_seconds)


def _emulator_options(given: Mapping[str, Any]) -> Options:
    from joblib_azure.emulator.options import Options

    known = [each.name for each in dataclasses.fields(Options)]
    wrong = []
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            wrong.append(f"{name}: the emulator has no such option; {hint}")
    try:
        options = Options(**{name: value for name, value in given.items() if name in known})
    except (AttributeError, TypeError, ValueError) as exc:
        wrong.append(str(exc))
    if wrong:
        raise ConfigurationError("the emulator's options are not usable:\n  " + "\n  ".join(wrong))
    return options
