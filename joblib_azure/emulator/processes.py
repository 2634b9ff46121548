"""Processes of the emulated nodes: starting them, hearing of their end, and killing whatever they leave.

One thread starts all processes, because CPU affinity belongs to a thread and is inherited: it takes on the node's
CPUs, then calls `subprocess.Popen` without `preexec_fn`, which keeps CPython's vfork path. The event loop hears of
an end by SIGCHLD. The emulator is a subreaper: what a task's tree orphans becomes its own child, so nothing escapes
it at shutdown.

A process belongs to a tree when it is in the session's group, descends from it, or carries its identity in its
environment; `Processes.sweep` finds the last kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

_log = logging.getLogger(__name__)

RUN_ID_VARIABLE = "BATCH_EMULATOR_RUN_ID"
#: Tells apart two runs of the same task on the same node: a late sweep for one must not kill the next.
LAUNCH_ID_VARIABLE = "BATCH_EMULATOR_LAUNCH_ID"
_PR_SET_CHILD_SUBREAPER = 36


class ProgramNotFound(Exception):
    """The command line names a program that is not there."""


class LaunchFailed(Exception):
    """The program is there but cannot be started."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What to start."""

    command_line: str
    environment: Mapping[str, str]
    directory: Path
    stdout: Path
    stderr: Path
    cpus: frozenset[int]
    #: What was fetched into the directory, where it is on a disk.
    resource_files: Sequence[Mapping[str, Any]] = ()
    #: Whether the command line is what runs in place of the task's own, to fail.
    replaced: bool = False


class Machine(Protocol):
    """What runs command lines: `Processes`, or `simulated.SimulatedProcesses`. What `start` returns has a `wait`."""

    has_disk: bool

    async def start(self, launch: Launch) -> Any: ...

    async def kill_tree(self, process: Any, identity: Mapping[str, str]) -> None: ...

    async def sweep(self, identity: Mapping[str, str]) -> None: ...

    async def close(self) -> None: ...


class Process:
    """A started process. `wait` gives its exit code as a shell would say it (128 + signal when it was killed)."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._ended = asyncio.Event()

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    async def wait(self) -> int:
        await self._ended.wait()
        code = self._popen.returncode
        return 128 - code if code < 0 else code

    def reap(self) -> bool:
        """Collect the exit status if the process has ended; what is left in its group is killed before."""
        if self._ended.is_set():
            return True
        if not _is_zombie(self.pid):
            return False
        # while the leader is a zombie its id cannot be taken by another process or group
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        self._ended.set()
        return True

    def kill_group(self) -> None:
        if not self._ended.is_set():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)


def _is_zombie(pid: int) -> bool:
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return found is not None


class Processes:
    """Starts processes and watches over them. Create it in the main thread, with the loop running."""

    #: Whether tasks have folders, and files that are fetched into them and stored from them.
    has_disk = True

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._loop = asyncio.get_running_loop()
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="batch-spawner")
        self._sweeper = ThreadPoolExecutor(1, thread_name_prefix="batch-sweeper")
        self._living: dict[int, Process] = {}
        self._starting = 0
        self._closing = False
        self._pending_sweeps: list[tuple[Mapping[str, str], asyncio.Future[None]]] = []
        self._sweeping: asyncio.Task[None] | None = None
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)
        _become_subreaper()

    async def start(self, launch: Launch) -> Process:
        """Start a process in a session of its own.

        Raises
        ------
        ProgramNotFound, LaunchFailed
            As their names say.
        """
        if self._closing:
            raise LaunchFailed("The emulator is shutting down.")
        self._starting += 1
        try:
            popen = await asyncio.shield(self._loop.run_in_executor(self._spawner, _spawn, launch))
        finally:
            self._starting -= 1
        process = Process(popen)
        self._living[process.pid] = process
        if self._closing:
            process.kill_group()
        # its end may have been signalled before it was known here
        self._reap()
        return process

    def _reap(self) -> None:
        for pid, process in list(self._living.items()):
            if process.reap():
                del self._living[pid]
        if self._starting:
            # an unknown child may be one that is being started; the next call looks again
            return
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            process_known = self._living.pop(found.si_pid, None)
            if process_known is not None:
                process_known.reap()
            else:  # orphaned by a task, adopted by us
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(found.si_pid, os.WNOHANG)

    async def kill_tree(self, process: Process, identity: Mapping[str, str]) -> None:
        """Kill a process, its group, its descendants, and all that carry `identity` in their environment."""
        if not process.ended:
            descendants = await self._loop.run_in_executor(self._sweeper, _descendants, process.pid)
            process.kill_group()
            for descendant in descendants:
                _kill(descendant)
            await process.wait()
        await self.sweep(identity)

    async def sweep(self, identity: Mapping[str, str]) -> None:
        """Kill every process whose environment holds all of `identity`; sweeps that coincide share one scan."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._pending_sweeps.append((identity, done))
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = self._loop.create_task(self._sweep_pending())
        await asyncio.shield(done)

    async def _sweep_pending(self) -> None:
        while self._pending_sweeps:
            taken, self._pending_sweeps = self._pending_sweeps, []
            try:
                identities = [identity for identity, _ in taken]
                await self._loop.run_in_executor(self._sweeper, kill_carriers, identities)
            finally:
                for _, done in taken:
                    if not done.done():
                        done.set_result(None)

    async def close(self) -> None:
        """Kill everything that was started, and everything that carries the run id."""
        self._closing = True
        for process in self._living.values():
            process.kill_group()
        await self._loop.run_in_executor(self._sweeper, kill_carriers, [{RUN_ID_VARIABLE: self.run_id}])
        await self._loop.run_in_executor(self._sweeper, _kill_children)
        self._loop.remove_signal_handler(signal.SIGCHLD)
        self._spawner.shutdown()
        self._sweeper.shutdown()


