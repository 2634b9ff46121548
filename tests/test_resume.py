"""A script that is run again with its label computes what is missing, and nothing twice."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jobs_lab as lab
import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

from joblib_azure import Job, LocalCluster, submit
from joblib_azure.errors import ConfigurationError, JobError
from joblib_azure.registry import close_sessions, session_for

SECONDS = 90.0
CALLS = 60

SCRIPT = """
import json, pickle, sys, time
from pathlib import Path
from joblib import Parallel, delayed, parallel_config
from joblib_azure import Cluster

with open({settings!r}, "rb") as file:
    config, account = pickle.load(file)
cluster = Cluster(config, account)

def marked(number):
    "Of __main__, as most scripts have it."
    time.sleep({seconds})
    with (Path({marks!r}) / str(number)).open("a") as file:
        file.write("x")
    return number * number

def first(number):
    return -number

if __name__ == "__main__":
    with parallel_config("azure", cluster=cluster, job={name!r}):
        before = Parallel()(delayed(first)(i) for i in range(5))
        found = Parallel(return_as={return_as!r})(delayed(marked)(i) for i in range({calls}))
        print(json.dumps([before, list(found)]))
"""


class Scripts:
    """A script as its user runs it, with the account of a local cluster."""

    def __init__(self, cluster: LocalCluster, folder: Path) -> None:
        self._settings, self.marks = folder / "settings", folder / "marks"
        self._settings.write_bytes(pickle.dumps((cluster.config, cluster.account)))
        self.marks.mkdir()
        self._script = folder / "script.py"

    def start(self, name: str, return_as: str, seconds: float = 0.05) -> subprocess.Popen[str]:
        values = {"settings": str(self._settings), "marks": str(self.marks), "seconds": seconds}
        self._script.write_text(SCRIPT.format(name=name, return_as=return_as, calls=CALLS, **values))
        pipe = subprocess.PIPE
        return subprocess.Popen([sys.executable, str(self._script)], stdout=pipe, stderr=pipe, text=True)

    @property
    def done(self) -> int:
        return len(os.listdir(self.marks))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("return_as", ["list", "generator"])
@pytest.mark.parametrize("moment", [1, CALLS // 3, CALLS - 10])
def test_a_script_that_was_killed_goes_on(cluster: LocalCluster, tmp_path: Path, return_as: str, moment: int) -> None:
    """Whatever had finished when its tasks were ended is there; what ran at that moment runs once more."""
    scripts, name = Scripts(cluster, tmp_path), f"sweep-{return_as}-{moment}"
    client = scripts.start(name, return_as)
    try:
        lab.until(lambda: scripts.done >= moment or client.poll() is not None, "so many calls have run", SECONDS)
    finally:
        client.kill()
        client.communicate(timeout=SECONDS)
    assert client.returncode == -signal.SIGKILL
    again = scripts.start(name, return_as)
    out, err = again.communicate(timeout=SECONDS)
    assert again.returncode == 0, err
    assert json.loads(out) == [[-i for i in range(5)], [i * i for i in range(CALLS)]]
    ran = {number: (scripts.marks / str(number)).read_text() for number in range(CALLS)}
    assert sum(len(marks) - 1 for marks in ran.values()) <= cluster.config.workers
    # A third time: nothing is left to run.
    before = dict(ran)
    third = scripts.start(name, return_as)
    out, err = third.communicate(timeout=SECONDS)
    assert json.loads(out)[1] == [i * i for i in range(CALLS)], err
    assert {number: (scripts.marks / str(number)).read_text() for number in range(CALLS)} == before
    Job.remove(name, cluster)


@pytest.fixture
def fresh(cluster: LocalCluster) -> Any:
    """Returns what runs a Parallel as if its process had begun anew."""

    def run(name: str, calls: list[Any], **options: Any) -> Any:
        from joblib_azure import registry

        registry._numbers.clear()
        try:
            with parallel_config("azure", cluster=cluster, job=name):
                return list(Parallel(**options)(calls))
        finally:
            close_sessions(cluster)

    return run


def marks(folder: Path) -> dict[str, int]:
    return {path.name: len(path.read_text()) for path in folder.iterdir()}


def test_calls_that_have_changed_run_again(
    fresh: Any, cluster: LocalCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = [delayed(lab.marked)(str(tmp_path), i) for i in range(12)]
    assert fresh("changing", calls) == [i * i for i in range(12)]
    calls[4] = delayed(lab.marked)(str(tmp_path), 40)
    more = [*calls, delayed(lab.marked)(str(tmp_path), 12)]
    with caplog.at_level(logging.WARNING, "joblib_azure"):
        # In chunks that have some of both.
        assert fresh("changing", more, batch_size=5) == [
            *(i * i for i in range(4)),
            1600,
            *(i * i for i in range(5, 13)),
        ]
    assert marks(tmp_path) == dict.fromkeys([*map(str, range(13)), "40"], 1)
    assert "1 call(s) of Parallel call 1 have changed" in caplog.text
    Job.remove("changing", cluster)


def test_an_error_is_no_result(fresh: Any, cluster: LocalCluster, tmp_path: Path) -> None:
    calls = [delayed(lab.fails_without)(str(tmp_path), i) for i in range(6)]
    with pytest.raises(FileNotFoundError):
        fresh("failing", calls)
    (tmp_path / "there").touch()
    assert fresh("failing", calls) == list(range(6))
    Job.remove("failing", cluster)


def test_large_results_and_all_at_once(fresh: Any, cluster: LocalCluster) -> None:
    calls = [delayed(lab.large)(i) for i in range(6)]
    for options in ({}, {"return_as": "generator"}, {"batch_size": 4}):
        found = fresh("large", calls, **options)
        assert [float(each.mean()) for each in found] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
        assert all(isinstance(each, np.ndarray) for each in found)
    Job.remove("large", cluster)


def test_labels_and_names_do_not_mix(fresh: Any, cluster: LocalCluster) -> None:
    with pytest.raises(ConfigurationError, match="job='Not This'"):
        fresh("Not This", [delayed(lab.square)(1)])
    job = submit([delayed(lab.square)(2)], cluster=cluster, name="mine")
    with pytest.raises(JobError, match="is the name of a detached job"):
        fresh("mine", [delayed(lab.square)(i) for i in range(2)])
    job.delete()
    assert fresh("script", [delayed(lab.square)(i) for i in range(2)]) == [0, 1]
    assert [(each.name, each.kind) for each in Job.list(cluster) if each.name == "script"] == [("script", "script")]
    with pytest.raises(JobError, match="run that again"):
        Job.attach("script", cluster)
    Job.remove("script", cluster)
    assert [each.name for each in cluster.blobs.containers("joblib-job-script-")] == []
    with pytest.raises(JobError, match="there is no job"):
        Job.remove("script", cluster)


def test_two_clients_do_not_run_one_script(cluster: LocalCluster, tmp_path: Path) -> None:
    """The second is told so, and the first goes on."""
    scripts = Scripts(cluster, tmp_path)
    first = scripts.start("shared", "list", seconds=0.4)
    try:
        lab.until(lambda: scripts.done >= 1, "it runs", SECONDS)
        second = scripts.start("shared", "list")
        _, err = second.communicate(timeout=SECONDS)
        assert first.poll() is None
        assert "is being run at this moment" in err
        out, err = first.communicate(timeout=SECONDS)
        assert json.loads(out)[1] == [i * i for i in range(CALLS)], err
    finally:
        first.kill()
        first.communicate(timeout=SECONDS)
    Job.remove("shared", cluster)


def test_a_session_that_ended_in_between_goes_on_where_it_was(cluster: LocalCluster, tmp_path: Path) -> None:
    """By idleness, say: the script's second Parallel call is still its second."""
    for _ in range(2):
        with parallel_config("azure", cluster=cluster, job="paused"):
            one = Parallel()(delayed(lab.marked)(str(tmp_path), i) for i in range(4))
            session_for(cluster, "paused").close("the session was idle and ended")
            two = Parallel()(delayed(lab.marked)(str(tmp_path), i) for i in range(4, 8))
        assert (one, two) == ([i * i for i in range(4)], [i * i for i in range(4, 8)])
        from joblib_azure import registry

        close_sessions(cluster)
        registry._numbers.clear()
    assert set(marks(tmp_path).values()) == {1}
    Job.remove("paused", cluster)
