"""`Reporter`: what a Parallel call, and the cluster that it waits for, tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..cluster.waiting import Waiting
    from .figures import Figures


class Reporter(Protocol):
    """Takes what one Parallel call tells, in this order, at once and without an error; safe for threads."""

    def doing(self, what: str, timeout: float | None = None) -> None:
        """Take a step before the first call can run, and the seconds that it may take at most."""

    def waiting(self, now: Waiting) -> None:
        """Take where a wait for nodes is."""

    def running(self, look: Callable[[], Figures]) -> None:
        """Take what tells, from now on, what the call has come to; it is called on a thread of the reporter's."""

    def sending(self, look: Callable[[], Figures]) -> None:
        """Take what tells how many calls of a job were sent, which count as done; else as `running`."""

    def end(self) -> None:
        """The call is over: what was shown is gone when this returns. Idempotent."""


class _Silent:
    """Shows nothing."""

    def doing(self, what: str, timeout: float | None = None) -> None:
        pass

    def waiting(self, now: Waiting) -> None:
        pass

    def running(self, look: Callable[[], Figures]) -> None:
        pass

    def sending(self, look: Callable[[], Figures]) -> None:
        pass

    def end(self) -> None:
        pass


SILENT: Reporter = _Silent()
