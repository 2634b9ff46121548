"""What calls do to a warm process and see of it, and what runs on the emulated nodes, by ``/proc``.

Its functions are pickled by their name, so that a node imports this module and no test of it.
"""

from __future__ import annotations

import contextlib
import decimal
import gc
import locale
import logging
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from joblib_azure import LocalCluster
from joblib_azure.cluster import Cluster
from joblib_azure.local.host import processes_of
from joblib_azure.registry import close_sessions

#: Seconds within which what is waited for has to be there.
PATIENCE = 30.0


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait until `condition` holds and return what it returned."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s until {what}")
        time.sleep(0.01)
    return found


@contextlib.contextmanager
def beside(cluster: LocalCluster, **more: Any) -> Iterator[Cluster]:
    """Another client's view of a cluster's pool, with some of its settings changed: a session of its own."""
    other = Cluster(cluster.config.model_copy(update=more), cluster.account)
    try:
        yield other
    finally:
        close_sessions(other)


# state of a process -------------------------------------------------------------------------------------


def ignore(*_: Any) -> None:
    """A signal handler, or a hook."""


def _cwd() -> Any:
    return os.path.relpath(os.getcwd(), os.environ["AZ_BATCH_TASK_WORKING_DIR"])


def _environment() -> Any:
    own = ("AZ_BATCH_TASK_", "BATCH_EMULATOR_LAUNCH_ID", "HOME", "JOBLIB_AZURE_CALL", "PWD")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}


def _umask() -> Any:
    now = os.umask(0o022)
    os.umask(now)
    return now


def _handlers() -> Any:
    return {int(number): repr(signal.getsignal(number)) for number in signal.valid_signals()}


def _timers() -> Any:
    return [signal.getitimer(timer) for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)]


def _files() -> Any:
    return [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2)]


def _stream(name: str) -> Callable[[], Any]:
    def look() -> Any:
        try:
            stream = getattr(sys, name)
            return type(stream).__name__, stream.closed, name == "stdin" or stream.fileno()
        except (AttributeError, OSError, ValueError) as exc:
            return type(exc).__name__

    return look


def _filters() -> Any:
    return [repr(each) for each in warnings.filters]


def _logging() -> Any:
    root = logging.getLogger()
    enabled = logging.getLogger("warm").isEnabledFor(logging.DEBUG)
    return root.level, len(root.handlers), root.manager.disable, enabled


def _limits() -> Any:
    return [resource.getrlimit(limit) for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_CPU)]


def _spoil_files() -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.close(nothing)


def _spoil_handlers() -> None:
    signal.signal(signal.SIGTERM, ignore)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, ignore)


def _spoil_logging() -> None:
    logging.basicConfig(level=logging.DEBUG, filename=os.devnull)
    logging.getLogger("warm").debug("the logger remembers now that this is written")


def _spoil_zone() -> None:
    os.environ["TZ"] = "XYZ-5"
    time.tzset()


def _limit(limit: int, soft: int) -> None:
    resource.setrlimit(limit, (soft, resource.getrlimit(limit)[1]))


#: Of each kind of state, how a call sees it, and how it changes it.
STATES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "folder": (_cwd, lambda: os.chdir("/tmp")),
    "environment": (_environment, lambda: os.environ.update(WARM_SPOILED="1")),
    "umask": (_umask, lambda: os.umask(0o077)),
    "handlers": (_handlers, _spoil_handlers),
    "mask": (
        lambda: sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGALRM}),
    ),
    "timers": (_timers, lambda: signal.setitimer(signal.ITIMER_REAL, 3600, 3600)),
    "filters": (_filters, lambda: warnings.simplefilter("error")),
    "showwarning": (lambda: repr(warnings.showwarning), lambda: setattr(warnings, "showwarning", ignore)),
    "logging": (_logging, _spoil_logging),
    "locale": (lambda: locale.setlocale(locale.LC_ALL), lambda: locale.setlocale(locale.LC_ALL, "C")),
    "limits": (_limits, lambda: (_limit(resource.RLIMIT_NOFILE, 200), _limit(resource.RLIMIT_CPU, 9999))),
    "path": (lambda: list(sys.path), lambda: sys.path.insert(0, "/nowhere")),
    "argv": (lambda: list(sys.argv), lambda: sys.argv.append("--spoiled")),
    "hooks": (lambda: (repr(sys.excepthook), repr(sys.displayhook)), lambda: setattr(sys, "excepthook", ignore)),
    "threads' hook": (lambda: repr(threading.excepthook), lambda: setattr(threading, "excepthook", ignore)),
    "profile": (lambda: repr(sys.getprofile()), lambda: sys.setprofile(ignore)),
    "recursion": (sys.getrecursionlimit, lambda: sys.setrecursionlimit(5000)),
    "collector": (lambda: (gc.isenabled(), gc.get_threshold()), lambda: (gc.disable(), gc.set_threshold(5))),
    "decimal": (lambda: decimal.getcontext().prec, lambda: setattr(decimal.getcontext(), "prec", 3)),
    "sockets": (socket.getdefaulttimeout, lambda: socket.setdefaulttimeout(1.5)),
    "floats": (lambda: dict(np.geterr()), lambda: np.seterr(all="raise")),
    "temporary": (lambda: tempfile.tempdir, lambda: setattr(tempfile, "tempdir", "/nowhere")),
    "zone": (lambda: time.tzname, _spoil_zone),
    "stdin": (_stream("stdin"), lambda: sys.stdin.close()),
    "stdout": (_stream("stdout"), lambda: sys.stdout.close()),
    "stderr": (_stream("stderr"), lambda: sys.stderr.detach()),
    "files": (_files, _spoil_files),
    "affinity": (lambda: sorted(os.sched_getaffinity(0)), lambda: os.sched_setaffinity(0, {max(_cores())})),
}


