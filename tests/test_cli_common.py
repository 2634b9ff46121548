"""What all commands share: they are light until they run, are told in a line, and end without a traceback."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import cli_process
import click
import pytest
from click.testing import CliRunner

from joblib_azure.cli import main
from joblib_azure.cli.common import Bounds, Commands, Interrupted, columns, emit, write_file
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.errors import ConfigurationError
from joblib_azure.service import JobSpec, RegistrySpec

ROOT = Path(__file__).parents[1]
LAZY = ("init", "doctor", "cluster", "account", "config")


def loaded(statement: str) -> set[str]:
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=cli_process.environment()
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_loads_no_command() -> None:
    show = (
        "from click.testing import CliRunner; from joblib_azure.cli import main\nCliRunner().invoke(main, ['--help'])"
    )
    found = loaded(show)
    assert not found & {"azure", "pydantic", "rich", "starlette", "uvicorn", "sklearn"}
    own = {name.rpartition(".")[2] for name in found if name.startswith("joblib_azure.cli.")}
    assert own == {"main", "common"}


def test_a_commands_help_loads_neither_sdk_nor_models() -> None:
    imports = ", ".join(f"joblib_azure.cli.{name}" for name in LAZY)
    assert not loaded(f"import {imports}") & {
        "azure",
        "pydantic",
        "rich",
        "joblib_azure.config",
        "joblib_azure.cluster",
    }


def test_each_command_is_listed_in_a_line() -> None:
    said = CliRunner(env={"COLUMNS": "120"}).invoke(main, ["--help"]).output
    for name in (*LAZY, "demo"):
        assert any(line.split()[:1] == [name] and line.rstrip().endswith(".") for line in said.splitlines()), said
        done = CliRunner().invoke(main, [name, "--help"])
        assert done.exit_code == 0
        assert f"Usage: main {name}" in done.output


def test_an_unknown_command() -> None:
    done = CliRunner().invoke(main, ["clutser"])
    assert done.exit_code == 2
    assert "No such command 'clutser'" in done.output


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigurationError("name: missing"), 1, "Error: name: missing"),
        (KeyboardInterrupt(), 130, "Stopped."),
        (Interrupted("The pool stays."), 130, "Stopped. The pool stays."),
        (click.Abort(), 130, "Stopped."),
    ],
)
def test_how_commands_end(error: BaseException, code: int, text: str) -> None:
    @click.group(cls=Commands)
    def group() -> None:
        pass

    @group.command()
    def failing() -> None:
        raise error

    done = CliRunner().invoke(group, ["failing"])
    assert done.exit_code == code
    assert text in done.output


def test_our_warnings_are_told_and_the_sdks_are_not() -> None:
    @click.group(cls=Commands)
    def group() -> None:
        pass

    @group.command()
    def warning() -> None:
        logging.getLogger("joblib_azure.cluster").warning("the pool %s is old", "p")
        logging.getLogger("joblib_azure.cluster").info("a detail")
        logging.getLogger("azure.batch").warning("deserialization", exc_info=ValueError("x"))

    done = CliRunner().invoke(group, ["warning"])
    assert done.stderr == "Warning: the pool p is old\n"
    assert done.stdout == ""


def test_bounds() -> None:
    assert Bounds().convert("4", None, None) == (0, 4)
    assert Bounds().convert("1:4", None, None) == (1, 4)
    assert Bounds(single=True).convert("4", None, None) == 4
    assert Bounds(single=True).convert("0:4", None, None) == (0, 4)
    for wrong in ("", "x", "1:", ":1", "3:2", "-1", "1:2:3"):
        with pytest.raises(click.BadParameter):
            Bounds().convert(wrong, None, None)


def test_json_shows_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    job = JobSpec(
        id="j", pool="p", environment={"KEY": "s3cret"}, preparation="", files={"f": "s3cret"}, lifetime=timedelta(1)
    )
    emit({"job": job, "registry": RegistrySpec(server="s", username="u", password="s3cret"), "at": _MOMENT, "n": (1,)})
    said = capsys.readouterr().out
    assert "s3cret" not in said
    found = json.loads(said)
    assert found["job"]["lifetime"] == 86400.0
    assert found["at"] == "2026-01-02T00:00:00+00:00"


_MOMENT = datetime(2026, 1, 2, tzinfo=timezone.utc)


def test_columns() -> None:
    assert columns([("a", 1), ("bcd", None)], ("name", "n")) == "name  n\na     1\nbcd   -"
    assert columns([]) == ""


def test_a_file_behind_a_link_stays_behind_it(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    real, link = tmp_path / "there" / "real.json", tmp_path / "link.json"
    real.write_text("old")
    link.symlink_to(real)
    write_file(link, "new", private=True)
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert real.stat().st_mode & 0o777 == 0o600


def test_the_examples_are_read() -> None:
    config = ClusterConfig.load(ROOT / "examples" / "cluster.json")
    assert config.nodes == 10
    account = AccountConfig.load(ROOT / "examples" / "credentials.json")
    assert account.batch_key is account.storage_key is None


#: Commands that change something, or whose output is a file's text or a demonstration.
_NO_JSON = {
    *("cluster resize", "cluster delete", "config reference", "config schema", "demo", "init"),
    *("job cancel", "job delete", "storage delete"),
}


def _commands(group: click.Group, name: str = "") -> Iterator[tuple[str, click.Command]]:
    for each in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), each)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _commands(command, f"{name} {each}".strip())
        else:
            yield f"{name} {each}".strip(), command


def test_every_command_that_reads_writes_json() -> None:
    without = {name for name, command in _commands(main) if not any("--json" in param.opts for param in command.params)}
    assert without == _NO_JSON
