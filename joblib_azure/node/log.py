"""What a task has written to its stderr, as the node has it: for the error of a call that killed its worker.

It is taken on the node, and at once: the node may be gone when somebody asks, and other calls write after it.
"""

from __future__ import annotations

import time
from pathlib import Path

#: Bytes of it that an error shows.
TAIL = 2000
#: Seconds for which more is waited for (between a warm runner and the file is a pipe), and between two looks.
_SETTLING, _LOOK = 0.5, 0.05


class TaskLog:
    """What comes into a task's stderr from now on.

    Parameters
    ----------
    path : Path or None
        Of the file, if the service says where it is.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._start = self._size()

    def _size(self) -> int:
        try:
            return 0 if self._path is None else self._path.stat().st_size
        except OSError:
            return 0

    def end(self) -> str:
        """Return the last lines of what has come, `TAIL` bytes at most; empty where it cannot be read."""
        if self._path is None:
            return ""
        until, size = time.monotonic() + _SETTLING, -1
        while size != (size := self._size()) and time.monotonic() < until:
            time.sleep(_LOOK)
        begin = max(self._start, size - TAIL)
        try:
            with self._path.open("rb") as file:
                file.seek(begin)
                data = file.read(TAIL)
        except OSError:
            return ""
        if begin > self._start:
            data = data.partition(b"\n")[2] or data  # it begins within a line
        return data.decode(errors="replace").strip()
