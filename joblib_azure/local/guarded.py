"""The guard of a local cluster, as its client sees it.

The guard (`guard.py`) is a process of its own. A thread here reads what it says. It is also the last to look:
when the guard was killed, it kills what is left of the cluster.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from joblib_azure.errors import masked
from joblib_azure.local import guard

__all__ = ["EMULATOR_GRACE", "GUARD_GRACE", "GuardProcess", "tail"]

logger = logging.getLogger(__name__)

# How long the emulator may take to end its nodes' tasks before it is killed with them.
EMULATOR_GRACE = 5.0
# The guard keeps its own deadlines; this is for a guard that hangs (stopped with SIGSTOP, say).
GUARD_GRACE = 30.0


class GuardProcess:
    """A guard as its client sees it, for all threads; in a forked child it only closes its pipe ends."""

    def __init__(self, run_id: str, folder: Path, keep: bool) -> None:
        self.run_id = run_id
        self.folder = folder
        self.keep = keep
        self.failure: str | None = None
        self._owner = os.getpid()
        self._ready: dict[str, str] | None = None
        self._answered = threading.Event()  # ready, or over
        self._over = threading.Event()  # the servers are being ended
        self._gone = threading.Event()  # nothing is left
        self._stdin_lock = threading.Lock()
        self._asked = False
        self._servers: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        # Without site-packages the guard starts in 25 ms, but where there is no /proc it needs psutil.
        flags = ["-I", "-S"] if Path("/proc/self/environ").exists() else ["-I"]
        with (self.folder / "guard.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *flags, guard.__file__, str(self._owner), self.run_id, str(self.folder)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",  # so as not to keep the user's folder busy
                env={**os.environ, guard.RUN_ID_VARIABLE: self.run_id + guard.HOST_SUFFIX},
                start_new_session=True,  # the terminal's Ctrl-C is for the client, not for the servers
            )
        _STARTED.add(self)
        self._thread = threading.Thread(target=self._watch, name="joblib_azure-guard", daemon=True)
        self._thread.start()

    def request(self, servers: list[dict[str, Any]], deadline: float) -> None:
        request = {
            "run_id": self.run_id,
            "folder": str(self.folder),
            "keep": self.keep,
            "deadline": deadline,
            "servers": servers,
        }
        if self._process is not None and self._process.stdin is not None:
            try:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
            except BrokenPipeError:  # it died; the watching thread says how
                pass

    def wait_ready(self, seconds: float) -> dict[str, str] | None:
        self._answered.wait(seconds)
        return self._ready

    def alive(self) -> bool:
        if os.getpid() != self._owner and self._process is not None:  # our thread is not in a forked child
            return not self._over.is_set() and self._process.pid in guard.pids_of(self.run_id)
        return self._ready is not None and not self._over.is_set()

    def stop(self, deadline: float) -> None:
        if os.getpid() != self._owner or self._process is None:
            if self._process is None and os.getpid() == self._owner and not self.keep:
                guard.remove_folder(self.folder)
            return
        self._close_stdin()
        if self._thread is None:  # Ctrl-C came before it
            self._watch()
        # The collector may have chosen the watching thread to finalize the host.
        if threading.current_thread() is not self._thread and not self._gone.wait(deadline):
            logger.warning("The guard of local cluster %s has not ended in %.0f s", self.run_id, deadline)
            self._process.kill()
            self._gone.wait(guard.KILL_DEADLINE)

    def forget(self) -> None:
        """In a forked child: let go of the pipes, which would keep the guard waiting, and of the process."""
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process.returncode = 0  # or Popen would warn of a child that is not ours

    def _close_stdin(self) -> None:
        with self._stdin_lock:
            self._asked = True
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.close()

    def _watch(self) -> None:
        process = self._process
        if process is None or process.stdout is None:
            return
        data = b""
        # Not readline(): a thread in a buffered read at interpreter exit would be fatal.
        while chunk := os.read(process.stdout.fileno(), 65536):
            data += chunk
            *lines, data = data.split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "ready" in message:
                    self._ready = message["ready"]
                    self._servers = set(message["pids"])
                    self._answered.set()
                elif message["failed"] or not self._asked:
                    self.failure = message["ended"]
        self._over.set()
        self._answered.set()
        process.stdout.close()
        try:
            code = process.wait(GUARD_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if code not in (guard.EXIT_ASKED, guard.EXIT_SERVER_DIED):
            self._clean_up(code)
        self._close_stdin()
        _STARTED.discard(self)
        self._gone.set()
        if self.failure is not None and self._ready is not None:
            logger.warning("The local cluster has ended: %s", masked(self.failure))

    def _clean_up(self, code: int) -> None:
        why = f"its guard {guard.how_it_ended(code)}\n{tail(self.folder / 'guard.log')}".strip()
        self.failure = self.failure or why
        # The emulator has seen that its guard is gone and ends its tasks; then comes what it left.
        end = time.monotonic() + EMULATOR_GRACE
        while self._servers & guard.pids_of(self.run_id) and time.monotonic() < end:
            time.sleep(0.05)
        guard.kill_all(self.run_id)
        if not self.keep:
            guard.remove_folder(self.folder)


def _forget_all() -> None:
    for process in tuple(_STARTED):
        process.forget()
    _STARTED.clear()


# For the one hook that a process can have for its forked children; it cannot be unregistered.
_STARTED: set[GuardProcess] = set()
os.register_at_fork(after_in_child=_forget_all)


def tail(log: Path) -> str:
    try:
        return log.read_text("utf-8", "replace")[-4000:].strip()
    except OSError:
        return ""
