"""What bench_scale measures a client and the servers around it with: memory, CPU, and what is not the client's own."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import psutil
from joblib import Parallel
from joblib.parallel import ParallelBackendBase

from joblib_azure.local.host import LocalHost, processes_of

#: Calls that joblib's and cloudpickle's part is measured with, at most.
_BASE_CALLS = 20_000


def cpu_of_threads(calls: int) -> dict[str, float]:
    """Return the CPU of the threads that live, the imports before the calls too, by name and for each call."""
    names = {thread.native_id: thread.name.rstrip("0123456789-_ ()") for thread in threading.enumerate()}
    found = Counter[str]()
    for thread in psutil.Process().threads():
        found[names.get(thread.id, "others")] += thread.user_time + thread.system_time
    return {name: seconds / calls for name, seconds in found.most_common()}


class Memory:
    """Watches this process's memory on a thread, whose own CPU it knows."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._over = threading.Event()
        self._start = self._most = self._process.memory_info().rss
        self.cpu = 0.0

    def __enter__(self) -> Memory:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            self._most = max(self._most, self._process.memory_info().rss)
            self.cpu = time.thread_time()

    def growth(self) -> int:
        """Return the bytes by which it has grown at most since it began to watch."""
        return max(self._most, self._process.memory_info().rss) - self._start


class Servers:
    """The CPU that the emulator and Azurite take."""

    def __init__(self, host: LocalHost) -> None:
        found = {process: " ".join(process.cmdline()) for process in processes_of(host.run_id)}
        self._processes = {
            name: [process for process, line in found.items() if part in line]
            for name, part in (("emulator", "joblib_azure.emulator"), ("azurite", "azurite"))
        }
        self._start = self._seconds()

    def _seconds(self) -> dict[str, float]:
        return {name: sum(sum(each.cpu_times()[:2]) for each in found) for name, found in self._processes.items()}

    def cpu(self, seconds: float) -> dict[str, float]:
        """Return what each has taken since, as a part of one core."""
        return {f"{name}_load": (now - self._start[name]) / seconds for name, now in self._seconds().items()}


class _Future:
    def __init__(self, results: list[Any]) -> None:
        self._results = results

    def get(self, timeout: float | None = None) -> list[Any]:
        return self._results


class NoBackend(ParallelBackendBase):  # type: ignore[misc]
    """Does nothing with a chunk; its callbacks are on one thread, as those of the real one."""

    supports_retrieve_callback = True
    calls_a_chunk = 1
    workers = 2

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        return self.workers

    def configure(self, n_jobs: int = 1, parallel: Any = None, **ignored: Any) -> int:
        self.parallel = parallel
        self._queue: queue.SimpleQueue[tuple[Callable[[Any], Any], _Future]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()
        return self.workers

    def _run(self) -> None:
        while True:
            callback, future = self._queue.get()
            callback(future)

    def compute_batch_size(self) -> int:
        return self.calls_a_chunk

    def submit(self, func: Any, callback: Callable[[Any], Any]) -> _Future:
        future = _Future([None] * len(func))
        self._queue.put((callback, future))
        return future

    def retrieve_result_callback(self, out: _Future) -> list[Any]:
        return out.get()


def base(calls: Callable[[int], Iterator[Any]], count: int, calls_a_chunk: float, workers: int) -> dict[str, float]:
    """Return the CPU that joblib itself and cloudpickle take for a call, in seconds.

    Parameters
    ----------
    calls : callable
        Returns an iterator of so many delayed calls.
    count : int
        Of those that were measured; not all of very many are needed here.
    calls_a_chunk : float
        As joblib dispatched them.
    workers : int
        Of the whole pool.
    """
    count = min(count, _BASE_CALLS)
    NoBackend.calls_a_chunk, NoBackend.workers = max(1, round(calls_a_chunk)), workers
    began = time.process_time()
    for _ in Parallel(n_jobs=-1, backend=NoBackend(), return_as="generator")(calls(count)):
        pass
    own, given = time.process_time() - began, list(calls(count))
    began = time.process_time()
    for call in given:
        cloudpickle.dumps(call)
    return {"joblib_cpu": own / count, "cloudpickle_cpu": (time.process_time() - began) / count}
