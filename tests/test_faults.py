"""Fault basics: each one a clear error within a bounded time, and nothing left running."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from joblib import Parallel, delayed, parallel_config
from joblib.parallel import BatchedCalls
from pydantic import SecretStr

from joblib_azure import LocalCluster
from joblib_azure.bundler import CallSettings
from joblib_azure.call import ChunkFuture
from joblib_azure.cluster import Cluster
from joblib_azure.config import AccountConfig
from joblib_azure.errors import (
    AuthenticationError,
    JoblibAzureError,
    LocalClusterError,
    NodesUnavailableError,
    ServiceUnreachableError,
    TaskFailedError,
    WorkerDiedError,
)
from joblib_azure.local.host import processes_of
from joblib_azure.node.nested import NestedBackend
from joblib_azure.registry import close_sessions, session_for


def only(i: int, at: int, fault: Callable[[], Any]) -> int:
    if i == at:
        fault()
    return i


def exits() -> None:
    os._exit(3)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("fault", "said"), [(exits, "3"), (killed, "SIGKILL")])
@pytest.mark.parametrize("shape", ["cluster", "wide_cluster"])
def test_a_call_that_kills_its_worker_is_told(
    shape: str, fault: Callable[[], None], said: str, request: pytest.FixtureRequest
) -> None:
    with parallel_config("azure", cluster=request.getfixturevalue(shape)):
        begun = time.monotonic()
        with pytest.raises(WorkerDiedError, match=said) as caught:
            Parallel(batch_size=1)(delayed(only)(i, 3, fault) for i in range(8))
        assert time.monotonic() - begun < 30
        context = caught.value.context
        assert (context["call"], context["node"][:6], bool(context["task"])) == (3, "tvmps_", True)
        assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


def test_only_the_poison_fails(wide_cluster: LocalCluster) -> None:
    """What ran beside the poison, and what had finished before it, has its results.

    Below joblib, which raises an error at once and drops the results that it did not hand out yet.
    """
    session = session_for(wide_cluster)
    path = wide_cluster.python_path
    call = session.start_call(
        CallSettings(n_jobs=2, max_nbytes=None, mmap_mode="r", inner_max_num_threads=None, path=path)
    )
    done: queue.Queue[ChunkFuture] = queue.Queue()
    for i in range(6):
        future = call.add(BatchedCalls([(only, (i, 2, killed), {})], (NestedBackend(), None)), done.put)
        session.work.ready(call, future.chunk, 1, "only")
    session.work.exhaust(call)
    futures = {future.chunk: future for future in (done.get(timeout=60) for _ in range(6))}
    session.end_call(call)
    with pytest.raises(WorkerDiedError):
        futures.pop(2).result()
    assert {chunk: future.result() for chunk, future in futures.items()} == {i: [i] for i in (0, 1, 3, 4, 5)}


def test_a_poison_in_a_process_that_forked_is_seen(cluster: LocalCluster) -> None:
    """A child that the call forked holds the runner's pipes open; its death is noticed all the same."""

    def forks_and_dies() -> None:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        os._exit(7)

    with parallel_config("azure", cluster=cluster), pytest.raises(WorkerDiedError, match="exit code 7"):
        Parallel()(delayed(forks_and_dies)() for _ in range(2))


def _gone(run_id: str, marker: str, seconds: float = 10.0) -> bool:
    """Wait until no process of the cluster has `marker` in its environment."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = [p for p in processes_of(run_id) if marker in _environment(p.pid)]
        if not found:
            return True
        time.sleep(0.1)
    return False


def _environment(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def test_an_interrupt_ends_what_runs_on_the_nodes(cluster: LocalCluster) -> None:
    with parallel_config("azure", cluster=cluster):
        threading.Timer(3.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            Parallel()(delayed(time.sleep)(60) for _ in range(8))
        assert time.monotonic() - begun < 10
        assert _gone(cluster.run_id, "AZ_BATCH_TASK_ID=")
        assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]


CLIENT = """
import sys, time
from joblib import Parallel, delayed, parallel_config
from joblib.parallel import BatchedCalls
import joblib_azure

