"""`Timeline`: a job's run as words, as a page and as a picture."""

from __future__ import annotations

import functools
import html
import os
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError
from . import summary
from .advice import Finding, findings
from .cost import JobCost
from .model import History
from .usage import CriticalPath, Utilisation, critical_path, totals, utilisation

#: Height of the page in a notebook, in pixels.
_FRAME = 760


class Timeline:
    """What a job's tasks did, on which nodes, and where the time went; `Job.timeline` makes one.

    Parameters
    ----------
    history : History
    cost : JobCost, optional
        What its nodes cost.

    Examples
    --------
    >>> timeline = Job.attach("sweep-7").timeline()  # doctest: +SKIP
    >>> print(timeline.summary)  # doctest: +SKIP
    >>> timeline.save("sweep-7.html")  # doctest: +SKIP
    """

    def __init__(self, history: History, cost: JobCost | None = None) -> None:
        self.history, self.cost = history, cost

    def __repr__(self) -> str:
        return f"<Timeline of job {self.history.name!r}: {len(self.history.runs)} runs of tasks>"

    @functools.cached_property
    def totals(self) -> dict[str, float]:
        """Seconds of all slots, by what they went into."""
        return totals(self.history)

    @functools.cached_property
    def utilisation(self) -> Utilisation:
        """Cores in calls over time."""
        return utilisation(self.history)

    @functools.cached_property
    def critical_path(self) -> CriticalPath | None:
        """What decided the end; None where nothing has run."""
        return critical_path(self.history)

    @functools.cached_property
    def findings(self) -> tuple[Finding, ...]:
        """What cost time and what to do about it, the most expensive first."""
        return findings(self.history)

    @functools.cached_property
    def summary(self) -> str:
        """Where the time went and what would make it faster, in words."""
        return summary.summary(
            self.history, self.totals, self.utilisation, self.critical_path, self.findings, self.cost
        )

    def html(self) -> str:
        """Return a page that needs nothing but a browser."""
        from .page import page

        return page(self)

    def png(self) -> bytes:
        """Return the picture as a PNG.

        Raises
        ------
        MissingExtraError
            Where the package was installed without its extra ``[plots]``.
        """
        from .png import draw

        return draw(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page or the picture.

        Parameters
        ----------
        path : str or path
            Its suffix says which: ``.html`` or ``.png``.

        Raises
        ------
        ConfigurationError
            Where it says neither; nothing is written.
        MissingExtraError
            For a picture, where the package was installed without its extra ``[plots]``.
        """
        path = Path(path)
        if path.suffix == ".html":
            path.write_text(self.html(), encoding="utf-8")
        elif path.suffix == ".png":
            path.write_bytes(self.png())
        else:
            raise ConfigurationError(f"{str(path)!r} ends neither in .html nor in .png, and one of them is needed")

    def _repr_html_(self) -> str:
        # In a frame: a notebook runs no scripts in what it is given otherwise, and its styles are its own.
        return (
            f'<iframe sandbox="allow-scripts" style="width:100%;height:{_FRAME}px;border:0" '
            f'title="Timeline of job {html.escape(self.history.name)}" srcdoc="{html.escape(self.html())}"></iframe>'
        )

    def data(self) -> dict[str, Any]:
        """Return all of it as JSON has it: times in seconds since the epoch, durations in seconds."""
        history, path, use = self.history, self.critical_path, self.utilisation
        return {
            "job": history.name,
            "function": history.function,
            "pool": history.pool,
            "state": history.state,
            "running": history.running,
            "begun": history.begun,
            "ended": history.ended,
            "calls": history.calls,
            "done": history.done,
            "failed": history.failed,
            "tasks_waiting": history.waiting,
            "slot_seconds": self.totals,
            "utilisation": {"share": use.share, "step": use.step, "busy": use.busy, "cores": use.cores},
            "critical_path": None
            if path is None
            else {
                "node": path.node,
                "slot": path.slot,
                "steps": [
                    {"kind": step.kind, "begun": step.begun, "ended": step.ended, "task": step.run.task}
                    for step in path.steps
                ],
            },
            "cost": None if self.cost is None else self.cost.data(),
            "findings": [finding._asdict() for finding in self.findings],
            "runs": [
                {
                    "task": run.task,
                    "node": run.node,
                    "slot": lane.slot,
                    "state": run.state,
                    "created": run.created,
                    "begun": run.begun,
                    **run.phases._asdict(),
                    "calls": run.calls,
                    "done": run.done,
                    "failed": run.failed,
                    "requeues": run.requeues,
                    "retries": run.retries,
                }
                for lane in history.lanes
                for run in lane.runs
            ],
        }
