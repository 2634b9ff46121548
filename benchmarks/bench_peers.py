"""How long do the same workloads take on the local cluster, on Dask and on Ray, as a ratio to loky at home?

Pair by pair (loky, azure, …, loky, azure, …), each peer started anew for every workload of a pair, with two workers.
The figures are wall times of the Parallel call: the first one after the start, and the next. Loky's first call
starts its workers; azure's opens the session on nodes that are up. Ratios are taken within a pair; medians over
the pairs are printed.

W1, W3, W5c and W7 are calls of given duration: they sleep, so that they measure the way to the workers and back
and not the machine. ``--compute`` makes them use the CPU for that time instead; for W5c that matters: nested calls
that sleep finish sooner the more of them a peer runs at once, on however few cores (loky gives each of two calls
two threads, a node with one core one worker). W7's ratio depends on where the culprit lies in the peer's order of
calls; the seconds after its raise do not.

``--warm`` asks what a warm cluster adds to loky: W1, W3, W2, W5 and W5c, computing, in five pairs. The exit code is 1
where azure's ratio of the next calls is above its bound.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from _common import print_table, save
from _peers import BASE, PEERS, WORKERS, Figures, add_options, installed, known
from joblib import Parallel, delayed

# workloads -------------------------------------------------------------------------------------------------


def _spend(seconds: float, compute: bool) -> None:
    if not compute:
        time.sleep(seconds)
        return
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def nap(number: int, seconds: float, compute: bool) -> int:
    _spend(seconds, compute)
    return number


def spin(number: int, seconds: float) -> int:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return number


def column_sum(data: Any, column: int) -> float:
    return float(data[:, column].sum())


def nest(calls: int, seconds: float, compute: bool) -> int:
    return sum(Parallel(n_jobs=WORKERS)(delayed(nap)(1, seconds, compute) for _ in range(calls)))


def large(number: int, size: int) -> Any:
    return np.full(size // 8, number, dtype=np.float64)


def fail_at(number: int, culprit: int, seconds: float, compute: bool) -> int:
    _spend(seconds, compute)
    if number == culprit:
        raise ZeroDivisionError(time.time())
    return number


def _expect(condition: bool) -> None:
    if not condition:
        raise SystemExit("a result is wrong")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of each workload there is; `--quick` takes less."""

    coarse: int = 16
    fine: int = 20_000
    medium: int = 400
    array_calls: int = 32
    array_bytes: int = 200 << 20
    folds: int = 5
    outer: int = 4
    inner: int = 8
    results: int = 32
    result_bytes: int = 20 << 20
    error_calls: int = 200
    compute: bool = False


def _naps(calls: int, seconds: float, compute: bool) -> Figures:
    _expect(Parallel()(delayed(nap)(i, seconds, compute) for i in range(calls)) == list(range(calls)))
    return {}


def coarse(sizes: Sizes) -> Figures:
    return _naps(sizes.coarse, 1.0, sizes.compute)


def medium(sizes: Sizes) -> Figures:
    return _naps(sizes.medium, 0.05, sizes.compute)


def fine(sizes: Sizes) -> Figures:
    _expect(Parallel()(delayed(spin)(i, 0.0002) for i in range(sizes.fine)) == list(range(sizes.fine)))
    return {}


_arrays: dict[int, Any] = {}


