"""The run in words."""

from __future__ import annotations

from .advice import Finding
from .cost import JobCost
from .model import History
from .usage import CriticalPath, Utilisation
from .words import count, percent, said

#: What the phases are, for people.
MEANINGS = {
    "queued": "a task was there and its slot free: the node started, was prepared, or the service had not begun it",
    "start": "the service had started the task, its process had not begun",
    "fetch": "the task's bundle came from storage, and large arguments for which its calls waited",
    "wait": "all was there, and other tasks had the node's cores",
    "unpickle": "the worker pool, imports, and the calls' arguments",
    "compute": "in calls",
    "upload": "the last outcomes went to storage, and the service saw the end",
    "lost": "in runs of tasks whose outcomes did not count: preempted, failed, begun again",
    "idle": "nothing was there to do",
}


def headline(history: History) -> str:
    """Return what ran, and for how long."""
    nodes = len({lane.node for lane in history.lanes})
    what = f"Job {history.name}" + (f" ({history.function})" if history.function else "")
    text = f"{what}: {history.done:,} of {count(history.calls, 'call')} done"
    if history.failed:
        text += f", {history.failed:,} of them failed"
    bundles = len({run.task for run in history.runs})
    text += f"; {count(bundles, 'task')} on {count(nodes, 'node')} with {count(len(history.lanes), 'slot')}"
    if history.waiting:
        text += f", {count(history.waiting, 'task')} waiting"
    return f"{text}; {said(history.seconds)}{' up to now' if history.running else ''}."


def shares(spent: dict[str, float]) -> str:
    """Return what seconds went into, the most first: ``compute 81 %, fetch 6 %``."""
    whole = sum(spent.values())
    parts = [(kind, seconds) for kind, seconds in spent.items() if whole and seconds / whole >= 0.005]
    return ", ".join(f"{kind} {percent(seconds / whole)}" for kind, seconds in sorted(parts, key=lambda each: -each[1]))


def path_line(path: CriticalPath) -> str:
    """Return what decided the end."""
    runs = path.runs
    spent = path.seconds()
    return (
        f"The end was decided on node {path.node}, slot {path.slot + 1}: {count(len(runs), 'run')} of tasks one after "
        f"the other, {said(sum(spent.values()))} ({shares(spent)})."
    )


def cost_line(cost: JobCost) -> str:
    """Return what the nodes cost."""
    by_now = " up to now" if cost.running else ""
    return f"Cost{by_now}: {cost.kept}; the tasks had {percent(cost.share)} of that time."


def summary(
    history: History,
    spent: dict[str, float],
    use: Utilisation,
    path: CriticalPath | None,
    findings: tuple[Finding, ...],
    cost: JobCost | None = None,
) -> str:
    """Return all of it, for a terminal."""
    lines = [headline(history)]
    if path is None:
        return "\n".join([*lines, "No task has begun."])
    cores = sum(history.cores.values())
    lines += [
        f"Of {count(cores, 'core')}, {percent(use.share)} of the time was spent in calls.",
        f"The slots' time: {shares(spent)}.",
        path_line(path),
    ]
    if cost is not None:
        lines.append(cost_line(cost))
    if not findings:
        lines.append("Nothing stands out that would make it faster with these nodes.")
    else:
        lines.append("What stands out:")
    for number, finding in enumerate(findings, 1):
        won = f" (up to {said(finding.seconds)} of the run)" if finding.seconds else ""
        lines.append(f"{number}. {sentence(finding.what)}{won} {sentence(finding.advice)}")
    return "\n".join(lines)


def sentence(text: str) -> str:
    """Return a clause as a sentence."""
    return f"{text[:1].upper()}{text[1:]}."
