"""Detached jobs: submitted here, collected there, and each call once."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs_lab as lab
import numpy as np
import pytest
from joblib import delayed

from joblib_azure import Job, LocalCluster, submit
from joblib_azure.errors import (
    ConfigurationError,
    JobError,
    RemoteTraceback,
    ResourceExistsError,
    TaskFailedError,
    TaskPicklingError,
    WorkerDiedError,
)
from joblib_azure.jobs import arrivals, names

SECONDS = 60.0


def squares(number: int) -> list[Any]:
    return [delayed(lab.square)(i) for i in range(number)]


def containers(cluster: LocalCluster, job: Job) -> list[str]:
    return [each.name for each in cluster.blobs.containers(job.id)]


# results --------------------------------------------------------------------------------------------------


def test_results_come_in_order_and_each_once(cluster: LocalCluster) -> None:
    job = submit(squares(100), cluster=cluster, name="squares")
    assert list(job.results(timeout=SECONDS)) == [i * i for i in range(100)]
    again = Job.attach("squares", cluster)
    assert sorted(again.results(ordered=False, timeout=SECONDS)) == [i * i for i in range(100)]
    status = again.wait(SECONDS)
    assert (status.calls, status.done, status.failed, status.over) == (100, 100, 0, True)
    # Two nodes of one slot, four tasks for each.
    assert len(list(again.tasks())) == 8
    lab.until(lambda: again.status().state == "completed", "the service has ended it")
    assert again.status().reason == "AllTasksComplete"


def test_one_result_by_its_number(cluster: LocalCluster) -> None:
    job = submit(squares(20), cluster=cluster, calls_per_task=3)
    assert job.result(13, timeout=SECONDS) == 169
    for number in (-1, 20):
        with pytest.raises(IndexError, match="20 calls"):
            job.result(number, timeout=SECONDS)
    assert [len(names.calls_of(task.id)) for task in job.tasks()] == [3, 3, 3, 3, 3, 3, 2]


def test_results_come_while_the_job_runs(cluster: LocalCluster, tmp_path: Path) -> None:
    calls = [delayed(lab.square)(3), delayed(lab.waits)(str(tmp_path), 1)]
    job = submit(calls, cluster=cluster)
    found = job.results(timeout=SECONDS)
    assert next(found) == 9
    status = job.status()
    assert (status.calls, status.done, status.over, status.state) == (2, 1, False, "active")
    with pytest.raises(TimeoutError, match=r"call 1 of job .* 1 of 2 calls done"):
        job.result(1, timeout=0.5)
    with pytest.raises(TimeoutError, match=r"waited 0\.5 s"):
        job.wait(0.5)
    (tmp_path / "stop").touch()
    assert next(found) == 1
    assert list(found) == []


def test_a_generator_of_calls_is_sent_as_it_comes(cluster: LocalCluster, tmp_path: Path) -> None:
    """Its first calls run while later ones are not there yet, and tasks grow with their number."""

    def calls() -> Iterator[Any]:
        yield from (delayed(lab.marked)(str(tmp_path), i) for i in range(300))
        lab.until(lambda: (tmp_path / "0").exists(), "the first call has run")
        yield delayed(lab.marked)(str(tmp_path), 300)

    job = submit(calls(), cluster=cluster)
    assert list(job.results(timeout=SECONDS)) == [i * i for i in range(301)]
    sizes = [len(names.calls_of(task.id)) for task in job.tasks()]
    assert sum(sizes) == 301
    assert sizes[0] == 1
    assert len(sizes) < 60


def test_large_arguments_and_results(cluster: LocalCluster) -> None:
    array = np.arange(1 << 18, dtype=float)
    job = submit([delayed(np.sum)(array), *(delayed(lab.large)(i) for i in range(6))], cluster=cluster)
    first, *rest = job.results(timeout=SECONDS)
    assert first == array.sum()
    assert [float(each.mean()) for each in rest] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert job.result(4).mean() == 3.0


def test_one_value_is_made_of_the_results_of_a_task(cluster: LocalCluster) -> None:
    job = submit(squares(20), cluster=cluster, reduce=lambda results: (len(results), sum(results)), calls_per_task=8)
    parts = [range(8), range(8, 16), range(16, 20)]
    assert list(job.results(timeout=SECONDS)) == [(len(part), sum(i * i for i in part)) for part in parts]
    assert job.description().function == "jobs_lab.square()"
    assert len(list(job.tasks())) == job.status().calls == 3


def test_a_call_that_fails_fails_those_that_are_one_with_it(cluster: LocalCluster) -> None:
    calls = (delayed(lab.fails_at)(i, 3) for i in range(4))
    job = submit(calls, cluster=cluster, reduce=sum, calls_per_task=2, on_error="return")
    first, second = job.results(timeout=SECONDS)
    assert first == 1
    assert isinstance(second, ValueError)
    assert str(second) == "3 fails"


# errors ---------------------------------------------------------------------------------------------------


def test_errors_are_raised_returned_or_left_out(cluster: LocalCluster) -> None:
    job = submit([delayed(lab.odd_ones_fail)(i) for i in range(6)], cluster=cluster, on_error="drop")
    assert list(job.results(timeout=SECONDS)) == [0, 2, 4]
    returned = list(job.results(on_error="return", timeout=SECONDS))
    assert returned[::2] == [0, 2, 4]
    assert [str(each) for each in returned[1::2]] == ["1 is odd", "3 is odd", "5 is odd"]
    raising = job.results(on_error="raise", timeout=SECONDS)
    assert next(raising) == 0
    with pytest.raises(ValueError, match="1 is odd") as caught:
        next(raising)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "odd_ones_fail" in str(caught.value.__cause__)
    with pytest.raises(ValueError, match="5 is odd"):
        job.result(5)
    status = job.wait(SECONDS)
    assert (status.done, status.failed) == (3, 3)


def test_a_call_that_kills_its_worker_fails_alone(cluster: LocalCluster) -> None:
    job = submit([delayed(lab.third_dies)(i) for i in range(8)], cluster=cluster, calls_per_task=8)
    found = list(job.results(on_error="return", timeout=SECONDS))
    assert [each for each in found if isinstance(each, int)] == [0, 1, 2, 4, 5, 6, 7]
    assert isinstance(found[3], WorkerDiedError)


def test_calls_of_a_task_that_was_lost(cluster: LocalCluster, tmp_path: Path) -> None:
    calls = [delayed(lab.square)(2), delayed(lab.waits)(str(tmp_path), 1), delayed(lab.square)(4)]
    job = submit(calls, cluster=cluster, calls_per_task=1, retries=0)
    lab.until(lambda: (tmp_path / "started-1").exists(), "it runs")
    (task,) = [each.id for each in job.tasks() if 1 in names.calls_of(each.id)]
    cluster.batch.terminate_task(job.id, task)
    found = list(job.results(on_error="return", timeout=SECONDS))
    assert (found[0], found[2]) == (4, 16)
    assert isinstance(found[1], TaskFailedError)
    assert found[1].context["task"] == task
    status = job.wait(SECONDS)
    assert (status.done, status.failed) == (2, 1)


def test_what_calls_had_finished_outlives_their_task(cluster: LocalCluster, tmp_path: Path) -> None:
    """Outcomes wait for each other before they are sent; the end of their task does not wait with them."""
    marked = [delayed(lab.marked)(str(tmp_path), i, 0.1) for i in range(3)]
    calls = [delayed(lab.square)(9), *marked, delayed(lab.waits)(str(tmp_path), 4)]
    job = submit(calls, cluster=cluster, calls_per_task=5, retries=0)
    lab.until(lambda: (tmp_path / "started-4").exists(), "the last one runs")
    (task,) = job.tasks()
    cluster.batch.terminate_task(job.id, task.id)
    *done, lost = job.results(on_error="return", timeout=SECONDS)
    assert done == [81, 0, 1, 4]
    assert isinstance(lost, TaskFailedError)


# clients that die -----------------------------------------------------------------------------------------

SCRIPT = """
import pickle, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import jobs_lab as lab
from joblib import delayed
from joblib_azure import Cluster, Job, submit

