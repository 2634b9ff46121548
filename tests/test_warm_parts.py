"""The parts of a warm node by themselves: no cluster, but real processes, sockets and files."""

from __future__ import annotations

import _socket
import contextlib
import io
import os
import random
import selectors
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest
import warm_lab as lab
from hypothesis import given, settings
from hypothesis import strategies as st

import joblib_azure
from joblib_azure.environment.code import node_code
from joblib_azure.environment.plan import _CLIENT
from joblib_azure.node import begin, client, place, proc, warm
from joblib_azure.node.client import Channel, connect

NOBODY = 65534
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only an administrator can be two users")
PACKAGE = Path(joblib_azure.__file__).parent


def run_python(
    code: str, *arguments: str, variables: Mapping[str, str] = MappingProxyType({}), **how: Any
) -> subprocess.Popen[str]:
    """Start an interpreter that can import the node's side of the package, and little else of it."""
    environment = {**os.environ, "JOBLIB_AZURE_NODE": "1", "PYTHONPATH": str(PACKAGE.parent), **variables}
    command = [sys.executable, "-c", code, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment, **how)


# channels -----------------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    one, other = (Channel(each) for each in _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM))
    yield one, other
    one.close()
    other.close()


def receive(channel: Channel, count: int) -> list[tuple[dict[str, Any], list[int]]]:
    found = list(channel.messages())
    while len(found) < count:
        assert channel.read()
        found += channel.messages()
    return found


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(messages=st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=5), data=st.data())
def test_messages_come_whole_however_they_are_cut(messages: list[dict[str, Any]], data: st.DataObject) -> None:
    one, raw = socket.socketpair()
    other, receiving = socket.socketpair()
    with one, raw, other, receiving:
        sender, receiver = Channel(one), Channel(receiving)
        for message in messages:
            sender.send(message)
        one.shutdown(socket.SHUT_WR)
        stream = b"".join(iter(lambda: raw.recv(1 << 16), b""))
        found: list[dict[str, Any]] = []
        while stream:
            cut = data.draw(st.integers(1, len(stream)))
            other.sendall(stream[:cut])
            stream = stream[cut:]
            assert receiver.read()
            found += [message for message, _ in receiver.messages()]
        other.shutdown(socket.SHUT_WR)
        assert not receiver.read()
        assert found == messages