def _spawn(launch: Launch) -> subprocess.Popen[bytes]:
    try:
        arguments = shlex.split(launch.command_line)
    except ValueError as exc:
        raise LaunchFailed(f"The command line cannot be split into arguments: {exc}.") from exc
    if not arguments:
        raise ProgramNotFound("The command line is empty.")
    if launch.cpus and hasattr(os, "sched_setaffinity"):
        # 0 is the calling thread: this one does nothing but start processes
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, launch.cpus)
    with open(launch.stdout, "wb") as stdout, open(launch.stderr, "wb") as stderr:
        try:
            return subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=launch.directory,
                env=dict(launch.environment),
                start_new_session=True,
            )
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise ProgramNotFound(f"The program '{arguments[0]}' is not found.") from exc
        except (OSError, ValueError) as exc:
            raise LaunchFailed(f"The program '{arguments[0]}' cannot be started: {exc}.") from exc


def _become_subreaper() -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _descendants(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _environment(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""


def carriers(identities: Sequence[Mapping[str, str]]) -> list[int]:
    """Ids of the processes that carry all variables of one of `identities`.

    A node's id is as unique as the run id, which a daemon may have cleared from its environment. This process and
    those above it are left out: who started the emulator may carry the run id too.
    """
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    marks = [[f"{name}={value}".encode() for name, value in identity.items()] for identity in identities]
    found = []
    for pid, environment in _environments():
        # looked for as a whole first: most of a machine's processes have none of the marks
        if pid in spared or not any(each[0] in environment for each in marks):
            continue
        variables = set(environment.split(b"\0"))
        if any(all(mark in variables for mark in each) for each in marks):
            found.append(pid)
    return found


def _environments() -> Iterable[tuple[int, bytes]]:
    if os.path.isdir("/proc/self"):
        for name in os.listdir("/proc"):
            if name.isdigit():
                yield int(name), _environment(int(name))
        return
    for process in psutil.process_iter():  # no procfs, as on macOS
        with contextlib.suppress(psutil.Error):
            yield process.pid, "\0".join(f"{k}={v}" for k, v in process.environ().items()).encode()


def kill_carriers(identities: Sequence[Mapping[str, str]]) -> None:
    """Kill, and look again: a process may fork between the look and the kill. Gives up after five seconds."""
    deadline = time.monotonic() + 5
    while pids := carriers(identities):
        for pid in pids:
            _kill(pid)
        if time.monotonic() > deadline:
            _log.error("processes %s do not die", pids)
            return
        # a killed process keeps its environment visible until its memory is gone
        time.sleep(0.002)


def _kill_children() -> None:
    """The last resort for what has cleared its environment: every descendant dies."""
    for _ in range(20):
        children = [pid for pid in _descendants(os.getpid()) if not _zombie_status(pid)]
        if not children:
            return
        for pid in children:
            _kill(pid)
        time.sleep(0.01)


def _zombie_status(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return True
