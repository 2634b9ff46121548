"""Warm nodes on emulated clusters: what a task sees of those before it, and what its runner's end costs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import warm_lab as lab
from joblib import Parallel, delayed, parallel_config

from joblib_azure import LocalCluster
from joblib_azure.cluster import Cluster


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A cluster of one node and one slot, and the workers of its runners."""

    cluster: LocalCluster
    workers: int


@pytest.fixture(params=[("narrow", 1), ("wide_cluster", 2)], ids=["main thread", "pool"])
def shape(request: pytest.FixtureRequest) -> Iterator[Shape]:
    """A cluster whose runner runs calls in its main thread, or in a pool of two."""
    name, workers = request.param
    cluster = request.getfixturevalue(name)
    with parallel_config("azure", cluster=cluster):
        yield Shape(cluster=cluster, workers=workers)


def on_each(function: Callable[..., Any], folder: Path, workers: int) -> list[Any]:
    """Run one task with a call on each worker of its runner.

    The calls meet, for which they have to travel together. What joblib sends within 10 ms does, and on a machine that
    is busy that may be one of them: then the other waits for its slot, and they come again.
    """
    for again in (True, True, False):
        folder.mkdir()
        calls = [delayed(function)(str(folder), str(i), workers) for i in range(workers)]
        try:
            return list(Parallel(batch_size=1)(calls))
        except TimeoutError:
            if not again:
                raise
            folder = folder.with_name(f"{folder.name}-again")
    raise AssertionError


def look(folder: Path, workers: int) -> dict[int, dict[str, Any]]:
    return dict(on_each(lab.look, folder, workers))


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in one.items():
        if value != other[name]:
            inner = isinstance(value, dict) and isinstance(other[name], dict)
            found[name] = dict(set(value.items()) ^ set(other[name].items())) if inner else (value, other[name])
    return found


# isolation ----------------------------------------------------------------------------------------------


def test_a_task_sees_nothing_of_the_one_before(shape: Shape, tmp_path: Path) -> None:
    look(tmp_path / "imports", shape.workers)
    clean = look(tmp_path / "clean", shape.workers)
    assert set(on_each(lab.spoil, tmp_path / "spoil", shape.workers)) == set(clean)
    after = look(tmp_path / "after", shape.workers)
    assert set(after) == set(clean)  # the processes are the same
    for pid, state in clean.items():
        assert differences(state, after[pid]) == {}


def test_calls_of_one_task_see_what_those_before_did(narrow: LocalCluster, tmp_path: Path) -> None:
    """As at home; and the test above proves something, since all of it changes."""
    with parallel_config("azure", cluster=narrow):
        look(tmp_path / "imports", 1)
        ((_, clean),) = look(tmp_path / "clean", 1).items()
        folder = str(tmp_path)
        _, (_, after), _ = Parallel(batch_size=1)(
            [
                delayed(lab.spoil)(folder, "1", 1),
                delayed(lab.look)(folder, "2", 1),
                delayed(os.getenv)("AZ_BATCH_TASK_ID"),
            ]
        )
    assert set(differences(clean, after)) == set(lab.STATES) - (
        lab.ONE_CORE_SAME if len(clean["affinity"]) == 1 else set()
    )


def test_each_task_seeds_anew(shape: Shape) -> None:
    Parallel()([delayed(lab.streams)()])  # imports
    streams: dict[int, list[list[float]]] = {}
    for function in (lab.seeded, lab.streams, lab.seeded, lab.streams, lab.streams, lab.streams):
        ((pid, found),) = Parallel()([delayed(function)()])
        streams.setdefault(pid, []).append(found)
    assert len(streams) <= shape.workers
    seen = [found for each in streams.values() for found in each]
    # The two that were seeded are the same; nobody else goes on from there, or begins where another did.
    for which in (0, 1):
        assert len({found[which] for found in seen}) == len(seen) - 1


def test_a_task_is_warned_of_what_the_one_before_was(narrow: LocalCluster) -> None:
    with parallel_config("azure", cluster=narrow):
        found = [Parallel()([delayed(lab.warned)()])[0] for _ in range(3)]
    assert len({pid for pid, _ in found}) == 1
    assert [shown for _, shown in found] == [["from one place"]] * 3


def test_output_is_in_the_files_of_its_own_task(shape: Shape) -> None:
    found = {word: Parallel()([delayed(lab.speaks)(word)])[0] for word in ("one", "two", "three")}
    assert len({pid for pid, _ in found.values()}) <= shape.workers  # the processes are the same
    for word, (_, task) in found.items():
        ways = [f"{word} {way}" for way in ("print", "write", "child")]
        assert sorted(lab.task_output(shape.cluster, task, "stdout").splitlines()) == sorted(ways)
        said = [f"{way} to stderr" for way in ways]
        assert sorted(lab.task_output(shape.cluster, task, "stderr").splitlines()) == sorted(said)


