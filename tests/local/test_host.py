"""A local cluster's processes: they start, they are known, and whatever dies, none of them is left.

Most tests put a small program in the emulator's place: it has tasks as nasty as tasks may be, at once and
without a pool to create. Those that count run the real one. Azurite is always the real one.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from azure.batch import BatchClient, models
from azure.core.credentials import AzureNamedKeyCredential

from joblib_azure.errors import LocalClusterError
from joblib_azure.local import azurite, guard, install
from joblib_azure.local.host import LocalHost, processes_of

GONE_WITHIN = 12.0  # the emulator's grace is 5 s of it

# Two tasks: one in a session of its own that ignores what it can, one that has cleared its environment.
EMULATOR = """
import json, os, signal, subprocess, sys, threading
sleep = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
subprocess.Popen([sys.executable, "-S", "-c", sleep], start_new_session=True)
if sys.platform == "linux":
    subprocess.Popen([sys.executable, "-S", "-c", sleep, sys.argv[-1]], start_new_session=True, env={})
line = {"endpoint": "http://127.0.0.1:1", "account_name": sys.argv[4], "pid": os.getpid()}
print(json.dumps(line), flush=True)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
sys.stdin.read()
"""

CLIENT = """
import json, os, signal, subprocess, sys, time
from joblib_azure.local.host import LocalHost
host = LocalHost(emulator_command=[sys.executable, "-S", sys.argv[1]], running_azurite_port=None).start()
print(json.dumps([host.run_id, str(host.folder)]), flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def _azurite() -> None:
    install.find_azurite()  # an installation is no part of what is timed here


@pytest.fixture
def emulator(tmp_path: Path) -> list[str]:
    script = tmp_path / "emulator.py"
    script.write_text(EMULATOR)
    return [sys.executable, "-S", str(script)]


@pytest.fixture
def new_host(emulator: list[str]) -> Iterator[Callable[..., LocalHost]]:
    hosts: list[LocalHost] = []

    def make(**options: object) -> LocalHost:
        given = {"emulator_command": emulator, "running_azurite_port": None, **options}
        hosts.append(LocalHost(**given))  # type: ignore[arg-type]
        return hosts[-1]

    yield make
    for host in hosts:
        host.stop()
        assert_nothing_left(host.run_id)


def assert_nothing_left(run_id: str, folder: Path | None = None, within: float = GONE_WITHIN) -> None:
    end = time.monotonic() + within
    while time.monotonic() < end:
        # The task without an environment shows the folder on its command line (the --access-log).
        hidden = [] if folder is None else [p for p in _all_command_lines() if str(folder) in p]
        if not processes_of(run_id) and not hidden and not (folder and folder.exists()):
            return
        time.sleep(0.02)
    pytest.fail(f"left after {within} s: {processes_of(run_id)}, {hidden}, {folder}")


def _all_command_lines() -> list[str]:
    lines = []
    for process in psutil.process_iter():
        try:
            lines.append(" ".join(process.cmdline()))
        except psutil.Error:
            pass
    return lines


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # ended since it was found
        return []


def process_of(host: LocalHost, mark: str) -> psutil.Process:
    """The one process of a cluster whose command line holds a mark."""
    (found,) = [process for process in processes_of(host.run_id) if mark in " ".join(command_of(process))]
    return found


def wait_until(condition: Callable[[], bool], what: str, within: float = GONE_WITHIN) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"not within {within} s: {what}"
        time.sleep(0.01)


def answers(host: LocalHost) -> None:
    azurite.check_storage(host.storage_connection_string, 5)


def batch_client(host: LocalHost) -> BatchClient:
    credential = AzureNamedKeyCredential(host.account_name, host.account_key)
    return BatchClient(host.batch_endpoint, credential)


def run_a_task(host: LocalHost) -> psutil.Process:
    """Start a real task on a real emulator's node and return its (detached) grandchild."""
    with batch_client(host) as client:
        image = models.BatchVmImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server")
        client.create_pool(
            models.BatchPoolCreateOptions(
                id="pool",
                vm_size="standard_d2s_v3",
                target_dedicated_nodes=1,
                virtual_machine_configuration=models.VirtualMachineConfiguration(
                    image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04"
                ),
            )
        )
        client.create_job(models.BatchJobCreateOptions(id="job", pool_info=models.BatchPoolInfo(pool_id="pool")))
        command = "/bin/sh -c 'setsid sleep 321 & wait'"
        client.create_task("job", models.BatchTaskCreateOptions(id="task", command_line=command))
    sleepers: list[psutil.Process] = []

    def runs() -> bool:
        sleepers[:] = [p for p in processes_of(host.run_id) if command_of(p) == ["sleep", "321"]]
        return bool(sleepers)

    wait_until(runs, "the task runs")
    return sleepers[0]


# -- a cluster as it should be


def test_starts_serves_and_stops() -> None:
    with LocalHost(running_azurite_port=None) as host:
        assert host.alive()
        assert host.failure is None
        answers(host)
        with batch_client(host) as client:
            assert list(client.list_pools()) == []
        assert host.batch_access_log.read_text().count("\n") == 1
        assert host.storage_access_log is not None
        end = time.monotonic() + 10  # Azurite writes its log when it comes to it
        while azurite.count_requests(host.storage_access_log) < 2 and time.monotonic() < end:
            time.sleep(0.05)
        assert azurite.count_requests(host.storage_access_log) == 2  # start() made the first
        assert {path.name for path in host.folder.iterdir()} >= {"nodes", "azurite", "batch.log"}
        assert host.folder.stat().st_mode & 0o777 == 0o700
        processes = processes_of(host.run_id)
        assert len(processes) >= 3
        key = host.storage_connection_string.partition("AccountKey=")[2].partition(";")[0]
        shown = " ".join(" ".join(process.cmdline()) for process in processes) + repr(host)
        assert host.account_key not in shown
        assert key not in shown
        assert "running" in repr(host)
    assert processes_of(host.run_id) == []
    assert not host.folder.exists()
    assert not host.alive()
    assert host.failure is None
    host.stop()


def test_stopping_ends_a_running_task() -> None:
    with LocalHost(running_azurite_port=None) as host:
        sleeper = run_a_task(host)
    assert not sleeper.is_running()
    assert_nothing_left(host.run_id, host.folder, within=0.5)


def test_two_clusters_side_by_side(new_host: Callable[..., LocalHost]) -> None:
    first, second = new_host().start(), new_host().start()
    assert first.storage_connection_string != second.storage_connection_string
    first.stop()
    assert_nothing_left(first.run_id, first.folder, within=0.5)
    assert second.alive()
    answers(second)


def test_keeps_the_folder_when_asked(new_host: Callable[..., LocalHost]) -> None:
    host = new_host(keep=True).start()
    host.stop()
    assert "endpoint" in (host.folder / "batch.log").read_text()
    assert (host.folder / "azurite" / "__azurite_db_blob__.json").is_file()
    guard.remove_folder(host.folder)


def test_a_collected_host_is_stopped(new_host: Callable[..., LocalHost], emulator: list[str]) -> None:
    host = LocalHost(emulator_command=emulator, running_azurite_port=None).start()
    run_id, folder = host.run_id, host.folder
    del host
    gc.collect()
    assert_nothing_left(run_id, folder, within=0.5)


# -- it does not start


def test_a_host_starts_once(new_host: Callable[..., LocalHost]) -> None:
    host = new_host()
    with pytest.raises(LocalClusterError, match="not started"):
        _ = host.batch_endpoint
    host.stop()  # harmless
    host.start()
    with pytest.raises(LocalClusterError, match="make a new one"):
        host.start()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; sys.exit('no such account')", "(?s)Batch emulator ended with exit code 1.*no such account"),
        ("import time; time.sleep(60)", "Batch emulator.* did not say where it listens within 1 s"),
        (None, "Batch emulator cannot be started"),
    ],
)
def test_an_emulator_that_does_not_start(
    new_host: Callable[..., LocalHost], tmp_path: Path, program: str | None, message: str
) -> None:
    command = [sys.executable, "-c", program] if program else [str(tmp_path / "missing")]
    host = new_host(emulator_command=command)
    with pytest.raises(LocalClusterError, match=message):
        host.start(deadline=1)
    assert_nothing_left(host.run_id, host.folder, within=0.1)


