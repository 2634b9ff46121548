"""The emulator as a subprocess of the caller: started, waited for, and stopped with all that it runs."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import select
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from .options import Options

KEY_VARIABLE = "BATCH_EMULATOR_ACCOUNT_KEY"
DEFAULT_ACCOUNT = "emulated"
START_SECONDS = 60.0
STOP_SECONDS = 20.0


class EmulatorError(RuntimeError):
    """The emulator did not start (the text ends with what it wrote), or refused what a method asked of it."""


def new_key() -> str:
    """A random account key: 64 bytes in base64, as Azure's are."""
    return base64.b64encode(secrets.token_bytes(64)).decode()


class BatchEmulator:
    """An Azure Batch account on loopback, with nodes that are folders and tasks that are processes.

    It runs as a process of its own from construction until `stop`, the end of a ``with`` block, or the end of this
    process (however that comes about); every process of its nodes ends with it.

    Parameters
    ----------
    port : int, default=0
        Port on 127.0.0.1; 0 takes a free one.
    account_name : str, optional
        Name of the Batch account.
    account_key : str, optional
        Its key: base64. A random one by default.
    root : path, optional
        Folder that holds the nodes. By default a temporary one, removed at the end.
    access_log : path, optional
        File that takes one line for each request: verb, path, status, milliseconds.
    state : path, optional
        File that keeps what the account holds: an emulator that is started with it, and with the same `root`, goes on
        where the last one was, as after a reboot of all nodes. By default all of it ends with the emulator.
    tls : bool, default=False
        Serve https, with a certificate of its own; `certificate` is what a client trusts.
    certfile, keyfile : path, optional
        Serve https with this certificate and key.
    **behaviour
        How the account behaves, quotas and faults: the fields of `joblib_azure.emulator.options.Options`. As `executor`
        it takes an asynchronous function itself, of a file's top level, which runs tasks in place of processes
        (`joblib_azure.emulator.simulated`).

    Attributes
    ----------
    endpoint : str
        ``http://127.0.0.1:<port>``, or ``https://…``.
    certificate : pathlib.Path or None
        The certificate of an endpoint with https: ``connection_verify=str(emulator.certificate)``.
    account_name, account_key : str
        What clients sign their requests with.
    root : pathlib.Path
        Folder that holds the nodes.
    pid : int
        The emulator's process.

    Raises
    ------
    EmulatorError
        If the emulator does not answer within a minute, or ends before.
    TypeError, ValueError
        For an option that does not exist, or a value out of range.

    Examples
    --------
    >>> from azure.batch import BatchClient
    >>> from azure.core.credentials import AzureNamedKeyCredential
    >>> with BatchEmulator() as emulator:  # doctest: +SKIP
    ...     key = AzureNamedKeyCredential(emulator.account_name, emulator.account_key)
    ...     client = BatchClient(emulator.endpoint, key)
    """

    def __init__(
        self,
        port: int = 0,
        *,
        account_name: str | None = None,
        account_key: str | None = None,
        root: str | os.PathLike[str] | None = None,
        access_log: str | os.PathLike[str] | None = None,
        state: str | os.PathLike[str] | None = None,
        tls: bool = False,
        certfile: str | os.PathLike[str] | None = None,
        keyfile: str | os.PathLike[str] | None = None,
        **behaviour: Any,
    ) -> None:
        options = Options(**behaviour)
        self.account_name = account_name or DEFAULT_ACCOUNT
        self.account_key = account_key or new_key()
        self._owns_root = root is None
        self.root = Path(tempfile.mkdtemp(prefix="batch-") if root is None else root).resolve()
        self.root.mkdir(parents=True, exist_ok=True)
        self._log = self.root / "emulator.log"
        self.endpoint = ""
        self.certificate: Path | None = None
        command = [sys.executable, "-m", "joblib_azure.emulator", "--port", str(port), "--account", self.account_name]
        command += ["--root", str(self.root), "--starter", str(os.getpid())]
        if self._owns_root:
            command.append("--remove-root")
        if access_log is not None:
            command += ["--access-log", str(Path(access_log).resolve())]
        if tls:
            command.append("--tls")
        for flag, file in (("--certfile", certfile), ("--keyfile", keyfile), ("--state", state)):
            if file is not None:
                command += [flag, str(Path(file).resolve())]
        command += options.arguments()
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, KEY_VARIABLE: self.account_key},
                # Ctrl-C at a terminal is for the caller, who may still need the emulator to clean up
                start_new_session=True,
            )
        try:
            self.endpoint = self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self) -> str:
        out = self._process.stdout
        if out is None:  # pragma: no cover - it is a pipe
            raise EmulatorError("no pipe to the emulator")
        deadline = time.monotonic() + START_SECONDS
        line = b""
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([out], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise EmulatorError(f"The Batch emulator did not answer within {START_SECONDS:.0f} s.{self._tail()}")
            piece = os.read(out.fileno(), 4096)
            if not piece:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(5)
                code = self._process.returncode
                raise EmulatorError(f"The Batch emulator ended with exit code {code} before it listened.{self._tail()}")
            line += piece
        ready = json.loads(line)
        self.certificate = Path(ready["certificate"]) if ready.get("certificate") else None
        return str(ready["endpoint"])

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            text = self._log.read_text(errors="replace")[-2000:].strip()
            if text:
                return f" It wrote:\n{text}"
        return ""

    @property
    def pid(self) -> int:
        """The emulator's process."""
        return self._process.pid

    # -- what happens to nodes of itself ----------------------------------------------------------------------------

    def preempt_node(self, pool: str, node: str, seconds: float | None = None) -> None:
        """Preempt a spot node; it comes back after these seconds, or with `restore_node`."""
        self.control(f"pools/{pool}/nodes/{node}/preempt" + ("" if seconds is None else f"?seconds={seconds}"))

    def mark_node_unusable(self, pool: str, node: str, seconds: float | None = None) -> None:
        """Make a node unusable; it comes back after these seconds, or with `restore_node`."""
        self.control(f"pools/{pool}/nodes/{node}/unusable" + ("" if seconds is None else f"?seconds={seconds}"))

    def restore_node(self, pool: str, node: str) -> None:
        """Bring back a node that was preempted, unusable or lost."""
        self.control(f"pools/{pool}/nodes/{node}/restore")

    def control(self, path: str) -> None:
        """Ask for what `joblib_azure.emulator.control` has, by its path below ``/_emulator/``."""
        headers = {"x-emulator-key": self.account_key}
        request = urllib.request.Request(f"{self.endpoint}/_emulator/{path}", b"", headers, method="POST")
        context = ssl.create_default_context(cafile=str(self.certificate)) if self.certificate else None
        try:
            urllib.request.urlopen(request, timeout=STOP_SECONDS, context=context).close()
        except urllib.error.HTTPError as exc:
            raise EmulatorError(f"{path}: {exc.code} {exc.read().decode(errors='replace')}") from None

    def stop(self) -> None:
        """Stop the emulator and every process of its nodes; once more does no harm."""
        process = self._process
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()  # the end of its stdin tells it to stop
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        if self._owns_root:
            shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> BatchEmulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return (
            f"BatchEmulator(endpoint={self.endpoint!r}, account_name={self.account_name!r}, account_key='***', "
            f"root={str(self.root)!r}, pid={self.pid})"
        )
