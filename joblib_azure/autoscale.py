"""Formulas in Batch's autoscale language: how many nodes a pool has, of which kind, by the tasks that it is given.

    queued, running tasks ─► nodes wanted ─► shared between dedicated and spot ─► not less than now, where samples
    (the most of the idle time)  (÷ task slots)   (minimum, spot, dedicated)        lack ─► floor ─► bounds

Source of what is said of the language here and below (types, functions, variables, limits, samples):
https://learn.microsoft.com/azure/batch/batch-automatic-scaling. What shapes the formulas:

- The service samples every 30 s, and a sample can be read about a minute later; a new pool has none, and samples may
  be lost. ``GetSample`` fails the evaluation where fewer are there than it demands, so the formulas demand none: they
  ask ``GetSamplePercent`` first, and where fewer than 70 % are there they grow but do not shrink.
- ``$ActiveTasks`` are queued (without those whose dependencies are not met), ``$RunningTasks`` run, ``$PendingTasks``
  are both. None knows a task's ``requiredSlots``: a session that knows better raises the floor.
- ``$CurrentLowPriorityNodes`` counts preempted nodes too, so no formula looks at how many nodes there are:
  ``$PreemptedNodeCount`` alone is asked, for what spot lacks.
- Which nodes leave is the service's affair, and with several slots a node, tasks spread over more nodes than they fill.
  A node that was told to leave takes no more tasks while its own go on, so a pool keeps as many nodes as tasks run on
  it; it shrinks to fewer when there are nodes without any.
- A target with a fraction is cut (the page's own example 3 relies on it), and the rounding functions came late to the
  language, so nodes are rounded up as ``(tasks + slots - 1) / slots``.
- ``time()`` is UTC; ``weekday`` is 1 on Monday. Whether Sunday is 0 or 7 is not said: neither is relied on.
- A formula has at most 8 KB and 100 statements.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta, timezone

#: Names that stand for a formula, and what each does.
FORMULAS: Mapping[str, str] = {
    "QUEUE": "nodes for the queued tasks; running tasks keep the nodes they need, and queued ones may wait for those",
    "QUEUE_AND_RUNNING": "a task slot for each task that is queued or running",
    "WORKDAY": "all nodes on Monday to Friday from 8:00 to 18:00 UTC; at other times as QUEUE_AND_RUNNING",
    "WEEKEND": "all nodes on Saturday and Sunday (UTC); at other times as QUEUE_AND_RUNNING",
    "MAX_CPU": "refused: Batch no longer samples the CPU usage of nodes",
}
#: What becomes of the tasks of a node that leaves; `$NodeDeallocationOption`.
DEALLOCATIONS = ("requeue", "terminate", "taskcompletion", "retaineddata")
MAX_BYTES = 8192
MAX_STATEMENTS = 100

#: Variables of nodes' resources, which are documented as retired after 31 March 2024: they exist, and have no samples.
_RETIRED = (
    "$CPUPercent",
    "$WallClockSeconds",
    "$MemoryBytes",
    "$DiskBytes",
    "$DiskReadBytes",
    "$DiskWriteBytes",
    "$DiskReadOps",
    "$DiskWriteOps",
    "$NetworkInBytes",
    "$NetworkOutBytes",
    "$SampleNodeCount",
)
_TARGETS = re.compile(r"\$Target(?:DedicatedNodes|Dedicated|LowPriorityNodes|LowPriority)\s*=(?!=)")
_OPTION = re.compile(r"\$NodeDeallocationOption\s*=(?!=)")
_COMMENT_OR_STRING = re.compile(r'//[^\n]*|"[^"\n]*"')
#: Seconds that a sample takes until a formula can read it ("approximately one minute").
_LAG = 60
#: Percent of the samples of a time that must be there for a pool to shrink; the page's examples take 70 too.
_ENOUGH = 70

_NO_CPU = (
    "needs $CPUPercent, and Batch no longer samples it: the variables of nodes' resources were retired after "
    "31 March 2024 (https://learn.microsoft.com/azure/batch/batch-automatic-scaling). Use QUEUE_AND_RUNNING, which "
    "follows the tasks themselves"
)


def formula(
    name_or_text: str,
    *,
    dedicated: tuple[int, int],
    spot: tuple[int, int] = (0, 0),
    task_slots_per_node: int = 1,
    idle_seconds: float = 900.0,
    spot_fallback: bool = False,
    floor: tuple[int, int] | None = None,
    floor_until: datetime | None = None,
    deallocation: str = "taskcompletion",
) -> str:
    """Return the text of a formula.

    Demand is met by the dedicated minimum first, then by spot nodes up to their maximum, then by dedicated nodes; so
    both kinds together have the nodes that are wanted, not each of them. Nodes are kept until no sample of the last
    ``idle_seconds`` wants them, and while there are as many running tasks.

    - ``QUEUE``: as many nodes as the queued tasks fill, and no fewer than the running tasks need. Queued tasks may
      wait for a slot of a running one, so at the tail of the work no node is started that would be idle soon.
    - ``QUEUE_AND_RUNNING``: as many nodes as queued and running tasks fill together: each task has its slot.
    - ``WORKDAY``, ``WEEKEND``: the maxima from Monday to Friday, 8:00 to 18:00 UTC, or on Saturday and Sunday; at
      other times as ``QUEUE_AND_RUNNING``, so that late work is done and an idle pool goes to its minima.
    - ``MAX_CPU``: a `ValueError`, see Raises.
    - Any other text is a formula of the user's own, taken as it is; ``$NodeDeallocationOption`` is set behind it
      unless it sets it, and the floor is put behind it. Bounds are its own affair.

    Parameters
    ----------
    name_or_text : str
        A name of `FORMULAS`, or text in the autoscale language.
    dedicated, spot : tuple of int
        Minimum and maximum of each kind of nodes.
    task_slots_per_node : int
    idle_seconds : float
        How long nodes stay that no task wants.
    spot_fallback : bool
        Whether dedicated nodes take the place of preempted spot nodes, within their maximum.
    floor : tuple of int, optional
        Dedicated and spot nodes that the pool has until ``floor_until`` whatever the tasks want, within the maxima.
    floor_until : datetime, optional
        Aware, or taken as UTC.
    deallocation : str
        What becomes of the tasks of nodes that leave.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        For bounds that are none, a text that is too long, has too many statements or sets no target, and whatever
        needs CPU usage or other resources of nodes, which the service does not sample any more.

    Examples
    --------
    >>> print(formula("QUEUE_AND_RUNNING", dedicated=(0, 4), task_slots_per_node=2))
    window = TimeInterval_Second * 960;
    enough = $PendingTasks.GetSamplePercent(TimeInterval_Second * 60, window) >= 70;
    pending = max(0, $PendingTasks.GetSample(1), $PendingTasks.GetSample(window));
    nodes = (pending + 1) / 2;
    busy = max(0, $RunningTasks.GetSample(1));
    dedicated = nodes;
    dedicated = max(dedicated, enough ? min(busy, $TargetDedicatedNodes) : $TargetDedicatedNodes);
    $TargetDedicatedNodes = max(0, min(4, dedicated));
    $TargetLowPriorityNodes = 0;
    $NodeDeallocationOption = taskcompletion;
    """
    for kind, (least, most) in (("dedicated", dedicated), ("spot", spot)):
        if not 0 <= least <= most:
            raise ValueError(f"{kind} nodes from {least} to {most} are no bounds")
    if task_slots_per_node < 1:
        raise ValueError(f"{task_slots_per_node} task slots a node are too few")
    if not 0 <= idle_seconds < math.inf:
        raise ValueError(f"idle_seconds = {idle_seconds} is no time")
    if deallocation not in DEALLOCATIONS:
        raise ValueError(f"{deallocation!r} is no deallocation option; one of {', '.join(DEALLOCATIONS)} is")
    floors = _floors(floor, floor_until, dedicated[1], spot[1])
    name = name_or_text.strip()
    if name == "MAX_CPU":
        raise ValueError(f"MAX_CPU {_NO_CPU}")
    if name in FORMULAS:
        lines = list(_named(name, dedicated, spot, task_slots_per_node, idle_seconds, spot_fallback, floors))
        lines.append(f"$NodeDeallocationOption = {deallocation};")
    else:
        lines = list(_own(name, floors, deallocation))
    text = "\n".join(lines)
    _check_limits(text)
    return text


def _floors(
    floor: tuple[int, int] | None, until: datetime | None, most_dedicated: int, most_spot: int
) -> tuple[str, str]:
    """The expressions of both floors; empty where there is none."""
    if (floor is None) != (until is None):
        raise ValueError("floor and floor_until go together")
    if floor is None or until is None:
        return "", ""
    moment = until.replace(tzinfo=until.tzinfo or timezone.utc).astimezone(timezone.utc)
    moment += timedelta(microseconds=-moment.microsecond % 1_000_000)  # whole seconds, and not a moment earlier
    condition = f'time() < time("{moment:%Y-%m-%dT%H:%M:%SZ}")'
    dedicated, spot = (max(0, min(nodes, most)) for nodes, most in zip(floor, (most_dedicated, most_spot), strict=True))
    return (f"{condition} ? {dedicated} : 0" if dedicated else "", f"{condition} ? {spot} : 0" if spot else "")


def _named(
    name: str,
    dedicated: tuple[int, int],
    spot: tuple[int, int],
    slots: int,
    idle_seconds: float,
    spot_fallback: bool,
    floors: tuple[str, str],
) -> Iterator[str]:
    yield from _demand(name, slots, max(_LAG, math.ceil(idle_seconds)))
    if spot[1] and (slots > 1 or spot_fallback):
        yield "preempted = max(0, $PreemptedNodeCount.GetSample(1));"
    if slots > 1:
        yield "busy = max(0, $RunningTasks.GetSample(1));"
    if name in ("WORKDAY", "WEEKEND"):
        yield "now = time();"
        yield "workday = now.weekday >= 1 && now.weekday <= 5;"
        if name == "WORKDAY":
            yield "active = workday && now.hour >= 8 && now.hour < 18;"
        else:
            yield "active = !workday;"
        yield f"nodes = active ? {dedicated[1] + spot[1]} : nodes;"
    if spot[1]:
        yield f"spot = max({spot[0]}, min({spot[1]}, nodes - {dedicated[0]}));"
        if spot_fallback:
            # the minimum before the sum: the difference may be a rounding error below it, and a fraction is cut
            yield f"dedicated = max({dedicated[0]}, nodes - spot) + min(spot, preempted);"
        else:
            yield "dedicated = nodes - spot;"
    else:
        yield "dedicated = nodes;"
    kinds = [("dedicated", "$TargetDedicatedNodes", dedicated, floors[0])]
    kinds.insert(0 if spot[1] else 1, ("spot", "$TargetLowPriorityNodes", spot, floors[1]))
    for kind, target, (least, most), floor in kinds:
        if not most:
            yield f"{target} = 0;"
            continue
        kept = "0"
        if slots > 1 and kind == "spot":
            kept = f"min(busy, {target} - preempted)"
        elif slots > 1:
            kept = f"min(busy - spot, {target})" if spot[1] else f"min(busy, {target})"
        yield f"{kind} = max({kind}, enough ? {kept} : {target});"
        if floor:
            yield f"{kind} = max({kind}, {floor});"
        yield f"{target} = max({least}, min({most}, {kind}));"


def _demand(name: str, slots: int, idle: int) -> Iterator[str]:
    """Statements that set `nodes`, with a fraction, and whether there are samples `enough`."""
    variables = {"queued": "$ActiveTasks", "running": "$RunningTasks"}
    if name != "QUEUE":
        variables = {"pending": "$PendingTasks"}
    # the last minute has no samples yet, so the time that is looked at begins a minute earlier
    yield f"window = TimeInterval_Second * {idle + _LAG};"
    tested = next(iter(variables.values()))
    yield f"enough = {tested}.GetSamplePercent(TimeInterval_Second * {_LAG}, window) >= {_ENOUGH};"
    for tasks, variable in variables.items():
        yield f"{tasks} = max(0, {variable}.GetSample(1), {variable}.GetSample(window));"
    tasks = "max(queued, running)" if name == "QUEUE" else "pending"
    yield f"nodes = {tasks};" if slots == 1 else f"nodes = ({tasks} + {slots - 1}) / {slots};"


def _own(text: str, floors: tuple[str, str], deallocation: str) -> Iterator[str]:
    code = _COMMENT_OR_STRING.sub("", text).rstrip()
    if not _TARGETS.search(code):
        names = ", ".join(FORMULAS)
        raise ValueError(
            "the formula sets neither $TargetDedicatedNodes nor $TargetLowPriorityNodes; write a formula in Batch's "
            f"autoscale language, or one of the names {names}"
        )
    for variable in _RETIRED:
        if re.search(re.escape(variable) + r"\b", code):
            raise ValueError(f"the formula {_NO_CPU.replace('$CPUPercent', variable)}")
    yield text
    if not code.endswith(";"):
        yield ";"
    for target, floor in zip(("$TargetDedicatedNodes", "$TargetLowPriorityNodes"), floors, strict=True):
        if floor:
            # a line of its own, in this very form: `cluster` finds it in a pool's formula, and takes it off again
            yield f"{target} = max({target}, {floor});"
    if not _OPTION.search(code):
        yield f"$NodeDeallocationOption = {deallocation};"


def _check_limits(text: str) -> None:
    size = len(text.encode())
    if size > MAX_BYTES:
        raise ValueError(f"the formula has {size} bytes; the service takes {MAX_BYTES}")
    statements = sum(bool(each.strip()) for each in _COMMENT_OR_STRING.sub("", text).split(";"))
    if statements > MAX_STATEMENTS:
        raise ValueError(f"the formula has {statements} statements; the service takes {MAX_STATEMENTS}")
