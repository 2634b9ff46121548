"""What the account holds, as JSON on disk, and back: an emulator that is started again goes on where it was.

    account ──dump──► JSON ──► file ──► JSON ──restore──► account; nodes boot, tasks that ran are queued again

A restart is to the nodes what a reboot is: what is on their disks stays, start tasks and preparation tasks run again,
tasks that ran are active again with their requeue count one higher. Samples of autoscale variables begin anew. Nodes
that were lost or preempted are back; those that were deallocated are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import nodes, poolspec, state, times
from .autoscaler import Autoscaler
from .state import Job, Node, Pool, Preparation, Progress, Resource, Schedule, Task, Usage

if TYPE_CHECKING:
    from .engine import Engine

_log = logging.getLogger(__name__)
#: Of the file's form; one of another version is refused.
VERSION = 1
#: Seconds between two looks for changes, at least; the looks take this part of the time at most.
_PAUSE, _PART = 0.5, 0.05
_RESOURCE = [each.name for each in fields(Resource)]
_MOMENTS = ("created", "modified", "state_since", "previous_since", "start", "end", "last_retry", "last_requeue", "due")


class StateError(ValueError):
    """The file is no state of this account."""


# out --------------------------------------------------------------------------------------------------------------


def dump(engine: Engine) -> dict[str, Any]:
    """Return all that the account holds, as JSON has it."""
    account = engine.account
    return {
        "version": VERSION,
        "account": account.name,
        "pools": [_pool(pool, engine) for pool in account.pools.values()],
        "schedules": [
            _resource(each, spec=each.spec, jobs_made=each.jobs_made, auto_pool=each.auto_pool)
            | _moments(due=each.due, end=each.end)
            for each in account.schedules.values()
        ],
        "jobs": [_job(job, engine.root) for job in account.jobs.values()],
        "usage": [{**vars(each), **_moments(start=each.start, end=each.end)} for each in account.usage],
    }


def _moments(**given: datetime | None) -> dict[str, str | None]:
    return {name: None if value is None else times.iso(value) for name, value in given.items()}


def _resource(item: Resource, **more: Any) -> dict[str, Any]:
    found = {name: getattr(item, name) for name in _RESOURCE}
    return found | _moments(**{name: found[name] for name in found if name in _MOMENTS}) | more


def _progress(item: Progress | None) -> dict[str, Any] | None:
    if item is None:
        return None
    found = dict(vars(item))
    return found | _moments(**{name: found[name] for name in found if name in _MOMENTS})


def _pool(pool: Pool, engine: Engine) -> dict[str, Any]:
    more: dict[str, Any] = {
        "spec": pool.spec,
        "targets": [pool.target_dedicated, pool.target_spot],
        "resize_timeout": pool.resize_timeout.total_seconds(),
        "resize_errors": list(pool.resize_errors),
        "steady": pool.allocation_state != "resizing",
        "deallocation": pool.deallocation,
        "nodes": [_node(node, engine.root) for node in pool.nodes.values()],
    }
    if pool.autoscale is not None:
        scale = pool.autoscale
        seconds = scale.interval.total_seconds()
        more["autoscale"] = {"formula": scale.formula.text, "interval": seconds, "run": scale.run}
    return _resource(pool, **more)


def _node(node: Node, root: Path) -> dict[str, Any]:
    return _resource(
        node,
        dedicated=node.dedicated,
        machine=str(node.machine.relative_to(root)),
        ip_address=node.ip_address,
        scheduling_enabled=node.scheduling_enabled,
        total_run=node.total_run,
        total_succeeded=node.total_succeeded,
        recent=[[task.job.id, task.id] for task in node.recent if not task.deleted],
        start_task=_progress(node.start_task),
        errors=list(node.errors),
    )


def _job(job: Job, root: Path) -> dict[str, Any]:
    return _resource(
        job,
        spec=job.spec,
        schedule=None if job.schedule is None else job.schedule.id,
        auto_pool=job.auto_pool,
        scheduling_error=job.scheduling_error,
        progress=_progress(job.progress),
        terminate_reason=job.terminate_reason,
        ending_for=job.ending_for,
        tasks=[_task(task, root) for task in job.tasks.values()],
        preparations=[
            {
                "node": each.node.id,
                "progress": _progress(each.progress),
                "release": _progress(each.release),
                "barred": each.barred,
                "interrupted": each.interrupted or not each.ended.is_set(),
                "forgotten": job not in each.node.preparations,
            }
            for each in job.preparations.values()
        ],
    )


def _task(task: Task, root: Path) -> dict[str, Any]:
    node = task.node
    where = None if node is None else [node.id, node.pool.id, str(node.machine.relative_to(root)), node.dedicated]
    progress = _progress(task.progress)
    return _resource(task, spec=task.spec, slots=task.slots, manager=task.manager, node=where, progress=progress)


# back -------------------------------------------------------------------------------------------------------------


def restore(engine: Engine, found: dict[str, Any]) -> None:
    """Give an account that is empty what it held, and set all of it going.

    Raises
    ------
    StateError
        Where it is another account's, or in another version's form.
    """
    if found.get("version") != VERSION:
        raise StateError(f"the state has version {found.get('version')!r}; this emulator reads {VERSION}")
    if found["account"] != engine.account.name:
        raise StateError(f"the state is that of account {found['account']!r}, not of {engine.account.name!r}")
    _Restored(engine).all(found)


def _read(kind: type[Any], given: dict[str, Any]) -> dict[str, Any]:
    """Take the fields that a class has by these names, with their moments."""
    names = {each.name for each in fields(kind)} & given.keys()
    return {name: _moment(given[name]) if name in _MOMENTS else given[name] for name in names}


def _moment(text: str | None) -> datetime | None:
    return None if text is None else times.parse_datetime(text)


def _progress_of(given: dict[str, Any]) -> Progress:
    return Progress(**_read(Progress, given))


class _Restored:
    """An account while it is being put together again."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: Nodes by their ids; those that have gone are known to the tasks that ran there.
        self._nodes: dict[str, Node] = {}
        self._last = 0

    def all(self, found: dict[str, Any]) -> None:
        account = self._engine.account
        for given in found["pools"]:
            account.pools[given["id"].lower()] = self._pool(given)
        for given in found["schedules"]:
            account.schedules[given["id"].lower()] = self._kept(Schedule(**_read(Schedule, given)))
        for given in found["jobs"]:
            account.jobs[given["id"].lower()] = self._job(given)
        account.usage += [Usage(**_read(Usage, given)) for given in found["usage"]]
        for given in (node for pool in found["pools"] for node in pool["nodes"]):
            self._nodes[given["id"]].recent.extend(self._recent(given["recent"]))
        state.continue_after(self._last)
        nodes.continue_after(node.machine.name for node in self._nodes.values())
        for pool, given in zip(list(account.pools.values()), found["pools"], strict=True):
            self._start_pool(pool, given)
        for job in list(account.jobs.values()):
            self._engine.jobs.resume(job)
        for schedule in list(account.schedules.values()):
            self._engine.schedules.resume(schedule)

    def _kept(self, item: Any) -> Any:
        self._last = max(self._last, item.sequence)
        return item

    def _pool(self, given: dict[str, Any]) -> Pool:
        pool: Pool = self._kept(poolspec.build(given["id"], given["spec"]))
        for name, value in _read(Resource, given).items():
            setattr(pool, name, value)
        self._kept(pool)
        pool.target_dedicated, pool.target_spot = given["targets"]
        pool.resize_timeout = timedelta(seconds=given["resize_timeout"])
        pool.resize_errors, pool.deallocation = given["resize_errors"], given["deallocation"]
        for each in given["nodes"]:
            node = self._node(pool, each)
            pool.nodes[node.id] = node
        return pool

    def _node(self, pool: Pool, given: dict[str, Any]) -> Node:
        values = _read(Node, given) | {"machine": self._engine.root / given["machine"]}
        start_task = values.pop("start_task")
        del values["recent"]  # tasks, which come later
        node = Node(pool=pool, cpus=self._engine.cpus.take(pool.cores), **values)
        node.start_task = None if start_task is None else _progress_of(start_task)
        self._nodes[node.id] = self._kept(node)
        return node

    def _gone(self, where: list[Any]) -> Node:
        """A node that a task ran on and that its pool has no more."""
        node_id, pool_id, machine, dedicated = where
        pool = self._engine.account.pools.get(pool_id.lower())
        if pool is None:
            pool = Pool(id=pool_id, state="deleting", spec={}, cores=1, slots=1, target_dedicated=0, target_spot=0)
        folder = self._engine.root / machine
        values = {"machine": folder, "cpus": frozenset[int](), "ip_address": "", "dedicated": dedicated}
        return Node(id=node_id, state="leavingpool", pool=pool, **values)

    def _job(self, given: dict[str, Any]) -> Job:
        values = _read(Job, given)
        for name in ("tasks", "preparations", "schedule", "progress"):
            values.pop(name)
        schedule = self._engine.account.schedules.get((given["schedule"] or "").lower())
        job: Job = self._kept(Job(schedule=schedule, progress=_progress_of(given["progress"]), **values))
        if schedule is not None:
            schedule.jobs.append(job)
        for each in given["tasks"]:
            task = self._task(job, each)
            job.tasks[task.id.lower()] = task
            job.count(task, +1)
        for each in given["preparations"]:
            self._preparation(job, each)
        return job

    def _task(self, job: Job, given: dict[str, Any]) -> Task:
        values, where = _read(Task, given), given["node"]
        task: Task = self._kept(
            Task(**{**values, "job": job, "node": None, "progress": _progress_of(given["progress"])})
        )
        if task.state == "completed":
            if where is not None:
                node = self._nodes.get(where[0]) or self._nodes.setdefault(where[0], self._gone(where))
                task.node, task.directory = node, nodes.task_directory(node, job, task.id)
        elif task.state != "active":
            # as after a reboot of its node
            task.progress.interrupt()
            task.state, task.state_since = "active", times.now()
        return task

    def _preparation(self, job: Job, given: dict[str, Any]) -> None:
        node = self._nodes.get(given["node"])
        if node is None or node.id not in node.pool.nodes:
            return
        found = Preparation(job, node, _progress_of(given["progress"]))
        found.release = None if given["release"] is None else _progress_of(given["release"])
        found.barred, found.interrupted = given["barred"], given["interrupted"]
        found.ended.set()
        job.preparations[node.id] = found
        if not given["forgotten"]:
            node.preparations[job] = found

    def _recent(self, given: Iterable[list[str]]) -> Iterable[Task]:
        for job_id, task_id in given:
            job = self._engine.account.jobs.get(job_id.lower())
            task = None if job is None else job.tasks.get(task_id.lower())
            if task is not None:
                yield task

    def _start_pool(self, pool: Pool, given: dict[str, Any]) -> None:
        for node in list(pool.nodes.values()):
            if node.state == "leavingpool":
                del pool.nodes[node.id]
                shutil.rmtree(node.machine, ignore_errors=True)
            else:
                self._engine.lives.resume(node)
        if pool.state == "deleting":
            self._engine.allocation.delete(pool)
            return
        scale = given.get("autoscale")
        if scale is not None:
            formula = Autoscaler.parse(scale["formula"])
            self._engine.autoscaler.resume(pool, formula, timedelta(seconds=scale["interval"]), scale["run"])
        self._engine.allocation.resume(pool, steady=given["steady"])


