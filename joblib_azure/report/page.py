"""The run as one HTML page: no network, no other files; words and tables that are read without its chart.

The runs of tasks travel as columns of 32-bit numbers, deflated: 100,000 of them are some megabytes, and the browser
draws from them as they are. Whatever a user or a service has named is escaped, in the markup and in the JSON alike.
"""

from __future__ import annotations

import base64
import html
import json
import re
import sys
import zlib
from array import array
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib import resources
from typing import TYPE_CHECKING, Any

from . import summary
from .model import History, Lane, Phases, TaskRun
from .tables import grid
from .usage import KINDS, gaps
from .words import count, percent, said

if TYPE_CHECKING:
    from .timeline import Timeline

#: Of a run; those from `_FIRST_LOST` on came to nothing.
_STATES = ("done", "running", "failed", "preempted", "retried", "lost")
_FIRST_LOST = 2
#: The columns: times and durations in ticks, `busy` in thousandths of a core.
_COLUMNS = ("row", "begun", *Phases._fields, "gap", "age", "calls", "failed", "state", "again", "busy")
#: The whole run in ticks is finer than any screen, and coarse enough that two bytes of most durations are 0.
_RESOLUTION, _FINEST = 1 << 22, 1e-5
_MOST = (1 << 32) - 1
#: Nodes that the table shows; more are in ``--json``.
_NODES_SHOWN = 200


def page(timeline: Timeline) -> str:
    """Return the page of a run."""
    history = timeline.history
    meta, data = _embedded(history, timeline)
    path = timeline.critical_path
    parts = {
        "title": _text(f"Timeline of job {history.name}"),
        "subtitle": _text(_subtitle(history)),
        "headline": _text(summary.headline(history)),
        "figures": _figures(timeline),
        "legend": _legend(timeline.totals),
        "curve": _text(f"Cores in calls over time: {percent(timeline.utilisation.share)} on the average"),
        "findings": _findings(timeline),
        "spent": _spent(timeline.totals),
        "cost": "" if timeline.cost is None else f"<p>{_text(summary.cost_line(timeline.cost))}</p>",
        "path": _text("No task has begun." if path is None else summary.path_line(path)),
        "nodes": _nodes(history),
        "meta": as_json(meta),
        "data": data,
        "style": _resource("page.css"),
        "script": _resource("page.js"),
    }
    # In one pass, so that nothing that was put in is looked at again.
    return re.sub(r"\$(\w+)", lambda found: parts[found[1]], _resource("page.html"))


def as_json(value: Any) -> str:
    """Return JSON that may stand in a ``<script>``: nothing in it ends that, or begins a comment."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _text(value: object) -> str:
    return html.escape(str(value))


def _resource(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


# words ----------------------------------------------------------------------------------------------------------------


def _subtitle(history: History) -> str:
    begun = datetime.fromtimestamp(history.begun, timezone.utc)
    said = [history.function, f"pool {history.pool}" if history.pool else "", f"from {begun:%Y-%m-%d %H:%M:%S} UTC on"]
    return " · ".join(each for each in said if each)


def _figures(timeline: Timeline) -> str:
    history = timeline.history
    figures = [
        (said(history.seconds), "so far" if history.running else "in all"),
        (percent(timeline.utilisation.share), f"of {count(sum(history.cores.values()), 'core')} in calls"),
        (f"{history.done:,}", f"of {count(history.calls, 'call')} done"),
        (f"{len({run.task for run in history.runs}):,}", f"tasks on {count(len(history.cores), 'node')}"),
    ]
    if timeline.cost is not None and history.runs:
        kept = timeline.cost.kept
        what = f"estimated, for {kept.hours}" if kept.amount is not None else "estimated; their price is not known"
        figures.append((kept.short, f"{what}{' up to now' if history.running else ''}"))
    if history.waiting:
        figures.append((f"{history.waiting:,}", "tasks waiting"))
    if history.failed:
        figures.append((f"{history.failed:,}", "calls failed"))
    again = sum(run.requeues + run.retries for run in history.runs)
    if again:
        figures.append((f"{again:,}", "tasks begun again"))
    return "".join(f"<li><b>{_text(value)}</b><span>{_text(what)}</span></li>" for value, what in figures)


def _swatch(kind: str) -> str:
    return f'<span class="swatch" style="background:var(--{kind})"></span>'


def _legend(spent: dict[str, float]) -> str:
    """Return the colours that the chart has, and the marks."""
    shown = [kind for kind in KINDS if spent[kind] > 0 or kind == "compute"]
    return "".join(f'<li title="{_text(summary.MEANINGS[kind])}">{_swatch(kind)}{kind}</li>' for kind in shown)


def _findings(timeline: Timeline) -> str:
    if not timeline.findings:
        return "<p>Nothing that would make it faster with these nodes.</p>"
    items = []
    for finding in timeline.findings:
        won = f' <span class="won">(up to {_text(said(finding.seconds))} of the run)</span>' if finding.seconds else ""
        items.append(
            f"<li><b>{_prose(summary.sentence(finding.what))}</b>{won} {_prose(summary.sentence(finding.advice))}</li>"
        )
    return f"<ol>{''.join(items)}</ol>"


def _prose(text: str) -> str:
    """Return text as markup, with what stands between backquotes as code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", _text(text))


