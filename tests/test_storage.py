"""What lies in storage, and what of it goes: on a real Azurite, with the jobs of a real emulator."""

from __future__ import annotations

import contextlib
import itertools
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import cli_process
import pytest
from cluster_lab import config_of

from joblib_azure import storage
from joblib_azure.cluster import Cluster
from joblib_azure.config import AccountConfig
from joblib_azure.environment import EnvironmentPlan, Lock
from joblib_azure.environment.lock import LockedFile
from joblib_azure.environment.overlay import Overlay
from joblib_azure.local.host import LocalHost
from joblib_azure.service import BatchService, BlobItem, BlobService, JobSpec
from joblib_azure.storage import ARCHIVES, BUFFERS, FILES, GIVEN, Collected, Stored

LONG_AGO, WEEK = "20200102-030405", timedelta(days=7)
NOTHING, HOUR = timedelta(0), timedelta(hours=1)
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def host() -> Iterator[LocalHost]:
    # An Azurite of its own: all that is in storage is this module's.
    with cli_process.account() as host:
        yield host


@pytest.fixture(scope="module")
def account(host: LocalHost) -> AccountConfig:
    return AccountConfig(
        batch_account=host.account_name,
        batch_endpoint=host.batch_endpoint,
        batch_key=host.account_key,
        storage_connection_string=host.storage_connection_string,
    )


@pytest.fixture(scope="module")
def cluster(account: AccountConfig) -> Iterator[Cluster]:
    """A pool that scales, and has no nodes: its jobs wait."""
    made = Cluster.create(config_of(pool_size={"autoscale_formula": "QUEUE"}), account, wait=False)
    yield made
    made.close()


@pytest.fixture
def blobs(cluster: Cluster) -> Iterator[BlobService]:
    """The storage account, with nothing in it."""
    yield cluster.blobs
    for container in cluster.blobs.containers(""):
        cluster.blobs.delete_container(container.name)


@pytest.fixture
def batch(cluster: Cluster) -> BatchService:
    return cluster.batch


def job_id(stamp: str = "") -> str:
    stamp = stamp or datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    return f"joblib-{stamp}-{secrets.token_hex(4)}"


def session(blobs: BlobService, batch_account: str, job: str = "") -> str:
    """Containers as a session makes them; the client was killed before anything else."""
    job = job or job_id()
    for container in storage.session_containers(job):
        blobs.create_container(container, metadata=storage.session_metadata(job, batch_account=batch_account))
        blobs.put(container, "bundles/one", b"12345")
    return job


def create_job(cluster: Cluster, job: str) -> None:
    spec = JobSpec(id=job, pool=cluster.config.name, environment={}, preparation="true", files={}, lifetime=HOUR)
    cluster.batch.create_job(spec)


def names(blobs: BlobService) -> set[str]:
    return {container.name for container in blobs.containers("")}


def states(found: list[Stored] | tuple[Stored, ...]) -> dict[str, str]:
    return {each.name: each.state for each in found}


def test_names_and_marks() -> None:
    job = "joblib-20260131-235959-0a1b2c3d"
    assert storage.is_session(job)
    assert not storage.is_session(f"{job}-in")
    assert not storage.is_session("joblib-mine")
    assert storage.session_containers(job) == (f"{job}-in", f"{job}-out")
    metadata = storage.session_metadata(job, batch_account="https://Me.WestEurope.batch.azure.com/")
    assert set(metadata.values()) == {job, "me.westeurope.batch.azure.com"}
    assert all(name.isidentifier() and name.islower() for name in metadata)


def test_nothing_is_there(blobs: BlobService, batch: BatchService) -> None:
    assert storage.look(blobs, batch) == []
    assert storage.buffers(blobs) == []
    assert storage.collect(blobs, batch, age=NOTHING) == Collected(removed=(), left=())
    assert storage.sweep(blobs, batch) == []
    assert storage.keep(blobs, "joblib-azure-none", 1) is None


def test_what_is_found(blobs: BlobService, batch: BatchService) -> None:
    for container in (BUFFERS, FILES, f"{ARCHIVES}lock", f"{GIVEN}name", "somebody-elses", "joblib-of-somebody"):
        blobs.create_container(container)
        blobs.put(container, "one", b"12")
        blobs.put(container, "two", b"345")
    job = session(blobs, batch.endpoint)
    found = {each.name: each for each in storage.look(blobs, batch)}
    assert {name: each.kind for name, each in found.items()} == {
        BUFFERS: "buffers",
        FILES: "files",
        f"{ARCHIVES}lock": "environment",
        f"{GIVEN}name": "given",
        f"{job}-in": "session",
        f"{job}-out": "session",
    }
    assert (found[BUFFERS].blobs, found[BUFFERS].bytes, found[BUFFERS].state) == (2, 5, "cache")
    assert (found[f"{job}-in"].job, found[f"{job}-in"].bytes) == (job, 5)
    assert abs(found[FILES].modified - datetime.now(timezone.utc)) < timedelta(minutes=1)
    assert [(each.name, each.size) for each in storage.buffers(blobs)] == [("two", 3), ("one", 2)]


