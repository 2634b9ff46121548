"""The transport of `lightblobs`: urllib3's connections without the session of requests around them.

What requests prepares for a request takes it as long as the request itself. What it knows of the environment (proxies,
certificate authorities) holds here too: it is asked once.
"""

from __future__ import annotations

import json
import threading
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from azure.core.exceptions import (
    AzureError,
    IncompleteReadError,
    ServiceRequestError,
    ServiceRequestTimeoutError,
    ServiceResponseError,
    ServiceResponseTimeoutError,
)
from azure.core.pipeline.transport import HttpTransport
from azure.core.rest import HttpRequest
from urllib3 import exceptions as failures

from ..transfer import pooled

#: An answer, or why none came.
Earlier = urllib3.BaseHTTPResponse | AzureError


class Answer:
    """An answer that was read whole; of `azure.core.rest.HttpResponse` what policies and errors look at."""

    def __init__(self, request: HttpRequest, found: urllib3.BaseHTTPResponse) -> None:
        self.request = request
        self.status_code, self.reason, self.headers = found.status, found.reason, found.headers
        self.content_type = found.headers.get("Content-Type")
        self._data = found.data

    def __repr__(self) -> str:
        return f"<Answer {self.status_code} {self.reason}, {len(self._data)} bytes>"

    def read(self) -> bytes:
        """Return the body."""
        return self._data

    body = read

    def text(self, encoding: str | None = None) -> str:
        """Return the body as text."""
        return self._data.decode(encoding or "utf-8-sig", errors="replace")

    def json(self) -> Any:
        """Return the body's JSON value. :raises ValueError:"""
        return json.loads(self._data)

    def close(self) -> None:
        """Nothing: it was read."""


class LightTransport(HttpTransport[HttpRequest, Answer]):
    """Sends requests of azure-core over kept connections, and reads their answers whole.

    Parameters
    ----------
    connect, read : float
        Seconds that a connection may take, and each wait for bytes.
    verify : bool or str, optional
        As requests has it: whether certificates are checked, or by which authorities.
    from_environment : bool
        Whether the environment's proxies and authorities hold.
    """

    def __init__(
        self, *, connect: float, read: float, verify: bool | str | None = None, from_environment: bool = True
    ) -> None:
        self._timeout = urllib3.Timeout(connect=connect, read=read)
        self._verify, self._from_environment = verify, from_environment
        self._session: requests.Session | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._pools: dict[str, urllib3.HTTPConnectionPool] = {}

    def open(self) -> None:
        """Open; it does so by itself too."""

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        session, self._session = self._session, None
        self._pools.clear()
        if session is not None:
            session.close()

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.close()

    def send(self, request: HttpRequest, *, earlier: list[Earlier] | None = None, **options: Any) -> Answer:
        """Send a request.

        Parameters
        ----------
        request : HttpRequest
        earlier : list, optional
            What has come of the same request by `ask`; the first try gives that, and takes it out.
        **options
            The policies', not heard.

        Raises
        ------
        azure.core.exceptions.ServiceRequestError
            Where it did not arrive.
        azure.core.exceptions.ServiceResponseError
            Where no whole answer came.
        ValueError
            Where it was closed.
        """
        if earlier:
            found = earlier.pop()
            if isinstance(found, AzureError):
                raise found
            return Answer(request, found)
        return Answer(request, self.ask(request.method, request.url, dict(request.headers), request.content))

    def ask(
        self, method: str, url: str, headers: dict[str, str], data: bytes | None = None
    ) -> urllib3.BaseHTTPResponse:
        """Send a request; it raises as `send` does."""
        parts = urlsplit(url)
        try:
            found = self._pool(f"{parts.scheme}://{parts.netloc}").urlopen(
                method,
                f"{parts.path}?{parts.query}" if parts.query else parts.path,
                body=data,
                headers=headers,
                retries=False,
                timeout=self._timeout,
            )
        except failures.ConnectTimeoutError as exc:
            raise ServiceRequestTimeoutError(str(exc), error=exc) from exc
        except failures.ReadTimeoutError as exc:
            raise ServiceResponseTimeoutError(str(exc), error=exc) from exc
        except failures.ProtocolError as exc:
            raise ServiceResponseError(str(exc), error=exc) from exc
        except failures.HTTPError as exc:  # no connection, no certificate, no proxy, closed meanwhile
            raise ServiceRequestError(str(exc), error=exc) from exc
        length = found.headers.get("Content-Length")
        if length is not None and int(length) != len(found.data):
            raise IncompleteReadError(f"{len(found.data)} of {length} bytes came")
        return found

    def _pool(self, origin: str) -> urllib3.HTTPConnectionPool:
        pool = self._pools.get(origin)
        if pool is not None:
            return pool
        with self._lock:
            if self._closed:
                raise ValueError("HTTP transport has already been closed")  # as azure-core's own
            if self._session is None:
                self._session = pooled(self._from_environment)
            session = self._session
            given = session.merge_environment_settings(origin, {}, False, self._verify, None)
            asked = requests.Request("GET", origin).prepare()
            adapter = session.get_adapter(origin)
            assert isinstance(adapter, requests.adapters.HTTPAdapter)
            pool = adapter.get_connection_with_tls_context(
                asked, given["verify"], proxies=given["proxies"], cert=given["cert"]
            )
            self._pools[origin] = pool
        return pool
