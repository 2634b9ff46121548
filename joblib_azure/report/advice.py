"""What would make a run faster: each piece of advice has a condition of its own, and names what to change."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .model import History, TaskRun
from .usage import Utilisation, gaps, tail, totals, utilisation
from .words import count, percent, said

#: What is not worth a word: seconds that could be won, at most.
WORTH = 1.0
#: A bundle aims at a task's cost below this part of its work (DESIGN.md, decision 6) …
AIM = 0.05
#: … and three times that is more than the spread of a good run.
TASK_COST = 0.15
#: A slot should get so many bundles that slots end about together; the planner's own bundles keep to that too.
ROUNDS = 2
#: The part of the slots' time that first tasks may take longer than others: a tenth is gone after a few more rounds.
COLD = 0.1
#: The part of the slots' time from which on fetching or unpickling is what the run does: a fifth hides behind nothing.
TRANSFER, UNPICKLING = 0.2, 0.2
#: A shorter fetch is the latency of a few requests, which larger bundles save, and smaller arguments do not.
FETCH_SECONDS = 1.0
#: The end of a run with even bundles is one of ROUNDS × 2 rounds, in which half of the slots end in the first half.
TAIL = 0.15
#: The parts of the slots' time that they may wait for nodes, and for the submission: a tenth is the run's own spread.
NODES, SUBMISSION = 0.1, 0.1
#: Nodes of one size differ by a few per cent; with neighbours on the same host by some ten.
UNEQUAL = 1.5
#: Bundles of a node of which the median says something.
ENOUGH_BUNDLES = 8
#: A bundle's last calls leave some cores without work: with four rounds of calls in a bundle an eighth of its time.
IDLE_CORES = 0.3


class Finding(NamedTuple):
    """Something that cost time, and what to do about it.

    Parameters
    ----------
    kind : str
    seconds : float
        By which the run might have been shorter, at most.
    what, advice : str
    """

    kind: str
    seconds: float
    what: str
    advice: str


@dataclass(kw_only=True)
class _Run:
    """A run and what every look at it needs."""

    history: History
    spent: dict[str, float]
    use: Utilisation

    @property
    def slots(self) -> int:
        return len(self.history.lanes)

    @property
    def busy(self) -> float:
        """Seconds in which slots had tasks whose outcomes counted."""
        return sum(self.spent.values()) - self.spent["idle"] - self.spent["queued"] - self.spent["lost"]

    @property
    def all(self) -> float:
        return sum(self.spent.values())

    @functools.cached_property
    def good(self) -> list[TaskRun]:
        return [run for run in self.history.runs if run.state == "done" and run.calls]

    @functools.cached_property
    def first(self) -> list[TaskRun]:
        """The first ones of their slots, where other ones followed: they pay for what a node does once."""
        lanes = self.history.lanes
        return [lane.runs[0] for lane in lanes if len(lane.runs) > 1 and lane.runs[0].state == "done"]

    @functools.cached_property
    def usual(self) -> list[TaskRun]:
        """The others; all, where each slot had only one."""
        first = set(map(id, self.first))
        return [run for run in self.good if id(run) not in first] or self.good


def findings(history: History) -> tuple[Finding, ...]:
    """Return what cost time, the most expensive first."""
    if not history.lanes:
        return ()
    run = _Run(history=history, spent=totals(history), use=utilisation(history))
    looks = (_tasks, _cold, _transfer, _unpickling, _tail, _nodes, _submission, _unequal, _cores)
    found = [finding for look in looks for finding in look(run) if finding.seconds >= WORTH]
    # What went wrong is said however little it cost.
    found += [finding for look in (_preemptions, _retries, _failures) for finding in look(run)]
    return tuple(sorted(found, key=lambda finding: -finding.seconds))


def _tasks(run: _Run) -> Iterator[Finding]:
    """Too few calls a bundle: what a task costs, against its work."""
    good = run.usual
    work = sum(each.phases.compute for each in good)
    between = sum(gap.queued for lane in run.history.lanes for gap in gaps(run.history, lane) if not gap.first)
    cost = between + sum(each.phases.start + each.phases.upload for each in good)
    fetched = sum(each.phases.fetch for each in good)
    if good and fetched / len(good) < FETCH_SECONDS:
        cost += fetched
    if not good or not work or cost / (cost + work) <= TASK_COST:
        return
    calls = sum(each.calls for each in good)
    each, share = cost / len(good), cost / (cost + work)
    what = (
        f"a task costs {said(each)} beside its calls, which take {said(work / len(good))}: {percent(share)} of the time"
    )
    most = calls // (ROUNDS * run.slots)
    wanted = min(most, math.ceil(each / AIM * calls / work))
    won = cost / run.slots
    if wanted >= 2 * calls / len(good):
        advice = (
            f"put more calls into a task: `submit(…, calls_per_task={wanted})` where it is {calls / len(good):.3g} "
            "now; or let the next one wait on its node with its arguments fetched: `maxTasksPerNode` at twice the cores"
        )
        yield Finding("small-bundles", won, what, advice)
    else:
        yield Finding(
            "short-run",
            won,
            f"{what}, and there are no more calls for larger tasks",
            f"the run is short for {count(run.slots, 'slot')}: calls that do more each would use them better"
            + (", and fewer nodes (`poolSize`) be about as fast" if len(run.history.cores) > 1 else ""),
        )


def _cold(run: _Run) -> Iterator[Finding]:
    """What the first task of a slot pays for all that follow."""

    def before(each: TaskRun) -> float:
        return each.phases.start + each.phases.fetch + each.phases.unpickle

    if not run.first or not run.all:
        return
    usual = statistics.median(map(before, run.usual))
    more = sum(max(0.0, before(each) - usual) for each in run.first)
    if more / run.all <= COLD:
        return
    yield Finding(
        "cold-start",
        more / run.slots,
        f"the first task of a slot took {said(more / len(run.first))} longer than others until its calls ran",
        "it starts processes, imports packages and fetches what calls share, once for a node: leave `warmRunners` on, "
        "keep nodes from one job to the next (`poolSize.idleShutdown`), or use fewer of them (`poolSize`) for a job as "
        "short as this",
    )


def _part(runs: list[TaskRun], phase: str) -> tuple[float, float]:
    """Return the seconds that runs spent in a phase, and their share."""
    spent = sum(getattr(each.phases, phase) for each in runs)
    return spent, spent / (sum(each.seconds for each in runs) or 1.0)


def _transfer(run: _Run) -> Iterator[Finding]:
    fetched, share = _part(run.usual, "fetch")
    if share <= TRANSFER or fetched / len(run.usual) < FETCH_SECONDS:
        return
    yield Finding(
        "transfer",
        fetched / run.slots,
        f"fetching arguments took {percent(share)} of the tasks' time, {said(fetched / len(run.usual))} a task",
        "give calls that share an array the same object, which each node fetches once; send paths or keys in place of "
        "data and read that in the call; keep `nodeCache` larger than what the calls share; or take a `vmSize` with "
        "a faster network, with the pool in the region of the storage account",
    )


def _unpickling(run: _Run) -> Iterator[Finding]:
    spent, share = _part(run.usual, "unpickle")
    if share <= UNPICKLING:
        return
    yield Finding(
        "unpickling",
        spent / run.slots,
        f"worker pools, imports and unpickling took {percent(share)} of the tasks' time",
        "leave `warmRunners` on, so that imports are done once a node; pass arrays and not lists of objects, which "
        'with `mmap_mode="r"` are mapped and not copied; and put more calls into a task (`calls_per_task`)',
    )


def _tail(run: _Run) -> Iterator[Finding]:
    history = run.history
    if history.waiting:
        return  # the end is not in sight
    seconds = tail(history)
    if not history.seconds or seconds / history.seconds <= TAIL or run.slots < 2:
        return
    last = max(history.runs, key=lambda each: each.ended)
    what = (
        f"for the last {said(seconds)} ({percent(seconds / history.seconds)}) fewer than half of the slots had work; "
        f"task {last.task} on node {last.node} ended last"
    )
    if last.calls > 1 and last.longest < last.phases.compute / 2:
        advice = f"put fewer calls into a task: `submit(…, calls_per_task={max(1, last.calls // 4)})`"
    else:
        advice = (
            f"a single call took {said(max(last.longest, last.phases.compute))}: submit the longest calls first, or "
            "split them; `calls_per_task=1` lets nothing wait behind them"
        )
    yield Finding("stragglers", seconds, what, advice)


def _nodes(run: _Run) -> Iterator[Finding]:
    history = run.history
    waited = sum(gap.queued for lane in history.lanes for gap in gaps(history, lane) if gap.first)
    if not run.all or waited / run.all <= NODES:
        return
    first = min(lane.runs[0].begun for lane in history.lanes)
    yield Finding(
        "nodes",
        waited / run.slots,
        f"{percent(waited / run.all)} of the slots' time went by before they had their first task: the first node "
        f"began after {said(first - history.begun)}",
        "have the nodes before: `joblib-azure cluster resize --dedicated-nodes N --wait`, or the `min` of "
        "`poolSize.dedicatedNodes` in a pool that scales; what a new node must install comes faster with an image or a "
        "container that has it",
    )


def _submission(run: _Run) -> Iterator[Finding]:
    history = run.history
    starved = sum(gap.idle for lane in history.lanes for gap in gaps(history, lane))
    if not run.all or starved / run.all <= SUBMISSION:
        return
    yield Finding(
        "submission",
        starved / run.slots,
        f"slots were free for {percent(starved / run.all)} of the time because no task was there yet",
        "the calls come more slowly than they run: make them faster (a list, where a generator computes), send the "
        "same array once and not a copy for each call, and put more of them into a task (`calls_per_task`)",
    )


def _unequal(run: _Run) -> Iterator[Finding]:
    by_node: dict[str, list[float]] = {}
    for each in run.good:
        if each.work > 0:
            by_node.setdefault(each.node, []).append(each.work / each.calls)
    medians = {node: statistics.median(each) for node, each in by_node.items() if len(each) >= ENOUGH_BUNDLES}
    if len(medians) < 2:
        return
    usual = statistics.median_low(medians.values())
    slow = [node for node, median in medians.items() if median > UNEQUAL * usual]
    if not slow:
        return
    worst = max(slow, key=lambda node: medians[node])
    lost = sum(sum(by_node[node]) * (1 - usual / medians[node]) for node in slow)
    work = sum(sum(each) for each in by_node.values()) or 1.0
    yield Finding(
        "unequal-nodes",
        lost / work * run.busy / run.slots,
        f"calls on node {worst} took {medians[worst] / usual:.2g} times as long as elsewhere"
        + (f", and {len(slow) - 1} more nodes are slow" if len(slow) > 1 else ""),
        "look what else it does: `joblib-azure cluster nodes` and `cluster file`; a pool that shrinks and grows again "
        "(`joblib-azure cluster resize`) gets another, and a `vmSize` with cores of its own has no such neighbours",
    )


def _cores(run: _Run) -> Iterator[Finding]:
    """Cores of a task that had no call: too few calls in it, or one that takes longer than the others."""
    wide = [each for each in run.good if each.workers > 1]
    there = sum(each.workers * each.phases.compute for each in wide)
    used = sum(min(each.work, each.workers * each.phases.compute) for each in wide)
    if not there or 1 - used / there <= IDLE_CORES:
        return
    compute = sum(each.phases.compute for each in wide)
    yield Finding(
        "idle-cores",
        (1 - used / there) * compute / run.slots,
        f"while tasks computed, {percent(1 - used / there)} of their cores had no call",
        'give each core a slot of its own: `maxTasksPerNode: "cores"`; or put several times as many calls into a task '
        "as it has cores (`calls_per_task`)",
    )


# what went wrong ----------------------------------------------------------------------------------------------------


def _preemptions(run: _Run) -> Iterator[Finding]:
    requeues = sum(each.requeues for each in run.history.runs)
    if not requeues:
        return
    lost = sum(each.seconds for each in run.history.runs if each.state == "preempted")
    yield Finding(
        "preemptions",
        lost / run.slots,
        f"{count(requeues, 'run')} of tasks lost their node and were begun again; {said(lost)} of their time that is "
        "seen here was lost",
        "take dedicated nodes for some of the spot nodes (`poolSize`), or put fewer calls into a task "
        "(`calls_per_task`), so that less is lost with one",
    )


def _retries(run: _Run) -> Iterator[Finding]:
    again = [each for each in run.history.runs if each.retries]
    if not again:
        return
    lost = sum(each.seconds for each in run.history.runs if each.state == "retried")
    yield Finding(
        "retries",
        lost / run.slots,
        f"{count(len(again), 'task')} failed at first and had to run again",
        f"`joblib-azure job logs {run.history.name} {again[0].task}` shows what it wrote",
    )


def _failures(run: _Run) -> Iterator[Finding]:
    history = run.history
    if failed := [each for each in history.runs if each.state == "failed"]:
        yield Finding(
            "lost-tasks",
            sum(each.seconds for each in failed) / run.slots,
            f"{count(len(failed), 'task')} ended without all outcomes",
            f"`joblib-azure job logs {history.name} {failed[0].task}` shows what it wrote",
        )
    if history.failed:
        yield Finding(
            "failed-calls",
            0.0,
            f"{count(history.failed, 'call')} of {history.calls:,} raised an exception",
            f"`joblib-azure job results {history.name} --on-error return` shows them",
        )
