"""A headless Chromium, spoken to in its own protocol over two pipes: the real browser, without a driver."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
_SECONDS = 60.0


class Browser:
    """One page. What it says on its console, and what its scripts raise, is in `said`."""

    def __init__(self, process: subprocess.Popen[bytes], into: int, out: int) -> None:
        self._process, self._in, self._out = process, into, out
        self._count = 0
        self._pending = b""
        self._session: str | None = None
        self.said: list[str] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> Any:
        """Send a command and return its result."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self) -> Any:
        end = time.monotonic() + _SECONDS
        while b"\0" not in self._pending:
            if not select.select([self._out], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError(f"Chromium did not answer for {_SECONDS:.0f} s")
            data = os.read(self._out, 1 << 20)
            if not data:
                raise RuntimeError("Chromium has ended")
            self._pending += data
        text, _, self._pending = self._pending.partition(b"\0")
        message = json.loads(text)
        method, values = message.get("method", ""), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.said.append(f"exception: {values['exceptionDetails']}")
        elif method == "Runtime.consoleAPICalled":
            self.said.append(f"console.{values['type']}: {values['args']}")
        elif method == "Log.entryAdded":
            self.said.append(f"log: {values['entry']['text']}")
        elif method == "Network.requestWillBeSent" and not values["request"]["url"].startswith(("file:", "data:")):
            self.said.append(f"network: {values['request']['url']}")
        return message

    def run(self, script: str) -> Any:
        """Return the value of an expression, awaited."""
        found = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait until an expression is true, and return it."""
        end = time.monotonic() + _SECONDS
        while not (found := self.run(script)):
            if time.monotonic() > end:
                raise TimeoutError(f"{script} is not true after {_SECONDS:.0f} s; the page has said {self.said}")
            time.sleep(0.02)
        return found

    def open(self, path: Path, *, width: int = 1280, height: int = 1000, dark: bool = False) -> None:
        """Open a file and wait until its chart was drawn."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Page.navigate", url=path.as_uri())
        self.until("document.readyState === 'complete'")
        self.until("document.documentElement.dataset.drawn")

    def press(self, key: str) -> None:
        """Press a key, and wait until what it changed was drawn."""
        self.run("delete document.documentElement.dataset.drawn")
        text = {"text": key} if len(key) == 1 else {}
        self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.ask("Input.dispatchKeyEvent", type="keyUp", key=key)
        self.until("document.documentElement.dataset.drawn")

    def picture(self, *, whole: bool = False) -> bytes:
        """Return a PNG of the window, or of the whole page."""
        return base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=whole)["data"])


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start one with a profile in a folder, and end it."""
    assert PROGRAM is not None
    to_read, into = os.pipe()
    out, to_write = os.pipe()

    def pipes() -> None:
        # It reads commands from 3 and writes answers to 4; by way of numbers that are neither.
        reads, writes = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, to_write))
        os.dup2(reads, 3)
        os.dup2(writes, 4)

    flags = ["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    process = subprocess.Popen(
        [PROGRAM, *flags, "--no-first-run", "--disable-extensions", f"--user-data-dir={folder}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=pipes,
        close_fds=False,
        start_new_session=True,
    )
    os.close(to_read)
    os.close(to_write)
    try:
        yield Browser(process, into, out)
    finally:
        os.close(into)  # it ends with its pipe
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(out)
