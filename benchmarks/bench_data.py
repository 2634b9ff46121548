"""What does it cost to move data to the nodes and results back, beside the storage itself, loky, Dask and Ray?

In one run, pair by pair, each peer in a process of its own that starts it, runs the workload and ends it:

- yardstick: the bare upload of an array and a bare download of it by each of two nodes side by side, and the same of
  results, with azure-storage-blob at its best settings on a local cluster's own Azurite (`_yardstick.py`);
- W-data-1: calls on one array, a first Parallel call after the start and a second one on the same array;
- W-data-2: large results; and, for azure, calls that take a while each: has the client its first result before the
  last call ended on its node?
- W-data-3: azure only, large results as a generator, in order and not, to a consumer that takes `--pause` seconds
  for each of the first ones, so that they pile up, and then some milliseconds: does the client's memory stay small?
- W-data-4: a grid search on one training set, whose copies are the same for all fits;
- hashing: what naming a buffer by its content costs, by hash.

How it is counted: seconds are wall time of the Parallel call; peers are up before, loky starts its workers in its
first call and azure opens its session. Ratios are taken within a pair, medians over the pairs are printed. Bytes:
see `_traffic.py`; of bytes and memory the largest of the pairs counts. Memory is the client process's peak
(VmHWM, set back before the first call) minus what it had then (VmRSS), with the array in it and the peer up.
A virtual machine gives memory back to its host, and the first touch of a page then costs ten times what the next ones
do: loky's copy of the array in shared memory, a node's cached file. With ``BENCH_TOUCH_MEMORY=1`` whoever is measured
finds memory that was touched a moment ago.
The targets are for the full sizes; the exit code is 1 where one is not kept, with `--quick` always 0.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from _common import print_table, save
from _peers import BASE, PEERS, WORKERS, Started, add_options, installed, known
from joblib import Parallel, delayed

if TYPE_CHECKING:
    from _traffic import Traffic

MB = 1 << 20
#: Seconds that a process of its own may take; W-data-3 has three more for each result.
_TIMEOUT = 600.0
#: Bytes of memory that are touched before each measurement where this variable asks for it.
_TOUCHED, _TOUCH = 4 << 30, "BENCH_TOUCH_MEMORY"
#: Bytes on disk for each of W-data-3's results: they stay in storage's folder while the cluster lives, and some more
#: lie in the folders of tasks that run.
_DISK_FACTOR = 1.25
#: Results between two looks at the disk.
_DISK_LOOK = 20


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of each workload there is; `--quick` takes less."""

    array_calls: int = 32
    array_bytes: int = 200 * MB
    results: int = 32
    result_bytes: int = 20 * MB
    streamed: int = 1000
    paused: int = 60
    pause: float = 0.5
    samples: int = 400_000
    hashed_bytes: int = 256 * MB


# what the calls do -----------------------------------------------------------------------------------------


def column_sum(data: Any, column: int) -> float:
    return float(data[:, column].sum())


