"""Shorthands for tests of clusters: an account on an emulator, small pools, what a wait said."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from joblib_azure.cluster import Cluster, Waiting
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.emulator import BatchEmulator

_numbers = itertools.count(1)
#: No test here stores a blob; an account cannot be without them.
_STORAGE = {
    "storage_account": "nowhere",
    "storage_key": "bm93aGVyZQ==",
    "storage_endpoint": "http://127.0.0.1:9/nowhere",
}
SIZE = "Emulated_C1"


def account_of(emulator: BatchEmulator, endpoint: str = "", **more: Any) -> AccountConfig:
    """The account that an emulator serves."""
    values = {
        "batch_account": emulator.account_name,
        "batch_endpoint": endpoint or emulator.endpoint,
        "batch_key": emulator.account_key,
        **_STORAGE,
        **more,
    }
    return AccountConfig(**values)


def config_of(nodes: int = 1, name: str = "", **more: Any) -> ClusterConfig:
    """A pool of a fixed number of nodes, with a name of its own."""
    values: dict[str, Any] = {
        "name": name or f"pool-{next(_numbers)}",
        "vm_size": SIZE,
        "nodes": nodes,
        "pool_size": {"autoscale_formula": "FIXED"},
        "node_timeout": 20,
    }
    if "pool_size" in more and {"dedicated_nodes", "spot_nodes"} & set(more["pool_size"]):
        del values["nodes"]
    return ClusterConfig(**{**values, **more})


class Said:
    """A progress callback that keeps what it got."""

    def __init__(self) -> None:
        self.all: list[Waiting] = []

    def __call__(self, now: Waiting) -> None:
        self.all.append(now)

    @property
    def text(self) -> str:
        return "\n".join(map(str, self.all))


@contextmanager
def deleted(*clusters: Cluster) -> Iterator[None]:
    """Delete the pools at the end of the block, and wait until they are gone: until then they count for the quota."""
    try:
        yield
    finally:
        for cluster in clusters:
            cluster.delete(wait=True)
            cluster.close()


Answer = tuple[int, dict[str, str], bytes]


class Between:
    """An HTTP server between a client and the emulator; it passes requests on, but for those that a test answers.

    Parameters
    ----------
    target : str
        URL of the emulator.
    answer : callable
        Gets the verb, the path with its query and the emulator's answer (None before it was asked); returns an answer
        to give in its place, or None.
    """

    def __init__(self, target: str, answer: Callable[[str, str, Answer | None], Answer | None]) -> None:
        self.requests: list[str] = []
        between, opener = self, build_opener(ProxyHandler({}))

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
                between.requests.append(f"{self.command} {self.path.partition('?')[0]}")
                given = answer(self.command, self.path, None)
                if given is None:
                    passed = between._pass_on(opener, target + self.path, self.command, dict(self.headers), body)
                    given = answer(self.command, self.path, passed) or passed
                status, headers, content = given
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_any

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @staticmethod
    def _pass_on(opener: Any, url: str, method: str, headers: dict[str, str], body: bytes | None) -> Answer:
        headers = {name: value for name, value in headers.items() if name.lower() not in ("host", "connection")}
        try:
            with opener.open(Request(url, body, headers, method=method), timeout=20) as found:
                return found.status, dict(found.headers), found.read()
        except HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Between:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def refusal(status: int, code: str, text: str) -> Answer:
    """An error as Batch writes it."""
    body = f'{{"code": "{code}", "message": {{"lang": "en-US", "value": "{text}\\nRequestId:0\\nTime:0"}}}}'
    return status, {"Content-Type": "application/json; odata=minimalmetadata"}, body.encode()
