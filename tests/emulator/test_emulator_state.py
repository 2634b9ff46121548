"""An emulator that is started again with its file of state goes on where it was, however it ended."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from azure.batch import models
from emulator_lab import Lab, until

from joblib_azure.emulator import BatchEmulator, EmulatorError

KEY = "c2VjcmV0"


@pytest.fixture
def again(tmp_path: Path) -> Callable[..., Any]:
    @contextmanager
    def start(**behaviour: Any) -> Iterator[Lab]:
        state, root = tmp_path / "state.json", tmp_path / "nodes"
        with BatchEmulator(state=state, root=root, account_key=KEY, **behaviour) as emulator:
            yield Lab(emulator)

    return start


def stop(lab: Lab) -> None:
    lab.emulator.stop()


def kill(lab: Lab) -> None:
    """What has changed is on disk within a second or so; then the process dies without a word."""
    time.sleep(1.5)
    process = psutil.Process(lab.emulator.pid)
    children = process.children(recursive=True)
    os.kill(lab.emulator.pid, signal.SIGKILL)
    for child in children:
        child.kill()
    lab.emulator.stop()


def shown(items: Any) -> list[dict[str, Any]]:
    """What a client sees of resources, but for the endpoint's port."""
    found = []
    for item in items:
        text = json.dumps(item.as_dict())
        url = str(item.as_dict().get("url", ""))
        found.append(json.loads(text.replace("/".join(url.split("/")[:3]), "")) if url else json.loads(text))
    return found


@pytest.mark.parametrize("end", [stop, kill])
def test_all_of_it_is_there_again(end: Callable[[Lab], None], again: Any) -> None:
    with again() as lab:
        start_task = models.BatchStartTask(command_line="/bin/sh -c 'echo up >> $AZ_BATCH_NODE_SHARED_DIR/boots'")
        pool = lab.pool(
            nodes=2, slots=2, start_task=start_task, metadata=[models.BatchMetadataItem(name="a", value="b")]
        )
        job = lab.job(
            pool,
            priority=7,
            constraints=models.BatchJobConstraints(max_wall_clock_time=timedelta(hours=3)),
            job_preparation_task=models.BatchJobPreparationTask(command_line="/bin/sh -c 'echo prepared'"),
        )
        good = lab.run(job, "/bin/sh -c 'echo 42'")
        bad = lab.run(job, "/bin/sh -c 'exit 3'")
        over = lab.job(pool)
        lab.client.begin_terminate_job(over, {"terminateReason": "Enough"})
        lab.job_state(over, "completed")
        before = [shown(each) for each in (lab.client.list_jobs(), lab.client.list_tasks(job))]
        nodes = {node.id: node.total_tasks_run for node in lab.nodes(pool)}
        made = lab.client.get_pool(pool)
        end(lab)
    with again() as lab:
        assert [shown(each) for each in (lab.client.list_jobs(), lab.client.list_tasks(job))] == before
        found = lab.client.get_pool(pool)
        assert (found.etag, found.creation_time, found.metadata) == (made.etag, made.creation_time, made.metadata)
        after = lab.wait_idle(pool, 2)
        # the same nodes, with their disks: they have booted
        assert {node.id: node.total_tasks_run for node in after} == nodes
        ran_on = lab.client.get_task(job, good.id).node_info
        assert ran_on is not None
        assert ran_on.node_id in nodes
        assert lab.text(job, good.id) == "42\n"
        boots = b"".join(lab.client.download_node_file(pool, after[0].id, "shared/boots"))
        assert boots == b"up\nup\n"
        counts = lab.client.get_job_task_counts(job).task_counts
        assert (counts.completed, counts.succeeded, counts.failed) == (2, 1, 1)
        assert lab.client.get_job(over).execution_info.termination_reason == "Enough"
        # and it goes on
        assert lab.run(job, "/bin/true").execution_info.exit_code == 0
        lab.refused(409, "TaskExists", lab.task, job, "/bin/true", bad.id)
        assert lab.pool() not in (pool,)


