"""The two servers behind the proxies, as children of the storm: the Batch emulator, and Azurite, which may restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..emulator.processes import RUN_ID_VARIABLE

#: Seconds that a server may take to start, and to end before it is killed.
_START_SECONDS, _STOP_SECONDS = 60.0, 10.0
_LOOK = 0.01


class ServerError(RuntimeError):
    """A server did not start; the text ends with what it wrote."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """How a server is started.

    Parameters
    ----------
    command : list of str
    environment : mapping of str to (str or None)
        Beyond this process's; None: not there.
    folder : str
    log : str
        File that takes its output.
    ready : str
        Regular expression of the line that says where it listens; the group is a URL or a port.
    """

    command: list[str]
    environment: Mapping[str, str | None]
    folder: str
    log: str
    ready: str

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Command:
        """Read what the client has sent, which has more for others."""
        return cls(**{name: given[name] for name in cls.__dataclass_fields__})


class Server:
    """A child process that listens on a port of its own choice; from one start to the next another one."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self.target = ("127.0.0.1", 9)

    async def start(self) -> str:
        """Start it, wait until it listens, and return what it said of where.

        Raises
        ------
        ServerError
        """
        command, log = self._command, Path(self._command.log)
        environment = dict(os.environ)
        for name, value in command.environment.items():
            environment.pop(name, None) if value is None else environment.update({name: value})
        before = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            # Its own pipe to stdin: the emulator ends where that does, whatever becomes of this process.
            self._process = await asyncio.create_subprocess_exec(
                *command.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=command.folder,
                env=environment,
            )
        ready = re.compile(command.ready.encode(), re.MULTILINE)
        end = asyncio.get_running_loop().time() + _START_SECONDS
        while (match := ready.search(log.read_bytes()[before:])) is None:
            late = asyncio.get_running_loop().time() > end
            if late or self._process.returncode is not None:
                await self.stop()
                tail = log.read_bytes()[-2000:].decode(errors="replace").strip()
                raise ServerError(f"{command.command[0]} did not say where it listens. It wrote:\n{tail}")
            await asyncio.sleep(_LOOK)
        said = match.group(1).decode()
        self.target = ("127.0.0.1", int(said) if said.isdigit() else urlsplit(said).port or 80)
        return said

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def stop(self) -> None:
        """End it, as somebody does who wants its data kept."""
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        if process.stdin is not None:
            process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()


def run_id() -> str:
    """Return what all processes of nodes carry: this one carries it with something behind it."""
    return os.environ.get(RUN_ID_VARIABLE, "").partition(".")[0]


def read_commands(text: str) -> tuple[Command, Command]:
    """Return how the emulator and Azurite are started, from what the client has put into the environment."""
    emulator, azurite = json.loads(text)
    return Command.of(emulator), Command.of(azurite)
