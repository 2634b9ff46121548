"""What the account holds: pools with their nodes, jobs with their tasks, as plain objects.

Everything here is touched by the event loop's thread only, so nothing is locked. Changes of state go through
`Resource.move`, which keeps the previous state and the times as the service does.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import times
from .autoscale import METRICS, Formula, History

if TYPE_CHECKING:
    from .execution import Execution
    from .latency import LateCounts

_sequence = itertools.count(1)


def continue_after(number: int) -> None:
    """Have new resources come after those that were restored."""
    global _sequence
    _sequence = itertools.count(max(number + 1, next(_sequence)))


def new_etag() -> str:
    """Opaque, never repeated, in the looks of the service's own."""
    return f"0x8{time.time_ns() // 100:X}{next(_sequence):X}"


@dataclass(eq=False, kw_only=True)
class Resource:
    """What pools, nodes, jobs and tasks have in common."""

    id: str
    state: str
    created: datetime = field(default_factory=times.now)
    modified: datetime = field(default_factory=times.now)
    etag: str = field(default_factory=new_etag)
    state_since: datetime = field(default_factory=times.now)
    previous_state: str | None = None
    previous_since: datetime | None = None
    #: Orders resources by creation; pages of lists continue by it.
    sequence: int = field(default_factory=lambda: next(_sequence))

    def move(self, state: str) -> None:
        """Enter a state (nothing happens when it is in it already)."""
        if state == self.state:
            return
        self.previous_state, self.previous_since = self.state, self.state_since
        self.state, self.state_since = state, times.now()

    def touch(self) -> None:
        """Note a change of the resource's own data."""
        self.modified, self.etag = times.now(), new_etag()


@dataclass(eq=False)
class Progress:
    """The `executionInfo` of anything that runs: tasks, start tasks, preparation and release tasks."""

    state: str = "running"
    start: datetime | None = None
    end: datetime | None = None
    exit_code: int | None = None
    failure: dict[str, Any] | None = None
    result: str | None = None
    retry_count: int = 0
    last_retry: datetime | None = None
    requeue_count: int = 0
    last_requeue: datetime | None = None

    def begin(self) -> None:
        self.state, self.start = "running", times.now()
        self.end = self.exit_code = self.failure = self.result = None

    def finish(self, exit_code: int | None, failure: dict[str, Any] | None, ended: datetime | None = None) -> None:
        self.state, self.end = "completed", ended or times.now()
        self.exit_code, self.failure = exit_code, failure
        self.result = "failure" if failure else "success"

    def interrupt(self, *, counted: bool = True) -> None:
        """Begin anew: it is queued again, which counts unless it had not come to run."""
        self.start = self.end = self.exit_code = self.failure = self.result = None
        if counted:
            self.requeue_count += 1
            self.last_requeue = times.now()


@dataclass(eq=False)
class Preparation:
    """A job on a node: its preparation task there, and its release task."""

    job: Job
    node: Node
    progress: Progress = field(default_factory=Progress)
    release: Progress | None = None
    #: Set when the preparation task has ended (or has been given up).
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    running: Execution | None = None
    #: The node takes no tasks of the job (until it is reimaged).
    barred: bool = False
    #: It was ended with its node or its job.
    interrupted: bool = False


@dataclass(eq=False, kw_only=True)
class AutoscaleState:
    """Autoscale of a pool."""

    formula: Formula
    interval: timedelta
    #: The `autoScaleRun` of the last evaluation.
    run: dict[str, Any] | None = None
    schedule: asyncio.TimerHandle | None = None


