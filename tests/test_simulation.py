"""Simulated nodes against real ones: the same calls, with the same results, errors and order of outcomes.

The nodes are `benchmarks/_simulation.py`, which the benchmark of a thousand nodes stands on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

from joblib_azure import LocalCluster
from joblib_azure.registry import session_for

SIMULATION = Path(__file__).parents[1] / "benchmarks" / "_simulation.py"
RATE = 60.0


@pytest.fixture(scope="module", params=["real", "simulated"])
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    simulated = {"executor": f"{SIMULATION}:run", "clock_rate": RATE}
    options: Any = {"emulator": simulated} if request.param == "simulated" else {}
    with LocalCluster(nodes=2, cores_per_node=2, max_tasks_per_node=2, **options) as running:
        yield running


@pytest.fixture(scope="module")
def simulated() -> Iterator[LocalCluster]:
    emulator = {"executor": f"{SIMULATION}:run", "clock_rate": RATE}
    with LocalCluster(nodes=4, cores_per_node=2, max_tasks_per_node=4, emulator=emulator) as running:
        yield running


def described(number: int, table: Any = None) -> tuple[int, Any]:
    return number * number, None if table is None else float(table[number])


def fails(number: int) -> int:
    return 1 // (number - 3)


def slow(number: int, seconds: float) -> int:
    time.sleep(seconds)
    return -number


def test_results_are_real(cluster: LocalCluster) -> None:
    table = np.arange(300_000.0)
    with parallel_config("azure", cluster=cluster):
        assert Parallel()(delayed(described)(n) for n in range(50)) == [(n * n, None) for n in range(50)]
        assert Parallel()(delayed(described)(n, table) for n in range(20)) == [(n * n, float(n)) for n in range(20)]
        factor = 7
        assert Parallel()(delayed(lambda n: n * factor)(n) for n in range(5)) == [0, 7, 14, 21, 28]
        found = Parallel(return_as="generator")(delayed(np.full)(3, n) for n in range(8))
        assert [each.tolist() for each in found] == [[n] * 3 for n in range(8)]


def test_errors_are_the_call_s_own(cluster: LocalCluster) -> None:
    with parallel_config("azure", cluster=cluster), pytest.raises(ZeroDivisionError) as caught:
        Parallel()(delayed(fails)(n) for n in range(6))
    assert "in fails" in str(caught.value.__cause__)


def test_a_call_s_sleep_passes_on_the_clock_and_the_client_measures_that(simulated: LocalCluster) -> None:
    with parallel_config("azure", cluster=simulated):
        Parallel()(delayed(abs)(n) for n in range(8))
        began = time.monotonic()
        # 8 cores: two rounds of a minute
        assert Parallel()(delayed(slow)(n, 60.0) for n in range(16)) == [-n for n in range(16)]
        took = time.monotonic() - began
    assert 2 * 60 / RATE <= took < 60
    log = simulated.host.folder / "nodes" / "simulation.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert sum(line["busy"] for line in lines) == pytest.approx(16 * 60 / RATE)
    assert sum(line["calls"] for line in lines) >= 24
    # More slots than cores: what waits on its node for a core says so, as on a real one.
    for line in lines:
        busy = [each for each in lines if each["node"] == line["node"]]
        together = [each for each in busy if each["admitted"] < line["ended"] and each["ended"] > line["admitted"]]
        at_once = [each for each in together if each["admitted"] <= line["admitted"] < each["ended"]]
        assert len(at_once) <= 2


def test_a_call_that_is_given_up_ends_its_tasks(simulated: LocalCluster) -> None:
    with parallel_config("azure", cluster=simulated):
        results = Parallel(return_as="generator")(delayed(slow)(n, 60.0 if n == 0 else 36_000.0) for n in range(4))
        assert next(results) == 0
        with pytest.warns(UserWarning, match="have been cancelled"):
            results.close()
        assert Parallel()(delayed(abs)(n) for n in range(8)) == list(range(8))
    session = session_for(simulated)
    end = time.monotonic() + 20
    while session.work.under_way and time.monotonic() < end:
        time.sleep(0.05)
    assert not session.work.under_way
