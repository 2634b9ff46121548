"""What a person is told when something fails: what happened, where, what to do next, and the end of the stderr."""

from __future__ import annotations

import ast
import json
import pickle
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cli_lab
import cli_process
import click
import errors_lab as lab
import pytest
from click.testing import CliRunner
from cluster_lab import Answer, Between
from joblib import Parallel, delayed, parallel_config
from jobs_lab import until

from joblib_azure import Cluster, Job, LocalCluster, errors, submit
from joblib_azure.cli import main
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.errors import (
    AuthenticationError,
    CallExitedError,
    JobError,
    JoblibAzureError,
    NodesUnavailableError,
    RemoteTraceback,
    ResultPicklingError,
    SessionClosedError,
    TaskFailedError,
    TaskPicklingError,
    WorkerDiedError,
)
from joblib_azure.local.host import LocalHost
from joblib_azure.registry import close_sessions, session_for
from joblib_azure.service import pools

SECONDS = 60.0
PACKAGE = Path(errors.__file__).parent


@dataclass(frozen=True, kw_only=True)
class Told:
    """A fault of a call, and what is told of it.

    Parameters
    ----------
    error : type
    what, then : str
        Found in the message: what happened, and what to do.
    frames : tuple of str
        Functions of the remote traceback, from its first frame to its last; empty where there is none.
    remote : str
        Found in the remote traceback.
    tail : str
        Of the task's stderr.
    """

    fault: Any
    error: type[Exception]
    what: str
    then: str = ""
    frames: tuple[str, ...] = ()
    remote: str = ""
    tail: str = ""


CALLS = {
    "its own exception": Told(
        fault=lab.raises,
        error=ValueError,
        what="^a bad row$",
        frames=("raises", "only", "raises"),
        remote="KeyError: 'k'\n\nThe above exception was the direct cause",
    ),
    "one below another Parallel": Told(
        fault=lab.raises_below,
        error=ValueError,
        what="^a bad row$",
        frames=("raises", "only", "raises_below", "raises"),
    ),
    "os._exit": Told(
        fault=lab.exits,
        error=WorkerDiedError,
        what="a call killed its worker: the process that ran it ended with exit code 3",
        then="for memory let fewer calls run at once",
        tail="what the call said before",
    ),
    "a signal": Told(
        fault=lab.killed,
        error=WorkerDiedError,
        what="a call killed its worker: the process that ran it was killed by .*SIGKILL",
        then="for memory let fewer calls run at once",
        tail="what the call said before",
    ),
    "a result that cannot be sent": Told(
        fault=lab.returns_a_lock,
        error=ResultPicklingError,
        what=r"its result .*lock.* cannot be pickled",
        then="Return what can be pickled",
    ),
    "an exception that cannot be sent": Told(
        fault=lab.raises_two_words,
        error=ResultPicklingError,
        what="the call raised TwoWords: no way",
        then="Give it a __reduce__",
        frames=("only", "raises_two_words"),
        remote="errors_lab.TwoWords: no way",
    ),
    "SystemExit": Told(
        fault=lab.leaves,
        error=CallExitedError,
        what=r"SystemExit\(4\)",
        then="Return, or raise another exception",
        frames=("only", "leaves"),
        remote="SystemExit: 4",
    ),
    "a module that is not there": Told(
        fault=lab.imports,
        error=ModuleNotFoundError,
        what="No module named 'no_such_module'",
        frames=("only", "imports"),
        remote="name its package in pythonPackages",
    ),
}


def functions(remote: str) -> tuple[str, ...]:
    """Return the functions of a traceback's frames; all of them are the user's."""
    found = re.findall(r'^  File "(.*)", line \d+, in (\S+)$', remote, re.MULTILINE)
    assert {Path(path).name for path, _ in found} <= {"errors_lab.py"}
    return tuple(name for _, name in found)


def check_call(caught: BaseException, told: Told, call: int) -> dict[str, Any]:
    """Check what a call's failure tells, and return where it was."""
    assert type(caught) is told.error
    text = "".join(traceback.format_exception(caught))
    assert re.search(told.what, caught.message if isinstance(caught, JoblibAzureError) else str(caught))
    assert told.then in text
    if told.tail:
        assert f"Its stderr ends:\n{told.tail}\n" in str(caught)
    where = getattr(caught, "context", {})
    remote = caught.__cause__
    if isinstance(remote, RemoteTraceback):
        if told.frames:
            assert functions(remote.text) == told.frames
        assert told.remote in remote.text
        # The call's own exception is told twice, as at home: where it was raised, and where it is raised here.
        assert text.count("Traceback (most recent call last)") <= 3
        where = remote.context
    else:
        assert not told.frames
    assert (where["call"], where["node"][:6]) == (call, "tvmps_")
    assert where["job"].startswith("joblib-")
    assert str(where["task"]) in text
    commands_exist(text)
    return where


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_fails(name: str, cluster: LocalCluster) -> None:
    told = CALLS[name]
    with parallel_config("azure", cluster=cluster), pytest.raises(told.error) as caught:
        Parallel(batch_size=1)(delayed(lab.only)(i, lab.AT, told.fault) for i in range(lab.CALLS))
    check_call(caught.value, told, lab.AT)
    # No other process has this cluster's keys, so that there is no command to see more.
    assert "`joblib-azure" not in "".join(traceback.format_exception(caught.value))


