"""JSON files as people write them: any Unicode encoding, and every way to be broken told with file and line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _NotJson(f"the key {key!a} is there twice")
        found[key] = value
    return found


def _constant(name: str) -> Any:
    raise _NotJson(f"{name} is no JSON number")


class _NotJson(ValueError):
    """Something that Python's reader lets pass."""


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object from a file, in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises
    ------
    ConfigurationError
        Where the file is missing, cannot be read, or is no JSON object.
    """
    shown = os.fspath(path)
    try:
        raw = Path(path).read_bytes()
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise ConfigurationError(f"cannot read {shown}: {reason}") from exc
    try:
        values = json.loads(raw, object_pairs_hook=_unique, parse_constant=_constant)
        # "\ud800" alone passes the reader, and can neither be printed nor sent.
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as exc:
        lines = exc.doc.splitlines()
        line = lines[exc.lineno - 1] if exc.lineno <= len(lines) else ""
        hint = "; JSON has no comments" if "//" in line or line.lstrip().startswith("#") else ""
        raise ConfigurationError(f"{shown}, line {exc.lineno}: not valid JSON: {exc.msg}{hint}") from None
    except UnicodeEncodeError as exc:
        raise ConfigurationError(f"{shown}: not valid JSON: {exc.object[exc.start]!a} is half a character") from None
    except UnicodeDecodeError as exc:
        raise ConfigurationError(f"{shown}: not {exc.encoding} text: {exc.reason} at byte {exc.start}") from None
    except RecursionError:
        raise ConfigurationError(f"{shown}: not usable: nested too deeply") from None
    except ValueError as exc:
        raise ConfigurationError(f"{shown}: not valid JSON: {exc}") from None
    if not isinstance(values, dict):
        raise ConfigurationError(f"{shown}: expected a JSON object, found {type(values).__name__}")
    return values
