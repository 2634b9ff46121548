"""Which active task goes to which node.

Jobs in the order of their priority, then age; within a job the tasks in the order they were added. A task that fits
nowhere now does not hold up smaller ones behind it. `poke` is called whenever something changed that may let a task
start (a task added, a slot freed, a node up); calls within one turn of the event loop are answered by one pass, so
nothing polls.

What a task costs does not grow with the pool: jobs keep their tasks in heaps, pools their open nodes by free slots.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterable

from .state import Account, Job, Node, Pool, Task


class Scheduler:
    """Assigns tasks to slots; `start` takes them from there."""

    def __init__(self, account: Account, start: Callable[[Task, Node], None]) -> None:
        self._account = account
        self._start = start
        self._loop = asyncio.get_running_loop()
        self._poked = False
        self._tickets = itertools.count(1)

    def enqueue(self, task: Task) -> None:
        """Queue an active task (again); a requeued task keeps its place by age."""
        task.ticket = next(self._tickets)
        heapq.heappush(task.job.queues.setdefault(task.slots, []), (task.sequence, task.ticket, task))
        self.poke()

    def poke(self) -> None:
        if not self._poked:
            self._poked = True
            self._loop.call_soon(self._pass)

    def _pass(self) -> None:
        self._poked = False
        by_pool: dict[str, list[Job]] = {}
        for job in self._account.jobs.values():
            if job.state == "active" and job.queues:
                by_pool.setdefault(job.pool_id.lower(), []).append(job)
        for pool_key, jobs in by_pool.items():
            pool = self._account.pools.get(pool_key)
            if pool is not None and pool.state == "active":
                self._fill(pool, sorted(jobs, key=lambda job: (-job.priority, job.sequence)))

    def _fill(self, pool: Pool, jobs: Iterable[Job]) -> None:
        for job in jobs:
            while pool.open_nodes and not 0 <= job.max_parallel <= job.busy:
                chosen = self._choose(pool, job)
                if chosen is None:
                    break
                task, node = chosen
                heapq.heappop(job.queues[task.slots])
                task.ticket = 0
                self._start(task, node)

    def _choose(self, pool: Pool, job: Job) -> tuple[Task, Node] | None:
        for _, _, task in sorted(self._heads(job)):
            node = _pick(pool, task)
            if node is not None:
                return task, node
        return None

    @staticmethod
    def _heads(job: Job) -> list[tuple[int, int, Task]]:
        """The oldest task of each size; entries of tasks that are no longer queued are dropped on the way."""
        heads = []
        for slots, queue in list(job.queues.items()):
            while queue and queue[0][1] != queue[0][2].ticket:
                heapq.heappop(queue)
            if queue:
                heads.append(queue[0])
            else:
                del job.queues[slots]
        return heads


def _pick(pool: Pool, task: Task) -> Node | None:
    wanted = task.spec.get("affinityInfo", {}).get("affinityId", "")
    node = pool.nodes.get(wanted.removeprefix(_AFFINITY)) if wanted.startswith(_AFFINITY) else None
    if node is not None and node.open_slots >= task.slots and _suits(node, task):
        return node  # a hint only: without room there, any node will do
    groups = pool.open_nodes
    for slots in sorted(groups, reverse=pool.fill_type != "pack"):
        if slots >= task.slots:
            for node in groups[slots]:
                if _suits(node, task):
                    return node
    return None


def _suits(node: Node, task: Task) -> bool:
    preparation = node.preparations.get(task.job)
    barred = preparation is not None and preparation.barred
    return (node.dedicated or task.takes_spot) and not (task.exclusive and node.assigned) and not barred


_AFFINITY = "TVM:"


def affinity_id(node: Node) -> str:
    return f"{_AFFINITY}{node.id}"