@dataclass(eq=False, kw_only=True)
class Pool(Resource):
    spec: dict[str, Any]
    cores: int
    slots: int
    target_dedicated: int
    target_spot: int
    resize_timeout: timedelta = timedelta(minutes=15)
    allocation_state: str = "steady"
    allocation_since: datetime = field(default_factory=times.now)
    resize_errors: list[dict[str, Any]] = field(default_factory=list)
    nodes: dict[str, Node] = field(default_factory=dict)
    #: Those that would take a task now, by the slots that they have free: kept by the nodes (`Node.note`), so that no
    #: task costs a look at all of them.
    open_nodes: dict[int, dict[Node, None]] = field(default_factory=dict)
    #: The coroutine that brings the number of nodes to the target.
    resizing: asyncio.Task[None] | None = None
    stop_resize: bool = False
    #: Set while a resize is under way, to have it look at the targets again.
    retargeted: asyncio.Event | None = None
    #: What becomes of the tasks of nodes that leave.
    deallocation: str = "requeue"
    #: The formula and what came of it; None: targets are set by hand.
    autoscale: AutoscaleState | None = None
    #: When autoscale was last enabled by a request, on the event loop's clock.
    autoscale_enabled: float | None = None
    #: The samples of the pool's variables.
    histories: dict[str, History] = field(default_factory=lambda: {name: History() for name in METRICS})

    def allocate(self, state: str) -> None:
        if state != self.allocation_state:
            self.allocation_state, self.allocation_since = state, times.now()

    @property
    def fill_type(self) -> str:
        return str(self.spec.get("taskSchedulingPolicy", {}).get("nodeFillType", "spread"))

    def live_nodes(self) -> Iterable[Node]:
        return (node for node in self.nodes.values() if node.state != "leavingpool")


@dataclass(eq=False, kw_only=True)
class Node(Resource):
    pool: Pool
    dedicated: bool
    #: The node's local disk.
    machine: Path
    #: The CPU ids that processes of the node may use.
    cpus: frozenset[int]
    ip_address: str
    boot_time: datetime = field(default_factory=times.now)
    scheduling_enabled: bool = True
    start_task: Progress | None = None
    slots_used: int = 0
    #: The tasks that hold slots of the node.
    assigned: dict[Task, None] = field(default_factory=dict)
    total_run: int = 0
    total_succeeded: int = 0
    recent: deque[Task] = field(default_factory=lambda: deque(maxlen=10))
    preparations: dict[Job, Preparation] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    #: The coroutine that boots the node, and the start task that it runs.
    booting: asyncio.Task[None] | None = None
    running_start_task: Execution | None = None
    #: The coroutine that takes away what a preempted node had.
    losing: asyncio.Task[None] | None = None
    #: The task that has the node for itself.
    exclusive: Task | None = None
    #: Under how many slots the pool has it among its open nodes; 0: it is not there.
    open_slots: int = 0

    @functools.cached_property
    def root(self) -> Path:
        """Batch's own folder on the disk; what a program keeps beside it is the program's own."""
        return self.machine / "batch" / "tasks"

    @property
    def free_slots(self) -> int:
        return self.pool.slots - self.slots_used

    @property
    def accepts_tasks(self) -> bool:
        return self.scheduling_enabled and self.exclusive is None and self.state in ("idle", "running")

    def move(self, state: str) -> None:
        super().move(state)
        self.note()

    def take(self, task: Task) -> None:
        """Give a task its slots."""
        self.slots_used += task.slots
        self.assigned[task] = None
        if task.exclusive:
            self.exclusive = task
        self.note()

    def give_back(self, task: Task) -> None:
        """Free the slots of a task."""
        self.slots_used -= task.slots
        self.assigned.pop(task, None)
        if self.exclusive is task:
            self.exclusive = None
        self.note()

    def note(self) -> None:
        """Tell the pool what is free here, where that has changed."""
        slots = max(0, self.free_slots) if self.accepts_tasks else 0
        if slots == self.open_slots:
            return
        groups = self.pool.open_nodes
        if self.open_slots:
            del groups[self.open_slots][self]
            if not groups[self.open_slots]:
                del groups[self.open_slots]
        if slots:
            groups.setdefault(slots, {})[self] = None
        self.open_slots = slots


