"""``joblib-azure storage list CONTAINER``, ``get`` and ``delete``: on a real Azurite, with real files."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import cli_lab
import cli_process
import jobs_lab as lab
import pytest
from cli_lab import read, run
from cluster_lab import Answer, Between
from joblib import delayed

from joblib_azure import storage, submit
from joblib_azure.cluster import Cluster
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.errors import ConfigurationError, ConflictError
from joblib_azure.local.host import LocalHost
from joblib_azure.service import BlobService, JobSpec
from joblib_azure.storage import BUFFERS, FILES

DEAD, OTHER = "joblib-20260131-235959-0a1b2c3d", "joblib-20260131-235959-0a1b2c3e"
LARGE = bytes(range(256)) * (40 << 10)  # of several pieces


@pytest.fixture(scope="module")
def host() -> Iterator[LocalHost]:
    with cli_process.account() as host:
        yield host


@pytest.fixture
def cluster(host: LocalHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    cli_lab.at_home(tmp_path, monkeypatch)
    run("init", *cli_process.init_flags(host, "pool"), "--dedicated-nodes", "1")
    made = Cluster(ClusterConfig.load("cluster.json"), AccountConfig.load("credentials.json"))
    yield made
    for container in made.blobs.containers(""):
        made.blobs.delete_container(container.name)
    made.close()


@pytest.fixture
def blobs(cluster: Cluster) -> BlobService:
    """A container of the user's own, a cache, and what a session that died has left."""
    blobs = cluster.blobs
    for container in ("data", BUFFERS):
        blobs.create_container(container)
    for container in storage.session_containers(DEAD):
        metadata = storage.session_metadata(DEAD, batch_account=cluster.batch.endpoint)
        # Kept, and so neither new nor needed.
        blobs.create_container(container, metadata=metadata)
        storage.keep(blobs, container, 1)
    for name, data in {"a/one": b"1", "a/two/three": b"three", "a/empty": b"", "large.bin": LARGE}.items():
        blobs.put("data", name, data)
    blobs.put(BUFFERS, "one", bytes(10))
    for name in ("bundles/1", "bundles/2", "description"):
        blobs.put(f"{DEAD}-in", name, bytes(50))
    return blobs


def files(folder: Path = Path()) -> dict[str, int]:
    given = {"cluster.json", "credentials.json", ".gitignore"}
    found = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return {name: size for name, size in found.items() if name not in given}


# looking --------------------------------------------------------------------------------------------------


def test_blobs_of_a_container(blobs: BlobService) -> None:
    said = [line.split() for line in run("storage", "list", "data").splitlines()]
    assert [line[0] for line in said] == ["blob", "a/empty", "a/one", "a/two/three", "large.bin"]
    assert said[-1][1:3] == ["10.5", "MB"]
    assert [each["name"] for each in read("storage", "list", "data", "a/")] == ["a/empty", "a/one", "a/two/three"]
    said_less = run("storage", "list", "data", "--limit", "1")
    assert "and 3 more, 10.5 MB together" in said_less
    assert "There are no blobs that begin with 'z' in data." in run("storage", "list", "data", "z")
    assert read("storage", "list", "data", "z") == []
    assert "there is no container 'nowhere'" in run("storage", "list", "nowhere", exit_code=1)
    assert "leave CONTAINER out" in run("storage", "list", "data", "--buffers", exit_code=2)


# fetching -------------------------------------------------------------------------------------------------


def test_one_blob_into_a_file(blobs: BlobService) -> None:
    assert run("storage", "get", "data", "large.bin") == "10.5 MB in large.bin\n"
    assert Path("large.bin").read_bytes() == LARGE
    assert Path("large.bin").stat().st_mode & 0o777 == 0o666 & ~_umask()
    Path("folder").mkdir()
    run("storage", "get", "data", "a/two/three", "-o", "folder")
    run("storage", "get", "data", "a/empty", "-o", "new/none.txt")
    assert files() == {"large.bin": len(LARGE), "folder/three": 5, "new/none.txt": 0}
    # What is there stays, unless one says otherwise.
    Path("large.bin").write_text("mine")
    assert "large.bin is there: --force replaces it" in run("storage", "get", "data", "large.bin", exit_code=1)
    assert Path("large.bin").read_text() == "mine"
    found = read("storage", "get", "data", "large.bin", "--force")
    assert (found["container"], found["files"][0]["path"], found["files"][0]["size"]) == (
        "data",
        "large.bin",
        len(LARGE),
    )
    assert Path("large.bin").read_bytes() == LARGE


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_many_blobs_into_a_folder(blobs: BlobService) -> None:
    assert run("storage", "get", "data", "--prefix", "a/", "-o", "out") == "3 files, 6 B in out\n"
    assert files(Path("out")) == {"a/one": 1, "a/two/three": 5, "a/empty": 0}
    assert "out/a/" in run("storage", "get", "data", "--prefix", "", "-o", "out", exit_code=1)
    # All of it was refused, what is not there yet too.
    assert not Path("out/large.bin").exists()
    assert "4 files" in run("storage", "get", "data", "--prefix", "")
    assert Path("data/large.bin").read_bytes() == LARGE
    assert "There are no such blobs" in run("storage", "get", "data", "--prefix", "z")
    assert read("storage", "get", "data", "--prefix", "z")["files"] == []


