"""scikit-learn's own tests of model selection and ensembles, with azure as the active backend around each.

Some of them do not bear any backend of processes: what fails is run once more with loky, and where it fails with
that as well it says nothing about this backend.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from upstream import Result, failures, judge, run

PACKAGES = ("--pyargs", "sklearn.model_selection.tests", "sklearn.ensemble.tests")


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
