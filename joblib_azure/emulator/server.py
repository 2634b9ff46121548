"""The server process: listens on loopback, serves, and takes everything it started with it when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import uvicorn

from .app import AccessLog, BatchApp
from .auth import Authentication
from .engine import Engine
from .options import Options
from .stored import Store
from .tls import make_certificate
from .traffic import Traffic

_log = logging.getLogger(__name__)
_PARENT_LOOK_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command line says, and the key and run id from the environment."""

    port: int
    account_name: str
    account_key: str
    root: Path
    run_id: str
    options: Options
    access_log: Path | None = None
    state: Path | None = None
    remove_root: bool = False
    starter: int | None = None
    tls: bool = False
    certfile: Path | None = None
    keyfile: Path | None = None

    def __repr__(self) -> str:
        return f"Settings(port={self.port}, account_name={self.account_name!r}, account_key='***', root={self.root})"


class _Server(uvicorn.Server):
    """uvicorn without its signal handling, which would raise the signal again before the nodes are cleared."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: Settings, out: TextIO) -> None:
    """Serve until SIGTERM, SIGINT, the end of stdin or of the starter; then kill every process of every node.

    Raises
    ------
    StateError
        Where there is a file of state, and it cannot be used. Nothing was served then, and the file is as it was.
    """
    loop = asyncio.get_running_loop()
    listener = _listen(settings.port)
    certfile, keyfile = settings.certfile, settings.keyfile
    if settings.tls and certfile is None:
        certfile, keyfile = make_certificate(settings.root)
    endpoint = f"{'https' if certfile else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
    engine = Engine(
        account_name=settings.account_name,
        endpoint=endpoint,
        root=settings.root,
        run_id=settings.run_id,
        options=settings.options,
    )
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(_access_log(settings.access_log))
        store = None if settings.state is None else Store(engine, settings.state)
        auth = Authentication(settings.account_name, settings.account_key, settings.options)
        app = BatchApp(engine, auth, log, Traffic.from_environment())
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            http="h11",
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=1,
            ssl_certfile=certfile,
            ssl_keyfile=keyfile,
        )
        server = _Server(config)

        def stop() -> None:
            server.should_exit = True
            server.force_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        _watch_stdin(loop, stop)
        _watch_starter(loop, stop, settings.starter)
        try:
            if store is not None:
                store.load()
                store.start()
            serving = loop.create_task(server.serve(sockets=[listener]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.005)
            if server.started:
                ready: dict[str, object] = {
                    "endpoint": endpoint,
                    "account_name": settings.account_name,
                    "pid": os.getpid(),
                }
                if certfile is not None:
                    ready["certificate"] = str(certfile)
                with contextlib.suppress(BrokenPipeError):
                    out.write(json.dumps(ready) + "\n")
                    out.flush()
            await serving
        finally:
            if store is not None:
                await store.close()  # what runs is to be found running
            await engine.close()
            if settings.remove_root:
                shutil.rmtree(settings.root, ignore_errors=True)


def _listen(port: int) -> socket.socket:
    # With its protocol named, or asyncio leaves Nagle's algorithm on and every answer waits 40 ms for the client's ACK.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(2048)
    listener.setblocking(False)
    return listener


@contextlib.contextmanager
def _access_log(path: Path | None) -> Iterator[AccessLog | None]:
    if path is None:
        yield None
        return
    with open(path, "a", buffering=1) as file:

        def write(method: str, target: str, status: int, milliseconds: float) -> None:
            file.write(f"{method} {target} {status} {milliseconds:.1f}\n")

        yield write


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(sys.stdin.fileno(), 4096):
                pass
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(stop)

    threading.Thread(target=watch, name="batch-stdin", daemon=True).start()


def _watch_starter(loop: asyncio.AbstractEventLoop, stop: Callable[[], None], starter: int | None) -> None:
    """End with the starter even where a fork of it still holds the pipe to stdin."""
    if starter is None:
        return

    def watch() -> None:
        while os.getppid() == starter:
            time.sleep(_PARENT_LOOK_SECONDS)
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(stop)

    threading.Thread(target=watch, name="batch-starter", daemon=True).start()
