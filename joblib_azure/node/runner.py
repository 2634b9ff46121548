"""The process whose inner `joblib.Parallel` runs a bundle's chunks.

It is started with two pipes. On one it reads requests, a line of JSON each; on the other it writes what happened::

    task ──{"setting": …, "chunks": […], "width": 4}──► runner ──Parallel──► loky workers ──► journals
         ◄──{"ended": 17} · {"broken": "…"} · {"idle": true}──

It has a worker for each of the task's slots' workers; a call's own ``n_jobs=-1`` is bounded by ``LOKY_MAX_CPU_COUNT``.
With one there is no pool: the runner's main thread runs the chunks, as joblib does with one job.

A warm runner (`supervisor`) gets ready before its first task, and is put back after each::

    supervisor ──{"prepare": {"workers": 4, "modules": […]}}──► ◄── {"ready": …}
    host ──{"restore": true}──► ◄── {"restored": {"memory": …, "strays": []}}
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import queue
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker as own_tracker
from pathlib import Path
from typing import IO, Any

from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import reusable_executor
from joblib.externals.loky.backend import resource_tracker

from . import baseline
from .chunk import ChunkSpec, Place, Setting, Span, run_chunk
from .limits import WORKERS_VARIABLE
from .nested import close_nested_pool
from .proc import group_members, resident

#: Seconds that a warm runner's workers wait for each other's imports.
_MEET_SECONDS = 60.0
#: Seconds that idle workers of a warm runner stay: it ends as a whole, and sooner.
_IDLE_SECONDS = 7 * 86400


def main(requests_fd: int, reports_fd: int) -> int:
    """Serve requests until the task closes its end of the pipe."""
    gc.freeze()
    gc.enable()  # see `__main__`
    # The workers and the user's own child processes must not hold the task's pipes open.
    for fd in (requests_fd, reports_fd):
        os.set_inheritable(fd, False)
    # loky and the user's code want the main thread, so another one reads the pipe: its end tells that the
    # task is over, and where that comes in the middle of a request the task was killed.
    inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_read, args=(requests_fd, inbox, busy), daemon=True).start()
    with os.fdopen(reports_fd, "w", buffering=1) as reports:
        server = Server(reports)
        while (request := inbox.get()) is not None:
            server.serve(request)
            busy.clear()
    return 0


def _read(fd: int, inbox: queue.SimpleQueue[dict[str, Any] | None], busy: threading.Event) -> None:
    with os.fdopen(fd, "r") as requests:
        for line in requests:
            busy.set()
            inbox.put(json.loads(line))
    if busy.is_set():
        os.killpg(os.getpgid(0), signal.SIGKILL)
    inbox.put(None)


class Server:
    """Serves one request after the other.

    Parameters
    ----------
    reports : file
        Where it says what happened.
    """

    def __init__(self, reports: IO[str]) -> None:
        self._reports = reports
        #: What `parallel_config` takes, and always the same: for another initializer loky would make another pool.
        self._pool: dict[str, Any] | None = None

    def serve(self, request: dict[str, Any]) -> None:
        """Serve one request."""
        if "prepare" in request:
            self._prepare(**request["prepare"])
        elif "restore" in request:
            self._restore()
        else:
            self._run(request)

    # a warm runner --------------------------------------------------------------------------------------

    def _prepare(self, workers: int, modules: list[str], meeting: str) -> None:
        """Be ready for tasks: imports done, workers started."""
        os.environ[WORKERS_VARIABLE] = str(workers)
        # Not with a task's environment; loky wants Python's own too, for its workers.
        for tracker in (resource_tracker, own_tracker):
            tracker.ensure_running()
        self._pool = {"initializer": _warm, "initargs": (tuple(modules),), "idle_worker_timeout": _IDLE_SECONDS}
        if workers > 1:
            with parallel_config("loky", **self._pool):
                Parallel(n_jobs=workers, batch_size=1)(delayed(_meet)(meeting, workers) for _ in range(workers))
        _warm(modules if workers == 1 else ())
        self._say(ready=True)

    def _restore(self) -> None:
        baseline.restore()
        known = {os.getpid(), *self._workers()}
        trackers = {getattr(each._resource_tracker, "_pid", None) for each in (resource_tracker, own_tracker)}
        strays = [pid for pid in group_members(os.getpgid(0)) if pid not in known and pid not in trackers]
        self._say(restored={"memory": sum(map(resident, known)), "strays": strays})

    @staticmethod
    def _workers() -> list[int]:
        executor = getattr(reusable_executor, "_executor", None)
        processes = getattr(executor, "_processes", None) or {}
        return list(processes)

    # a bundle's chunks ----------------------------------------------------------------------------------

    def _run(self, request: dict[str, Any]) -> None:
        setting = Setting(**{**request["setting"], "path": tuple(request["setting"]["path"])})
        specs = [_spec(values) for values in request["chunks"]]
        try:
            for chunk in self._chunks(setting, specs, request["width"], request["workers"]):
                self._say(ended=chunk)
        except Exception as exc:
            # Outcomes are values, so whatever comes through the inner Parallel is a failure of its pool:
            # a worker was killed. The task knows from the journals which chunks were running.
            self._say(broken=_death(exc))
            return
        self._say(idle=True)

    def _chunks(self, setting: Setting, specs: list[ChunkSpec], width: int, workers: int) -> Iterator[int]:
        if self._pool is not None:
            os.environ[WORKERS_VARIABLE] = str(workers)
        # A nested Parallel of a call in this very process would take a pool that is here for its own.
        if workers == 1 or (width == 1 and self._pool is None):
            if self._pool is not None and self._workers():
                close_nested_pool()
            for spec in specs:
                yield run_chunk(setting, spec)
            return
        # Not -1: of more workers than cores, for calls that wait, joblib would start as many as there are cores.
        full = width >= workers
        # Chunks that are milliseconds long are batched by joblib's own measure. Another size of the pool would start
        # its workers anew, so that fewer chunks at a time are held back before it.
        bound = {} if full else {"pre_dispatch": width, "batch_size": 1}
        n_jobs = workers if full or self._pool is not None else width
        with parallel_config("loky", **(self._pool or {"inner_max_num_threads": setting.threads})):
            pool = Parallel(n_jobs=n_jobs, return_as="generator_unordered", **{"pre_dispatch": "4 * n_jobs", **bound})
            yield from pool(delayed(run_chunk)(setting, spec) for spec in specs)

    def _say(self, **what: Any) -> None:
        self._reports.write(json.dumps(what) + "\n")


#: What loky says of the workers that died, for example ``{EXIT(3), SIGSEGV(-11)}``.
_CODES = re.compile(r"exit codes of the workers are \{([^}]+)\}")
_CODE = re.compile(r"(\w+)\((-?\d+)\)")


def _death(exc: Exception) -> str:
    """Say how workers died, in a line; as loky has it, it is five."""
    found = _CODES.search(str(exc))
    codes = _CODE.findall(found[1]) if found is not None else []
    said = [f"ended with exit code {code}" if name == "EXIT" else f"was killed by {name}" for name, code in codes]
    return f"the process that ran it {' and another '.join(said)}" if said else f"{type(exc).__name__}: {exc}"


def _warm(modules: Sequence[str]) -> None:
    """Import what earlier bundles used, and take this process as it is then for what it goes back to."""
    for name in modules:
        with contextlib.suppress(Exception):  # its own import at home may have had a reason that is not here
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    baseline.capture()


def _meet(folder: str, workers: int) -> None:
    """Wait until every worker of the pool is here, so that each has its imports done."""
    (Path(folder) / str(os.getpid())).touch()
    end = time.monotonic() + _MEET_SECONDS
    while len(list(Path(folder).iterdir())) < workers and time.monotonic() < end:
        time.sleep(0.005)


def _spec(values: list[Any]) -> ChunkSpec:
    chunk, span, functions = values
    return ChunkSpec(chunk, _span(span), {int(n): _span(at) for n, at in functions.items()})


def _span(values: list[Any]) -> Span:
    offset, size, buffers, parts = values
    where = [(_place(pickled), [_place(buffer) for buffer in needed]) for pickled, needed in parts]
    return Span(offset, size, [_place(buffer) for buffer in buffers], where)


def _place(value: str | list[int]) -> Place:
    return value if isinstance(value, str) else (value[0], value[1])
