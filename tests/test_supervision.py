"""The start task's part for warm runners: the script, run in a scratch root, the units, and what a request can do."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cluster_lab import config_of
from joblib import Parallel, delayed, parallel_config

from joblib_azure import LocalCluster
from joblib_azure.cluster import supervision
from joblib_azure.cluster.spec import differences, pool_spec, users_lines
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.service import ImageSpec, PoolSpec, PoolState, StartTaskSpec

KEY = "0123456789abcdef"
ROOT = os.geteuid() == 0
#: Who asks: not the administrator, who may ask for nothing.
USER = 65534 if ROOT else os.getuid()
ACCOUNT = AccountConfig(batch_account="lab", batch_endpoint="https://lab.batch.azure.com", storage_account="lab")

needs_stat = pytest.mark.skipif(shutil.which("stat") is None, reason="no coreutils")


@dataclass
class Node:
    """A scratch machine: its disk, its /run, and stubs that write down what they were asked."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "disk" / "joblib_azure"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def units(self) -> Path:
        return self.run / "systemd" / "system"

    @property
    def program(self) -> Path:
        return self.run / "joblib_azure" / "supervise"

    @property
    def asked(self) -> list[str]:
        """What systemctl and setpriv were told since `forget`."""
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []

    def forget(self) -> None:
        (self.folder / "log").unlink(missing_ok=True)

    def stub(self, name: str, then: str = "exit 0") -> None:
        program = self.folder / "bin" / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.folder}/log\n{then}\n')
        program.chmod(0o755)

    def start(self, *lines: str, shell: str = "/bin/sh", **variables: str) -> subprocess.CompletedProcess[str]:
        """Run the start task's script, and these lines behind it."""
        script = "\n".join((supervision.script(str(self.run)), *lines))
        batch = {"AZ_BATCH_NODE_ROOT_DIR": str(self.folder / "disk" / "batch" / "tasks")}
        return self._run([shell, "-c", script], {**batch, **variables})

    def supervise(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the program that the units run."""
        return self._run(["/bin/sh", str(self.program), str(self.base), *arguments], {})

    def _run(self, command: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(command, env={"PATH": path, **variables}, capture_output=True, text=True, timeout=30)
        assert done.stdout == ""
        return done

    def user(self, uid: int = USER) -> Path:
        """Make a user's folder, with code that can be started."""
        home = self.base / str(uid)
        code = home / "code" / KEY
        code.mkdir(parents=True)
        (code / "start").write_text("id -u\nid -g\nulimit -e\n")
        home.chmod(0o700)
        if ROOT:
            for path in (home, *home.rglob("*")):
                os.chown(path, uid, uid)
        return home

    def request(self, name: str = KEY, uid: int = USER) -> Path:
        path = self.base / "requests" / name
        path.touch()
        if ROOT:
            os.chown(path, uid, uid)
        return path


@pytest.fixture
def node() -> Iterator[Node]:
    # Not pytest's folder: other users must be able to enter it.
    with tempfile.TemporaryDirectory(prefix="supervision-") as folder:
        found = Node(Path(folder))
        found.folder.chmod(0o755)
        for part in ("bin", "disk/batch/tasks", "run/systemd/system"):
            (found.folder / part).mkdir(parents=True)
        for name in ("systemctl", "setpriv"):
            found.stub(name)
        yield found


STARTED = f"systemctl start --no-block joblib-azure@{USER}-{KEY}.service"


def modes(path: Path) -> str:
    return oct(path.lstat().st_mode)


# the script -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_it_makes_the_folders_and_the_units_however_often(node: Node, shell: str) -> None:
    found = []
    for _ in range(2):
        node.forget()
        done = node.start(shell=shell)
        assert (done.returncode, done.stderr) == (0, "")
        assert node.asked == ["systemctl daemon-reload", "systemctl restart joblib-azure-requests.path"]
        found.append({path.name: path.read_text() for path in (*node.units.iterdir(), node.program)})
        assert modes(node.base) == modes(node.base / "requests") == "0o41777"
        assert {modes(path) for path in (*node.units.iterdir(), node.program)} == {"0o100644"}
    assert found[0] == found[1]
    assert sorted(found[0]) == [
        "joblib-azure-requests.path",
        "joblib-azure-requests.service",
        "joblib-azure@.service",
        "supervise",
    ]


def test_what_users_have_put_there_stays(node: Node) -> None:
    node.start()
    home = node.user()
    node.start()
    assert (home / "code" / KEY / "start").exists()


def test_others_cannot_write_what_the_administrator_runs(node: Node) -> None:
    old = os.umask(0)
    try:
        node.start()
    finally:
        os.umask(old)
    assert {modes(path) for path in (*node.units.iterdir(), node.program)} == {"0o100644"}
    assert modes(node.program.parent) == "0o40755"


@pytest.mark.parametrize("why", ["no systemd", "emulated", "no systemctl", "no setpriv", "a space", "refused"])
def test_where_there_is_no_systemd_there_are_no_requests(node: Node, why: str) -> None:
    node.start()
    node.forget()
    assert (node.base / "requests").exists()
    shutil.rmtree(node.units)
    node.units.mkdir()
    variables, said = {}, ""
    if why == "no systemd":
        shutil.rmtree(node.run)
    elif why == "emulated":
        variables["BATCH_EMULATOR_RUN_ID"] = "1"
    elif why.startswith("no "):
        # Without the machine's own.
        for name in ("dirname", "mkdir", "chmod", "rm", "cat", "mv", "timeout"):
            (node.folder / "bin" / name).symlink_to(str(shutil.which(name)))
        (node.folder / "bin" / why[3:]).unlink()
        variables["PATH"] = str(node.folder / "bin")
        said = "no setpriv" if why == "no setpriv" else ""
    elif why == "a space":
        (node.folder / "disk" / "a b" / "batch").mkdir(parents=True)
        variables["AZ_BATCH_NODE_ROOT_DIR"] = str(node.folder / "disk" / "a b" / "batch" / "tasks")
        said = "of the path"
    else:
        node.stub("systemctl", "echo no bus >&2; exit 1")
        said = "systemd does not start it"
    done = node.start("echo goes on >&2", **variables)
    assert done.returncode == 0
    assert done.stderr.endswith("goes on\n")
    assert said in done.stderr
    assert bool(said) == ("no service for warm runners" in done.stderr)
    base = node.folder / "disk" / "a b" / "joblib_azure" if why == "a space" else node.base
    assert modes(base) == "0o41777"
    assert not (base / "requests").exists()
    if why != "refused":
        assert not (node.units.exists() and list(node.units.iterdir()))


@pytest.mark.parametrize("root", ["", "relative/batch/tasks"])
def test_without_a_root_it_does_nothing(node: Node, root: str) -> None:
    done = node.start(AZ_BATCH_NODE_ROOT_DIR=root)
    assert (done.returncode, done.stderr, node.asked) == (0, "", [])


@pytest.mark.parametrize("what", ["a link", "a file", "a link for requests", "no disk"])
def test_it_follows_nobody_elsewhere(node: Node, what: str) -> None:
    target = node.folder / "target"
    target.mkdir(mode=0o700)
    if what == "a link":
        node.base.symlink_to(target)
    elif what == "a file":
        node.base.write_text("")
    elif what == "a link for requests":
        node.base.mkdir()
        (node.base / "requests").symlink_to(target)
    else:
        shutil.rmtree(node.folder / "disk")
    done = node.start("echo goes on >&2")
    assert done.returncode == 0
    assert done.stderr.startswith("joblib_azure: ")
    assert done.stderr.endswith("goes on\n")
    assert modes(target) == "0o40700"
    assert not any("restart" in line for line in node.asked)
    assert not os.path.lexists(node.base / "requests")


@pytest.mark.skipif(not ROOT, reason="only the administrator can give a folder to somebody else")
def test_a_folder_of_somebody_else_is_not_used(node: Node) -> None:
    node.base.mkdir()
    os.chown(node.base, USER, USER)
    done = node.start()
    assert "is not a folder of this user" in done.stderr
    assert node.asked == []
    assert modes(node.base) == "0o40755"


def test_what_the_user_writes_behind_it_fails_as_before(node: Node) -> None:
    for lines, code in ((("set -e -o pipefail", "false", "exit 0"), 1), (("set -e -o pipefail", "exit 7"), 7)):
        assert node.start(*lines, shell="/bin/bash").returncode == code
    assert node.start("set -e -o pipefail", shell="/bin/bash").returncode == 0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_understands_the_units(node: Node) -> None:
    node.start()
    (node.units / f"joblib-azure@{USER}-{KEY}.service").symlink_to("joblib-azure@.service")
    names = ["joblib-azure-requests.path", "joblib-azure-requests.service", f"joblib-azure@{USER}-{KEY}.service"]
    # The folder and what the distribution has.
    environment = {"PATH": os.environ["PATH"], "SYSTEMD_UNIT_PATH": f"{node.units}:", "SYSTEMD_LOG_LEVEL": "warning"}
    command = ["systemd-analyze", "verify", "--man=no", *(str(node.units / name) for name in names)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    # What is wrong with the machine's own units is none of ours.
    assert [line for line in done.stderr.splitlines() if "joblib-azure" in line] == []
    assert done.returncode == 0, done.stderr


def test_the_units_say_what_they_must(node: Node) -> None:
    node.start()
    template = (node.units / "joblib-azure@.service").read_text()
    # "0" would be the raw limit, which allows nothing; "+0" is the priority.
    for line in ("LimitNICE=+0", "KillMode=control-group", "OOMPolicy=continue"):
        assert f"\n{line}\n" in template
    assert "Restart=" not in template
    assert f"\nExecStart=/bin/sh {node.program} {node.base} %i\n" in template


# requests -------------------------------------------------------------------------------------------------


@needs_stat
def test_a_request_starts_its_owners_supervisor_once(node: Node) -> None:
    node.start()
    node.user()
    request = node.request()
    node.forget()
    assert node.supervise().stderr == ""
    assert node.asked == [STARTED]
    node.forget()
    assert not request.exists()
    assert node.supervise().stderr == ""
    assert node.asked == []


@needs_stat
@pytest.mark.parametrize(
    "name",
    [
        "0123456789ABCDEF",
        "0123456789abcde",
        "0123456789abcdef0",
        "0123456789abcdeg",
        "0123456789abcde\n",
        "; touch hacked #",
        "$(touch hacked)",
        "*",
        "-rf",
        ".0123456789abcde",
        "..01234567890123",
        "ünïcode-01234567",
    ],
)
def test_no_other_name_starts_anything(node: Node, name: str) -> None:
    node.start()
    node.user()
    request = node.request(name)
    node.forget()
    done = node.supervise()
    assert "was in vain" in done.stderr
    assert done.returncode == 0
    assert node.asked == []
    assert not request.exists()  # or systemd would start this for ever
    assert (node.base / str(USER)).exists()


@needs_stat
@pytest.mark.parametrize("kind", ["link", "dangling link", "second name", "folder", "full folder", "pipe"])
def test_nothing_but_a_plain_file_is_a_request(node: Node, kind: str) -> None:
    node.start()
    home = node.user()
    path, other = node.base / "requests" / KEY, home / "file"
    other.touch()
    if kind == "link":
        path.symlink_to(other)
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "second name":
        os.link(other, path)
    elif kind.endswith("folder"):
        path.mkdir()
        if kind.startswith("full"):
            (path / "link").symlink_to(home)
    else:
        os.mkfifo(path)
    if ROOT:
        os.chown(path, USER, USER, follow_symlinks=False)
    node.forget()
    assert "was in vain" in node.supervise().stderr
    assert node.asked == []
    assert not os.path.lexists(path)
    assert other.exists()
    assert (home / "code" / KEY / "start").exists()


@needs_stat
def test_a_user_without_a_folder_of_its_own_starts_nothing(node: Node) -> None:
    node.start()
    home = node.user()
    elsewhere = home.rename(home.with_name("elsewhere"))
    for make in (lambda: None, lambda: home.symlink_to(elsewhere), lambda: (home.unlink(), home.write_text(""))):
        make()
        node.request()
        node.forget()
        assert "was in vain" in node.supervise().stderr
        assert node.asked == []


@needs_stat
@pytest.mark.skipif(not ROOT, reason="only the administrator can make files of others")
def test_a_request_starts_what_is_its_owners(node: Node) -> None:
    node.start()
    node.user()
    other = node.user(1234)
    node.forget()
    node.request(uid=1234)
    assert node.supervise().stderr == ""
    assert node.asked == [f"systemctl start --no-block joblib-azure@1234-{KEY}.service"]
    node.forget()
    # Somebody has made the folder of a user who has none yet.
    os.chown(other, USER, USER)
    node.request(uid=1234)
    assert "user 1234 was in vain" in node.supervise().stderr
    # The administrator's name starts nothing at all.
    node.user(0)
    node.request(uid=0)
    assert "user 0 was in vain" in node.supervise().stderr
    assert node.asked == []


@needs_stat
@pytest.mark.parametrize("instance", [f"0-{KEY}", f"00-{KEY}", f"root-{KEY}", f"-{KEY}", KEY, f"{USER}-", f"{USER}-x"])
def test_no_other_instance_runs(node: Node, instance: str) -> None:
    node.start()
    node.user()
    node.forget()
    assert node.supervise(instance).returncode == 1
    assert node.asked == []


@needs_stat
@pytest.mark.skipif(not ROOT or shutil.which("setpriv") is None, reason="only the administrator becomes others")
def test_the_supervisor_runs_as_the_owner(node: Node) -> None:
    node.start()
    home = node.user()
    (node.folder / "bin" / "setpriv").unlink()
    (home / "code" / KEY / "start").write_text(f"id -u >{home}/ran\nid -G >>{home}/ran\n")
    assert node.supervise(f"{USER}-{KEY}").stderr == ""
    uid, groups = (home / "ran").read_text().split("\n", 1)
    assert int(uid) == USER
    assert "0" not in groups.split()


# the pool -------------------------------------------------------------------------------------------------


def spec(**settings: Any) -> tuple[ClusterConfig, PoolSpec]:
    config = config_of(**settings)
    return config, pool_spec(config, ACCOUNT, ImageSpec(publisher="p", offer="o", sku="s"), "agent")


def test_the_start_task_of_a_pool() -> None:
    lines = ["apt-get update # it's late", "true"]
    _, found = spec(command_line=lines)
    assert found.start_task is not None
    command = found.start_task.command
    assert command.startswith("/bin/bash -c ")
    assert supervision.MARK in command
    assert users_lines(found.start_task) == "\n".join(lines)
    assert users_lines(spec()[1].start_task) == users_lines(None) == ""
    # The service takes 32,768 characters, and the user has lines too.
    assert len(command) < 4096
    assert "'" not in supervision.prelude()


def test_no_script_where_there_are_no_warm_runners() -> None:
    for settings in ({"warm_runners": False}, {"container_image": "python:3.12"}):
        assert spec(**settings)[1].start_task is None
        task = spec(**settings, command_line=["true"])[1].start_task
        assert task is not None
        assert task.command == "/bin/bash -c 'set -e -o pipefail\ntrue'"


def test_an_emulated_node_has_the_folder_and_no_requests() -> None:
    def look() -> tuple[str, bool]:
        base = Path(os.environ["AZ_BATCH_NODE_ROOT_DIR"]).parents[1] / "joblib_azure"
        return oct(base.stat().st_mode), (base / "requests").exists()

    with LocalCluster(nodes=1, cores_per_node=1) as cluster, parallel_config("azure", cluster=cluster):
        assert Parallel()(delayed(look)() for _ in range(2)) == [("0o41777", False)] * 2
        (node,) = cluster.batch.nodes(cluster.config.name)
        assert node.start_task_exit == 0


def named(config: ClusterConfig, wanted: PoolSpec, task: StartTaskSpec | None) -> list[str]:
    """Return what differs where a pool has this start task and is else what is wanted."""
    found = PoolState(
        id=wanted.id,
        state="active",
        allocation="steady",
        vm_size=wanted.vm_size,
        task_slots_per_node=wanted.task_slots_per_node,
        spec=replace(wanted, start_task=task),
        target_dedicated=wanted.dedicated_nodes,
    )
    return [str(difference) for difference in differences(config, wanted, found)]


def test_a_pool_differs_by_what_the_user_wrote() -> None:
    lines = ["apt-get update", "apt-get install -y libgomp1"]
    config, wanted = spec(command_line=lines)
    plain = spec(command_line=lines, warm_runners=False)[1].start_task
    older = replace(wanted.start_task, command=wanted.start_task.command.replace("umask 022", "umask 077"))
    for task in (wanted.start_task, plain, older):
        assert named(config, wanted, task) == []
    (difference,) = named(config, wanted, spec(command_line=lines[:1])[1].start_task)
    assert difference == (
        "commandLine: the configuration says 'apt-get update\\napt-get install -y libgomp1', "
        "the pool has 'apt-get update'"
    )
    for task in (None, spec()[1].start_task):
        assert "the pool has none" in named(config, wanted, task)[0]
    # Somebody else's, shown as it is.
    for command in ("/bin/sh -c 'echo it'", "echo 'not closed", f"/bin/bash -c '{supervision.MARK}\ntrue'"):
        (difference,) = named(config, wanted, StartTaskSpec(command=command))
        assert repr(command) in difference
    config, wanted = spec()
    for task in (None, wanted.start_task):
        assert named(config, wanted, task) == []
