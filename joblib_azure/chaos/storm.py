"""What happens to nodes, pools, jobs and Azurite: by requests to the service as somebody else makes them, by the
emulator's control routes, and by killing processes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from email.utils import format_datetime
from typing import Any, TypeVar
from urllib.parse import quote

import psutil

from ..emulator.auth import Authentication
from ..emulator.control import KEY_HEADER
from ..emulator.processes import RUN_ID_VARIABLE, carriers
from .answers import Request
from .proxy import Proxy, ask
from .schedule import ON_DEMAND, Schedule, Strike
from .servers import Server, run_id
from .weather import Weather

_API = "api-version=2025-06-01"
#: Seconds for which a strike looks for something to strike, and between two looks.
_PATIENCE, _LOOK = 8.0, 0.1
#: What the ids of the client's jobs begin with, and the pool that a local cluster has.
_JOBS, _POOL = "joblib-", "local"


Item = TypeVar("Item")


class StrikeFailed(RuntimeError):
    """There was nothing to strike, or the service refused it."""


class Account:
    """The emulated account, as somebody else with its key uses it: past the proxies."""

    def __init__(self, name: str, key: str, server: Server) -> None:
        self._auth, self._name, self._key, self._server = Authentication(name, key), name, key, server

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None, query: str = "") -> Any:
        """Return the answer's JSON. :raises StrikeFailed: the service refuses it."""
        raw_query = f"{_API}&{query}" if query else _API
        content = b"" if body is None else json.dumps(body).encode()
        headers = {"ocp-date": format_datetime(datetime.now(timezone.utc), usegmt=True), "host": "127.0.0.1"}
        if body is not None:
            headers |= {"content-type": "application/json; odata=minimalmetadata", "content-length": str(len(content))}
        signature = base64.b64encode(self._auth.signature(method, path, raw_query, headers)).decode()
        headers["authorization"] = f"SharedKey {self._name}:{signature}"
        return await self._send(method, f"{path}?{raw_query}", headers, content)

    async def control(self, path: str) -> None:
        """Ask a control route of the emulator. :raises StrikeFailed: it refuses."""
        await self._send("POST", f"/_emulator/{path}", {KEY_HEADER: self._key, "host": "127.0.0.1"}, b"")

    async def _send(self, method: str, target: str, headers: dict[str, str], content: bytes) -> Any:
        raw = tuple((name.encode(), value.encode()) for name, value in headers.items())
        request = Request(service="batch", method=method, target=target, headers=raw, body=content)
        response = await ask(self._server.target, request)
        if response.status >= 300:
            raise StrikeFailed(f"{method} {target}: {response.status} {response.body[:300]!r}")
        return json.loads(response.body) if response.body else None

    async def values(self, path: str, query: str = "") -> list[dict[str, Any]]:
        """Return a list, in the order of ids; a job's or a pool's that is not there has none."""
        try:
            found = await self.ask("GET", path, query=query)
        except StrikeFailed:
            return []
        return sorted(found["value"], key=lambda each: str(each["id"]))