@pytest.mark.parametrize(
    "name", ["../out.txt", "a/../../out.txt", "a//b", "a/./b", "..", "C:\\out.txt", "a\\..\\..\\out.txt", "b/"]
)
def test_a_name_that_leads_elsewhere(name: str, blobs: BlobService) -> None:
    """A name as somebody else has chosen it; what the service itself makes of it is no matter."""
    item = next(iter(blobs.blobs("data", "a/one")))
    hostile = type(item)(name=name, size=item.size, modified=item.modified)
    with pytest.raises(ConfigurationError, match=r"not be a path below into") as caught:
        storage.places([item, hostile], Path("into"))
    assert repr(name) in str(caught.value)
    assert not Path("into").exists()


def test_a_link_that_leads_elsewhere(blobs: BlobService, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    Path("out").mkdir()
    Path("out/a").symlink_to(elsewhere)
    assert "not be a path below out" in run("storage", "get", "data", "--prefix", "a/", "-o", "out", exit_code=1)
    assert list(elsewhere.iterdir()) == []


def test_names_that_cannot_both_be_files(blobs: BlobService) -> None:
    blobs.put("data", "a/one/below", b"x")
    said = run("storage", "get", "data", "--prefix", "a/", exit_code=1)
    assert "'a/one' and 'a/one/below' cannot both be files" in said
    assert not Path("data").exists()


def test_a_blob_that_is_written_to_meanwhile(cluster: Cluster, blobs: BlobService) -> None:
    """Half of it one content and half another would be worse than nothing."""
    (item,) = blobs.blobs("data", "large.bin")
    again = threading.Event()

    def moved(size: int) -> None:
        if not again.is_set():
            again.set()
            blobs.put("data", "large.bin", LARGE[::-1] + b"more")

    Path("large.bin").write_text("as it was")
    with pytest.raises(ConflictError, match="was written to, or deleted, while it was fetched"):
        storage.fetch(blobs, "data", [(item, Path("large.bin"))], force=True, moved=moved)
    assert files() == {"large.bin": 9}


def test_what_breaks_off_leaves_nothing_half(host: LocalHost, blobs: BlobService) -> None:
    text = Path("credentials.json").read_text()
    storage_at = next(part for part in host.storage_connection_string.split(";") if part.startswith("BlobEndpoint="))
    endpoint = storage_at.removeprefix("BlobEndpoint=")
    origin = "/".join(endpoint.split("/")[:3])
    fetched = 0

    def breaks(verb: str, path: str, given: Answer | None) -> Answer | None:
        nonlocal fetched
        if given is None and verb == "GET" and "/data/large.bin" in path:
            fetched += 1
            if fetched > 1:
                return 404, {"x-ms-error-code": "BlobNotFound"}, b""
        return None

    with Between(origin, breaks) as between:
        Path("credentials.json").write_text(text.replace(origin, between.endpoint))
        said = run("storage", "get", "data", "large.bin", exit_code=1)
    assert "fetching a blob" in said
    assert fetched > 1
    assert files() == {}


def test_what_get_is_not_told(blobs: BlobService) -> None:
    assert "name one BLOB" in run("storage", "get", "data", exit_code=2)
    assert "name one BLOB" in run("storage", "get", "data", "a/one", "--prefix", "a", exit_code=2)
    assert "there is no blob 'a'" in run("storage", "get", "data", "a", exit_code=1)
    assert "there is no container 'nowhere'" in run("storage", "get", "nowhere", "a", exit_code=1)
    Path("a").write_text("a file where a folder is to be")
    assert "nothing of that file was written" in run("storage", "get", "data", "--prefix", "a/", "-o", ".", exit_code=1)


# deleting -------------------------------------------------------------------------------------------------


def names(blobs: BlobService, container: str) -> list[str]:
    return [each.name for each in blobs.blobs(container, "")]


def test_deleting(blobs: BlobService) -> None:
    container = f"{DEAD}-in"
    assert "Nobody is here to be asked: add --yes" in run("storage", "delete", container, exit_code=2)
    assert run("storage", "delete", container, "description", "--yes") == "Deleted 1 blob.\n"
    assert names(blobs, container) == ["bundles/1", "bundles/2"]
    assert run("storage", "delete", container, "--prefix", "bundles/", "--yes") == "Deleted 2 blobs.\n"
    assert names(blobs, container) == []
    said = run("storage", "delete", container, "--yes")
    assert said == f"Deleted 0 blobs, and the container {container}.\n"
    assert [each.name for each in blobs.containers(DEAD)] == [f"{DEAD}-out"]
    assert run("storage", "delete", BUFFERS, "one", "--yes") == "Deleted 1 blob.\n"
    assert "there is no blob 'one'" in run("storage", "delete", BUFFERS, "one", "--yes", exit_code=1)
    assert "there is no container" in run("storage", "delete", container, "--yes", exit_code=1)
    assert "name one BLOB" in run("storage", "delete", BUFFERS, "one", "--prefix", "o", exit_code=2)


def test_deleting_asks_a_person(host: LocalHost, blobs: BlobService) -> None:
    container = f"{DEAD}-in"
    for answer, left in (("n", 3), ("y", None)):
        with cli_process.Running(Path.cwd(), "storage", "delete", container, terminal=True) as program:
            program.answer(f"Delete the container {container} (3 blobs, 150 B)? [y/N]: ", answer)
            assert program.end() == (0 if left is None else 130), program.output
        found = [each.name for each in blobs.containers(container)]
        assert found == ([] if left is None else [container])


def test_what_is_not_ours_is_not_deleted(blobs: BlobService) -> None:
    for more in ([], ["a/one"], ["--prefix", "a"], ["--force"]):
        said = run("storage", "delete", "data", *more, "--yes", exit_code=1)
        assert "'data' is no container of joblib_azure" in said
    assert len(names(blobs, "data")) == 4


def test_what_a_job_needs_is_not_deleted(cluster: Cluster, blobs: BlobService, tmp_path: Path) -> None:
    blobs.create_container(FILES)
    blobs.put(FILES, "one", b"x")
    metadata = storage.session_metadata(OTHER, batch_account="https://other.westeurope.batch.azure.com")
    job = submit([delayed(lab.waits)(str(tmp_path), 1)], cluster=cluster, name="live")
    for container in (job.inputs, job.outputs, BUFFERS, FILES):
        said = run("storage", "delete", container, "--yes", exit_code=1)
        assert f"{container} is not touched" in said
        assert "in use" in said
        assert "--force" in said
    # What died is nobody's, whatever runs.
    assert "Deleted 3 blobs" in run("storage", "delete", f"{DEAD}-in", "--yes")
    assert "Deleted 1 blob." in run("storage", "delete", BUFFERS, "one", "--yes", "--force")
    (tmp_path / "stop").touch()
    job.wait(60)
    lab.until(lambda: job.status().state == "completed", "the service has ended it")
    # Its results are kept, and may go now.
    run("storage", "delete", job.outputs, "--yes")
    job.delete(wait=True)
    # Whose jobs cannot be seen from here may run.
    blobs.create_container(f"{OTHER}-in", metadata=metadata)
    said = run("storage", "delete", f"{OTHER}-in", "--yes", exit_code=1)
    assert "of the Batch account other.westeurope.batch.azure.com" in said
    assert f"the job of {OTHER}-in may run" in run("storage", "delete", FILES, "--yes", exit_code=1)
    run("storage", "delete", f"{OTHER}-in", "--yes", "--force")
    cluster.delete()


def test_what_an_earlier_run_computed_is_needed_by_a_later_one(cluster: Cluster, blobs: BlobService) -> None:
    first, second = "joblib-job-sweep-001", "joblib-job-sweep-002"
    for job in (first, second):
        for container in storage.session_containers(job):
            blobs.create_container(
                container, metadata=storage.session_metadata(job, batch_account=cluster.batch.endpoint)
            )
            storage.keep(blobs, container, 1)

    def runs(job: str) -> None:
        cluster.batch.create_job(
            JobSpec(id=job, pool="pool", environment={}, preparation="true", files={}, lifetime=timedelta(minutes=5))
        )

    def ended(job: str) -> None:
        cluster.batch.end_job(job, delete=True)
        lab.until(lambda: job not in cluster.batch.running_jobs(job), f"{job} has ended")

    cluster.open()
    for running, found in (
        (second, f"job {second} runs, and uses what this one has computed"),
        ("joblib-job-sweep-more-001", ""),
        (first, "in use"),
    ):
        runs(running)
        assert storage.needed(blobs, cluster.batch, f"{first}-out") == found
        ended(running)
    assert storage.needed(blobs, cluster.batch, f"{first}-out") == ""
    cluster.delete()
