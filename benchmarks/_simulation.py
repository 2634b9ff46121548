"""This package's node as a function: what a simulated node of the emulator does with a Batch task of ours.

An executor as `joblib_azure.emulator.simulated` takes it. A bundle is read from storage, authenticated, unpickled and
computed for real, and its outcomes are sealed and appended as a node does it, with the same codec and in the same order
of requests. What is not real is time: `time.sleep` within a call passes on the service's clock, all calls of a bundle
are computed as soon as it is there, and their outcomes go out when the workers that a node would have, had ended::

    bundle ─► computed at once ─► (chunk, seconds, outcome) … ─► dealt to `width` workers ─► wait ─► append ─► wait ─► …

Between two appends passes what a node lets pass, in real time. A node's looks for the abort blob, one every 5 s and
task, are not made: they alone would be more than Azurite can answer. Buffers are fetched once for all nodes.

One line of JSON a task goes into ``simulation.jsonl`` in the emulator's root: when it began and ended, how long its
workers computed (real seconds), and by how much the process was late to wake them, which is what the emulator and these
nodes cost beyond their clock.
"""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import contextlib
import functools
import heapq
import http.client
import json
import platform
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from joblib.parallel import BatchedCalls

from joblib_azure.codec import (
    FAILED,
    Payload,
    ReadBundle,
    Record,
    Unpickler,
    encode_outcome,
    read_bundle,
    seal_outcomes,
)
from joblib_azure.node.sender import gathering, pause_of
from joblib_azure.node.traces import remote_text

if TYPE_CHECKING:
    from joblib_azure.emulator.simulated import SimulatedTask

LOG = "simulation.jsonl"
#: Seconds on the service's clock that a start task and a job's preparation take on a node: assumptions.
_START, _PREPARATION = 10.0, 20.0
#: Requests to storage under way at a time, and tries of one.
_STREAMS, _TRIES = 8, 5
#: Seconds that one may take.
_TIMEOUT = 60.0
#: Runs of a task, as a node has them.
_MOST_RUNS = 5
#: Seconds between two looks for a buffer that is on its way, and until nobody waits any more.
_LOOK, _LONGEST_WAIT = 0.1, 120.0
#: Buffers that are kept.
_MOST_BUFFERS = 64
_VERSION = "2025-01-05"

_storage = concurrent.futures.ThreadPoolExecutor(_STREAMS, thread_name_prefix="simulated-storage")
_computing = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="simulated-worker")


class Done(NamedTuple):
    """A chunk that was computed: what it took on the service's clock, its calls and its outcome."""

    chunk: int
    seconds: float
    calls: int
    ok: bool
    body: bytes


async def run(task: SimulatedTask) -> int:
    """Run a task of a Batch job of ours, a start task or a preparation task; return its exit code."""
    if "JOBLIB_AZURE_CALL" not in task.environment:
        await task.sleep(_PREPARATION if "AZ_BATCH_JOB_ID" in task.environment else _START)
        return 0
    _let_sleeps_pass()
    return await _Run(task).run()