def test_descriptors_come_with_their_messages(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    pipes = [os.pipe() for _ in range(3)]
    reads = [read for read, _ in pipes]
    one.send({"first": 1}, reads[:1])
    one.send({"none": 0})
    one.send({"two": 2}, reads[1:])
    for fd in reads:
        os.close(fd)
    found = receive(other, 3)
    assert [(message, len(fds)) for message, fds in found] == [({"first": 1}, 1), ({"none": 0}, 0), ({"two": 2}, 2)]
    come = [fd for _, fds in found for fd in fds]
    for number, (fd, (_, write)) in enumerate(zip(come, pipes, strict=True)):
        os.write(write, bytes([number]))
        assert os.read(fd, 9) == bytes([number])
        assert not os.get_inheritable(fd)
        os.close(write)
        os.close(fd)


def test_a_message_of_more_than_a_socket_holds(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    read, write = os.pipe()
    message = {"large": os.urandom(3 << 20)}
    thread = threading.Thread(target=one.send, args=(message, [read]))
    thread.start()
    ((found, (fd,)),) = receive(other, 1)
    thread.join()
    assert found == message
    os.write(write, b"!")
    assert os.read(fd, 9) == b"!"
    for each in (read, write, fd):
        os.close(each)


def test_an_end_that_is_gone_is_told(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    other.close()
    assert not one.read()
    with pytest.raises(BrokenPipeError):
        one.send({"end": 0})


def test_nothing_to_read_is_no_end(pair: tuple[Channel, Channel]) -> None:
    one, _ = pair
    one.socket.setblocking(False)
    assert one.read()
    assert list(one.messages()) == []


# who may connect ----------------------------------------------------------------------------------------


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, with a path longer than the name of a socket may be."""
    top = Path(tempfile.mkdtemp())
    top.chmod(0o755)
    folder = top / ("long" * 30)
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(top)


def test_a_socket_with_a_long_path_is_found(open_folder: Path) -> None:
    assert connect(str(open_folder)) is None
    listener = begin.listen(open_folder)
    mode = (open_folder / client.SOCKET).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    channel = connect(str(open_folder))
    assert channel is not None
    assert client.peer_user(channel.socket) == os.getuid()
    channel.close()
    listener.close()
    assert connect(str(open_folder)) is None  # it is there, and nobody listens
    begin.listen(open_folder).close()  # and is replaced


CONNECTOR = """
import os, sys
from joblib_azure.node.client import connect
os.setuid(int(sys.argv[2]))
print(connect(sys.argv[1]))
"""
LISTENER = """
import sys, os
from pathlib import Path
from joblib_azure.node import begin
os.setuid(int(sys.argv[2]))
listener = begin.listen(Path(sys.argv[1]))
os.chmod(sys.argv[1] + "/socket", 0o777)
print("listens", flush=True)
sys.stdin.read()
"""


@needs_root
def test_another_user_cannot_connect(open_folder: Path) -> None:
    listener = begin.listen(open_folder)
    with run_python(CONNECTOR, str(open_folder), str(NOBODY)) as other:
        said, _ = other.communicate(timeout=lab.PATIENCE)
    assert said == "None\n"
    # Nor does this user believe somebody else who listens in its place.
    listener.close()
    open_folder.chmod(0o777)
    (open_folder / client.SOCKET).unlink()
    with run_python(LISTENER, str(open_folder), str(NOBODY)) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "listens\n"
        assert connect(str(open_folder)) is None
        other.communicate(timeout=lab.PATIENCE)


# the client ---------------------------------------------------------------------------------------------

COLD = """
import sys
print("cold", sys.stdin.read())
sys.exit(3)
"""


class Task:
    """A task's process, and the folder of the node code that it is started from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        target = folder / "joblib_azure" / "node" / "client.py"
        target.parent.mkdir(parents=True)
        shutil.copy(client.__file__, target)
        (folder / "__main__.py").write_text(COLD)
        self._command = [sys.executable, "-I", "-S", "-c", _CLIENT, str(folder)]

    def start(self) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=pipe, env={"OWN": "1"}, cwd="/usr")
        assert process.stdin is not None
        process.stdin.write(b"secret\n")
        process.stdin.close()
        process.stdin = None
        return process


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task(tmp_path / "code")


def accepted(listener: _socket.socket) -> Channel:
    fd, _ = listener._accept()  # type: ignore[attr-defined]
    return Channel(_socket.socket(fileno=fd))


def test_a_task_whose_supervisor_is_not_there_runs_by_itself(task: Task) -> None:
    with task.start() as process:
        out, err = process.communicate(timeout=lab.PATIENCE)
    assert (out, err, process.returncode) == (b"cold secret\n\n", b"", 3)
    begin.listen(task.folder).close()  # a socket without anybody behind it
    with task.start() as process:
        out, _ = process.communicate(timeout=lab.PATIENCE)
    assert (out, process.returncode) == (b"cold secret\n\n", 3)


def test_a_task_sends_what_it_is_and_ends_as_it_is_told(task: Task) -> None:
    listener = begin.listen(task.folder)
    with task.start() as process:
        channel = accepted(listener)
        ((request, _),) = receive(channel, 1)
        assert (request["environment"]["OWN"], request["cwd"], request["secrets"]) == ("1", "/usr", b"secret\n")
        assert request["begun"] <= time.time()
        pipes = [os.pipe() for _ in range(2)]
        channel.send({"streams": (1, 2)}, [read for read, _ in pipes])
        os.write(pipes[0][1], b"early ")
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 99) == b"early "  # as it comes
        os.write(pipes[0][1], b"out" * 20_000)
        os.write(pipes[1][1], b"err")
        channel.send({"end": 7})
        out, err = process.communicate(timeout=lab.PATIENCE)
        for pipe in pipes:
            for fd in pipe:
                os.close(fd)
    assert (out, err, process.returncode) == (b"out" * 20_000, b"err", 7)
    channel.close()
    listener.close()


def test_a_task_whose_host_is_gone_runs_anew(task: Task) -> None:
    listener = begin.listen(task.folder)
    with task.start() as process:
        channel = accepted(listener)
        receive(channel, 1)
        read, write = os.pipe()
        channel.send({"streams": (1,)}, [read])
        os.write(write, b"until then ")
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 99) == b"until then "
        channel.close()
        out, err = process.communicate(timeout=lab.PATIENCE)
    assert (out, process.returncode) == (b"cold secret\n\n", 3)
    assert b"running it anew" in err
    for fd in (read, write):
        os.close(fd)
    listener.close()