def test_a_call_among_others_of_its_chunk(cluster: LocalCluster) -> None:
    with parallel_config("azure", cluster=cluster), pytest.raises(ValueError) as caught:
        Parallel(batch_size=5)(delayed(lab.only)(i, 7, lab.raises) for i in range(10))
    check_call(caught.value, CALLS["its own exception"], 7)


@pytest.mark.parametrize(
    ("argument", "error", "what"),
    [
        (
            lab.NotSendable(),
            TaskPicklingError,
            r"OSError: a handle of this process.*open it inside the call \[call=3\]",
        ),
        (lab.Unloadable(), ValueError, r"invalid literal"),
    ],
)
def test_an_argument_that_does_not_arrive(
    argument: object, error: type[Exception], what: str, cluster: LocalCluster
) -> None:
    with parallel_config("azure", cluster=cluster), pytest.raises(error, match=what) as caught:
        Parallel(batch_size=1)(delayed(lab.takes)(argument if i == lab.AT else i) for i in range(lab.CALLS))
    if isinstance(caught.value.__cause__, RemoteTraceback):
        assert "while the call's function and arguments were unpickled on the node" in str(caught.value.__cause__)
        assert caught.value.__cause__.context["call"] == lab.AT


# detached jobs, and the command line ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def host() -> Iterator[LocalHost]:
    with cli_process.account() as host:
        yield host