with open({settings!r}, "rb") as file:
    config, account = pickle.load(file)
"""
SUBMITS = """
calls = [delayed(lab.marked)({marks!r}, i, 0.02) for i in range(500)]
job = submit(calls, cluster=Cluster(config, account), name={name!r})
list(job.results())
"""
SUBMITS_SLOWLY = """
import time
def calls():
    for i in range(100):
        yield delayed(lab.marked)({marks!r}, i)
        time.sleep(0.2)
submit(calls(), cluster=Cluster(config, account), name={name!r})
"""
COLLECTS = """
import json
print(json.dumps(list(Job.attach({name!r}, account=account).results(timeout=60))))
"""


class Scripts:
    """Programs with the account of a local cluster, as other machines would run them."""

    def __init__(self, cluster: LocalCluster, folder: Path) -> None:
        self._settings = folder / "settings"
        self._settings.write_bytes(pickle.dumps((cluster.config, cluster.account)))

    def start(self, text: str, **values: str) -> subprocess.Popen[str]:
        tests = str(Path(__file__).parent)
        program = (SCRIPT + text).format(tests=tests, settings=str(self._settings), **values)
        return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def scripts(cluster: LocalCluster, tmp_path: Path) -> Scripts:
    return Scripts(cluster, tmp_path)


def test_the_results_of_a_client_that_was_killed(cluster: LocalCluster, scripts: Scripts, tmp_path: Path) -> None:
    """Another process has all 500, in order, and every call ran once."""
    marks = tmp_path / "marks"
    marks.mkdir()
    client = scripts.start(SUBMITS, name="killed", marks=str(marks))
    try:
        lab.until(lambda: len(os.listdir(marks)) > 500 // 3, "a third of the calls has run")
    finally:
        client.kill()
        client.communicate(timeout=SECONDS)
    assert client.returncode == -signal.SIGKILL
    assert len(os.listdir(marks)) < 500
    other = scripts.start(COLLECTS, name="killed")
    out, _ = other.communicate(timeout=SECONDS)
    assert json.loads(out) == [i * i for i in range(500)]
    assert [(marks / str(i)).read_text() for i in range(500)] == ["x"] * 500


def test_a_client_that_was_killed_while_it_submitted(
    cluster: LocalCluster, scripts: Scripts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had submitted runs; whoever collects is told that there were to be more."""
    monkeypatch.setattr(arrivals, "SILENCE", 8.0)  # longer than a heartbeat
    marks = tmp_path / "marks"
    marks.mkdir()
    client = scripts.start(SUBMITS_SLOWLY, name="half", marks=str(marks))
    try:
        lab.until(lambda: len(os.listdir(marks)) >= 5, "some have run")
        assert Job.attach("half", cluster).status().state == "submitting"
    finally:
        client.kill()
        client.communicate(timeout=SECONDS)
    job = Job.attach("half", cluster)
    with pytest.raises(JobError, match="its client has died"):
        list(job.results(timeout=SECONDS))
    job.cancel()
    lab.until(lambda: job.status().state == "completed", "it has ended")
    with pytest.raises(JobError, match="before its submission did"):
        list(job.results(timeout=SECONDS))
    job.delete()


