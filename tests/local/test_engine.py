"""A local account that stays: started by one process, used by others, there again after its end, however that came."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import cli_process
import platformdirs
import pytest
from azure.batch import BatchClient
from azure.core.credentials import AzureNamedKeyCredential
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import BlobServiceClient
from joblib import Parallel, delayed, parallel_config

from joblib_azure import Cluster, Job, submit
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.errors import ConfigurationError, LocalClusterError
from joblib_azure.local import engine
from joblib_azure.local.engine import Engine
from joblib_azure.local.home import Home
from joblib_azure.local.host import processes_of
from joblib_azure.registry import close_sessions


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder of their own; whatever a test started there ends."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    folder = Path(platformdirs.user_state_dir("joblib_azure", appauthor=False)) / "local"
    yield folder
    for each in folder.iterdir() if folder.exists() else ():
        run_id = (Home(each.name).running() or {}).get("run_id")
        engine.stop(each.name)
        assert run_id is None or processes_of(run_id) == []


def cli(*arguments: str, code: int = 0, **env: str) -> Any:
    done = subprocess.run(
        cli_process.command(*arguments),
        env={**cli_process.environment(), "XDG_STATE_HOME": os.environ["XDG_STATE_HOME"], **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout) if "--json" in arguments else done.stdout + done.stderr


def squares(found: Engine) -> list[int]:
    with parallel_config("azure", cluster=found.cluster_file):
        return list(Parallel()(delayed(pow)(i, 2) for i in range(6)))


def kill(found: Engine) -> None:
    """The keeper dies without a word, and the guard ends the rest."""
    run_id = Home(found.name).running()["run_id"]  # type: ignore[index]
    time.sleep(6)  # for what Azurite writes every five seconds
    os.kill(found.pid, signal.SIGKILL)
    end = time.monotonic() + 30
    while processes_of(run_id):
        assert time.monotonic() < end, processes_of(run_id)
        time.sleep(0.05)


def stop(found: Engine) -> None:
    assert engine.stop(found.name)


@pytest.mark.parametrize("end", [stop, kill])
def test_what_it_holds_is_there_again(end: Callable[[Engine], None]) -> None:
    first = engine.start(nodes=2, cores=1)
    assert first.fresh
    assert squares(first) == [0, 1, 4, 9, 16, 25]
    submit((delayed(pow)(i, 3) for i in range(5)), cluster=first.cluster_file, name="cubes").wait(60)
    close_sessions()
    end(first)
    again = engine.start()
    assert (again.batch_endpoint, again.blob_endpoint) == (first.batch_endpoint, first.blob_endpoint)
    assert again.variables() == first.variables()
    with closing(Job.attach("cubes", cluster=again.cluster_file)) as job:
        assert list(job.results()) == [0, 1, 8, 27, 64]
    assert squares(again) == [0, 1, 4, 9, 16, 25]
    close_sessions()


def test_many_clients_have_it_at_once() -> None:
    started = cli("local", "start", "--nodes", "2", "--cores", "1", "--json")
    assert started["started"] is True
    again = cli("local", "start", "--json")
    assert (again["started"], again["pid"]) == (False, started["pid"])
    variables = started["variables"]
    script = "import joblib_azure\nfrom joblib import Parallel, delayed, parallel_config\n"
    script += "with parallel_config('azure'):\n    print(Parallel()(delayed(abs)(-i) for i in range(4)))"
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**cli_process.environment(), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(3)
    ]
    assert [client.communicate(timeout=120)[0] for client in clients] == ["[0, 1, 2, 3]\n"] * 3
    # programs of others
    key = AzureNamedKeyCredential(variables["AZURE_BATCH_ACCOUNT"], variables["AZURE_BATCH_ACCESS_KEY"])
    with BatchClient(variables["AZURE_BATCH_ENDPOINT"], key) as batch:
        assert [pool.id for pool in batch.list_pools()] == ["local"]
    with BlobServiceClient.from_connection_string(variables["AZURE_STORAGE_CONNECTION_STRING"]) as blobs:
        assert blobs.get_account_information()
    found = cli("local", "status", "--json")
    assert (found["served"], found["pools"]) == (True, [{"id": "local", "nodes": {"idle": 2}}])
    assert variables["AZURE_BATCH_ACCESS_KEY"] not in json.dumps(found)
    assert "2 idle" in cli("local", "status")
    assert "has ended" in cli("local", "stop")
    assert cli("local", "status", "--json", code=1) == {"name": "default", "served": False}


def test_a_shell_is_pointed_at_it(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("joblib-azure")
    done = subprocess.run(
        ["bash", "-c", f'eval "$({program} local start --nodes 1 --cores 1)" && {program} cluster show --json'],
        env={**cli_process.environment(), "XDG_STATE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pool"]["id"] == "local"


def test_accounts_by_name_are_apart(state: Path) -> None:
    one, two = engine.start("one", nodes=1, cores=1), engine.start("two", nodes=1, cores=1)
    assert one.batch_key != two.batch_key
    assert {one.batch_endpoint, one.blob_endpoint}.isdisjoint({two.batch_endpoint, two.blob_endpoint})
    assert engine.stop("one", delete=True)
    assert sorted(each.name for each in state.iterdir()) == ["two"]
    assert squares(two) == [0, 1, 4, 9, 16, 25]
    close_sessions()


def test_its_files_are_the_user_s_alone(state: Path) -> None:
    found = engine.start(nodes=1, cores=1)
    assert stat.S_IMODE(found.folder.stat().st_mode) == 0o700
    for path in (state / "default").iterdir():
        if path.is_file() and path.stat().st_size:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_another_size_is_for_the_next_start() -> None:
    found = engine.start(nodes=1, cores=1)
    said = "with another nodes: end it with `joblib-azure local stop --name default` first"
    with pytest.raises(LocalClusterError, match=said):
        engine.start(nodes=3)
    assert engine.start(nodes=1, cores=1).pid == found.pid
    engine.stop()
    found = engine.start(nodes=3)
    with closing(Cluster(ClusterConfig.load(found.cluster_file), AccountConfig.load(found.credentials_file))) as pool:
        assert [node.state for node in pool.nodes()] == ["idle"] * 3


def test_a_port_that_is_taken_is_told_and_nothing_is_left() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LocalClusterError, match="ddress already in use"):
            engine.start(nodes=1, cores=1, batch_port=port)
    assert engine.status() == (None, None)
    assert engine.start(nodes=1, cores=1).batch_endpoint.endswith(f":{port}")


def test_a_storm_over_it(tmp_path: Path) -> None:
    schedule = tmp_path / "storm.json"
    schedule.write_text(
        json.dumps({"strikes": [{"fault": "throttled", "service": "batch", "after": i} for i in range(0, 40, 8)]})
    )
    found = engine.start(nodes=1, cores=1, chaos=str(schedule))
    assert squares(found) == [0, 1, 4, 9, 16, 25]
    close_sessions()
    _, storm = engine.status()
    assert storm is not None
    assert sum(storm.struck.values()) > 0
    assert "strike" in cli("local", "status")
    # it lasts for this start
    engine.stop()
    again = engine.start()
    assert engine.status()[1] is None
    assert again.batch_endpoint == found.batch_endpoint


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "Not a name"}, "'Not a name' is no name of a local account"),
        ({"nodes": 1, "cores": 4096}, "cores=4096 is more than"),
        ({"emulator": {"boot_second": 1.0}}, "did you mean 'boot_seconds'"),
        ({"chaos": "not there.json"}, "not there.json"),
    ],
)
def test_what_cannot_be_started_is_told_before(settings: dict[str, Any], said: str, state: Path) -> None:
    with pytest.raises(ConfigurationError, match=said):
        engine.start(**settings)
    assert not state.exists()


def test_it_can_be_as_slow_as_azure(state: Path) -> None:
    assert "latency" in cli("local", "start", "--latency", "moon", code=1)
    assert not state.exists()
    cli("local", "start", "--nodes", "1", "--cores", "1", "--latency", "azure", "--set", "clock-rate=200")
    settings = Home().settings()
    assert settings is not None
    assert settings["emulator"] == {"latency": "azure", "clock_rate": 200.0}


def test_what_was_never_started() -> None:
    for action in (engine.stop, engine.status):
        with pytest.raises(LocalClusterError, match="`joblib-azure local start --name default` makes it"):
            action()


def test_behaviour_from_the_command_line() -> None:
    said = cli("local", "start", "--set", "boot-seconds=x", code=1)
    assert "'boot-seconds=x': expected a number after boot_seconds=" in said
    assert "expected OPTION=VALUE" in cli("local", "start", "--set", "boot-seconds", code=1)
    started = cli("local", "start", "--nodes", "1", "--cores", "1", "--set", "pool-quota=1", "--json")
    key = AzureNamedKeyCredential(started["batch_account"], started["variables"]["AZURE_BATCH_ACCESS_KEY"])
    with BatchClient(started["batch_endpoint"], key) as batch:
        pool = batch.get_pool("local").as_dict()
        kept = {name: pool[name] for name in ("vmSize", "virtualMachineConfiguration")}
        with pytest.raises(ResourceExistsError, match="PoolQuotaReached"):
            batch.create_pool({"id": "another", "targetDedicatedNodes": 0, **kept})
