"""How soon does a node have an environment with scikit-learn, against ``pip install`` in a fresh virtual environment?

On the nodes of a local cluster, with the lock that the client makes of its own versions. Each figure is the time that
the node's job preparation task says it took, checks included; a Parallel call that fits a model runs in each of them.

1. *cold*: the node has nothing, storage has no archive; uv and all wheels come from the index;
2. *warm*: uv and its cache are there, as on a node that has had another lock;
3. *archive*: the node has nothing, another node has published the environment;
4. *ready*: the node has had a job of this lock: nothing is installed.

The publication is a task behind the first ones, which nobody waits for; what it takes is told below the table.

pip installs the same versions from the same index, without its cache and with it. What it compiles while it installs,
a node compiles when it first imports it, or has from the archive: so the first import is told beside, and the sum.

The exit code is 1 where warm is less than 5 times as fast as pip with its cache, or where anything was installed for a
lock that is there.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import sklearn.ensemble  # noqa: F401 - as a user's script does: what it has loaded is compiled for the archive
from _common import print_table, save
from joblib import Parallel, delayed, parallel_config

from joblib_azure import LocalCluster
from joblib_azure.local.cluster import machine_cores
from joblib_azure.registry import close_sessions, session_for

if TYPE_CHECKING:
    from joblib_azure.session import Session

BOUND = 5.0
_PIP = "pip, its cache"
_SAID = re.compile(r"environment \w+: (.+?) \(([\d.]+) s\)")


def fit(seed: int) -> tuple[str, str, float]:
    """Fit a small model on a node; return the node, its interpreter's prefix and the seconds of the import."""
    begun = time.perf_counter()
    from sklearn.datasets import make_classification
    from sklearn.ensemble import RandomForestClassifier

    seconds = time.perf_counter() - begun
    data, target = make_classification(random_state=seed)
    RandomForestClassifier(n_estimators=5, random_state=seed).fit(data, target)
    return os.environ["AZ_BATCH_NODE_ID"], sys.prefix, seconds


class Nodes:
    """The nodes of a local cluster, and what they have."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self.locked: list[str] = []
        self.published: list[float] = []

    def forget(self, *names: str) -> None:
        """Remove folders of the nodes' own; all of them by default."""
        for folder in self._cluster.host.folder.glob("nodes/*/joblib_azure/*/*"):
            if folder.name != "buffers" and (not names or folder.name in names):
                shutil.rmtree(folder)

    def measure(self, *, archive: bool) -> tuple[str, float, float]:
        """Run a call in a new job; return what the preparation did, its seconds, and those of the first import."""
        cluster = self._cluster
        session = session_for(cluster)
        lock = session.plan.lock
        if lock is None:
            raise SystemExit("the plan has no lock: is environment.mode auto?")
        self.locked = [f"{file.name}=={file.version}" for file in lock.files]
        if not archive:
            cluster.blobs.delete_container(f"joblib-azure-env-{lock.digest}")
            close_sessions(cluster)
            session = session_for(cluster)
        ((node, prefix, seconds),) = Parallel()(delayed(fit)(seed) for seed in range(1))
        if prefix == sys.prefix:
            raise SystemExit("the call ran in the client's own environment")
        path = f"workitems/{session.job}/job-1/jobpreparation/stdout.txt"
        said = _SAID.search(cluster.batch.node_file_tail(cluster.config.name, node, path))
        if said is None:
            raise SystemExit("the job preparation task did not say what it did")
        if not archive:
            self._await_publication(session)
        close_sessions(cluster)
        return said[1], float(said[2]), seconds

    def _await_publication(self, session: Session) -> None:
        batch, end = self._cluster.batch, time.monotonic() + 120
        while not any(task.id == "publish-environment" for task in batch.ended_tasks(session.job, None)):
            if time.monotonic() > end:
                raise SystemExit("the environment was not published within 120 s")
            time.sleep(0.2)
        said = _SAID.search(batch.task_file_tail(session.job, "publish-environment", "stdout.txt"))
        if said is None or not said[1].startswith("stored"):
            raise SystemExit(f"the environment was not published: {said}")
        self.published.append(float(said[2]))


