"""HTTP: from a request to a `Call`, and from an answer or an error to a response.

    body limit ─► who asks ─► operation by path and verb ─► api-version ─► query ─► body ─► handler

Paths below ``/_emulator`` are the emulator's own (see `control`). Every operation of the API description is known
here; one without a handler answers 501, never with a silent success.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_plus

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from . import errors, handlers, schema, times
from .auth import Authentication
from .calls import Answer, Call, handler_of
from .conditions import NotModified
from .control import KEY_HEADER, PREFIX, Control
from .engine import Engine
from .schema import Operation
from .tokens import Principal
from .traffic import Traffic

_log = logging.getLogger(__name__)
__all__ = ["BatchApp", "handlers"]

#: The newest first; those without the newest's name are the older style of clients (azure-batch 14, the Azure CLI).
API_VERSIONS = ("2025-06-01", "2024-07-01.20.0", "2024-02-01.19.0")
MAX_BODY = 1_048_576
_JSON = "application/json; odata=minimalmetadata"
_MAX_DRAINED = 16 * MAX_BODY
_ALWAYS_ALLOWED = frozenset({"api-version", "timeout", "$skiptoken"})

AccessLog = Callable[[str, str, int, float], None]


class BatchApp:
    """The ASGI application of one account."""

    def __init__(
        self,
        engine: Engine,
        auth: Authentication,
        access_log: AccessLog | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        self._engine = engine
        self._auth = auth
        self._control = Control(engine, auth)
        self._access_log = access_log
        self._traffic = traffic
        self._routes = [(compile_path(each.path)[0], each) for each in _by_path_length(schema.operations())]
        self._file_routes = [
            (compile_path(each.path.replace("{filePath}", "{filePath:path}"))[0], each)
            for each in schema.operations()
            if each.path.endswith("{filePath}")
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"no {scope['type']} here")
        began = time.perf_counter()
        request = Request(scope, receive)
        try:
            response = await self._respond(request)
        except ClientDisconnect:
            return
        if self._access_log is not None:
            # Before it is sent: whoever has an answer finds its line. As it was asked for: what is quoted in the path
            # may be a line feed.
            path = _raw_path(request) + (f"?{scope['query_string'].decode()}" if scope["query_string"] else "")
            self._access_log(request.method, path, response.status_code, (time.perf_counter() - began) * 1000)
        if self._traffic is not None and not scope["path"].startswith(PREFIX):
            self._traffic.add(
                request.method,
                scope["path"],
                scope["query_string"].decode("latin-1"),
                request.headers,
                getattr(request.state, "body", b""),
                response.status_code,
                response.headers,
                bytes(response.body),
            )
        await response(scope, receive, send)

    async def _respond(self, request: Request) -> Response:
        request_id = str(uuid.uuid4())
        try:
            answer = await self._answer(request)
        except NotModified:
            answer = Answer(status=304)
        except errors.BatchError as exc:
            answer = self._error(exc, request_id)
        except ClientDisconnect:
            raise
        except Exception:
            _log.exception("%s %s", request.method, request.url.path)
            answer = self._error(errors.internal_error(), request_id)
        headers = {"request-id": request_id, "DataServiceVersion": "3.0", **answer.headers}
        client_id = request.headers.get("client-request-id")
        if client_id and request.headers.get("return-client-request-id", "").lower() == "true":
            headers["client-request-id"] = client_id
        if answer.body and "Content-Type" not in headers:
            headers["Content-Type"] = _JSON
        if request.method == "HEAD":
            return _HeadResponse(status_code=answer.status, headers=headers)
        return Response(answer.body, answer.status, headers)

    def _error(self, error: errors.BatchError, request_id: str) -> Answer:
        body: dict[str, Any] = {
            "odata.metadata": f"{self._engine.endpoint}/$metadata#Microsoft.Azure.Batch.Protocol.Entities.Container."
            "errors/@Element",
            **error.body(),
        }
        text = f"{error.message}\nRequestId:{request_id}\nTime:{times.iso(times.now())}"
        body["message"] = {"lang": "en-US", "value": text}
        return Answer(status=error.status, headers=error.headers, body=json.dumps(body).encode())

    async def _answer(self, request: Request) -> Answer:
        raw = request.state.body = await _read_body(request)
        method = request.method
        path: str = request.scope["path"]
        headers = dict(request.headers)
        query_string = request.scope["query_string"].decode("latin-1")
        raw_path = _raw_path(request)
        if path.startswith(PREFIX):
            return self._control.answer(method, path, _query(query_string), headers.get(KEY_HEADER, ""))
        principal = self._auth.check(method, raw_path, query_string, headers)
        operation, params = self._find(method, path)
        self._authorize(principal, operation)
        query = _query(query_string)
        version = query.get("api-version")
        if version is None:
            raise errors.missing_query("api-version")
        if version not in API_VERSIONS:
            raise errors.unsupported_version(version, list(API_VERSIONS))
        for name in query:
            if name not in operation.query and name not in _ALWAYS_ALLOWED:
                raise errors.unsupported_query(name)
        handler = handler_of(operation.name)
        if handler is None:
            raise errors.not_implemented(f"the operation '{operation.name}' ({method} {operation.path})")
        legacy = version != API_VERSIONS[0]
        call = Call(
            engine=self._engine,
            operation=operation,
            params=params,
            query=query,
            headers=headers,
            body=_body(operation, raw, headers, legacy=legacy),
            path=path,
            principal=principal,
            legacy=legacy,
        )
        added = call.body["value"] if operation.name == "create_task_collection" else ()
        if seconds := self._engine.latency.request(len(added)):
            await asyncio.sleep(seconds)
        return await handler(call)

    def _authorize(self, principal: Principal, operation: Operation) -> None:
        """Refuse what the role Azure Batch Job Submitter lacks: it reads all, and changes jobs and tasks only."""
        options = self._engine.options
        changes = operation.method not in ("GET", "HEAD") and not operation.path.startswith(("/jobs", "/jobschedules"))
        if principal.token and principal.object_id in options.job_submitters and changes:
            raise errors.insufficient_permissions(
                f"The client '{principal.object_id}' with the role Azure Batch Job Submitter is not authorized to "
                f"perform '{operation.name}'."
            )

    def _find(self, method: str, path: str) -> tuple[Operation, dict[str, str]]:
        path = path.rstrip("/") or "/"
        allowed = []
        for routes in (self._routes, self._file_routes):
            for pattern, operation in routes:
                match = pattern.match(path)
                if match is None:
                    continue
                if operation.method == method:
                    return operation, match.groupdict()
                allowed.append(operation.method)
        if allowed:
            raise errors.unsupported_verb(method, sorted(set(allowed)))
        raise errors.invalid_uri(path)


class _HeadResponse(Response):
    """Keeps the Content-Length that a file's HEAD announces, though no body follows."""

    def init_headers(self, headers: Any = None) -> None:
        super().init_headers(headers)
        if headers and "Content-Length" not in headers:
            self.headers["Content-Length"] = "0"


