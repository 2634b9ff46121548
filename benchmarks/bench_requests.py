"""How many Batch tasks and HTTP requests does a Parallel call cost, and does bundling make anybody wait?

On local clusters, with Batch's and Azurite's own access logs, all requests of client and nodes counted until the
last task has ended:

1. 2,000 calls of 1 ms: tasks and requests by operation, of the first call (which opens the session), of the next
   one and of the session's end;
2. 4 calls of 1 s on 4 slots: are they 4 tasks at once, as the first call of a session and with their cost known;
3. a generator of calls that yields one every 0.5 s: when is its first result there, on warm nodes.

The exit code is 1 where the bounds below are not kept.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from _common import AccessLogs, print_table, save, settle
from joblib import Parallel, delayed, parallel_config

from joblib_azure import LocalCluster
from joblib_azure.registry import close_sessions, session_for

MOST_TASKS, MOST_REQUESTS = 60, 400
MOST_SECONDS_TO_FIRST = 1.5
#: Seconds between two calls of the slow generator, and how many it yields.
PERIOD, YIELDS = 0.5, 6


def short(number: int, seconds: float) -> int:
    time.sleep(seconds)
    return number


def long(seconds: float) -> tuple[float, float]:
    start = time.time()
    time.sleep(seconds)
    return start, time.time()


def count_requests(options: argparse.Namespace) -> dict[str, Any]:
    """Question 1."""
    figures: dict[str, Any] = {}
    counts: dict[str, Counter[str]] = {}
    shape = {"nodes": options.nodes, "cores_per_node": options.cores, "max_tasks_per_node": options.slots}
    with LocalCluster(**shape) as cluster, parallel_config("azure", cluster=cluster):
        logs = AccessLogs(cluster.host)
        tasks = 0
        for name in ("first", "next"):
            before, start = logs.counts(), time.perf_counter()
            numbers = Parallel(n_jobs=-1)(delayed(short)(i, options.seconds) for i in range(options.calls))
            wall = time.perf_counter() - start
            if numbers != list(range(options.calls)):
                raise SystemExit(f"the {name} call's results are wrong")
            session = session_for(cluster)
            settle(session)
            counts[name] = logs.counts() - before
            figures[name] = {
                "seconds": round(wall, 3),
                "tasks": session.work.tasks_added - tasks,
                "requests": counts[name].total(),
                "operations": dict(counts[name].most_common()),
            }
            tasks = session.work.tasks_added
        before, start = logs.counts(), time.perf_counter()
        close_sessions(cluster)
        counts["close"] = logs.counts() - before
        figures["close"] = {
            "seconds": round(time.perf_counter() - start, 3),
            "tasks": 0,
            "requests": counts["close"].total(),
            "operations": dict(counts["close"].most_common()),
        }
    print(f"{options.calls} calls of {options.seconds:g} s on {options.nodes} node(s) × {options.cores} core(s)\n")
    rows = [(row, *(f"{figures[name][row]}" for name in counts)) for row in ("seconds", "tasks", "requests")]
    operations = [operation for operation, _ in sum(counts.values(), Counter()).most_common()]
    rows += [(operation, *(f"{counts[name][operation]}" for name in counts)) for operation in operations]
    print_table(("", *counts), rows)
    # The dearest case: a session of one call.
    figures["requests_of_one_call_session"] = requests = (counts["first"] + counts["close"]).total()
    figures["kept"] = requests < MOST_REQUESTS and all(figures[name]["tasks"] < MOST_TASKS for name in counts)
    return figures


def spread() -> dict[str, Any]:
    """Question 2."""
    figures: dict[str, Any] = {}
    with LocalCluster(nodes=2, cores_per_node=2, max_tasks_per_node=2) as cluster:
        tasks = 0
        for name in ("first", "next"):
            start = time.perf_counter()
            with parallel_config("azure", cluster=cluster):
                spans = Parallel(n_jobs=-1)(delayed(long)(1.0) for _ in range(4))
            wall = time.perf_counter() - start
            session = session_for(cluster)
            settle(session)
            together = min(end for _, end in spans) - max(begin for begin, _ in spans)
            figures[name] = {
                "seconds": round(wall, 3),
                "tasks": session.work.tasks_added - tasks,
                "all_at_once": together > 0,
                "seconds_together": round(together, 3),
            }
            tasks = session.work.tasks_added
    figures["kept"] = all(figures[name]["tasks"] == 4 and figures[name]["all_at_once"] for name in ("first", "next"))
    return figures


def _slow(first: str) -> Iterator[Any]:
    for number in range(YIELDS):
        if first == "sleep":
            time.sleep(PERIOD)
        yield delayed(short)(number, 0.001)
        if first == "yield":
            time.sleep(PERIOD)


def stream(options: argparse.Namespace) -> dict[str, Any]:
    """Question 3."""
    figures: dict[str, Any] = {}
    shape = {"nodes": options.nodes, "cores_per_node": options.cores, "max_tasks_per_node": options.slots}
    with LocalCluster(**shape) as cluster, parallel_config("azure", cluster=cluster):
        Parallel(n_jobs=-1)(delayed(abs)(i) for i in range(4))  # nodes up and prepared, session open
        for first in ("sleep", "yield"):
            settle(session_for(cluster))
            start = time.perf_counter()
            results = Parallel(n_jobs=-1, return_as="generator")(_slow(first))
            arrivals = [time.perf_counter() - start for _ in results]
            figures[f"{first}_first"] = {
                "seconds_to_first": round(arrivals[0], 3),
                "arrivals": [round(arrival, 3) for arrival in arrivals],
            }
    figures["kept"] = all(figure["seconds_to_first"] < MOST_SECONDS_TO_FIRST for figure in figures.values())
    return figures


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cores", type=int, default=1, help="cores of a node")
    parser.add_argument("--slots", type=int, default=1, help="task slots of a node")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=0.001, help="duration of a call")
    return parser.parse_args()


def main() -> int:
    options = _parse()
    figures = {"options": vars(options), "requests": count_requests(options)}
    figures["spread"] = found = spread()
    print("\n4 calls of 1 s on 4 slots\n")
    rows = ("seconds", "tasks", "all_at_once", "seconds_together")
    print_table(("", "first", "next"), [(row, *(f"{found[name][row]}" for name in ("first", "next"))) for row in rows])
    figures["stream"] = found = stream(options)
    print(f"\na call every {PERIOD} s: seconds to each result\n")
    for name in ("sleep_first", "yield_first"):
        print(f"{name}: {', '.join(f'{arrival:.2f}' for arrival in found[name]['arrivals'])}")
    bounds = {
        "requests": f"fewer than {MOST_TASKS} tasks and {MOST_REQUESTS} requests",
        "spread": "4 calls of 1 s on 4 slots are 4 tasks at once",
        "stream": f"the first result within {MOST_SECONDS_TO_FIRST} s",
    }
    print()
    for name, bound in bounds.items():
        print(f"{'kept' if figures[name]['kept'] else 'NOT KEPT'}: {bound}")
    print(f"\n{save('requests', figures)}")
    return 0 if all(figures[name]["kept"] for name in bounds) else 1


if __name__ == "__main__":
    raise SystemExit(main())