class _Run:
    """One run of a task."""

    def __init__(self, task: SimulatedTask) -> None:
        self._environment = environment = task.environment
        self._rate = task.rate
        self._loop = asyncio.get_running_loop()
        self._job, self._task = environment["AZ_BATCH_JOB_ID"], environment["AZ_BATCH_TASK_ID"]
        self._node = environment["AZ_BATCH_NODE_ID"]
        self._key = base64.b64decode(environment["JOBLIB_AZURE_KEY"])
        self._call = environment["JOBLIB_AZURE_CALL"]
        self._workers, self._width = (int(environment[f"JOBLIB_AZURE_{name}"]) for name in ("WORKERS", "WIDTH"))
        self._node_workers = int(environment.get("JOBLIB_AZURE_NODE_WORKERS", self._workers))
        self._times = {"begun": time.time()}
        self._position = self._count = 0
        self._reported = self._marked = False
        self._queue: list[tuple[dict[str, Any], bytes]] = []
        self._news = asyncio.Event()
        self._closing = False
        self._name = ""
        self._late = 0.0

    async def run(self) -> int:
        bundle = await self._loop.run_in_executor(_storage, self._open)
        if bundle is None:
            return 0  # the client gave the call up
        self._mark("read", "ready")
        done = await self._loop.run_in_executor(_computing, self._compute, bundle)
        cores = _cores(self._node, self._node_workers)
        await cores.take(self._workers)
        # By itself, as on a node: storage that is slow holds up no call.
        sender = asyncio.ensure_future(self._send_all(bundle.manifest["spacing"]))
        try:
            self._mark("admitted")
            await self._pass(done)
            self._mark("ran", "ended")
        except BaseException:
            sender.cancel()
            raise
        finally:
            cores.give_back(self._workers)
        queued = self._times["admitted"] - self._times["ready"]
        more = {"waited": 0.0, "queued": queued, "python": platform.python_version(), "warm": True}
        self._put({"end": {**self._report(), **more}})
        self._closing = True
        self._news.set()
        await sender
        self._mark("sent")
        busy = sum(each.seconds for each in done) / self._rate
        where = {"node": self._node, "chunks": len(done), "calls": sum(each.calls for each in done)}
        self._log({**where, "busy": busy, "late": self._late, **self._times})
        return 0

    def _mark(self, *names: str) -> None:
        self._times.update(dict.fromkeys(names, time.time()))

    # what a task's first requests bring -----------------------------------------------------------------

    def _open(self) -> ReadBundle | None:
        inputs = self._environment["JOBLIB_AZURE_INPUTS"]
        data = blobs.get(_within(inputs, f"bundles/{self._task}"))
        for number in range(_MOST_RUNS):
            self._name = f"{self._call}/{self._task}/{number:03d}"
            headers = {"x-ms-blob-type": "AppendBlob", "If-None-Match": "*"}
            if blobs.ask("PUT", self._append_url(), headers=headers, expected=(201, 409))[0] == 201:
                break
        else:
            raise RuntimeError(f"task {self._task} was begun {_MOST_RUNS} times and never ended")
        if blobs.ask("HEAD", _within(inputs, f"aborted/{self._call}"), expected=(200, 404))[0] == 200:
            return None
        return read_bundle(self._key, f"{self._job}/{self._task}", data)

    def _append_url(self) -> str:
        return _within(self._environment["JOBLIB_AZURE_OUTPUTS"], self._name)

    # calls ----------------------------------------------------------------------------------------------

    def _compute(self, bundle: ReadBundle) -> list[Done]:
        if bundle.manifest["initializer"] is not None:
            raise NotImplementedError("initializers are not simulated")
        sys.path += [entry for entry in bundle.manifest["path"] if entry not in sys.path]
        functions = {number: _load(bundle, record) for number, record in bundle.functions.items()}
        return [self._compute_chunk(bundle, chunk, functions) for chunk in bundle.chunks]

    def _compute_chunk(self, bundle: ReadBundle, chunk: int, functions: dict[int, Any]) -> Done:
        _clock.spent, calls = 0.0, 0
        try:
            items, backend, n_jobs = _load(bundle, bundle.chunks[chunk])
            calls = len(items)
            batch = BatchedCalls((), (functions[backend] if isinstance(backend, int) else backend, n_jobs))
            batch.items = [(functions[f] if isinstance(f, int) else f, args, kwargs) for f, args, kwargs in items]
            ok, encoded = True, encode_outcome(batch(), each=True)
        # As on a node: whatever a call raises is its outcome.
        except BaseException as exc:
            ok, encoded = False, encode_outcome((exc, remote_text(exc)), each=False)
        finally:
            seconds, _clock.spent = _clock.spent, None
        if isinstance(encoded, Payload):
            raise NotImplementedError("results of a megabyte and more are not simulated")
        return Done(chunk, seconds, calls, ok, encoded)

    # their time -----------------------------------------------------------------------------------------

    async def _pass(self, done: list[Done]) -> None:
        """Let the calls' time pass, and hand over their outcomes as they end."""
        begun, began = self._loop.time(), time.time()
        for start, end, each in sorted(self._deal(done), key=lambda each: each[1]):
            await asyncio.sleep(max(0.0, begun + end - self._loop.time()))
            self._late = max(self._late, self._loop.time() - begun - end)
            self._put_outcome(each, began + start, end - start)

    def _deal(self, done: list[Done]) -> Iterator[tuple[float, float, Done]]:
        """Yield when each chunk begins and ends, in real seconds: whichever worker is free takes the next."""
        free = [0.0] * self._width
        for each in done:
            start = heapq.heappop(free)
            end = start + each.seconds / self._rate
            heapq.heappush(free, end)
            yield start, end, each

    # outcomes -------------------------------------------------------------------------------------------

    def _report(self) -> dict[str, Any]:
        cores = {"workers": self._workers, "width": self._width, "cores": self._node_workers}
        dedicated = self._environment.get("AZ_BATCH_NODE_IS_DEDICATED") == "true"
        return {**self._times, **cores, "node": self._node, "dedicated": dedicated}

    def _put_outcome(self, each: Done, began: float, seconds: float) -> None:
        head: dict[str, Any] = {"ok": each.ok, "began": began, "seconds": seconds, "calls": each.calls}
        if not self._reported:
            head["run"], self._reported = self._report(), True
        if not each.ok:
            head["node"] = self._node
        self._put({**head, "chunk": each.chunk}, each.body)

    def _put(self, head: dict[str, Any], body: bytes = b"") -> None:
        self._queue.append((head, body))
        self._news.set()

    async def _send_all(self, spacing: tuple[float, float]) -> None:
        """Append outcomes until the last: the first of a pause at once, others when `spacing` has passed."""
        begun, last = self._loop.time(), -float("inf")
        while not self._closing or self._queue:
            await self._news.wait()
            pause = pause_of(self._loop.time() - begun, spacing)
            rest = max(last + pause - self._loop.time(), gathering(pause))
            while rest > 0 and not self._closing:
                self._news.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._news.wait(), rest)
                rest = last + pause - self._loop.time()
            self._news.clear()
            queue, self._queue = self._queue, []
            if queue:
                records = list(seal_outcomes(self._key, f"{self._job}/{self._name}", self._count, queue))
                data = b"".join(records)
                await self._loop.run_in_executor(_storage, self._append, data)
                self._count += len(records)
                self._position += len(data)
                if not self._marked and not all(head.get("ok", True) for head, _ in queue):
                    self._marked = True
                    await self._loop.run_in_executor(_storage, self._mark_failed)
                last = self._loop.time()
            if self._closing:
                self._news.set()

    def _mark_failed(self) -> None:
        url = _within(self._environment["JOBLIB_AZURE_OUTPUTS"], f"{self._name}.{FAILED}")
        blobs.ask("PUT", url, headers={"x-ms-blob-type": "BlockBlob"}, expected=(201,))

    def _append(self, data: bytes) -> None:
        headers = {"x-ms-blob-condition-appendpos": str(self._position)}
        # 412: an earlier try of the same, whose answer was lost. Nobody else writes there.
        blobs.ask("PUT", self._append_url() + "&comp=appendblock", data, headers, expected=(201, 412))

    def _log(self, line: dict[str, Any]) -> None:
        with _log_file(self._environment["AZ_BATCH_NODE_ROOT_DIR"]) as file:
            file.write(json.dumps(line) + "\n")


