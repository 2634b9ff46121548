"""Azurite, the storage emulator: one that runs already, and the few facts about it that others need.

`find_running` looks for one that this user runs on the usual port; it is used as it is, never stopped. An own one is
found or installed by `install.py` and started by the guard (`guard.py`).
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
from pathlib import Path

__all__ = [
    "check_storage",
    "connection_string",
    "count_requests",
    "find_running",
]

logger = logging.getLogger(__name__)

# Published: https://learn.microsoft.com/azure/storage/common/storage-use-azurite
_DEVELOPMENT_ACCOUNT = "devstoreaccount1"
_DEVELOPMENT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
USUAL_PORT = 10000
# States of sockets in Linux's table of them, and where it is (proc(5)).
_LISTENING = "0A"
_SOCKETS = ("/proc/net/tcp", "/proc/net/tcp6")
# Loopback answers in a millisecond or two; whatever takes longer is not worth waiting for.
_PROBE_TIMEOUT = 0.2

READY_LINE = r"^Azurite Blob service successfully listens on http://[^\s:]+:(\d+)\s*$"
"""What Azurite prints when it listens; the group is its port (it picks a free one for ``--blobPort 0``)."""

# 127.0.0.1 - - [23/Nov/2026:09:23:01 +0000] "PUT /local/c/a%20b HTTP/1.1" 201 -
_ACCESS_LINE = re.compile(rb'^\S+ - - \[[^\]]+\] "[A-Z]+ \S+ HTTP/[\d.]+" \d{3} ', re.MULTILINE)


def connection_string(account: str, key: str, port: int) -> str:
    """A storage connection string for an Azurite on loopback.

    Parameters
    ----------
    account, key : str
        The account and its Base64 key.
    port : int
        Where its blob service listens.

    Returns
    -------
    str
    """
    return (
        f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={key};"
        f"BlobEndpoint=http://127.0.0.1:{port}/{account};"
    )


def check_storage(connection: str, timeout: float) -> None:
    """Make one authenticated call, as the client's storage SDK makes them.

    Parameters
    ----------
    connection : str
        A storage connection string.
    timeout : float
        Seconds to connect, and again to answer. Nothing is tried twice.

    Raises
    ------
    azure.core.exceptions.AzureError
        The service does not answer, refuses the key, or does not speak the SDK's version.
    """
    # 0.15 s, which a client that never needs it should not pay.
    from azure.storage.blob import BlobServiceClient

    with BlobServiceClient.from_connection_string(
        connection,
        retry_total=0,
        connection_timeout=timeout,
        read_timeout=timeout,
        use_env_settings=False,  # a proxy of the environment must not be asked for loopback
    ) as client:
        client.get_account_information()


def count_requests(log: Path) -> int:
    """Count the requests that Azurite has answered.

    Parameters
    ----------
    log : Path
        The file that holds its standard output.

    Returns
    -------
    int
    """
    return len(_ACCESS_LINE.findall(log.read_bytes()))


def find_running(port: int = USUAL_PORT) -> str | None:
    """Look for an Azurite that this user runs already, or the machine's administrator, with the published account.

    Another user's is left alone: it would be given what calls are given and what they return, and its key is known to
    everybody.

    Parameters
    ----------
    port : int
        Where to look on 127.0.0.1. What is not Azurite is left alone after one request.

    Returns
    -------
    str or None
        Its connection string, or None if there is none that this client can use.
    """
    server = http.client.HTTPConnection("127.0.0.1", port, timeout=_PROBE_TIMEOUT)
    try:
        server.request("GET", f"/{_DEVELOPMENT_ACCOUNT}?comp=list")
        header = server.getresponse().headers.get("Server", "")
    except (OSError, http.client.HTTPException):
        return None
    finally:
        server.close()
    if not header.startswith("Azurite-Blob/"):
        return None
    if not _listeners(port) <= {0, os.getuid()}:
        logger.info("%s on 127.0.0.1:%d is not used: it is another user's", header, port)
        return None
    from azure.core.exceptions import AzureError

    connection = connection_string(_DEVELOPMENT_ACCOUNT, _DEVELOPMENT_KEY, port)
    try:
        check_storage(connection, _PROBE_TIMEOUT)
    except AzureError as error:
        reason = str(error).partition("\n")[0]
        logger.info("%s on 127.0.0.1:%d is not used: %s", header, port, reason)
        return None
    logger.info("Using %s, which runs on 127.0.0.1:%d", header, port)
    return connection


def _listeners(port: int) -> set[int]:
    """Return the ids of the users whose processes listen on a port of this machine; none where there is no table."""
    found = set()
    for table in _SOCKETS:
        with contextlib.suppress(OSError), open(table) as file:
            next(file, None)
            for line in file:
                _, local, _, state, _, _, _, user, *_ = line.split()
                if state == _LISTENING and int(local.rpartition(":")[2], 16) == port:
                    found.add(int(user))
    return found