def pip_install(locked: list[str], *, cache: bool) -> tuple[float, float]:
    """Return the seconds of pip's installation in a fresh virtual environment, and of the first import there."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = Path(folder, "bin", "python")
        install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
        begun = time.perf_counter()
        subprocess.run([*install, *([] if cache else ["--no-cache-dir"]), *locked], check=True)
        installed = time.perf_counter() - begun
        begun = time.perf_counter()
        subprocess.run([python, "-c", "import sklearn.datasets, sklearn.ensemble"], check=True)
        return installed, time.perf_counter() - begun


def main() -> int:
    """Run all cases and print them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--index", default="https://pypi.org/simple", help="URL of the package index")
    parser.add_argument("--repeat", type=int, default=3, help="times that each case runs; the median counts")
    options = parser.parse_args()
    # One index for both, and nothing of this machine's own.
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_")) and "CERT" not in name]:
        del os.environ[name]
    os.environ.update(PIP_CONFIG_FILE=os.devnull, PIP_INDEX_URL=options.index)

    rows: dict[str, list[tuple[float, float]]] = {}
    installs = 0
    with LocalCluster(nodes=2, cores_per_node=machine_cores()) as cluster, parallel_config("azure", cluster=cluster):
        Parallel()(delayed(abs)(-i) for i in range(2))
        close_sessions(cluster)
        packages = cluster.config.python_packages.model_copy(
            update={"pypi": (f"scikit-learn=={metadata.version('scikit-learn')}",)}
        )
        environment = cluster.config.environment.model_copy(update={"mode": "auto"})
        cluster.config = cluster.config.model_copy(update={"python_packages": packages, "environment": environment})
        nodes = Nodes(cluster)
        cases = (
            ("cold", (), False),
            ("warm", ("environments",), False),
            ("archive", (), True),
            ("ready", ("nothing",), True),
        )
        # Round by round, so that what else the machine does meets all of them.
        for number in range(options.repeat):
            for case, forgotten, archive in cases:
                nodes.forget(*forgotten)
                how, seconds, imported = nodes.measure(archive=archive)
                expected = {"archive": "unpacked", "ready": "was ready"}.get(case, "installed")
                if not how.startswith(expected):
                    raise SystemExit(f"{case}: the node's environment {how}")
                installs += case == "ready" and "installed" in how
                rows.setdefault(case, []).append((seconds, imported))
            if number == 0:
                pip_install(nodes.locked, cache=True)  # fills its cache
            for case, cache in (("pip, no cache", False), (_PIP, True)):
                rows.setdefault(case, []).append(pip_install(nodes.locked, cache=cache))

    medians = {case: statistics.median(seconds for seconds, _ in found) for case, found in rows.items()}
    imports = {case: statistics.median(seconds for _, seconds in found) for case, found in rows.items()}
    pip = medians[_PIP]
    print_table(
        ["environment of scikit-learn", "ready, s", "spread", "× pip", "first import, s", "both, s", "× pip"],
        [
            [
                case,
                f"{medians[case]:.2f}",
                f"{min(found)[0]:.2f}–{max(found)[0]:.2f}",
                f"{pip / medians[case]:.1f}" if medians[case] else "–",
                f"{imports[case]:.2f}",
                f"{medians[case] + imports[case]:.2f}",
                f"{(pip + imports[_PIP]) / (medians[case] + imports[case]):.1f}",
            ]
            for case, found in rows.items()
        ],
    )
    factor = pip / medians["warm"]
    print(f"\n{len(nodes.locked)} packages; × pip: against pip with its cache")
    print(f"publication: {statistics.median(nodes.published):.1f} s")
    print(f"warm is {factor:.1f} times as fast; installs of a lock that is there: {installs}")
    save(
        "environment",
        {"packages": nodes.locked, "seconds": rows, "warm_factor": factor, "installs_when_ready": installs},
    )
    return 0 if factor >= BOUND and installs == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
