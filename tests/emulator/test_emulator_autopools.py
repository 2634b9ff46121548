"""Pools that jobs and schedules make for themselves."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from azure.batch import models
from emulator_lab import Lab, until

from joblib_azure.emulator import BatchEmulator

DONE = {"terminateReason": "done"}
FAST = {"polling_interval": 0.02}


def auto(lab: Lab, *, lifetime: str = "job", keep: bool = False, prefix: str | None = "auto", **pool: Any) -> Any:
    specification = models.BatchPoolSpecification(
        vm_size="Emulated_C1", virtual_machine_configuration=lab.machine(), **{"target_dedicated_nodes": 1, **pool}
    )
    return models.BatchPoolInfo(
        auto_pool_specification=models.BatchAutoPoolSpecification(
            pool_lifetime_option=lifetime, keep_alive=keep, auto_pool_id_prefix=prefix, pool=specification
        )
    )


def job(lab: Lab, info: Any, **more: Any) -> str:
    name = lab.name("job")
    lab.client.create_job(models.BatchJobCreateOptions(id=name, pool_info=info, **more))
    return name


@pytest.mark.parametrize("keep", [False, True])
def test_a_pool_lives_as_long_as_its_job_unless_kept(lab: Lab, keep: bool) -> None:
    name = job(lab, auto(lab, keep=keep))
    found = lab.client.get_job(name)
    pool = found.execution_info.pool_id
    assert pool.startswith("auto_")
    assert found.pool_info.pool_id is None
    assert found.pool_info.auto_pool_specification.pool.vm_size == "Emulated_C1"
    assert lab.run(name, "true").node_info.pool_id == pool
    lab.client.begin_terminate_job(name, DONE, **FAST).result()
    if keep:
        assert lab.client.get_pool(pool).state == "active"
        lab.client.begin_delete_pool(pool, **FAST).result()
    else:
        until(lambda: pool not in [each.id for each in lab.client.list_pools()], say="the pool gone")


def test_a_deleted_job_takes_its_pool_along(lab: Lab) -> None:
    name = job(lab, auto(lab, prefix=None))
    pool = lab.client.get_job(name).execution_info.pool_id
    assert lab.client.get_pool(pool).target_dedicated_nodes == 1
    lab.client.begin_delete_job(name, **FAST).result()
    until(lambda: pool not in [each.id for each in lab.client.list_pools()], say="the pool gone")


@pytest.mark.parametrize(("lifetime", "pools"), [("job", 2), ("jobschedule", 1)])
def test_jobs_of_a_schedule_have_a_pool_each_or_one_together(lifetime: str, pools: int) -> None:
    with BatchEmulator(clock_rate=600) as running:
        lab = Lab(running)
        specification = models.BatchJobSpecification(
            pool_info=auto(lab, lifetime=lifetime),
            job_manager_task=models.BatchJobManagerTask(id="manager", command_line="true"),
        )
        recurring = models.BatchJobScheduleConfiguration(recurrence_interval=datetime.timedelta(minutes=1))
        lab.client.create_job_schedule(
            models.BatchJobScheduleCreateOptions(id="s", schedule=recurring, job_specification=specification)
        )

        def ended() -> list[models.BatchJob]:
            return [each for each in lab.client.list_jobs_from_schedule("s") if each.state == "completed"]

        until(lambda: len(ended()) >= 2, say="two jobs over")
        assert len({each.execution_info.pool_id for each in ended()[:2]}) == pools
        lab.client.begin_terminate_job_schedule("s", **FAST).result()
        until(lambda: list(lab.client.list_pools()) == [], say="no pool left")


def test_a_job_whose_pool_cannot_be_made_is_over() -> None:
    with BatchEmulator(pool_quota=1) as running:
        lab = Lab(running)
        lab.pool(nodes=0)
        found = lab.client.get_job(job(lab, auto(lab)))
        assert found.state == "completed"
        assert found.execution_info.scheduling_error.code == "AutoPoolCreationFailedWithQuotaReached"
        assert found.execution_info.scheduling_error.category == "usererror"


def test_only_whether_it_stays_can_be_changed(lab: Lab) -> None:
    name = job(lab, auto(lab, target_dedicated_nodes=0))
    kept = models.BatchJobUpdateOptions(pool_info=auto(lab, keep=True, target_dedicated_nodes=5))
    lab.refused(409, "OperationInvalidForCurrentState", lab.client.update_job, name, kept)
    lab.client.replace_job(name, lab.client.get_job(name))  # as it was read
    lab.client.begin_disable_job(name, models.BatchJobDisableOptions(disable_tasks="requeue"), **FAST).result()
    other = models.BatchJobUpdateOptions(pool_info=models.BatchPoolInfo(pool_id="other"))
    lab.refused(400, "InvalidPropertyValue", lab.client.update_job, name, other)
    lab.client.update_job(name, kept)
    found = lab.client.get_job(name).pool_info.auto_pool_specification
    assert (found.keep_alive, found.pool.target_dedicated_nodes) == (True, 0)


def test_what_is_no_auto_pool(lab: Lab) -> None:
    both = auto(lab)
    both.pool_id = "p"
    unshaped = auto(lab)
    unshaped.auto_pool_specification.pool = None
    for info, code in (
        (both, "InvalidPropertyValue"),
        (unshaped, "MissingRequiredProperty"),
        (auto(lab, prefix="a" * 21), "InvalidPropertyValue"),
        (auto(lab, prefix="a b"), "InvalidPropertyValue"),
        (auto(lab, task_slots_per_node=5), "InvalidPropertyValue"),
        (auto(lab, target_dedicated_nodes=None), "MissingRequiredProperty"),
        (models.BatchPoolInfo(), "MissingRequiredProperty"),
    ):
        lab.refused(400, code, job, lab, info)
