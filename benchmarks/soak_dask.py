"""What becomes of the soak's calls on Dask, under those of its faults that can be injected there likewise?

::

    client ──► proxy that resets its connections ──► scheduler ◄── 4 workers, which are killed one after another

The calls are those of `soak.py`: a list of the first half, an unordered generator of the second. For each seed three
storms: workers killed (SIGKILL; Dask's nannies start others), the client's link to the scheduler reset, and both.
Nothing else of the soak's faults has a counterpart: there is no service between Dask's client and its workers.

A seed is survived where every result is right and there once. It hangs where it is not over within ``--deadline``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import multiprocessing
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
from _common import print_table, save
from joblib import Parallel, delayed, parallel_config
from soak import _check, _numbered, _once, work

#: Seconds between two strikes, at least and at most.
_PAUSE = (0.4, 1.6)
#: Strikes of each kind in a storm.
_STRIKES = 6
STORMS = {"workers killed": ("kill",), "link reset": ("reset",), "both": ("kill", "reset")}


class Link:
    """Forwards bytes between the client and the scheduler, until it is told to reset what is open."""

    def __init__(self, target: str) -> None:
        host, port = target.removeprefix("tcp://").rsplit(":", 1)
        self._target = (host, int(port))
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self.address = ""
        threading.Thread(target=self._run, args=(ready,), daemon=True).start()
        ready.wait(10)

    def _run(self, ready: threading.Event) -> None:
        async def serve() -> None:
            server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
            self.address = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            ready.set()
            await server.serve_forever()

        self._loop.run_until_complete(serve())

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._target)
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        self._open.discard(writer)
        writer.close()

    def reset(self) -> bool:
        """Reset what is open; False where nothing is."""
        found = list(self._open)
        for writer in found:
            self._loop.call_soon_threadsafe(writer.transport.abort)
        return bool(found)


def _strike(cluster: Any, link: Link, kind: str, draw: random.Random) -> bool:
    if kind == "reset":
        return link.reset()
    nannies = [nanny.process for nanny in cluster.workers.values() if nanny.process is not None]
    workers = [each.pid for each in nannies if each.pid]
    if not workers:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(draw.choice(workers), signal.SIGKILL)
    return True


def _seed(seed: int, kinds: tuple[str, ...], calls: int, said: Any) -> None:
    """Run one storm in a process of its own, and tell what became of it."""
    logging.disable(logging.CRITICAL)
    import dask
    from distributed import Client, LocalCluster

    draw, struck = random.Random(seed), Counter[str]()
    over = threading.Event()
    shared = np.random.default_rng(seed).integers(0, 1000, 200_000)
    half = calls // 2
    ended = "survived"
    with (
        tempfile.TemporaryDirectory(prefix="dask-") as folder,
        dask.config.set({"temporary-directory": folder}),
        LocalCluster(n_workers=4, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
    ):
        link = Link(cluster.scheduler_address)

        def storm() -> None:
            strikes = [kind for kind in kinds for _ in range(_STRIKES)]
            draw.shuffle(strikes)
            for kind in strikes:
                if over.wait(draw.uniform(*_PAUSE)):
                    return
                struck[kind] += _strike(cluster, link, kind, draw)

        with Client(link.address), parallel_config("dask"):
            thread = threading.Thread(target=storm, daemon=True)
            thread.start()
            try:
                first = Parallel()(delayed(work)(i, shared, False) for i in range(half))
                _check(first, range(half), shared)
                found = Parallel(return_as="generator_unordered")(
                    delayed(_numbered)(i, shared) for i in range(half, calls)
                )
                rest = dict(_once(found))
                _check([rest.get(i) for i in range(half, calls)], range(half, calls), shared)
            except BaseException as exc:
                ended = f"{type(exc).__name__}: {str(exc)[:120]}"
            over.set()
            said.send((ended, dict(struck)))
            os._exit(0)  # what becomes of Dask's own end is another question


def run(seed: int, kinds: tuple[str, ...], calls: int, deadline: float) -> tuple[str, dict[str, int], float]:
    """Return how a storm ended, what struck, and the seconds that it took."""
    context = multiprocessing.get_context("spawn")
    said, end = context.Pipe(duplex=False)
    process = context.Process(target=_seed, args=(seed, kinds, calls, end))
    begun = time.monotonic()
    process.start()
    end.close()
    ended, struck = "hangs", {}
    if said.poll(deadline):
        try:
            ended, struck = said.recv()
        except EOFError:
            ended = "the client died"
    seconds = time.monotonic() - begun
    _kill(process.pid)
    process.join(10)
    return ended, struck, round(seconds, 1)


def _kill(pid: int | None) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for each in (*parent.children(recursive=True), parent):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    for each in psutil.process_iter(["cmdline"]):
        if "from distributed" in " ".join(each.info["cmdline"] or ()):
            each.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=10, help="of each storm (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--deadline", type=float, default=120.0, help="seconds that a seed may take")
    given = parser.parse_args()
    figures, rows = [], []
    for name, kinds in STORMS.items():
        outcomes = []
        for seed in range(given.seeds):
            ended, struck, seconds = run(seed, kinds, given.calls, given.deadline)
            outcomes.append(ended)
            figures.append({"storm": name, "seed": seed, "ended": ended, "struck": struck, "seconds": seconds})
            print(f"{name}, seed {seed}: {struck}, {seconds:.1f} s, {ended}", flush=True)
        ends = Counter("survived" if each == "survived" else each.partition(":")[0] for each in outcomes)
        strikes = sum(sum(each["struck"].values()) for each in figures if each["storm"] == name)
        rows.append((name, str(strikes), f"{ends.pop('survived', 0)} of {given.seeds}", str(dict(ends) or "-")))
    print()
    print_table(("storm", "strikes", "survived", "otherwise"), rows)
    print(f"figures in {save('soak_dask', {'seeds': figures})}")


if __name__ == "__main__":
    main()