@pytest.mark.parametrize("end", [stop, kill])
def test_what_ran_runs_again_and_what_waited_goes_on(end: Callable[[Lab], None], again: Any, tmp_path: Path) -> None:
    mark, go = tmp_path / "mark", tmp_path / "go"
    script = f"/bin/sh -c 'echo run >> {mark}; while [ ! -e {go} ]; do sleep 0.05; done'"
    with again() as lab:
        pool = lab.pool(nodes=1, slots=1)
        job = lab.job(pool, uses_task_dependencies=True, all_tasks_complete_mode="noaction")
        lab.task(job, script, "runs")
        until(mark.exists, say="it runs")
        lab.task(job, "/bin/true", "waits")
        lab.task(job, "/bin/true", "depends", depends_on=models.BatchTaskDependencies(task_ids=["runs", "waits"]))
        end(lab)
    with again() as lab:
        until(lambda: mark.read_text() == "run\nrun\n", say="it runs again")
        running = lab.state(job, "runs", "running").execution_info
        assert (running.requeue_count, running.retry_count) == (1, 0)
        assert lab.client.get_task(job, "depends").state == "active"
        go.touch()
        for name in ("runs", "waits", "depends"):
            assert lab.done(job, name).execution_info.result == "success"


def test_what_was_under_way_comes_to_its_end(again: Any) -> None:
    with again(boot_seconds=0.2, pool_deletion_seconds=30) as lab:
        gone, short, full = lab.pool(), lab.pool(nodes=1), lab.pool(nodes=0, target_low_priority_nodes=1)
        lab.client.begin_delete_pool(gone)
        until(lambda: lab.client.get_pool(gone).state == "deleting")
        job = lab.job(short, job_release_task=models.BatchJobReleaseTask(command_line="sleep 60"), **_prepared())
        lab.run(job, "/bin/true")
        lab.client.begin_terminate_job(job, {"terminateReason": "Halfway"})
        lab.job_state(job, "terminating")
        (spot,) = lab.nodes(full)
        lab.emulator.preempt_node(full, spot.id)
        lab.client.begin_resize_pool(short, models.BatchPoolResizeOptions(target_dedicated_nodes=3))
        stop(lab)
    with again() as lab:
        until(lambda: gone not in [pool.id for pool in lab.client.list_pools()], say="the pool is gone")
        ended = lab.job_state(job, "completed")
        assert ended.execution_info.termination_reason == "Halfway"
        assert len(lab.wait_idle(short, 3)) == 3
        assert lab.wait_idle(full, 1)[0].id == spot.id


def _prepared() -> dict[str, Any]:
    return {"job_preparation_task": models.BatchJobPreparationTask(command_line="/bin/true")}


def test_schedules_and_autoscale_go_on(again: Any) -> None:
    formula = "$TargetDedicatedNodes = 1;"
    with again(clock_rate=60) as lab:
        pool = _scaling(lab, formula)
        lab.wait_idle(pool, 1)
        every = models.BatchJobScheduleConfiguration(recurrence_interval=timedelta(minutes=10))
        work = models.BatchJobSpecification(
            pool_info=models.BatchPoolInfo(pool_id=pool), all_tasks_complete_mode="noaction"
        )
        name = lab.name("schedule")
        lab.client.create_job_schedule(
            models.BatchJobScheduleCreateOptions(id=name, schedule=every, job_specification=work)
        )
        until(lambda: lab.client.get_job_schedule(name).execution_info.recent_job is not None)
        first = lab.client.get_job_schedule(name).execution_info.recent_job.id
        run = lab.client.get_pool(pool).auto_scale_run
        stop(lab)
    with again(clock_rate=60) as lab:
        found = lab.client.get_pool(pool)
        assert (found.auto_scale_formula, found.auto_scale_run.results) == (formula, run.results)
        assert lab.client.get_job(first).state == "active"
        lab.client.begin_terminate_job(first, {"terminateReason": "done"})
        until(lambda: lab.client.get_job_schedule(name).execution_info.recent_job.id != first, 30, "the next job")


def _scaling(lab: Lab, formula: str) -> str:
    name = lab.name("pool")
    lab.client.create_pool(
        models.BatchPoolCreateOptions(
            id=name,
            vm_size="Emulated_C1",
            virtual_machine_configuration=lab.machine(),
            enable_auto_scale=True,
            auto_scale_formula=formula,
        )
    )
    return name


def test_the_file_is_the_owner_s_alone(again: Any, tmp_path: Path) -> None:
    """Specifications have secrets in their environment settings."""
    with again() as lab:
        lab.pool(nodes=0)
    assert stat.S_IMODE((tmp_path / "state.json").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting property name"),
        ('{"version": 99, "account": "emulated"}', "version 99"),
        ('{"version": 1, "account": "another"}', "of account 'another'"),
    ],
)
def test_a_file_that_cannot_be_used_is_left_as_it_is(text: str, said: str, again: Any, tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_text(text)
    with pytest.raises(EmulatorError, match=said), again():
        pass
    assert file.read_text() == text


def test_disks_that_are_removed_make_no_state() -> None:
    with pytest.raises(EmulatorError, match="--root that stays"):
        BatchEmulator(state="state.json")
