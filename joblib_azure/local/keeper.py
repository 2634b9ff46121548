"""``python -m joblib_azure.local.keeper NAME``: the process that serves a local account that stays.

It holds the folder's lock, starts the cluster of its settings, says in ``running.json`` where that listens, and waits:
for SIGTERM, which ends it, or for the servers' own end, which is an error. `engine.py` starts and ends it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlsplit

from joblib_azure.errors import LocalClusterError
from joblib_azure.local.behaviour import emulator_flags
from joblib_azure.local.home import Home
from joblib_azure.local.host import LocalHost
from joblib_azure.local.storm import chaos_schedule

#: Seconds that the servers may take to start.
START_SECONDS = 60.0
_LOOK = 0.5


def main(arguments: list[str] | None = None) -> int:
    """Serve until somebody ends it."""
    (name,) = sys.argv[1:] if arguments is None else arguments
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    home = Home(name)
    try:
        with home.serving():
            if os.fork():
                os._exit(0)  # whoever has started it is not its parent; the lock is held from here on
            return _serve(home, over)
    except LocalClusterError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1


def _serve(home: Home, over: threading.Event) -> int:
    settings = home.settings()
    if settings is None:
        raise LocalClusterError(f"the local account {home.name!r} has no settings")
    chaos = settings["chaos"]
    host = LocalHost(
        identity=home.identity(settings),
        emulator_flags=emulator_flags(settings["emulator"]),
        schedule=None if chaos is None else chaos_schedule(chaos),
    )
    with host.start(START_SECONDS):
        _remember_ports(home, settings, host)
        home.write("running.json", _said(host))
        while not over.wait(_LOOK):
            if not host.alive():
                raise LocalClusterError(f"the servers have ended: {host.failure}")
    return 0


def _remember_ports(home: Home, settings: dict[str, Any], host: LocalHost) -> None:
    """Have the next start listen where this one does: clients go on with the files that they have."""
    batch, storage = urlsplit(host.batch_endpoint).port, urlsplit(_blob_endpoint(host)).port
    home.write("settings.json", {**settings, "batch_port": batch, "storage_port": storage})


def _blob_endpoint(host: LocalHost) -> str:
    parts = dict(part.split("=", 1) for part in host.storage_connection_string.rstrip(";").split(";"))
    return parts["BlobEndpoint"]


def _said(host: LocalHost) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "run_id": host.run_id,
        "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "batch_endpoint": host.batch_endpoint,
        "blob_endpoint": _blob_endpoint(host),
        "storage_connection_string": host.storage_connection_string,
    }


if __name__ == "__main__":
    sys.exit(main())
