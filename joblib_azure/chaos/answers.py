"""What the services answer when something is wrong with them, as they write it, and what a late answer leaves out.

https://learn.microsoft.com/rest/api/batchservice/batch-status-and-error-codes and
https://learn.microsoft.com/rest/api/storageservices/common-rest-api-error-codes.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime, parsedate_to_datetime

from .schedule import Strike

#: Seconds of a Retry-After; whole ones, as the header has them.
_RETRY_AFTER = "1"
_TASK_LISTING = re.compile(r"/jobs/[^/]+/tasks/?")
_COUNTS = re.compile(r"/jobs/[^/]+/taskcounts|/nodecounts")
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6})")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request on its way; `target` is the path with its query."""

    service: str
    method: str
    target: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def writes(self) -> bool:
        return self.method not in ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True, kw_only=True)
class Response:
    """An answer, whole."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""


#: Which requests a fault fits; all of its services where it is not here.
_FITS: dict[str, Callable[[Request], bool]] = {
    "lost-answer": lambda request: request.writes,
    "truncated": lambda request: request.method == "GET",
    "stale": lambda request: request.method == "GET" and bool(_hides(request)),
    "sas-expired": lambda request: "sig=" in request.target,
    "quota": lambda request: (request.method, request.path) == ("POST", "/jobs"),
}


def fits(strike: Strike, request: Request) -> bool:
    """Tell whether a strike can hit a request."""
    fitting = _FITS.get(strike.fault)
    meant = strike.service == request.service and strike.target in f"{request.method} {request.target}"
    return meant and (fitting is None or fitting(request))


# errors -------------------------------------------------------------------------------------------------------


def refusal(strike: Strike, request: Request) -> Response | None:
    """Return what a service answers in place of doing what is asked; None for a fault of another kind."""
    if strike.fault not in _REFUSALS:
        return None
    status, code, text, waits = _REFUSALS[strike.fault]
    if strike.fault == "internal-error" and strike.pick > 0.5:
        code, text = "OperationTimedOut", "The operation could not be completed within the permitted time."
    headers = [(b"Retry-After", _RETRY_AFTER.encode())] if waits else []
    if request.service == "batch":
        return _batch_error(status, code, text, headers)
    return _storage_error(status, code, text, headers)


_UNSIGNED = (
    "Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly "
    "including the signature."
)
_BUSY = (503, "ServerBusy", "The server is currently unable to receive requests. Please retry your request.")
_THROTTLED = (429, "TooManyRequests", "Too many requests have been sent in a given amount of time.")
_REFUSALS: dict[str, tuple[int, str, str, bool]] = {
    "throttled": (*_THROTTLED, True),
    "throttled-bare": (*_THROTTLED, False),
    "busy": (*_BUSY, True),
    "busy-bare": (*_BUSY, False),
    "internal-error": (
        500,
        "InternalError",
        "The server encountered an internal error. Please retry the request.",
        False,
    ),
    "sas-expired": (
        403,
        "AuthenticationFailed",
        _UNSIGNED,
        False,
    ),
    "quota": (
        409,
        "ActiveJobAndScheduleQuotaReached",
        "The account has reached its quota of active jobs and job schedules.",
        False,
    ),
}


def _batch_error(status: int, code: str, text: str, headers: Iterable[tuple[bytes, bytes]]) -> Response:
    number = str(uuid.uuid4())
    said = f"{text}\nRequestId:{number}\nTime:{datetime.now(timezone.utc).isoformat()}"
    body = json.dumps({"code": code, "message": {"lang": "en-US", "value": said}}).encode()
    kind = b"application/json; odata=minimalmetadata"
    return Response(
        status=status, headers=((b"Content-Type", kind), (b"request-id", number.encode()), *headers), body=body
    )


def _storage_error(status: int, code: str, text: str, headers: Iterable[tuple[bytes, bytes]]) -> Response:
    number, now = str(uuid.uuid4()), datetime.now(timezone.utc)
    detail = ""
    if code == "AuthenticationFailed":
        ended = now - timedelta(seconds=1)
        detail = (
            "<AuthenticationErrorDetail>Signature not valid in the specified time frame: Start "
            f"[{format_datetime(now - timedelta(days=7), usegmt=True)}] - Expiry "
            f"[{format_datetime(ended, usegmt=True)}] - Current [{format_datetime(now, usegmt=True)}]"
            "</AuthenticationErrorDetail>"
        )
    body = (
        f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{text}\n'
        f"RequestId:{number}\nTime:{now.isoformat()}</Message>{detail}</Error>"
    )
    mine = (
        (b"Content-Type", b"application/xml"),
        (b"x-ms-error-code", code.encode()),
        (b"x-ms-request-id", number.encode()),
    )
    return Response(status=status, headers=(*mine, *headers), body=body.encode())


# late and skewed ----------------------------------------------------------------------------------------------


def _hides(request: Request) -> bool:
    return bool(_TASK_LISTING.fullmatch(request.path) or _COUNTS.fullmatch(request.path))


def late(request: Request, response: Response, before: Response | None, since: datetime) -> Response | None:
    """Return an answer as it was some time ago; None where it would be the same.

    Parameters
    ----------
    request : Request
    response : Response
        As it is.
    before : Response or None
        What the same path was answered earlier: counts are those of then.
    since : datetime
        What has changed since then does not show in a listing; by the service's clock.
    """
    if response.status != 200:
        return None
    if _COUNTS.fullmatch(request.path):
        return before if before is not None and before.body != response.body else None
    found = json.loads(response.body)
    shown = [each for each in found["value"] if not _is_after(each.get("stateTransitionTime"), since)]
    if len(shown) == len(found["value"]):
        return None
    body = json.dumps({**found, "value": shown}, separators=(",", ":")).encode()
    return Response(status=response.status, headers=response.headers, body=body)


def _is_after(text: str | None, since: datetime) -> bool:
    match = _MOMENT.match(text or "")
    return match is not None and datetime.fromisoformat(f"{match[1]}+00:00") > since


def skewed(response: Response, ahead: float) -> Response:
    """Return an answer whose headers are by a clock that is ahead by so many seconds."""
    headers = tuple(
        (name, _moved(value, ahead) if name.lower() in (b"date", b"last-modified") else value)
        for name, value in response.headers
    )
    return Response(status=response.status, headers=headers, body=response.body)


def _moved(value: bytes, ahead: float) -> bytes:
    moment = parsedate_to_datetime(value.decode("latin-1"))
    return format_datetime(moment + timedelta(seconds=ahead), usegmt=True).encode()