def test_the_cache_goes_by_age_and_what_is_touched_stays(blobs: BlobService, batch: BatchService) -> None:
    whole = [f"{kind}{use}" for kind in (ARCHIVES, GIVEN) for use in ("used", "unused")]
    for container in (BUFFERS, FILES, *whole):
        blobs.create_container(container)
        for name in ("used", "unused"):
            blobs.put(container, name, name.encode())
    # Azure's times have seconds; what lies between is for slow machines.
    time.sleep(6)
    for container in (BUFFERS, FILES):
        assert blobs.touch(container, "used")
        blobs.put(container, "new", b"new")
    for kind in (ARCHIVES, GIVEN):
        blobs.mark_container(f"{kind}used", {})
    age = timedelta(seconds=5)
    told = storage.collect(blobs, batch, age=age, dry_run=True)
    assert len(names(blobs)) == 6
    found = storage.collect(blobs, batch, age=age)
    assert [(each.name, each.blobs, each.bytes) for each in found.removed] == [
        (each.name, each.blobs, each.bytes) for each in told.removed
    ]
    assert {each.name: each.blobs for each in found.removed} == {
        BUFFERS: 1,
        FILES: 1,
        f"{ARCHIVES}unused": 2,
        f"{GIVEN}unused": 2,
    }
    assert {each.name: each.blobs for each in found.left} == {
        BUFFERS: 2,
        FILES: 2,
        f"{ARCHIVES}used": 2,
        f"{GIVEN}used": 2,
    }
    assert {each.state for each in found.left} == {"used within 5.79e-05 days"}
    assert {item.name for item in blobs.blobs(BUFFERS, "")} == {item.name for item in blobs.blobs(FILES, "")}
    assert {item.name for item in blobs.blobs(BUFFERS, "")} == {"used", "new"}
    assert names(blobs) == {BUFFERS, FILES, f"{ARCHIVES}used", f"{GIVEN}used"}
    assert storage.collect(blobs, batch, age=WEEK).removed == ()


class Late:
    """A storage account where somebody does something between a listing and what follows it."""

    def __init__(self, blobs: BlobService, then: Callable[[str], object]) -> None:
        self._blobs, self._then = blobs, then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._blobs, name)

    def blobs(self, container: str, prefix: str) -> list[BlobItem]:
        found = list(self._blobs.blobs(container, prefix))
        self._then(container)
        return found


def test_what_is_used_after_the_listing_stays(blobs: BlobService, batch: BatchService) -> None:
    for container in (BUFFERS, f"{ARCHIVES}lock"):
        blobs.create_container(container)
        blobs.put(container, "one", b"1")
    job = session(blobs, batch.endpoint)
    time.sleep(5.5)

    def use(container: str) -> None:
        blobs.touch(BUFFERS, "one")
        blobs.mark_container(f"{ARCHIVES}lock", {})
        storage.keep(blobs, f"{job}-out", 1)

    late: Any = Late(blobs, use)
    found = storage.collect(late, batch, age=timedelta(seconds=4), grace=NOTHING)
    assert {each.name for each in found.removed} == {f"{job}-in"}
    assert {each.name for each in found.left} == {BUFFERS, f"{ARCHIVES}lock", f"{job}-out"}
    assert [item.name for item in blobs.blobs(BUFFERS, "")] == ["one"]


@pytest.mark.parametrize("how", ["collect", "sweep"])
def test_a_dead_clients_containers_go(blobs: BlobService, batch: BatchService, how: str) -> None:
    job = session(blobs, batch.endpoint)

    def remove(grace: timedelta) -> set[str]:
        if how == "sweep":
            return set(storage.sweep(blobs, batch, batch_account=f"{batch.endpoint}/", grace=grace))
        return {each.name for each in storage.collect(blobs, batch, age=WEEK, grace=grace).removed}

    # Its job may be about to start.
    assert remove(HOUR) == set()
    assert states(storage.look(blobs, batch))[f"{job}-in"].startswith("new")
    assert states(storage.look(blobs, batch, grace=NOTHING))[f"{job}-in"] == "left over"
    assert remove(NOTHING) == set(storage.session_containers(job))
    assert names(blobs) == set()


