"""Requests that nobody would write: bodies after the API description with anything in them, and whoever sends them.

The account has no cores, so that no node ever comes up and no command line of these bodies ever runs.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
from collections.abc import Iterator
from email.utils import formatdate
from importlib import resources
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from hypothesis import strategies as st

from joblib_azure.emulator import BatchEmulator

API = "2025-06-01"
_DESCRIPTION = json.loads(resources.files("joblib_azure.emulator").joinpath("wire_schema.json").read_text())
OPERATIONS: list[dict[str, Any]] = _DESCRIPTION["operations"]
_TYPES: dict[str, Any] = _DESCRIPTION["types"]
_DEEPEST = 4

NUMBERS = st.sampled_from([0, 1, -1, 2, 100, 256, 2**31 - 1, 2**31, -(2**63), 10**40, 10**400])
#: What a string of the API may be taken for.
STRINGS = st.sampled_from(
    [
        *("", " ", "fuzz", "FUZZ", "\u212aelvin", "a" * 65, "\0", "\ud800", "a\r\nb", "../../x", "/etc/passwd", "é"),
        *("Emulated_C1", "Standard_D4s_v5", "true", "$TargetDedicatedNodes = 1;", "http://127.0.0.1:1/x", "http://["),
        *("0770", "-1", "9" * 5000, "https://a:b/c", "PT5M", "PT0S", "P1D", "P999999999999D", "P1.5D", "-P1D"),
        *("2026-01-01T00:00:00Z", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00Z", "2026-13-01T00:00:00Z"),
        *("canonical", "ubuntu-24_04-lts", "server", "batch.node.ubuntu 24.04", "requeue", "echo"),
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | NUMBERS | STRINGS
ANY = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def value(draw: st.DrawFn, kind: Any, depth: int = 0) -> Any:
    """A value of a type of the description, or now and then of another."""
    if draw(st.integers(0, 24)) == 0:
        return draw(ANY)
    if isinstance(kind, list):
        return draw(st.lists(value(kind[0], depth + 1), max_size=3 if depth < 2 else 1))
    if isinstance(kind, dict):
        return draw(st.sampled_from([*kind["enum"], kind["enum"][0].upper(), ""]))
    if kind.startswith("#"):
        return draw(of_type(kind[1:], depth + 1))
    if kind in ("integer", "number"):
        return draw(NUMBERS | st.integers(0, 5))
    if kind == "boolean":
        return draw(st.booleans())
    if kind == "object":
        return draw(st.dictionaries(st.text(max_size=5), SCALARS, max_size=2))
    return draw(STRINGS | st.text(max_size=12))


@st.composite
def of_type(draw: st.DrawFn, name: str, depth: int = 0) -> dict[str, Any]:
    """An object of a type of the description; most have all that is required."""
    properties: dict[str, Any] = _TYPES[name]["properties"]
    names = [each for each in _TYPES[name]["required"] if draw(st.integers(0, 30))]
    if depth < _DEEPEST and properties:
        names += draw(st.lists(st.sampled_from(sorted(properties)), max_size=4 if depth == 0 else 2))
    found = {each: draw(value(properties[each], depth)) for each in names}
    if draw(st.integers(0, 40)) == 0:
        found[draw(st.text(max_size=8))] = draw(SCALARS)
    return found


@st.composite
def changed(draw: st.DrawFn, body: dict[str, Any]) -> dict[str, Any]:
    """A body with up to three of its values changed for others, left out or joined by what it did not have."""
    body = json.loads(json.dumps(body))
    for _ in range(draw(st.integers(0, 3))):
        holder, key = draw(st.sampled_from(list(_places(body))))
        held = holder[key]
        how = draw(st.integers(0, 9))
        if how == 0 and isinstance(holder, dict):
            del holder[key]
        elif how == 1 and isinstance(held, list):
            holder[key] = held * draw(st.integers(0, 60))
        elif how == 2:
            holder[key] = draw(ANY)
        elif isinstance(held, bool):
            holder[key] = not held
        elif isinstance(held, int):
            holder[key] = draw(NUMBERS | st.integers(-5, 300))
        elif isinstance(held, str):
            holder[key] = draw(STRINGS | st.text(max_size=12))
        else:
            holder[key] = draw(SCALARS)
        if not body:
            break
    return body


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


class Wire:
    """A client that signs whatever it is given, on one connection."""

    def __init__(self, emulator: BatchEmulator) -> None:
        self._emulator = emulator
        self._key = base64.b64decode(emulator.account_key)
        self._address = urlsplit(emulator.endpoint)
        self._connection: http.client.HTTPConnection | None = None

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        query: str = f"api-version={API}",
        headers: dict[str, str] | None = None,
        authorization: str | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request; `path` and `query` as they go over the wire."""
        given = self.signed(method, path, query, body, headers or {})
        if authorization is not None:
            given["authorization"] = authorization
        return self.send(method, f"{path}?{query}" if query else path, body, given)

    def signed(self, method: str, path: str, query: str, body: bytes | None, headers: dict[str, str]) -> dict[str, str]:
        """The headers of a request with what makes it the account's."""
        given = {"ocp-date": formatdate(usegmt=True), **headers}
        if body is not None:
            given.setdefault("content-type", "application/json; odata=minimalmetadata")
            given["content-length"] = str(len(body))
        given["authorization"] = self._sign(method, path, query, given)
        return given

    def send(
        self, method: str, target: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request as it is."""
        for again in (True, False):
            try:
                return self._send(method, target, body, headers)
            except (http.client.BadStatusLine, ConnectionError):
                self.close()  # the server may have closed a connection that was idle, once
                if not again:
                    raise
        raise AssertionError("not reached")

    def _send(
        self, method: str, target: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._address.port, timeout=20)
        self._connection.putrequest(method, target, skip_host="host" in headers, skip_accept_encoding=True)
        for name, text in headers.items():
            self._connection.putheader(name, text.encode("latin-1"))
        self._connection.endheaders(body)
        answer = self._connection.getresponse()
        found = (answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read())
        if answer.will_close:
            self.close()
        return found

    def _sign(self, method: str, path: str, query: str, headers: dict[str, str]) -> str:
        # As the documentation has it, written a second time: the emulator's own would agree with its mistakes.
        names = (
            *("content-encoding", "content-language", "content-length", "content-md5", "content-type", "date"),
            *("if-modified-since", "if-match", "if-none-match", "if-unmodified-since", "range"),
        )
        # As a server sees them: without the space around.
        seen = {name: text.strip(" \t") for name, text in headers.items()}
        rows = [method, *(seen.get(name, "") for name in names)]
        if not rows[3] and method not in ("GET", "HEAD"):
            rows[3] = "0"
        rows += [f"{name}:{seen[name]}" for name in sorted(seen) if name.startswith("ocp-") and seen[name]]
        rows.append(f"/{self._emulator.account_name}{path}")
        pairs = [part.partition("=") for part in query.split("&") if part]
        first: dict[str, str] = {}
        for name, _, text in pairs:
            first.setdefault(_plain(name), _plain(text))
        rows += [f"{name}:{first[name]}" for name in sorted(first) if first[name]]
        digest = hmac.new(self._key, "\n".join(rows).encode(), hashlib.sha256).digest()
        return f"SharedKey {self._emulator.account_name}:{base64.b64encode(digest).decode()}"

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _plain(text: str) -> str:
    return unquote(text.replace("+", " "))


def quoted(text: str) -> str:
    """Any text as a part of a URL."""
    return quote(text, safe="", errors="replace")


def check(status: int, headers: dict[str, str], body: bytes, asked: Any, method: str = "") -> None:
    """An answer is a success, or an error as the service writes it; never a 500."""
    assert status in (200, 201, 202, 204, 304, 400, 401, 403, 404, 405, 409, 412, 413, 416, 501, 503), (body, asked)
    if status < 400 or method == "HEAD":
        return
    if status == 400 and body == b"Invalid HTTP request received.":
        return  # it was none
    error = json.loads(body)
    code = error["code"]
    assert code, asked
    assert (code == "NotImplemented") == (status == 501), (status, code, asked)
    # Documented: one in 30 s.
    assert (code == "TooManyEnableAutoScaleRequests") == (status == 503), (status, code, asked)
    assert error["message"]["value"], asked
