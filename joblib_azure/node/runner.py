"""The process whose inner ``joblib.Parallel(n_jobs=-1)`` runs a bundle's chunks.

It is started by the task with two pipes. On one it reads requests, a line of JSON each; on the other it
writes what happened::

    task ──{"setting": …, "chunks": […], "width": 4}──► runner ──Parallel──► loky workers ──► journals
         ◄──{"ended": 17} · {"broken": "…"} · {"idle": true}──

``n_jobs=-1`` is the number of cores of the task's slots: the task says it in ``LOKY_MAX_CPU_COUNT``. With
one chunk to run at a time there is no pool: the runner's main thread runs it, as joblib does with one job.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import threading
from collections.abc import Iterator
from typing import IO, Any

from joblib import Parallel, cpu_count, delayed, parallel_config

from .chunk import ChunkSpec, Place, Setting, Span, run_chunk


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
        while (request := inbox.get()) is not None:
            serve(request, reports)
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


def serve(request: dict[str, Any], reports: IO[str]) -> None:
    """Run the chunks of one request."""
    setting = Setting(**{**request["setting"], "path": tuple(request["setting"]["path"])})
    specs = [_spec(values) for values in request["chunks"]]
    try:
        for chunk in _run(setting, specs, request["width"]):
            _say(reports, ended=chunk)
    except Exception as exc:
        # Outcomes are values, so whatever comes through the inner Parallel is a failure of its pool:
        # a worker was killed. The task knows from the journals which chunks were running.
        _say(reports, broken=f"{type(exc).__name__}: {exc}")
        return
    _say(reports, idle=True)


def _run(setting: Setting, specs: list[ChunkSpec], width: int) -> Iterator[int]:
    if width == 1:
        for spec in specs:
            yield run_chunk(setting, spec)
        return
    n_jobs = -1 if width >= cpu_count() else width
    with parallel_config("loky", inner_max_num_threads=setting.threads):
        # Chunks that are milliseconds long are batched by joblib's own measure.
        pool = Parallel(n_jobs=n_jobs, return_as="generator_unordered", pre_dispatch="4 * n_jobs")
        yield from pool(delayed(run_chunk)(setting, spec) for spec in specs)


def _spec(values: list[Any]) -> ChunkSpec:
    chunk, span, functions = values
    return ChunkSpec(chunk, _span(span), {int(n): _span(at) for n, at in functions.items()})


def _span(values: list[Any]) -> Span:
    offset, size, buffers, parts = values
    where = [(_place(pickled), [_place(buffer) for buffer in needed]) for pickled, needed in parts]
    return Span(offset, size, [_place(buffer) for buffer in buffers], where)


def _place(value: str | list[int]) -> Place:
    return value if isinstance(value, str) else (value[0], value[1])


def _say(reports: IO[str], **what: Any) -> None:
    reports.write(json.dumps(what) + "\n")
