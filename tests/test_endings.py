"""However a client ends, it leaves nothing: its job, its blobs, its floor, its threads and its processes are gone.

The account is another process's, as on Azure; the clients are scripts of their own. Where a client can still speak all
goes at once; where it cannot, the service ends its job by the lease.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import cli_process
import psutil
import pytest
from click.testing import CliRunner

from joblib_azure.cli import main
from joblib_azure.cluster import Cluster
from joblib_azure.cluster.floor import floor_of, without_floor
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.errors import ResourceNotFoundError
from joblib_azure.local.host import LocalHost

#: Seconds that a client may take to end on a busy machine, once it was told to; a second or two on an idle one.
SOON = 45.0
_MARK = "JOBLIB_AZURE_TEST_MARK"

# Signals as a terminal's programs have them: whoever runs the tests in the background, or by nohup, has some ignored.
PRELUDE = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
import numpy as np
from joblib import Parallel, delayed, parallel_config
import joblib_azure
from joblib_azure.registry import close_sessions

def say(text):
    print(text, flush=True)

def ours():
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("joblib_azure"))

def quiet(seconds=15):
    # Threads end by themselves once they are told to.
    end = time.monotonic() + seconds
    while ours() and time.monotonic() < end:
        time.sleep(0.05)
    return ours()

def calls(n=4, seconds=60):
    for i in range(n):
        yield delayed(time.sleep)(seconds)

def on_thread(work, **settings):
    def run():
        # Which backend is meant is each thread's own affair.
        with parallel_config("azure", cluster="cluster.json"):
            work()
    thread = threading.Thread(target=run, **settings)
    thread.start()
    return thread

def begun(work):
    # What is sent meanwhile has begun.
    say("warm %s" % Parallel()(delayed(abs)(-i) for i in range(2)))
    threading.Timer(1.5, say, ["begun"]).start()
    work()
"""


@pytest.fixture(scope="module")
def host() -> Iterator[LocalHost]:
    # Four minutes of the service's own intervals are a second: a pool without work has no nodes soon, and takes the end
    # of a floor right after its begin.
    with cli_process.account("--clock-rate", "240", "--timing-out-sizes", "Emulated_C2=0") as host:
        yield host


def _folder(host: LocalHost, path: Path, name: str, size: str = "Emulated_C1", **settings: object) -> Path:
    path.mkdir()
    more = {"poolSize.idleShutdown": 60, "jobLease": 60, **settings}
    flags = cli_process.init_flags(host, name, size, **more)
    files = ["--cluster", str(path / "cluster.json"), "--credentials", str(path / "credentials.json")]
    done = CliRunner().invoke(main, ["init", *files, *flags, "--dedicated-nodes", "1"])
    assert done.exit_code == 0, done.output
    return path


@pytest.fixture(scope="module")
def folder(host: LocalHost, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folder(host, tmp_path_factory.mktemp("endings") / "one", "endings")


def _cluster(folder: Path) -> Cluster:
    return Cluster(ClusterConfig.load(folder / "cluster.json"), AccountConfig.load(folder / "credentials.json"))


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    made = _cluster(folder)
    yield made
    made.delete()
    made.close()


@pytest.fixture(autouse=True)
def each_by_itself(cluster: Cluster) -> Iterator[None]:
    """Remove what a test that failed has left: it is no fault of the next one's."""
    yield
    for job in cluster.batch.jobs(cluster.config.name):
        cluster.batch.end_job(job.id, delete=True)
    for name in containers(cluster):
        cluster.blobs.delete_container(name)
    try:
        left = cluster.batch.pool(cluster.config.name).autoscale
    except ResourceNotFoundError:  # no test has used it yet
        return
    if left is not None and floor_of(left.formula) is not None:
        time.sleep(1)
        cluster.batch.enable_autoscale(cluster.config.name, without_floor(left.formula))


class Client:
    """A script that is run in a folder with a cluster.json, and what it leaves."""

    def __init__(self, folder: Path, body: str) -> None:
        self.mark = uuid4().hex
        indented = "\n".join(f"        {line}" for line in body.strip("\n").splitlines())
        text = f"{PRELUDE}\nif __name__ == '__main__':\n    with parallel_config('azure', cluster='cluster.json'):\n"
        program = [sys.executable, "-c", f"{text}{indented}\n"]
        self.running = cli_process.Running(folder, program=program, **{_MARK: self.mark})
        self.process = self.running.process

    def expect(self, text: str, seconds: float = 60) -> None:
        self.running.expect(text, seconds)

    def end(self, seconds: float = SOON) -> str:
        begun = time.monotonic()
        self.running.end(seconds)
        print(self.running.output)  # where a test fails, what the client said of it
        assert time.monotonic() - begun < seconds, self.running.output
        assert self.processes() == []
        return self.running.output

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.running.__exit__()


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.1)
    return found


