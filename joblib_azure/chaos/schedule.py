"""Which faults strike when: made from a seed, or read from a file. Pure, so that a seed is always the same storm.

A fault on the wire strikes by the count of its service's requests, which hardly depends on how fast the machine is; one
of a node strikes some seconds after the first task was added. A schedule says beforehand whether a client must survive
it, and if not, which fault it is that ends it.
"""

from __future__ import annotations

import difflib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .faults import FAULTS

#: One seed in so many makes a schedule that a client cannot survive; which of `FATAL` changes from one to the next.
FATAL_EVERY = 12
#: What ends a client, whatever it does. ``poison`` is a call that kills its worker, and so the workload's own.
FATAL = ("poison", "pool-deleted", "job-ended", "sas-expired")
#: The moment of what strikes only when somebody asks for it (``POST /_chaos/strike``).
ON_DEMAND = 1e9
#: More than a run has.
_WITHOUT_END = 1_000_000
#: How many requests of a short run may be struck, by service.
_SPAN = {"batch": 40, "storage": 260}
#: Faults of the wire: how likely each is, how many requests it strikes at most, and seconds that it lasts.
_WIRE: dict[tuple[str, str], tuple[float, int, tuple[float, float]]] = {
    ("throttled", "batch"): (0.9, 2, (0.0, 0.0)),
    ("throttled-bare", "batch"): (0.9, 3, (0.0, 0.0)),
    ("busy", "batch"): (0.6, 2, (0.0, 0.0)),
    ("busy", "storage"): (0.6, 2, (0.0, 0.0)),
    ("busy-bare", "batch"): (0.6, 3, (0.0, 0.0)),
    ("busy-bare", "storage"): (0.9, 3, (0.0, 0.0)),
    ("internal-error", "batch"): (0.6, 2, (0.0, 0.0)),
    ("internal-error", "storage"): (0.9, 2, (0.0, 0.0)),
    ("reset", "batch"): (0.7, 2, (0.0, 0.0)),
    ("reset", "storage"): (0.9, 2, (0.0, 0.0)),
    ("lost-answer", "batch"): (0.9, 1, (0.0, 0.0)),
    ("lost-answer", "storage"): (0.95, 1, (0.0, 0.0)),
    ("time-out", "batch"): (0.3, 1, (10.5, 11.0)),
    ("time-out", "storage"): (0.5, 1, (10.5, 11.0)),
    ("slow", "batch"): (0.6, 2, (0.2, 0.8)),
    ("slow", "storage"): (0.9, 3, (0.2, 0.8)),
    ("truncated", "batch"): (0.7, 1, (0.0, 0.0)),
    ("truncated", "storage"): (0.9, 2, (0.0, 0.0)),
    ("stale", "batch"): (1.0, 2, (1.0, 2.5)),
    ("sas-expired", "storage"): (0.75, 1, (0.0, 0.0)),
    ("quota", "batch"): (0.7, 2, (0.0, 0.0)),
}
#: The others: how likely each is, between which seconds it strikes (below 0: at once, before anything is asked), and
#: between how many seconds it lasts.
_ELSE: dict[str, tuple[float, tuple[float, float], tuple[float, float]]] = {
    "clock-skew": (0.75, (-1.0, -1.0), (-480.0, 480.0)),
    "preempted": (0.7, (0.3, 4.0), (0.5, 2.0)),
    "rebooted": (0.7, (0.3, 4.0), (0.0, 0.0)),
    "unusable": (0.7, (0.3, 4.0), (0.5, 2.0)),
    "lost": (0.7, (0.3, 4.0), (1.0, 2.5)),
    "start-task-failed": (0.7, (0.3, 4.0), (0.5, 1.5)),
    "preparation-failed": (0.75, (-1.0, -1.0), (0.0, 0.0)),
    "task-killed": (0.75, (0.5, 4.0), (0.0, 0.0)),
    "disk-full": (0.7, (0.3, 4.0), (1.0, 2.0)),
    "supervisor-killed": (0.75, (0.5, 4.0), (0.0, 0.0)),
    "runner-killed": (0.8, (0.5, 4.0), (0.0, 0.0)),
    "azurite-restarted": (0.7, (0.5, 4.0), (0.3, 1.2)),
    "pool-deleted": (0.7, (-1.0, -1.0), (0.0, 0.0)),
}


class ScheduleError(ValueError):
    """A schedule that is none: what is wrong with it, and where."""


