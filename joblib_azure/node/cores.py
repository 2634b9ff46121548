"""The node's cores: no more workers compute than it has, whatever tasks, environments and clients are on it.

::

    cores/0.token … <n>.token   locked by the process of the task whose worker computes: the lock ends with the process
    cores/next.lock             held by the one task that gathers tokens

A task takes as many tokens as it has workers, all of them before its first call. One task at a time gathers, and the
others wait behind it: two that each held a half of what they need would wait for ever, and one that needs many would
never get them from under those that need few.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

#: Seconds between two looks for a token that became free; one process of the node looks at a time.
_LOOK = 0.005


class Cores:
    """The tokens of one task.

    Parameters
    ----------
    folder : Path
        Of the node.
    most : int
        Workers that may compute at once on the node.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder = folder
        self._most = most
        self._held: list[int] = []
        #: Seconds for which the task waited for others.
        self.waited = 0.0

    def take(self, workers: int) -> None:
        """Wait until so many workers may compute, at most all that the node has.

        There is no deadline of its own: it waits for calls that run, whose duration is the user's.
        """
        begun = time.monotonic()
        self._folder.mkdir(parents=True, exist_ok=True)
        wanted = min(workers, self._most)
        gate = _open(self._folder / "next.lock")
        try:
            fcntl.flock(gate, fcntl.LOCK_EX)
            while len(self._held) < wanted:
                if not self._gather(wanted):
                    time.sleep(_LOOK)
        except BaseException:
            self.give_back()
            raise
        finally:
            os.close(gate)
        self.waited = time.monotonic() - begun

    def _gather(self, wanted: int) -> bool:
        """Take what is free; True where that is enough."""
        for number in range(self._most):
            if len(self._held) == wanted:
                break
            token = _open(self._folder / f"{number}.token")
            try:
                fcntl.flock(token, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(token)
            else:
                self._held.append(token)
        return len(self._held) == wanted

    def give_back(self) -> None:
        """Let others compute. Idempotent."""
        while self._held:
            os.close(self._held.pop())


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