def jobs(cluster: Cluster) -> list[str]:
    return [f"{job.id}: {job.state}" for job in cluster.batch.jobs(cluster.config.name)]


def containers(cluster: Cluster) -> list[str]:
    return [each.name for each in cluster.blobs.containers("joblib-2")]


def floor(cluster: Cluster) -> Any:
    autoscale = cluster.batch.pool(cluster.config.name).autoscale
    assert autoscale is not None
    return floor_of(autoscale.formula)


def nothing_is_left(cluster: Cluster) -> None:
    # The service itself takes a moment to end what was ended.
    until(lambda: not jobs(cluster), 10, f"jobs are left: {jobs(cluster)}")
    assert containers(cluster) == []
    assert floor(cluster) is None


def odd(said: str) -> list[str]:
    """What a client says that is none of its business: a thread that calls are taken from is told so."""
    told = [line for line in said.splitlines() if re.match(r"[\w.]*(Error|Exception|Interrupt|Warning)\b", line)]
    ours = ("joblib_azure.errors.SessionClosedError", "Exception in thread Thread-1")
    # The end of the interpreter may cut short what a thread is just writing.
    return [line for line in told if not line.startswith(ours) and not ours[1].startswith(line)]


RUNS = "begun(lambda: Parallel()(calls()))"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, None), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, -signal.SIGHUP)]
)
def test_a_signal(number: int, code: int | None, folder: Path, cluster: Cluster) -> None:
    with Client(folder, RUNS) as client:
        client.expect("begun")
        assert jobs(cluster)
        assert floor(cluster) is not None
        client.process.send_signal(number)
        said = client.end()
        # Whoever started it sees the signal, as without this package.
        assert client.process.returncode == code or (code is None and "KeyboardInterrupt" in said)
    nothing_is_left(cluster)


OWN = """
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
begun(lambda: Parallel()(calls()))
"""
FORKED = """
import signal
Parallel()(delayed(abs)(-i) for i in range(2))
child = os.fork()
if not child:
    time.sleep(60)
os.kill(child, signal.SIGTERM)
say("the child: %d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
say("then %s" % Parallel()(delayed(abs)(-i) for i in range(3)))
time.sleep(1)  # a pool takes one floor in 30 s, here in an eighth of one: its nodes are not to be let go before
"""


def test_a_signal_that_has_a_meaning_keeps_it(folder: Path, cluster: Cluster) -> None:
    with Client(folder, OWN) as client:
        client.expect("begun")
        client.process.terminate()
        client.end()
        assert client.process.returncode == 4
    nothing_is_left(cluster)


def test_a_forked_child_that_is_terminated_ends_nothing(folder: Path, cluster: Cluster) -> None:
    with Client(folder, FORKED) as client:
        client.expect("then [0, 1, 2]")
        assert "the child: -15" in client.end()
    nothing_is_left(cluster)


SUBMITS = """
def slow():
    for i in range(1000):
        time.sleep(0.05)
        yield delayed(abs)(i)
threading.Timer(3, say, ["begun"]).start()
joblib_azure.submit(slow(), cluster="cluster.json", name="half")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_a_submission(number: int, folder: Path, cluster: Cluster) -> None:
    with Client(folder, SUBMITS) as client:
        client.expect("begun")
        until(lambda: jobs(cluster), 30, "nothing is submitted")
        client.process.send_signal(number)
        client.end()
    nothing_is_left(cluster)
    assert list(cluster.blobs.containers("joblib-job")) == []


RAISES = """
def source():
    yield from calls(3)
    raise OSError("the disk is gone")
