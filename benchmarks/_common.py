"""What the benchmarks share: counting requests by operation, tables, results as JSON."""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import platform
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from joblib_azure.local.host import LocalHost
    from joblib_azure.session import Session

RESULTS = Path(__file__).parent / "results"
#: Seconds that the last tasks of a call may take to end once the call has returned.
SETTLE_SECONDS = 30.0

_BATCH_LINE = re.compile(r"^([A-Z]+) (\S+) \d{3} ", re.MULTILINE)
_STORAGE_LINE = re.compile(r'^\S+ - - \[[^\]]+\] "([A-Z]+) (\S+) HTTP/[\d.]+" \d{3} ', re.MULTILINE)
#: What stands behind a collection's name in a path of the Batch API, and in a container of a job.
_BATCH_IDS = re.compile(r"(?<=/)(pools|jobs|tasks|nodes)/[^/]+")
_JOB = re.compile(r"joblib-\d{8}-\d{6}-[0-9a-f]+-(in|out)")
_BLOBS = (
    (re.compile(r"^code/.+"), "code/{sha256}.zip"),
    (re.compile(r"^bundles/.+"), "bundles/{task}"),
    (re.compile(r"^aborted/.+"), "aborted/{call}"),
    (re.compile(r"^[^/]+/[^/]+/\d+\.\d+$"), "{call}/{task}/{run}.{chunk}"),
    (re.compile(r"^[^/]+/[^/]+/\d+$"), "{call}/{task}/{run}"),
    (re.compile(r"^[0-9a-f]{64}$"), "{sha256}"),
)


class AccessLogs:
    """The requests that the servers of a local cluster have answered, by operation.

    Raises
    ------
    SystemExit
        Where the blobs are in an Azurite that somebody else started, whose log is out of reach.
    """

    def __init__(self, host: LocalHost) -> None:
        storage = host.storage_access_log
        if storage is None:
            raise SystemExit(
                "an Azurite that was running already is in use, and its requests cannot be counted: stop it"
            )
        self._batch, self._storage = host.batch_access_log, storage

    def counts(self) -> Counter[str]:
        """Return the number of requests since the servers started, by ``who  service  method  path``."""
        found = Counter(_batch_operation(*line) for line in _BATCH_LINE.findall(self._batch.read_text()))
        found.update(_storage_operation(*line) for line in _STORAGE_LINE.findall(self._storage.read_text()))
        return found


def _batch_operation(method: str, target: str) -> str:
    path = _BATCH_IDS.sub(lambda match: f"{match[1]}/{{{match[1][:-1]}}}", urlsplit(target).path)
    return f"client  batch    {method:6} {path}"


def _storage_operation(method: str, target: str) -> str:
    parts = urlsplit(target)
    query = parse_qs(parts.query)
    _, _account, container, *rest = [*unquote(parts.path).split("/", 3), ""]
    name = rest[0]
    for pattern, shape in _BLOBS:
        if pattern.match(name):
            name = shape
            break
    path = "/".join(part for part in (_JOB.sub(r"{job}-\1", container), name) if part)
    asked = [query[key][0] for key in ("restype", "comp") if key in query]
    # Only the nodes come with a SAS; the client has the account's key.
    who = "node  " if "sig" in query else "client"
    return f"{who}  storage  {method:6} /{path}{' ?' + ','.join(asked) if asked else ''}"


def settle(session: Session) -> None:
    """Wait until every task of the session has ended, so that all of a call's requests are in the logs.

    Raises
    ------
    TimeoutError
    """
    end = time.monotonic() + SETTLE_SECONDS
    while session.work.under_way:
        if time.monotonic() > end:
            raise TimeoutError(f"tasks of {session.job} are under way {SETTLE_SECONDS:.0f} s after their call returned")
        time.sleep(0.05)


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table in Markdown; the first column to the left, the others to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])])
    for first, *others in lines:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        print(f"| {' | '.join(cells)} |")


def save(name: str, figures: dict[str, Any]) -> Path:
    """Write figures, and where they were measured, to ``results/<name>.json``; return its path."""
    packages = ["joblib", "joblib_azure", "azure-batch", "azure-storage-blob", "scikit-learn", "numpy"]
    packages += [name for name in ("blake3", "distributed", "ray") if importlib.util.find_spec(name)]
    where = {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "packages": {package: metadata.version(package) for package in packages},
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"where": where, **figures}, indent=2) + "\n")
    return path
