"""Faults on warm nodes: whichever process dies, and whenever, a call has its results."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import warm_lab as lab
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joblib import Parallel, delayed, parallel_config

from joblib_azure import LocalCluster
from joblib_azure.cluster import Cluster
from joblib_azure.registry import session_for

#: Seconds that a call of a second may take after a fault: a task that the service lost is found by its listings.
BOUND = 45.0


VICTIMS = {
    "supervisor": lambda node: node.supervisors,
    "host": lambda node: node.hosts,
    "runner": lambda node: node.runners,
    "worker": lambda node: node.workers,
    "client": lambda node: node.clients,
    "supervisor and host": lambda node: node.supervisors + node.hosts,
    "supervisor and runners": lambda node: node.supervisors + node.runners,
}


def strike(cluster: LocalCluster, victim: str, moment: float, struck: list[int]) -> None:
    """Kill, at a moment, what of this kind is there then."""
    time.sleep(moment)
    for process in VICTIMS[victim](lab.Node(cluster)):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
        struck.append(process.pid)


@settings(
    max_examples=14,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(victim=st.sampled_from(sorted(VICTIMS)), moment=st.floats(0, 1.2), wide=st.booleans())
def test_a_death_at_any_moment_changes_no_result(
    narrow: LocalCluster, wide_cluster: LocalCluster, victim: str, moment: float, wide: bool
) -> None:
    cluster = wide_cluster if wide else narrow
    struck: list[int] = []
    with parallel_config("azure", cluster=cluster):
        Parallel()([delayed(lab.works)(0, 0.0)])  # the node is prepared, and its supervisor there
        thread = threading.Thread(target=strike, args=(cluster, victim, moment, struck))
        thread.start()
        begun = time.monotonic()
        assert Parallel(batch_size=1)(delayed(lab.works)(i, 0.02) for i in range(24)) == [i * i for i in range(24)]
        assert time.monotonic() - begun < BOUND
        thread.join()
    # Nothing goes on for a task that has ended, and nothing without a supervisor.
    lab.until(lab.Node(cluster).tidy, "nothing is left over")
    lab.until(lambda: not any(lab.living(pid) for pid in struck), "what was killed is gone")


def test_after_the_supervisors_death_tasks_are_warm_again(narrow: LocalCluster) -> None:
    with parallel_config("azure", cluster=narrow):
        for _ in range(2):
            Parallel()([delayed(lab.pid)()])
            first = lab.Node(narrow).supervisor()
            first.kill()
            lab.until(lambda first=first: not lab.living(first.pid), "the supervisor has ended")
            assert Parallel()([delayed(abs)(-1)]) == [1]  # with a socket on which nobody listens
            second = lab.Node(narrow).supervisor()
            assert second.pid != first.pid
            lab.until(lambda: lab.Node(narrow).runners, "the new supervisor has a runner")
            pids = [Parallel()([delayed(lab.pid)()])[0] for _ in range(3)]
            assert len(set(pids)) == 1
            assert psutil.Process(pids[0]).ppid() == second.pid


def test_a_host_that_loses_its_runner_and_the_supervisor_is_as_a_task_without(
    narrow: LocalCluster, tmp_path: Path
) -> None:
    """In the task's folder, its output in the task's files, each in its own."""
    with parallel_config("azure", cluster=narrow):
        Parallel()([delayed(lab.pid)()])
        lab.until(lambda: lab.Node(narrow).runners, "there is a runner")
        begun = time.monotonic()
        ((cwd, folder, task),) = Parallel()([delayed(lab.ends_its_warmth)(str(tmp_path / "marker"))])
        assert time.monotonic() - begun < BOUND
    assert os.path.realpath(cwd) == os.path.realpath(folder)
    assert lab.task_output(narrow, task, "stdout") == "out\n"
    assert "err\n" in lab.task_output(narrow, task, "stderr")


@pytest.mark.parametrize("shape", ["narrow", "wide_cluster"])
def test_a_task_that_is_terminated_takes_its_calls_with_it(
    shape: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    cluster = request.getfixturevalue(shape)
    # One call, and so one task: on two cores with a pool below it.
    call, workers = (lab.stamps, 1) if shape == "narrow" else (lab.stamps_below, 2)
    session = session_for(cluster)
    results: list[int] = []

    def run() -> None:
        with parallel_config("azure", cluster=cluster):
            (result,) = Parallel()([delayed(call)(str(tmp_path))])
        results.extend(result if isinstance(result, list) else [result])

    with parallel_config("azure", cluster=cluster):
        Parallel()([delayed(lab.pid)()])  # the node is warm
    lab.until(lambda: not session.work.under_way, "that is over")
    thread = threading.Thread(target=run)
    thread.start()
    try:
        lab.until(lambda: len(os.listdir(tmp_path)) == workers, "the calls run")
        first = {int(name) for name in os.listdir(tmp_path)}
        assert lab.Node(cluster).hosts  # it is warm
        (task,) = session.work.under_way
        cluster.batch.terminate_task(session.job, task)
        lab.until(lambda: not any(lab.living(pid) for pid in first), "the calls have ended", seconds=1.0)
        # The service has lost a task, and the session sends it again.
        lab.until(lambda: len(os.listdir(tmp_path)) == 2 * workers, "the calls run again")
    finally:
        (tmp_path / "stop").touch()
        thread.join(BOUND)
    assert len(results) == workers
    assert not set(results) & first


def test_a_result_that_the_disk_does_not_take_is_no_error_of_its_call(narrow: LocalCluster, tmp_path: Path) -> None:
    with parallel_config("azure", cluster=narrow):
        (found,) = Parallel()([delayed(lab.fills_the_disk)(str(tmp_path), 1, narrow.run_id)])
    assert found.sum() == 300_000
    assert len(os.listdir(tmp_path)) == 2


def test_a_call_is_not_blamed_where_the_disk_takes_nothing_at_all(
    narrow: LocalCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its task fails and is sent again, which on Azure is to another node: the service takes a full one away."""
    with parallel_config("azure", cluster=narrow):
        Parallel()([delayed(lab.pid)()])  # the node is warm
        (found,) = Parallel()([delayed(lab.fills_the_disk)(str(tmp_path), 2, narrow.run_id)])
    assert found.sum() == 300_000
    assert len(os.listdir(tmp_path)) == 3
    assert "sending it again" in caplog.text


