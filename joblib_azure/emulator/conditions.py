"""If-Match, If-None-Match, If-Modified-Since and If-Unmodified-Since: 412 on writes, 304 on reads."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from . import errors, times


class NotModified(Exception):
    """A read whose condition is not met: answered with 304 and no body."""


def check(headers: Mapping[str, str], etag: str, modified: datetime, *, read: bool) -> None:
    """Compare a request's conditions with a resource.

    Raises
    ------
    NotModified
        For a read.
    BatchError
        412 `ConditionNotMet` for a write; 400 for a header that is no date, or for several conditions at once.
    """
    given = {
        name: headers[name]
        for name in ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since")
        if headers.get(name)
    }
    if len(given) > 1:
        raise errors.multiple_conditions()
    for name, value in given.items():
        if not _met(name, value, etag, modified):
            if read and name in ("if-none-match", "if-modified-since"):
                raise NotModified
            raise errors.condition_not_met()


def _met(name: str, value: str, etag: str, modified: datetime) -> bool:
    if name in ("if-match", "if-none-match"):
        tags = {tag.strip().removeprefix("W/").strip('"') for tag in value.split(",")}
        same = "*" in tags or etag in tags
        return same if name == "if-match" else not same
    moment = times.parse_http_date(value)
    if moment is None:
        raise errors.invalid_header(name, value, "The value must be a date in RFC 1123 form.")
    # HTTP dates know no fractions of a second
    newer = modified.replace(microsecond=0) > moment
    return newer if name == "if-modified-since" else not newer