class Storm:
    """Strikes as the schedule says, once the first task was added.

    Parameters
    ----------
    schedule : Schedule
    weather : Weather
        Counts.
    account : Account
    storage : Proxy
    azurite : Server
    """

    def __init__(self, schedule: Schedule, weather: Weather, account: Account, storage: Proxy, azurite: Server) -> None:
        self._schedule, self._weather, self._account = schedule, weather, account
        self._storage, self._azurite = storage, azurite
        self._restarting = asyncio.Lock()
        self.begun = asyncio.Event()
        #: What went wrong where something should have.
        self.missed: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._how: dict[str, Callable[[Strike], Awaitable[str]]] = {
            "clock-skew": self._skew,
            "preempted": lambda strike: self._node(strike, "preempt", spot=True),
            "rebooted": self._reboot,
            "unusable": lambda strike: self._node(strike, "unusable"),
            "lost": lambda strike: self._node(strike, "lose"),
            "disk-full": lambda strike: self._node(strike, "fill"),
            "start-task-failed": self._fail_start_task,
            "preparation-failed": self._fail_preparation,
            "task-killed": self._kill_task,
            "supervisor-killed": lambda strike: self._kill(strike, ("supervise",)),
            "runner-killed": lambda strike: self._kill(strike, ("runner", "worker")),
            "pool-deleted": self._delete_pool,
            "job-ended": self._end_job,
            "azurite-restarted": self._restart_azurite,
        }

    async def before(self) -> None:
        """Strike what strikes before anybody asks anything."""
        for strike in self._schedule.strikes:
            if not strike.service and strike.after < 0:
                await self.strike(strike)

    def begin(self) -> None:
        """Let the others come, each at its time."""
        for strike in self._schedule.strikes:
            if not strike.service and 0 <= strike.after < ON_DEMAND:
                self.spawn(self._later(strike))

    def spawn(self, coroutine: Any) -> None:
        """Run a coroutine beside all else, until `close`."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Strike no more."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _later(self, strike: Strike) -> None:
        await self.begun.wait()
        await asyncio.sleep(strike.after)
        with contextlib.suppress(StrikeFailed):
            await self.strike(strike)

    async def strike(self, strike: Strike) -> str:
        """Strike now, as soon as there is something to strike; return what was struck.

        Raises
        ------
        StrikeFailed
            Where there was nothing for some seconds.
        """
        if strike.service:
            self._weather.add(strike)
            return strike.service
        loop = asyncio.get_running_loop()
        end = loop.time() + _PATIENCE
        while True:
            try:
                where = await self._how[strike.fault](strike)
            except (StrikeFailed, OSError, psutil.Error) as exc:
                if loop.time() > end:
                    self.missed.append(f"{strike.fault}: {exc}")
                    raise StrikeFailed(f"{strike.fault}: {exc}") from exc
                await asyncio.sleep(_LOOK)
                continue
            self._weather.count(strike.fault, where)
            return where

    # nodes ----------------------------------------------------------------------------------------------

    async def _some_node(self, strike: Strike, *, spot: bool = False) -> str:
        """Return the path of a node that is up, below ``pools/``; not the last one that is."""
        found = []
        for pool in await self._account.values("/pools"):
            for node in await self._account.values(f"/pools/{pool['id']}/nodes"):
                if node["state"] in ("idle", "running"):
                    found.append((node["isDedicated"], f"pools/{pool['id']}/nodes/{node['id']}"))
        fitting = [path for dedicated, path in found if not (spot and dedicated)]
        if not fitting or len(found) < 2:
            raise StrikeFailed(f"{len(found)} node(s) are up, {len(fitting)} fit")
        return _picked(fitting, strike.pick)

    async def _node(self, strike: Strike, what: str, *, spot: bool = False) -> str:
        path = await self._some_node(strike, spot=spot)
        await self._account.control(f"{path}/{what}?seconds={strike.seconds}")
        return path

    async def _reboot(self, strike: Strike) -> str:
        path = await self._some_node(strike)
        await self._account.ask("POST", f"/{path}/reboot", {"nodeRebootOption": "requeue"})
        return path

    async def _fail_start_task(self, strike: Strike) -> str:
        path = await self._some_node(strike)
        await self._account.control("tasks/start/fail?count=1")
        await self._account.ask("POST", f"/{path}/reboot", {"nodeRebootOption": "requeue"})
        self.spawn(self._repair(strike.seconds))
        return path

    async def _repair(self, seconds: float) -> None:
        """Reboot the nodes whose start task has failed: it does not fail again."""
        await asyncio.sleep(seconds)
        while True:
            for pool in await self._account.values("/pools"):
                for node in await self._account.values(f"/pools/{pool['id']}/nodes"):
                    if node["state"] == "starttaskfailed":
                        with contextlib.suppress(StrikeFailed):
                            path = f"/pools/{pool['id']}/nodes/{node['id']}/reboot"
                            await self._account.ask("POST", path, {"nodeRebootOption": "requeue"})
            await asyncio.sleep(_LOOK)

    async def _fail_preparation(self, strike: Strike) -> str:
        await self._account.control("tasks/preparation/fail?count=1")
        return "the next"

    async def _skew(self, strike: Strike) -> str:
        await self._account.control(f"clock?ahead={strike.seconds}")
        self._weather.ahead = strike.seconds
        return f"{strike.seconds:+g} s"

    # processes ------------------------------------------------------------------------------------------

    async def _kill_task(self, strike: Strike) -> str:
        running, condition = [], quote("state eq 'running'")
        for job in await self._jobs():
            tasks = await self._account.values(f"/jobs/{job}/tasks", query=f"$filter={condition}")
            running += [(job, task["id"]) for task in tasks]
        if not running:
            raise StrikeFailed("no task runs")
        job, task = _picked(running, strike.pick)
        if strike.pick < 0.5:
            await self._account.ask("POST", f"/jobs/{job}/tasks/{task}/terminate")
            return f"{task} terminated"
        found = carriers([{"AZ_BATCH_JOB_ID": job, "AZ_BATCH_TASK_ID": task}])
        # The process that the service started: the leader of its session.
        leaders = [pid for pid in found if os.getsid(pid) == pid and "BATCH_EMULATOR_LAUNCH_ID" in _variables(pid)]
        if not leaders:
            raise StrikeFailed(f"task {task} has no process")
        os.kill(min(leaders), signal.SIGKILL)
        return f"{task} killed"

    async def _kill(self, strike: Strike, kinds: tuple[str, ...]) -> str:
        found = [pid for pid in sorted(carriers([{RUN_ID_VARIABLE: run_id()}])) if _kind(pid) in kinds]
        if not found:
            raise StrikeFailed(f"there is no {' and no '.join(kinds)}")
        pid = _picked(found, strike.pick)
        os.kill(pid, signal.SIGKILL)
        return f"process {pid}"

    # what somebody else does ----------------------------------------------------------------------------

    async def _jobs(self) -> list[str]:
        jobs = await self._account.values("/jobs")
        return [str(job["id"]) for job in jobs if job["state"] == "active" and job["id"].startswith(_JOBS)]

    async def _end_job(self, strike: Strike) -> str:
        jobs = await self._jobs()
        if not jobs:
            raise StrikeFailed("no job is active")
        job = _picked(jobs, strike.pick)
        await self._account.ask("POST", f"/jobs/{job}/terminate", {"terminateReason": "EndedBySomebody"})
        return job

    async def _delete_pool(self, strike: Strike) -> str:
        if strike.after < 0:  # so that the client finds it going
            machine = {
                "imageReference": {"publisher": "canonical", "offer": "ubuntu-24_04-lts", "sku": "server"},
                "nodeAgentSKUId": "batch.node.ubuntu 24.04",
            }
            pool = {"id": _POOL, "vmSize": "Emulated_C1", "virtualMachineConfiguration": machine}
            await self._account.ask("POST", "/pools", {**pool, "targetDedicatedNodes": 0})
        pools = await self._account.values("/pools")
        if not pools:
            raise StrikeFailed("there is no pool")
        await self._account.ask("DELETE", f"/pools/{pools[0]['id']}")
        return str(pools[0]["id"])

    async def _restart_azurite(self, strike: Strike) -> str:
        async with self._restarting:
            await self._storage.close()
            await self._azurite.stop()
            await asyncio.sleep(strike.seconds)
            await self._azurite.start()
            await self._storage.listen()
        return f"{strike.seconds:g} s"


def _picked(found: list[Item], pick: float) -> Item:
    return found[min(int(pick * len(found)), len(found) - 1)]


def _variables(pid: int) -> dict[str, str]:
    with contextlib.suppress(psutil.Error):
        return dict(psutil.Process(pid).environ())
    return {}


def _kind(pid: int) -> str:
    """Return what a process of a node's warm runners is; empty for any other."""
    try:
        process = psutil.Process(pid)
        command = process.cmdline()
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
    except psutil.Error:
        return ""
    word = str(command[2]) if len(command) > 2 else ""
    if word in ("supervise", "runner"):
        return word
    return "worker" if "joblib.externals.loky.backend" in " ".join(command) else ""
