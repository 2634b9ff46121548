"""What does a task cost on its node, beside its calls?

Two local clusters side by side, one with warm runners and one without; in turn, each runs a short Parallel call of two
kinds: calls that do nothing, and calls that fit a tiny forest of scikit-learn's. The cost of a task is what lies
between the start of its process and its first call, and between its last call and its end: start and end as the service
reports them, the calls as they report themselves, and in between what the node has written into the task's end record.
The first task of each kind on each node is not counted.

::

    start ─► begun ─► read ─► ready ─► admitted ─► first call … last call ─► ran ─► ended ─► end
      process   bundle  inputs   cores       runner, pool, unpickling      outcomes    outcomes stored

The exit code is 1 where the bounds below are not kept.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import numpy as np
from _common import print_table, save, settle
from azure.batch import BatchClient
from azure.core.credentials import AzureNamedKeyCredential
from joblib import Parallel, delayed, parallel_config
from sklearn.ensemble import RandomForestClassifier

from joblib_azure import LocalCluster
from joblib_azure.codec import outcomes_of, unseal_all
from joblib_azure.registry import session_for

#: Median of a warm task, and how many times that a cold one with scikit-learn must be.
MOST_SECONDS, LEAST_RATIO = 0.1, 20
PATHS = ("warm", "cold")
MARKS = ("start", "begun", "read", "ready", "admitted", "first", "last", "ran", "ended", "end")
#: What lies between two marks; None is the work.
PARTS = (
    "start → begun: a process, client.py's or the node code's imports",
    "begun → read: a host, the bundle's fetch",
    "read → ready: the bundle checked, inputs begun",
    "ready → admitted: the cores' tokens",
    "admitted → first call: a lease or a pool, unpickling, imports",
    None,
    "last call → ran: the outcomes to the task",
    "ran → ended: inputs and runner let go",
    "ended → end: the last outcomes to storage, the process",
)

Call = tuple[str, str, float, float]


def _where() -> tuple[str, str]:
    return os.environ["AZ_BATCH_NODE_ID"], os.environ["AZ_BATCH_TASK_ID"]


def nothing(number: int) -> Call:
    begin = time.time()
    return (*_where(), begin, time.time())


def forest(number: int) -> Call:
    begin = time.time()
    data = np.arange(40.0).reshape(20, 2)
    RandomForestClassifier(n_estimators=2, random_state=number).fit(data, np.arange(20) % 2)
    return (*_where(), begin, time.time())


KINDS: dict[str, Callable[[int], Call]] = {"nothing": nothing, "scikit-learn": forest}


class Tasks:
    """The tasks of one path: which there were, and after all of them, their times."""

    def __init__(self, cluster: LocalCluster, calls: int) -> None:
        self._cluster, self._calls = cluster, calls
        self._spans: dict[str, dict[str, Any]] = {}
        self._seen: set[tuple[str, str]] = set()
        self.counted = dict.fromkeys(KINDS, 0)

    def run(self, kind: str) -> None:
        """Run one Parallel call and wait until its tasks have ended."""
        with parallel_config("azure", cluster=self._cluster):
            calls: list[Call] = Parallel(n_jobs=-1)(delayed(KINDS[kind])(i) for i in range(self._calls))
        settle(session_for(self._cluster))
        for node, task, begin, end in calls:
            if task not in self._spans:
                self._spans[task] = {"kind": kind, "node": node, "first": begin, "last": end}
            span = self._spans[task]
            span["first"], span["last"] = min(span["first"], begin), max(span["last"], end)
        for task in {task for _, task, _, _ in calls}:
            span = self._spans[task]
            if (kind, span["node"]) in self._seen:
                self.counted[kind] += 1
            span["counts"] = (kind, span["node"]) in self._seen
        self._seen |= {(kind, node) for node, _, _, _ in calls}

    def times(self, kind: str, warm: bool) -> list[dict[str, float]]:
        """Return the marks of each task that counts; to be called while the session is open."""
        cluster = self._cluster
        session = session_for(cluster)
        found: dict[str, dict[str, Any]] = {}
        for item in cluster.blobs.blobs(session.outputs, ""):
            task = item.name.split("/")[1]
            data = cluster.blobs.read(session.outputs, item.name)
            for record in unseal_all(session.key, f"{session.job}/{item.name}", data):
                for outcome in outcomes_of(record):
                    found.setdefault(task, {}).update(outcome.head.get("end", {}))
        key = AzureNamedKeyCredential(cluster.account_name, cluster.account_key)
        with BatchClient(cluster.batch_endpoint, key) as client:
            for task in client.list_tasks(session.job):
                info = task.execution_info
                found[task.id] |= {"start": _seconds(info.start_time), "end": _seconds(info.end_time)}
        chosen = [{**found[task], **span} for task, span in self._spans.items() if span["kind"] == kind]
        chosen = [each for each in chosen if each["counts"]]
        if other := [each for each in chosen if each["warm"] is not warm]:
            print(f"{len(other)} task(s) of {len(chosen)} did not take the {'warm' if warm else 'cold'} path: left out")
        return [{mark: each[mark] for mark in MARKS} for each in chosen if each["warm"] is warm]


def _seconds(moment: datetime | None) -> float:
    if moment is None:
        raise SystemExit("a task that has ended has no times")
    return moment.timestamp()


def summarise(tasks: list[dict[str, float]]) -> dict[str, Any]:
    """Return the medians over the tasks: of the whole cost, of what is before and behind the calls, of the parts."""

    def median(one: str, other: str) -> float:
        return round(statistics.median(each[other] - each[one] for each in tasks), 6)

    costs = [each["first"] - each["start"] + each["end"] - each["last"] for each in tasks]
    steps = zip(PARTS, MARKS, MARKS[1:], strict=False)
    return {
        "tasks": len(tasks),
        "cost": round(statistics.median(costs), 6),
        "least": round(min(costs), 6),
        "most": round(max(costs), 6),
        "before": median("start", "first"),
        "behind": median("last", "end"),
        "parts": {part: median(one, other) for part, one, other in steps if part is not None},
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--cores", type=int, default=1, help="cores of a node")
    parser.add_argument("--slots", type=int, default=1, help="task slots of a node")
    parser.add_argument("--calls", type=int, default=2, help="calls of a Parallel call")
    parser.add_argument("--tasks", type=int, default=24, help="warm tasks of each kind, at least")
    parser.add_argument("--cold-tasks", type=int, default=6, help="cold tasks of each kind, at least")
    parser.add_argument("--quick", action="store_true", help="few tasks, and the exit code judges nothing")
    options = parser.parse_args()
    if options.quick:
        options.tasks, options.cold_tasks = 6, 2
    return options


def main() -> int:
    options = _parse()
    shape = {"nodes": options.nodes, "cores_per_node": options.cores, "max_tasks_per_node": options.slots}
    wanted = {"warm": options.tasks, "cold": options.cold_tasks}
    with ExitStack() as stack:
        clusters = {path: stack.enter_context(LocalCluster(**shape, warm_runners=path == "warm")) for path in PATHS}
        paths = {path: Tasks(cluster, options.calls) for path, cluster in clusters.items()}
        shares = {path: dict.fromkeys(KINDS, 0.0) for path in PATHS}
        while any(share < 1 for kinds in shares.values() for share in kinds.values()):
            # Whichever is furthest behind, so that both paths meet what else the machine does.
            turns = [(shares[path][kind], path, kind) for kind in KINDS for path in PATHS]
            _, path, kind = min(turns, key=lambda turn: turn[0])
            paths[path].run(kind)
            shares[path][kind] = paths[path].counted[kind] / wanted[path]
        times = {kind: {path: paths[path].times(kind, path == "warm") for path in PATHS} for kind in KINDS}
    found = {kind: {path: summarise(tasks) for path, tasks in by_path.items()} for kind, by_path in times.items()}
    columns = [(kind, path) for kind in KINDS for path in PATHS]
    print(f"{options.nodes} node(s) × {options.cores} core(s), {options.slots} slot(s); medians in ms\n")
    rows = [["tasks", *(f"{found[kind][path]['tasks']}" for kind, path in columns)]]
    for part in PARTS:
        if part is None:
            rows.append(["(the calls)", *("" for _ in columns)])
        else:
            rows.append([part, *(_ms(found[kind][path]["parts"][part]) for kind, path in columns)])
    names = {"before": "start → first call", "behind": "last call → end", "cost": "in all"}
    names |= {"least": "in all, least", "most": "in all, most"}
    for name, text in names.items():
        rows.append([text, *(_ms(found[kind][path][name]) for kind, path in columns)])
    print_table(("", *(f"{kind}, {path}" for kind, path in columns)), rows)
    ratios = {kind: round(by["cold"]["cost"] / by["warm"]["cost"], 2) for kind, by in found.items()}
    print("\ncold ÷ warm: " + ", ".join(f"{ratio:.1f} ({kind})" for kind, ratio in ratios.items()) + "\n")
    bounds = {
        f"a warm task costs at most {MOST_SECONDS * 1000:.0f} ms": all(
            by["warm"]["cost"] <= MOST_SECONDS for by in found.values()
        ),
        f"with scikit-learn a cold task costs at least {LEAST_RATIO} times that": ratios["scikit-learn"] >= LEAST_RATIO,
    }
    for bound, kept in bounds.items():
        print(f"{'kept' if kept else 'NOT KEPT'}: {bound}")
    figures = {"options": vars(options), "summary": found, "ratios": ratios, "bounds": bounds, "times": times}
    print(f"\n{save('overhead_quick' if options.quick else 'overhead', figures)}")
    return 0 if options.quick or all(bounds.values()) else 1


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}"


if __name__ == "__main__":
    raise SystemExit(main())