@dataclass(eq=False, kw_only=True)
class Job(Resource):
    spec: dict[str, Any]
    #: The schedule that made it.
    schedule: Schedule | None = None
    #: The pool that was made for it.
    auto_pool: str = ""
    scheduling_error: dict[str, Any] | None = None
    tasks: dict[str, Task] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    terminate_reason: str | None = None
    #: The reason, while it is on its way there.
    ending_for: str = ""
    #: Active tasks by the slots they need: heaps of (sequence, ticket, task), cleaned lazily.
    queues: dict[int, list[tuple[int, int, Task]]] = field(default_factory=dict)
    #: Tasks whose dependencies are not met.
    blocked: dict[Task, None] = field(default_factory=dict)
    preparations: dict[str, Preparation] = field(default_factory=dict)
    #: Tasks that hold slots (on their way to a node, preparing or running).
    busy: int = 0
    deadline: asyncio.TimerHandle | None = None
    ending: asyncio.Task[None] | None = None
    #: Counts by state, kept up to date so that taskcounts costs nothing: (tasks, slots).
    counts: dict[str, list[int]] = field(
        default_factory=lambda: {
            name: [0, 0] for name in ("active", "preparing", "running", "completed", "succeeded", "failed")
        }
    )

    #: Those that clients see, where they are late.
    late_counts: LateCounts | None = None

    @property
    def pool_id(self) -> str:
        return self.auto_pool or str(self.spec["poolInfo"].get("poolId", ""))

    @property
    def keeps_pool(self) -> bool:
        """Whether the pool that was made for it outlives it."""
        given = self.spec["poolInfo"].get("autoPoolSpecification", {})
        return bool(given.get("keepAlive")) or self.shares_pool

    @property
    def shares_pool(self) -> bool:
        """Whether the pool that was made for it serves the other jobs of its schedule too."""
        given = self.spec["poolInfo"].get("autoPoolSpecification", {})
        return self.schedule is not None and given.get("poolLifetimeOption") == "jobschedule"

    @property
    def priority(self) -> int:
        return int(self.spec.get("priority", 0))

    @property
    def folder(self) -> str:
        """Where its tasks' folders lie below a node's root; the jobs of a schedule (``id:job-2``) share one."""
        name, _, number = self.id.partition(":")
        return f"workitems/{name}/{number or 'job-1'}"

    @property
    def max_parallel(self) -> int:
        return int(self.spec.get("maxParallelTasks", -1))

    def count(self, task: Task, sign: int) -> None:
        """Take a task into the counts (+1), or out of them (-1)."""
        names = [task.state]
        if task.state == "completed":
            names.append("succeeded" if task.progress.result == "success" else "failed")
        for name in names:
            self.counts[name][0] += sign
            self.counts[name][1] += sign * task.slots
            if self.late_counts is not None:
                self.late_counts.add(name, sign, sign * task.slots)

    def shown_counts(self) -> dict[str, list[int]]:
        """Return the counts as clients see them."""
        if self.late_counts is None:
            return self.counts
        late = self.late_counts.shown()
        return {name: late.get(name, [0, 0]) for name in self.counts}


@dataclass(eq=False, kw_only=True)
class Task(Resource):
    job: Job
    spec: dict[str, Any]
    slots: int = 1
    progress: Progress = field(default_factory=Progress)
    #: Where it is, from its arrival there on.
    node: Node | None = None
    #: The folder of the task on its node.
    directory: Path | None = None
    execution: Execution | None = None
    #: The coroutine that takes the task through its run on a node.
    driver: asyncio.Task[None] | None = None
    #: Which entry of the job's queue is this task's (0: none).
    ticket: int = 0
    deleted: bool = False
    #: The job manager task, made with its job.
    manager: bool = False

    @property
    def exclusive(self) -> bool:
        """Whether nothing else may run on its node; job managers only, and by default."""
        return self.manager and bool(self.spec.get("runExclusive", True))

    @property
    def takes_spot(self) -> bool:
        return not self.manager or bool(self.spec.get("allowLowPriorityNode", True))

    def move(self, state: str) -> None:
        self.job.count(self, -1)
        super().move(state)
        self.job.count(self, +1)


@dataclass(eq=False, kw_only=True)
class Schedule(Resource):
    """A job schedule."""

    spec: dict[str, Any]
    #: When its next job is due; None: there is none to come.
    due: datetime | None = None
    jobs_made: int = 0
    #: Those that it made and that were not deleted.
    jobs: list[Job] = field(default_factory=list)
    end: datetime | None = None
    #: The pool that was made for its jobs.
    auto_pool: str = ""
    timer: asyncio.TimerHandle | None = None
    ending: asyncio.Task[None] | None = None

    @property
    def recent_job(self) -> str:
        """The id of the last job that it made; empty before the first."""
        return f"{self.id}:job-{self.jobs_made}" if self.jobs_made else ""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The time that a node belonged to a pool."""

    pool_id: str
    vm_size: str
    cores: int
    start: datetime
    end: datetime


@dataclass
class Account:
    """All of it. Ids are compared without case (and kept as given)."""

    name: str
    pools: dict[str, Pool] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    schedules: dict[str, Schedule] = field(default_factory=dict)
    #: The nodes that have left their pools.
    usage: list[Usage] = field(default_factory=list)
