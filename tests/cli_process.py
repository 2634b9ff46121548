"""The command line as a user has it: real processes, in a folder and an environment of their own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from joblib_azure.local.host import LocalHost, processes_of

ROOT = Path(__file__).parents[1]
_PROGRAM = "from joblib_azure.cli import main; main(prog_name='joblib-azure')"
#: Sends itself SIGKILL in place of the n-th call of a function of `os`.
_KILLED = """
import os, signal
real, left = os.{function}, [{number}]
def killing(*args, **kwargs):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
os.{function} = killing
"""
_SETTINGS = ("AZURE_", "JOBLIB_AZURE_")


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment without what would configure the program."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    # The checkout is found from any folder, also where the package was not installed.
    path = os.pathsep.join([str(ROOT), *filter(None, [clean.get("PYTHONPATH")])])
    return {**clean, "PYTHONPATH": path, "COLUMNS": "120", **more}


def command(*arguments: str, before: str = "") -> list[str]:
    return [sys.executable, "-c", f"{before}\n{_PROGRAM}", *arguments]


def run(folder: Path, *arguments: str, seconds: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def killed_at(function: str, number: int, folder: Path, *arguments: str, before: str = "", **env: str) -> None:
    """Run the program, after `before`; it is killed in place of its `number`-th call of ``os.function``."""
    before += _KILLED.format(function=function, number=number)
    done = subprocess.run(
        command(*arguments, before=before),
        cwd=folder,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


class Running:
    """The program while it runs, with its output so far."""

    def __init__(
        self, folder: Path, *arguments: str, terminal: bool = False, program: list[str] | None = None, **env: str
    ) -> None:
        program = command(*arguments) if program is None else program
        if terminal:
            # A pseudo-terminal that is the program's controlling one: hidden prompts ask for that.
            spawn = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
            program = [sys.executable, "-c", spawn, *program]
        self.output = ""
        self.process = subprocess.Popen(
            program,
            cwd=folder,
            env=environment(**env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def expect(self, text: str, seconds: float = 30) -> None:
        """Wait until `text` was written."""
        assert self.process.stdout is not None
        end = time.monotonic() + seconds
        while text not in self.output:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            assert data, f"{text!r} did not come:\n{self.output}"
            self.output += data.decode(errors="replace")

    def answer(self, question: str, line: str) -> None:
        """Answer a question, and forget the output up to it."""
        self.expect(question)
        self.output = self.output.partition(question)[2]
        self.type(line + "\n")

    def type(self, keys: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended meanwhile
            self.process.stdin.write(keys.encode())
            self.process.stdin.flush()

    def kill(self) -> None:
        """End it and all that it started, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def interrupt(self) -> None:
        """Ctrl-C, as a terminal sends it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self, seconds: float = 60) -> int:
        """Wait for its end; the rest of the output is in `output` then."""
        assert self.process.stdin is not None
        rest, _ = self.process.communicate(timeout=seconds)
        self.output += rest.decode(errors="replace")
        return self.process.returncode

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def folder_of(path: Path, files: Mapping[str, str]) -> Path:
    """Make a folder with these files."""
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name).write_text(text)
    return path


@contextlib.contextmanager
def account(*options: str) -> Iterator[LocalHost]:
    """A Batch account on the emulator and a storage account on Azurite, with `options` of the emulator."""
    program = (sys.executable, "-m", "joblib_azure.emulator", *options)
    with LocalHost(running_azurite_port=None, emulator_command=program) as host:
        run_id = host.run_id
        yield host
    assert processes_of(run_id) == []


def init_flags(host: LocalHost, name: str, size: str = "Emulated_C1", **settings: object) -> list[str]:
    """Flags of ``init`` for a pool of that account, whose nodes use this interpreter as it is."""
    values = {"environment.mode": "none", "python": sys.executable, **settings}
    return [
        *("--name", name, "--vm-size", size),
        *("--batch-endpoint", host.batch_endpoint, "--batch-account", host.account_name),
        *("--batch-key", host.account_key, "--storage-connection-string", host.storage_connection_string),
        *(each for key, value in values.items() for each in ("--set", f"{key}={json.dumps(value)}")),
    ]