def _log_file(node_root: str) -> Any:
    # <root>/<node>/batch/tasks
    return (Path(node_root).parents[2] / LOG).open("a")


# what a call is given -----------------------------------------------------------------------------------------


def _load(bundle: ReadBundle, record: Record) -> Any:
    made: dict[int, Any] = {}

    def buffer(name: str) -> Any:
        within = bundle.buffers.get(name)
        return within.body if within is not None else _fetched(bundle.manifest["urls"][name])

    def part(number: int) -> Any:
        if number not in made:
            pickled, buffers = record.head["parts"][number]
            made[number] = Unpickler(buffer(pickled), [buffer(name) for name in buffers]).load()
        return made[number]

    if not len(record.body):
        return part(0)
    return Unpickler(record.body, [buffer(name) for name in record.head["buffers"]], part).load()


@functools.lru_cache(maxsize=_MOST_BUFFERS)
def _fetched(url: str) -> bytes:
    """Return a buffer; those that the client is still uploading are waited for."""
    end = time.monotonic() + _LONGEST_WAIT
    while True:
        status, data = blobs.ask("GET", url, expected=(200, 404))
        if status == 200:
            return data
        if time.monotonic() > end:
            raise TimeoutError(f"{urlsplit(url).path} is not there after {_LONGEST_WAIT:.0f} s")
        _sleep_for_real(_LOOK)