def shared_array(sizes: Sizes) -> Figures:
    if sizes.array_bytes not in _arrays:
        _arrays.clear()
        _arrays[sizes.array_bytes] = np.random.default_rng(0).random((sizes.array_bytes // 8 // 64, 64))
    data = _arrays[sizes.array_bytes]
    Parallel()(delayed(column_sum)(data, i % 64) for i in range(sizes.array_calls))
    return {}


def grid_search(sizes: Sizes) -> Figures:
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV

    grid = {"max_depth": [4, 8, 12, None], "max_features": ["sqrt", 0.2, 0.4]}
    forest = RandomForestClassifier(n_estimators=30, random_state=0)
    GridSearchCV(forest, grid, cv=sizes.folds, refit=False).fit(*load_digits(return_X_y=True))
    return {}


def boosting(sizes: Sizes) -> Figures:
    from sklearn.datasets import load_digits
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.model_selection import cross_val_score

    model = HistGradientBoostingClassifier(max_iter=10, random_state=0)
    cross_val_score(model, *load_digits(return_X_y=True), cv=2 * sizes.folds)
    return {}


def nested(sizes: Sizes) -> Figures:
    sums = Parallel()(delayed(nest)(sizes.inner, 0.2, sizes.compute) for _ in range(sizes.outer))
    _expect(sums == [sizes.inner] * sizes.outer)
    return {}


def large_results(sizes: Sizes) -> Figures:
    arrays = Parallel()(delayed(large)(i, sizes.result_bytes) for i in range(sizes.results))
    _expect(all(array[0] == i for i, array in enumerate(arrays)))
    return {}


def error(sizes: Sizes) -> Figures:
    calls = sizes.error_calls
    try:
        Parallel()(delayed(fail_at)(i, calls * 3 // 8, 0.1, sizes.compute) for i in range(calls))
    except ZeroDivisionError as exc:
        return {"seconds_after_raise": time.time() - exc.args[0]}
    raise SystemExit("the error did not surface")


@dataclass(frozen=True)
class Workload:
    title: Callable[[Sizes], str]
    run: Callable[[Sizes], Figures]


WORKLOADS = {
    "W1": Workload(lambda s: f"{s.coarse} × 1 s", coarse),
    "W2": Workload(lambda s: f"{s.fine} × 0.2 ms", fine),
    "W3": Workload(lambda s: f"{s.medium} × 50 ms", medium),
    "W4": Workload(lambda s: f"{s.array_calls} calls on one {s.array_bytes >> 20} MB array", shared_array),
    "W5": Workload(lambda s: f"GridSearchCV {12 * s.folds} fits", grid_search),
    "W5b": Workload(lambda s: f"HistGradientBoosting CV {2 * s.folds} fits", boosting),
    "W5c": Workload(lambda s: f"nested {s.outer} × {s.inner} × 0.2 s", nested),
    "W6": Workload(lambda s: f"{s.results} results of {s.result_bytes >> 20} MB", large_results),
    "W7": Workload(lambda s: f"an error surfaces (1 in {s.error_calls} × 0.1 s)", error),
}


#: Ratio to loky once warm that azure may have, by workload: what ``--warm`` judges, in this order.
BOUNDS = {"W1": 1.10, "W3": 1.15, "W2": 2.0, "W5": 1.15, "W5c": 1.15}
_JUDGED = "azure"
_WARM_PAIRS = 5

# measuring -------------------------------------------------------------------------------------------------


def measure(peer: str, workload: Workload, sizes: Sizes, calls: int) -> list[Figures]:
    """Start a peer and run a workload `calls` times: the first call, then the next ones."""
    found: list[Figures] = []
    begun = time.perf_counter()
    with PEERS[peer]() as started_peer:
        started = time.perf_counter() - begun
        before: Figures = {}
        for _ in range(calls):
            gc.collect()
            start = time.perf_counter()
            figures = workload.run(sizes)
            figures = {"seconds": time.perf_counter() - start, **figures}
            after = started_peer.cost()
            found.append({**figures, **{name: value - before.get(name, 0) for name, value in after.items()}})
            before = after
        found[0]["seconds_to_start"] = started
    return found


def summarise(runs: dict[str, list[list[Figures]]]) -> dict[str, dict[str, Figures]]:
    """Return medians over the pairs, and of the ratios to the base within each pair: by peer, by first and next."""
    summary: dict[str, dict[str, Figures]] = {}
    for peer, pairs in runs.items():
        summary[peer] = {}
        for which, chosen in (("first", slice(0, 1)), ("next", slice(1, None))):
            flat = [figures for calls in pairs for figures in calls[chosen]]
            if not flat:
                continue
            medians = {name: statistics.median(figures[name] for figures in flat) for name in flat[0]}
            if BASE in runs:
                ratios = [
                    statistics.median(figures["seconds"] for figures in mine[chosen])
                    / statistics.median(figures["seconds"] for figures in others[chosen])
                    for mine, others in zip(pairs, runs[BASE], strict=True)
                ]
                medians |= {"ratio": statistics.median(ratios), "least_ratio": min(ratios), "most_ratio": max(ratios)}
            summary[peer][which] = {name: round(value, 4) for name, value in medians.items()}
    return summary


def _text(summary: dict[str, Figures], figure: str, form: str) -> str:
    return " / ".join(format(figures[figure], form) if figure in figures else "–" for figures in summary.values())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", help="workloads, for example W1,W3; by default all, or those that --warm judges")
    add_options(parser)
    parser.set_defaults(pairs=None)
    parser.add_argument("--next", type=int, default=1, help="calls after the first one")
    parser.add_argument("--array-mb", type=int, help="size of W4's array")
    parser.add_argument("--compute", action="store_true", help="calls of given duration compute instead of sleeping")
    parser.add_argument("--warm", action="store_true", help=f"judge warm calls that compute, {_WARM_PAIRS} pairs")
    parser.add_argument("--quick", action="store_true", help="one pair of smaller workloads, in some minutes")
    parser.add_argument("--save", help="name of the results; by default peers, or warm, and …_quick")
    options = parser.parse_args()
    if options.warm:
        options.compute = True
        options.next = max(1, options.next)
        options.only = options.only or ",".join(BOUNDS)
    if options.pairs is None:
        options.pairs = _WARM_PAIRS if options.warm else 3
    options.only = known(parser, options.only or ",".join(WORKLOADS), WORKLOADS)
    options.peers = installed(known(parser, options.peers, PEERS))
    if options.warm and not {BASE, _JUDGED} <= set(options.peers):
        parser.error(f"--warm compares {_JUDGED} with {BASE}: leave both in --peers")
    return options


def main() -> int:
    options = _parse()
    sizes = Sizes(compute=options.compute)
    if options.quick:
        options.pairs = 1
        sizes = Sizes(
            coarse=8,
            fine=5_000,
            medium=100,
            array_bytes=50 << 20,
            folds=2,
            results=8,
            error_calls=50,
            compute=options.compute,
        )
    if options.array_mb is not None:
        sizes = Sizes(**{**vars(sizes), "array_bytes": options.array_mb << 20})
    figures: dict[str, Any] = {"options": vars(options), "workers": WORKERS, "workloads": {}}
    rows: list[list[str]] = []
    for name in options.only:
        workload = WORKLOADS[name]
        load = os.getloadavg()
        runs: dict[str, list[list[Figures]]] = {peer: [] for peer in options.peers}
        for _ in range(options.pairs):
            for peer in options.peers:
                runs[peer].append(measure(peer, workload, sizes, 1 + options.next))
        summary = summarise(runs)
        title = f"{name} {workload.title(sizes)}"
        figures["workloads"][name] = {"title": title, "load": load, "summary": summary, "runs": runs}
        for peer, found in summary.items():
            columns = (("seconds", ".2f"), ("ratio", ".2f"), ("tasks", ".0f"), ("requests", ".0f"))
            row = [title, peer, *(_text(found, figure, form) for figure, form in columns)]
            rows.append([*row, _text(found, "seconds_after_raise", ".2f")])
            print(" · ".join(rows[-1]), flush=True)
    print("\nmedians, first call / next calls\n")
    print_table(("workload", "peer", "seconds", "ratio", "tasks", "requests", "s after raise"), rows)
    kept = not options.warm or judge(figures)
    name = f"{'warm' if options.warm else 'peers'}{'_quick' if options.quick else ''}"
    print(f"\n{save(options.save or name, figures)}")
    return 0 if kept or options.quick else 1


def judge(figures: dict[str, Any]) -> bool:
    """Print the ratios of warm calls beside their bounds; return whether azure's are within."""
    rows: list[list[str]] = []
    kept = True
    for name, found in figures["workloads"].items():
        if name not in BOUNDS:
            continue
        ratios = {peer: warm["next"] for peer, warm in found["summary"].items() if peer != BASE}
        within = ratios[_JUDGED]["ratio"] <= BOUNDS[name]
        kept = kept and within
        texts = {
            peer: f"{each['ratio']:.2f} ({each['least_ratio']:.2f} to {each['most_ratio']:.2f})"
            for peer, each in ratios.items()
        }
        others = [texts.get(peer, "–") for peer in PEERS if peer not in (BASE, _JUDGED)]
        rows.append([found["title"], texts[_JUDGED], f"{BOUNDS[name]:.2f}", "kept" if within else "NOT KEPT", *others])
    figures["kept"] = kept
    print(f"\nratio to {BASE} once warm: median of {figures['options']['pairs']} pairs (least to most)\n")
    head = ("workload", _JUDGED, "bound", "", *(peer for peer in PEERS if peer not in (BASE, _JUDGED)))
    print_table(head, rows)
    return kept


if __name__ == "__main__":
    raise SystemExit(main())
