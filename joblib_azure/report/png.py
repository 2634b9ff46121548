"""The run as a picture, by matplotlib: the same chart as the page's, for where there is no browser."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtraError
from .model import LOST, History, Lane, Phases
from .summary import headline, shares
from .usage import KINDS, gaps
from .words import percent, said

if TYPE_CHECKING:
    from .timeline import Timeline

#: As on the page, where it is light.
COLOURS = {
    "queued": "#e3d26f",
    "start": "#8d95a3",
    "fetch": "#e08a00",
    "wait": "#c681b4",
    "unpickle": "#58aee0",
    "compute": "#1f66b0",
    "upload": "#12936c",
    "lost": "#c9483c",
    "idle": "#eceef2",
}
_ACCENT = "#b4002f"
_DPI = 110
#: Pixels of the chart's width; of each slot each of them has the mean of the colours of what lies in it.
_COLUMNS = 1400
#: Pixels of a slot's height, where there are few and where there are many.
_LARGEST, _LEAST_HEIGHT, _MOST_HEIGHT = 24, 160, 900
#: Names of nodes that have room, and their characters.
_NAMES, _NAME = 40, 20


def draw(timeline: Timeline) -> bytes:
    """Return the picture. :raises MissingExtraError: matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as exc:
        raise MissingExtraError(
            "a picture is drawn by matplotlib, of the extra [plots]: "
            f'python -m pip install "joblib_azure[plots]" ({exc}). The page (.html) needs nothing'
        ) from exc
    history = timeline.history
    height = min(_MOST_HEIGHT, max(_LEAST_HEIGHT, _LARGEST * len(history.lanes))) / _DPI
    figure = Figure(figsize=(14.5, height + 3.2), dpi=_DPI, facecolor="white")
    # No window and no global state of pyplot: it may be drawn in any thread and beside any other figure.
    FigureCanvasAgg(figure)
    chart, curve = figure.subplots(2, 1, sharex=True, height_ratios=(height, 1.2))
    _slots(chart, timeline)
    _cores(curve, timeline)
    title = f"{headline(history)}\nSlots' time: {shares(timeline.totals)}"
    figure.suptitle(_plain(title), x=0.01, ha="left", fontsize=11)
    figure.tight_layout()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _plain(text: str) -> str:
    """Return text in which nothing is mathematics to matplotlib."""
    return text.replace("$", r"\$")


def _slots(axes: Any, timeline: Timeline) -> None:
    import numpy as np
    from matplotlib.patches import Patch

    history = timeline.history
    width = max(history.seconds, 1e-9)
    idle = _rgb(COLOURS["idle"])
    image = np.empty((max(1, len(history.lanes)), _COLUMNS, 3))
    image[:] = idle
    for row, lane in enumerate(history.lanes):
        image[row] = _row(history, lane, width, np)
    axes.imshow(image, aspect="auto", interpolation="nearest", extent=(0, width, len(history.lanes) or 1, 0))
    path = timeline.critical_path
    names, places, seen = [], [], set()
    for row, lane in enumerate(history.lanes):
        critical = path is not None and (lane.node, lane.slot) == (path.node, path.slot)
        if lane.node not in seen:
            seen.add(lane.node)
            # Their ends are what tells them apart.
            names.append(_plain(lane.node if len(lane.node) <= _NAME else f"…{lane.node[-_NAME:]}"))
            places.append(row + 0.5)
            if row:
                axes.axhline(row, color="white", linewidth=1)
        if critical:
            axes.axhline(row + 0.04, color=_ACCENT, linewidth=1.5)
    every = max(1, -(-len(names) // _NAMES))
    axes.set_yticks(places[::every], names[::every], fontsize=8)
    shown = [kind for kind in KINDS if timeline.totals[kind] > 0]
    handles = [Patch(color=COLOURS[kind], label=kind) for kind in shown]
    if path is not None:
        handles.append(Patch(color=_ACCENT, label="critical path"))
    axes.legend(
        handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(handles), fontsize=8, frameon=False
    )


def _row(history: History, lane: Lane, width: float, np: Any) -> Any:
    """Return the colours of a slot's pixels."""
    colours = np.zeros((_COLUMNS, 3))
    cover = np.zeros(_COLUMNS)

    def add(begin: float, end: float, kind: str) -> None:
        low, high = max(0.0, begin / width * _COLUMNS), min(float(_COLUMNS), end / width * _COLUMNS)
        if high <= low:
            return
        first, last = int(low), min(int(high), _COLUMNS - 1)
        parts = np.ones(last - first + 1)
        parts[0] -= low - first
        parts[-1] -= last + 1 - high
        cover[first : last + 1] += parts
        colours[first : last + 1] += parts[:, None] * _rgb(COLOURS[kind])

    for gap in gaps(history, lane):
        run = gap.run
        begin = run.begun - history.begun
        add(begin - gap.queued, begin, "queued")
        if run.state in LOST:
            add(begin, begin + run.seconds, "lost")
            continue
        for kind, seconds in zip(Phases._fields, run.phases, strict=True):
            add(begin, begin + seconds, kind)
            begin += seconds
    # A lonely short run is to be seen too.
    seen = np.where(cover > 0, np.clip(cover, 0.3, 1), 0)[:, None]
    return colours / np.maximum(cover, 1e-9)[:, None] * seen + np.asarray(_rgb(COLOURS["idle"])) * (1 - seen)


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))


def _cores(axes: Any, timeline: Timeline) -> None:
    use = timeline.utilisation
    times = [use.step * number for number in range(len(use.busy) + 1)]
    axes.stairs(use.busy, times, fill=True, color=COLOURS["compute"], alpha=0.75)
    axes.stairs(use.cores, times, color="#1b1f27", linewidth=1.2, baseline=None)
    axes.set_ylim(0, max((*use.cores, 1.0)) * 1.08)
    axes.set_ylabel("cores in calls", fontsize=9)
    axes.set_xlabel(
        f"seconds; {percent(use.share)} of the cores' time in calls, {said(timeline.history.seconds)} in all"
    )
    axes.set_xlim(0, max(timeline.history.seconds, 1e-9))