@pytest.mark.parametrize("size", [10, 4 << 20], ids=["small", "more than the socket holds"])
def test_a_supervisor_that_does_not_answer_is_not_waited_for(
    pair: tuple[Channel, Channel], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.3)
    begun = time.monotonic()
    assert client._serve(pair[0], {"environment": {"X": "x" * size}}) is None
    assert 0.2 < time.monotonic() - begun < 5


def test_the_client_imports_next_to_nothing() -> None:
    """Of the standard library even: each import is paid by every task."""
    code = (
        "import sys; before = set(sys.modules)\n"
        f"exec(compile(open({client.__file__!r}).read(), 'client', 'exec'), {{'__name__': 'client'}})\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    said = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True).stdout
    system = {"os", "stat", "_stat", "posixpath", "genericpath", "_collections_abc", "abc", "_abc", "os.path"}
    assert set(said.split()) - system <= {"__future__", "_socket", "select"}


# places -------------------------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a task on a node whose disk is a folder."""
    monkeypatch.setattr(place, "_ELSEWHERE", str(tmp_path / "var"))
    (tmp_path / "var").mkdir()
    (tmp_path / "disk" / "batch" / "tasks").mkdir(parents=True)
    return {"AZ_BATCH_NODE_ROOT_DIR": str(tmp_path / "disk" / "batch" / "tasks")}


def test_the_root_is_beside_batchs_and_this_users_alone(node: dict[str, str], tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        root = place.root(node)
    finally:
        os.umask(before)
    assert root == tmp_path / "disk" / "joblib_azure" / str(os.getuid())
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert stat.S_IMODE(root.parent.stat().st_mode) == 0o1777
    assert place.root(node) == root


def _open_to_others(mine: Path) -> None:
    mine.mkdir()
    mine.chmod(0o755)


def _somebody_elses(mine: Path) -> None:
    mine.mkdir(mode=0o700)
    os.chown(mine, NOBODY, NOBODY)


def _a_link(mine: Path) -> None:
    (mine.parent / "elsewhere").mkdir(mode=0o700)
    mine.symlink_to(mine.parent / "elsewhere")


TAKEN = [Path.touch, _open_to_others, _a_link, pytest.param(_somebody_elses, marks=needs_root)]


@pytest.mark.parametrize("take", TAKEN)
def test_a_root_that_somebody_has_taken_is_not_used(
    node: dict[str, str], tmp_path: Path, take: Callable[[Path], None]
) -> None:
    mine = tmp_path / "disk" / "joblib_azure" / str(os.getuid())
    mine.parent.mkdir()
    take(mine)
    elsewhere = place.root(node)
    assert elsewhere.parent.parent == tmp_path / "var"
    # Another node of the same machine has another.
    other = tmp_path / "other" / "joblib_azure" / str(os.getuid())
    other.parent.mkdir(parents=True)
    other.touch()
    assert place.root({"AZ_BATCH_NODE_ROOT_DIR": str(tmp_path / "other" / "batch" / "tasks")}) != elsewhere
    # Nor is there a third.
    elsewhere.rmdir()
    take(elsewhere)
    with pytest.raises(OSError):
        place.root(node)


def test_in_a_container_the_root_is_in_what_batch_shares_with_it(node: dict[str, str], tmp_path: Path) -> None:
    shared = tmp_path / "disk" / "batch" / "tasks" / "shared"
    shared.mkdir()
    root = place.root({**node, "AZ_BATCH_NODE_SHARED_DIR": str(shared), "JOBLIB_AZURE_CONTAINER": "1"})
    assert root == shared / "joblib_azure" / str(os.getuid())
    assert not (tmp_path / "disk" / "joblib_azure").exists()


# processes ----------------------------------------------------------------------------------------------

#: Its name is what a careless reader of /proc would take for the state and the group of another.
GROUP = """
import os, sys, time
with open("/proc/self/comm", "w") as file:
    file.write("x) Z 1 1 (y")
child = os.fork()
if child == 0:
    time.sleep(600)
dead = os.fork()
if dead == 0:
    os._exit(0)
os.waitid(os.P_PID, dead, os.WEXITED | os.WNOWAIT)
print(child, dead, flush=True)
sys.stdin.read()
"""


def test_what_proc_tells_of_a_group() -> None:
    with run_python(GROUP, start_new_session=True) as leader:
        assert leader.stdout is not None
        child, dead = map(int, leader.stdout.readline().split())
        try:
            assert set(proc.group_members(leader.pid)) == {leader.pid, child}
            assert not proc.ended(leader.pid)
            assert proc.ended(dead)  # although nobody has taken note
            assert proc.resident(child) > 1 << 20
            proc.set_priority(leader.pid, 7)
            assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in (leader.pid, child)] == [7, 7]
            assert os.getpriority(os.PRIO_PROCESS, 0) != 7
        finally:
            os.killpg(leader.pid, signal.SIGKILL)
    lab.until(lambda: proc.ended(child), "the child has ended")
    assert proc.ended(leader.pid)
    assert proc.resident(leader.pid) == 0
    assert proc.group_members(leader.pid) == []


def test_free_memory_is_a_part() -> None:
    assert 0 < proc.free_memory() <= 1


# the broker of cores ------------------------------------------------------------------------------------

TAKER = """
import sys
from pathlib import Path
from joblib_azure.node.cores import Cores
cores = Cores(Path(sys.argv[1]), int(sys.argv[2]))
print("asks", flush=True)
cores.take(int(sys.argv[3]))
print("has", flush=True)
sys.stdin.read()
cores.give_back()
"""
#: Takes and gives back for as long as its stdin is open, or so often; writes when it had how many.
STRESS = """
import os, random, sys, threading, time
from pathlib import Path
from joblib_azure.node.cores import Cores
folder, most, seed, *wanted = sys.argv[1:]
random.seed(int(seed))
log = os.open(folder + ".log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for number in map(int, wanted):
    cores = Cores(Path(folder), int(most))
    cores.take(number)
    begun = time.time()
    time.sleep(random.uniform(0, 0.01))
    os.write(log, f"{min(number, int(most))} {begun} {time.time()}\\n".encode())
    cores.give_back()
"""


class Taker:
    """A process that takes cores and keeps them until it is told."""

    def __init__(self, folder: Path, most: int, wanted: int) -> None:
        self.process = run_python(TAKER, str(folder), str(most), str(wanted))
        assert self._line() == "asks\n"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def has(self) -> bool:
        """Wait for its cores."""
        return self._line() == "has\n"

    def waits(self, seconds: float = 0.2) -> bool:
        """Tell whether it has none after a while, which is long against its look for them."""
        with selectors.DefaultSelector() as selector:
            assert self.process.stdout is not None
            selector.register(self.process.stdout, selectors.EVENT_READ)
            return not selector.select(seconds)

    def end(self, *, kill: bool = False) -> None:
        if kill:
            self.process.kill()
        self.process.communicate(timeout=lab.PATIENCE)


@pytest.fixture
def taker(tmp_path: Path) -> Iterator[Callable[..., Taker]]:
    takers: list[Taker] = []

    def make(most: int, wanted: int) -> Taker:
        takers.append(Taker(tmp_path / "cores", most, wanted))
        return takers[-1]

    yield make
    for each in takers:
        if each.process.poll() is None:
            each.end(kill=True)


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "in peace"])
def test_what_a_holder_had_is_free_when_it_ends(taker: Callable[..., Taker], kill: bool) -> None:
    first = taker(2, 2)
    assert first.has()
    second = taker(2, 1)
    assert second.waits()
    first.end(kill=kill)
    assert second.has()
    third = taker(2, 1)
    assert third.has()  # the other one


