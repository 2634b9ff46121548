"""Clients as their users start them, for the tests of environments: a script, a cluster.json and credentials.

The nodes are those of a local cluster of the test's; each client is a process of its own, whose user code is nothing
but its script. So what the tests import does not count.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from joblib_azure import LocalCluster
from joblib_azure.environment.lock import uv_program

PRELUDE = '''
import json, sys
from joblib import Parallel, delayed, parallel_config
import joblib_azure

def session():
    from joblib_azure.registry import resolve_cluster, session_for
    return session_for(resolve_cluster("cluster.json"))

def preparation(file="stdout.txt"):
    """What the job preparation tasks of the session wrote, one text a node."""
    now = session()
    batch, pool = now.cluster.batch, now.cluster.config.name
    path = f"workitems/{now.job}/job-1/jobpreparation/{file}"
    return [batch.node_file_tail(pool, node.id, path) for node in batch.nodes(pool)]

def published():
    """What the publication of the environment wrote, once it has; nothing where there is none."""
    import time
    now, end = session(), time.monotonic() + 30
    while time.monotonic() < end:
        tasks = [task.id for task in now.cluster.batch.ended_tasks(now.job, None)]
        if "publish-environment" in tasks or not now.plan.publishes:
            break
        time.sleep(0.2)
    return now.cluster.batch.task_file_tail(now.job, "publish-environment", "stdout.txt")

def say(**values):
    print(json.dumps(values), flush=True)
'''


@dataclass
class Done:
    """What a client said."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> list[dict[str, Any]]:
        """The values of its `say` calls; the client must have succeeded."""
        assert self.code == 0, self.err
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]


class Lab:
    """A cluster, and a folder for its clients."""

    def __init__(self, cluster: LocalCluster, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.cache = folder / "cache"
        (folder / "credentials.json").write_text(json.dumps(cluster.account.to_dict(secrets=True)))

    def run(self, script: str, variables: dict[str, str] | None = None, **config: Any) -> Done:
        """Run a script as the client of a configuration."""
        own = self.cluster.config
        values: dict[str, Any] = {
            "name": own.name,
            "vmSize": own.vm_size,
            "nodes": own.nodes,
            "poolSize": {"autoscaleFormula": "FIXED"},
            "maxTasksPerNode": own.max_tasks_per_node,
            **config,
        }
        # joblib does without numpy, and so do these tests: it is most of what would have to be installed.
        values["environment"] = {"exclude": ["numpy"], **values.get("environment", {})}
        (self.folder / "cluster.json").write_text(json.dumps(values))
        (self.folder / "script.py").write_text(PRELUDE + textwrap.dedent(script))
        environment = {
            **os.environ,
            "JOBLIB_AZURE_CREDENTIALS": str(self.folder / "credentials.json"),
            # uv's own cache stays the machine's, all else is the test's.
            "UV_CACHE_DIR": subprocess.check_output([uv_program(), "cache", "dir"], text=True).strip(),
            "XDG_CACHE_HOME": str(self.cache),
            **(variables or {}),
        }
        done = subprocess.run(
            [sys.executable, "script.py"], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=100
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def node_folders(self, name: str) -> list[Path]:
        """Folders of that name below the package's roots on the nodes."""
        return sorted(self.cluster.host.folder.glob(f"nodes/*/joblib_azure/*/{name}"))


def make_wheel(folder: Path, name: str, source: str, version: str = "1.0") -> Path:
    """Write a pure wheel of one module."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        lines = []
        for place, text in files.items():
            archive.writestr(place, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
            lines.append(f"{place},sha256={digest},{len(text.encode())}\n")
        archive.writestr(f"{info}/RECORD", "".join([*lines, f"{info}/RECORD,,\n"]))
    return path


class _Index(SimpleHTTPRequestHandler):
    """A simple index below a folder, for one user."""

    def __init__(self, *args: Any, user: str, asked: list[str], **options: Any) -> None:
        self._user, self._asked = user, asked
        super().__init__(*args, **options)

    def do_GET(self) -> None:
        expected = "Basic " + base64.b64encode(self._user.encode()).decode()
        self._asked.append(self.path)
        if self.headers.get("Authorization") != expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="packages"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def private_index(folder: Path, wheel: Path, user: str) -> Iterator[tuple[str, list[str]]]:
    """Serve a wheel to a user with a password; yield host and port, and the paths that were asked for."""
    place = folder / "simple" / wheel.name.partition("-")[0]
    place.mkdir(parents=True)
    (folder / wheel.name).write_bytes(wheel.read_bytes())
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (place / "index.html").write_text(f'<a href="../../{wheel.name}#sha256={digest}">{wheel.name}</a>')
    asked: list[str] = []
    handler = partial(_Index, user=user, asked=asked, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()
