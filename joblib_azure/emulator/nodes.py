"""The folders and the environment of a node, laid out as Batch lays them out.

https://learn.microsoft.com/azure/batch/files-and-directories and
https://learn.microsoft.com/azure/batch/batch-compute-node-environment-variables.

On Azure a Linux node's local disk is mounted at ``/mnt`` and Batch's root is ``/mnt/batch/tasks``; other programs have
folders of their own on that disk. Here each node has a folder for the disk (`Node.machine`), with Batch's root
(`Node.root`) as deep in it.
"""

from __future__ import annotations

import functools
import itertools
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import mounts
from .processes import RUN_ID_VARIABLE
from .state import Job, Node, Pool

#: What a task sees of the machine that the emulator runs on; all else of its environment stays outside.
INHERITED = ("PATH", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
DEFAULT_PREPARATION_ID = "jobpreparation"
DEFAULT_RELEASE_ID = "jobrelease"

_addresses = itertools.count(4)  # Azure keeps the first four of a subnet


class CpuAllotment:
    """Hands out CPU ids round robin, so that nodes spread over the machine."""

    def __init__(self) -> None:
        if hasattr(os, "sched_getaffinity"):
            self._cpus = sorted(os.sched_getaffinity(0))
        else:
            self._cpus = list(range(os.cpu_count() or 1))
        self._at = 0

    def take(self, cores: int) -> frozenset[int]:
        """As many CPU ids as cores, capped at what the machine has."""
        count = min(cores, len(self._cpus))
        taken = frozenset(self._cpus[(self._at + i) % len(self._cpus)] for i in range(count))
        self._at = (self._at + count) % len(self._cpus)
        return taken


def continue_after(folders: Iterable[str]) -> None:
    """Have new nodes numbered after these, by their folders' names."""
    global _addresses
    numbers = (int(name.rpartition("-")[2]) for name in folders)
    _addresses = itertools.count(max(max(numbers, default=0) + 1, next(_addresses)))


def new_node(pool: Pool, root: Path, cpus: frozenset[int], *, dedicated: bool) -> Node:
    """A node in the state `creating`; its folders are made when it boots."""
    node_id = f"tvmps_{secrets.token_hex(32)}_{'d' if dedicated else 'p'}"
    number = next(_addresses)
    # the folder's name is short, since sockets below it may hold about a hundred characters of path
    folder = root / f"{pool.id[:16].lower()}-{number}"
    return Node(
        id=node_id,
        state="creating",
        pool=pool,
        dedicated=dedicated,
        machine=folder,
        cpus=cpus,
        ip_address=f"10.0.{number // 256 % 256}.{number % 256}",
    )


def make_folders(node: Node) -> None:
    for name in ("applications", "fsmounts", "shared", "startup/wd", "volatile", "workitems"):
        (node.root / name).mkdir(parents=True, exist_ok=True)
    for path in mounts.paths(node.pool.spec):
        (node.root / "fsmounts" / path).mkdir(parents=True, exist_ok=True)


def wipe(node: Node) -> None:
    """Empty a node's disk, of what others than Batch keep there too."""
    shutil.rmtree(node.machine, ignore_errors=True)


def task_directory(node: Node, job: Job, task_id: str) -> Path:
    return node.root / job.folder / task_id


def preparation_id(job: Job) -> str:
    return str(job.spec["jobPreparationTask"].get("id", DEFAULT_PREPARATION_ID))


def release_id(job: Job) -> str:
    return str(job.spec["jobReleaseTask"].get("id", DEFAULT_RELEASE_ID))


@functools.cache
def _inherited() -> dict[str, str]:
    """What the emulator's own environment gives to processes on nodes; nothing here changes it."""
    found = {name: value for name, value in os.environ.items() if name in INHERITED or name.startswith("LC_")}
    found.setdefault("PATH", os.defpath)
    return found


def environment(
    node: Node,
    directory: Path,
    *,
    account_name: str,
    endpoint: str,
    run_id: str,
    settings: list[dict[str, Any]],
    job: Job | None = None,
    task_id: str | None = None,
) -> dict[str, str]:
    """The whole environment of a process on a node. A start task has neither job nor task id."""
    root = str(node.root)
    found = dict(_inherited())
    found["HOME"] = str(directory / "wd")
    if job is not None:
        found.update(_settings(job.spec.get("commonEnvironmentSettings", [])))
    found.update(_settings(settings))
    found.update(
        {
            "AZ_BATCH_ACCOUNT_NAME": account_name,
            "AZ_BATCH_ACCOUNT_URL": f"{endpoint}/",
            "AZ_BATCH_POOL_ID": node.pool.id,
            "AZ_BATCH_NODE_ID": node.id,
            "AZ_BATCH_NODE_IS_DEDICATED": "true" if node.dedicated else "false",
            "AZ_BATCH_NODE_ROOT_DIR": root,
            "AZ_BATCH_NODE_SHARED_DIR": f"{root}/shared",
            "AZ_BATCH_NODE_STARTUP_DIR": f"{root}/startup",
            "AZ_BATCH_NODE_MOUNTS_DIR": f"{root}/fsmounts",
            "AZ_BATCH_TASK_DIR": str(directory),
            "AZ_BATCH_TASK_WORKING_DIR": found["HOME"],
            RUN_ID_VARIABLE: run_id,
        }
    )
    if job is not None and task_id is not None:
        found["AZ_BATCH_JOB_ID"] = job.id
        found["AZ_BATCH_TASK_ID"] = task_id
        if "jobPreparationTask" in job.spec:
            preparation = task_directory(node, job, preparation_id(job))
            found["AZ_BATCH_JOB_PREP_DIR"] = str(preparation)
            found["AZ_BATCH_JOB_PREP_WORKING_DIR"] = str(preparation / "wd")
    return found


def identity(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables by which a task's processes are known wherever they went."""
    names = ("AZ_BATCH_NODE_ID", "AZ_BATCH_JOB_ID", "AZ_BATCH_TASK_ID")
    return {name: environment[name] for name in names if name in environment}


def _settings(settings: list[dict[str, Any]]) -> dict[str, str]:
    return {item["name"]: item.get("value", "") for item in settings}
