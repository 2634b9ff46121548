"""An Entra of one's own on loopback: signs in a service principal, and gives tokens as Azure's look.

They are signed with the key of its certificate, which the Batch emulator is told (``token_signer``). Azurite checks
audience, times and issuer, and no signature.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import ssl
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs

import jwt

from joblib_azure.local.install import find_azurite

TENANT = str(uuid.UUID(int=0x7E4A47))


class TlsServer:
    """A threaded https server on 127.0.0.1 around a handler."""

    def __init__(self, handler: type[BaseHTTPRequestHandler], certificate: Path, key: Path) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.endpoint = f"https://127.0.0.1:{self._server.server_address[1]}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class JsonHandler(BaseHTTPRequestHandler):
    """Answers JSON, keeps quiet."""

    protocol_version = "HTTP/1.1"

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, value: Any, **headers: str) -> None:
        content = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


class Entra(TlsServer):
    """Signs in one service principal.

    Attributes
    ----------
    client_id, secret, object_id : str
    scopes : list of str
        What tokens were asked for.
    tokens : list of str
        What was given.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self.client_id, self.object_id = str(uuid.uuid4()), str(uuid.uuid4())
        self.secret = secrets.token_urlsafe(24)
        self.scopes: list[str] = []
        self.tokens: list[str] = []
        self.lifetime = 3600
        self._key = key.read_bytes()
        entra = self

        class Handler(JsonHandler):
            def do_GET(self) -> None:
                if not self.path.partition("?")[0].endswith("/.well-known/openid-configuration"):
                    return self.answer(404, {"error": "not_found"})
                base = f"{entra.endpoint}/{TENANT}"
                return self.answer(
                    200,
                    {
                        "token_endpoint": f"{base}/oauth2/v2.0/token",
                        "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                        "issuer": f"{base}/v2.0",
                    },
                )

            def do_POST(self) -> None:
                given = {name: values[0] for name, values in parse_qs(self.body().decode()).items()}
                who = (given.get("client_id"), given.get("client_secret"), given.get("grant_type"))
                if who != (entra.client_id, entra.secret, "client_credentials"):
                    error = {"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret"}
                    return self.answer(401, error)
                scope = given["scope"].split()[0]
                entra.scopes.append(scope)
                token = entra.token(scope.removesuffix("/.default"))
                return self.answer(200, {"token_type": "Bearer", "expires_in": entra.lifetime, "access_token": token})

        super().__init__(Handler, certificate, key)

    def token(self, audience: str) -> str:
        """A token for a service."""
        now = int(time.time())
        claims = {
            "aud": audience,
            "iss": f"https://sts.windows.net/{TENANT}/",
            "iat": now,
            "nbf": now - 60,
            "exp": now + self.lifetime,
            "oid": self.object_id,
            "appid": self.client_id,
            "tid": TENANT,
            "ver": "1.0",
        }
        token = jwt.encode(claims, self._key, "ES256", {"kid": "loopback"})
        self.tokens.append(token)
        return token


@contextmanager
def azurite(folder: Path, account: str, key: str, certificate: Path, keyfile: Path) -> Iterator[str]:
    """Azurite over TLS, which takes tokens; gives the URL of the account's blobs."""
    program = find_azurite()
    command = [*program.arguments(folder), "--oauth", "basic", "--cert", str(certificate), "--key", str(keyfile)]
    environment = {**os.environ}
    for name, value in program.environment(account, key).items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    log = folder / "azurite.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder, env=environment)
    try:
        end = time.monotonic() + 30
        while not (found := re.search(r"successfully listens on (https://127\.0\.0\.1:\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield f"{found[1]}/{account}"
    finally:
        process.terminate()
        process.wait(10)
