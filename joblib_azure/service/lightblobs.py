"""Listing and reading blobs for little of the client's CPU: what is asked most often, past the SDK's own models.

A session reads outcomes as they come and lists what has grown, thousands of times. The SDK takes 2.2 ms of CPU for a
small blob and 0.2 ms for each blob of a list; this takes 0.9 and 0.03 (measured against Azurite on loopback). What it
leaves out is the SDK's models, and its policies but for the retries and what shows who asks.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.etree import ElementTree

from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.core.pipeline import Pipeline, PipelineRequest
from azure.core.pipeline.policies import SansIOHTTPPolicy
from azure.core.rest import HttpRequest, HttpResponse

from .interfaces import BlobItem

#: Blobs in a page: the most that the service gives.
_PAGE = 5000
#: The headers of a request without a body that a signature covers, beside those of Storage itself: all of them empty.
_EMPTY_HEADERS = "\n" * 11


class SharedKeyPolicy(SansIOHTTPPolicy[Any, Any]):
    """Signs requests without a body, each try anew.

    https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key. The SDK's own policy has no public
    name. A SAS would do as well, but would be in the URL, which urllib3 writes into logs.

    Parameters
    ----------
    account : str
    key : str
        Base64.
    """

    def __init__(self, account: str, key: str) -> None:
        self._account, self._key = account, base64.b64decode(key)

    def on_request(self, request: PipelineRequest[Any]) -> None:
        """Write the time and the signature into the headers."""
        asked = request.http_request
        asked.headers["x-ms-date"] = format_datetime(datetime.now(timezone.utc), usegmt=True)
        ours = sorted((name.lower(), value) for name, value in asked.headers.items() if name.startswith("x-ms-"))
        parts = urlsplit(asked.url)
        query = sorted(parse_qsl(parts.query, keep_blank_values=True))
        signed = [
            f"{asked.method}\n{_EMPTY_HEADERS}",
            *(f"{name}:{value}\n" for name, value in ours),
            f"/{self._account}{parts.path}",
            *(f"\n{name}:{value}" for name, value in query),
        ]
        digest = hmac.digest(self._key, "".join(signed).encode(), hashlib.sha256)
        asked.headers["Authorization"] = f"SharedKey {self._account}:{base64.b64encode(digest).decode()}"


class LightBlobs:
    """Reads the blobs of a storage account.

    Parameters
    ----------
    pipeline : Pipeline
        Of azure-core, with a transport, a retry policy, and what shows who asks.
    endpoint : str
        URL of the account's blobs.
    version : str
        Of Storage's API.
    """

    def __init__(self, pipeline: Pipeline[Any, Any], endpoint: str, version: str) -> None:
        self._pipeline, self._endpoint = pipeline, endpoint.rstrip("/")
        self._headers = {"Accept": "*/*", "x-ms-version": version}

    def read(self, container: str, name: str, offset: int, length: int) -> bytes:
        """Return bytes of a blob, as many as there are of `length`.

        Raises
        ------
        azure.core.exceptions.AzureError
        """
        headers = {"x-ms-range": f"bytes={offset}-{offset + length - 1}"}
        return self._ask(f"{container}/{quote(name, safe='/')}", headers).read()

    def blobs(self, container: str, prefix: str) -> list[BlobItem]:
        """Return the blobs whose names begin with `prefix`.

        Raises
        ------
        azure.core.exceptions.AzureError
        """
        found: list[BlobItem] = []
        marker: str | None = ""
        while marker is not None:
            query = f"?restype=container&comp=list&maxresults={_PAGE}&prefix={quote(prefix, safe='')}"
            query += f"&marker={quote(marker, safe='')}" if marker else ""
            page = ElementTree.fromstring(self._ask(f"{container}{query}", {}).read())
            found.extend(_items(page))
            marker = page.findtext("NextMarker") or None
        return found

    def _ask(self, what: str, headers: Mapping[str, str]) -> HttpResponse:
        request = HttpRequest("GET", f"{self._endpoint}/{what}", headers={**self._headers, **headers})
        answer: HttpResponse = self._pipeline.run(request).http_response
        if answer.status_code < 400:
            return answer
        kind = ResourceNotFoundError if answer.status_code == 404 else HttpResponseError
        error = kind(response=answer)
        error.error_code = answer.headers.get("x-ms-error-code", "")  # type: ignore[attr-defined]
        raise error


def _items(page: ElementTree.Element) -> Iterator[BlobItem]:
    for blob in page.iter("Blob"):
        name = blob.find("Name")
        said = "" if name is None else name.text or ""
        # What XML cannot hold is encoded, and the name says so.
        plain = unquote(said) if name is not None and name.get("Encoded") == "true" else said
        properties = blob.find("Properties")
        size = modified = ""
        for each in () if properties is None else properties:
            if each.tag == "Content-Length":
                size = each.text or ""
            elif each.tag == "Last-Modified":
                modified = each.text or ""
        yield BlobItem(name=plain, size=int(size or 0), modified=_moment(modified))


@functools.lru_cache(maxsize=1024)  # of many blobs in the same second
def _moment(text: str) -> datetime:
    return parsedate_to_datetime(text)