def test_one_that_dies_while_it_gathers_is_in_nobodys_way(taker: Callable[..., Taker]) -> None:
    first, second = taker(3, 1), taker(3, 3)
    assert first.has()
    assert second.waits()  # with two of three, and the gate
    third = taker(3, 2)
    assert third.waits()
    second.end(kill=True)
    assert third.has()


def test_one_that_needs_all_is_not_starved_by_those_that_need_one(tmp_path: Path, taker: Callable[..., Taker]) -> None:
    folder = tmp_path / "cores"
    small = [run_python(STRESS, str(folder), "2", str(n), *["1"] * 2000) for n in range(3)]
    try:
        lab.until(lambda: (tmp_path / "cores.log").exists(), "the small ones run")
        for _ in range(5):
            begun = time.monotonic()
            big = taker(2, 2)
            assert big.has()
            assert time.monotonic() - begun < 2
            big.end()
        assert all(each.poll() is None for each in small)  # they went on all the time
    finally:
        for each in small:
            each.kill()
            each.communicate(timeout=lab.PATIENCE)


def test_more_than_there_are_is_all(taker: Callable[..., Taker]) -> None:
    first = taker(2, 5)
    assert first.has()
    assert taker(2, 1).waits()


@settings(max_examples=6, deadline=None)
@given(most=st.integers(1, 4), seed=st.integers(0, 1000), tasks=st.integers(2, 5))
def test_whatever_is_asked_for_nobody_waits_for_ever(most: int, seed: int, tasks: int) -> None:
    generator = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        wants = [[str(generator.randint(1, most + 1)) for _ in range(15)] for _ in range(tasks)]
        started = [run_python(STRESS, f"{folder}/c", str(most), str(n), *each) for n, each in enumerate(wants)]
        try:
            for each in started:
                _, said = each.communicate(timeout=lab.PATIENCE)
                assert (each.returncode, said) == (0, "")
        finally:
            for each in started:
                each.kill()
                each.communicate()
        lines = [line.split() for line in Path(f"{folder}/c.log").read_text().splitlines()]
    assert len(lines) == 15 * tasks
    steps = [(float(begun), int(n)) for n, begun, _ in lines] + [(float(ended), -int(n)) for n, _, ended in lines]
    held = 0
    for _, step in sorted(steps):
        held += step
        assert held <= most