def _spent(spent: dict[str, float]) -> str:
    whole = sum(spent.values()) or 1.0
    rows = "".join(
        f'<tr><th scope="row">{_swatch(kind)}{kind}</th><td class="number">{_text(said(seconds))}</td>'
        f'<td class="number">{_text(percent(seconds / whole))}</td>'
        f"<td>{_text(summary.MEANINGS[kind])}</td></tr>"
        for kind, seconds in spent.items()
        if seconds > 0
    )
    head = (
        '<tr><th scope="col">what</th><th scope="col" class="number">slot time</th>'
        '<th scope="col" class="number">share</th><th scope="col">meaning</th></tr>'
    )
    return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def _nodes(history: History) -> str:
    slots: dict[str, list[Lane]] = {}
    for lane in history.lanes:
        slots.setdefault(lane.node, []).append(lane)
    rows = []
    for node, lanes in list(slots.items())[:_NODES_SHOWN]:
        runs = [run for lane in lanes for run in lane.runs]
        began = min(run.begun for run in runs)
        there = (history.ended - began) * history.cores[node]
        rows.append(
            (
                node,
                len(lanes),
                history.cores[node],
                said(began - history.begun),
                f"{len(runs):,}",
                f"{sum(run.done for run in runs):,}",
                percent(min(1.0, sum(run.work for run in runs) / there)) if there > 0 else "",
            )
        )
    text = grid(("node", "slots", "cores", "began after", "tasks", "calls", "cores in calls"), rows)
    more = len(slots) - len(rows)
    return text + (f"<p>and {count(more, 'more node')}.</p>" if more else "")


# the data of the chart ------------------------------------------------------------------------------------------------


def _embedded(history: History, timeline: Timeline) -> tuple[dict[str, Any], str]:
    """Return what describes the chart's data, and the data."""
    tick = max(history.seconds / _RESOLUTION, _FINEST)
    names = {name: place for place, name in enumerate(history.cores)}
    columns = {name: array("I") for name in _COLUMNS}
    tasks: list[str] = []
    for row, lane in enumerate(history.lanes):
        for gap in gaps(history, lane):
            tasks.append(gap.run.task.replace("\n", " "))
            for name, value in zip(_COLUMNS, _values(row, gap.run, gap.queued, history.begun, tick), strict=True):
                columns[name].append(min(_MOST, max(0, round(value))))
    path, began = timeline.critical_path, _began(history)
    rows = [(names[lane.node], lane.slot) for lane in history.lanes]
    meta = {
        "runs": len(tasks),
        "tick": tick,
        "seconds": max(history.seconds, tick),
        "columns": _COLUMNS,
        "phases": Phases._fields,
        "states": _STATES,
        "lost": _FIRST_LOST,
        "nodes": [(node, cores, began[node] - history.begun) for node, cores in history.cores.items()],
        "cores": sum(history.cores.values()),
        "rows": rows,
        "critical": -1 if path is None else rows.index((names[path.node], path.slot)),
    }
    return meta, _packed(columns.values(), "\n".join(tasks))


def _values(row: int, run: TaskRun, queued: float, origin: float, tick: float) -> Iterable[float]:
    compute = run.phases.compute
    busy = min(run.work / compute, run.workers) if compute > 0 else 0.0
    return (
        row,
        (run.begun - origin) / tick,
        *(seconds / tick for seconds in run.phases),
        queued / tick,
        (run.begun - run.created) / tick,
        run.calls,
        run.failed,
        _STATES.index(run.state),
        run.requeues + run.retries,
        1000 * busy,
    )


def _began(history: History) -> dict[str, float]:
    found: dict[str, float] = {}
    for lane in history.lanes:
        found[lane.node] = min(found.get(lane.node, lane.runs[0].begun), lane.runs[0].begun)
    return found


def _packed(columns: Iterable[array[int]], text: str) -> str:
    parts = []
    for column in columns:
        if sys.byteorder == "big":  # every browser runs on a machine of the other kind
            column.byteswap()
        parts.append(column.tobytes())
    return base64.b64encode(zlib.compress(b"".join([*parts, text.encode()]), 6)).decode()