begun(lambda: Parallel()(source()))
"""
CONSUMED = """
def consume():
    for value in Parallel(return_as="generator")(calls(6, 0.3)):
        raise OSError("the disk is gone")
begun(consume)
"""


@pytest.mark.parametrize("body", [RAISES, CONSUMED], ids=["in its generator", "while it consumes"])
def test_an_exception_of_the_users(body: str, folder: Path, cluster: Cluster) -> None:
    with Client(folder, body) as client:
        client.expect("begun" if "consume" not in body else "the disk is gone")
        said = client.end()
        assert client.process.returncode == 1
        assert "OSError: the disk is gone" in said
    nothing_is_left(cluster)


@pytest.fixture
def nodeless(host: LocalHost, tmp_path: Path) -> Iterator[tuple[Path, Cluster]]:
    """A pool that is not given a node for 15 s: its clients wait."""
    path = _folder(host, tmp_path / "nodeless", f"nodeless-{uuid4().hex[:8]}", "Emulated_C2")
    made = _cluster(path)
    yield path, made
    made.delete()
    made.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_nodes_start(number: int, nodeless: tuple[Path, Cluster]) -> None:
    folder, cluster = nodeless
    with Client(folder, "Parallel()(calls())") as client:
        _waits(cluster)
        client.process.send_signal(number)
        client.end()
    nothing_is_left(cluster)


def _waits(cluster: Cluster) -> None:
    def asked() -> bool:
        return any(pool.id == cluster.config.name and floor(cluster) for pool in cluster.batch.pools())

    until(asked, 40, "the client asks for no node")
    time.sleep(1)  # Of the 30 s between two floors this is more than an eighth of a second.


# What is left to itself, and ends with the interpreter.
THREAD = "on_thread(lambda: Parallel()(calls()), daemon=True)"


def test_the_end_of_the_interpreter_while_a_thread_waits_for_nodes(nodeless: tuple[Path, Cluster]) -> None:
    folder, cluster = nodeless
    with Client(folder, f"{THREAD}\nsys.stdin.readline()\nsay('ends')") as client:
        _waits(cluster)
        client.running.type("\n")
        client.expect("ends")
        assert odd(client.end()) == []
        assert client.process.returncode == 0
    nothing_is_left(cluster)


PENDING = """
def large(i):
    return np.full(1 << 20, float(i))
# Not garbage before the end.
sys.modules["kept"] = found = Parallel(return_as="generator")(delayed(large)(i) for i in range(40))
say("first %g" % next(found)[0])
"""
UPLOAD = """
data = [np.random.default_rng(i).random(100 << 17) for i in range(4)]
def work():
    Parallel()(delayed(np.sum)(each) for each in data)
Parallel()(delayed(abs)(-i) for i in range(2))
on_thread(work, daemon=True)
time.sleep(1)
say("sends with %s" % any("upload" in name for name in ours()))
"""
SYS_EXIT = """
def work():
    for value in Parallel(return_as="generator")(calls(8, 0.3)):
        say("consumed")
        sys.exit(3)
