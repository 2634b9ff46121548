"""pytest plugin: runs scikit-learn's own tests with a backend active around every one of them.

With "azure" for it, or with "loky" to see which tests do not bear any backend of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import sklearn
from joblib import parallel_config
from upstream import Recorder

import joblib_azure  # noqa: F401  registers the backend

BACKEND = os.environ["UPSTREAM_BACKEND"]


@pytest.fixture(autouse=True)
def _active_backend() -> Iterator[None]:
    # Without n_jobs most of scikit-learn's own tests, which set none, would be asked to use one worker: a
    # `None` of theirs means this one.
    with parallel_config(BACKEND, n_jobs=2):
        yield


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder())


def pytest_report_header() -> str:
    return f"scikit-learn {sklearn.__version__} over {BACKEND}"
