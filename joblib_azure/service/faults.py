"""The one place where the SDKs' errors become ours."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.exceptions import ResourceNotFoundError as AzureNotFoundError

from ..errors import (
    AuthenticationError,
    ConflictError,
    QuotaError,
    ResourceExistsError,
    ResourceNotFoundError,
    ServiceError,
    ServiceUnreachableError,
    masked,
)

P = ParamSpec("P")
R = TypeVar("R")

#: A pool may have its autoscale enabled once in 30 s; documented as a conflict in one place, as 503 in another.
_TOO_EARLY = frozenset({"TooManyEnableAutoScaleRequests", "AutoScaleTooManyRequestsToEnable"})


@contextlib.contextmanager
def translated(doing: str, endpoint: str) -> Iterator[None]:
    """Raise the SDK's errors as ours; `doing` says what was asked."""
    try:
        yield
    except ServiceRequestError as exc:
        raise ServiceUnreachableError(
            f"{doing}: nothing answers at {endpoint} ({_first_line(exc)}). Check the endpoint and the network"
        ) from exc
    except ServiceResponseError as exc:
        raise ServiceUnreachableError(
            f"{doing}: {endpoint} broke off its answer ({_first_line(exc)}). Try again"
        ) from exc
    except HttpResponseError as exc:
        translation = _from_response(doing, endpoint, exc)
        # An answer that was to be streamed and is an error is not read, and would keep its connection.
        close = getattr(exc.response, "close", None)
        if close is not None:
            with contextlib.suppress(Exception):
                close()
        _mask(exc)
        try:
            raise translation from exc
        finally:
            # This frame is in its traceback: together they would keep the answer, and its connection, from being freed.
            del translation
    except AzureError as exc:
        raise ServiceError(f"{doing}: {_first_line(exc)}", endpoint=endpoint) from exc
    except ValueError as exc:
        if "transport has already been closed" not in str(exc):
            raise
        raise ServiceUnreachableError(f"{doing}: the connection to {endpoint} was closed meanwhile") from exc


def _mask(exc: HttpResponseError) -> None:
    """Take the signatures of SAS out of what a traceback shows of it: its message, and the answer behind it."""
    if masked(str(exc)) != str(exc):
        exc.response = None
        exc.message = masked(exc.message)
        exc.args = (exc.message,)


def translates(doing: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a method of an object that has an ``endpoint``, as `translated` does a block."""

    def decorate(method: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(method)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            with translated(doing, getattr(args[0], "endpoint", "")):
                return method(*args, **kwargs)

        return wrapper

    return decorate


def error_code(exc: HttpResponseError) -> str:
    """Return the service's error code, for example ``JobExists``; empty where it gave none."""
    for holder in (getattr(exc, "error", None), getattr(exc, "model", None), exc):
        for name in ("code", "error_code"):
            code = getattr(holder, name, None)
            if code:
                return str(getattr(code, "value", code))
    return str(_body(exc).get("code") or "")


def _body(exc: HttpResponseError) -> dict[str, Any]:
    """The error as Batch writes it, for the requests that are made past the SDK's operations."""
    try:
        # An answer that is streamed was not read yet, and then cannot be any more.
        found = json.loads(exc.response.text()) if exc.response is not None else {}
    except Exception:
        return {}
    return found if isinstance(found, dict) else {}


def _from_response(doing: str, endpoint: str, exc: HttpResponseError) -> ServiceError:
    if isinstance(exc, ClientAuthenticationError) and exc.response is None:
        # azure-identity, before anything was asked of the service; its further lines say what each way lacks.
        return AuthenticationError(
            f"{doing}: Entra gave no token ({_first_line(exc)}). Sign in (`az login`), write a servicePrincipal or the "
            "account's keys into the credentials, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET",
            endpoint=endpoint,
        )
    code, status = error_code(exc), exc.status_code
    message = _message(exc) or getattr(getattr(getattr(exc, "model", None), "message", None), "value", None)
    # An error may hold the value that was refused, a URL with its SAS for one.
    said = masked(str(message or exc.message or "").split("\n", 1)[0].strip())
    context = {"code": code, "status": status, "endpoint": endpoint}
    if isinstance(exc, ClientAuthenticationError) or status in (401, 403):
        return AuthenticationError(
            f"{doing}: the service refused the credentials ({said}). Check the account's name and key (or the roles "
            "of the identity), and this machine's clock",
            **context,
        )
    kind: type[ServiceError] = ServiceError
    if isinstance(exc, AzureNotFoundError) or status == 404:
        kind = ResourceNotFoundError
    elif code.endswith("QuotaReached"):
        kind = QuotaError
    elif code.endswith(("Exists", "BeingDeleted")):
        kind = ResourceExistsError
    elif status in (409, 412) or code in _TOO_EARLY:
        kind = ConflictError
    return kind(f"{doing}: {said}", **context)


def _message(exc: HttpResponseError) -> str:
    """What an error says, with the details that Batch puts beside it (which property, which value, why)."""
    body = _body(exc)
    message = body.get("message")
    said = str(message.get("value", "")) if isinstance(message, dict) else ""
    details = [f"{each.get('key')}: {each.get('value')}" for each in body.get("values") or () if isinstance(each, dict)]
    first = said.split("\n", 1)[0].strip()
    return f"{first} ({'; '.join(details)})" if first and details else first


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().split("\n", 1)[0] or type(exc).__name__
