"""A small HTTP proxy on loopback between clients and one service, which does to requests what the weather says.

One request at a time on a connection, read whole and passed on whole. What is refused is not passed on; what is lost
takes effect before. Paths below ``/_chaos/`` are the storm's own (`__main__`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import h11

from .answers import Request, Response, late, refusal, skewed
from .schedule import Strike
from .weather import Weather

CONTROL = "/_chaos/"
#: Seconds that a service may take for an answer.
_PATIENCE = 120.0
_PIECE = 1 << 18
#: Pieces of an answer that is slow.
_DROPS = 4
#: What concerns one connection only.
_HOP = (b"connection", b"keep-alive", b"transfer-encoding", b"content-length")

Target = Callable[[], tuple[str, int]]
#: Answers what is asked of the storm itself.
Control = Callable[[Request], Awaitable[Response]]


class Proxy:
    """In front of one service.

    Parameters
    ----------
    service : {"batch", "storage"}
    weather : Weather
    target : callable
        Returns the service's host and port as they are now.
    passed : callable
        Told of each request that was passed on, with its answer.
    control : callable, optional
        Answers paths below `CONTROL`.
    """

    def __init__(
        self,
        service: str,
        weather: Weather,
        target: Target,
        passed: Callable[[Request, Response], object] = lambda request, response: None,
        control: Control | None = None,
    ) -> None:
        self._service, self._weather, self._target = service, weather, target
        self._passed, self._control = passed, control
        self._before: dict[str, Response] = {}
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def listen(self) -> None:
        """Listen, on the same port as before where there was one."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=_PIECE, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Listen no more, and break what is open: who connects is refused."""
        if self._server is not None:
            self._server.close()
            for writer in list(self._open):
                _reset(writer)
            self._server = None
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = h11.Connection(h11.SERVER)
            try:
                while (request := await self._read(connection, reader)) is not None:
                    usable = await self._answer(connection, request, reader, writer)
                    if not usable or connection.our_state is not h11.DONE:
                        break
                    connection.start_next_cycle()
            except h11.RemoteProtocolError:
                pass
        self._open.discard(writer)
        with contextlib.suppress(OSError):
            writer.close()

    async def _read(self, connection: h11.Connection, reader: asyncio.StreamReader) -> Request | None:
        head, body = await _received(connection, reader, h11.Request)
        if head is None:
            return None
        return Request(
            service=self._service,
            method=head.method.decode(),
            target=head.target.decode("latin-1"),
            headers=tuple(head.headers.raw_items()),
            body=body,
        )

    async def _answer(
        self,
        connection: h11.Connection,
        request: Request,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Answer a request, in whatever way; False where the connection is of no use any more."""
        if self._control is not None and request.path.startswith(CONTROL):
            await _send(connection, writer, await self._control(request))
            return True
        strike = self._weather.strike(request)
        where = f"{request.method} {request.target.partition('sig=')[0]}"
        if strike is None:
            return await self._pass_on(connection, request, writer)
        if strike.fault != "stale" and strike.fault != "truncated":
            self._weather.count(strike.fault, where)
        refused = refusal(strike, request)
        if refused is not None:
            await _send(connection, writer, self._dated(refused))
            return True
        if strike.fault == "reset":
            _reset(writer)
            return False
        if strike.fault == "time-out":
            if strike.pick > 0.5:  # it takes effect all the same
                await self._exchange(request)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(reader.read(1), strike.seconds)
            _reset(writer)
            return False
        response = await self._exchange(request)
        if response is None or strike.fault == "lost-answer":
            _reset(writer)
            return False
        return await self._spoiled(strike, connection, request, response, writer, where)

    async def _spoiled(
        self,
        strike: Strike,
        connection: h11.Connection,
        request: Request,
        response: Response,
        writer: asyncio.StreamWriter,
        where: str,
    ) -> bool:
        """Hand on an answer with something wrong about it."""
        if strike.fault == "stale":
            since = datetime.now(timezone.utc) + timedelta(seconds=self._weather.ahead - strike.seconds)
            found = late(request, response, self._before.get(request.path), since)
            if found is None:
                self._weather.again(strike)
            else:
                self._weather.count("stale", where)
            self._before[request.path] = response
            await _send(connection, writer, self._dated(found or response))
            return True
        if strike.fault == "truncated":
            if response.status not in (200, 206) or len(response.body) < 2:
                self._weather.again(strike)
                await _send(connection, writer, self._dated(response))
                return True
            self._weather.count("truncated", where)
            await _send(connection, writer, self._dated(response), part=len(response.body) // 2)
            _reset(writer, at_once=False)
            return False
        await _send(connection, writer, self._dated(response), seconds=strike.seconds)
        return True

    async def _pass_on(self, connection: h11.Connection, request: Request, writer: asyncio.StreamWriter) -> bool:
        response = await self._exchange(request)
        if response is None:
            _reset(writer)
            return False
        await _send(connection, writer, self._dated(response))
        return True

    def _dated(self, response: Response) -> Response:
        return skewed(response, self._weather.ahead) if self._weather.ahead else response

    async def _exchange(self, request: Request) -> Response | None:
        """Pass a request on; None where the service does not answer."""
        try:
            response = await asyncio.wait_for(ask(self._target(), request), _PATIENCE)
        except (OSError, h11.RemoteProtocolError, asyncio.TimeoutError):
            return None
        self._passed(request, response)
        return response


async def _received(
    connection: h11.Connection, reader: asyncio.StreamReader, kind: type[Any]
) -> tuple[Any | None, bytes]:
    """Return the head, of that kind, and the body of the next message; None where the other side sends no more."""
    head, body = None, []
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_PIECE))
        elif isinstance(event, kind):
            head = event
        elif isinstance(event, h11.Data):
            body.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return head, b"".join(body)
        elif not isinstance(event, h11.InformationalResponse):
            return None, b""


async def ask(target: tuple[str, int], request: Request) -> Response:
    """Return what a service answers, on a connection of its own. :raises OSError, h11.RemoteProtocolError: nothing."""
    reader, writer = await asyncio.open_connection(*target, limit=_PIECE)
    try:
        connection = h11.Connection(h11.CLIENT)
        headers = [(name, value) for name, value in request.headers if name.lower() not in _HOP]
        if request.body or request.writes:
            headers.append((b"Content-Length", str(len(request.body)).encode()))
        head = h11.Request(method=request.method, target=request.target, headers=[*headers, (b"Connection", b"close")])
        data = connection.send(head) or b""
        data += connection.send(h11.Data(data=request.body)) or b"" if request.body else b""
        writer.write(data + (connection.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        found, body = await _received(connection, reader, h11.Response)
        if found is None:
            raise h11.RemoteProtocolError("the service has closed the connection")
        raw = tuple(found.headers.raw_items())
        kept = tuple((name, value) for name, value in raw if name.lower() not in _HOP)
        if request.method == "HEAD":  # the length of what a GET would bring
            kept += tuple((name, value) for name, value in raw if name.lower() == b"content-length")
        return Response(status=found.status_code, headers=kept, body=body)
    finally:
        writer.close()


async def _send(
    connection: h11.Connection,
    writer: asyncio.StreamWriter,
    response: Response,
    *,
    part: int | None = None,
    seconds: float = 0.0,
) -> None:
    """Send an answer: only a part of its body, or over so many seconds."""
    length = (b"Content-Length", str(len(response.body)).encode())
    known = any(name.lower() == b"content-length" for name, _ in response.headers)
    bodiless = response.status in (204, 304)
    headers = list(response.headers) if known or bodiless else [*response.headers, length]
    writer.write(connection.send(h11.Response(status_code=response.status, headers=headers)) or b"")
    content = response.body if part is None else response.body[:part]
    step = -(-len(content) // (_DROPS if seconds else 1)) or 1
    for at in range(0, len(content), step):
        if seconds:
            await writer.drain()
            await asyncio.sleep(seconds / _DROPS)
        writer.write(connection.send(h11.Data(data=content[at : at + step])) or b"")
    if seconds and not content:
        await asyncio.sleep(seconds)
    if part is None:
        writer.write(connection.send(h11.EndOfMessage()) or b"")
    await writer.drain()


def _reset(writer: asyncio.StreamWriter, *, at_once: bool = True) -> None:
    """Break a connection: with RST and nothing that was not sent yet, or with what was sent so far."""
    if at_once:
        with contextlib.suppress(OSError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