@dataclass(frozen=True, kw_only=True)
class Strike:
    """One strike of a fault.

    Parameters
    ----------
    fault : str
        Of `FAULTS`.
    service : str
        Whose requests, for a fault on the wire.
    at : int
        It strikes the first request that it fits from this one on (the service's first is 1).
    target : str
        Text that such a request's method, path and query (``POST /jobs?…``) have in them; empty for any.
    times : int
        So many requests alike: those that repeat the one that was struck.
    after : float
        Seconds after the first task was added, for the others; below 0 at once, before the client asks anything, and
        `ON_DEMAND` only when somebody asks for it.
    seconds : float
        How long it lasts; by how much a clock is ahead.
    pick : float
        From 0 to 1: which of the nodes or processes that there are then.
    """

    fault: str
    service: str = ""
    at: int = 1
    target: str = ""
    times: int = 1
    after: float = 0.0
    seconds: float = 0.0
    pick: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A storm.

    Parameters
    ----------
    seed : int
    strikes : tuple of Strike
    ends_with : str
        The fault that a client cannot survive; empty where it must survive all of them.
    """

    seed: int = 0
    strikes: tuple[Strike, ...] = ()
    ends_with: str = ""

    def __post_init__(self) -> None:
        wrong = list(self._problems())
        if wrong:
            raise ScheduleError("the schedule of faults is not usable:\n  " + "\n  ".join(wrong))

    def _problems(self) -> Iterator[str]:
        if self.ends_with and self.ends_with not in FATAL:
            yield f"ends_with is {self.ends_with!r}; known are {', '.join(FATAL)}"
        for number, strike in enumerate(self.strikes):
            where, fault = f"strikes[{number}]", FAULTS.get(strike.fault)
            if fault is None:
                near = difflib.get_close_matches(str(strike.fault), FAULTS, 1)
                yield f"{where}: there is no fault {strike.fault!r}; " + (
                    f"did you mean {near[0]!r}?" if near else f"known are {', '.join(FAULTS)}"
                )
                continue
            if fault.on_the_wire and strike.service not in fault.services:
                yield f"{where}: service is {strike.service!r}; {fault.name} strikes {' and '.join(fault.services)}"
            if not fault.on_the_wire and strike.service:
                yield f"{where}: {fault.name} strikes no requests, so it has no service"
            if strike.target and not strike.service:
                yield f"{where}: {fault.name} strikes no requests, so it has no target"
            for name, least in (("at", 1), ("times", 1), ("after", -1.0), ("pick", 0.0)):
                if not getattr(strike, name) >= least:
                    yield f"{where}: {name} is {getattr(strike, name)}, below {least}"
            if strike.seconds < 0 and fault.name != "clock-skew":
                yield f"{where}: seconds is {strike.seconds}, below 0"

    @property
    def on_demand(self) -> tuple[Strike, ...]:
        """What strikes only when somebody asks for it."""
        return tuple(strike for strike in self.strikes if strike.after >= ON_DEMAND)

    def to_json(self) -> str:
        """Return it as a file has it: what is not said is the default."""
        default = Strike(fault="")
        strikes = [
            {name: value for name, value in asdict(strike).items() if value != getattr(default, name)}
            for strike in self.strikes
        ]
        return json.dumps({"seed": self.seed, "ends_with": self.ends_with, "strikes": strikes}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Schedule:
        """Read what `to_json` writes, or a person. :raises ScheduleError: it is none."""
        try:
            found = json.loads(text)
        except ValueError as exc:
            raise ScheduleError(f"the schedule of faults is no JSON: {exc}") from None
        given = _known(found, ("seed", "ends_with", "strikes"), "the schedule of faults")
        rows = given.pop("strikes", [])
        if not isinstance(rows, list):
            raise ScheduleError(f"the schedule of faults: strikes is a {type(rows).__name__}, not a list")
        names = tuple(field.name for field in fields(Strike))
        try:
            strikes = [Strike(**_known(row, names, f"strikes[{number}]")) for number, row in enumerate(rows)]
            return cls(**given, strikes=tuple(strikes))
        except TypeError as exc:
            raise ScheduleError(f"the schedule of faults is not usable: {exc}") from None


def _known(found: Any, names: tuple[str, ...], where: str) -> dict[str, Any]:
    if not isinstance(found, Mapping):
        raise ScheduleError(f"{where} is a {type(found).__name__}, not an object")
    for name in found:
        if name not in names:
            raise ScheduleError(f"{where} has no {name!r}; known are {', '.join(names)}")
    return dict(found)


def schedule_of(given: int | str) -> Schedule:
    """Return the schedule of a seed, or of a file.

    Raises
    ------
    ScheduleError
        Where it is neither, or the file holds no schedule.
    """
    if isinstance(given, int) or str(given).strip().lstrip("-").isdigit():
        return make_schedule(int(given))
    try:
        text = Path(given).read_text()
    except OSError as exc:
        raise ScheduleError(f"{str(given)!r} is neither a seed nor a file of faults: {exc.strerror}") from None
    return Schedule.from_json(text)


def make_schedule(seed: int) -> Schedule:
    """Return the storm of a seed: of every class of fault about two in three times, in a run of some seconds."""
    draw = random.Random(seed)
    ends_with = FATAL[seed // FATAL_EVERY % len(FATAL)] if seed % FATAL_EVERY == FATAL_EVERY - 1 else ""
    strikes = [*_on_the_wire(draw), *_elsewhere(draw)]
    if ends_with == "sas-expired":
        strikes.append(Strike(fault="sas-expired", service="storage", at=draw.randrange(60, 120), times=_WITHOUT_END))
    elif ends_with in FAULTS:
        strikes = [strike for strike in strikes if strike.fault != ends_with]
        strikes.append(Strike(fault=ends_with, after=round(draw.uniform(0.5, 2.0), 2)))
    elif not ends_with and draw.random() < 0.7:
        # Between two Parallel calls, by whoever drives the storm: only then it is not the end.
        strikes.append(Strike(fault="job-ended", after=ON_DEMAND))
    return Schedule(seed=seed, strikes=tuple(strikes), ends_with=ends_with)


def _on_the_wire(draw: random.Random) -> Iterator[Strike]:
    for (fault, service), (likely, most, (shortest, longest)) in _WIRE.items():
        strikes = draw.random() < likely
        at, times = draw.randrange(1, _SPAN[service]), draw.randint(1, most)
        seconds, pick = round(draw.uniform(shortest, longest), 2), round(draw.random(), 3)
        if strikes:
            first = 1 if fault in ("quota", "stale") else at
            yield Strike(fault=fault, service=service, at=first, times=times, seconds=seconds, pick=pick)


def _elsewhere(draw: random.Random) -> Iterator[Strike]:
    for fault, (likely, (earliest, latest), (shortest, longest)) in _ELSE.items():
        strikes = draw.random() < likely
        after, seconds = round(draw.uniform(earliest, latest), 2), round(draw.uniform(shortest, longest), 2)
        pick = round(draw.random(), 3)
        if strikes:
            yield Strike(fault=fault, after=after, seconds=seconds, pick=pick)
