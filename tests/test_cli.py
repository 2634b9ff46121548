"""The command line."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import joblib_azure
from joblib_azure.cli import main
from joblib_azure.cli.demo import differences


def test_version_and_help() -> None:
    assert joblib_azure.__version__ in CliRunner().invoke(main, ["--version"]).output
    assert "demo" in CliRunner().invoke(main, ["--help"]).output


def test_a_wrong_shape_is_told() -> None:
    done = CliRunner().invoke(main, ["demo", "--cores-per-node", "1", "--max-tasks-per-node", "9"])
    assert done.exit_code == 1
    assert "1 to 4 here" in done.output
    assert CliRunner().invoke(main, ["demo", "--nodes", "0"]).exit_code == 2


def test_the_demo_names_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else found(name))
    done = CliRunner().invoke(main, ["demo"])
    assert done.exit_code == 1
    assert "pip install 'joblib_azure[demo]'" in done.output


def _search(last: float, **best: float) -> Any:
    scores = {"split0_test_score": np.array([0.5, np.nan, last]), "mean_fit_time": np.random.rand(3)}
    return SimpleNamespace(cv_results_=scores, best_params_=best)


def test_a_difference_in_the_last_bit_is_told() -> None:
    assert differences(_search(0.1, C=1), _search(0.1, C=1)) == []
    (scores,) = differences(_search(0.1, C=1), _search(np.nextafter(0.1, 1), C=1))
    assert "split0_test_score" in scores
    assert "1 of 3" in scores
    (best,) = differences(_search(0.1, C=1), _search(0.1, C=10))
    assert best.startswith("best_params_")


def test_different_results_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib_azure.cli.demo.run_demo", lambda *shape: ["best_params_: {} and {'C': 1}"])
    done = CliRunner().invoke(main, ["demo"])
    assert done.exit_code == 1
    assert "different results" in done.output
    assert "best_params_" in done.output


@pytest.mark.timeout(400)  # two searches and a cluster, beside another worker's tests
def test_the_demo_compares() -> None:
    done = CliRunner().invoke(main, ["demo"])
    assert done.exit_code == 0, done.output
    assert "All scores and the best parameters are the same." in done.output
    assert "Where the time went" in done.output
