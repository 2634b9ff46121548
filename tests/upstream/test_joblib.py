"""joblib's own tests of Parallel, at the installed version, over the azure backend.

Which of them do not apply, and why, is in `joblib_plugin.LEFT_OUT`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from upstream import judge, run

MODULES = ("--pyargs", "joblib.test.test_parallel", "joblib.test.test_config")
#: Tests of joblib's other backends.
OTHERS = "not multiprocessing and not threading and not sequential"


@pytest.mark.parametrize(
    ("mode", "selection", "reaching"),
    [
        ("alias", OTHERS, 100),
        ("name", f"{OTHERS} and azure", 30),
        pytest.param("default", f"{OTHERS} and not loky", 80, marks=pytest.mark.large),
    ],
    ids=["alias", "name", "default"],
)
@pytest.mark.timeout(1300)
def test_joblib(mode: str, selection: str, reaching: int, tmp_path: Path) -> None:
    results = run(tmp_path, "joblib_plugin", *MODULES, "-k", selection, seconds=1200, UPSTREAM_MODE=mode)
    judge(results, reaching=reaching)
