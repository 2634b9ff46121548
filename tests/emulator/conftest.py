"""One emulator a test session (and xdist worker); tests use pools and jobs of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from emulator_lab import Lab

from joblib_azure.emulator import BatchEmulator


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BatchEmulator]:
    log = tmp_path_factory.mktemp("emulator") / "access.log"
    with BatchEmulator(access_log=log) as running:
        yield running


@pytest.fixture(scope="session")
def lab(emulator: BatchEmulator) -> Lab:
    return Lab(emulator)


@pytest.fixture(scope="session")
def pool(lab: Lab) -> str:
    """A pool that tests share: one node with four slots, so that no test waits for another's slot for long."""
    return lab.pool(nodes=1, slots=4)


@pytest.fixture
def job(lab: Lab, pool: str) -> str:
    return lab.job(pool)
