"""The one place where the SDKs' errors become ours."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.core.exceptions import ResourceExistsError as AzureExistsError
from azure.core.exceptions import ResourceNotFoundError as AzureNotFoundError

from ..errors import (
    AuthenticationError,
    ResourceExistsError,
    ResourceNotFoundError,
    ServiceError,
    ServiceUnreachableError,
)

P = ParamSpec("P")
R = TypeVar("R")

#: Options for every client of both SDKs. azure-core's policy is the only one that retries; its own default
#: (10 times, up to 120 s apart) would let a wrong endpoint look like a hang for minutes.
CLIENT_OPTIONS: dict[str, Any] = {
    "retry_total": 4,
    "retry_backoff_factor": 0.4,
    "retry_backoff_max": 20,
    "connection_timeout": 10,
    "read_timeout": 60,
    "logging_enable": False,
}


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
        raise _from_response(doing, endpoint, exc) from exc
    except AzureError as exc:
        raise ServiceError(f"{doing}: {_first_line(exc)}", endpoint=endpoint) from exc


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
    return ""


def _from_response(doing: str, endpoint: str, exc: HttpResponseError) -> ServiceError:
    code, status = error_code(exc), exc.status_code
    message = getattr(getattr(getattr(exc, "model", None), "message", None), "value", None)
    said = str(message or exc.message or "").split("\n", 1)[0].strip()
    context = {"code": code, "status": status, "endpoint": endpoint}
    if isinstance(exc, ClientAuthenticationError) or status in (401, 403):
        return AuthenticationError(
            f"{doing}: the service refused the credentials ({said}). Check the account's name and key, and "
            "this machine's clock",
            **context,
        )
    kind: type[ServiceError] = ServiceError
    if isinstance(exc, AzureNotFoundError) or status == 404:
        kind = ResourceNotFoundError
    elif isinstance(exc, AzureExistsError) or code.endswith(("Exists", "BeingDeleted")):
        kind = ResourceExistsError
    return kind(f"{doing}: {said}", **context)


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().split("\n", 1)[0] or type(exc).__name__
