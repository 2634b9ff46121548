"""What a Parallel call tells of itself while somebody waits for it.

::

    backend, cluster ──► Reporter ─┐                                    ┌─► a line on the terminal   (`terminal`)
    session's counters ◄── looks ──┴─ display: one thread, all calls ───┼─► an HTML display          (`notebook`)
                                                                        └─► a line in a log          (`lines`)

A session counts what happens and tells nobody; the display's thread looks at the counters a few times a second, and
nothing waits for it. What it shows is gone when the call is over. This package knows nothing of sessions: a `Reporter`
is given a function that returns `Figures`.
"""

from __future__ import annotations

from .display import reporter, wish_of
from .figures import Figures
from .reporter import SILENT, Reporter

__all__ = ["SILENT", "Figures", "Reporter", "reporter", "wish_of"]