def test_without_azurite_nothing_starts(new_host: Callable[..., LocalHost], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBLIB_AZURE_AZURITE", "/missing/azurite-blob")
    host = new_host()
    with pytest.raises(install.AzuriteUnavailable, match="JOBLIB_AZURE_AZURITE"):
        host.start()
    assert_nothing_left(host.run_id, host.folder, within=0.1)


def test_an_azurite_that_does_not_start(
    new_host: Callable[..., LocalHost], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "azurite-blob"
    program.write_text("#!/bin/sh\necho 'GET /c/b?sv=1&sig=SECRET%3D&sp=r'\nexit 4\n")
    program.chmod(0o755)
    monkeypatch.setenv("JOBLIB_AZURE_AZURITE", str(program))
    host = new_host()
    with pytest.raises(LocalClusterError, match=r"(?s)Azurite ended with exit code 4.*sig=\*\*\*&sp=r"):
        host.start()
    assert_nothing_left(host.run_id, host.folder, within=0.1)


# -- a server dies


@pytest.mark.parametrize(
    ("victims", "failure"),
    [
        (["emulator.py"], "the Batch emulator was killed by signal 9"),
        (["azurite"], "Azurite was killed by signal 9"),
        (["guard.py"], "its guard was killed by signal 9"),
        (["guard.py", "emulator.py"], "its guard was killed by signal 9"),
    ],
)
def test_a_killed_server_ends_the_cluster(new_host: Callable[..., LocalHost], victims: list[str], failure: str) -> None:
    host = new_host().start()
    marks = {"azurite": "--blobPort"}
    for process in [process_of(host, marks.get(victim, victim)) for victim in victims]:
        process.kill()
    wait_until(lambda: not host.alive(), "the client knows", within=2)
    hidden = None if "guard.py" in victims else host.folder
    assert_nothing_left(host.run_id, hidden)
    wait_until(lambda: host.failure is not None, "the client knows why")
    assert (host.failure or "").startswith(failure)
    host.stop()
    assert not host.folder.exists()


@pytest.mark.parametrize("victim", ["joblib_azure.emulator", "guard.py"])
def test_a_task_does_not_outlive_a_killed_server(victim: str) -> None:
    with LocalHost(running_azurite_port=None) as host:
        run_a_task(host)
        process_of(host, victim).kill()
        wait_until(lambda: not host.alive(), "the client knows", within=2)
        assert_nothing_left(host.run_id, host.folder)


def test_a_guard_that_is_asked_to_end_says_so(new_host: Callable[..., LocalHost]) -> None:
    host = new_host().start()
    process_of(host, "guard.py").terminate()
    wait_until(lambda: not host.alive(), "the client knows", within=2)
    assert_nothing_left(host.run_id, host.folder)
    assert host.failure == "received SIGTERM"


def test_a_guard_that_hangs_is_killed(new_host: Callable[..., LocalHost]) -> None:
    host = new_host().start()
    process_of(host, "guard.py").suspend()
    host.stop(deadline=0.3)
    assert_nothing_left(host.run_id, within=0.1)


# -- the client ends


def run_client(emulator: list[str], body: str) -> tuple[subprocess.Popen[str], str, Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT + textwrap.dedent(body), emulator[-1]],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    run_id, folder = json.loads(process.stdout.readline())
    return process, run_id, Path(folder)


@pytest.mark.parametrize(
    "body",
    ["", "raise ValueError", "os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "os.abort()"],
)
def test_a_client_that_ends(emulator: list[str], body: str) -> None:
    process, run_id, folder = run_client(emulator, "sys.stderr = open(os.devnull, 'w')\n" + body)
    with process:
        process.wait(20)
    # an orderly end leaves nothing to wait for
    orderly = process.returncode in (0, 1) and "_exit" not in body
    assert_nothing_left(run_id, folder, within=0.1 if orderly else GONE_WITHIN)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_client_that_is_killed(emulator: list[str], number: signal.Signals) -> None:
    process, run_id, folder = run_client(emulator, "time.sleep(60)")
    with process:
        os.killpg(process.pid, number)
    assert_nothing_left(run_id, folder)


def test_ctrl_c_reaches_the_client_only(emulator: list[str]) -> None:
    body = """
    try:
        print("sleeping", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.5)
        print("alive" if host.alive() else "dead", flush=True)
    """
    process, run_id, folder = run_client(emulator, body)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sleeping\n"
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does it: to the whole foreground group
        assert process.stdout.readline() == "alive\n"
    assert_nothing_left(run_id, folder, within=0.1)


def test_ctrl_c_while_it_starts(emulator: list[str], tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text("print('no endpoint', flush=True)\nimport time; time.sleep(60)")
    body = f"""
    import threading
    late = LocalHost(emulator_command=[sys.executable, {str(slow)!r}], running_azurite_port=None)
    print(json.dumps([late.run_id, str(late.folder)]), flush=True)
    threading.Timer(1, os.kill, [os.getpid(), signal.SIGINT]).start()
    try:
        late.start()
    except KeyboardInterrupt:
        print("interrupted", late.folder.exists(), flush=True)
    """
    process, run_id, folder = run_client(emulator, body)
    with process:
        assert process.stdout is not None
        late_id, late_folder = json.loads(process.stdout.readline())
        assert process.stdout.readline() == "interrupted False\n"
    assert_nothing_left(late_id, Path(late_folder), within=0.1)
    assert_nothing_left(run_id, folder, within=0.1)


def test_a_forked_child_leaves_its_parents_cluster_alone(emulator: list[str]) -> None:
    body = """
    if os.fork() == 0:
        print("child", host.alive(), flush=True)
        host.stop()
        sys.exit(0)  # runs what is registered for the exit
    os.wait()
    time.sleep(0.2)
    print("parent", host.alive(), flush=True)
    """
    process, run_id, folder = run_client(emulator, body)
    with process:
        assert process.stdout is not None
        assert process.stdout.read().split() == ["child", "True", "parent", "True"]
    assert_nothing_left(run_id, folder, within=0.1)


@pytest.mark.parametrize("how", ["os.fork()", "__import__('ctypes').CDLL(None).fork()"])
def test_a_forked_child_does_not_keep_a_dead_parents_cluster(emulator: list[str], how: str) -> None:
    """In C's fork no hook of Python runs, so the child holds the pipe to the guard."""
    body = f"""
    if {how} == 0:
        time.sleep(30)
        os._exit(0)
    print("forked", flush=True)
    time.sleep(60)
    """
    process, run_id, folder = run_client(emulator, body)
    assert process.stdout is not None
    assert process.stdout.readline() == "forked\n"
    (child,) = [c for c in psutil.Process(process.pid).children() if "guard.py" not in " ".join(c.cmdline())]
    try:
        process.kill()
        process.wait()
        process.stdout.close()
        assert_nothing_left(run_id, within=5)
        assert child.is_running()
        wait_until(lambda: not folder.exists(), "the folder is removed")
    finally:
        child.kill()


def test_a_client_that_dies_before_it_asks_leaves_no_guard(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), "nobody", str(tmp_path)]
    began = time.monotonic()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=10)
    assert done.returncode == guard.EXIT_ASKED
    assert time.monotonic() - began < 1  # it takes 30 ms; an import of the package would show
    assert not tmp_path.exists()
    read, write = os.pipe()  # and when somebody else holds its pipe
    try:
        done = subprocess.run([*command[:-3], "1", *command[-2:]], stdin=read, timeout=10)
    finally:
        os.close(read)
        os.close(write)
    assert done.returncode == guard.EXIT_ASKED