def _cores() -> set[int]:
    return os.sched_getaffinity(0)


#: What a process of one core cannot change.
ONE_CORE_SAME = {"affinity"}


def meet(folder: str, who: str, many: int) -> None:
    """Wait until so many calls are here: each of them then has a process of its own."""
    (Path(folder) / who).touch()
    until(lambda: len(os.listdir(folder)) >= many, f"{many} calls run at once")


def look(folder: str, who: str, many: int) -> tuple[int, dict[str, Any]]:
    """Return this process's id and what it is like."""
    meet(folder, who, many)
    return os.getpid(), {name: see() for name, (see, _) in STATES.items()}


def spoil(folder: str, who: str, many: int) -> int:
    """Change all of it."""
    meet(folder, who, many)
    for _, change in STATES.values():
        change()
    return os.getpid()


def streams() -> tuple[int, list[float]]:
    """Return this process's id and what comes next of its random streams."""
    return os.getpid(), [random.random(), float(np.random.random())]


def seeded() -> tuple[int, list[float]]:
    """As `streams`, seeded as users do it."""
    random.seed(0)
    np.random.seed(0)
    return streams()


def pid() -> int:
    return os.getpid()


def pids(folder: str, who: str, many: int) -> int:
    meet(folder, who, many)
    return os.getpid()


def warned() -> tuple[int, list[str]]:
    """Warn from one place, and return what of it was shown."""
    shown: list[str] = []
    warnings.showwarning = lambda message, *_, **__: shown.append(str(message))
    warnings.warn("from one place", UserWarning, stacklevel=1)
    return os.getpid(), shown


# what cannot be put back --------------------------------------------------------------------------------


def leaves_a_thread() -> tuple[int, list[int]]:
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    return os.getpid(), []


def is_nice() -> tuple[int, list[int]]:
    os.nice(3)
    return os.getpid(), []


def leaves_a_child() -> tuple[int, list[int]]:
    child = subprocess.Popen(["sleep", "600"], env={})
    child.returncode = 0  # so that nobody warns of it
    return os.getpid(), [child.pid]


def lowers_a_hard_limit() -> tuple[int, list[int]]:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return os.getpid(), []


# output -------------------------------------------------------------------------------------------------


def speaks(word: str) -> tuple[int, str]:
    """Write by all ways that a call has; return who wrote, and the task."""
    print(f"{word} print")
    print(f"{word} print to stderr", file=sys.stderr)
    os.write(1, f"{word} write\n".encode())
    os.write(2, f"{word} write to stderr\n".encode())
    subprocess.run(["/bin/sh", "-c", f"echo {word} child; echo {word} child to stderr >&2"], check=True)
    return os.getpid(), os.environ["AZ_BATCH_TASK_ID"]


def speaks_below(word: str) -> str:
    """Have the calls of a nested Parallel write."""
    from joblib import Parallel, delayed

    Parallel(n_jobs=2)(delayed(speaks)(f"{word}{i}") for i in range(2))
    return os.environ["AZ_BATCH_TASK_ID"]


def pours(lines: int) -> str:
    """Write more than a pipe holds, and end at once."""
    for number in range(lines):
        print(f"{number:09d}")
    return os.environ["AZ_BATCH_TASK_ID"]


def task_output(cluster: LocalCluster, task: str, name: str) -> str:
    """Return a task's output as the service keeps it."""
    (path,) = cluster.host.folder.glob(f"nodes/*/batch/tasks/workitems/*/*/{task}/{name}.txt")
    return path.read_text()


# calls that are watched ---------------------------------------------------------------------------------