# runners ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The node code, as a job preparation task unpacks it."""
    folder = tmp_path_factory.mktemp("node") / "code" / "key"
    zipfile.ZipFile(io.BytesIO(node_code().data)).extractall(folder)
    (folder / begin.READY).touch()
    return folder


@pytest.fixture
def code(unpacked: Path, tmp_path: Path) -> Iterator[Path]:
    """A code folder below a root of its own; all processes that run from it end with the test."""
    folder = tmp_path / "joblib_azure" / str(os.getuid()) / "code" / "key"
    shutil.copytree(unpacked, folder)
    yield folder

    def left() -> list[psutil.Process]:
        found = from_folder(folder)
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return found

    lab.until(lambda: not left(), "nothing runs from the folder")


def from_folder(folder: Path, word: str = "") -> list[psutil.Process]:
    """Return the processes that were started with that folder, and that word."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if str(folder) in command and word in ("", *command) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


class Pool:
    """`WarmRunners` with the loop of a supervisor around them."""

    def __init__(self, folder: Path, workers: int = 1) -> None:
        self._selector = selectors.DefaultSelector()
        self.runners = warm.WarmRunners(folder, {"runners": 1, "workers": workers}, self._selector)
        self.codes: dict[int, int] = {}

    def step(self) -> None:
        for key, _ in self._selector.select(0.01):
            key.data(key.fileobj)
        self.codes.update((runner.pid, code) for runner, code in self.runners.reap())

    def take(self, job: str) -> warm.WarmRunner:
        def found() -> warm.WarmRunner | None:
            runner = self.runners.take(job)
            if runner is None:
                self.runners.fill(wanted=1)
                self.step()
            return runner

        return lab.until(found, "there is a runner")

    def ended(self, runner: warm.WarmRunner) -> int:
        """Wait for a runner's end and return its exit code."""

        def found() -> bool:
            self.step()
            return runner.pid in self.codes

        lab.until(found, "the runner has ended")
        return self.codes[runner.pid]

    def close(self) -> None:
        for runner in list(self.runners._all):
            self.runners.kill(runner)
        lab.until(lambda: self.step() or not self.runners._all, "all have ended")
        self._selector.close()


