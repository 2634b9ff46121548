"""One Batch task: fetches its bundle, has a runner run it and streams the outcomes to storage.

::

    storage ──bundle──► authenticate ──► file ──requests──► runner ──► workers ──► journals
      └──buffers──► Inputs ──► the node's cache ──maps─────────────────────┘          │
    storage ◄── append blob, payloads ◄── Sender ◄── outcomes ◄───────────────────────┘

It holds the job's key and SAS tokens and runs no user code; the runner, which does, does not have them. A
runner or a worker that dies takes nothing along: what its workers finished is in their journals, the chunks
that were running are tried once more, each alone in a runner of its own, and one that kills that too gets
`WorkerDiedError` as its outcome.

`main` is the task's own process where the node has no warm runners, or none that answer (`client`); `host` runs the
same `Task` where it has.
"""

from __future__ import annotations

import concurrent.futures
import gc
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from ..codec import ReadBundle, Record, read_bundle
from .begin import begin
from .cache import Cache
from .cores import Cores
from .given import link_files, store_files
from .inputs import Inputs
from .journal import JournalReader, Outcome
from .log import TaskLog
from .overlay import unpack_overlay
from .proc import leave_no_core
from .process import RunnerProcess
from .sender import Sender
from .settings import TaskSettings, cores_of
from .storage import TaskStorage
from .versions import differences, read_inventory

#: Seconds between two looks for the abort blob while chunks run; one request each.
ABORT_INTERVAL = 5.0
#: Seconds for which a task that was ended sends what its calls had finished.
RESCUE = 5.0
#: Bytes that a disk must take before a call is blamed for what it could not leave there.
_PROBE = 1 << 16
#: A pool that dies this often without a chunk running is not the chunks' fault: the task fails.
MAX_POOL_FAILURES = 3


def main() -> int:
    """Run the task; 0 where every chunk has an outcome, whatever the calls raised."""
    begun = time.time()
    workers, width, threads = cores_of(os.environ)
    runner = RunnerProcess(workers, width, threads)
    # Before the secrets are read: the copy must not have them.
    pipes = runner.fork()
    if pipes is not None:
        from .runner import main as serve

        return serve(*pipes)
    leave_no_core()
    with os.fdopen(os.dup(0)) as secrets, open(os.devnull) as nothing:
        settings = TaskSettings.read(os.environ, secrets)
        os.dup2(nothing.fileno(), 0)

    def stop(signum: int, frame: FrameType | None) -> None:
        runner.kill()
        os._exit(128 + signum)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    # Nobody answered, or this would not run: the next task is to find somebody.
    begin(Path(sys.argv[0]).resolve(), os.environ)
    try:
        return Task(settings, runner, begun, Path.cwd() / ".joblib_azure").run()
    finally:
        runner.kill()