# the node's cores ---------------------------------------------------------------------------------------------


class _Cores:
    """No more workers compute on a node than it has cores; tasks get theirs in the order in which they come."""

    def __init__(self, cores: int) -> None:
        self._most = self._free = cores
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, workers: int) -> None:
        wanted = min(workers, self._most)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, turn))
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(workers)
            raise

    def give_back(self, workers: int) -> None:
        self._free += min(workers, self._most)
        self._serve()

    def _serve(self) -> None:
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self._free):
            wanted, turn = self._waiting.popleft()
            if not turn.done():
                self._free -= wanted
                turn.set_result(None)


@functools.cache
def _cores(node: str, cores: int) -> _Cores:
    return _Cores(cores)


# time ---------------------------------------------------------------------------------------------------------

_sleep_for_real = time.sleep


class _Clock(threading.local):
    """Of the thread that computes: the seconds for which its calls have slept; None outside of calls."""

    spent: float | None = None


_clock = _Clock()


def _sleep(seconds: float) -> None:
    if _clock.spent is None:
        _sleep_for_real(seconds)
    else:
        _clock.spent += seconds


def _let_sleeps_pass() -> None:
    """From here on a call's `time.sleep` in this process, which is the emulator's, only counts."""
    time.sleep = _sleep


# storage ------------------------------------------------------------------------------------------------------


def _within(container: str, name: str) -> str:
    parts = urlsplit(container)
    return urlunsplit(parts._replace(path=f"{parts.path}/{name}"))


class _Blobs:
    """Requests to storage over connections that are kept; every URL has its SAS."""

    def __init__(self) -> None:
        self._kept: dict[str, list[http.client.HTTPConnection]] = {}

    def get(self, url: str) -> bytes:
        return self.ask("GET", url, expected=(200,))[1]

    def ask(
        self,
        method: str,
        url: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        expected: tuple[int, ...],
    ) -> tuple[int, bytes]:
        """Return status and body of the answer, one of the expected ones; what breaks off is tried again."""
        parts = urlsplit(url)
        given = {"x-ms-version": _VERSION, "Content-Length": str(len(body)), **(headers or {})}
        for left in reversed(range(_TRIES)):
            kept = self._kept.setdefault(parts.netloc, [])
            # Again over one of its own: the server closes those that are idle, all of them at about the same time.
            again = left < _TRIES - 1
            connection = (
                kept.pop() if kept and not again else http.client.HTTPConnection(parts.netloc, timeout=_TIMEOUT)
            )
            try:
                connection.request(method, f"{parts.path}?{parts.query}", body or None, given)
                answer = connection.getresponse()
                data = answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                if not left:
                    raise
                continue
            kept.append(connection)
            if answer.status in expected:
                return answer.status, data
            if answer.status < 500 or not left:
                raise RuntimeError(f"{method} {parts.path}: {answer.status} {data[:200]!r}")
            _sleep_for_real(_LOOK)
        raise RuntimeError("unreachable")


blobs = _Blobs()
