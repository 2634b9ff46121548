"""Simulated nodes: the same states, times and endings as with processes, and what a task costs on a large pool."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import simulated_lab
from azure.batch import models
from emulator_lab import Lab, until

from joblib_azure.emulator import BatchEmulator, scheduler
from joblib_azure.emulator.execution import Command, Execution, Stopped
from joblib_azure.emulator.executors import load, name_of
from joblib_azure.emulator.options import Options
from joblib_azure.emulator.scheduler import Scheduler
from joblib_azure.emulator.simulated import SimulatedProcesses
from joblib_azure.emulator.state import Account, Job, Node, Pool, Progress, Task

LAB = str(Path(simulated_lab.__file__).resolve())
#: A minute takes so many seconds less on the emulator's clock.
RATE = 100.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with BatchEmulator(executor=simulated_lab.obey, clock_rate=RATE) as emulator:
        yield Lab(emulator)


@pytest.fixture(scope="module")
def pool(lab: Lab) -> str:
    return lab.pool(nodes=1, slots=4, size="Emulated_C4")


@pytest.fixture
def job(lab: Lab, pool: str) -> str:
    return lab.job(pool)


# tasks --------------------------------------------------------------------------------------------------------


def test_a_task_takes_its_time_on_the_clock_and_no_process(lab: Lab, job: str) -> None:
    task = lab.task(job, "sleep 60")
    lab.state(job, task, "running")
    assert psutil.Process(lab.emulator.pid).children(recursive=True) == []
    info = lab.done(job, task).execution_info
    assert (info.exit_code, info.result) == (0, "success")
    assert 60 / RATE <= (info.end_time - info.start_time).total_seconds() < 60


@pytest.mark.parametrize(("command", "code"), [("exit 7", 7), ("raise", 1)])
def test_a_task_that_fails(lab: Lab, job: str, command: str, code: int) -> None:
    info = lab.run(job, command, constraints=models.BatchTaskConstraints(max_task_retry_count=2)).execution_info
    assert (info.exit_code, info.retry_count, info.failure_info.code) == (code, 2, "FailureExitCode")


def test_an_executor_is_given_what_a_process_would_have(lab: Lab, pool: str) -> None:
    variables = [models.EnvironmentSetting(name="OF_THE_JOB", value="1")]
    job = lab.job(pool, common_environment_settings=variables)
    files = [models.ResourceFile(http_url="http://127.0.0.1:9/nowhere", file_path="here")]
    expected = {
        "variables": {"AZ_BATCH_TASK_ID": "seen", "OF_THE_JOB": "1", "OF_THE_TASK": "2"},
        "files": [{"httpUrl": "http://127.0.0.1:9/nowhere", "filePath": "here"}],
    }
    found = lab.run(
        job,
        f"expect '{json.dumps(expected)}'",
        name="seen",
        resource_files=files,
        environment_settings=[models.EnvironmentSetting(name="OF_THE_TASK", value="2")],
    )
    assert found.execution_info.exit_code == 0


def test_what_is_terminated_or_takes_too_long_is_killed(lab: Lab, job: str) -> None:
    task = lab.task(job, "sleep 100000")
    lab.state(job, task, "running")
    lab.client.terminate_task(job, task)
    assert lab.done(job, task).execution_info.exit_code == 137
    limit = models.BatchTaskConstraints(max_wall_clock_time="PT0.1S")
    info = lab.run(job, "sleep 100000", constraints=limit).execution_info
    assert (info.exit_code, info.failure_info.code) == (137, "TaskEnded")


def test_there_are_no_files(lab: Lab, pool: str, job: str) -> None:
    task = lab.run(job, "exit 0").id
    lab.refused(409, "TaskFilesCleanedup", lab.text, job, task)
    assert list(lab.client.list_node_files(pool, lab.nodes(pool)[0].id)) == []


# nodes --------------------------------------------------------------------------------------------------------


def test_start_and_preparation_tasks_are_the_executor_s_too(lab: Lab) -> None:
    expected = json.dumps({"variables": {}, "files": []})
    start = models.BatchStartTask(command_line=f"sleep 20 expect '{expected}'", wait_for_success=True)
    pool = lab.pool(nodes=2, start_task=start)
    job = lab.job(pool, job_preparation_task=models.BatchJobPreparationTask(command_line="sleep 30"))
    task = lab.task(job, "exit 0")
    lab.state(job, task, "preparing")
    assert lab.done(job, task).execution_info.exit_code == 0
    (status,) = lab.client.list_job_preparation_and_release_task_status(job)
    assert status.job_preparation_task_execution_info.result == "success"
    failing = lab.pool(nodes=1, wait=False, start_task=models.BatchStartTask(command_line="exit 2"))
    until(lambda: [node.state for node in lab.nodes(failing)] == ["starttaskfailed"])
    lab.emulator.control("tasks/preparation/fail")
    job = lab.job(pool, job_preparation_task=models.BatchJobPreparationTask(command_line="exit 0"))
    lab.run(job, "exit 0")
    results = lab.client.list_job_preparation_and_release_task_status(job)
    assert "failure" in {each.job_preparation_task_execution_info.result for each in results}


@pytest.mark.parametrize("how", ["preempt", "reboot", "lose"])
def test_tasks_of_a_node_that_goes_are_queued_again(lab: Lab, how: str) -> None:
    pool = lab.pool(nodes=0, target_low_priority_nodes=1)
    job = lab.job(pool)
    task = lab.task(job, "sleep 200")
    lab.state(job, task, "running")
    node = lab.nodes(pool)[0].id
    if how == "reboot":
        lab.client.begin_reboot_node(pool, node, {"nodeRebootOption": "requeue"}, polling_interval=0.02).result()
    else:
        lab.emulator.control(f"pools/{pool}/nodes/{node}/{how}?seconds=0.1")
    info = lab.done(job, task, 20).execution_info
    assert (info.exit_code, info.requeue_count) == (0, 1)


def test_a_thousand_nodes_fill_evenly(lab: Lab) -> None:
    pool = lab.pool(nodes=1000, slots=16, size="Emulated_C16", wait=False)
    until(lambda: [node.state for node in lab.nodes(pool)] == ["idle"] * 1000, 30, "a thousand nodes")
    job = lab.job(pool)
    tasks = [models.BatchTaskCreateOptions(id=f"task-{n}", command_line="sleep 10000") for n in range(2000)]
    lab.client.create_tasks(job, tasks, max_concurrency=2)
    until(lambda: lab.client.get_job_task_counts(job).task_counts.running == 2000, 30, "all run")
    assert Counter(node.running_tasks_count for node in lab.nodes(pool)) == {2: 1000}
    lab.client.begin_delete_job(job, polling_interval=0.1).result()
    lab.client.begin_delete_pool(pool, polling_interval=0.1).result()


# the executor's name ------------------------------------------------------------------------------------------


def test_an_executor_is_found_by_its_name(tmp_path: Path) -> None:
    assert name_of(simulated_lab.obey) == name_of(f"{LAB}:obey") == f"{LAB}:obey"
    assert load(f"{LAB}:obey").__name__ == "obey"
    assert name_of("json:loads") == "json:loads"
    assert load("json:loads") is json.loads
    assert Options(executor=simulated_lab.obey).arguments() == ["--executor", f"{LAB}:obey"]  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", ["x", "x.py", ":x", "x:", "x.py:a-b", simulated_lab.blocking, lambda: 0, 3])
def test_what_is_no_executor_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="executor is"):
        BatchEmulator(executor=bad)


# in the word of its end ---------------------------------------------------------------------------------------


def execution(report: float) -> tuple[Execution, Progress]:
    command = Command(
        command_line="exit 5", directory=Path("nowhere"), environment={}, cpus=frozenset(), resource_files=[]
    )
    progress = Progress()
    return Execution(SimulatedProcesses(f"{LAB}:obey", RATE), command, progress, report=report), progress


def test_an_end_is_known_late_with_its_own_time() -> None:
    async def run() -> Progress:
        running, progress = execution(0.2)
        task = asyncio.create_task(running.run())
        await asyncio.sleep(0.05)
        assert (progress.state, progress.exit_code, progress.end) == ("running", None, None)
        await task
        return progress

    found = asyncio.run(run())
    assert (found.exit_code, found.state) == (5, "completed")
    assert found.start is not None
    assert found.end is not None
    assert (found.end - found.start).total_seconds() < 0.2


def test_what_stops_a_task_before_its_end_is_known_finds_it_running() -> None:
    async def run() -> Progress:
        running, progress = execution(60.0)
        task = asyncio.create_task(running.run())
        await asyncio.sleep(0.05)
        running.stop("lost")
        with pytest.raises(Stopped, match="lost"):
            await task
        return progress

    assert asyncio.run(run()).end is None


# the scheduler's index ----------------------------------------------------------------------------------------


def made(nodes: int, slots: int, fill: str = "spread") -> tuple[Account, Pool, Job]:
    spec = {"taskSchedulingPolicy": {"nodeFillType": fill}}
    pool = Pool(id="pool", state="active", spec=spec, cores=slots, slots=slots, target_dedicated=nodes, target_spot=0)
    for number in range(nodes):
        node = Node(
            id=f"node-{number}",
            state="creating",
            pool=pool,
            dedicated=True,
            machine=Path("nowhere"),
            cpus=frozenset(),
            ip_address="10.0.0.4",
        )
        pool.nodes[node.id] = node
        node.move("idle")
    job = Job(id="job", state="active", spec={"poolInfo": {"poolId": "pool"}})
    return Account("account", pools={"pool": pool}, jobs={"job": job}), pool, job


def test_what_a_task_costs_does_not_grow_with_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Counter[int]()

    async def fill(nodes: int) -> None:
        account, _, job = made(nodes, 4)
        suits = scheduler._suits
        monkeypatch.setattr(scheduler, "_suits", lambda *args: looks.update([nodes]) or suits(*args))
        started: list[Task] = []
        passes = Scheduler(account, lambda task, node: (node.take(task), started.append(task))[0])
        for number in range(200):
            passes.enqueue(Task(id=f"{number}", state="active", job=job, spec={}))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert len(started) == 200
        monkeypatch.undo()

    for nodes in (50, 1000):
        asyncio.run(fill(nodes))
    assert looks == {50: 200, 1000: 200}


@pytest.mark.parametrize("fill", ["spread", "pack"])
def test_a_pool_knows_its_open_nodes_whatever_happens_to_them(fill: str) -> None:
    chance = random.Random(5)
    _, pool, job = made(6, 4, fill)
    nodes = list(pool.nodes.values())
    held: list[tuple[Node, Task]] = []
    for number in range(3000):
        node = chance.choice(nodes)
        match chance.randrange(5):
            case 0:
                node.move(chance.choice(["idle", "running", "preempted", "rebooting", "offline"]))
            case 1:
                node.scheduling_enabled = not node.scheduling_enabled
                node.note()
            case 2 if held:
                node, task = held.pop(chance.randrange(len(held)))
                node.give_back(task)
            case _:
                task = Task(id=f"{number}", state="active", job=job, spec={}, slots=chance.randint(1, 4))
                chosen = scheduler._pick(pool, task)
                fitting = [each for each in nodes if each.accepts_tasks and each.free_slots >= task.slots]
                assert (chosen is None) == (not fitting)
                if chosen is not None:
                    best = (min if fill == "pack" else max)(each.free_slots for each in fitting)
                    assert chosen.free_slots == best
                    chosen.take(task)
                    held.append((chosen, task))
        expected: dict[int, set[Node]] = {}
        for each in nodes:
            if each.accepts_tasks and each.free_slots > 0:
                expected.setdefault(each.free_slots, set()).add(each)
        assert {slots: set(group) for slots, group in pool.open_nodes.items()} == expected