def times(seconds: float) -> tuple[int, float, float]:
    """Compute for a while; return who, from when and until when."""
    begun = time.time()
    time.sleep(seconds)
    return os.getpid(), begun, time.time()


def most_at_once(spans: list[tuple[int, float, float]]) -> int:
    """Return how many of the calls ran at once."""
    running = most = 0
    for _, step in sorted([(begun, 1) for _, begun, _ in spans] + [(ended, -1) for _, _, ended in spans]):
        running += step
        most = max(most, running)
    return most


def stamps(folder: str) -> int:
    """Write the time into a file of this process, again and again, until there is a file ``stop``."""
    end = time.monotonic() + 2 * PATIENCE
    while not (Path(folder) / "stop").exists() and time.monotonic() < end:
        (Path(folder) / str(os.getpid())).write_text(str(time.time()))
        time.sleep(0.005)
    return os.getpid()


def stamps_below(folder: str) -> list[int]:
    """Have two calls of a nested Parallel write the time."""
    from joblib import Parallel, delayed

    return list(Parallel(n_jobs=2)(delayed(stamps)(folder) for _ in range(2)))


def works(number: int, seconds: float) -> int:
    """Compute for a while."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))
    return number * number


def ends_its_warmth(marker: str) -> tuple[str, str, str]:
    """Kill the supervisor and then the runner, once; return the folder, the task's folder and the task."""
    if not os.path.exists(marker):
        Path(marker).touch()
        os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    print("out")
    print("err", file=sys.stderr)
    return os.getcwd(), os.environ["AZ_BATCH_TASK_WORKING_DIR"], os.environ["AZ_BATCH_TASK_ID"]


def fills_the_disk(folder: str, runs: int, run_id: str) -> np.ndarray:
    """Return what is large; in its first runs when nobody who runs it can write any more."""
    before = len(os.listdir(folder))
    (Path(folder) / str(before)).touch()
    if before < runs:
        hosts = Node(types.SimpleNamespace(run_id=run_id)).hosts if runs > 1 else []  # type: ignore[arg-type]
        for pid in [os.getpid(), *(host.pid for host in hosts)]:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]))
    return np.ones(300_000)


def below(calls: int, seconds: float) -> list[tuple[int, float, float]]:
    """Have the calls of a nested Parallel compute."""
    from joblib import Parallel, delayed

    return list(Parallel(n_jobs=-1)(delayed(times)(seconds) for _ in range(calls)))


def grows(megabytes: int) -> int:
    """Keep memory for as long as this process lives."""
    sys.modules["warm_lab_kept"] = np.ones(megabytes << 17)  # type: ignore[assignment]
    return os.getpid()


# processes of a node ------------------------------------------------------------------------------------


class Node:
    """The warm processes of a cluster's nodes, as they are now."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._run_id = cluster.run_id

    def _found(self) -> Iterator[tuple[psutil.Process, psutil.Process | None, list[str]]]:
        for process in processes_of(self._run_id):
            try:
                if process.status() != psutil.STATUS_ZOMBIE:
                    yield process, process.parent(), process.cmdline()
            except psutil.NoSuchProcess:
                continue

    def _like(self, word: str) -> Iterator[tuple[psutil.Process, psutil.Process | None]]:
        return ((process, parent) for process, parent, command in self._found() if command[2:3] == [word])

    @property
    def supervisors(self) -> list[psutil.Process]:
        found = dict(self._like("supervise"))
        return [process for process, parent in found.items() if parent not in found]

    @property
    def hosts(self) -> list[psutil.Process]:
        found = dict(self._like("supervise"))
        return [process for process, parent in found.items() if parent in found]

    @property
    def runners(self) -> list[psutil.Process]:
        return [process for process, _ in self._like("runner")]

    @property
    def workers(self) -> list[psutil.Process]:
        """Workers of the runners' loky pools."""
        return [process for process, _, command in self._found() if "joblib.externals.loky.backend" in str(command)]

    @property
    def clients(self) -> list[psutil.Process]:
        """The light processes of tasks."""
        return [process for process, _, command in self._found() if "from client import main" in str(command[4:5])]

    def tidy(self) -> bool:
        """Tell whether no task runs, and nothing is left of a supervisor, host or runner that has ended.

        A host without its supervisor looks like one, and a runner belongs to a supervisor.
        """
        supervisors = [process.pid for process in self.supervisors]
        try:
            runners = [process.ppid() for process in self.runners]
        except psutil.NoSuchProcess:
            return False  # one has just ended
        return not self.clients and len(supervisors) <= 1 and set(runners) <= set(supervisors)

    def supervisor(self) -> psutil.Process:
        """Return the one supervisor, once it is there."""
        (found,) = until(lambda: self.supervisors, "a supervisor is there")
        return found


def living(pid: int) -> bool:
    """Tell whether a process is there and has not ended."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
