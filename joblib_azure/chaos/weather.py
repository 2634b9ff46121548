"""What of a schedule strikes which request, and what has struck so far."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .answers import Request, fits
from .faults import FAULTS
from .schedule import Schedule, Strike


@dataclass
class _Pending:
    strike: Strike
    left: int
    #: The request that was struck: only that one, when it is repeated, is struck again.
    struck: tuple[str, str] | None = None


class Weather:
    """The faults on the wire, and the count of all.

    Parameters
    ----------
    schedule : Schedule
    note : callable
        Takes a line for each strike.
    """

    def __init__(self, schedule: Schedule, note: Callable[[str], object] = lambda line: None) -> None:
        self.schedule = schedule
        self.struck: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        #: By how many seconds the services' clock is ahead.
        self.ahead = 0.0
        self._note, self._begun = note, time.monotonic()
        self._pending = [_Pending(strike, strike.times) for strike in schedule.strikes if strike.service]

    def add(self, strike: Strike) -> None:
        """Take up a further fault on the wire: it strikes from now on."""
        self._pending.append(_Pending(strike, strike.times))

    def strike(self, request: Request) -> Strike | None:
        """Count a request, and return what strikes it, if anything does; `count` is for who carries it out."""
        self.requests[request.service] += 1
        number = self.requests[request.service]
        key = request.method, request.path
        for pending in self._pending:
            if pending.struck == key or (pending.struck is None and pending.strike.at <= number):
                if not fits(pending.strike, request):
                    continue
                if pending.strike.times < 100:
                    pending.struck = key
                pending.left -= 1
                if pending.left <= 0:
                    self._pending.remove(pending)
                return pending.strike
        return None

    def again(self, strike: Strike) -> None:
        """A strike did not change anything after all: let it strike another request."""
        self._pending.append(_Pending(strike, 1))

    def count(self, fault: str, where: str) -> None:
        """A fault has struck."""
        self.struck[fault] += 1
        self._note(f"{time.monotonic() - self._begun:8.3f} {fault} {where}")

    def report(self) -> dict[str, object]:
        """Return what has struck, by the names of all faults."""
        return {
            "seed": self.schedule.seed,
            "ends_with": self.schedule.ends_with,
            "struck": {name: self.struck[name] for name in FAULTS},
            "requests": dict(self.requests),
        }