with joblib_azure.LocalCluster(nodes=1, cores_per_node=1) as cluster, parallel_config("azure", cluster=cluster):
    Parallel()(delayed(abs)(i) for i in range(2))
    print(cluster.run_id, flush=True)
    Parallel()(delayed(time.sleep)(60) for _ in range(4))
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_outlives_a_client_that_is_killed(signum: int) -> None:
    with subprocess.Popen([sys.executable, "-c", CLIENT], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
        assert client.stdout is not None
        run_id = client.stdout.readline().decode().strip()
        assert run_id, client.stderr and client.stderr.read().decode()
        time.sleep(1.5)
        assert processes_of(run_id)
        client.send_signal(signum)
        client.communicate(timeout=30)
    assert _gone(run_id, "")


UPLOADER = """
import threading, os, signal, sys
import numpy as np
from joblib import Parallel, delayed, parallel_config
import joblib_azure
from joblib_azure.buffers import BufferStore

begun = BufferStore._store
def store(self, buffer, wanted):
    print(threading.active_count(), flush=True)
    return begun(self, buffer, wanted)
BufferStore._store = store
with joblib_azure.LocalCluster(nodes=1, cores_per_node=1) as cluster, parallel_config("azure", cluster=cluster):
    print(cluster.run_id, flush=True)
    data = np.random.default_rng(0).random(int(sys.argv[1]) << 17)
    Parallel()(delayed(np.sum)(data) for i in range(4))
"""


def test_an_interrupt_during_a_long_upload_ends_the_client() -> None:
    """800 MB take Azurite ten seconds and more; what is left of them at the interrupt is not sent."""
    with subprocess.Popen(
        [sys.executable, "-c", UPLOADER, "800"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as client:
        assert client.stdout is not None
        run_id = client.stdout.readline().decode().strip()
        assert client.stdout.readline()  # the upload begins
        time.sleep(0.5)
        client.send_signal(signal.SIGINT)
        begun = time.monotonic()
        _, said = client.communicate(timeout=60)
        assert time.monotonic() - begun < 20
    assert b"KeyboardInterrupt" in said
    assert _gone(run_id, "")


def test_a_client_that_just_ends_leaves_nothing() -> None:
    code = CLIENT.replace("with joblib_azure.LocalCluster(nodes=1, cores_per_node=1) as cluster, ", "with ").replace(
        "cluster=cluster", "cluster='local'"
    )
    code = code.replace("print(cluster.run_id", "print(joblib_azure.backend.resolve_cluster('local').run_id")
    code = code.replace("delayed(time.sleep)(60)", "delayed(time.sleep)(0)").replace(
        "import joblib_azure", "import joblib_azure.backend"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert time.monotonic() - begun < 30
    assert done.stderr == ""
    assert processes_of(done.stdout.strip()) == []


def _attach(cluster: LocalCluster, **changes: Any) -> Cluster:
    account = AccountConfig(**{**dict(cluster.account), **changes})
    return Cluster(cluster.config, account)


def _run_on(other: Cluster) -> float:
    begun = time.monotonic()
    with parallel_config("azure", cluster=other):
        Parallel()(delayed(abs)(i) for i in range(3))
    return time.monotonic() - begun


def test_a_wrong_key_is_told(cluster: LocalCluster) -> None:
    begun = time.monotonic()
    with pytest.raises(AuthenticationError, match="refused the credentials"):
        _run_on(_attach(cluster, batch_key=SecretStr("d3Jvbmc=")))
    assert time.monotonic() - begun < 20


def test_a_wrong_storage_key_is_told(cluster: LocalCluster) -> None:
    wrong = cluster.storage_connection_string.replace("AccountKey=", "AccountKey=AAAA")
    begun = time.monotonic()
    with pytest.raises(AuthenticationError, match="refused the credentials"):
        _run_on(_attach(cluster, storage_connection_string=SecretStr(wrong)))
    assert time.monotonic() - begun < 20


def test_an_endpoint_where_nothing_listens_is_told(cluster: LocalCluster) -> None:
    begun = time.monotonic()
    with pytest.raises(ServiceUnreachableError, match=r"nothing answers at http://127\.0\.0\.1:1"):
        _run_on(_attach(cluster, batch_endpoint="http://127.0.0.1:1"))
    assert time.monotonic() - begun < 60


def test_nodes_without_python_are_told(cluster: LocalCluster) -> None:
    other = _attach(cluster)
    other.config = cluster.config.model_copy(update={"python": "no-such-python"})
    begun = time.monotonic()
    with pytest.raises(NodesUnavailableError, match="no-such-python"):
        _run_on(other)
    assert time.monotonic() - begun < 60


def test_a_task_that_the_infrastructure_loses_is_sent_again_and_then_told(cluster: LocalCluster) -> None:
    """Terminated from outside: run again, at most ``retries`` times, then its calls fail with the reason."""
    other = _attach(cluster)
    other.config = cluster.config.model_copy(update={"retries": 1})
    session = session_for(other)
    lost: list[str] = []
    stop = threading.Event()

    def saboteur() -> None:
        while not stop.wait(0.3):
            for task in list(session.work.under_way):
                if task not in lost:
                    time.sleep(1)
                    lost.append(task)
                    other.batch.terminate_task(session.job, task)

    thread = threading.Thread(target=saboteur)
    thread.start()
    try:
        with parallel_config("azure", cluster=other), pytest.raises(TaskFailedError, match="lost 2 times"):
            Parallel()(delayed(time.sleep)(20) for _ in range(2))
    finally:
        stop.set()
        thread.join()
        close_sessions(other)
    assert len(lost) >= 3


def test_a_dead_cluster_is_told_and_the_next_call_starts_another() -> None:
    with LocalCluster(nodes=1, cores_per_node=1) as cluster, parallel_config("azure", cluster=cluster):
        Parallel()(delayed(abs)(i) for i in range(2))
        first = cluster.run_id

        def kill() -> None:
            for process in processes_of(first):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

        threading.Timer(2.0, kill).start()
        begun = time.monotonic()
        with pytest.raises(JoblibAzureError) as caught:
            Parallel()(delayed(time.sleep)(60) for _ in range(2))
        assert time.monotonic() - begun < 30
        assert isinstance(caught.value, LocalClusterError)
        assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
        assert cluster.run_id != first
