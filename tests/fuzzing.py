"""How long the fuzz tests look: some seconds each in `make test`, `JOBLIB_AZURE_FUZZ` times as long in `make large`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_FACTOR = int(os.environ.get("JOBLIB_AZURE_FUZZ", "1"))


def fuzz(examples: int) -> settings:
    """So many examples, times the factor; fixtures may be shared by them."""
    unchecked = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples * _FACTOR, deadline=None, suppress_health_check=unchecked)
