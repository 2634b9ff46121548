"""Imports go down only, and what must start quickly imports little."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def loaded_by(statement: str, environment: dict[str, str] | None = None) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **(environment or {})},
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("statement", "environment", "not_loaded"),
    [
        ("import joblib_azure", {}, {"azure", "pydantic", "rich", "click", "starlette", "uvicorn", "sklearn"}),
        (
            "import joblib_azure.node.task",
            {"JOBLIB_AZURE_NODE": "1"},
            {"azure", "joblib", "numpy", "cloudpickle", "pydantic"},
        ),
        ("import joblib_azure.progress", {}, {"azure", "pydantic", "rich", "click", "IPython"}),
        ("import joblib_azure.emulator", {}, {"azure", "starlette", "uvicorn", "pydantic"}),
        # joblib itself is loaded: the package registers its backend with it.
        ("import joblib_azure.cli", {}, {"azure", "rich", "starlette", "uvicorn", "pydantic", "sklearn"}),
    ],
)
def test_imports_are_light(statement: str, environment: dict[str, str], not_loaded: set[str]) -> None:
    assert not loaded_by(statement, environment) & not_loaded


def test_a_task_needs_the_standard_library_alone() -> None:
    """Its process starts for every Batch task; each import is paid that often."""
    environment = {"JOBLIB_AZURE_NODE": "1"}
    # What the interpreter's own start brings (the finder of an editable installation, say) is not the task's.
    brought = loaded_by("", environment)
    loaded = {name.split(".")[0] for name in loaded_by("import joblib_azure.node.task", environment) - brought}
    assert loaded - sys.stdlib_module_names == {"joblib_azure"}


def test_the_node_side_needs_nothing_else_of_the_package() -> None:
    loaded = loaded_by("import joblib_azure.node.task, joblib_azure.node.runner", {"JOBLIB_AZURE_NODE": "1"})
    own = {name.split(".")[1] for name in loaded if name.startswith("joblib_azure.")}
    assert own == {"codec", "errors", "node", "retries", "transfer"}


def test_the_contracts_hold() -> None:
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert program is not None
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
