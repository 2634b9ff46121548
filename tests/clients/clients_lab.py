"""Programs that nobody here wrote, each installed from the package registry into an environment of its own.

They must not share this project's: the Azure CLI and azure-batch 14.2 need other versions of what it has. The
environments are kept in ``.cache/clients``, by what is in them, and made with uv in seconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import uv

from joblib_azure.emulator import BatchEmulator

_CACHE = Path(__file__).parents[2] / ".cache" / "clients"
_INSTALL_SECONDS = 600
SCRIPT_SECONDS = 240


def environment(*requirements: str) -> Path:
    """The folder of a virtual environment with these packages, made if it is not there."""
    digest = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()[:12]
    folder = _CACHE / digest
    _CACHE.mkdir(parents=True, exist_ok=True)
    with open(_CACHE / f"{digest}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker may be at it
        stamp = folder / "installed.txt"
        if not stamp.exists():
            _run(uv.find_uv_bin(), "venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
            python = str(folder / "bin" / "python")
            _run(uv.find_uv_bin(), "pip", "install", "--quiet", "--python", python, *requirements)
            stamp.write_text("\n".join(requirements) + "\n")
    return folder


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-3000:]}")


def variables(emulator: BatchEmulator, home: Path) -> dict[str, str]:
    """The environment of a client, as docs/emulator.md tells a person to set it."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return {
        **kept,
        "HOME": str(home),
        "AZURE_BATCH_ACCOUNT": emulator.account_name,
        "AZURE_BATCH_ACCESS_KEY": emulator.account_key,
        "AZURE_BATCH_ENDPOINT": emulator.endpoint,
    }


def run_script(folder: Path, script: str, emulator: BatchEmulator, home: Path) -> Any:
    """Run a script beside this file in an environment; what it prints is JSON."""
    done = subprocess.run(
        [str(folder / "bin" / "python"), str(Path(__file__).parent / script)],
        env=variables(emulator, home),
        capture_output=True,
        text=True,
        timeout=SCRIPT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


class AzureCli:
    """The Azure CLI in a process that takes many commands: a start of Python for each would cost most of the time."""

    def __init__(self, folder: Path, emulator: BatchEmulator, home: Path) -> None:
        self.program = folder / "bin" / "az"
        self.environment = {
            **variables(emulator, home),
            "AZURE_CONFIG_DIR": str(home / "azure"),
            "AZURE_CORE_COLLECT_TELEMETRY": "false",
        }
        self._process = subprocess.Popen(
            [str(folder / "bin" / "python"), str(Path(__file__).parent / "az_server.py")],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tried(self, *arguments: str) -> dict[str, Any]:
        """Exit code, result and words of ``az batch …``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(["batch", *arguments]) + "\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def __call__(self, *arguments: str) -> Any:
        """The result of ``az batch …``, which must succeed."""
        found = self.tried(*arguments)
        assert found["code"] == 0, f"az batch {' '.join(arguments)}: {found['words']}"
        return found["result"]

    def once(self, *arguments: str) -> str:
        """What the program itself prints."""
        command: Sequence[str] = [str(self.program), "batch", *arguments]
        return subprocess.run(
            command, env=self.environment, check=True, capture_output=True, text=True, timeout=SCRIPT_SECONDS
        ).stdout

    def __enter__(self) -> AzureCli:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait(30)
