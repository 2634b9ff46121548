"""A record of what crosses the server, for whoever wants to look at it as a whole: one line of JSON a request.

The environment variable ``BATCH_EMULATOR_TRAFFIC`` names a folder; each server adds a file of its own to it, for its
owner only, since bodies hold what clients send (commands, settings, signatures of storage). Authorization headers are
left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

FOLDER_VARIABLE = "BATCH_EMULATOR_TRAFFIC"
_HEADERS = ("content-type", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "ocp-range")
_MOST_TEXT = 1 << 23


class Traffic:
    """Appends to a file."""

    def __init__(self, folder: Path) -> None:
        path = folder / f"{os.getpid()}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    @classmethod
    def from_environment(cls) -> Traffic | None:
        """The record that the environment asks for."""
        folder = os.environ.pop(FOLDER_VARIABLE, "")
        return cls(Path(folder)) if folder else None

    def add(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        body: bytes,
        status: int,
        answer_headers: Mapping[str, str],
        answer: bytes,
    ) -> None:
        """Write down a request with its answer; contents of files are left out."""
        kind = answer_headers.get("content-type", "")
        row = {
            "method": method,
            "path": path,
            "query": query,
            "headers": {name: headers[name] for name in _HEADERS if name in headers},
            "body": _text(body),
            "status": status,
            "answer_headers": dict(answer_headers),
            "answer": _text(answer) if kind.startswith("application/json; odata") else None,
        }
        os.write(self._file, json.dumps(row, separators=(",", ":")).encode() + b"\n")


def _text(body: bytes) -> str | None:
    return body.decode("utf-8", "replace") if body and len(body) <= _MOST_TEXT else None
