"""Pools that scale by themselves, over the wire, on a clock that runs 600 times as fast."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from azure.batch import models
from azure.core import MatchConditions
from azure.core.exceptions import ResourceModifiedError
from emulator_lab import Lab, until

from joblib_azure.autoscale import formula
from joblib_azure.emulator import BatchEmulator

#: 5 minutes are half a second, samples come every 0.05 s and can be read 0.1 s late.
RATE = 600.0
FIVE_MINUTES = datetime.timedelta(minutes=5)


@pytest.fixture(scope="module")
def fast() -> Iterator[Lab]:
    with BatchEmulator(clock_rate=RATE) as emulator:
        yield Lab(emulator)


def scaling(lab: Lab, text: str, *, interval: datetime.timedelta = FIVE_MINUTES, **more: Any) -> str:
    name = lab.name("scaling")
    more.setdefault("virtual_machine_configuration", lab.machine())
    lab.client.create_pool(
        models.BatchPoolCreateOptions(
            id=name,
            vm_size="Emulated_C1",
            enable_auto_scale=True,
            auto_scale_formula=text,
            auto_scale_evaluation_interval=interval,
            **more,
        )
    )
    return name


def enable(
    lab: Lab, pool: str, text: str | None = None, interval: datetime.timedelta | None = None, **more: Any
) -> None:
    options = models.BatchPoolEnableAutoScaleOptions(auto_scale_formula=text, auto_scale_evaluation_interval=interval)
    lab.client.enable_pool_auto_scale(pool, options, **more)


def targets(lab: Lab, pool: str) -> tuple[int, int]:
    found = lab.client.get_pool(pool)
    return found.target_dedicated_nodes, found.target_low_priority_nodes


def test_a_pool_grows_for_tasks_and_shrinks_to_nothing(fast: Lab) -> None:
    text = formula("QUEUE_AND_RUNNING", dedicated=(0, 1), spot=(0, 3), idle_seconds=120)
    pool = scaling(fast, text)
    assert targets(fast, pool) == (0, 0)
    job = fast.job(pool)
    tasks = [fast.task(job, "sleep 1") for _ in range(8)]
    until(lambda: targets(fast, pool) == (1, 3), 5, "growth")
    for task in tasks:
        fast.done(job, task, 20)
    until(lambda: targets(fast, pool) == (0, 0), 10, "idle")
    until(lambda: fast.nodes(pool) == [], 5, "no nodes")
    assert {fast.client.get_task(job, task).execution_info.requeue_count for task in tasks} == {0}


def test_what_a_pool_says_of_its_autoscale(fast: Lab) -> None:
    pool = scaling(fast, "$TargetDedicatedNodes = 2; n = $TaskSlotsPerNode;", task_slots_per_node=3)
    fast.wait_idle(pool, 2)
    found = fast.client.get_pool(pool)
    assert found.enable_auto_scale is True
    assert found.auto_scale_formula == "$TargetDedicatedNodes = 2; n = $TaskSlotsPerNode;"
    assert found.auto_scale_evaluation_interval == FIVE_MINUTES
    run = found.auto_scale_run
    assert run.results == "$TargetDedicatedNodes=2;$TargetLowPriorityNodes=0;$NodeDeallocationOption=requeue;n=3"
    assert run.error is None
    assert (datetime.datetime.now(datetime.timezone.utc) - run.timestamp).total_seconds() < 10
    first = run.timestamp
    until(lambda: fast.client.get_pool(pool).auto_scale_run.timestamp > first, 5, "the next evaluation")
    ids = [each.id for each in fast.client.list_pools(filter="enableAutoScale eq true")]
    assert pool in ids


def test_requests_of_an_autoscaling_pool_that_are_refused(fast: Lab) -> None:
    client = fast.client
    pool = scaling(fast, "$TargetDedicatedNodes = 0")
    resize = models.BatchPoolResizeOptions(target_dedicated_nodes=1)
    fast.refused(409, "OperationInvalidForCurrentState", client.begin_resize_pool, pool, resize, polling_interval=0.02)
    fast.refused(400, "InvalidAutoScalingSettings", enable, fast, pool)
    fast.refused(400, "AutoScalingFormulaSyntaxError", enable, fast, pool, "$TargetDedicatedNodes = ")
    body = fast.refused(400, "AutoScalingFormulaSyntaxError", enable, fast, pool, "x = sqrt(2)")
    assert body["values"][0]["value"] == "Line 1, Col 5: There is no function 'sqrt'"
    fast.refused(400, "AutoScalingFormulaTooLong", enable, fast, pool, "x = 1;" + " " * 8192)
    for minutes in (4, 168 * 60 + 1):
        interval = datetime.timedelta(minutes=minutes)
        fast.refused(400, "InvalidPropertyValue", enable, fast, pool, None, interval)
    assert client.get_pool(pool).auto_scale_formula == "$TargetDedicatedNodes = 0"
    plain = fast.pool(nodes=0)
    fast.refused(400, "InvalidAutoScalingSettings", enable, fast, plain, None, FIVE_MINUTES)


@pytest.mark.parametrize(
    ("change", "code", "name"),
    [
        ({"autoScaleFormula": None}, "MissingRequiredProperty", "autoScaleFormula"),
        ({"targetDedicatedNodes": 1}, "InvalidPropertyValue", "targetDedicatedNodes"),
        ({"targetLowPriorityNodes": 1}, "InvalidPropertyValue", "targetLowPriorityNodes"),
        ({"autoScaleEvaluationInterval": "PT4M"}, "InvalidPropertyValue", "autoScaleEvaluationInterval"),
        ({"enableAutoScale": False, "targetDedicatedNodes": 1}, "InvalidPropertyValue", "autoScaleFormula"),
        ({"autoScaleFormula": "x ="}, "AutoScalingFormulaSyntaxError", "Line 1"),
    ],
)
def test_pools_that_do_not_fit_together(fast: Lab, change: dict[str, Any], code: str, name: str) -> None:
    body = {
        "id": "bad",
        "vmSize": "Emulated_C1",
        "virtualMachineConfiguration": dict(fast.machine()),
        "enableAutoScale": True,
        "autoScaleFormula": "$TargetDedicatedNodes = 0",
        **change,
    }
    status, _, answer = fast.raw("POST", "/pools", json.dumps(body, default=dict).encode())
    assert (status, json.loads(answer)["code"]) == (400, code)
    assert name in json.loads(answer)["values"][0]["value"]


def test_enabling_takes_effect_at_once_and_once_in_thirty_seconds(lab: Lab) -> None:
    pool = scaling(lab, "$TargetDedicatedNodes = 0", interval=datetime.timedelta(hours=1))
    enable(lab, pool, "$TargetDedicatedNodes = 1")
    lab.wait_idle(pool, 1)
    assert lab.client.get_pool(pool).auto_scale_evaluation_interval == datetime.timedelta(hours=1)
    text = "$TargetDedicatedNodes = 2"
    body = lab.refused(503, "TooManyEnableAutoScaleRequests", enable, lab, pool, text)
    assert "30 seconds" in body["message"]["value"]
    assert lab.client.get_pool(pool).target_dedicated_nodes == 1
    lab.client.disable_pool_auto_scale(pool)
    lab.refused(503, "TooManyEnableAutoScaleRequests", enable, lab, pool, text)


def test_enabling_a_pool_of_fixed_size_and_disabling_again(fast: Lab) -> None:
    pool = fast.pool(nodes=2)
    enable(fast, pool, "$TargetDedicatedNodes = 1")
    assert len(fast.wait_idle(pool, 1)) == 1
    assert fast.client.get_pool(pool).auto_scale_evaluation_interval == datetime.timedelta(minutes=15)
    time.sleep(30 / RATE)
    enable(fast, pool, None, FIVE_MINUTES)
    assert fast.client.get_pool(pool).auto_scale_formula == "$TargetDedicatedNodes = 1"
    fast.client.disable_pool_auto_scale(pool)
    found = fast.client.get_pool(pool)
    assert (found.enable_auto_scale, found.auto_scale_formula, found.target_dedicated_nodes) == (False, None, 1)
    resize = models.BatchPoolResizeOptions(target_dedicated_nodes=2)
    fast.client.begin_resize_pool(pool, resize, polling_interval=0.02).result()
    fast.wait_idle(pool, 2)
    time.sleep(0.7)  # longer than the interval that it had
    assert fast.client.get_pool(pool).target_dedicated_nodes == 2


def test_enabling_waits_for_a_resize_by_hand_and_for_the_right_version(fast: Lab) -> None:
    pool = fast.pool(nodes=1)
    old = fast.client.get_pool(pool).etag
    job = fast.job(pool)
    task = fast.task(job, "sleep 30")
    fast.state(job, task, "running")
    leave = models.BatchPoolResizeOptions(target_dedicated_nodes=0, node_deallocation_option="taskcompletion")
    fast.client.begin_resize_pool(pool, leave, polling_interval=0.02)
    fast.refused(409, "PoolBeingResized", enable, fast, pool, "$TargetDedicatedNodes = 1")
    fast.client.terminate_task(job, task)
    until(lambda: fast.client.get_pool(pool).allocation_state == "steady")
    unchanged: dict[str, Any] = {"etag": old, "match_condition": MatchConditions.IfNotModified}
    with pytest.raises(ResourceModifiedError):
        enable(fast, pool, "$TargetDedicatedNodes = 1", **unchanged)
    unchanged["etag"] = fast.client.get_pool(pool).etag
    enable(fast, pool, "$TargetDedicatedNodes = 1", **unchanged)
    fast.wait_idle(pool, 1)


def test_a_formula_can_be_raised_while_nodes_leave(fast: Lab) -> None:
    option = "$NodeDeallocationOption = taskcompletion;"
    pool = scaling(fast, f"$TargetDedicatedNodes = 2; {option}")
    fast.wait_idle(pool, 2)
    job = fast.job(pool)
    tasks = [fast.task(job, "sleep 30") for _ in range(2)]
    for task in tasks:
        fast.state(job, task, "running")
    enable(fast, pool, f"$TargetDedicatedNodes = 0; {option}")
    until(lambda: [node.state for node in fast.nodes(pool)] == ["leavingpool"] * 2)
    time.sleep(1.2 * 15 * 60 / RATE)  # the resize timeout is for manual scaling
    assert fast.client.get_pool(pool).allocation_state == "resizing"
    enable(fast, pool, f"$TargetDedicatedNodes = 3; {option}")
    until(lambda: sorted(node.state for node in fast.nodes(pool)) == ["idle"] * 3 + ["leavingpool"] * 2)
    for task in tasks:
        fast.client.terminate_task(job, task)
    fast.wait_idle(pool, 3)


@pytest.mark.parametrize(("option", "state"), [("requeue", "active"), ("terminate", "completed")])
def test_deallocation_options(fast: Lab, option: str, state: str) -> None:
    pool = scaling(fast, "$TargetDedicatedNodes = 1;", interval=datetime.timedelta(hours=1))
    fast.wait_idle(pool, 1)
    job = fast.job(pool)
    task = fast.task(job, "sleep 30")
    fast.state(job, task, "running")
    enable(fast, pool, f"$TargetDedicatedNodes = 0; $NodeDeallocationOption = {option};")
    fast.state(job, task, state)
    until(lambda: fast.nodes(pool) == [])


def test_a_failing_evaluation_is_told_and_changes_nothing(fast: Lab) -> None:
    pool = scaling(fast, "$TargetDedicatedNodes = 1;")
    fast.wait_idle(pool, 1)
    enable(fast, pool, "$TargetDedicatedNodes = avg($CPUPercent.GetSample(TimeInterval_Minute * 10, 50)) > 0 ? 5 : 0")
    run = fast.client.get_pool(pool).auto_scale_run
    assert run.error.code == "InsufficientSampleData"
    assert run.error.error_values[0].value.endswith("$CPUPercent wanted 50%, received 0%")
    assert targets(fast, pool) == (1, 0)


def test_evaluating_applies_nothing(fast: Lab) -> None:
    pool = scaling(fast, "$TargetDedicatedNodes = 0;")

    def evaluated(text: str) -> models.AutoScaleRun:
        return fast.client.evaluate_pool_auto_scale(
            pool, models.BatchPoolEvaluateAutoScaleOptions(auto_scale_formula=text)
        )

    run = evaluated("$TargetDedicatedNodes = 9; now = time();")
    assert run.results.startswith("$TargetDedicatedNodes=9;$TargetLowPriorityNodes=0;$NodeDeallocationOption=requeue")
    assert targets(fast, pool) == (0, 0)
    assert evaluated("x = ;").error.code == "AutoScalingFormulaSyntaxError"
    assert evaluated("$TargetDedicatedNodes = -1;").error.code == "AutoScalingFormulaEvaluationError"
    plain = fast.pool(nodes=0)
    options = models.BatchPoolEvaluateAutoScaleOptions(auto_scale_formula="x = 1")
    fast.refused(409, "OperationInvalidForCurrentState", fast.client.evaluate_pool_auto_scale, plain, options)


def test_what_is_sampled(fast: Lab) -> None:
    pool = scaling(fast, "$TargetDedicatedNodes = 1; $TargetLowPriorityNodes = 1;", task_slots_per_node=2)
    spot = next(node.id for node in fast.wait_idle(pool, 2) if not node.is_dedicated)
    fast.emulator.preempt_node(pool, spot)
    job = fast.job(pool, uses_task_dependencies=True)
    first, *others = [fast.task(job, "sleep 30") for _ in range(3)]
    fast.task(job, "true", depends_on=models.BatchTaskDependencies(task_ids=[first]))
    fast.state(job, first, "running")
    names = ("ActiveTasks", "RunningTasks", "PendingTasks", "PreemptedNodeCount", "CurrentLowPriorityNodes")
    names += ("CurrentDedicatedNodes", "UsableNodeCount", "TaskSlotsPerNode")
    text = ";".join(f"{name} = max(0, ${name}.GetSample(1))" for name in names)
    options = models.BatchPoolEvaluateAutoScaleOptions(auto_scale_formula=text)

    def sampled() -> dict[str, str]:
        results = fast.client.evaluate_pool_auto_scale(pool, options).results
        return dict(each.split("=") for each in results.split(";"))

    expected = {"ActiveTasks": "1", "RunningTasks": "2", "PendingTasks": "3", "PreemptedNodeCount": "1"}
    expected |= {"CurrentLowPriorityNodes": "1", "CurrentDedicatedNodes": "1", "UsableNodeCount": "1"}
    expected |= {"TaskSlotsPerNode": "2"}
    until(lambda: expected.items() <= sampled().items(), 5, f"{expected}")
    for task in (first, *others):
        fast.client.terminate_task(job, task)


def test_a_deadline_is_in_the_client_s_own_time(fast: Lab) -> None:
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=2)
    text = formula("QUEUE", dedicated=(0, 4), idle_seconds=60, floor=(2, 0), floor_until=soon)
    pool = scaling(fast, text)
    assert targets(fast, pool) == (2, 0)
    until(lambda: targets(fast, pool) == (0, 0), 8, "the end of the floor")
    assert datetime.datetime.now(datetime.timezone.utc) >= soon


def test_quota_does_not_end_autoscale() -> None:
    with BatchEmulator(clock_rate=RATE, dedicated_core_quota=2) as emulator:
        lab = Lab(emulator)
        other = lab.pool(nodes=1)
        pool = scaling(lab, "$TargetDedicatedNodes = 2;")
        until(lambda: lab.client.get_pool(pool).allocation_state == "steady")
        assert [error.code for error in lab.client.get_pool(pool).resize_errors] == ["AccountCoreQuotaReached"]
        assert len(lab.nodes(pool)) == 1
        lab.client.begin_delete_pool(other, polling_interval=0.02).result()
        lab.wait_idle(pool, 2)
        assert lab.client.get_pool(pool).resize_errors is None


def test_a_pool_that_is_deleted_evaluates_nothing_any_more(fast: Lab) -> None:
    pool = scaling(fast, "$TargetDedicatedNodes = 2;")
    fast.wait_idle(pool, 2)
    fast.client.begin_delete_pool(pool, polling_interval=0.02).result()
    fast.refused(404, "PoolNotFound", fast.client.get_pool, pool)
    time.sleep(0.7)
    assert "Traceback" not in (fast.emulator.root / "emulator.log").read_text()