# what cannot be -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "Upper"}, "name='Upper'"),
        ({"name": "two--hyphens"}, "single hyphens"),
        ({"name": "x" * 41}, "at most 40"),
        ({"calls_per_task": 0}, "calls_per_task=0"),
        ({"reduce": 3}, "reduce=3 cannot be called"),
        ({"retries": -1}, "retries=-1"),
        ({"timeout": 8 * 86400}, "60 to 604800"),
        ({"priority": 1001}, "-1000 to 1000"),
        ({"on_error": "stop"}, "'raise', 'return', 'drop'"),
        ({"keep": "sometimes"}, "'always', 'on_error', 'never'"),
        ({"task_timeout": float("nan")}, "task_timeout=nan"),
    ],
)
def test_bad_settings_create_nothing(cluster: LocalCluster, settings: dict[str, Any], said: str) -> None:
    before = {job.name for job in Job.list(cluster)}
    with pytest.raises(ConfigurationError, match=said):
        submit(squares(1), cluster=cluster, **settings)
    with pytest.raises(ConfigurationError, match="there is none"):
        submit([], cluster=cluster)
    assert {job.name for job in Job.list(cluster)} <= before


def test_a_name_is_one_jobs_at_a_time(cluster: LocalCluster) -> None:
    job = submit(squares(2), cluster=cluster, name="twice")
    with pytest.raises(ResourceExistsError, match=r"Job.attach\('twice'\)"):
        submit(squares(3), cluster=cluster, name="twice")
    assert list(job.results(timeout=SECONDS)) == [0, 1]
    job.delete()
    # While the service still removes the first one, or after.
    assert list(submit(squares(3), cluster=cluster, name="twice").results(timeout=SECONDS)) == [0, 1, 4]
    # Another's name that begins like this one.
    with pytest.raises(JobError, match="there is no job 'twi'"):
        Job.attach("twi", cluster)


