"""The files in which a task's workers leave what they did.

Each worker process appends to a journal of its own in the task's working folder: a line of JSON when a
chunk starts and one, followed by the outcome's bytes, when it ends. An append is one ``write``, so what a
worker finished survives its death, that of its pool and that of the runner; and a chunk with a start and no
end, in a journal whose process is dead, is one that was running when it died.

::

    {"start": 17, "pid": 4242}\\n
    {"end": 17, "ok": true, "seconds": 0.2, "calls": 4, "size": 1234}\\n<1234 bytes>
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """A chunk's outcome on its way to storage: its head (JSON values) and its pickle."""

    chunk: int
    head: dict[str, Any]
    body: bytes


class JournalWriter:
    """Appends to the journal of this process in `folder`."""

    def __init__(self, folder: str) -> None:
        self.pid = os.getpid()
        self._path = Path(folder) / f"{self.pid}.journal"
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def start(self, chunk: int) -> None:
        """Say that `chunk` starts."""
        self._write(json.dumps({"start": chunk, "pid": self.pid}).encode() + b"\n")

    def end(self, chunk: int, head: dict[str, Any], body: bytes) -> None:
        """Leave the outcome of `chunk`."""
        line = json.dumps({**head, "end": chunk, "size": len(body)}).encode() + b"\n"
        self._write(line + body)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


@dataclass
class _Tail:
    position: int = 0
    running: int | None = None


class JournalReader:
    """Reads what was appended to all journals of `folder` since the last look."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._tails: dict[Path, _Tail] = {}

    def read(self) -> list[Outcome]:
        """Return the outcomes that are new."""
        found: list[Outcome] = []
        for path in sorted(self._folder.glob("*.journal")):
            tail = self._tails.setdefault(path, _Tail())
            if path.stat().st_size > tail.position:
                with path.open("rb") as file:
                    file.seek(tail.position)
                    found += self._parse(tail, file.read())
        return found

    def take_suspects(self) -> list[int]:
        """Return the chunks that started and did not end, and forget their journals' open ends.

        To be called when all workers are dead.
        """
        suspects = [tail.running for tail in self._tails.values() if tail.running is not None]
        for path in self._tails:
            path.unlink(missing_ok=True)
        self._tails.clear()
        return suspects

    @staticmethod
    def _parse(tail: _Tail, data: bytes) -> list[Outcome]:
        found: list[Outcome] = []
        at = 0
        while (stop := data.find(b"\n", at)) >= 0:
            head = json.loads(data[at:stop])
            at = stop + 1
            if "start" in head:
                tail.running = head["start"]
            else:
                size = head.pop("size")
                if len(data) - at < size:
                    return found  # the rest of this outcome is still being written
                tail.running = None
                chunk = head.pop("end")
                found.append(Outcome(chunk, head, data[at : at + size]))
                at += size
            tail.position += at
            data, at = data[at:], 0
        return found
