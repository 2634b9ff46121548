"""The nested pattern, measured: how many cores a call sees, and how many processes compute at once."""

from __future__ import annotations

import os
import time
from typing import Any

import joblib
from joblib import Parallel, delayed, parallel_config

from joblib_azure import LocalCluster


def work(seconds: float) -> tuple[int, float, float]:
    begun = time.time()
    time.sleep(seconds)
    return os.getpid(), begun, time.time()


def outer(calls: int, **how: Any) -> dict[str, Any]:
    inner = Parallel(n_jobs=-1, **how)(delayed(work)(0.2) for _ in range(calls))
    return {"node": os.environ["AZ_BATCH_NODE_ID"], "cores": joblib.cpu_count(), "inner": inner}


def most_at_once(outcomes: list[dict[str, Any]], node: str) -> int:
    events = []
    for outcome in outcomes:
        if outcome["node"] == node:
            for _, begun, ended in outcome["inner"]:
                events += [(begun, 1), (ended, -1)]
    running = most = 0
    for _, step in sorted(events):
        running += step
        most = max(most, running)
    return most


def test_with_one_slot_a_call_has_all_cores_of_the_node(wide_cluster: LocalCluster) -> None:
    with parallel_config("azure", cluster=wide_cluster):
        (outcome,) = Parallel()(delayed(outer)(8) for _ in range(1))
        assert outcome["cores"] == 2
        assert len({pid for pid, _, _ in outcome["inner"]}) == 2
        assert most_at_once([outcome], outcome["node"]) == 2


def test_with_a_slot_a_core_each_call_has_one(slotted_cluster: LocalCluster) -> None:
    with parallel_config("azure", cluster=slotted_cluster):
        outcomes = Parallel()(delayed(outer)(4) for _ in range(4))
    assert {outcome["cores"] for outcome in outcomes} == {1}
    assert all(len({pid for pid, _, _ in outcome["inner"]}) == 1 for outcome in outcomes)
    assert all(most_at_once(outcomes, node) <= 2 for node in {outcome["node"] for outcome in outcomes})


def test_as_many_calls_as_nodes_have_a_whole_node_each(slotted_cluster: LocalCluster) -> None:
    with parallel_config("azure", cluster=slotted_cluster):
        outcomes = Parallel()([delayed(outer)(6)] * 2)
    assert len({outcome["node"] for outcome in outcomes}) == 2
    assert {outcome["cores"] for outcome in outcomes} == {2}


def test_four_calls_on_four_slots_run_at_once(slotted_cluster: LocalCluster) -> None:
    with parallel_config("azure", cluster=slotted_cluster):
        outcomes = Parallel()(delayed(work)(1.5) for _ in range(4))
    assert max(begun for _, begun, _ in outcomes) < min(ended for _, _, ended in outcomes)


def test_chunks_of_one_task_share_its_cores(wide_cluster: LocalCluster) -> None:
    with parallel_config("azure", cluster=wide_cluster):
        outcomes = Parallel()(delayed(outer)(4) for _ in range(6))
    node = outcomes[0]["node"]
    assert most_at_once(outcomes, node) <= 2


def test_threads_where_the_code_prefers_them(wide_cluster: LocalCluster) -> None:
    with parallel_config("azure", cluster=wide_cluster):
        (outcome,) = Parallel()([delayed(outer)(6, prefer="threads")])
    assert len({pid for pid, _, _ in outcome["inner"]}) == 1
    assert most_at_once([outcome], outcome["node"]) == 2


def levels(depth: int) -> list[int]:
    level = joblib.parallel.get_active_backend()[0].nesting_level
    if depth == 0:
        return [level]
    return [level, *Parallel(n_jobs=2)(delayed(levels)(depth - 1) for _ in range(1))[0]]


def test_nesting_levels_are_joblibs(wide_cluster: LocalCluster) -> None:
    with parallel_config("azure", cluster=wide_cluster):
        assert Parallel()(delayed(levels)(2) for _ in range(1))[0] == [1, 2, 2]


def test_an_explicit_n_jobs_bounds_what_runs_at_once(slotted_cluster: LocalCluster) -> None:
    with parallel_config("azure", cluster=slotted_cluster):
        outcomes = Parallel(n_jobs=2)(delayed(work)(0.3) for _ in range(8))
    edges = sorted([(begun, 1) for _, begun, _ in outcomes] + [(ended, -1) for _, _, ended in outcomes])
    running = most = 0
    for _, step in edges:
        running += step
        most = max(most, running)
    assert most <= 2