def test_output_of_nested_calls_is_in_the_files_of_the_task(wide_cluster: LocalCluster) -> None:
    with parallel_config("azure", cluster=wide_cluster):
        for word in ("one", "two"):
            (task,) = Parallel()([delayed(lab.speaks_below)(word)])
            expected = {f"{word}{i} {way}" for i in range(2) for way in ("print", "write", "child")}
            assert set(lab.task_output(wide_cluster, task, "stdout").splitlines()) == expected


def test_output_of_more_than_a_pipe_holds_is_whole(narrow: LocalCluster) -> None:
    with parallel_config("azure", cluster=narrow):
        for lines in (50_000, 20_000):
            (task,) = Parallel()([delayed(lab.pours)(lines)])
            lab.until(lambda: not lab.Node(narrow).clients, "the task has ended")
            assert lab.task_output(narrow, task, "stdout").splitlines() == [f"{n:09d}" for n in range(lines)]


@pytest.mark.parametrize(
    "change", [lab.leaves_a_thread, lab.is_nice, lab.leaves_a_child, lab.lowers_a_hard_limit], ids=lambda f: f.__name__
)
def test_what_cannot_be_put_back_ends_its_runner(shape: Shape, change: Callable[[], Any], tmp_path: Path) -> None:
    before = set(on_each(lab.pids, tmp_path / "before", shape.workers))
    ((pid, left),) = Parallel()([delayed(change)()])
    assert pid in before
    for each in (*before, *left):
        lab.until(lambda each=each: not lab.living(each), f"process {each} has ended")
    after = set(on_each(lab.pids, tmp_path / "after", shape.workers))
    assert not after & before
    assert set(on_each(lab.pids, tmp_path / "again", shape.workers)) == after


# recycling ----------------------------------------------------------------------------------------------


def test_a_worker_that_ran_its_calls_is_replaced(narrow: LocalCluster) -> None:
    """The bound is that of the job, whatever the supervisor was started with."""
    with lab.beside(narrow, max_calls_per_worker=3) as other, parallel_config("azure", cluster=other):
        pids = [Parallel()([delayed(lab.pid)()])[0] for _ in range(9)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 3]
    assert pids == sorted(pids, key=pids.index)  # one after the other


def test_two_sessions_on_a_node_share_no_process(narrow: LocalCluster) -> None:
    found: dict[str, list[int]] = {"one": [], "two": []}

    def run(name: str, cluster: Cluster) -> None:
        with parallel_config("azure", cluster=cluster):
            for _ in range(5):
                found[name] += Parallel()(delayed(lab.pid)() for _ in range(3))

    with lab.beside(narrow) as other:
        threads = [threading.Thread(target=run, args=each) for each in (("one", narrow), ("two", other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(lab.PATIENCE)
    assert [len(pids) for pids in found.values()] == [15, 15]
    assert not set(found["one"]) & set(found["two"])


# what warm processes hold --------------------------------------------------------------------------------


def test_warm_processes_hold_nothing_of_batchs_and_no_secret(shape: Shape, tmp_path: Path) -> None:
    """Their folder, files and maps are elsewhere once the task is over; their environment is the node's."""
    on_each(lab.pids, tmp_path / "one", shape.workers)
    node = lab.Node(shape.cluster)
    lab.until(lambda: not node.clients, "the task is over")
    kept = [node.supervisor(), *node.hosts, *node.runners, *node.workers]
    assert len(kept) > shape.workers
    batch = [str(path) for path in shape.cluster.host.folder.glob("nodes/*/batch")]
    for process in kept:
        assert process.cwd() == "/"
        held = [os.readlink(path) for path in Path(f"/proc/{process.pid}/fd").iterdir() if path.is_symlink()]
        held += [each.path for each in process.memory_maps()]
        assert not [path for path in held if path.startswith(tuple(batch))]
        said = Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace")
        names = [variable.partition("=")[0] for variable in said.split("\0")]
        assert not [name for name in names if name.startswith(("AZ_BATCH_JOB", "AZ_BATCH_TASK", "JOBLIB_AZURE_KEY"))]
        assert "sig=" not in said


def test_as_many_workers_as_are_wanted_whatever_the_cores(wide_cluster: LocalCluster) -> None:
    """For calls that wait: a pool of joblib's has as many workers as there are cores, unless it is told."""
    for warm in (True, False):
        with (
            lab.beside(wide_cluster, workers_per_node=4, warm_runners=warm) as other,
            parallel_config("azure", cluster=other),
        ):
            spans = Parallel(batch_size=1)(delayed(lab.times)(0.3) for _ in range(16))
        assert lab.most_at_once(spans) == 4
