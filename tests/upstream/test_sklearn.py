"""scikit-learn's own tests of model selection and ensembles, with azure as the active backend around each.

Some of them do not bear any backend of processes: what fails is run once more with loky, and where it fails with
that as well it says nothing about this backend.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from upstream import Result, failures, judge, run

SEARCH = "sklearn.model_selection.tests.test_search"
VALIDATION = "sklearn.model_selection.tests.test_validation"
FOREST = "sklearn.ensemble.tests.test_forest"
BAGGING = "sklearn.ensemble.tests.test_bagging"
VOTING = "sklearn.ensemble.tests.test_voting"

#: Tests that call Parallel a few times each, and something else with it than the others do.
SELECTION = {
    SEARCH: (
        "test_grid_search",
        "test_grid_search_failing_classifier",
        "test_grid_search_failing_classifier_raise",
        "test_grid_search_precomputed_kernel",
        "test_gridsearch_nd",
        "test_no_refit",
        "test_pandas_input",
        "test_pickle",
        "test_search_train_scores_set_to_false",
        "test_callable_multimetric_error_failing_clf",
    ),
    VALIDATION: (
        "test_cross_validate_many_jobs",
        "test_cross_validate_nested_estimator",
        "test_cross_validate_return_indices",
        "test_cross_validate_some_failing_fits_warning",
        "test_cross_val_predict_pandas",
        "test_cross_val_predict_y_none",
        "test_cross_val_score_fit_params",
        "test_learning_curve_incremental_learning",
        "test_learning_curve_with_boolean_indices",
        "test_score_memmap",
        "test_validation_curve",
    ),
    FOREST: (
        "test_forest_oob_warning",
        "test_parallel",
        "test_probability",
    ),
    BAGGING: (
        "test_bagging_with_pipeline",
        "test_error",
        "test_estimators_samples_deterministic",
        "test_oob_score_regression",
        "test_parallel_classification",
        "test_parallel_regression",
        "test_warm_start",
    ),
    VOTING: ("test_parallel_fit",),
}


def _compared_with_loky(results: list[Result], folder: Path, seconds: float) -> list[Result]:
    failed = [result.test for result in failures(results)]
    if not failed:
        return results
    folder.mkdir()
    loky = run(folder, "sklearn_plugin", *failed, seconds=seconds, UPSTREAM_BACKEND="loky")
    too = {result.test for result in failures(loky)}
    return [dataclasses.replace(r, outcome="left out") if r.test in too else r for r in results]


def _check(folder: Path, arguments: Sequence[str], *, seconds: float, reaching: int) -> None:
    results = run(folder, "sklearn_plugin", *arguments, seconds=seconds, UPSTREAM_BACKEND="azure")
    judge(_compared_with_loky(results, folder / "loky", seconds), reaching=reaching)


@pytest.mark.timeout(700)
def test_selection(tmp_path: Path) -> None:
    names = [f"{module}::{name}" for module, functions in SELECTION.items() for name in functions]
    _check(tmp_path, ["--pyargs", *names], seconds=600, reaching=40)


@pytest.mark.large
@pytest.mark.timeout(15000)
def test_model_selection_and_ensembles(tmp_path: Path) -> None:
    packages = ["--pyargs", "sklearn.model_selection.tests", "sklearn.ensemble.tests"]
    _check(tmp_path, packages, seconds=7200, reaching=500)
