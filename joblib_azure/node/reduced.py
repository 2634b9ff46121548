"""Several calls as one: they run side by side on the cores of their task, and one value is made of their results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from joblib import Parallel


class Reduced:
    """Runs calls and returns what `reduce` makes of the list of their results, in their order.

    Parameters
    ----------
    reduce : callable
    calls : sequence of (function, args, kwargs)
        One at least.
    """

    def __init__(self, reduce: Callable[[list[Any]], Any], calls: Sequence[tuple[Any, ...]]) -> None:
        self.reduce, self.calls = reduce, tuple(calls)
        #: Of the first call: by it the group is named.
        self.function = self.calls[0][0]

    def __call__(self) -> Any:
        # The backend that is in force here gives it the cores that this task has.
        return self.reduce(Parallel(n_jobs=-1)(self.calls))
