"""``joblib-azure job``: what people and programs see of jobs, and do with them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cli_lab
import cli_process
import joblib
import jobs_lab as lab
import pytest
from click.testing import CliRunner
from joblib import delayed

from joblib_azure import Cluster, Job, OutputFile, submit
from joblib_azure.cli import main
from joblib_azure.cli.job import _names
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.local.host import LocalHost

SECONDS = 60.0


@pytest.fixture(scope="module")
def host() -> Iterator[LocalHost]:
    with cli_process.account() as host:
        yield host


@pytest.fixture(scope="module")
def folder(host: LocalHost, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("project")
    flags = cli_process.init_flags(host, "pool")
    done = cli_process.run(made, "init", *flags, "--dedicated-nodes", "1")
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    with Cluster(ClusterConfig.load(folder / "cluster.json"), AccountConfig.load(folder / "credentials.json")) as made:
        yield made


@pytest.fixture(autouse=True)
def at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli_lab.at_home(folder, monkeypatch)


def run(*arguments: str, exit_code: int = 0, **more: Any) -> str:
    return cli_lab.run("job", *arguments, exit_code=exit_code, **more)


def read(*arguments: str) -> Any:
    return cli_lab.read("job", *arguments)


def test_a_job_from_its_listing_to_its_end(cluster: Cluster) -> None:
    assert "There are no jobs" in run("list")
    job = submit([delayed(lab.square)(i) for i in range(5)], cluster=cluster, name="squares", calls_per_task=2)
    job.wait(SECONDS)
    assert run("list").splitlines()[1].split()[0] == "squares"
    (listed,) = read("list")
    assert (listed["name"], listed["pool"]) == ("squares", "pool")
    assert "5 of 5 calls done" in run("show", "squares")
    shown = read("show", "squares", "--tasks")
    assert (shown["calls"], shown["done"], shown["failed"]) == (5, 5, 0)
    assert [task["exit_code"] for task in shown["task_list"]] == [0, 0, 0]
    assert run("results", "squares").splitlines() == ["0", "1", "4", "9", "16"]
    assert "5 results in found.pkl" in run("results", "squares", "--output", "found.pkl")
    assert joblib.load("found.pkl") == [0, 1, 4, 9, 16]
    assert [each.name for each in Path().glob("*.new")] == []
    assert _completed("sq") == ["squares"]
    assert _completed("x") == []
    run("delete", "squares", exit_code=130, input="n\n")
    assert "is removed" in run("delete", "squares", "--yes")
    assert "squares" in run("show", "squares", exit_code=1)


def _completed(incomplete: str) -> list[str]:
    import click

    context = click.Context(main)
    return _names(context, click.Argument(["name"]), incomplete)


def test_errors_and_logs(cluster: Cluster) -> None:
    calls = [delayed(lab.speaks)("one"), delayed(lab.odd_ones_fail)(1), delayed(lab.square)(3)]
    job = submit(calls, cluster=cluster, name="failing", calls_per_task=1)
    job.wait(SECONDS)
    assert "1 failed" in run("show", "failing")
    assert run("results", "failing", "--on-error", "drop").splitlines() == ["'one'", "9"]
    assert "ValueError('1 is odd')" in run("results", "failing", "--on-error", "return")
    first = next(task.id for task in job.tasks())
    assert run("logs", "failing", first, "--stdout") == "one to stdout\n"
    assert run("logs", "failing", first, "--follow") == "one to stderr: é\none ends\n"
    assert "no task 'nothing'" in run("logs", "failing", "nothing", exit_code=1)
    job.delete()


def test_a_job_that_is_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    calls = [delayed(lab.waits)(str(tmp_path), i) for i in range(2)]
    job = submit(calls, cluster=cluster, name="long", calls_per_task=1)
    end = time.monotonic() + SECONDS
    while not list(tmp_path.glob("started-*")) and time.monotonic() < end:
        time.sleep(0.02)
    assert "waited 0.2 s for call 0" in run("results", "long", "--timeout", "0.2", exit_code=1)
    shown = run("logs", "long", exit_code=0)
    assert "on node" in shown
    assert "Job long ends" in run("cancel", "long")
    assert run("results", "long", "--on-error", "drop") == ""
    assert "UserCancelled" in run("list")
    job.delete()


def test_names_that_are_none() -> None:
    for command in ("show", "logs", "results", "cancel", "delete"):
        more = ["--yes"] if command == "delete" else []
        assert "there is no job 'never'" in run(command, "never", *more, exit_code=1)
        assert "cannot be a job's" in run(command, "NEVER", *more, exit_code=1)
    assert isinstance(Job.list(account=AccountConfig.load("credentials.json")), tuple)


def test_the_timeline_of_a_job(cluster: Cluster) -> None:
    job = submit([delayed(lab.square)(i) for i in range(6)], cluster=cluster, name="drawn", calls_per_task=2)
    job.wait(SECONDS)
    assert "Job drawn (jobs_lab.square(int)): 6 of 6 calls done; 3 tasks on 1 node" in run("timeline", "drawn")
    assert "is in run.html" in run("timeline", "drawn", "--html", "run.html")
    assert Path("run.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    found = read("timeline", "drawn")
    assert (found["job"], found["calls"], found["done"], len(found["runs"])) == ("drawn", 6, 6, 3)
    # The picture is asked for too: JSON is all that is on stdout.
    both = CliRunner().invoke(main, ["job", "timeline", "drawn", "--json", "--html", "again.html"])
    assert json.loads(both.stdout)["job"] == "drawn"
    assert Path("again.html").exists()
    assert "there is no job 'never'" in run("timeline", "never", exit_code=1)
    job.delete()


def test_files_that_calls_have_left(cluster: Cluster, folder: Path) -> None:
    job = submit(
        [delayed(lab.leaves)(i) for i in range(3)],
        cluster=cluster,
        name="leaves",
        calls_per_task=2,
        output_files=["out/*.txt", OutputFile("*.log", on="success")],
    )
    said = run("files", "leaves", "--output", "here", "--wait", "--timeout", "60")
    assert said == "6 files of job leaves in here\n"
    first, second = sorted(each.name for each in (folder / "here").iterdir())
    assert (folder / "here" / second / "out" / "2.txt").read_text() == "text 2"
    lines = run("files", "leaves").splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [
        ["0-1", "0.log", "5", "B"],
        ["0-1", "1.log", "5", "B"],
        ["0-1", "out/0.txt", "6", "B"],
        ["0-1", "out/1.txt", "6", "B"],
        ["2", "2.log", "5", "B"],
        ["2", "out/2.txt", "6", "B"],
    ]
    found = read("files", "leaves", "--match", "out/*")
    assert [(each["path"], each["task"], each["first"], each["calls"], each["size"]) for each in found] == [
        ("out/0.txt", first, 0, 2, 6),
        ("out/1.txt", first, 0, 2, 6),
        ("out/2.txt", second, 2, 1, 6),
    ]
    assert read("files", "leaves", "--match", "2.log", "--output", "there") == [f"there/{second}/2.log"]
    assert "are of --output" in run("files", "leaves", "--wait", exit_code=2)
    job.delete(wait=True)
    waiting = submit([delayed(lab.waits)(str(folder), 7)], cluster=cluster, name="waiting", output_files="*")
    assert "No files of job waiting" in run("files", "waiting")
    said = run("files", "waiting", "--output", "x", "--wait", "--timeout", "0.1", exit_code=1)
    assert "waited 0.1 s for the end of" in said
    waiting.delete()