def large(number: int, size: int) -> Any:
    return np.full(size // 8, number, dtype=np.float64)


def timed(size: int, seconds: float) -> Any:
    time.sleep(seconds)
    return np.full(size // 8, time.time(), dtype=np.float64)


def _expect(condition: bool) -> None:
    if not condition:
        raise SystemExit("a result is wrong")


# the client's memory ---------------------------------------------------------------------------------------


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise SystemExit(f"/proc/self/status has no {name}")


class Growth:
    """By how much this process's memory grew at most, since this was made."""

    def __init__(self) -> None:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes VmRSS: man 5 proc_pid_clear_refs
        self.start = _memory("VmRSS")

    def bytes(self) -> int:
        return _memory("VmHWM") - self.start


# roles: what a process of its own does, on a peer that is up ---------------------------------------------------


def _traffic(traffic: Traffic, most_of_a_node: int | None = None) -> dict[str, int]:
    return asdict(traffic) | ({} if most_of_a_node is None else {"fetched_by_a_node": most_of_a_node})


def shared_array(started: Started, sizes: Sizes) -> dict[str, Any]:
    data = np.random.default_rng(0).random((sizes.array_bytes // 8 // 64, 64))
    growth = Growth()
    found: dict[str, Any] = {"array_bytes": data.nbytes}
    if started.cluster is not None:
        from _traffic import TrafficLog

        log, mark = TrafficLog(started.cluster), 0
    for which in ("first", "second"):
        start = time.perf_counter()
        sums = Parallel()(delayed(column_sum)(data, i % 64) for i in range(sizes.array_calls))
        found[f"{which}_seconds"] = time.perf_counter() - start
        found[f"{which}_growth"] = growth.bytes()
        if started.cluster is not None:
            before, mark = mark, log.mark()
            traffic = log.between(before, mark)
            found[f"{which}_traffic"] = _traffic(traffic, log.most_of_a_node(traffic.fetched))
        _expect(len(sums) == sizes.array_calls and abs(sums[0] - float(data[:, 0].sum())) < 1e-6)
    return found


def large_results(started: Started, sizes: Sizes) -> dict[str, Any]:
    growth = Growth()
    found: dict[str, Any] = {}
    for which in ("first", "second"):
        start = time.perf_counter()
        arrays = Parallel()(delayed(large)(i, sizes.result_bytes) for i in range(sizes.results))
        found[f"{which}_seconds"] = time.perf_counter() - start
        _expect(all(array[0] == array[-1] == i for i, array in enumerate(arrays)))
        del arrays
        started.cost()
    found["growth"] = growth.bytes()
    if started.cluster is not None:
        found["overlap"] = _overlap(sizes)
    return found


def _overlap(sizes: Sizes) -> dict[str, Any]:
    """When is the first result here, and when did the last call end there?"""
    start = time.time()
    arrivals, ends = [], []
    calls = (delayed(timed)(sizes.result_bytes, 0.25) for _ in range(sizes.results))
    for array in Parallel(return_as="generator_unordered")(calls):
        arrivals.append(time.time() - start)
        ends.append(float(array[-1]) - start)
    return {
        "first_result": arrivals[0],
        "last_end": max(ends),
        "last_result": arrivals[-1],
        "here_before_last_end": sum(arrival < max(ends) for arrival in arrivals),
    }


def stream(started: Started, sizes: Sizes) -> dict[str, Any]:
    return _stream(started, sizes, "generator")


def stream_unordered(started: Started, sizes: Sizes) -> dict[str, Any]:
    return _stream(started, sizes, "generator_unordered")


def _stream(started: Started, sizes: Sizes, return_as: str) -> dict[str, Any]:
    from _traffic import disk_use

    growth = Growth()
    start = time.perf_counter()
    calls = (delayed(large)(i, sizes.result_bytes) for i in range(sizes.streamed))
    numbers: list[int] = []
    first, peak_at, peak, disk = 0.0, 0, 0, 0
    for array in Parallel(return_as=return_as)(calls):
        first = first or time.perf_counter() - start
        numbers.append(int(array[-1]))
        del array
        if (grown := growth.bytes()) > peak:
            peak, peak_at = grown, len(numbers)
        if started.cluster is not None and len(numbers) % _DISK_LOOK == 0:
            disk = max(disk, disk_use(started.cluster))
        time.sleep(sizes.pause if len(numbers) <= sizes.paused else 0.005)
    seconds = time.perf_counter() - start
    in_order = return_as == "generator"
    _expect((numbers if in_order else sorted(numbers)) == list(range(sizes.streamed)))
    return {
        "seconds": seconds,
        "seconds_to_first": first,
        "growth": growth.bytes(),
        "peak_at_result": peak_at,
        "disk": disk,
    }


def grid_search(started: Started, sizes: Sizes) -> dict[str, Any]:
    from sklearn.linear_model import SGDClassifier
    from sklearn.model_selection import GridSearchCV

    random = np.random.default_rng(0)
    x = random.random((sizes.samples, 65))
    y = (x[:, 0] + x[:, 1] + random.random(sizes.samples) > 1.5).astype(np.int64)
    folds = 3
    model = SGDClassifier(max_iter=1, tol=None, random_state=0)
    growth = Growth()
    start = time.perf_counter()
    search = GridSearchCV(model, {"alpha": [1e-4, 1e-3]}, cv=folds, refit=False).fit(x, y)
    found: dict[str, Any] = {
        "seconds": time.perf_counter() - start,
        "growth": growth.bytes(),
        "scores": search.cv_results_["mean_test_score"].tolist(),
        "set_bytes": x.nbytes,
        # A fold's indices, of training and test together, are as many as there are samples.
        "input_bytes": x.nbytes + y.nbytes + folds * sizes.samples * np.dtype(np.intp).itemsize,
    }
    if started.cluster is not None:
        from _traffic import TrafficLog

        log = TrafficLog(started.cluster)
        traffic = log.between(0, log.mark())
        found["traffic"] = _traffic(traffic, log.most_of_a_node(traffic.fetched))
    return found


def yardstick(sizes: Sizes, chosen: dict[str, Any] | None) -> dict[str, Any]:
    from _yardstick import Yardstick

    with PEERS["azure"]() as started:
        if started.cluster is None:
            raise SystemExit("the yardstick is measured on a local cluster's storage")
        with Yardstick(started.cluster.storage_connection_string, WORKERS) as bare:
            return {
                "array": bare.array(sizes.array_bytes, chosen and chosen["array"]),
                "results": bare.results(sizes.results, sizes.result_bytes, chosen and chosen["results"]),
            }


def hashing(sizes: Sizes) -> dict[str, float]:
    """Return GB/s, the best of three."""
    data = memoryview(np.random.default_rng(0).bytes(sizes.hashed_bytes))
    pieces = [data[at : at + 8 * MB] for at in range(0, len(data), 8 * MB)]
    target = np.zeros(len(data), dtype=np.uint8)

    def threaded(threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            digests = pool.map(lambda piece: hashlib.sha256(piece).digest(), pieces)
            hashlib.sha256(b"".join(digests)).hexdigest()

    ways: dict[str, Callable[[], Any]] = {
        "SHA-256": lambda: hashlib.sha256(data).hexdigest(),
        **{f"SHA-256 of 8 MiB pieces, {n} thread(s)": lambda n=n: threaded(n) for n in (1, 2, 4)},
    }
    if importlib.util.find_spec("blake3"):
        from blake3 import blake3

        ways |= {f"BLAKE3, {n} thread(s)": lambda n=n: blake3(data, max_threads=n).hexdigest() for n in (1, 2)}
    ways["memcpy"] = lambda: np.copyto(target, np.frombuffer(data, dtype=np.uint8))
    found: dict[str, float] = {}
    for way, run in ways.items():
        seconds: list[float] = []
        for _ in range(3):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        found[way] = round(len(data) / min(seconds) / 1e9, 2)
    return found


ON_PEERS: dict[str, Callable[[Started, Sizes], dict[str, Any]]] = {
    "W-data-1": shared_array,
    "W-data-2": large_results,
    "W-data-3": stream,
    "W-data-3u": stream_unordered,
    "W-data-4": grid_search,
}


STREAMS = ("W-data-3", "W-data-3u")


def play(role: str, peer: str, sizes: Sizes, chosen: dict[str, Any] | None) -> dict[str, Any]:
    """Do a role, in this process."""
    if role == "yardstick":
        return yardstick(sizes, chosen)
    if role == "hashing":
        return hashing(sizes)
    begun = time.perf_counter()
    with PEERS[peer]() as started:
        return {"seconds_to_start": time.perf_counter() - begun, **ON_PEERS[role](started, sizes)}


def child(role: str, peer: str, sizes: Sizes, chosen: dict[str, Any] | None = None) -> dict[str, Any]:
    """Have a role done by a new process and return what it found; everything that it started ends."""
    if os.environ.get(_TOUCH):
        subprocess.run([sys.executable, "-c", f"bytearray({_TOUCHED})"], check=True)
    asked = {"sizes": asdict(sizes), "chosen": chosen}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, __file__, "--role", role, "--peers", peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            out, _ = process.communicate(
                json.dumps(asked), timeout=_TIMEOUT + (3 * sizes.streamed if role in STREAMS else 0)
            )
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{role} on {peer or 'no peer'} failed ({process.returncode}):\n{errors.read()[-4000:]}")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


# judging ---------------------------------------------------------------------------------------------------


class Targets:
    """Collects what was to be kept and whether it was."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def add(self, workload: str, what: str, figure: float | None, most: float, unit: str = "") -> None:
        """Judge a figure; None where it was not measured."""
        kept = None if figure is None else figure <= most
        self.lines.append(
            {"workload": workload, "what": what, "figure": figure, "most": most, "unit": unit, "kept": kept}
        )

    def truth(self, workload: str, what: str, kept: bool | None) -> None:
        """Take a condition."""
        self.lines.append({"workload": workload, "what": what, "kept": kept})

    def show(self) -> None:
        for line in self.lines:
            said = {None: "not judged", True: "kept", False: "NOT KEPT"}[line["kept"]]
            figure = f": {line['figure']:.2f}{line['unit']}" if line.get("figure") is not None else ""
            bound = f" (at most {line['most']:g}{line['unit']})" if "most" in line else ""
            print(f"{said}: {line['workload']} {line['what']}{figure}{bound}")

    @property
    def kept(self) -> bool:
        return all(line["kept"] is not False for line in self.lines)


Runs = dict[str, list[dict[str, Any]]]


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _text(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else format(value, form)


def _ratio(runs: Runs, peer: str, figure: str, plus: list[float] | None = None) -> float | None:
    """Return the median ratio within pairs to the base, or to the base and a yardstick together."""
    if BASE not in runs:
        return None
    added = plus or [0.0] * len(runs[BASE])
    return _median(
        [mine[figure] / (base[figure] + more) for mine, base, more in zip(runs[peer], runs[BASE], added, strict=True)]
    )


def _of(runs: Runs, peer: str, figure: str) -> float | None:
    return _median([run[figure] for run in runs[peer]])


def _most(runs: Runs, peer: str, *path: str) -> int:
    found: list[Any] = list(runs[peer])
    for key in path:
        found = [each[key] for each in found]
    return int(max(found))


def report_array(runs: Runs, bare: list[float], targets: Targets) -> None:
    rows = [
        (
            peer,
            _text(_of(runs, peer, "first_seconds")),
            _text(_of(runs, peer, "second_seconds")),
            _text(_ratio(runs, peer, "first_seconds")),
            _text(_ratio(runs, peer, "second_seconds")),
            _text(_ratio(runs, peer, "first_seconds", bare) if bare else None),
            _text(_most(runs, peer, "second_growth") / MB, ".0f"),
        )
        for peer in runs
    ]
    head = ("W-data-1", "first s", "second s", "first/loky", "second/loky", "first/(bare+loky)", "client grows MB")
    print_table(head, rows)
    if "azure" not in runs:
        return
    size = runs["azure"][0]["array_bytes"]
    names = ("uploaded", "fetched", "fetched_by_a_node", "uploaded_buffers", "fetched_buffers")
    parts = {
        name: [_most(runs, "azure", f"{which}_traffic", name) / size for which in ("first", "second")] for name in names
    }
    print()
    shares = [(name, *(f"{part:.4f}" for part in found)) for name, found in parts.items()]
    print_table(("bytes, as parts of the array", "first", "second"), shares)
    puts = _most(runs, "azure", "second_traffic", "buffer_puts")
    unknown = max(_most(runs, "azure", f"{which}_traffic", "unknown") for which in ("first", "second"))
    print(f"PUTs to the buffers in the second call: {puts}; uploads of a guessed size: {unknown}")
    first = _ratio(runs, "azure", "first_seconds", bare) if bare else None
    targets.add("W-data-1", "first call / (yardstick + loky)", first, 1.3)
    targets.add("W-data-1", "second call / loky", _ratio(runs, "azure", "second_seconds"), 1.5)
    targets.add("W-data-1", "uploaded", parts["uploaded"][0], 1.01, " arrays")
    targets.add("W-data-1", "fetched by a node", parts["fetched_by_a_node"][0], 1.01, " arrays")
    again = puts == 0 and parts["uploaded_buffers"][1] == parts["fetched_buffers"][1] == 0
    targets.truth("W-data-1", "the second call uploads and fetches nothing of it", again)
    targets.add("W-data-1", "client grows by", _most(runs, "azure", "second_growth") / MB, 150, " MB")


def report_results(runs: Runs, bare: list[float], targets: Targets) -> None:
    rows = [
        (
            peer,
            _text(_of(runs, peer, "first_seconds")),
            _text(_of(runs, peer, "second_seconds")),
            _text(_ratio(runs, peer, "first_seconds")),
            _text(_ratio(runs, peer, "second_seconds")),
            _text(_ratio(runs, peer, "first_seconds", bare) if bare else None),
            _text(_ratio(runs, peer, "second_seconds", bare) if bare else None),
            _text(_most(runs, peer, "growth") / MB, ".0f"),
        )
        for peer in runs
    ]
    sums = ("first/(bare+loky)", "second/(bare+loky)")
    print_table(("W-data-2", "first s", "second s", "first/loky", "second/loky", *sums, "client grows MB"), rows)
    if "azure" not in runs:
        return
    for which in ("first", "second"):
        ratio = _ratio(runs, "azure", f"{which}_seconds", bare) if bare else None
        targets.add("W-data-2", f"{which} call / (yardstick + loky)", ratio, 1.3)
    overlaps = [run["overlap"] for run in runs["azure"]]
    for overlap in overlaps:
        print(
            f"calls of 0.25 s: the client had the first result after {overlap['first_result']:.2f} s and "
            f"{overlap['here_before_last_end']} when the last call ended, after {overlap['last_end']:.2f} s; "
            f"the last result after {overlap['last_result']:.2f} s"
        )
    early = all(overlap["first_result"] < overlap["last_end"] for overlap in overlaps)
    targets.truth("W-data-2", "results come while nodes compute", early)


def report_stream(runs: dict[str, dict[str, Any]], sizes: Sizes, targets: Targets) -> None:
    head = ("W-data-3", "results", "seconds", "s to first", "client grows MB", "peak at result", "most on disk MB")
    names = {"W-data-3": "generator", "W-data-3u": "generator_unordered"}
    rows = [
        (
            names[role],
            f"{sizes.streamed}",
            f"{run['seconds']:.1f}",
            f"{run['seconds_to_first']:.2f}",
            f"{run['growth'] / MB:.0f}",
            f"{run['peak_at_result']}",
            f"{run['disk'] / MB:.0f}",
        )
        for role, run in runs.items()
    ]
    print_table(head, rows)
    for role, run in runs.items():
        targets.add("W-data-3", f"client grows, {names[role]}", run["growth"] / MB, 300, " MB")


def report_search(runs: Runs, targets: Targets) -> None:
    rows = [
        (
            peer,
            _text(_of(runs, peer, "seconds")),
            _text(_ratio(runs, peer, "seconds")),
            _text(_most(runs, peer, "growth") / MB, ".0f"),
            "yes" if BASE in runs and runs[peer][0]["scores"] == runs[BASE][0]["scores"] else "–",
        )
        for peer in runs
    ]
    print_table(("W-data-4", "seconds", "seconds/loky", "client grows MB", "scores as loky's"), rows)
    if "azure" not in runs:
        return
    run = runs["azure"][0]
    uploaded = _most(runs, "azure", "traffic", "uploaded") / run["input_bytes"]
    fetched = _most(runs, "azure", "traffic", "fetched_by_a_node") / run["input_bytes"]
    print(
        f"set, targets and indices of the folds: {run['input_bytes'] / MB:.1f} MB, of that the set "
        f"{run['set_bytes'] / MB:.1f} MB; uploaded {uploaded:.4f} of it, fetched by a node at most {fetched:.4f}"
    )
    targets.add("W-data-4", "uploaded for all fits", uploaded, 1.01, " × the input")
    targets.add("W-data-4", "fetched by a node for all fits", fetched, 1.01, " × the input")
    if BASE in runs:
        targets.truth("W-data-4", "the scores are loky's", run["scores"] == runs[BASE][0]["scores"])


def report_yardstick(found: list[dict[str, Any]], sizes: Sizes) -> None:
    rows, tried = [], []
    nodes = f"{WORKERS} processes"
    for name, who_moves in (("array", ("1 process", nodes)), ("results", (nodes, "1 process"))):
        size = sizes.array_bytes if name == "array" else sizes.results * sizes.result_bytes
        for step, who in zip(("upload", "download"), who_moves, strict=True):
            seconds = _median([each[name][f"{step}_seconds"] for each in found]) or 0.0
            moved = size * (WORKERS if (name, step) == ("array", "download") else 1)
            best = found[0][name][f"{step}_setting"]
            rows.append((f"{step} of the {name}, {who}", f"{seconds:.2f}", f"{moved / seconds / 1e6:.0f}", best))
            tried.append((f"{step} of the {name}", found[0][name][f"{step}_sweep"]))
    print_table(("yardstick", "seconds", "MB/s", "best setting"), rows)
    for what, sweep in tried:
        print(f"tried, {what}: {', '.join(f'{setting}: {seconds:.2f} s' for setting, seconds in sweep.items())}")


# running ---------------------------------------------------------------------------------------------------

PARTS = ("yardstick", "W-data-1", "W-data-2", "W-data-3", "W-data-4", "hashing")


def _fitting(sizes: Sizes) -> Sizes:
    """Return the sizes with as many streamed results as the disk can take."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    most = int(free / _DISK_FACTOR / sizes.result_bytes)
    if most >= sizes.streamed:
        return sizes
    print(f"W-data-3 takes {most} results instead of {sizes.streamed}: there are {free / MB:.0f} MB free\n")
    return Sizes(**{**asdict(sizes), "streamed": most})


def _progress(*said: Any) -> None:
    print(" · ".join(str(each) for each in said), flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts, for example yardstick,W-data-1")
    add_options(parser)
    parser.add_argument("--streamed", type=int, help="results of W-data-3")
    parser.add_argument("--pause", type=float, help="seconds for each of W-data-3's first results")
    parser.add_argument("--quick", action="store_true", help="one pair of smaller workloads, in some minutes")
    parser.add_argument("--save", help="name of the results; by default data or data_quick")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role is None:
        options.only = known(parser, options.only, PARTS)
        options.peers = installed(known(parser, options.peers, PEERS))
    return options


def main() -> int:
    options = _parse()
    if options.role is not None:
        asked = json.load(sys.stdin)
        print(json.dumps(play(options.role, options.peers, Sizes(**asked["sizes"]), asked["chosen"])))
        return 0
    sizes = Sizes()
    if options.quick:
        options.pairs = 1
        sizes = Sizes(results=8, streamed=60, paused=30, hashed_bytes=64 * MB)
    given = {"streamed": options.streamed, "pause": options.pause}
    sizes = Sizes(**{**asdict(sizes), **{name: value for name, value in given.items() if value is not None}})
    if "W-data-3" in options.only:
        sizes = _fitting(sizes)
    targets = Targets()
    figures: dict[str, Any] = {"options": vars(options), "workers": WORKERS, "sizes": asdict(sizes)}

    bare: list[dict[str, Any]] = []
    runs: dict[str, Runs] = {}
    on_pairs = [part for part in options.only if part in ("W-data-1", "W-data-2", "W-data-4")]
    for pair in range(options.pairs if on_pairs or "yardstick" in options.only else 0):
        if "yardstick" in options.only:
            bare.append(child("yardstick", "", sizes, bare[0] if bare else None))
            _progress(
                "yardstick", pair, f"{bare[-1]['array']['seconds']:.2f} s", f"{bare[-1]['results']['seconds']:.2f} s"
            )
        for part in on_pairs:
            for peer in options.peers:
                found = child(part, peer, sizes)
                runs.setdefault(part, {}).setdefault(peer, []).append(found)
                _progress(part, pair, peer, *(f"{k} {v:.2f}" for k, v in found.items() if k.endswith("seconds")))
    figures |= {"yardstick": bare, "runs": runs}
    streams: dict[str, dict[str, Any]] = {}
    if "W-data-3" in options.only and "azure" in options.peers:
        for role in STREAMS:
            streams[role] = child(role, "azure", sizes)
            _progress(role, f"{streams[role]['seconds']:.1f} s")
    figures["streams"] = streams

    print(f"\nmedians of {options.pairs} pair(s)")
    if bare:
        print()
        report_yardstick(bare, sizes)
    if "W-data-1" in runs:
        print()
        report_array(runs["W-data-1"], [each["array"]["seconds"] for each in bare], targets)
    if "W-data-2" in runs:
        print()
        report_results(runs["W-data-2"], [each["results"]["seconds"] for each in bare], targets)
    if streams:
        print()
        report_stream(streams, sizes, targets)
    if "W-data-4" in runs:
        print()
        report_search(runs["W-data-4"], targets)
    if "hashing" in options.only:
        print()
        figures["hashing"] = child("hashing", "", sizes)
        print_table(("hashing", "GB/s"), [(way, f"{rate:.2f}") for way, rate in figures["hashing"].items()])
    print()
    targets.show()
    if options.quick:
        print("(the targets are for the full sizes)")
    figures["targets"] = targets.lines
    print(f"\n{save(options.save or ('data_quick' if options.quick else 'data'), figures)}")
    return 0 if targets.kept or options.quick else 1


if __name__ == "__main__":
    raise SystemExit(main())
