"""``joblib-azure demo``: the main job, once at home and once on the local cluster."""

from __future__ import annotations

import time
from typing import Any

import click
from joblib import parallel_config
from rich.console import Console
from rich.table import Table

from ..local import LocalCluster
from ..registry import session_for

_NEXT = """\
Next: put the same two lines around code of your own,

    import joblib_azure
    with parallel_config("azure", cluster="local"):
        …

and see README.md for a pool on Azure."""


def run_demo(nodes: int, cores_per_node: int | None, max_tasks_per_node: int) -> bool:
    """Run the grid search twice, print the comparison; return whether the results are the same."""
    try:
        import sklearn
    except ImportError as exc:
        raise click.ClickException("the demo needs scikit-learn: pip install scikit-learn") from exc

    console = Console()
    cluster = LocalCluster(nodes, cores_per_node, max_tasks_per_node, notify=console.print)
    workers = cluster.config.workers
    console.print(
        f"A grid search over the digits data set, 36 candidates × 5 folds, scikit-learn {sklearn.__version__}."
    )

    with parallel_config("loky", n_jobs=workers):
        home, at_home = _timed(_search)
    console.print(f"1. With loky, {workers} worker(s): {at_home:.1f} s")
    with cluster:
        begun = time.perf_counter()
        session = session_for(cluster)
        opened = time.perf_counter() - begun
        console.print(f"2. The local cluster is up: {nodes} node(s) × {cluster.config.cores} core(s)")
        with parallel_config("azure", cluster=cluster):
            away, on_cluster = _timed(_search)
        console.print(f"3. On the cluster: {on_cluster:.1f} s")
        tasks = session.tasks_added

    same = bool(
        home.best_params_ == away.best_params_
        and (home.cv_results_["mean_test_score"] == away.cv_results_["mean_test_score"]).all()
    )
    table = Table(title="Where the time went")
    table.add_column("step")
    table.add_column("seconds", justify="right")
    table.add_row("emulator and Azurite", f"{cluster.start_seconds:.1f}")
    table.add_row("pool, job and first node", f"{opened:.1f}")
    table.add_row(f"grid search on the cluster, {tasks} Batch tasks", f"{on_cluster:.1f}")
    table.add_row("grid search with loky", f"{at_home:.1f}")
    console.print(table)
    console.print(f"Best parameters with loky:      {home.best_params_}, score {home.best_score_:.6f}")
    console.print(f"Best parameters on the cluster: {away.best_params_}, score {away.best_score_:.6f}")
    if same:
        console.print("[green]All scores and the best parameters are the same.[/green]")
        console.print(_NEXT, markup=False, highlight=False)
    return same


def _search() -> Any:
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV

    data, target = load_digits(return_X_y=True)
    grid = {"n_estimators": [20, 40, 60], "max_depth": [4, 8, 12, None], "max_features": [4, 8, 16]}
    return GridSearchCV(RandomForestClassifier(random_state=0), grid, cv=5).fit(data, target)


def _timed(function: Any) -> tuple[Any, float]:
    begun = time.perf_counter()
    return function(), time.perf_counter() - begun