on_thread(work).join()
say("the thread has ended")
"""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (PENDING, "first 0"),
        (UPLOAD, "sends with True"),
        (SYS_EXIT, "the thread has ended"),
        (f"Parallel()(calls(2, 0))\n{THREAD}\ntime.sleep(2)\nsay('ends')", "ends"),
    ],
    ids=["with results that nobody has taken", "within an upload", "after sys.exit in a thread", "within a call"],
)
def test_the_end_of_the_interpreter(body: str, said: str, folder: Path, cluster: Cluster) -> None:
    with Client(folder, body) as client:
        client.expect(said)
        rest = client.end(40)
        assert client.process.returncode == 0, rest
        assert odd(rest) == [], rest
    nothing_is_left(cluster)


CLOSES = """
Parallel()(delayed(abs)(-i) for i in range(3))
found = Parallel(return_as="generator")(calls(4, 0.2))
next(found)
say("has %s" % bool(ours()))
close_sessions()
del found
say("left %s" % quiet())
"""


def test_all_threads_end_with_the_session(folder: Path, cluster: Cluster) -> None:
    with Client(folder, CLOSES) as client:
        said = client.end(60)
        assert "has True" in said
        assert "left []" in said, said
    nothing_is_left(cluster)


@pytest.mark.filterwarnings("default")  # of the kernel's client
@pytest.mark.parametrize("how", ["restart", "SIGTERM", "interrupt"])
def test_a_notebook(how: str, folder: Path, cluster: Cluster) -> None:
    pytest.importorskip("ipykernel")
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(cwd=str(folder), env=cli_process.environment())
    # It sends SIGTERM after half of that, and then SIGKILL; 5 s are little on a busy machine.
    manager.shutdown_wait_time = SOON
    within = "with parallel_config('azure', cluster='cluster.json'):"
    try:
        client.execute(f"{PRELUDE}\n{within} Parallel()(delayed(abs)(-i) for i in range(2))", reply=True, timeout=60)
        client.execute(f"{within} Parallel()(calls())")
        until(lambda: _running(cluster), 20, "the cell does not run")
        begun = time.monotonic()
        if how == "restart":
            manager.restart_kernel()
        elif how == "SIGTERM":
            manager.signal_kernel(signal.SIGTERM)
            until(lambda: not manager.is_alive(), SOON, "the kernel does not end")
        else:
            manager.interrupt_kernel()
            reply = client.get_shell_msg(timeout=SOON)
            assert reply["content"]["ename"] == "KeyboardInterrupt", reply
            # The session is the next cell's; the kernel's end is its own.
            until(lambda: not _running(cluster), 10, "calls go on")
            assert jobs(cluster)
            manager.shutdown_kernel()
        assert time.monotonic() - begun < SOON
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    nothing_is_left(cluster)


def _running(cluster: Cluster) -> int:
    counts = [cluster.batch.task_counts(job.id) for job in cluster.batch.jobs(cluster.config.name)]
    return sum(each.running + each.active for each in counts)


def test_a_client_without_last_words(folder: Path, cluster: Cluster) -> None:
    """Its job ends by its lease, and its pool has no nodes once its floor is over."""
    exits = "begun(lambda: (threading.Timer(2.5, os._exit, [9]).start(), Parallel()(calls())))"
    with Client(folder, RUNS) as one, Client(folder, exits) as two:
        one.expect("begun")
        one.process.kill()
        two.expect("begun")
        one.end(), two.end()
        assert (one.process.returncode, two.process.returncode) == (-signal.SIGKILL, 9)
    died = datetime.now(timezone.utc)
    left = jobs(cluster)
    assert len(left) == 2
    raised = floor(cluster)
    config = cluster.config
    most = config.node_timeout + 2 * config.pool_size.evaluation_interval
    assert raised.until - died < timedelta(seconds=most)
    until(lambda: not jobs(cluster), config.job_lease + 10, "the lease is over, and its job is not")
    for job in left:
        details = cluster.batch.job(job.partition(":")[0])
        assert details.reason == "MaxWallClockTimeExpiry"
        assert details.ended is not None
        assert details.ended - details.created < timedelta(seconds=config.job_lease + 5)
    # Its deadline comes.
    pool = cluster.batch.pool(config.name)
    assert pool.autoscale is not None
    cluster.batch.enable_autoscale(config.name, without_floor(pool.autoscale.formula))
    until(lambda: not cluster.nodes(), 60, f"nodes are left: {cluster.nodes()}")
    for job in left:
        cluster.batch.end_job(job.partition(":")[0], delete=True)
    for name in containers(cluster):
        cluster.blobs.delete_container(name)


def test_a_pool_without_its_client_has_no_nodes(folder: Path, cluster: Cluster) -> None:
    with Client(folder, RUNS) as client:
        client.expect("begun")
        assert cluster.nodes()
        client.process.terminate()
        client.end()
    nothing_is_left(cluster)
    until(lambda: not cluster.nodes(), 60, f"nodes are left: {cluster.nodes()}")