@pytest.fixture
def pool(code: Path) -> Iterator[Pool]:
    made = Pool(code)
    yield made
    made.close()


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel groups no processes by sessions")
@needs_root
def test_a_spare_is_low_among_all_sessions_until_it_is_leased(pool: Pool) -> None:
    pool.runners._start(low=True)
    runner = pool.runners._all[-1]
    group = Path(f"/proc/{runner.pid}/autogroup")
    assert int(group.read_text().split()[-1]) == warm._LOW
    pool.runners._raise_priority(runner)
    assert int(group.read_text().split()[-1]) == 0


def test_a_runner_that_served_a_job_serves_no_other(pool: Pool) -> None:
    first = pool.take("one")
    assert (first.state, first.job) == ("leased", "one")
    assert pool.runners.take("one") is None
    pool.runners.take_back(first, memory=1 << 20, calls=1, most_calls=None)
    assert pool.runners.take("two") is None
    second = pool.take("two")
    assert second is not first
    pool.runners.take_back(second, memory=1 << 20, calls=1, most_calls=None)
    # Room was made for the second where it was needed; what is left goes to its own job only.
    assert pool.runners.take("two") is second
    assert pool.runners.take("one") in (first, None)


def test_a_runner_whose_memory_grew_is_ended(pool: Pool) -> None:
    runner = pool.take("job")
    most = 100 << 20
    for memory in (most, most + warm.GROWTH):  # the first task's is what the others are measured by
        pool.runners.take_back(runner, memory=memory, calls=1, most_calls=None)
        assert pool.runners.take("job") is runner
    pool.runners.take_back(runner, memory=most + warm.GROWTH + 1, calls=1, most_calls=None)
    assert pool.ended(runner) == -signal.SIGKILL


def test_a_runner_whose_workers_ran_their_calls_is_ended(pool: Pool) -> None:
    runner = pool.take("job")
    for calls in (3, 6):
        pool.runners.take_back(runner, memory=1, calls=calls, most_calls=10)
        assert pool.runners.take("job") is runner
    pool.runners.take_back(runner, memory=1, calls=1, most_calls=10)
    assert pool.ended(runner) == -signal.SIGKILL


def test_a_runner_that_nobody_wants_is_ended(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "IDLE_SECONDS", 0.5)
    runner = pool.take("job")
    pool.runners.fill(wanted=0)
    assert runner.state == "leased"  # however long its task takes
    pool.runners.take_back(runner, memory=1, calls=1, most_calls=None)
    idle = time.monotonic()

    def ended() -> bool:
        pool.runners.fill(wanted=0, idle=True)
        pool.step()
        return runner.pid in pool.codes

    lab.until(ended, "the runner has ended")
    assert time.monotonic() - idle >= 0.5


def test_the_end_of_a_runner_is_that_of_its_group(pool: Pool) -> None:
    runner = pool.take("job")
    assert len(proc.group_members(runner.pid)) > 1  # the trackers of its resources
    os.kill(runner.pid, signal.SIGTERM)
    assert pool.ended(runner) == -signal.SIGTERM
    lab.until(lambda: proc.group_members(runner.pid) == [], "the group has ended")


def test_workers_of_a_runner_are_there_before_its_first_task(code: Path) -> None:
    pool = Pool(code, workers=3)
    runner = pool.take("job")
    commands = [psutil.Process(pid).cmdline() for pid in proc.group_members(runner.pid)]
    assert sum("joblib.externals.loky.backend.popen_loky_posix" in command for command in commands) == 3
    assert not list(code.glob("tmp*"))  # where they met
    # All of them may grow.
    pool.runners.take_back(runner, memory=1, calls=1, most_calls=None)
    assert pool.runners.take("job") is runner
    pool.runners.take_back(runner, memory=1 + 3 * warm.GROWTH, calls=1, most_calls=None)
    assert pool.runners.take("job") is runner
    pool.close()