def test_a_session_whose_job_runs_is_in_use(blobs: BlobService, cluster: Cluster) -> None:
    batch = cluster.batch
    job, over = session(blobs, batch.endpoint), session(blobs, batch.endpoint)
    for each in (job, over):
        create_job(cluster, each)
    assert batch.running_jobs("joblib-") == {job, over}
    assert batch.running_jobs(job) == {job}
    assert batch.running_jobs("another") == set()
    batch.end_job(over, delete=False)
    end = time.monotonic() + 20
    while over in batch.running_jobs("joblib-"):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert states(storage.look(blobs, batch, grace=NOTHING))[f"{job}-in"] == "in use"
    assert set(storage.sweep(blobs, batch, grace=NOTHING)) == set(storage.session_containers(over))
    assert storage.collect(blobs, batch, age=NOTHING, grace=NOTHING).removed == ()
    assert names(blobs) == set(storage.session_containers(job))
    batch.end_job(job, delete=True)


def test_what_a_running_job_may_still_fetch_stays(
    blobs: BlobService, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = session(blobs, cluster.batch.endpoint)
    create_job(cluster, job)
    for container in (BUFFERS, FILES, f"{ARCHIVES}lock"):
        blobs.create_container(container)
        blobs.put(container, "one", b"1")
    found = storage.collect(blobs, cluster.batch, age=NOTHING)
    assert {each.name for each in found.removed} == {BUFFERS}  # the session stores it again
    assert "sessions run" in states(found.left)[FILES]
    assert "sessions run" in states(found.left)[f"{ARCHIVES}lock"]
    # Its SAS live 7 days.
    monkeypatch.setattr(storage.survey, "_now", lambda: datetime.now(timezone.utc) + timedelta(days=8, minutes=1))
    found = storage.collect(blobs, cluster.batch, age=NOTHING)
    assert {each.name for each in found.removed} == {FILES, f"{ARCHIVES}lock"}
    assert names(blobs) == {BUFFERS, FILES, *storage.session_containers(job)}
    cluster.batch.end_job(job, delete=True)


def test_another_accounts_sessions_are_left_alone(blobs: BlobService, batch: BatchService) -> None:
    job = session(blobs, "https://other.westeurope.batch.azure.com", job_id(LONG_AGO))
    assert storage.sweep(blobs, batch, grace=NOTHING) == []
    found = storage.collect(blobs, batch, age=NOTHING, grace=NOTHING)
    assert found.removed == ()
    assert set(states(found.left).values()) == {"of the Batch account other.westeurope.batch.azure.com"}
    assert names(blobs) == set(storage.session_containers(job))


def test_containers_without_metadata_go_late(blobs: BlobService, cluster: Cluster) -> None:
    young, old, running = job_id(), job_id(LONG_AGO), job_id(LONG_AGO)
    for job in (young, old, running):
        for container in storage.session_containers(job):
            blobs.create_container(container)
    no_moment = f"{job_id('20209999-999999')}-in"
    blobs.create_container(no_moment)
    create_job(cluster, running)
    assert set(storage.sweep(blobs, cluster.batch, grace=NOTHING)) == set(storage.session_containers(old))
    found = states(storage.look(blobs, cluster.batch, grace=NOTHING))
    assert found[f"{young}-in"] == found[no_moment] == "of an older version: its Batch account is not known"
    assert found[f"{running}-out"] == "in use"
    cluster.batch.end_job(running, delete=True)


def test_what_is_kept_stays_until_its_date(
    blobs: BlobService, batch: BatchService, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = session(blobs, batch.endpoint)
    before = {item.name: item.metadata for item in blobs.containers("")}
    for container in storage.session_containers(job):
        until = storage.keep(blobs, container, 2.5)
        assert until is not None
        assert abs(until - datetime.now(timezone.utc) - timedelta(days=2.5)) < timedelta(minutes=1)
    for item in blobs.containers(""):
        assert item.metadata.items() > before[item.name].items()
    forever = session(blobs, batch.endpoint)
    for container in storage.session_containers(forever):
        blobs.mark_container(container, {**before[f"{job}-in"], "joblib_azure_keep_until": "for ever"})
    assert states(storage.look(blobs, batch, grace=NOTHING))[f"{job}-in"] == f"kept until {until:%Y-%m-%d %H:%M} UTC"
    assert storage.sweep(blobs, batch, grace=NOTHING) == []
    assert storage.collect(blobs, batch, age=NOTHING, grace=NOTHING).removed == ()
    monkeypatch.setattr(storage.survey, "_now", lambda: datetime.now(timezone.utc) + timedelta(days=2.6))
    assert set(storage.sweep(blobs, batch)) == set(storage.session_containers(job))
    assert names(blobs) == set(storage.session_containers(forever))


class Counted:
    """A service whose requests are counted by name."""

    def __init__(self, service: object) -> None:
        self._service = service
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if callable(getattr(self._service, name)):
            self.asked.append(name)
        return getattr(self._service, name)


def test_a_sweep_is_cheap(blobs: BlobService, batch: BatchService) -> None:
    job = session(blobs, batch.endpoint)
    for each in range(5):
        blobs.create_container(f"{ARCHIVES}{each}")
    stored, jobs = Counted(blobs), Counted(batch)
    of_blobs: Any = stored
    of_batch: Any = jobs
    assert storage.sweep(of_blobs, of_batch) == []
    assert (stored.asked, jobs.asked) == (["containers"], [])
    assert storage.sweep(of_blobs, of_batch, grace=NOTHING) == list(storage.session_containers(job))
    assert jobs.asked == ["running_jobs"]


def test_a_sweep_never_fails(
    blobs: BlobService, batch: BatchService, account: AccountConfig, caplog: pytest.LogCaptureFixture
) -> None:
    job = session(blobs, batch.endpoint)
    with caplog.at_level(logging.INFO, "joblib_azure"):
        stranger = AccountConfig(**{**account.to_dict(secrets=True), "batchKey": "d3Jvbmc="})
        with contextlib.closing(Cluster(config_of(), stranger)) as wrong:
            assert storage.sweep(blobs, wrong.batch, grace=NOTHING) == []
        assert "refused the credentials" in caplog.text
        assert storage.sweep(blobs, batch, grace=NOTHING) == list(storage.session_containers(job))
        assert f"removed what dead clients had left in storage: {job}-in, {job}-out" in caplog.text


def modified(blobs: BlobService, lock: str) -> list[datetime]:
    (container,) = blobs.containers(f"{ARCHIVES}{lock}")
    return [container.modified, *(item.modified for item in blobs.blobs(FILES, ""))]


def test_a_session_touches_the_environment_that_it_uses(
    blobs: BlobService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "own-1.0-py3-none-any.whl"
    wheel.write_bytes(b"a wheel")
    file = LockedFile(name="own", version="1.0", file=wheel.name, sha256="0" * 64, path=str(wheel))
    uv = LockedFile(name="uv", version="1.0", file="uv.whl", sha256="1" * 64, url="https://example.com/uv.whl")
    lock = Lock(
        digest=f"lock{next(_numbers)}",
        python="3.12",
        files=(file,),
        uv=uv,
        certificates=None,
        python_archive=None,
        offline=False,
        interpreters=(),
        node_environment={},
    )
    plan = EnvironmentPlan("python3", lock, Overlay([], (), foreign_platform=False))
    job = f"{job_id()}-in"
    blobs.create_container(job)
    plan.ship(blobs, job, HOUR)
    first = modified(blobs, lock.digest)
    blobs.mark_container(f"{ARCHIVES}{lock.digest}", {"mine": "stays"})
    time.sleep(1.1)
    marked = modified(blobs, lock.digest)
    plan.ship(blobs, job, HOUR)
    assert modified(blobs, lock.digest) == marked  # today that is enough
    monkeypatch.setattr(storage.survey, "TOUCH_AFTER", NOTHING)
    plan.ship(blobs, job, HOUR)
    assert all(now > then for now, then in zip(modified(blobs, lock.digest), first, strict=True))
    (container,) = blobs.containers(f"{ARCHIVES}{lock.digest}")
    assert container.metadata == {"mine": "stays"}
    # Collected at the very moment of its use, it is stored again.
    (item,) = blobs.blobs(FILES, "")
    late: Any = Late(blobs, lambda container: container == FILES and blobs.delete(FILES, item.name))
    plan.ship(late, job, HOUR)
    assert [item.name for item in blobs.blobs(FILES, "")] == [item.name]


def test_files_that_calls_have_left_go_with_their_job(blobs: BlobService, batch: BatchService) -> None:
    job = session(blobs, batch.endpoint)
    blobs.create_container(
        storage.files_container(job), metadata=storage.session_metadata(job, batch_account=batch.endpoint)
    )
    assert storage.kind_of(storage.files_container(job)) == "session"
    assert storage.kind_of("my-files") is None
    found = {each.name: (each.kind, each.job) for each in storage.look(blobs, batch)}
    assert found[storage.files_container(job)] == ("session", job)
    assert {each.name for each in storage.collect(blobs, batch, age=WEEK, grace=NOTHING).removed} == {
        *storage.session_containers(job),
        storage.files_container(job),
    }
    assert names(blobs) == set()
