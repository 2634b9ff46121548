"""Files that calls of a detached job are given, and those that they leave, there and back."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import jobs_lab as lab
import pytest
from joblib import Parallel, delayed, parallel_config

from joblib_azure import Job, LocalCluster, OutputFile, submit
from joblib_azure import storage as stores
from joblib_azure.errors import (
    ConfigurationError,
    ContentChangedError,
    JobError,
    NodesUnavailableError,
    WorkerDiedError,
)
from joblib_azure.registry import session_for
from joblib_azure.resources import read

SECONDS = 60.0


@pytest.fixture(scope="module")
def cold() -> Iterator[LocalCluster]:
    """One node without warm runners: each task starts a process of its own, and a pool of two."""
    with LocalCluster(nodes=1, cores_per_node=2, warm_runners=False) as cluster:
        yield cluster


@pytest.fixture(params=["wide_cluster", "slotted_cluster", "cold"])
def any_cluster(request: pytest.FixtureRequest) -> LocalCluster:
    """Warm tasks with a pool, several side by side on a node, and cold ones."""
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


@pytest.fixture
def container(cluster: LocalCluster, request: pytest.FixtureRequest) -> str:
    return fill(cluster, f"data-{abs(hash(request.node.name)) % 10**8}")


def fill(cluster: LocalCluster, name: str) -> str:
    cluster.blobs.create_container(name)
    for blob in ("a.csv", "year=26/b.csv", "year=26/c.csv", "year=27/d.csv"):
        cluster.blobs.put(name, blob, blob.encode())
    return name


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "layers").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "layers" / "one.txt").write_text("one")
    (folder / "empty").touch()
    return folder


def given(cluster: LocalCluster) -> set[str]:
    return {each.name for each in cluster.blobs.containers(stores.GIVEN)}


def stored(job: Job) -> dict[str, int]:
    return {f"{each.first}:{each.path}": each.size for each in job.output_files()}


def ended(job: Job) -> Job:
    lab.until(lambda: job.details().state == "completed", "the service has ended the job")
    return job


# in -------------------------------------------------------------------------------------------------------


def test_files_and_folders_are_where_calls_run(any_cluster: LocalCluster, tree: Path) -> None:
    (tree.parent / "single.txt").write_text("single")
    (tree.parent / "big.bin").write_bytes(bytes(range(256)) * 40_000)
    files = {"single.txt": tree.parent / "single.txt", "in/some/where": str(tree), "in/big": tree.parent / "big.bin"}
    job = submit([delayed(lab.sees)() for _ in range(4)], cluster=any_cluster, resource_files=files, calls_per_task=1)
    for seen in job.results(timeout=SECONDS):
        assert seen == {
            "in/big": (10_240_000, False),
            "in/some/where/config.json": (2, False),
            "in/some/where/empty": (0, False),
            "in/some/where/layers/one.txt": (3, False),
            "single.txt": (6, False),
        }


def test_several_tasks_on_a_node_have_the_files_each(slotted_cluster: LocalCluster, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "met").mkdir()
    calls = [delayed(lab.meets)(str(tmp_path / "met"), i, 4, "model/layers/one.txt") for i in range(4)]
    found = list(submit(calls, cluster=slotted_cluster, resource_files=tree, calls_per_task=1).results(timeout=SECONDS))
    assert [text for text, _ in found] == ["one"] * 4
    # Each has a folder of its own, with what it has written in it and nobody else.
    assert len({folder for _, folder in found}) == 4
    assert [[p.name for p in Path(at).glob("mine-*")] for _, at in found] == [[f"mine-{i}"] for i in range(4)]


def test_what_was_sent_once_is_not_sent_again(cluster: LocalCluster, tree: Path) -> None:
    before = given(cluster)
    (tree / "new").write_text("of this test alone")
    files = [str(tree), __file__]
    first = submit([delayed(lab.reads)("model/config.json")], cluster=cluster, resource_files=files)
    assert list(first.results(timeout=SECONDS)) == [["{}"]]
    there = given(cluster) - before
    assert len(there) == 2
    times = {name: [each.modified for each in cluster.blobs.blobs(name, "")] for name in there}
    # Another folder with the same in it, under another path; and of what is lacking only that is sent.
    other = tree.rename(tree.parent / "renamed")
    (folder,) = [name for name in there if any(each.name == "config.json" for each in cluster.blobs.blobs(name, ""))]
    cluster.blobs.delete(folder, "layers/one.txt")
    again = submit([delayed(lab.reads)("x/layers/one.txt")], cluster=cluster, resource_files={"x": other})
    assert list(again.results(timeout=SECONDS)) == [["one"]]
    assert given(cluster) == before | there
    (lonely,) = there - {folder}
    assert [each.modified for each in cluster.blobs.blobs(lonely, "")] == times[lonely]
    # A change of one letter is another content.
    (other / "config.json").write_text("[]")
    changed = submit([delayed(lab.reads)("renamed/config.json")], cluster=cluster, resource_files=other)
    assert list(changed.results(timeout=SECONDS)) == [["[]"]]
    assert len(given(cluster)) == len(before | there) + 1
    kinds = {each.name: each.kind for each in stores.look(cluster.blobs, cluster.batch)}
    assert {kinds[name] for name in there} == {"given"}
    ended(changed)
    stores.collect(cluster.blobs, cluster.batch, age=timedelta(days=9))
    assert given(cluster) > before


def test_a_folder_s_content_and_urls(cluster: LocalCluster, tree: Path) -> None:
    class Files(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/some%20file.txt?sig=s" else 404)
            self.end_headers()
            self.wfile.write(b"from afar")

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}/some%20file.txt?sig=s"
            call = delayed(lab.reads)("config.json", "layers/one.txt", "in/named", "in/same")
            files = {".": tree, "in/named": url, "in/same": url}
            job = submit([call], cluster=cluster, resource_files=files)
            assert list(job.results(timeout=SECONDS)) == [["{}", "one", "from afar", "from afar"]]
            job = submit([delayed(lab.reads)("some file.txt")], cluster=cluster, resource_files=[url])
            assert list(job.results(timeout=SECONDS)) == [["from afar"]]
            job = submit([delayed(lab.reads)("x")], cluster=cluster, resource_files={"x": url.replace("some", "no")})
            with pytest.raises(NodesUnavailableError, match="BlobNotFound") as caught:
                list(job.results(timeout=SECONDS))
            assert "sig" not in str(caught.value)
            job.delete()
        finally:
            server.shutdown()
            thread.join()


def test_inputs_from_containers(cluster: LocalCluster, container: str) -> None:
    inputs = {"all": container, "some": f"{container}/year=26/", "one.csv": f"{container}/year=27/d.csv"}
    (seen,) = submit([delayed(lab.sees)()], cluster=cluster, inputs=inputs).results(timeout=SECONDS)
    assert set(seen) == {
        "all/a.csv",
        "all/year=26/b.csv",
        "all/year=26/c.csv",
        "all/year=27/d.csv",
        "some/year=26/b.csv",
        "some/year=26/c.csv",
        "one.csv",
    }
    call = delayed(lab.reads)("a.csv", "year=26/b.csv", "d.csv")
    job = submit([call], cluster=cluster, inputs=[container, f"{container}/year=27/d.csv"])
    assert list(job.results(timeout=SECONDS)) == [["a.csv", "year=26/b.csv", "year=27/d.csv"]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"resource_files": "no-such-file"}, "there is no file or folder"),
        ({"resource_files": ["model", "no-such-file"]}, "no-such-file"),
        ({"resource_files": {"/etc/x": "model"}}, "below the folder"),
        ({"resource_files": {"a/../../x": "model"}}, "below the folder"),
        ({"resource_files": {".joblib_azure/x": "model"}}, "used by joblib_azure"),
        ({"resource_files": {"a\\b": "model"}}, "backslash"),
        ({"resource_files": {"x": 3}}, "names nothing"),
        ({"resource_files": 3}, "a mapping of paths"),
        ({"resource_files": {"": "model/config.json"}}, "needs a name"),
        ({"resource_files": "hollow"}, "has no files"),
        ({"resource_files": "linked"}, "is a link to a folder"),
        ({"resource_files": "dangling"}, "a link to none"),
        ({"resource_files": {"model/config.json": "model", "model": "model"}}, "there already"),
        ({"resource_files": {"a": "model", "a/config.json": "model/config.json"}}, "there already, from"),
        ({"resource_files": {"a/b": "model", "a": "model/config.json"}}, "there already, from"),
        ({"resource_files": "ftp://h/x"}, "cannot fetch"),
        ({"resource_files": "https://"}, "no URL"),
        ({"resource_files": "https://h/?sig=hidden"}, "say what it is called"),
        ({"inputs": "No_Container"}, "cannot be the name of a container"),
        ({"inputs": "no-such-container"}, "has no container 'no-such-container'"),
        ({"inputs": "{container}/no-such-prefix"}, "no blob whose name begins with 'no-such-prefix'"),
        ({"inputs": ["{container}", "{container}/a.csv"]}, "'a.csv' is there already"),
        ({"inputs": "{container}", "resource_files": {"year=26": "model"}, "output_files": "*.csv"}, "matches 'a.csv'"),
        ({"output_files": "*", "keep": "never"}, "name a container"),
        ({"output_files": 3}, "a pattern, an OutputFile"),
        ({"output_files": [3]}, "neither a pattern nor an OutputFile"),
        ({"output_files": ""}, "names no files"),
        ({"output_files": "out/"}, "names no files"),
        ({"output_files": "/tmp/x"}, "below the folder"),
        ({"output_files": "../x"}, "below the folder"),
        ({"output_files": "$HOME/x"}, "variable"),
        ({"output_files": "a**/x"}, "within a name"),
        ({"output_files": "a[b"}, "not closed"),
        ({"output_files": OutputFile("*", on="never")}, "'completion', 'success', 'failure'"),  # type: ignore[arg-type]
        ({"output_files": OutputFile("../std*.txt", on="failure")}, "on='completion'"),
        ({"output_files": OutputFile("*", path="../x")}, "without"),
        ({"output_files": OutputFile("*", container="no-such-container")}, "has no container"),
        ({"output_files": OutputFile("*", container="x")}, "cannot be the name"),
        ({"output_files": OutputFile("*", container="joblib-azure-buffers")}, "use another one"),
    ],
)
def test_what_cannot_be(
    cluster: LocalCluster,
    container: str,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    words: str,
) -> None:
    """Each is an error that says what and why, and nothing was created."""
    monkeypatch.chdir(tree.parent)
    (tree.parent / "hollow" / "deep").mkdir(parents=True)
    for name, target in (("linked", tree), ("dangling", tree / "nowhere")):
        (tree.parent / name).mkdir()
        (tree.parent / name / "link").symlink_to(target)
    there = {each.name for each in cluster.blobs.containers("")}

    def put_in(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{container}", container)
        return [put_in(each) for each in value] if isinstance(value, list) else value

    given = {name: put_in(value) for name, value in settings.items()}
    with pytest.raises(ConfigurationError) as caught:
        submit([delayed(lab.square)(1)], cluster=cluster, name="never", **given)
    assert words in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert {each.name for each in cluster.blobs.containers("")} == there
    with pytest.raises(JobError, match="there is no job"):
        Job.attach("never", cluster)


# out ------------------------------------------------------------------------------------------------------


def test_files_come_back(any_cluster: LocalCluster, tmp_path: Path) -> None:
    wanted = ["out/**", OutputFile("*.log", on="success"), OutputFile("none/*"), "../std*.txt"]
    calls = [delayed(lab.leaves)(i) for i in range(4)]
    job = submit(calls, cluster=any_cluster, output_files=wanted, calls_per_task=2, name="leaves")
    made = Job.attach("leaves", any_cluster).download(tmp_path / "here", timeout=SECONDS)
    assert {key: size for key, size in stored(job).items() if "std" not in key} == {
        "0:0.log": 5,
        "0:1.log": 5,
        "0:out/0.txt": 6,
        "0:out/1.txt": 6,
        "0:out/deep/0.bin": 0,
        "0:out/deep/1.bin": 1,
        "2:2.log": 5,
        "2:3.log": 5,
        "2:out/2.txt": 6,
        "2:out/3.txt": 6,
        "2:out/deep/2.bin": 2,
        "2:out/deep/3.bin": 3,
    }
    first, second = sorted((tmp_path / "here").iterdir())
    assert sorted(each.id for each in job.tasks()) == [first.name, second.name]
    assert len(made) == 16
    assert made[0] == first / "0.log"
    assert (second / "out" / "deep" / "3.bin").read_bytes() == bytes(3)
    assert (second / "out" / "2.txt").read_text() == "text 2"
    said = (first / "stdout.txt").read_text().splitlines()
    assert sorted(said) == ["call 0 said so", "call 1 said so"]
    assert not [path for path in (tmp_path / "here").rglob("*") if path.name.startswith(".")]
    some = job.download(tmp_path / "some", match="out/*.txt")
    assert sorted(path.name for path in some) == ["0.txt", "1.txt", "2.txt", "3.txt"]
    assert all(each.failure is None for each in job.tasks())
    (container,) = {each.container for each in job.output_files()}
    assert container == f"{job.id}-files"
    kinds = {each.name: (each.kind, each.job) for each in stores.look(any_cluster.blobs, any_cluster.batch)}
    assert kinds[container] == ("session", job.id)
    job.delete(wait=True)
    assert list(any_cluster.blobs.containers(job.id)) == []
    with pytest.raises(JobError, match="was deleted"):
        job.output_files()


@pytest.mark.parametrize(
    ("call", "on"),
    [(lab.leaves, {"success", "completion"}), (lab.leaves_and_dies, {"failure", "completion"})],
    ids=["returns", "dies"],
)
def test_success_and_failure_are_the_calls_own(any_cluster: LocalCluster, call: Any, on: set[str]) -> None:
    wanted = [OutputFile("1.log", on=each, path=each) for each in ("success", "failure", "completion")]  # type: ignore[arg-type]
    job = submit([delayed(call)(1)], cluster=any_cluster, output_files=wanted)
    (result,) = job.results(on_error="return", timeout=SECONDS)
    assert isinstance(result, WorkerDiedError) == ("failure" in on)
    ended(job)
    assert {each.blob.partition("/")[0] for each in job.output_files()} == on
    assert {each.path for each in job.output_files()} == {"1.log"}


def test_a_call_that_raises_has_failed(any_cluster: LocalCluster) -> None:
    """Its task has not, and is not run again."""
    calls = [delayed(lab.leaves)(i, i == 1) for i in range(4)]
    wanted = [OutputFile("*.log", on="failure"), OutputFile("out/*.txt", on="success")]
    job = submit(calls, cluster=any_cluster, output_files=wanted, calls_per_task=2, retries=2)
    found = list(job.results(on_error="return", timeout=SECONDS))
    assert (found[0], str(found[1]), found[2:]) == (0, "1 fails", [2, 3])
    ended(job)
    assert set(stored(job)) == {"0:0.log", "0:1.log", "2:out/2.txt", "2:out/3.txt"}
    assert [(each.exit_code, each.retries) for each in job.tasks()] == [(0, 0), (0, 0)]


@pytest.mark.parametrize("which", ["wide_cluster", "cold"])
def test_a_task_that_is_ended_has_failed(which: str, request: pytest.FixtureRequest) -> None:
    cluster: LocalCluster = request.getfixturevalue(which)
    # It has left its files by then, also where the machine is busy.
    seconds = 15.0
    wanted = [OutputFile("*.log", on=each, path=each) for each in ("success", "failure", "completion")]  # type: ignore[arg-type]
    call = delayed(lab.leaves_and_waits)(7)
    job = submit([call], cluster=cluster, output_files=wanted, task_timeout=seconds, retries=0)
    ended(job)
    assert {each.blob.partition("/")[0] for each in job.output_files()} == {"failure", "completion"}


def test_a_container_of_one_s_own(cluster: LocalCluster, container: str, tmp_path: Path) -> None:
    wanted = [
        OutputFile("*.log", container=container),
        OutputFile("out/*.txt", container=container, path="runs/today", on="success"),
    ]
    jobs = []
    for number in (1, 2):
        job = submit([delayed(lab.leaves)(number)], cluster=cluster, name="mine", output_files=wanted)
        assert len(job.download(tmp_path / str(number), timeout=SECONDS)) == 2
        assert set(stored(job)) == {f"0:{number}.log", f"0:out/{number}.txt"}
        assert f"{job.id}-files" not in {each.name for each in cluster.blobs.containers(job.id)}
        job.delete(wait=True)
        jobs.append(job)
    # They are its owner's, whatever becomes of the jobs.
    names = {each.name for each in cluster.blobs.blobs(container, "")}
    assert len([name for name in names if name.startswith("mine/")]) == 2
    assert len([name for name in names if name.startswith("runs/today/")]) == 2
    job = submit([delayed(lab.leaves)(1)], cluster=cluster, output_files=wanted)
    job.wait(SECONDS)
    ended(job)
    cluster.blobs.delete_container(container)
    with pytest.raises(JobError, match="lost its files"):
        job.output_files()


def test_a_job_that_does_not_stay_has_stored_its_files(cluster: LocalCluster, container: str) -> None:
    wanted = [OutputFile("**", container=container), OutputFile("*.log", container=container, path="s", on="success")]
    calls = [delayed(lab.leaves)(number) for number in range(1, 9)]
    job = submit(calls, cluster=cluster, name="brief", output_files=wanted, calls_per_task=1, keep="never")
    assert list(job.results(timeout=SECONDS)) == list(range(1, 9))
    stored = [each.name for each in cluster.blobs.blobs(container, "")]
    assert len([name for name in stored if name.startswith("brief/")]) == 24
    assert len([name for name in stored if name.startswith("s/")]) == 8
    with pytest.raises(JobError):
        job.status()


@pytest.mark.parametrize("on", ["completion", "success"])
def test_files_that_could_not_be_stored(
    cluster: LocalCluster, container: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, on: Any
) -> None:
    """Whoever stores them, the results are there, and it is said."""
    wanted = ["*.log", OutputFile("out/*.txt", on=on, container=container)]
    calls = [delayed(lab.leaves)(1), delayed(lab.waits)(str(tmp_path), 2)]
    job = submit(calls, cluster=cluster, output_files=wanted, calls_per_task=2, retries=0)
    lab.until(lambda: (tmp_path / "started-2").exists(), "it runs")
    cluster.blobs.delete_container(container)
    (tmp_path / "stop").touch()
    assert list(job.results(timeout=SECONDS)) == [1, 2]
    ended(job)
    (task,) = job.tasks()
    assert task.failure is not None
    cluster.blobs.create_container(container)
    assert [each.name for each in job.download(tmp_path / "here", timeout=SECONDS)] == ["1.log"]
    assert task.failure in caplog.text
    if on == "completion":
        assert task.failure.startswith("FileUploadContainerNotFound")
        assert b"FileUploadContainerNotFound" in job.file(task.id, "fileuploaderr.txt")
    else:
        assert "ContainerNotFound" in "".join(job.logs(task.id))


def test_what_is_given_is_not_stored_again(cluster: LocalCluster, tree: Path) -> None:
    job = submit(
        [delayed(lab.leaves)(1)],
        cluster=cluster,
        resource_files={"in": tree},
        output_files=["*.log", OutputFile("out/**", on="success")],
    )
    job.wait(SECONDS)
    ended(job)
    assert set(stored(job)) == {"0:1.log", "0:out/1.txt", "0:out/deep/1.bin"}


def test_a_file_that_changes_while_it_is_sent(cluster: LocalCluster, tree: Path) -> None:
    (tree / "config.json").write_text("a content that no other test has sent")
    resources = read(tree, None)
    (tree / "config.json").write_text("another content")
    before = {each.name for each in cluster.blobs.containers("joblib-job")}
    with pytest.raises(ContentChangedError, match=r"config\.json has changed"):
        resources.ship(cluster.blobs, timedelta(hours=1))
    (tree / "config.json").unlink()
    with pytest.raises(ContentChangedError, match=r"config\.json has changed"):
        resources.ship(cluster.blobs, timedelta(hours=1))
    assert {each.name for each in cluster.blobs.containers("joblib-job")} == before


def test_a_submission_that_fails_leaves_nothing(cluster: LocalCluster) -> None:
    def calls() -> Iterator[Any]:
        yield delayed(lab.leaves)(1)
        raise RuntimeError("the generator has failed")

    with pytest.raises(RuntimeError, match="has failed"):
        submit(calls(), cluster=cluster, name="half", output_files="*.log")
    assert list(cluster.blobs.containers("joblib-job-half")) == []


def test_nothing_is_there_yet(cluster: LocalCluster, tmp_path: Path) -> None:
    job = submit([delayed(lab.waits)(str(tmp_path), 1)], cluster=cluster, output_files="*")
    assert job.output_files() == ()
    assert job.download(tmp_path / "x", wait=False) == ()
    with pytest.raises(TimeoutError):
        job.download(tmp_path / "x", timeout=0.2)
    (tmp_path / "stop").touch()
    assert job.download(tmp_path / "x", timeout=SECONDS) == ()
    without = submit([delayed(lab.square)(1)], cluster=cluster)
    assert without.download(tmp_path / "x", timeout=SECONDS) == ()


# Parallel -------------------------------------------------------------------------------------------------


def test_the_calls_of_a_parallel_are_given_files(cluster: LocalCluster, container: str, tree: Path) -> None:
    with parallel_config("azure", cluster=cluster, resource_files={"in": tree}, inputs=f"{container}/a.csv"):
        found = Parallel()(delayed(lab.reads)("in/layers/one.txt", "a.csv") for _ in range(3))
        assert found == [["one", "a.csv"]] * 3
        # Named inside, the backend is the one around it.
        assert Parallel(backend="azure")([delayed(lab.reads)("a.csv")]) == [["a.csv"]]
        first = session_for(cluster, "", read({"in": tree}, f"{container}/a.csv"))
        assert first.work.tasks_added >= 2
    with parallel_config("azure", cluster=cluster, resource_files=tree, job="given"):
        assert Parallel()([delayed(lab.reads)("model/config.json")]) == [["{}"]]
    with (
        parallel_config("azure", cluster=cluster, job="given"),
        pytest.raises(ConfigurationError, match="other resource_files"),
    ):
        Parallel()([delayed(lab.square)(1)])
    with (
        parallel_config("azure", cluster=cluster, inputs=f"{container}/nothing"),
        pytest.raises(ConfigurationError, match="no blob whose name begins with 'nothing'"),
    ):
        Parallel()([delayed(lab.square)(1)])
    with pytest.raises(ConfigurationError, match="there is no file or folder"):
        parallel_config("azure", cluster=cluster, resource_files="no-such-file")
    with parallel_config("azure", cluster=cluster):
        (seen,) = Parallel()([delayed(lab.sees)()])
    assert "a.csv" not in seen
    (tree / "config.json").write_text("[1]")
    with parallel_config("azure", cluster=cluster, resource_files={"in": tree}, inputs=f"{container}/a.csv"):
        assert Parallel()([delayed(lab.reads)("in/config.json")]) == [["[1]"]]
