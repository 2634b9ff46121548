"""The files in which a task's workers leave what they did.

Each worker process appends to a journal of its own in the task's working folder: a line of JSON when a
chunk starts and one, followed by the outcome's bytes, when it ends. An append is one ``write``, so what a
worker finished survives its death, that of its pool and that of the runner; and a chunk with a start and no
end, in a journal whose process is dead, is one that was running when it died.

::

    {"start": 17, "pid": 4242}\\n
    {"end": 17, "ok": true, "seconds": 0.2, "calls": 4, "size": 1234}\\n<1234 bytes>

A large outcome is a file beside the journal, which its end names (``payload``); whoever sends it removes it.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

#: Bytes of large outcomes that may lie on the node's disk before they are sent.
MOST_UNSENT = 1 << 30
#: Seconds between two looks whether they were, and until nobody waits any more.
_LOOK, _LONGEST_WAIT = 0.05, 3600.0
#: Bytes of a journal that are read at a time; more than its largest entry.
_WINDOW = 16 << 20
_PAYLOAD = ".payload"


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

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self._fd)

    def start(self, chunk: int) -> None:
        """Say that `chunk` starts."""
        self._write(json.dumps({"start": chunk, "pid": self.pid}).encode() + b"\n")

    def end(self, chunk: int, head: dict[str, Any], body: bytes) -> None:
        """Leave the outcome of `chunk`."""
        line = json.dumps({**head, "end": chunk, "size": len(body)}).encode() + b"\n"
        self._write(line + body)

    def payload(self, chunk: int, parts: Sequence[bytes | memoryview]) -> str:
        """Leave the bytes of a large outcome in a file of its own, and return its name.

        Waits while what was left before and is not sent yet takes more than `MOST_UNSENT` bytes: a disk is no place
        for all results of a bundle.
        """
        self._await_room()
        name = f"{self.pid}-{chunk}{_PAYLOAD}"
        with (self._path.parent / name).open("wb", buffering=0) as file:
            for part in parts:
                _write(file.fileno(), part)
        return name

    def _await_room(self) -> None:
        # Bounded: the task ends where it cannot send, and whoever waits here ends with it.
        end = time.monotonic() + _LONGEST_WAIT
        while time.monotonic() < end:
            unsent = 0
            for path in self._path.parent.glob(f"*{_PAYLOAD}"):
                with contextlib.suppress(FileNotFoundError):
                    unsent += path.stat().st_size
            if unsent <= MOST_UNSENT:
                return
            time.sleep(_LOOK)

    def _write(self, data: bytes) -> None:
        _write(self._fd, data)


def _write(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
    while view:
        view = view[os.write(fd, view) :]


@dataclass
class _Tail:
    position: int = 0
    running: int | None = None


class JournalReader:
    """Reads what was appended to all journals of `folder` since the last look."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._tails: dict[Path, _Tail] = {}

    def read(self) -> Iterator[Outcome]:
        """Yield the outcomes that are new.

        Raises
        ------
        ValueError
            Where a journal holds what no worker writes: its calls may write there too.
        """
        for path in sorted(self._folder.glob("*.journal")):
            tail = self._tails.setdefault(path, _Tail())
            while path.stat().st_size > tail.position:
                before = tail.position
                with path.open("rb") as file:
                    file.seek(before)
                    data = file.read(_WINDOW)
                try:
                    found = self._parse(tail, data)
                except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as exc:
                    raise ValueError(
                        f"{path.name} holds what no worker has written: {type(exc).__name__}: {exc}"
                    ) from exc
                yield from found
                if tail.position == before:
                    break

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
        done = 0
        while (stop := data.find(b"\n", done)) >= 0:
            head = json.loads(data[done:stop])
            end = stop + 1
            if "start" in head:
                tail.running = _number(head["start"])
            else:
                end += _number(head.pop("size"))
                if len(data) < end:
                    break  # the rest of this outcome is still being written
                tail.running = None
                found.append(Outcome(_number(head.pop("end")), head, data[stop + 1 : end]))
            done = end
        tail.position += done
        return found


def _number(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no number of a chunk or of bytes")
    return value