def test_two_sessions_survive_the_supervisor_that_they_share(narrow: LocalCluster) -> None:
    found: dict[str, list[int]] = {"one": [], "two": []}

    def run(name: str, cluster: Cluster) -> None:
        with parallel_config("azure", cluster=cluster):
            for _ in range(3):
                found[name] += Parallel(batch_size=1)(delayed(lab.works)(i, 0.03) for i in range(8))

    with parallel_config("azure", cluster=narrow):
        Parallel()([delayed(lab.pid)()])
    with lab.beside(narrow) as other:
        threads = [threading.Thread(target=run, args=each) for each in (("one", narrow), ("two", other))]
        for thread in threads:
            thread.start()
        lab.until(lambda: len(found["one"]) >= 8, "the first call has ended")
        lab.Node(narrow).supervisor().send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join(BOUND)
    assert found == dict.fromkeys(found, 3 * [i * i for i in range(8)])


def test_a_node_that_cannot_keep_the_code_runs_its_tasks_cold() -> None:
    with LocalCluster(nodes=1, cores_per_node=1) as cluster:
        cluster.wait_for_node()
        (disk,) = cluster.host.folder.glob("nodes/*")
        mine = disk / "joblib_azure" / str(os.getuid())
        mine.mkdir(parents=True, mode=0o700)
        (mine / "code").touch()  # where a folder should be
        with parallel_config("azure", cluster=cluster):
            for _ in range(2):
                assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
        assert not lab.Node(cluster).supervisors
        said = [path.read_text() for path in disk.glob("batch/tasks/workitems/*/*/jobpreparation/stdout.txt")]
        assert "no warm runners" in "".join(said)


def test_a_node_that_was_rebooted_works_again() -> None:
    """Batch runs the job's preparation on it once more, where what the first one left still is."""
    with LocalCluster(nodes=1, cores_per_node=1) as cluster, parallel_config("azure", cluster=cluster):
        assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
        pool = cluster.config.name
        (node,) = cluster.batch.nodes(pool)
        (before,) = lab.Node(cluster).supervisors
        restart = {"nodeRebootOption": "requeue"}
        cluster.batch._client.begin_reboot_node(pool, node.id, restart, polling_interval=0.02).result()
        assert Parallel()(delayed(abs)(-i) for i in range(3)) == [0, 1, 2]
        (after,) = lab.Node(cluster).supervisors
        assert after.pid != before.pid
