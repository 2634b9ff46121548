"""The command line within a test's own process."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from joblib_azure.cli import main


def at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Be in a folder, without what the environment says of an account or a cluster."""
    for name in list(os.environ):
        if name.startswith(("AZURE_", "JOBLIB_AZURE_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(folder)


def run(*arguments: str, exit_code: int = 0, **more: Any) -> str:
    """Run a command, and return all that it writes."""
    done = CliRunner().invoke(main, arguments, **more)
    assert done.exit_code == exit_code, done.output
    assert "Traceback" not in done.output
    return done.output


def read(*arguments: str, exit_code: int = 0) -> Any:
    """Run a command that reads, and return what it writes as JSON."""
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == exit_code, done.output
    return json.loads(done.stdout)
