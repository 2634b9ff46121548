"""``joblib-azure doctor --leaks``: finds what nobody uses, says why, removes it when told to, and nothing else."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import cli_lab
import cli_process
import pytest
from cli_lab import run
from click.testing import CliRunner

from joblib_azure import labels, storage
from joblib_azure.cli import leaks_account, leaks_here, main
from joblib_azure.cli.leaks import Findings, Leak
from joblib_azure.cli.leftovers import MARK
from joblib_azure.cluster import Cluster
from joblib_azure.cluster.floor import floor_of
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.errors import JobError, LocalClusterError, ServiceError
from joblib_azure.jobs import names
from joblib_azure.local import guard
from joblib_azure.local.host import LocalHost
from joblib_azure.service import JobSpec, PoolSpec

NIGHT, HOUR = timedelta(hours=12), timedelta(hours=1)
KEY = bytes(32)
SCRIPT = """
import time
from joblib import Parallel, delayed, parallel_config
import joblib_azure
with parallel_config("azure", cluster="cluster.json"{job}):
    print(Parallel()(delayed(abs)(-i) for i in range(3)), flush=True)
    Parallel()(delayed(time.sleep)(60) for i in range(2))
"""


@pytest.fixture(scope="module")
def host() -> Iterator[LocalHost]:
    with cli_process.account("--clock-rate", "60") as host:
        yield host


@pytest.fixture
def folder(host: LocalHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # What other tests, or people, have left on this machine is none of these tests' business.
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    cli_lab.at_home(tmp_path, monkeypatch)
    pool = f"leaks-{uuid4().hex[:8]}"
    run("init", *cli_process.init_flags(host, pool, **{"poolSize.idleShutdown": 60}), "--dedicated-nodes", "1")
    return tmp_path


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    """A look at an account with nothing on it."""
    made = Cluster(ClusterConfig.load(folder / "cluster.json"), AccountConfig.load(folder / "credentials.json"))
    yield made
    for job in made.batch.job_list(""):
        made.batch.end_job(job.id, delete=True)
    for container in made.blobs.containers(""):
        made.blobs.delete_container(container.name)
    for pool in made.batch.pools():
        made.batch.delete_pool(pool.id)
    until(lambda: not (made.batch.pools() or made.batch.job_list("")), "the account is not empty")
    made.close()


def until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.1)
    return found


def read(*arguments: str, exit_code: int = 0) -> Any:
    done = CliRunner().invoke(main, ["doctor", "--leaks", "--json", *arguments])
    assert done.exit_code == exit_code, done.output
    return json.loads(done.stdout)


def find(cluster: Cluster, idle: timedelta = NIGHT) -> Findings:
    found = Findings()
    leaks_account.examine(cluster.batch, cluster.blobs, found, idle=idle)
    return found


def kinds(found: Findings) -> list[str]:
    return [leak.kind for leak in found.leaks]


def later(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    """Let the client's clock go fast: what was done now is long ago."""
    for module in (leaks_account, storage.survey):
        monkeypatch.setattr(module, "_now", lambda: datetime.now(timezone.utc) + by)


# jobs -------------------------------------------------------------------------------------------------------


