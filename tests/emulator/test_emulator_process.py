"""The emulator as a process: how it starts, how it ends, and that it leaves nothing behind."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest
from emulator_lab import Lab, alive_with, until

from joblib_azure.config.sizes import known_sizes
from joblib_azure.emulator import BatchEmulator, EmulatorError
from joblib_azure.emulator import process as process_module
from joblib_azure.emulator.process import KEY_VARIABLE, new_key
from joblib_azure.emulator.processes import RUN_ID_VARIABLE
from joblib_azure.emulator.vmsizes import cores_of

LEFT = "sh -c 'setsid sleep 71 & sleep 72 & env -i setsid sleep 73 & sleep 74'"


def tree(emulator_pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(emulator_pid).children(recursive=True)]


def gone(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


def busy(emulator: BatchEmulator) -> list[int]:
    lab = Lab(emulator)
    job = lab.job(lab.pool(nodes=1))
    lab.task(job, LEFT)
    until(lambda: len(tree(emulator.pid)) >= 5, say="the task's processes")
    return [emulator.pid, *tree(emulator.pid)]


def test_stop_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = uuid.uuid4().hex
    monkeypatch.setenv(RUN_ID_VARIABLE, run_id)
    emulator = BatchEmulator()
    pids = busy(emulator)
    assert len(alive_with(RUN_ID_VARIABLE, run_id)) >= 4  # also those that the emulator passed it on to
    emulator.stop()
    emulator.stop()
    assert gone(pids)
    assert alive_with(RUN_ID_VARIABLE, run_id) == []
    assert not emulator.root.exists()


def test_sigterm_leaves_nothing() -> None:
    with BatchEmulator() as emulator:
        pids = busy(emulator)
        os.kill(emulator.pid, signal.SIGTERM)
        until(lambda: gone(pids))


STARTER = """
import sys, time
sys.path[:0] = {path!r}
from joblib_azure.emulator import BatchEmulator
from emulator_lab import Lab
emulator = BatchEmulator()
lab = Lab(emulator)
job = lab.job(lab.pool(nodes=1))
lab.task(job, {command!r})
if {fork!r}:
    import os
    if os.fork() == 0:  # a fork holds the pipe to the emulator open
        time.sleep(20)
        os._exit(0)
print(emulator.pid, emulator.root, flush=True)
time.sleep(60)
"""


def test_a_starter_that_carries_the_run_id_outlives_the_emulator() -> None:
    code = "from joblib_azure.emulator import BatchEmulator; BatchEmulator().stop(); print('still here')"
    environment = {**os.environ, RUN_ID_VARIABLE: uuid.uuid4().hex}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment).strip() == b"still here"


@pytest.mark.parametrize("fork", [False, True])
def test_a_killed_starter_leaves_nothing(fork: bool) -> None:
    run_id = uuid.uuid4().hex
    code = STARTER.format(path=[str(Path(__file__).parent)], command=LEFT, fork=fork)
    environment = {**os.environ, RUN_ID_VARIABLE: run_id}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as starter:
        assert starter.stdout is not None
        pid, root = starter.stdout.readline().split()
        until(lambda: len(tree(int(pid))) >= 5)
        pids = [int(pid), *tree(int(pid))]
        starter.kill()
        until(lambda: gone(pids))
        until(lambda: not Path(root.decode()).exists())
        for process in alive_with(RUN_ID_VARIABLE, run_id):
            process.kill()  # the fork, which is not the emulator's
            assert fork


def test_command_line_prints_one_line_and_stops_at_the_end_of_stdin(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "joblib_azure.emulator", "--account", "mine", "--root", str(tmp_path / "nodes")]
    command += ["--access-log", str(tmp_path / "log")]
    environment = {**os.environ, KEY_VARIABLE: new_key()}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        line = process.stdout.readline()
        process.stdin.close()
        assert process.wait(10) == 0
        assert process.stdout.read() == b""
    ready = json.loads(line)
    assert set(ready) == {"endpoint", "account_name", "pid"}
    assert (ready["account_name"], ready["pid"]) == ("mine", process.pid)
    assert ready["endpoint"].startswith("http://127.0.0.1:")


def test_access_log(tmp_path: Path) -> None:
    with BatchEmulator(access_log=tmp_path / "log", root=tmp_path / "nodes") as emulator:
        assert Lab(emulator).raw("GET", "/pools")[0] == 200
        until(lambda: "\n" in (tmp_path / "log").read_text())
    method, path, status, milliseconds = (tmp_path / "log").read_text().split()
    assert (method, path, status) == ("GET", "/pools?api-version=2025-06-01", "200")
    assert float(milliseconds) < 1000
    assert (tmp_path / "nodes").is_dir()  # a folder that was given is kept


def test_a_taken_port_is_a_clear_error(emulator: BatchEmulator) -> None:
    port = int(emulator.endpoint.rsplit(":", 1)[1])
    began = time.monotonic()
    with pytest.raises(EmulatorError, match="Address already in use"):
        BatchEmulator(port)
    assert time.monotonic() - began < 10


def test_a_bad_key_is_a_clear_error() -> None:
    with pytest.raises(EmulatorError, match="base64"):
        BatchEmulator(account_key="not base64!")


def test_it_imports_nothing_of_the_rest_of_the_package() -> None:
    folder = Path(process_module.__file__).parent
    for path in folder.rglob("*.py"):
        depth = len(path.relative_to(folder).parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= depth, path
                assert not (node.module or "").startswith("joblib_azure"), path
            elif isinstance(node, ast.Import):
                assert not any(each.name.startswith("joblib_azure") for each in node.names), path


def test_importing_it_is_light() -> None:
    code = "import sys, joblib_azure.emulator; print(*[n for n in ('starlette', 'uvicorn') if n in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code]).strip() == b""


@pytest.mark.parametrize(
    ("size", "cores"),
    [
        ("Standard_F2", 2),
        ("standard_f72s_v2", 72),
        ("STANDARD_D4s_v5", 4),
        ("Standard_E16-8s_v5", 8),
        ("Standard_D2as_v4", 2),
        ("Standard_NC24ads_A100_v4", 24),
        ("Standard_HB120rs_v3", 120),
        ("Standard_M416ms_v2", 416),
        ("Standard_A1_v2", 1),
        ("Standard_D3_v2", 4),
        ("Standard_D14", 16),
        ("Emulated_C3", 3),
        ("emulated_c100", 100),
        ("Emulated_C0", None),
        ("Standard_", None),
        ("F2", None),
        ("", None),
    ],
)
def test_cores_of_a_size(size: str, cores: int | None) -> None:
    assert cores_of(size) == cores


def test_the_client_and_the_emulator_know_the_same_sizes() -> None:
    """Two readings of Azure's documentation, which share no code."""
    assert {size: cores_of(size) for size in known_sizes()} == known_sizes()