def test_a_submission_that_fails_leaves_nothing(cluster: LocalCluster) -> None:
    def breaks() -> Iterator[Any]:
        yield from squares(30)
        raise ZeroDivisionError("the user's own")

    def has_a_lock() -> Iterator[Any]:
        import threading

        yield from squares(30)
        yield delayed(lab.square)(threading.Lock())

    for calls, error in ((breaks(), ZeroDivisionError), (has_a_lock(), TaskPicklingError)):
        with pytest.raises(error):
            submit(calls, cluster=cluster, name="broken")
        assert list(cluster.blobs.containers("joblib-job-broken")) == []
        lab.until(lambda: all(job.name != "broken" or job.state == "deleting" for job in Job.list(cluster)), "it goes")


def test_jobs_that_are_not_there(cluster: LocalCluster) -> None:
    with pytest.raises(JobError, match="joblib-azure job list"):
        Job.attach("never", cluster)
    job = submit(squares(4), cluster=cluster, name="going")
    other = Job.attach("going", cluster)
    results = other.results(timeout=SECONDS)
    assert next(results) == 0
    job.delete(wait=True)
    job.delete()  # gone already: no error
    for action in (other.status, lambda: other.wait(SECONDS), lambda: list(other.results()), other.cancel):
        with pytest.raises(JobError, match="was deleted"):
            action()
    with pytest.raises(JobError, match="there is no job 'going'"):
        Job.attach("going", cluster)
    assert containers(cluster, job) == []


def test_a_job_that_is_being_deleted(cluster: LocalCluster, tmp_path: Path) -> None:
    job = submit([delayed(lab.waits)(str(tmp_path), 0)], cluster=cluster, name="leaving")
    lab.until(lambda: (tmp_path / "started-0").exists(), "it runs")
    job.delete()
    with pytest.raises(JobError, match=r"is being deleted|there is no job"):
        Job.attach("leaving", cluster)


def test_a_job_that_lost_its_blobs(cluster: LocalCluster) -> None:
    job = submit(squares(4), cluster=cluster, name="robbed")
    job.wait(SECONDS)
    cluster.blobs.delete_container(job.outputs)
    with pytest.raises(JobError, match=r"results with it|lost its blobs"):
        list(Job.attach("robbed", cluster).results(timeout=SECONDS))
    cluster.blobs.delete_container(job.inputs)
    with pytest.raises(JobError, match="lost its blobs"):
        Job.attach("robbed", cluster).status()
    job.delete()


def test_a_job_of_another_version(cluster: LocalCluster) -> None:
    job = submit(squares(2), cluster=cluster, name="older")
    details = cluster.batch.job(job.id)
    metadata = [{"name": name, "value": value} for name, value in details.metadata.items()]
    for each in metadata:
        if each["name"] == "joblib_azure_format":
            each["value"] = "0"
    cluster.batch._client.update_job(job.id, {"metadata": metadata})
    with pytest.raises(JobError, match="its format is 0, this version reads 1"):
        Job.attach("older", cluster)
    job.delete()