def test_a_client_that_was_killed(cluster: Cluster, folder: Path) -> None:
    """While it lives nothing is found; then its job, the nodes that it keeps, and the floor that it had raised."""
    program = [sys.executable, "-c", SCRIPT.format(job="")]
    with cli_process.Running(folder, program=program) as client:
        client.expect("[0, 1, 2]", 60)
        until(cluster.nodes, "there is no node")
        assert read() == {**read(), "leaks": [], "spared": [], "removed": [], "failed": []}
        pid = client.process.pid
        client.kill()
    said = run("doctor", "--leaks", exit_code=1)
    assert f"its client, process {pid} on " in said
    assert "is gone" in said
    assert "costs 1 node-hour an hour" in said
    assert "→ delete the job with its blobs" in said
    assert "→ let the pool's own formula decide" in said
    assert "Nothing was removed: `joblib-azure doctor --leaks --yes` does that." in said
    # Only looked at up to now.
    (job,) = cluster.batch.running_jobs("joblib-")
    found = read(exit_code=1)
    assert [(leak["kind"], leak["nodes"]) for leak in found["leaks"]] == [("job", 1), ("floor", 0)]
    assert found["nodeHoursPerHour"] == 1
    assert "remove" not in found["leaks"][0]
    assert cluster.batch.running_jobs("joblib-") == {job}
    assert [each.split()[0] for each in read("--yes")["removed"]] == ["job", "floor"]
    until(lambda: not cluster.batch.job_list("joblib-"), "the job is left")
    assert list(cluster.blobs.containers("joblib-2")) == []
    pool = cluster.batch.pool(cluster.config.name)
    assert pool.autoscale is not None
    assert floor_of(pool.autoscale.formula) is None
    until(lambda: not cluster.nodes(), "its nodes are left")
    assert read()["leaks"] == []


def test_a_script_that_was_killed_keeps_what_it_has_computed(cluster: Cluster, folder: Path) -> None:
    program = [sys.executable, "-c", SCRIPT.format(job=", job='sweep'")]
    with cli_process.Running(folder, program=program) as client:
        client.expect("[0, 1, 2]", 60)
        assert find(cluster).leaks == []
        client.kill()
    (leak,) = [leak for leak in find(cluster).leaks if leak.kind == "job"]
    assert "'sweep'" in leak.name
    leak.remove()
    (job,) = cluster.batch.job_list("joblib-job-sweep")
    until(lambda: cluster.batch.job(job.id).state == "completed", "the job goes on")
    assert {each.name for each in cluster.blobs.containers("joblib-job")} == set(storage.session_containers(job.id))
    # It is over now, and its results are wanted until their date.
    assert [leak for leak in find(cluster).leaks if leak.kind == "job"] == []


@pytest.fixture
def pool(cluster: Cluster) -> str:
    """A pool that scales, and has no nodes."""
    cluster.open()
    return cluster.config.name


def elsewhere(lease: timedelta = HOUR) -> dict[str, str]:
    """The marks of a client on another machine."""
    here = labels.client_marks(lease)
    return {**here, "joblib_azure_host": "far", "joblib_azure_machine": "another"}


def job_of(cluster: Cluster, pool: str, marks: dict[str, str], id: str = "", lifetime: timedelta = HOUR) -> str:
    """A session's job with its containers, as a client makes them."""
    id = id or f"joblib-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{uuid4().hex[:8]}"
    mine = storage.session_metadata(id, batch_account=cluster.batch.endpoint)
    for container in storage.session_containers(id):
        cluster.blobs.create_container(container, metadata=mine)
        cluster.blobs.put(container, "bundles/one", b"12345")
    settings = {"JOBLIB_AZURE_KEY": base64.b64encode(KEY).decode()}
    cluster.batch.create_job(
        JobSpec(id=id, pool=pool, environment=settings, preparation="true", files={}, lifetime=lifetime, metadata=marks)
    )
    return id