class Task:
    """One run of a Batch task.

    Parameters
    ----------
    settings : TaskSettings
    runner : RunnerProcess
        Started already: its imports go on while the bundle is fetched. Or one that will be leased.
    begun : float
        Time at which the task's process began, in seconds since the epoch.
    folder : Path
        For the bundle and the journals.
    lease : bool, default False
        Whether the runner served other tasks before, and finds in that folder what is new.
    finish : callable
        Ends this process with an exit code, from any of its threads.
    storage : TaskStorage, optional
        With connections that are open already.
    """

    def __init__(
        self,
        settings: TaskSettings,
        runner: RunnerProcess,
        begun: float,
        folder: Path,
        *,
        lease: bool = False,
        finish: Callable[[int], object] = os._exit,
        storage: TaskStorage | None = None,
    ) -> None:
        self._settings = settings
        self._runner = runner
        self._times = {"begun": begun}
        self._folder = folder
        self._lease = str(folder) if lease else None
        self._finish = finish
        self._storage = storage
        #: Delayed calls that ended.
        self.calls = 0
        self._journals = JournalReader(str(self._folder))
        self._done: set[int] = set()
        self._running = self._given_up = False
        self._rescued = threading.Event()
        self._overlay: str | None = None
        self._note = ""
        self._told = self._failed = False
        self._where = f"node {settings.node}, job {settings.job}, task {settings.task}"

    def give_up(self) -> None:
        """End the calls, and wait until what had finished by then is stored, `RESCUE` seconds at most; on any thread.

        Somebody has ended the task; this process may live on for a moment.
        """
        self._given_up = True
        self._runner.interrupt()
        if self._running:
            self._rescued.wait(RESCUE)

    def run(self) -> int:
        settings = self._settings
        storage = self._storage
        if storage is None:
            storage = TaskStorage(settings.inputs, settings.outputs, settings.task, settings.workers, settings.seconds)
        gc.enable()  # the last import was made
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            opened = pool.submit(storage.open_outcomes, settings.call)
            data = storage.read_bundle()
            bundle = read_bundle(settings.key, f"{settings.job}/{settings.task}", data)
            self._mark("read")
            name, aborted = opened.result()
        if aborted:
            sys.stderr.write(f"the client gave up call {settings.call}; nothing was run\n")
            return 0
        self._folder.mkdir(exist_ok=True)
        spacing: tuple[float, float] = tuple(bundle.manifest["spacing"])
        self._sender = Sender(storage, settings.key, settings.job, name, self._folder, spacing)
        if self._refuse(bundle):
            self._mark("ready")
            self._mark("ended")
            self._sender.close(self._report())
            return 0
        manifest = bundle.manifest
        self._runner.modules = manifest["needs"]["modules"]
        cache = Cache(settings.cache, settings.cache_limit)
        self._inputs = Inputs(storage, cache, manifest, self._runner.interrupt)
        with cache.pinned(list(manifest["sizes"]), self._where):
            return self._run_bundle(bundle, data, storage, cache)

    def _run_bundle(self, bundle: ReadBundle, data: bytes, storage: TaskStorage, cache: Cache) -> int:
        settings = self._settings
        overlay: list[str] = bundle.manifest["overlay"]
        self._inputs.begin(overlay)
        if not self._inputs.broken:
            self._overlay = unpack_overlay(overlay, cache)
            (self._folder / "bundle").write_bytes(data)
            link_files(os.environ)
            aborted = threading.Event()
            arguments = (storage, settings.call, aborted)
            threading.Thread(target=self._watch_abort, args=arguments, daemon=True).start()
            self._mark("ready")
            cores = Cores(settings.root / "cores", settings.node_workers or settings.workers)
            if settings.node_workers is not None:
                cores.take(settings.workers)
            self._mark("admitted")
            self._running = True
            try:
                self._run_chunks(bundle)
            finally:
                self._running = False
                self._rescued.set()
                cores.give_back()
                self._mark("ran")
            aborted.set()
        self._inputs.close()
        if self._inputs.missing:
            self._sender.close({"missing": self._inputs.missing})
            return 0
        if self._inputs.error is not None:
            raise self._inputs.error
        self._runner.close()
        self._mark("ended")
        waited = {"waited": self._inputs.waited, "queued": cores.waited}
        where = {"python": platform.python_version(), "warm": self._lease is not None}
        self._sender.close({**self._report(), **waited, **where})
        store_files(
            bundle.manifest["uploads"],
            settings.folder,
            settings.task,
            failed=self._failed,
            put=storage.put_file,
        )
        if self._lease is None:
            # What the calls returned lies here as plain pickles; it is stored by now.
            shutil.rmtree(self._folder, ignore_errors=True)
        return 0

    def _mark(self, what: str) -> None:
        self._times[what] = time.time()

    def _report(self) -> dict[str, Any]:
        """Return where this run is, and how far by now."""
        settings = self._settings
        cores = {"workers": settings.workers, "width": settings.width, "cores": settings.node_workers}
        return {**self._times, **cores, "node": settings.node, "dedicated": settings.dedicated}

    def _refuse(self, bundle: ReadBundle) -> bool:
        """Give every chunk an error as its outcome where the node's packages are not those of the pickles."""
        have = read_inventory(Path(sys.argv[0]))
        if have is None:
            return False
        serious, slight = differences(bundle.manifest["needs"], have)
        self._note = "; ".join(slight)
        if not serious:
            return False
        text = (
            f"the nodes do not have what the client has: {'; '.join(serious)} ({have['executable']} on {self._where}). "
            'Nothing was unpickled. Leave environment.mode at "auto", so that the nodes get the client\'s versions, or '
            "make both the same: in the nodes' image, or here"
        )
        for chunk in bundle.chunks:
            self._sender.put(Outcome(chunk, {"refused": text, "node": self._settings.node}, b""))
        return True

    def _watch_abort(self, storage: TaskStorage, call: str, over: threading.Event) -> None:
        while not over.wait(ABORT_INTERVAL):
            if storage.aborted(call):
                self._runner.interrupt()
                self._finish(0)

    # ----------------------------------------------------------------------------------------------------

    def _run_chunks(self, bundle: ReadBundle) -> None:
        """Run all chunks; a dead worker costs only the chunk that killed it."""
        pending = dict(bundle.chunks)
        suspects: list[int] = []
        failures = 0
        while pending:
            alone = suspects[:1]
            width = 1 if alone else self._settings.width
            batch = {chunk: pending[chunk] for chunk in alone or pending}
            log = TaskLog(self._settings.log)
            problem = self._run_once(bundle, batch, width)
            self._collect()
            if self._given_up:
                self._sender.flush(RESCUE)
                raise InterruptedError("the task was ended from outside")
            if self._inputs.broken:
                return  # which ended the runner; nobody is to blame
            running = self._journals.take_suspects() if problem else []
            if alone:
                # It ran by itself, with nothing beside it: there is no doubt which one did it, unless nobody can write.
                if running:
                    self._check_disk()
                    self._failed = True
                for chunk in running:
                    head = {"died": problem, "stderr": log.end(), "node": self._settings.node}
                    self._sender.put(Outcome(chunk, head, b""))
                    self._done.add(chunk)
            else:
                suspects = running
            for chunk in self._done & set(pending):
                del pending[chunk]
            suspects = [chunk for chunk in suspects if chunk in pending]
            if problem and not running:
                # No chunk was running, so none is at fault: the pool itself does not come up.
                failures += 1
                if failures >= MAX_POOL_FAILURES:
                    raise RuntimeError(f"the runner failed {failures} times with no chunk running: {problem}")

    def _check_disk(self) -> None:
        """:raises OSError: the node's disk takes no more; the task fails with it, and runs again elsewhere."""
        probe = self._folder / "probe"
        try:
            probe.write_bytes(bytes(_PROBE))
        finally:
            probe.unlink(missing_ok=True)

    def _run_once(self, bundle: ReadBundle, chunks: dict[int, Record], width: int) -> str | None:
        """Send one request to the runner; return None, or why it was not finished."""
        setting = {
            "bundle": str(self._folder / "bundle"),
            "journals": str(self._folder),
            "cache": str(self._settings.cache),
            "mmap_mode": bundle.manifest["mmap_mode"],
            "path": bundle.manifest["path"],
            "overlay": self._overlay,
            "initializer": bundle.manifest["initializer"],
            "threads": self._settings.threads,
            "lease": self._lease,
        }
        specs = [
            [n, _span(bundle, record), {f: _span(bundle, bundle.functions[f]) for f in record.head["functions"]}]
            for n, record in chunks.items()
        ]
        for report in self._runner.ask({"setting": setting, "chunks": specs, "width": width}):
            if "idle" in report:
                return None
            if "broken" in report:
                self._runner.kill()
                return str(report["broken"])
            self._collect()
        return self._runner.kill()

    def _collect(self) -> None:
        for outcome in self._journals.read():
            if self._note:  # patch levels differ: said with one outcome
                outcome.head["note"], self._note = self._note, ""
            if not self._told:
                # Of a run that never ends it is all that is known.
                outcome.head["run"], self._told = self._report(), True
            if not outcome.head.get("ok"):
                outcome.head["node"] = self._settings.node
            self._failed = self._failed or not outcome.head.get("ok")
            self.calls += outcome.head.get("calls", 0)
            self._sender.put(outcome)
            self._done.add(outcome.chunk)


def _span(bundle: ReadBundle, record: Record) -> list[Any]:
    """Return where a pickle and what it needs is, as `runner` takes it."""

    def place(name: str) -> Any:
        within = bundle.buffers.get(name)
        return name if within is None else [within.offset, len(within.body)]

    head = record.head
    parts = [[place(pickled), [place(name) for name in buffers]] for pickled, buffers in head["parts"]]
    return [record.offset, len(record.body), [place(name) for name in head["buffers"]], parts]
