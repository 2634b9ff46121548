"""``joblib-azure demo``: the main job, once at home and once on the local cluster.

It goes the way that a user's own code goes; the registry is asked for the session only to tell how many Batch
tasks there were. Everything heavy is imported when the demo runs.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from joblib import parallel_config
from rich.console import Console
from rich.table import Table

from ..local import LocalCluster
from ..registry import session_for

#: What the demo needs beyond the package's own dependencies: the extra brings it.
_MODULES = ("sklearn", "starlette", "uvicorn", "psutil")
#: 24 candidates × 5 folds: 5 s with loky on 2 idle cores. Each forest has the same random state everywhere.
_GRID: dict[str, list[int | None]] = {
    "n_estimators": [20, 40],
    "max_depth": [4, 8, 12, None],
    "max_features": [4, 8, 16],
}
_FOLDS = 5

_NEXT = """\
Next: put the same two lines around code of your own,

    import joblib_azure
    with parallel_config("azure", cluster="local"):
        …                                  # search.fit(X, y), Parallel()(delayed(f)(x) for x in xs), …

try another cluster with `joblib-azure demo --nodes 1 --max-tasks-per-node 2`, and see README.md, "A pool on
Azure", for the same on Azure Batch."""


class Clock:
    """Seconds of the demo's steps, in the order in which they ended."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a block."""
        begun = time.perf_counter()
        yield
        self.steps[name] = time.perf_counter() - begun


def run_demo(nodes: int, cores_per_node: int | None, max_tasks_per_node: int) -> list[str]:
    """Run the grid search twice and print the comparison.

    Returns
    -------
    list of str
        What differs; empty where the results are the same.

    Raises
    ------
    JoblibAzureError
        Where the cluster cannot be had. Nothing is left running then.
    """
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(
            f"the demo needs {', '.join(missing)}; install what is missing with\n  pip install 'joblib_azure[demo]'"
        )
    console, clock = Console(soft_wrap=True, highlight=False), Clock()

    def installing(line: str) -> None:
        console.print(f"   {line}", markup=False)

    # Checks the numbers; starts nothing yet.
    cluster = LocalCluster(nodes, cores_per_node, max_tasks_per_node, notify=installing)
    workers, cores, slots = cluster.config.workers, cluster.config.cores, cluster.config.max_tasks_per_node
    with clock.step("scikit-learn is imported"):
        home, away, (images, digits) = _search(), _search(), _data()
    fits = _FOLDS * _candidates()
    console.print(f"A scikit-learn grid search over the digits data set: {_candidates()} candidates × {_FOLDS} folds.")
    console.print("1. At home, with loky and n_jobs=-1 …")
    with clock.step(f"loky: {fits} fits"):
        home.fit(images, digits)
    console.print(f"2. On a local cluster: {nodes} node(s) × {cores} core(s), {slots} task slot(s) a node …")
    try:
        with clock.step("cluster: the Batch emulator and Azurite start"):
            cluster.open()
        with clock.step("cluster: the first node comes up"):
            cluster.wait_for_node()
        with clock.step("cluster: the Batch job is created"):
            session = session_for(cluster)
        with clock.step(f"cluster: {fits} fits on {workers} core(s)"), parallel_config("azure", cluster=cluster):
            away.fit(images, digits)
        tasks = session.work.tasks_added
    finally:
        with clock.step("cluster: all of it is stopped"):
            cluster.close()

    table = Table("step", title="Where the time went")
    table.add_column("seconds", justify="right")
    for name, seconds in clock.steps.items():
        table.add_row(name, f"{seconds:.2f}")
    console.print(table)
    console.print(f"joblib's {fits} calls travelled in {tasks} Batch task(s).")
    different = differences(home, away)
    if not different:
        best = ", ".join(f"{name}={value}" for name, value in away.best_params_.items())
        console.print(f"Best parameters: {best}; mean accuracy {away.best_score_:.6f}.")
        console.print("[green]All scores and the best parameters are the same.[/green]\n")
        console.print(_NEXT, markup=False)
    return different


def differences(one: Any, other: Any) -> list[str]:
    """Return in what two fitted searches differ.

    Parameters
    ----------
    one, other : sklearn.model_selection.GridSearchCV
        Scores and ranks are compared to the last bit; times are not.

    Returns
    -------
    list of str
        Names of attributes, with what each search has.
    """
    import numpy as np

    found = []
    for key in sorted(name for name in {*one.cv_results_, *other.cv_results_} if name.endswith("_score")):
        a, b = one.cv_results_.get(key), other.cv_results_.get(key)
        if a is None or b is None or a.shape != b.shape:
            found.append(f"cv_results_[{key!r}]: they are of different searches")
        elif not np.array_equal(a, b, equal_nan=True):
            unequal = np.sum((a != b) & ~(np.isnan(a) & np.isnan(b)))
            found.append(f"cv_results_[{key!r}]: {unequal} of {len(a)} values differ")
    if one.best_params_ != other.best_params_:
        found.append(f"best_params_: {one.best_params_} and {other.best_params_}")
    return found


def _search() -> Any:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV

    # Not refitted: that is one fit more at home in both, which says nothing.
    return GridSearchCV(RandomForestClassifier(random_state=0), _GRID, cv=_FOLDS, n_jobs=-1, refit=False)


def _data() -> Any:
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


def _candidates() -> int:
    return math.prod(len(values) for values in _GRID.values())
