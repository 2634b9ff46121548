"""Moves large content between memory and blobs: in pieces, side by side, and none of it copied on the way up.

Used on both ends over the blob clients of the unmodified SDK, which are given to it: it imports nothing of azure
before it is used. Each piece is hashed by the thread that moves it, so that hashing costs no time of its own, and
what was moved is known by its content name (`codec.content`).
"""

from __future__ import annotations

import base64
import concurrent.futures
import hashlib
import itertools
import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .codec import PIECE, content_name, name_of, spans
from .errors import ContentChangedError, masked

if TYPE_CHECKING:
    import requests
    from azure.storage.blob import BlobClient

#: Pieces that move at a time, each way. One connection to Azure carries about 60 MB/s, and a node's network a few
#: times that; Azurite on loopback is as fast with 4.
STREAMS = 8
#: Connections to storage that are kept: of the threads that move pieces, and of those with small requests.
_CONNECTIONS = 4 * STREAMS
#: Bytes that are read of an answer at a time: all of a piece, which then is not put together of parts. azure-core's
#: own 4 KiB cost half of a core at 200 MB/s.
_READ = PIECE

Item = TypeVar("Item")
Result = TypeVar("Result")


def transport(**options: Any) -> Any:
    """Return an HTTP transport for blob clients, with a connection for each thread that moves something.

    The SDK's own keeps ten, opens others anew for each request, and says so on stderr. Clients that share one share
    its connections, which over TLS cost more than a small blob. Its errors do not show the signature of a SAS: on a
    node they end in a file that more people may read than storage.

    Parameters
    ----------
    **options
        Of azure-core's ``RequestsTransport``.
    """
    from azure.core.exceptions import AzureError
    from azure.core.pipeline.transport import RequestsTransport

    class Transport(RequestsTransport):  # type: ignore[misc]  # the SDK gives it no type
        def send(self, request: Any, **options: Any) -> Any:
            try:
                return super().send(request, **options)
            except AzureError as exc:
                # What requests says holds the whole URL.
                exc.message = masked(exc.message)
                exc.args = (exc.message,)
                raise

    session = pooled(options.get("use_env_settings", True))
    return Transport(session=session, connection_data_block_size=_READ, **options)