# the file ---------------------------------------------------------------------------------------------------------


class Store:
    """Keeps the file up to date, at most about a second behind.

    Parameters
    ----------
    engine : Engine
    file : Path
        It is replaced as a whole, and readable by its owner alone: specifications hold secrets.
    """

    def __init__(self, engine: Engine, file: Path) -> None:
        self._engine, self._file = engine, file
        self._written = b""
        self._over = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None

    def load(self) -> None:
        """Restore what the file has; nothing where there is none.

        Raises
        ------
        StateError
            Where it cannot be read, or is another account's.
        """
        try:
            self._written = self._file.read_bytes()
            found = json.loads(self._written)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as exc:
            raise StateError(f"{self._file}: {exc}") from exc
        restore(self._engine, found)

    def start(self) -> None:
        """Write from now on whenever something has changed."""
        self._keeping = asyncio.get_running_loop().create_task(self._keep())

    async def _keep(self) -> None:
        while not self._over.is_set():
            begun = time.monotonic()
            await self._write()
            pause = max(_PAUSE, (time.monotonic() - begun) / _PART)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._over.wait(), pause)

    async def _write(self) -> None:
        found = dump(self._engine)  # specifications are replaced, never changed
        data = await asyncio.to_thread(lambda: json.dumps(found).encode())
        if data != self._written:
            try:
                await asyncio.to_thread(self._replace, data)
            except OSError as exc:
                _log.error("the state cannot be written to %s: %s", self._file, exc)

    async def close(self) -> None:
        """Write for the last time, before what runs is ended; nothing where it was not started."""
        if self._keeping is not None:
            self._over.set()
            await self._keeping
            await self._write()

    def _replace(self, data: bytes) -> None:
        temporary = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        self._written = data
