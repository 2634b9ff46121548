"""Made-up runs of jobs: good ones, and ones with a single defect."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from joblib_azure.report import History, Phases, TaskRun

#: Of the submission: some moment in 2026.
ORIGIN = 1.8e9
NODES = ("tvm-one", "tvm-two")
SLOTS = 2


def phases(compute: float = 5.0, **others: float) -> Phases:
    return Phases(**{"start": 0.05, "fetch": 0.05, "unpickle": 0.05, "upload": 0.05, **others, "compute": compute})


def task_run(number: int, node: str, begun: float, spent: Phases, **more: Any) -> TaskRun:
    """Return a run that begins so many seconds after the submission."""
    settings: dict[str, Any] = {
        "task": f"d0-{10 * number:09d}-10",
        "node": node,
        "created": ORIGIN,
        "begun": ORIGIN + begun,
        "phases": spent,
        "calls": 10,
        "done": 10,
        "work": spent.compute,
        "longest": spent.compute / 10,
        "cores": SLOTS,
    }
    return TaskRun(**{**settings, **more})


def rounds(
    number: int = 8,
    spent: Phases | None = None,
    *,
    start: float = 0.5,
    nodes: Sequence[str] = NODES,
    slots: int = SLOTS,
    apart: float = 0.001,
    **more: Any,
) -> list[TaskRun]:
    """Return so many runs for each slot, one right after the other."""
    spent = spent or phases()
    length = sum(spent) + apart
    places = [(node, slot, k) for k in range(number) for node in nodes for slot in range(slots)]
    return [task_run(i, node, start + k * length, spent, **more) for i, (node, _, k) in enumerate(places)]


def history(runs: Sequence[TaskRun], **more: Any) -> History:
    calls = sum({run.task: run.calls for run in runs}.values())
    settings: dict[str, Any] = {
        "name": "sweep-7",
        "function": "fit",
        "pool": "pool",
        "state": "completed",
        "calls": calls,
        "done": calls,
        "begun": ORIGIN,
        "ended": max((run.ended for run in runs), default=ORIGIN),
        "runs": tuple(runs),
    }
    return History(**{**settings, **more})


def large(tasks: int, *, nodes: int = 50, slots: int = 4, seed: int = 0) -> History:
    """Return a run as a real one is: uneven calls, nodes that come one by one, some preemptions and errors."""
    draw = random.Random(seed)
    runs: list[TaskRun] = []
    names = [f"tvmps_{draw.getrandbits(64):016x}_d" for _ in range(nodes)]
    free = [(0.0 if node < nodes // 2 else 4.0 + node * 0.4, node) for node in range(nodes) for _ in range(slots)]
    per_slot = -(-tasks // len(free))
    cold = dict.fromkeys(range(len(free)), True)
    for k in range(per_slot):
        for slot, (moment, node) in enumerate(free):
            number = k * len(free) + slot
            if number >= tasks:
                break
            slow = 1.25 if node % 11 == 3 else 1.0
            compute = draw.lognormvariate(1.0, 0.35) * slow
            spent = Phases(
                start=0.05 + draw.random() * 0.03,
                fetch=(1.6 if cold[slot] else 0.08) + draw.random() * 0.1,
                wait=draw.random() * 0.1,
                unpickle=(0.9 if cold[slot] else 0.03) + draw.random() * 0.03,
                compute=compute,
                upload=0.06 + draw.random() * 0.05,
            )
            cold[slot] = False
            begun = moment + 0.02 + draw.random() * 0.05
            failed = int(draw.random() < 0.002)
            again = int(draw.random() < 0.0008)
            if again and k:
                lost = Phases(start=0.05, compute=compute / 2)
                runs.append(task_run(number, names[node], begun, lost, state="preempted", done=0, cores=slots))
                begun += sum(lost) + 0.3
            runs.append(
                task_run(number, names[node], begun, spent, failed=failed, requeues=again if k else 0, cores=slots)
            )
            free[slot] = (begun + sum(spent), node)
    return history(runs, failed=sum(run.failed for run in runs))