def _by_path_length(operations: list[Operation]) -> list[Operation]:
    """Paths with literal segments before those with parameters in the same place."""
    return sorted(operations, key=lambda each: each.path.count("{"))


def _raw_path(request: Request) -> str:
    raw: bytes = request.scope["raw_path"]
    return raw.decode("latin-1")


async def _read_body(request: Request) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size <= MAX_BODY:
            pieces.append(piece)
        elif size > _MAX_DRAINED:
            break
    # the rest was read so that the answer reaches a client that is still sending
    if size > MAX_BODY:
        raise errors.body_too_large(MAX_BODY)
    return b"".join(pieces)


def _query(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split("&"):
        name, _, value = part.partition("=")
        if name:
            found.setdefault(unquote_plus(name).lower(), unquote_plus(value))
    return found


def _body(operation: Operation, raw: bytes, headers: dict[str, str], *, legacy: bool) -> dict[str, Any]:
    if operation.body is None:
        return {}
    optional = operation.name in _OPTIONAL_BODY
    if not raw:
        if optional:
            return {}
        raise errors.invalid_body("The request has no body.")
    kind = headers.get("content-type", "")
    if kind.split(";")[0].strip().lower() != "application/json":
        raise errors.invalid_header("Content-Type", kind, f"Expected '{_JSON}'.")
    try:
        body = json.loads(raw, parse_constant=_constant)
    except ValueError as exc:
        raise errors.invalid_body(f"Not JSON: {exc}.") from None
    except RecursionError:
        raise errors.invalid_body("Nested too deeply.") from None
    return schema.check_body(body, operation.body, legacy=legacy)


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


_OPTIONAL_BODY = frozenset(
    {"terminate_job", "reboot_node", "reimage_node", "deallocate_node", "disable_node_scheduling"}
)