def test_modules_that_bundles_used_are_imported_beforehand(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "used_once.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    first = Pool(code)
    first.runners.learn(["used_once", "no_such_module"])
    first.close()
    pool = Pool(code)  # the next supervisor knows
    pool.take("job")
    assert (tmp_path / "imported").exists()
    pool.close()


def test_runners_that_do_not_come_up_are_given_up(code: Path) -> None:
    (code / "__main__.py").write_text("import sys; sys.exit('no runner here')")
    pool = Pool(code)

    def hopeless() -> str | None:
        pool.runners.fill(wanted=1)
        pool.step()
        return pool.runners.hopeless()

    said = lab.until(hopeless, "they are given up")
    assert "did not come up" in said
    pool.close()


# the supervisor -----------------------------------------------------------------------------------------

SUPERVISOR = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from joblib_azure.node import supervisor, warm
supervisor.IDLE_SECONDS = float(sys.argv[2])
sys.exit(supervisor.main(Path(sys.argv[1]), {"runners": 1, "workers": 1}, []))
"""


def test_a_supervisor_ends_when_no_task_comes(code: Path) -> None:
    with run_python(SUPERVISOR, str(code), "1.5") as process:
        lab.until(lambda: connected(code), "it listens")
        lab.until(lambda: from_folder(code, "runner"), "it prepares a runner")
        with run_python(SUPERVISOR, str(code), "600") as other:  # there is one
            assert other.wait(lab.PATIENCE) == 0
        assert process.wait(lab.PATIENCE) == 0
    assert not (code / client.SOCKET).exists()
    lab.until(lambda: not from_folder(code, "runner"), "its runners have ended")
    assert (code / "supervisor.log").read_text() == ""


def test_a_supervisor_outlives_runners_that_do_not_come_up(code: Path) -> None:
    """Tasks then go without, and it tries again."""
    (code / "joblib_azure" / "node" / "runner.py").write_text("import os; os._exit(1)")
    log = code / "supervisor.log"

    def failures() -> int:
        assert process.poll() is None
        return log.read_text().count("before it was ready") if log.exists() else 0

    with run_python(SUPERVISOR, str(code), "600") as process:
        try:
            lab.until(lambda: failures() >= 3, "three have failed")
            assert connected(code)
        finally:
            process.kill()


def connected(folder: Path) -> bool:
    channel = connect(str(folder))
    if channel is None:
        return False
    channel.close()
    return True


BEGIN = """
import os, sys
from pathlib import Path
from joblib_azure.node import begin
begin._SYSTEMD_SECONDS = 1.0
begin.begin(Path(sys.argv[1]), os.environ)
"""


def begin_in_a_task(code: Path, **changes: str) -> None:
    """Begin a supervisor as a task does, which ends then."""
    environment = {
        "AZ_BATCH_NODE_ID": "node",
        "AZ_BATCH_NODE_ROOT_DIR": "/mnt/batch/tasks",
        "AZ_BATCH_POOL_ID": "pool",
        "AZ_BATCH_JOB_ID": "job",
        "AZ_BATCH_TASK_ID": "task",
        "AZ_BATCH_TASK_DIR": "/mnt/batch/tasks/workitems/job/job-1/task",
        "AZ_BATCH_AUTHENTICATION_TOKEN": "hidden",
        "JOBLIB_AZURE_KEY": "hidden",
        "JOBLIB_AZURE_INPUTS": "https://hidden",
        "JOBLIB_AZURE_RUNNERS": "1",
        "JOBLIB_AZURE_SLOT_WORKERS": "1",
        **changes,
    }
    with run_python(BEGIN, str(code), variables=environment, start_new_session=True) as process:
        _, said = process.communicate(timeout=lab.PATIENCE)
    assert (said, process.returncode) == ("", 0)


def living_in_a_session(process: psutil.Process) -> bool:
    try:
        return os.getsid(process.pid) != process.pid and process.cwd() == "/"
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False


def check_supervisor(code: Path, *, daemon: bool = True) -> psutil.Process:
    """Wait for the supervisor of a folder, and look at what it holds."""
    lab.until(lambda: connected(code), "a supervisor listens")

    def alone() -> list[psutil.Process]:
        # The process of a daemon that was started leads a session, and leaves its copy there.
        found = from_folder(code, "supervise")
        return [each for each in found if living_in_a_session(each)] if daemon else found

    (process,) = lab.until(alone, "it is alone")
    environment = process.environ()
    assert environment["AZ_BATCH_NODE_ID"] == "node"
    assert environment["HOME"] == str(code.parent.parent)
    assert not [name for name in environment if name.startswith(("AZ_BATCH_JOB", "AZ_BATCH_TASK", "AZ_BATCH_AUTH"))]
    assert "hidden" not in str(environment)
    assert os.getsid(process.pid) != os.getsid(0)
    return process


def test_a_supervisor_is_begun_once(code: Path) -> None:
    begin_in_a_task(code)
    # The next task finds it, although it is only starting.
    assert connected(code)
    first = check_supervisor(code)
    begin_in_a_task(code)
    assert check_supervisor(code).pid == first.pid
    lab.until(lambda: len(from_folder(code, "supervise")) == 1, "there is no other")
    first.send_signal(signal.SIGKILL)
    lab.until(lambda: not lab.living(first.pid), "it has ended")
    assert (code / client.SOCKET).exists()
    begin_in_a_task(code)
    second = check_supervisor(code)
    assert second.pid != first.pid
    lab.until(second.children, "it runs")
    second.terminate()
    lab.until(lambda: not from_folder(code), "it has ended with its runners")
    assert not (code / client.SOCKET).exists()


def test_no_supervisor_is_begun_where_none_is_wanted(code: Path) -> None:
    begin.begin(code, {"AZ_BATCH_NODE_ID": "node"})
    (code / begin.READY).unlink()
    begin_in_a_task(code)
    assert from_folder(code) == []
    assert not (code / client.SOCKET).exists()


def test_a_supervisor_that_cannot_be_begun_is_told_of_and_no_more(
    code: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZ_BATCH_NODE_ID", "node")
    (code / begin.LOCK).mkdir()
    begin.begin(code, {"JOBLIB_AZURE_RUNNERS": "1", "JOBLIB_AZURE_SLOT_WORKERS": "1"})
    assert "no supervisor of warm runners could be started" in capfd.readouterr().err
    assert from_folder(code) == []


#: What systemd does with the unit that the start task leaves.
UNIT = 'while ! [ -e "$1" ]; do sleep 0.02; done; cd / && exec setsid /bin/sh "$2"'


def test_systemd_is_asked_where_it_is_there(code: Path) -> None:
    requests = code.parents[2] / begin.REQUESTS
    requests.mkdir()
    with subprocess.Popen(["/bin/sh", "-c", UNIT, "-", requests / code.name, code / begin.START], env={}) as unit:
        begin_in_a_task(code)
        assert (code / client.SOCKET).exists()
        process = check_supervisor(code, daemon=False)
        assert process.pid == unit.pid  # a service ends with the process that was started
        process.terminate()
        unit.wait(lab.PATIENCE)


def test_systemd_that_does_nothing_is_done_without(code: Path) -> None:
    (code.parents[2] / begin.REQUESTS).mkdir()
    begin_in_a_task(code)
    check_supervisor(code).terminate()


def test_a_supervisor_minds_nobody_who_leaves_without_a_word(code: Path) -> None:
    begin_in_a_task(code)
    process = check_supervisor(code)
    for said in (b"", b"\0", b"\0\0\1\0half"):
        channel = connect(str(code))
        assert channel is not None
        channel.socket.sendall(said)
        channel.close()
    lab.until(lambda: not [each for each in process.net_connections("unix") if each.status == "x"], "they are gone")
    assert connected(code)
    assert check_supervisor(code).pid == process.pid


def test_a_supervisor_outlives_a_client_that_sends_nonsense(code: Path) -> None:
    """It would take every runner of the node along."""
    begin_in_a_task(code)
    process = check_supervisor(code)
    lab.until(lambda: from_folder(code, "runner"), "it prepares a runner")
    channel = connect(str(code))
    assert channel is not None
    channel.socket.sendall(b"\0\0\0\4what")
    channel.read()  # until it hangs up
    channel.close()
    assert connected(code)
    assert process.is_running()


def test_filters_that_imports_set_stay_and_those_of_calls_do_not() -> None:
    program = """
import warnings
from joblib_azure.node import baseline

baseline.capture()
before = list(warnings.filters)
with baseline.importing():
    warnings.filterwarnings("ignore", message="of a module")
warnings.filterwarnings("ignore", message="of a call")
baseline.restore()
added = [filter[1].pattern for filter in warnings.filters if filter not in before]
assert added == ["of a module"], added
"""
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "JOBLIB_AZURE_NODE": "1"})
