"""How many bytes went into a local cluster's storage and out of it.

Out: Azurite's access log has the length of every body that it sent; the nodes are those who came with a SAS. Which
node asked it does not say. But a node has fetched at least what lies in its cache, so that of all that was fetched
no node can have had more than all without the others' caches: that is the bound for *a* node.

In: the log has no lengths of what came. Each PUT of the client's is counted as what storage holds of it: a block by
the blob's list of blocks (committed or not), a blob that came whole by its length, also where storage refused it
since it was there. What storage no longer holds is counted as the largest part of the same blob that it does hold,
and their number is told. The bodies of lists of blocks, some 60 bytes a block, are left out.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit

from _common import settle
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.blob import BlobServiceClient

from joblib_azure.registry import session_for
from joblib_azure.storage import BUFFERS

if TYPE_CHECKING:
    from joblib_azure import LocalCluster

_LINE = re.compile(rb'^\S+ - - \[[^\]]+\] "([A-Z]+) (\S+) HTTP/[\d.]+" (\d{3}) (\d+|-)', re.MULTILINE)
#: Seconds until the line of a request that was answered is in the log.
_LAG = 0.2


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes between two points of time.

    Attributes
    ----------
    uploaded, uploaded_buffers : int
        By the client: in all, and of that into the container of buffers.
    buffer_puts : int
        The client's PUT requests to the container of buffers, whatever was answered.
    fetched, fetched_buffers : int
        By all nodes: in all, and of that from the container of buffers.
    unknown : int
        Uploads whose size had to be guessed.
    """

    uploaded: int
    uploaded_buffers: int
    buffer_puts: int
    fetched: int
    fetched_buffers: int
    unknown: int


@dataclass(frozen=True, kw_only=True)
class _Put:
    container: str
    blob: str
    block: str | None


class TrafficLog:
    """The storage traffic of a local cluster, while its session is open."""

    def __init__(self, cluster: LocalCluster) -> None:
        log = cluster.host.storage_access_log
        if log is None:
            raise SystemExit(
                "an Azurite that was running already is in use, and its traffic cannot be counted: stop it"
            )
        self._cluster, self._log = cluster, log

    def mark(self) -> int:
        """Wait until nothing is under way; return this point of time."""
        settle(session_for(self._cluster))
        time.sleep(_LAG)
        return self._log.stat().st_size

    def between(self, start: int, end: int) -> Traffic:
        """Return the traffic between two marks. Asks storage, so the blobs must still be there."""
        puts: list[_Put] = []
        fetched = fetched_buffers = 0
        for method, target, status, length in _LINE.findall(self._log.read_bytes()[start:end]):
            parts = urlsplit(target.decode())
            query = parse_qs(parts.query)
            _, _account, container, blob = [*unquote(parts.path).split("/", 3), "", ""][:4]
            is_node = "sig" in query
            if method == b"GET" and is_node and status in (b"200", b"206") and length != b"-":
                fetched += int(length)
                fetched_buffers += int(length) if container == BUFFERS else 0
            elif method == b"PUT" and not is_node and blob:
                what = query.get("comp", [""])[0]
                if what in ("", "block", "appendblock"):
                    puts.append(_Put(container=container, blob=blob, block=query.get("blockid", [None])[0]))
        sizes, unknown = self._sizes(puts)
        return Traffic(
            uploaded=sum(sizes),
            uploaded_buffers=sum(size for put, size in zip(puts, sizes, strict=True) if put.container == BUFFERS),
            buffer_puts=sum(put.container == BUFFERS for put in puts),
            fetched=fetched,
            fetched_buffers=fetched_buffers,
            unknown=unknown,
        )

    def most_of_a_node(self, fetched: int) -> int:
        """Return the bytes that a node can have fetched at most, of `fetched` by all of them."""
        cached: list[int] = []
        for node in (self._cluster.host.folder / "nodes").iterdir():
            files = [
                path for path in (node / "joblib_azure" / str(os.getuid()) / "buffers").rglob("*") if path.is_file()
            ]
            cached.append(sum(path.stat().st_size for path in files))
        if len(cached) < 2 or sum(cached) > fetched:  # more than was fetched: says nothing of what was
            return fetched
        return fetched - sum(cached) + max(cached)

    def _sizes(self, puts: list[_Put]) -> tuple[list[int], int]:
        held: dict[tuple[str, str], dict[str | None, int]] = {}
        asked = defaultdict(set)
        for put in puts:
            asked[put.container, put.blob].add(put.block is not None)
        with BlobServiceClient.from_connection_string(self._cluster.storage_connection_string) as service:
            for (container, name), kinds in asked.items():
                blob = service.get_blob_client(container, name)
                found: dict[str | None, int] = {}
                with contextlib.suppress(ResourceNotFoundError):
                    if True in kinds:
                        for block in (block for blocks in blob.get_block_list("all") for block in blocks):
                            # The SDK decodes an id where that gives text; the log has it as it was sent.
                            found[block.id] = found[base64.b64encode(block.id.encode()).decode()] = block.size
                    if False in kinds:
                        found[None] = blob.get_blob_properties().size
                held[container, name] = found
        sizes: list[int] = []
        unknown = 0
        for put in puts:
            found = held[put.container, put.blob]
            if put.block not in found:
                unknown += 1
            sizes.append(found.get(put.block, max(found.values(), default=0)))
        return sizes, unknown


def disk_use(cluster: LocalCluster) -> int:
    """Return the bytes that a local cluster's folder takes."""
    size = 0
    for path in cluster.host.folder.rglob("*"):
        with contextlib.suppress(OSError):  # tasks end and take their files along
            size += path.stat().st_size if path.is_file() else 0
    return size
