"""A supervisor that a service manager starts: what `begin` leaves for it is enough, and it stays its child."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from joblib import Parallel, delayed, parallel_config

from joblib_azure import LocalCluster

SECONDS = 30.0


class Manager:
    """Does what the units of `cluster.supervision` do: starts what is asked for, in the foreground, and keeps it."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._requests = base / "requests"
        self._requests.mkdir(parents=True)
        base.chmod(0o1777)
        self.started: list[subprocess.Popen[bytes]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.02):
            for request in self._requests.iterdir():
                request.unlink()
                start = self._base / str(os.getuid()) / "code" / request.name / "start"
                self.started.append(subprocess.Popen(["/bin/sh", str(start)], env={}, start_new_session=True))

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        for process in self.started:
            process.terminate()
            process.wait(SECONDS)


@pytest.fixture
def managed() -> Iterator[tuple[LocalCluster, Manager]]:
    with LocalCluster(nodes=1, cores_per_node=1) as cluster:
        cluster.wait_for_node()
        (node,) = (cluster.host.folder / "nodes").iterdir()
        manager = Manager(node / "joblib_azure")
        try:
            yield cluster, manager
        finally:
            manager.close()


def call() -> tuple[int, int]:
    return os.getpid(), os.getppid()


@pytest.mark.timeout(120)
def test_a_service_manager_starts_it(managed: tuple[LocalCluster, Manager]) -> None:
    cluster, manager = managed
    with parallel_config("azure", cluster=cluster):
        first = set(Parallel(n_jobs=2)(delayed(call)() for _ in range(2)))
        (service,) = manager.started
        assert service.poll() is None
        assert {parent for _, parent in first} == {service.pid}
        assert set(Parallel(n_jobs=2)(delayed(call)() for _ in range(2))) == first
        # It dies: the task that finds that out runs by itself and has another started.
        service.kill()
        service.wait(SECONDS)
        Parallel(n_jobs=2)(delayed(call)() for _ in range(2))
        end = time.monotonic() + SECONDS
        while len(manager.started) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        second = manager.started[1]
        assert psutil.Process(second.pid).status() != psutil.STATUS_ZOMBIE
        parents: set[int] = set()
        while parents != {second.pid} and time.monotonic() < end:
            parents = {parent for _, parent in Parallel(n_jobs=2)(delayed(call)() for _ in range(2))}
        assert parents == {second.pid}