# its end --------------------------------------------------------------------------------------------------


def test_a_job_that_is_cancelled_keeps_what_was_done(cluster: LocalCluster, tmp_path: Path) -> None:
    calls = [delayed(lab.square)(2), *(delayed(lab.waits)(str(tmp_path), i) for i in range(1, 5))]
    job = submit(calls, cluster=cluster, calls_per_task=1, name="cancelled")
    lab.until(lambda: job.status().done == 1 and len(os.listdir(tmp_path)) >= 1, "one is done and others run")
    job.cancel()
    assert list(job.results(on_error="drop", timeout=SECONDS)) == [4]
    with pytest.raises(JobError, match="UserCancelled"):
        list(job.results(timeout=SECONDS))
    status = job.wait(SECONDS)
    assert (status.done, status.failed, status.reason) == (1, 4, "UserCancelled")
    assert not any(task.state == "running" for task in job.tasks())
    job.cancel()  # ended already: no error


@pytest.mark.parametrize("keep", ["always", "on_error", "never"])
@pytest.mark.parametrize("fails", [False, True])
def test_what_stays_once_all_was_collected(cluster: LocalCluster, keep: Any, fails: bool) -> None:
    function = lab.odd_ones_fail if fails else lab.square
    job = submit([delayed(function)(i) for i in range(3)], cluster=cluster, keep=keep)
    partly = job.results(on_error="drop", timeout=SECONDS)
    next(partly)
    partly.close()
    assert len(containers(cluster, job)) == 2
    list(job.results(on_error="drop", timeout=SECONDS))
    stays = keep == "always" or (keep == "on_error" and fails)
    assert len(containers(cluster, job)) == (2 if stays else 0)


def test_what_is_asked_of_the_service(cluster: LocalCluster) -> None:
    job = submit(squares(2), cluster=cluster, priority=7, timeout=3600, task_timeout=600, retries=2)
    found = cluster.batch._client.get_job(job.id)
    assert found.priority == 7
    assert found.constraints.max_wall_clock_time.total_seconds() == 3600
    task = next(iter(cluster.batch._client.list_tasks(job.id)))
    assert task.constraints.max_task_retry_count == 2
    assert task.constraints.max_wall_clock_time.total_seconds() == 600
    assert list(job.results(timeout=SECONDS)) == [0, 1]


def test_storage_is_not_collected_from_under_a_job(cluster: LocalCluster) -> None:
    from datetime import timedelta

    from joblib_azure import storage

    job = submit(squares(2), cluster=cluster)
    job.wait(SECONDS)
    lab.until(lambda: job.status().state == "completed", "it has ended")
    nothing = timedelta(0)
    storage.sweep(cluster.blobs, cluster.batch, grace=nothing)
    storage.collect(cluster.blobs, cluster.batch, age=timedelta(days=1), grace=nothing)
    assert list(job.results(timeout=SECONDS)) == [0, 1]


# logs -----------------------------------------------------------------------------------------------------


def test_logs_and_files_of_a_task(cluster: LocalCluster) -> None:
    job = submit([delayed(lab.speaks)("one"), delayed(lab.speaks)("two", 1.5)], cluster=cluster, calls_per_task=1)
    first, second = (task.id for task in job.tasks())
    followed = "".join(job.logs(second, follow=True))
    assert followed == "two to stderr: é\ntwo ends\n"
    job.wait(SECONDS)
    assert "".join(job.logs(first, stream="stdout.txt")) == "one to stdout\n"
    assert {"stdout.txt", "stderr.txt"} <= {file.name for file in job.files(first)}
    assert job.file(first, "stdout.txt", 4, 2) == b"to"
    with pytest.raises(JobError, match="no task 'none'"):
        list(job.logs("none"))
    with pytest.raises(JobError, match=r"nothing\.txt of task"):
        job.file(first, "nothing.txt")
