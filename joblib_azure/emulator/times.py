"""Times and durations as the service writes them: UTC with seven digits, HTTP dates, ISO 8601 durations."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime, parsedate_to_datetime

#: What the service returns for "no limit" (.NET's TimeSpan.MaxValue).
UNLIMITED = "P10675199DT2H48M5.4775807S"

_DURATION = re.compile(
    r"P(?:(?P<days>\d+(?:\.\d+)?)D)?"
    r"(?:T(?:(?P<hours>\d+(?:\.\d+)?)H)?(?:(?P<minutes>\d+(?:\.\d+)?)M)?(?:(?P<seconds>\d+(?:\.\d+)?)S)?)?"
)


#: How far the service's clock is ahead of the machine's, which the nodes have.
_skew = timedelta()


def now() -> datetime:
    return datetime.now(timezone.utc) + _skew


def set_skew(seconds: float) -> None:
    """Have the service's clock go that far ahead of the machine's; behind it where negative."""
    global _skew
    _skew = timedelta(seconds=seconds)


def iso(moment: datetime) -> str:
    """``2026-01-02T03:04:05.1234560Z``."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond:06d}0Z"


def http_date(moment: datetime) -> str:
    return format_datetime(moment.astimezone(timezone.utc), usegmt=True)


def parse_http_date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def parse_datetime(text: str) -> datetime | None:
    """An ISO 8601 date, with up to seven digits of fraction (``fromisoformat`` of Python 3.10 takes six)."""
    match = re.fullmatch(
        r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(\.\d+)?)?\s*(Z|[+-]\d\d:?\d\d)?", text.strip(), re.IGNORECASE
    )
    if match is None:
        return None
    day, clock, fraction, zone = match.groups()
    clock = (clock or "00:00:00") if not clock or clock.count(":") == 2 else f"{clock}:00"
    micro = ((fraction or ".0")[1:] + "000000")[:6]
    offset = "+00:00" if zone is None or zone in "Zz" else zone if ":" in zone else f"{zone[:3]}:{zone[3:]}"
    try:
        return datetime.fromisoformat(f"{day}T{clock}.{micro}{offset}")
    except ValueError:
        return None


def parse_duration(text: str) -> timedelta | None:
    """An ISO 8601 duration without years and months; None for anything else."""
    match = _DURATION.fullmatch(text)
    if match is None or text in ("P", "PT") or text.endswith("T"):
        return None
    parts = {name: float(value) for name, value in match.groupdict().items() if value is not None}
    try:
        return timedelta(**parts)
    except OverflowError:
        return None


def duration(value: timedelta) -> str:
    """``PT1H30M``, ``P7D``."""
    days, seconds = value.days, value.seconds + value.microseconds / 1e6
    parts = ((int(seconds // 3600), "H"), (int(seconds // 60 % 60), "M"), (seconds % 60, "S"))
    clock = "".join(f"{number:.6f}".rstrip("0").rstrip(".") + unit for number, unit in parts if number)
    return (
        "P"
        + (f"{days}D" if days else "")
        + (f"T{clock}" if clock or not days else "")
        + ("" if clock or days else "0S")
    )