@pytest.fixture(scope="module")
def folder(host: LocalHost, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("project")
    done = cli_process.run(made, "init", *cli_process.init_flags(host, "pool"), "--dedicated-nodes", "1")
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    cli_lab.at_home(folder, monkeypatch)
    yield folder
    close_sessions()


@pytest.fixture
def pool(at_home: Path) -> Iterator[Cluster]:
    with made(at_home) as found:
        yield found


def made(folder: Path, account: AccountConfig | None = None, **more: Any) -> Cluster:
    values = json.loads((folder / "cluster.json").read_text())
    config = ClusterConfig.read({**values, **more}, "cluster.json")
    return Cluster(config, account or AccountConfig.load(folder / "credentials.json"))


def run(command: str, exit_code: int = 0) -> str:
    done = CliRunner().invoke(main, command.removeprefix("joblib-azure ").split())
    assert done.exit_code == exit_code, done.output
    assert 'File "' not in done.stderr.partition("Traceback")[0]
    return done.output


def test_calls_of_a_detached_job(pool: Cluster) -> None:
    calls = [delayed(lab.only)(i, i, told.fault) for i, told in enumerate(CALLS.values())]
    job = submit([*calls, delayed(lab.takes)("well")], cluster=pool, name="faults", calls_per_task=2)
    found = list(job.results(on_error="return", timeout=SECONDS))
    assert found.pop() == "well"
    for number, (caught, told) in enumerate(zip(found, CALLS.values(), strict=True)):
        where = check_call(caught, told, number)
        text = "".join(traceback.format_exception(caught))
        # Whoever collects is told of the node's frames, and not how this client took the error out.
        assert "delivery.py" not in text
        command = f"joblib-azure job logs faults {where['task']}"
        assert f"`{command}` shows" in text
        assert told.tail in run(command)

    assert "`joblib-azure job results faults --on-error return` tells how calls failed" in run("job show faults")
    said = run("job results faults", exit_code=1)
    assert "call 0 of job 'faults' failed:" in said
    assert "in raises\n" in said
    assert "ValueError: a bad row" in said
    assert "`joblib-azure job results faults --on-error drop` has the others" in said
    assert run("job results faults --on-error drop") == "'well'\n"
    lines = [json.loads(line) for line in run("job results faults --on-error return --json").splitlines()]
    assert [line["call"] for line in lines] == list(range(len(found) + 1))
    assert lines[-1] == {"call": len(found), "result": "well"}
    died = lines[list(CALLS).index("os._exit")]["error"]
    assert (died["type"], died["node"][:6], died["call"]) == ("WorkerDiedError", "tvmps_", 2)
    assert lines[0]["error"]["traceback"].count("in raises") == 2
    # What is left out does not shift the numbers of the others.
    assert json.loads(run("job results faults --on-error drop --json"))["call"] == len(found)

    for container in (job.inputs, job.outputs):
        pool.blobs.delete_container(container)
    for command in ("show", "results", "timeline"):
        said = run(f"job {command} faults", exit_code=1)
        assert "has lost its blobs" in said
        assert "`joblib-azure job delete faults` removes what is left" in said
    run("job delete faults --yes")
    with pytest.raises(JobError, match=r"submit its calls again\. `joblib-azure job list`"):
        job.status()


# what a session and a job cannot do without ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Taken:
    """Something that somebody takes away while calls run, and what is told of it."""

    take: Callable[[Cluster, str, tuple[str, str]], object]
    error: type[JoblibAzureError]
    what: str
    then: str
    ids: tuple[str, ...] = ("job",)
    more: dict[str, Any] = field(default_factory=dict)


def terminate_tasks(cluster: Cluster, job: str, containers: tuple[str, str]) -> None:
    for task in cluster.batch.tasks(job):
        if task.state == "running":
            cluster.batch.terminate_task(job, task.id)


TAKEN = {
    "its job is ended": Taken(
        take=lambda cluster, job, containers: cluster.batch.end_job(job, delete=False, reason="Tidy"),
        error=SessionClosedError,
        what=r"the Batch job of this session was ended \(Tidy\) while its calls ran",
        then="Run them again",
        ids=("job", "pool"),
    ),
    "its job is deleted": Taken(
        take=lambda cluster, job, containers: cluster.batch.end_job(job, delete=True),
        error=SessionClosedError,
        what="the Batch job of this session was (deleted|ended)",
        then="Run them again",
        ids=("job", "pool"),
    ),
    "its results are removed": Taken(
        take=lambda cluster, job, containers: cluster.blobs.delete_container(containers[1]),
        error=SessionClosedError,
        what="a storage container that this session needs is gone",
        then="`joblib-azure storage list`",
    ),
    "its task is ended": Taken(
        take=terminate_tasks,
        error=TaskFailedError,
        what=r"a Batch task was lost once .*User Request",
        then="shows what it wrote.\nIts stderr ends:\nabout to sleep\n",
        ids=("call", "job", "task", "pool", "node", "exit_code"),
        more={"retries": 0},
    ),
    "its pool is deleted": Taken(
        take=lambda cluster, job, containers: cluster.batch.delete_pool(cluster.config.name),
        error=NodesUnavailableError,
        what="pool 'pool-gone' is gone: somebody has deleted it",
        then="`joblib-azure cluster create`",
        ids=("job", "pool"),
        more={"name": "pool-gone"},
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_somebody_takes_away(name: str, at_home: Path) -> None:
    taken = TAKEN[name]
    with made(at_home, **taken.more) as cluster, parallel_config("azure", cluster=cluster):
        Parallel()(delayed(abs)(i) for i in range(2))
        session = session_for(cluster)
        containers = session.inputs, session.outputs

        def take() -> None:
            until(lambda: cluster.batch.task_counts(session.job).running, "a task runs")
            time.sleep(1)  # and has said something
            taken.take(cluster, session.job, containers)

        thread = threading.Thread(target=take)
        thread.start()
        begun = time.monotonic()
        with pytest.raises(taken.error, match=taken.what) as caught:
            Parallel()(delayed(lab.speaks_and_sleeps)(40) for _ in range(2))
        thread.join()
        # Long before the patience that an outage is met with.
        assert time.monotonic() - begun < 35
    assert type(caught.value) is taken.error
    assert taken.then in str(caught.value)
    assert set(taken.ids) <= set(caught.value.context)
    commands_exist(str(caught.value))
    if name == "its task is ended":
        command = re.search("`(joblib-azure cluster file [^`]+)`", str(caught.value))
        assert command is not None
        assert "about to sleep" in run(command[1])


def test_the_end_of_a_log_does_not_hold_up_its_error(at_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that does not answer for the log, which is only asked for where something has failed already."""
    monkeypatch.setattr(pools, "_TAIL_SECONDS", 0.5)
    account = AccountConfig.load(at_home / "credentials.json")
    over = threading.Event()

    def hangs(verb: str, path: str, given: Answer | None) -> None:
        if given is None and "stderr.txt" in path:
            over.wait(30)

    with Between(str(account.batch_endpoint).rstrip("/"), hangs) as between:
        slow = account.model_copy(update={"batch_endpoint": between.endpoint})
        with made(at_home, slow, retries=0) as cluster, parallel_config("azure", cluster=cluster):
            Parallel()(delayed(abs)(i) for i in range(2))
            job = session_for(cluster).job

            def take() -> None:
                until(lambda: cluster.batch.task_counts(job).running, "a task runs")
                terminate_tasks(cluster, job, ("", ""))

            thread = threading.Thread(target=take)
            thread.start()
            begun = time.monotonic()
            with pytest.raises(TaskFailedError, match="User Request") as caught:
                Parallel()(delayed(time.sleep)(40) for _ in range(2))
            assert time.monotonic() - begun < 20
            thread.join()
            assert any("stderr.txt" in request for request in between.requests)
            over.set()
            close_sessions()
    assert "Its stderr ends" not in str(caught.value)


def test_a_start_task_that_fails(at_home: Path) -> None:
    with made(at_home, name="failing", commandLine=["echo no disk >&2; exit 5"]) as cluster:
        with parallel_config("azure", cluster=cluster), pytest.raises(NodesUnavailableError) as caught:
            Parallel()(delayed(abs)(i) for i in range(2))
        assert "its start task's stderr ends:\nno disk\n" in str(caught.value)
        command = re.search("`(joblib-azure cluster file [^`]+)`", str(caught.value))
        assert command is not None
        assert "no disk" in run(command[1])
        cluster.delete()


@pytest.mark.parametrize("which", ["AccountKey=", '"batchKey": "'])
def test_a_wrong_key(which: str, at_home: Path) -> None:
    credentials = (at_home / "credentials.json").read_text()
    assert which in credentials
    wrong = at_home / "wrong.json"
    wrong.write_text(credentials.replace(which, f"{which}AAAA"))
    with (
        pytest.raises(AuthenticationError, match="refused the credentials") as caught,
        made(at_home, AccountConfig.load(wrong)) as cluster,
        parallel_config("azure", cluster=cluster),
    ):
        Parallel()(delayed(abs)(i) for i in range(2))
    assert "Check the account's name and key" in str(caught.value)
    assert "`joblib-azure doctor`" in str(caught.value)


def test_a_job_whose_task_is_ended(pool: Cluster) -> None:
    job = submit([delayed(lab.speaks_and_sleeps)(40)], cluster=pool, name="ended", retries=0)
    (task,) = until(lambda: [task for task in job.tasks() if task.state == "running"], "its task runs")
    until(lambda: "about to sleep" in run(f"job logs ended {task.id}"), "it has said something")
    pool.batch.terminate_task(job.id, task.id)
    with pytest.raises(TaskFailedError, match="without the outcomes of 1 of its calls") as caught:
        Job.attach("ended", pool).result(0, timeout=SECONDS)
    where = caught.value.context
    assert (where["call"], where["task"], where["job"], where["pool"]) == (0, task.id, job.id, "pool")
    assert "Its stderr ends:\nabout to sleep\n" in str(caught.value)
    assert f"`joblib-azure job logs ended {task.id}`" in str(caught.value)
    job.delete()


# all of them ----------------------------------------------------------------------------------------------


def every_error() -> list[type[JoblibAzureError]]:
    found, left = [], [JoblibAzureError]
    while left:
        found.append(left.pop())
        left += found[-1].__subclasses__()
    return [kind for kind in found if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", [*every_error(), RemoteTraceback])
def test_errors_keep_their_fields_when_they_are_pickled(kind: type[Any]) -> None:
    error = kind("it failed", job="j", task="t", node=None, call=0)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.context, again.args) == (str(error), {"job": "j", "task": "t", "call": 0}, error.args)


def test_what_is_added_to_an_error_is_told_once() -> None:
    error = JoblibAzureError("it failed.", job="first")
    error.locate(job="second", task="t", node=None)
    for _ in range(2):
        error.advise("Try again")
    assert str(error) == "it failed. Try again [job=first, task=t]"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def commands_exist(text: str) -> int:
    """Check that all commands that a text names are there, with their options; return how many there were."""
    found = re.findall(r"`joblib-azure ([^`]+)`", text)
    for line in found:
        words = line.split()
        command: click.Command = main
        while isinstance(command, click.Group) and words:
            name = words.pop(0)
            after = command.get_command(click.Context(command), name)
            assert after is not None, f"`joblib-azure {line}`: there is no command {name!r}"
            command = after
        options = {option for param in command.params for option in param.opts}
        assert {word for word in words if word.startswith("--")} <= options, f"`joblib-azure {line}`"
    return len(found)


def texts(path: Path) -> Iterator[str]:
    """Yield the texts of a module, with a word in place of what is filled in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "WORD" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_command_that_is_named_exists() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if "emulator" not in path.parts]
    assert sum(commands_exist(text) for path in files for text in texts(path)) > 40
    root = PACKAGE.parent
    for page in (root / "README.md", *(root / "docs").glob("*.md")):
        commands_exist(re.sub(r"`joblib-azure [^`]*(…|\||\n)[^`]*`", "", page.read_text(encoding="utf-8")))