def test_a_client_elsewhere_is_known_by_its_lease(cluster: Cluster, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(cluster, pool, elsewhere())
    older = job_of(cluster, pool, {})
    mine = job_of(cluster, pool, labels.client_marks(HOUR))
    for minutes, dead in ((0, False), (25, False), (35, True)):
        later(monkeypatch, timedelta(minutes=minutes))
        found = find(cluster)
        assert [leak.name for leak in found.leaks] == ([job] if dead else [])
        # Another version's says nothing of its client: it ends by itself.
        assert [each.name for each in found.spared] == [older]
        assert "it ends by" in found.spared[0].why
    assert "process" in found.leaks[0].why
    assert "on far, has not been heard of for 35 minutes" in found.leaks[0].why
    # It lives after all, and says so before the answer comes.
    cluster.batch.extend_job(job, 2 * HOUR)
    with pytest.raises(JobError, match="its client lives"):
        found.leaks[0].remove()
    assert cluster.batch.running_jobs("joblib-") == {job, older, mine}
    assert find(cluster).leaks == []


def detached(cluster: Cluster, pool: str, *, complete: bool, name: str = "nightly") -> str:
    marks = names.job_metadata(name, on_error="raise", keep="always")
    job = job_of(cluster, pool, marks, labels.batch_id(name, 1), timedelta(days=7))
    description = names.Description(call="d0", calls=3, tasks=1, complete=complete)
    names.write_description(cluster.blobs, storage.session_containers(job)[0], KEY, job, description)
    return job


def test_a_detached_job_is_wanted_until_it_ends(cluster: Cluster, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = detached(cluster, pool, complete=True)
    broken = detached(cluster, pool, complete=False, name="broken")
    assert find(cluster).leaks == []
    later(monkeypatch, timedelta(days=2))
    (leak,) = [leak for leak in find(cluster).leaks if leak.kind == "job"]
    assert leak.name.startswith(broken)
    assert "its submission was broken off" in leak.why
    leak.remove()
    until(lambda: cluster.batch.running_jobs("joblib-") == {whole}, "the job goes on")
    # What was submitted of it has results, maybe.
    assert cluster.blobs.stat(storage.session_containers(broken)[0], "description") is not None


def test_a_job_that_is_over_goes_with_its_results_date(
    cluster: Cluster, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = detached(cluster, pool, complete=True)
    for container in storage.session_containers(job):
        storage.keep(cluster.blobs, container, 3)
    failed = job_of(cluster, pool, labels.client_marks(HOUR))
    for each in (job, failed):
        cluster.batch.end_job(each, delete=False)
    until(lambda: not cluster.batch.running_jobs("joblib-"), "the jobs go on")
    later(monkeypatch, timedelta(days=2))
    # The blobs that a session has left are gc's.
    assert kinds(find(cluster)) == ["blobs"]
    later(monkeypatch, timedelta(days=4))
    found = find(cluster)
    assert [leak.name for leak in found.leaks] == [f"{job} (detached 'nightly')", "of sessions that are over"]
    assert found.leaks[0].bytes > 10
    later(monkeypatch, timedelta(days=8))
    found = find(cluster)
    assert sorted(leak.name.split()[0] for leak in found.leaks) == sorted([job, failed])
    for leak in found.leaks:
        leak.remove()
    until(lambda: not cluster.batch.job_list("joblib-"), "jobs are left")
    assert list(cluster.blobs.containers("joblib-")) == []


def test_a_job_without_a_pool_is_told(cluster: Cluster) -> None:
    job_of(cluster, "not-there", labels.client_marks(HOUR))
    found = find(cluster)
    assert found.leaks == []
    assert "waits for the pool not-there, which is not there" in found.spared[0].why


# pools ------------------------------------------------------------------------------------------------------


def fixed(cluster: Cluster, **metadata: str) -> Cluster:
    """A pool of a fixed size with its node up."""
    config = cluster.config
    size = config.pool_size.model_copy(update={"autoscale_formula": "FIXED"})
    config = config.model_copy(update={"pool_size": size, "name": f"fixed-{uuid4().hex[:8]}", "metadata": metadata})
    return Cluster.create(config, cluster.account)


def test_a_pool_of_a_fixed_size_without_work(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    other = fixed(cluster)
    name = other.config.name
    found = find(cluster)
    assert found.leaks == []
    (spared,) = found.spared
    assert (spared.name, spared.nodes) == (name, 1)
    assert "of 12 hours (--idle)" in spared.why
    later(monkeypatch, timedelta(hours=13))
    # A job makes it a used one, whoever's it is.
    cluster.batch.create_job(
        JobSpec(id="somebody-elses", pool=name, environment={}, preparation="true", files={}, lifetime=HOUR)
    )
    assert (find(cluster).leaks, find(cluster).spared) == ([], [])
    cluster.batch.end_job("somebody-elses", delete=True)
    until(lambda: not cluster.batch.jobs(name), "the job is left")
    assert find(cluster, timedelta(days=1)).leaks == []
    (leak,) = find(cluster).leaks
    assert (leak.kind, leak.name, leak.nodes) == ("pool", name, 1)
    assert "does not scale, and 1 node had nothing to do for 13 hours" in leak.why
    # Somebody comes between the question and its answer.
    job = job_of(cluster, name, labels.client_marks(HOUR))
    with pytest.raises(ServiceError, match=job):
        leak.remove()
    storage.remove_job(cluster.batch, cluster.blobs, job)
    until(lambda: not cluster.batch.jobs(name), "the job is left")
    leak.remove()
    assert [each.id for each in cluster.batch.pools() if each.state == "active"] == []
    other.close()


def test_whose_pools_are_looked_at(cluster: Cluster, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of other programs; and ours without nodes cost nothing."""
    spec = cluster.batch.pool(pool).spec
    values = {**vars(spec), "id": "theirs", "autoscale": None, "dedicated_nodes": 1, "metadata": {}}
    cluster.batch.create_pool(PoolSpec(**values))
    until(lambda: [node for node in cluster.batch.nodes("theirs") if node.state == "idle"], "there is no node")
    later(monkeypatch, timedelta(days=30))
    found = find(cluster)
    assert (found.leaks, found.spared) == ([], [])


def test_a_pool_that_a_doctor_has_left(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    other = fixed(cluster, **{MARK: "1"})
    assert find(cluster).leaks == []  # He may be about to use it.
    later(monkeypatch, timedelta(hours=1))
    (leak,) = find(cluster).leaks
    assert (leak.kind, leak.nodes) == ("pool", 1)
    assert "a doctor that was stopped has made it" in leak.why
    leak.remove()
    until(lambda: not cluster.batch.pools(), "the pool is left")
    other.close()


def test_nodes_that_were_asked_for_ahead_are_told(cluster: Cluster, pool: str) -> None:
    cluster.demand(1)
    found = find(cluster)
    assert found.leaks == []
    assert [(each.kind, each.name) for each in found.spared] == [("floor", pool)]


# storage ----------------------------------------------------------------------------------------------------


def test_blobs_go_as_with_gc(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = cluster.blobs
    blobs.create_container(storage.BUFFERS)
    blobs.put(storage.BUFFERS, "one", bytes(1000))
    session = "joblib-20260131-235959-0a1b2c3d"
    for job, owner in ((session, cluster.batch.endpoint), (f"{session[:-1]}e", "https://other.batch.azure.com")):
        for container in storage.session_containers(job):
            blobs.create_container(container, metadata=storage.session_metadata(job, batch_account=owner))
    assert find(cluster).leaks == []
    later(monkeypatch, timedelta(days=8))
    found = find(cluster)
    assert [leak.name for leak in found.leaks] == ["of sessions that are over", "buffers"]
    assert found.leaks[1].bytes == 1000
    # One thing at a time.
    found.leaks[0].remove()
    assert blobs.stat(storage.BUFFERS, "one") is not None
    assert {each.name for each in blobs.containers(session[:-1])} == set(storage.session_containers(f"{session[:-1]}e"))
    found.leaks[1].remove()
    assert blobs.stat(storage.BUFFERS, "one") is None


# this machine -----------------------------------------------------------------------------------------------


def here() -> list[Leak]:
    found = Findings()
    leaks_here.look_here(found)
    return found.leaks


def test_processes_and_folders_of_a_cluster_that_is_gone(
    host: LocalHost, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaks_here, "_ENDING", 0.5)
    run_id, other = uuid4().hex, uuid4().hex
    for each in (run_id, other):
        (folder / "tmp" / f"joblib_azure-{each}" / "nodes").mkdir(parents=True)
    (folder / "tmp" / f"joblib_azure-{run_id}" / "batch.log").write_text("12345")
    (folder / "tmp" / "joblib_azure-mine").mkdir()
    assert here() == []  # They are new.
    # Of a cluster whose guard and emulator were killed.
    environment = {**os.environ, guard.RUN_ID_VARIABLE: run_id}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment) as orphan:
        for each in (run_id, other):
            os.utime(folder / "tmp" / f"joblib_azure-{each}", (time.time() - 3600,) * 2)
        until(lambda: guard.pids_of(run_id), "it does not run")
        found = {(leak.kind, leak.name): leak for leak in here()}
        kept = folder / "tmp" / f"joblib_azure-{run_id}"
        gone = folder / "tmp" / f"joblib_azure-{other}"
        assert set(found) == {("processes", run_id), ("folder", str(kept)), ("folder", str(gone))}
        assert str(orphan.pid) in found["processes", run_id].why
        assert found["folder", str(kept)].bytes == 5
        assert found["folder", str(kept)].since is not None
        with pytest.raises(LocalClusterError, match="processes of its cluster run"):
            found["folder", str(kept)].remove()
        for leak in found.values():
            leak.remove()
        assert orphan.wait(10) < 0
    assert [path.name for path in (folder / "tmp").iterdir()] == ["joblib_azure-mine"]
    assert host.alive()
    assert here() == []


def test_processes_of_no_cluster_are_left_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulator that somebody has started by himself gives its tasks a run id too, and has no folder of this kind."""
    monkeypatch.setattr(leaks_here, "_ENDING", 0.1)
    for run_id in (uuid4().hex, uuid4().hex):
        environment = {**os.environ, guard.RUN_ID_VARIABLE: run_id}
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment) as task:
            until(lambda name=run_id: guard.pids_of(name), "it does not run")
            assert here() == []
            (folder / "tmp" / f"joblib_azure-{uuid4().hex}").mkdir()
            assert here() == []
            assert task.poll() is None
            task.kill()


# the command ------------------------------------------------------------------------------------------------


def test_what_cannot_be(folder: Path) -> None:
    for flags in (["--yes"], ["--idle", "3"]):
        assert "--yes and --idle are of --leaks" in run("doctor", *flags, exit_code=2)
    assert "--idle" in run("doctor", "--leaks", "--idle", "0", exit_code=2)
    assert "nowhere.json" in run("doctor", "--leaks", "--credentials", "nowhere.json", exit_code=1)
    wrong = {"AZURE_BATCH_ACCESS_KEY": "d3Jvbmc="}
    assert "refused the credentials" in run("doctor", "--leaks", exit_code=1, env=wrong)


def test_without_an_account_this_machine_is_looked_at(folder: Path) -> None:
    (folder / "credentials.json").unlink()
    said = run("doctor", "--leaks")
    assert "no account was looked at: " in said
    assert "Nothing is left on this machine that nobody uses." in said
    found = read()
    assert found["account"] is None
    assert len(found["notes"]) == 1


def test_on_a_terminal_each_is_asked_for(cluster: Cluster, folder: Path) -> None:
    for name in ("one", "two"):
        path = folder / "tmp" / f"joblib_azure-{uuid4().hex}"
        path.mkdir()
        (path / name).touch()
        os.utime(path, (time.time() - 3600,) * 2)
    with cli_process.Running(folder, "doctor", "--leaks", terminal=True, TMPDIR=str(folder / "tmp")) as program:
        program.answer("]:", "y")
        program.expect("Done: folder")
        program.answer("]:", "n")
        assert program.end() == 1
        assert "Done" not in program.output
    (left,) = (folder / "tmp").glob("joblib_azure-*")
    with cli_process.Running(folder, "doctor", "--leaks", terminal=True, TMPDIR=str(folder / "tmp")) as program:
        program.expect("]:")
        time.sleep(0.5)  # as long as a person at least: the question is there a little before it can be answered
        program.type("\x03")
        assert program.end() == 130
        assert "Removed so far: nothing." in program.output
    assert left.exists()
