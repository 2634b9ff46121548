"""``python -m joblib_azure.chaos``: the emulator and Azurite, and a storm between them and their clients.

How the two are started comes as JSON in the environment (`SERVERS_VARIABLE`), since it holds keys. One line of JSON on
stdout says where the proxies listen. SIGTERM and the end of stdin end all of it. On the Batch proxy's port, with the
account's key in the header ``x-emulator-key``::

    GET  /_chaos/report    what has struck so far, by the names of the faults
    POST /_chaos/strike    strikes now; the body is a strike as a schedule has it
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from ..emulator.control import KEY_HEADER
from ..emulator.process import KEY_VARIABLE
from ..emulator.processes import RUN_ID_VARIABLE
from .answers import Request, Response
from .proxy import CONTROL, Proxy
from .schedule import Schedule, ScheduleError
from .servers import Command, Server, ServerError, read_commands, run_id
from .storm import Account, Storm, StrikeFailed
from .weather import Weather

SERVERS_VARIABLE = "JOBLIB_AZURE_CHAOS_SERVERS"
_LOOK = 0.2
#: Seconds that a pool is being deleted, at least: so long that a client sees it.
_POOL_DELETION_SECONDS = 1.5
#: How the paths end by which tasks are added.
_ADDS = ("/addtaskcollection", "/tasks")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m joblib_azure.chaos", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--schedule", type=Path, required=True, help="file of the schedule")
    parser.add_argument("--account", required=True, help="name of the Batch account")
    parser.add_argument("--log", type=Path, required=True, help="file that takes a line for each strike")
    parser.add_argument("--batch-port", type=int, default=0, help="where clients reach the Batch account; 0: any")
    parser.add_argument("--storage-port", type=int, default=0, help="where they reach the storage account; 0: any")
    given = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    schedule = Schedule.from_json(given.schedule.read_text())
    emulator, azurite = read_commands(os.environ.pop(SERVERS_VARIABLE))
    try:
        ports = (given.batch_port, given.storage_port)
        asyncio.run(_serve(schedule, given.account, given.log, ports, emulator, azurite))
    except ServerError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


async def _serve(
    schedule: Schedule,
    account_name: str,
    log: Path,
    ports: tuple[int, int],
    emulated: Command,
    azurite_command: Command,
) -> None:
    key = emulated.environment[KEY_VARIABLE] or ""
    # Processes of nodes carry the run's id itself: the emulator ends all that do.
    environment = {**emulated.environment, RUN_ID_VARIABLE: run_id()}
    command = [*emulated.command, "--pool-deletion-seconds", str(_POOL_DELETION_SECONDS)]
    emulator = Server(Command(**{**vars(emulated), "environment": environment, "command": command}))
    azurite = Server(azurite_command)
    with log.open("a", buffering=1) as lines:
        weather = Weather(schedule, lambda line: lines.write(line + "\n"))
        account = Account(account_name, key, emulator)
        storage = Proxy("storage", weather, lambda: azurite.target)
        storm = Storm(schedule, weather, account, storage, azurite)

        def passed(request: Request, response: Response) -> None:
            if request.method == "POST" and request.path.endswith(_ADDS) and response.status < 300:
                storm.begun.set()

        batch = Proxy("batch", weather, lambda: emulator.target, passed, _Control(key, storm, weather).answer)
        batch.port, storage.port = ports
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        _watch_stdin(loop, stop.set)
        try:
            await asyncio.gather(emulator.start(), azurite.start(), batch.listen(), storage.listen())
            await storm.before()
            storm.begin()
            sys.stdout.write(
                json.dumps({"batch": f"http://127.0.0.1:{batch.port}", "storage": str(storage.port)}) + "\n"
            )
            sys.stdout.flush()
            while not stop.is_set() and emulator.running:
                try:
                    await asyncio.wait_for(stop.wait(), _LOOK)
                except asyncio.TimeoutError:
                    continue
        finally:
            await storm.close()
            await asyncio.gather(batch.close(), storage.close(), emulator.stop(), azurite.stop())


class _Control:
    """Answers what is asked of the storm itself."""

    def __init__(self, key: str, storm: Storm, weather: Weather) -> None:
        self._key, self._storm, self._weather = key.encode(), storm, weather

    async def answer(self, request: Request) -> Response:
        given = {name.lower(): value for name, value in request.headers}
        if given.get(KEY_HEADER.encode()) != self._key:
            return _json(403, {"error": f"the header {KEY_HEADER} does not hold the account's key"})
        if (request.method, request.path) == ("GET", f"{CONTROL}report"):
            return _json(200, {**self._weather.report(), "missed": self._storm.missed})
        if (request.method, request.path) == ("POST", f"{CONTROL}strike"):
            try:
                schedule = Schedule.from_json(json.dumps({"strikes": [json.loads(request.body)]}))
                return _json(200, {"struck": await self._storm.strike(schedule.strikes[0])})
            except (ScheduleError, ValueError) as exc:
                return _json(400, {"error": str(exc)})
            except StrikeFailed as exc:
                return _json(409, {"error": str(exc)})
        return _json(404, {"error": "known are GET report and POST strike"})


def _json(status: int, found: object) -> Response:
    return Response(status=status, headers=((b"Content-Type", b"application/json"),), body=json.dumps(found).encode())


def _watch_stdin(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    def look() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            loop.remove_reader(sys.stdin.fileno())
            stop()

    loop.add_reader(sys.stdin.fileno(), look)


if __name__ == "__main__":
    sys.exit(main())
