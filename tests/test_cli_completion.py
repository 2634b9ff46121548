"""Completion as a person has it who presses the Tab key in a bash, with the line that README.md tells."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import cli_process
import jobs_lab as lab
import pytest
from joblib import delayed

from joblib_azure import Cluster, submit
from joblib_azure.config import AccountConfig, ClusterConfig

PROMPT = "here> "
BASH = shutil.which("bash")
README = (cli_process.ROOT / "README.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.skipif(BASH is None, reason="there is no bash")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project's folder with a job on its account, and the program in ``bin``."""
    made = tmp_path_factory.mktemp("project")
    program = made / "bin" / "joblib-azure"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.join(cli_process.command())} "$@"\n')
    program.chmod(0o755)
    with cli_process.account() as host:
        done = cli_process.run(made, "init", *cli_process.init_flags(host, "pool"), "--dedicated-nodes", "1")
        assert done.returncode == 0, done.stderr
        config, account = ClusterConfig.load(made / "cluster.json"), AccountConfig.load(made / "credentials.json")
        with Cluster(config, account) as cluster:
            submit([delayed(lab.square)(7)], cluster=cluster, name="sweep-seven").wait(60)
            cluster.blobs.create_container("inputs-of-mine")
            cluster.blobs.put("inputs-of-mine", "a/table.csv", b"1,2\n")
            yield made


class Shell(cli_process.Running):
    """An interactive bash in a terminal of its own."""

    def __init__(self, folder: Path) -> None:
        path = f"{folder / 'bin'}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
        program = [str(BASH), "--norc", "--noprofile", "-i"]
        more = {"PATH": path, "PS1": PROMPT, "TERM": "dumb", "HISTFILE": "", "INPUTRC": "/dev/null"}
        super().__init__(folder, program=program, terminal=True, **more)
        self.expect(PROMPT)
        (line,) = re.findall(r'`(eval "\$\(_JOBLIB_AZURE_COMPLETE=bash_source joblib-azure\)")`', README)
        self.enter(line)

    def enter(self, line: str) -> str:
        """Type a line and return what it brought, its echo first."""
        self.output = ""
        self.type(f"{line}\n")
        self.expect(f"\n{PROMPT}")
        return self.output.replace("\r", "")


@pytest.fixture(scope="module")
def shell(folder: Path) -> Iterator[Shell]:
    with Shell(folder) as found:
        yield found


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("joblib-azure stor\t", "joblib-azure storage "),
        ("joblib-azure job tim\t", "joblib-azure job timeline "),
        ("joblib-azure job show sw\t", "joblib-azure job show sweep-seven "),
        ("joblib-azure cluster show --name po\t", "joblib-azure cluster show --name pool "),
        ("joblib-azure storage list inp\t", "joblib-azure storage list inputs-of-mine "),
        ("joblib-azure storage get inputs-of-mine a/\t", "joblib-azure storage get inputs-of-mine a/table.csv "),
        ("joblib-azure job show --cluster clu\t", "joblib-azure job show --cluster cluster.json "),
        # Another account's files: nothing is known, and nothing is said.
        ("joblib-azure job show --credentials none sw\t", "joblib-azure job show --credentials none sw"),
    ],
)
def test_what_tab_completes(typed: str, completed: str, shell: Shell) -> None:
    # What comes behind the key is read once bash has completed, or has not: on a busy machine it may give up.
    def completes() -> bool:
        said = shell.enter(f"false && {typed}#").replace("\a", "")
        return f"false && {completed}#" in said

    lab.until(completes, f"{typed!r} is completed")


def test_a_completed_line_runs(shell: Shell) -> None:
    told = "job sweep-seven: completed, 1 of 1 calls done"
    lab.until(lambda: told in shell.enter("joblib-azure job show sw\t"), "the line was completed")