def pooled(from_environment: bool) -> requests.Session:
    """Return a session of requests with a connection for each thread that moves something.

    Parameters
    ----------
    from_environment : bool
        Whether the environment's proxies and certificate authorities hold.
    """
    import requests

    session = requests.Session()
    session.trust_env = from_environment
    for scheme in ("https://", "http://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=_CONNECTIONS))
    return session


class Transfers:
    """The threads that move pieces, of any number of blobs.

    Parameters
    ----------
    up, down : int, default STREAMS
        Pieces that are sent and that are fetched at a time. Each of the latter takes twice its size of memory until it
        is where it belongs.
    """

    def __init__(self, up: int = STREAMS, down: int = STREAMS) -> None:
        self._up = concurrent.futures.ThreadPoolExecutor(up, thread_name_prefix="joblib_azure-up")
        self._down = concurrent.futures.ThreadPoolExecutor(down, thread_name_prefix="joblib_azure-down")
        self._lock = threading.Lock()
        #: Bytes that were sent and that were fetched, with those of pieces sent in vain.
        self.sent = self.fetched = 0

    def count(self, sent: int = 0, fetched: int = 0) -> None:
        """Count bytes that moved."""
        with self._lock:
            self.sent += sent
            self.fetched += fetched

    def close(self) -> None:
        """End the threads once what they move is done; nothing further is begun."""
        for pool in (self._up, self._down):
            pool.shutdown(wait=False, cancel_futures=True)

    def upload(
        self,
        blob: BlobClient,
        data: bytes | memoryview,
        *,
        overwrite: bool = True,
        name: str | None = None,
        groups: Sequence[int] = (),
        wanted: Callable[[], bool] | None = None,
    ) -> list[str]:
        """Store `data` as a blob, above one piece in blocks side by side.

        Parameters
        ----------
        blob : BlobClient
        data : bytes or memoryview
            Contiguous; it must not change meanwhile.
        overwrite : bool
            Where False, ``ResourceExistsError`` of the SDK tells that a blob is there.
        name : str, optional
            The content name that it must have.
        groups : sequence of int, optional
            Sizes in bytes of what it consists of; by default it is one.
        wanted : callable, optional
            Asked before each piece.

        Returns
        -------
        list of str
            The content names of the groups as they were stored.

        Raises
        ------
        ContentChangedError
            Where the name is not `name`.
        concurrent.futures.CancelledError
            Where it is not wanted any more.
        azure.core.exceptions.AzureError
        """
        view = memoryview(data).cast("B") if memoryview(data).nbytes else memoryview(b"")
        sizes = list(groups) or [view.nbytes]
        starts = [0, *itertools.accumulate(sizes)]
        if view.nbytes <= PIECE:
            content = data if isinstance(data, bytes) else bytes(view)
            names = [content_name(memoryview(content)[at : at + size]) for at, size in zip(starts, sizes, strict=False)]
            _check(blob, names, name)
            blob.upload_blob(content, overwrite=overwrite)
            self.count(sent=len(content))
            return names
        from azure.core import MatchConditions
        from azure.core.exceptions import HttpResponseError

        # Blocks of two uploads of the same blob must not mix; the ids of a blob's blocks are of one length.
        mine, secure = secrets.token_hex(4), blob.url.startswith("https:")
        cut = [[(start + at, length) for at, length in spans(size)] for start, size in zip(starts, sizes, strict=False)]
        blocks = [(f"{mine}{number:06d}", span) for number, span in enumerate(itertools.chain(*cut))]

        def stage(block: tuple[str, tuple[int, int]]) -> bytes:
            if wanted is not None and not wanted():
                raise concurrent.futures.CancelledError
            block_id, (offset, length) = block
            part = view[offset : offset + length]
            digest = hashlib.sha256(part).digest()
            # TLS sees to it that what arrives is what was sent; without it, on loopback, the service checks it.
            # (Azurite hashes what it is given no hash of, and takes three times as long for it.)
            headers = {} if secure else {"Content-MD5": base64.b64encode(hashlib.md5(part).digest()).decode()}
            try:
                blob.stage_block(block_id, part, headers=headers)  # type: ignore[arg-type]
            except HttpResponseError as exc:
                if getattr(exc, "error_code", None) != "Md5Mismatch":
                    raise
                raise _changed(blob) from exc
            self.count(sent=length)
            if secure and hashlib.sha256(part).digest() != digest:
                raise _changed(blob)
            return digest

        digests = iter(side_by_side(self._up, stage, blocks))
        names = [name_of(list(itertools.islice(digests, len(pieces)))) for pieces in cut]
        _check(blob, names, name)
        condition: dict[str, Any] = {} if overwrite else {"match_condition": MatchConditions.IfMissing}
        blob.commit_block_list([block_id for block_id, _ in blocks], **condition)  # type: ignore[misc]
        return names

    def download(self, blob: BlobClient, offset: int, size: int, sink: Callable[[int, bytes], Any]) -> str:
        """Fetch `size` bytes of a blob from `offset` on.

        Parameters
        ----------
        blob : BlobClient
        offset, size : int
        sink : callable
            Takes each piece with its place, counted from `offset`; on several threads and in any order.

        Returns
        -------
        str
            The content name of what was fetched.

        Raises
        ------
        azure.core.exceptions.AzureError
        """

        def fetch(span: tuple[int, int]) -> bytes:
            start, length = span
            data: bytes = blob.download_blob(offset=offset + start, length=length).readall() if length else b""
            self.count(fetched=length)
            sink(start, data)
            return hashlib.sha256(data).digest()

        return name_of(side_by_side(self._down, fetch, spans(size)))


def _check(blob: BlobClient, names: list[str], name: str | None) -> None:
    if name is not None and names != [name]:
        raise _changed(blob)


def _changed(blob: BlobClient) -> ContentChangedError:
    return ContentChangedError(
        f"{blob.blob_name} was to be stored under the name of its content, which has become another: an argument of a "
        "call was changed while it was being sent. Give each call a copy of what changes"
    )


def side_by_side(
    pool: concurrent.futures.Executor, function: Callable[[Item], Result], items: Iterable[Item]
) -> list[Result]:
    """Return what `function` gives for each item, in order; nothing is running any more when it returns or raises.

    After the first error nothing further is begun. ``concurrent.futures.wait`` would not do: it never sees the end of
    what was cancelled by the shutdown of its pool.

    Raises
    ------
    concurrent.futures.CancelledError
        Where the pool was shut down meanwhile.
    """
    errors: list[BaseException] = []

    def run(item: Item) -> Result:
        if errors:
            raise concurrent.futures.CancelledError
        try:
            return function(item)
        except BaseException as exc:
            errors.append(exc)
            raise

    futures, results = [], []
    try:
        for item in items:
            futures.append(pool.submit(run, item))
    except RuntimeError as exc:  # it was shut down already
        errors.append(concurrent.futures.CancelledError(str(exc)))
    for future in futures:
        try:
            results.append(future.result())
        except BaseException as exc:
            errors.append(exc)
    if errors:
        raise errors[0]
    return results
