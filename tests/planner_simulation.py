"""A pool on a virtual clock, to try the planner before it meets a service.

It models what the planner cannot see. The service hands waiting tasks in order to whatever node has the slots;
a task holds them for its overhead and its work; the chunks of a bundle run on `width` workers and their
outcomes are streamed back; nodes come up late, tasks die; the backend dispatches what `wanted` allows.
``python tests/planner_simulation.py`` prints the figures of all scenarios.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice

from joblib_azure.capacity import Bundle, Capacity, Cost
from joblib_azure.planner import Planner

STREAM = 0.05  # seconds from the end of a chunk until its outcome is seen
Arrivals = Callable[["Simulation", "Workload"], None]


@dataclass(kw_only=True)
class Workload:
    """One Parallel call: the durations of its calls, how they arrive, and what became of them."""

    name: str
    durations: Sequence[float]
    arrivals: Arrivals
    n_jobs: int | None = None
    remembered: Cost | None = None
    batch_size: int | None = None
    # what happened
    calls: Iterator[float] = field(init=False)
    chunks: dict[int, list[float]] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)
    first_add: float | None = None
    first_submit: float | None = None
    first_result: float | None = None
    end: float = 0.0
    tasks: int = 0
    done: int = 0
    widest: int = 0
    exhausted: bool = False

    def __post_init__(self) -> None:
        self.calls = iter(self.durations)


@dataclass
class Node:
    up: float
    free: int


class Simulation:
    """Runs workloads over a planner until all have ended."""

    def __init__(
        self,
        capacity: Capacity,
        workloads: Sequence[Workload],
        *,
        cost: float | Callable[[random.Random], float] = 1.0,
        node_up: Sequence[float] = (),
        seed: int = 0,
        deaths: float = 0.0,
    ) -> None:
        self.capacity, self.cost, self.deaths = capacity, cost, deaths
        self.random = random.Random(seed)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.sequence = count()
        ups = [*node_up, *[0.0] * (capacity.nodes - len(node_up))]
        self.nodes = [Node(up, capacity.slots_per_node) for up in ups]
        self.waiting: deque[Bundle] = deque()
        self.planner = Planner(capacity)
        self.workloads = {work.name: work for work in workloads}
        self.bundles: list[tuple[float, Bundle]] = []
        self.spent = 0.0  # seconds of workers with work
        self.ends: list[float] = []
        self.most_under_way = 0
        self.timer: float | None = None
        for node in self.nodes:
            if node.up:
                self.at(node.up, self.assign)
        for work in workloads:
            n_jobs = work.n_jobs or capacity.workers
            self.planner.open_call(work.name, n_jobs=n_jobs, cost=work.remembered)
            self.at(0.0, lambda work=work: work.arrivals(self, work))

    def at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.sequence), event))

    def run(self) -> Simulation:
        while self.events:
            if self.now > 1e6:
                raise RuntimeError("the simulation does not end")
            self.now, _, event = heapq.heappop(self.events)
            event()
            if not self.events or self.events[0][0] > self.now:
                self.decide()
        return self

    # The client

    def dispatch(self, work: Workload, size: int) -> bool:
        """Add one chunk; False when the calls have ended."""
        durations = list(islice(work.calls, size))
        if durations:
            number = next(work.numbers)
            work.chunks[number] = durations
            work.first_add = self.now if work.first_add is None else work.first_add
            self.planner.add(work.name, number, len(durations), self.now)
        if len(durations) < size and not work.exhausted:
            work.exhausted = True
            self.planner.exhaust(work.name)
        return len(durations) == size

    def decide(self) -> None:
        for bundle in self.planner.plan(self.now):
            work = self.workloads[bundle.call]
            work.tasks += 1
            work.first_submit = self.now if work.first_submit is None else work.first_submit
            self.bundles.append((self.now, bundle))
            self.waiting.append(bundle)
            width = sum(b.width for b in self.planner.bundles if b.call == bundle.call)
            work.widest = max(work.widest, width)
        self.most_under_way = max(self.most_under_way, self.planner.under_way)
        self.assign()
        flush = self.planner.next_flush(self.now)
        if flush is not None and flush != self.timer:
            if flush <= self.now:
                raise RuntimeError("plan() left something undone that it calls due")
            self.timer = flush
            self.at(flush, lambda: None)

    # The service and the nodes

    def assign(self) -> None:
        while self.waiting:
            need = self.waiting[0].slots
            fitting = [node for node in self.nodes if node.up <= self.now and node.free >= need]
            if not fitting:
                return
            node = max(fitting, key=lambda node: node.free)
            node.free -= need
            self.start(self.waiting.popleft(), node)

    def start(self, bundle: Bundle, node: Node) -> None:
        work = self.workloads[bundle.call]
        cost = self.cost(self.random) if callable(self.cost) else self.cost
        workers = [self.now + 0.7 * cost] * bundle.width  # scheduling, fetching the inputs; the rest is the way back
        dead = self.random.random() < self.deaths
        lost: list[int] = []
        for chunk in bundle.chunks:
            if dead and chunk >= bundle.chunks[len(bundle.chunks) // 2]:
                lost.append(chunk)
                continue
            durations = work.chunks[chunk]
            begin = heapq.heappop(workers)
            end = begin + sum(durations)
            heapq.heappush(workers, end)
            self.spent += sum(durations)
            self.at(end + STREAM, lambda calls=len(durations), s=sum(durations): self.outcome(work, calls, s))
        self.at(max(workers) + 0.3 * cost, lambda: self.ended(bundle, node, cost, lost))

    def outcome(self, work: Workload, calls: int, seconds: float) -> None:
        work.done += calls
        work.first_result = self.now if work.first_result is None else work.first_result
        self.planner.observe(work.name, calls, seconds)
        if work.arrivals is backend:
            backend(self, work)

    def ended(self, bundle: Bundle, node: Node, cost: float, lost: list[int]) -> None:
        node.free += bundle.slots
        self.workloads[bundle.call].end = self.now
        self.ends.append(self.now)
        if lost:
            self.planner.requeue(bundle.id, lost, alone=lost[: bundle.width])
        else:
            self.planner.finish(bundle.id, cost=cost)

    # What came of it

    @property
    def makespan(self) -> float:
        return max(work.end for work in self.workloads.values())

    @property
    def tasks(self) -> int:
        return len(self.bundles)

    @property
    def utilisation(self) -> float:
        """Seconds with work ÷ seconds of all workers."""
        return self.spent / (self.makespan * self.capacity.parallel)

    def bound(self) -> float:
        """No schedule is faster: all workers busy after one task's cost, or the longest call alone."""
        cost = 1.0 if callable(self.cost) else self.cost
        works = self.workloads.values()
        total = sum(sum(work.durations) for work in works)
        workers = min(self.capacity.parallel, sum(work.n_jobs or self.capacity.workers for work in works))
        return cost + max(total / workers, max(max(work.durations) for work in works))


# Arrivals


def at_once(simulation: Simulation, work: Workload) -> None:
    """All calls in one burst, the end known."""
    while simulation.dispatch(work, work.batch_size or 1):
        pass


def backend(simulation: Simulation, work: Workload) -> None:
    """As the backend does: as much as the planner wants, in chunks of the size that it names."""
    while not work.exhausted and (wanted := simulation.planner.wanted(work.name)) > 0:
        size = work.batch_size or simulation.planner.chunk_size(work.name)
        if not simulation.dispatch(work, size if work.batch_size else min(size, wanted)):
            return


def every(seconds: float, burst: int = 1) -> Arrivals:
    """`burst` calls each `seconds`."""

    def arrive(simulation: Simulation, work: Workload) -> None:
        for _ in range(burst):
            if not simulation.dispatch(work, 1):
                return
        simulation.at(simulation.now + seconds, lambda: arrive(simulation, work))

    return arrive


# Scenarios


def slots(number: int) -> Capacity:
    """So many slots of one worker, one a node."""
    return Capacity(nodes=number, workers_per_node=1, slots_per_node=1)


def lognormal(number: int, mean: float, sigma: float, seed: int = 1) -> list[float]:
    source = random.Random(seed)
    return [mean * source.lognormvariate(-sigma * sigma / 2, sigma) for _ in range(number)]


def uneven(mean: float) -> Callable[[random.Random], float]:
    """Costs of tasks around a mean, one in twenty five times as dear."""
    return lambda source: mean * source.uniform(0.6, 1.4) * (5 if source.random() < 0.05 else 1)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One workload on one pool, and what must hold: makespan ÷ lower bound, and the number of tasks."""

    capacity: Capacity
    durations: Sequence[float]
    factor: float
    tasks: int
    arrivals: Arrivals = backend
    cost: float | Callable[[random.Random], float] = 1.0
    n_jobs: int | None = None
    remembered: Cost | None = None
    batch_size: int | None = None
    node_up: Sequence[float] = ()
    deaths: float = 0.0

    def run(self) -> Simulation:
        work = Workload(
            name="call",
            durations=self.durations,
            arrivals=self.arrivals,
            n_jobs=self.n_jobs,
            remembered=self.remembered,
            batch_size=self.batch_size,
        )
        return Simulation(self.capacity, [work], cost=self.cost, node_up=self.node_up, deaths=self.deaths).run()


WIDE = Capacity(nodes=4, workers_per_node=8, slots_per_node=1)
HALVES = Capacity(nodes=4, workers_per_node=8, slots_per_node=4)
LATE = (0, 0, 300, 300, 300, 300, 600, 600)
#: As a grid search has them: neighbours alike.
QUARTERS = [0.5 + 1.5 * (number // 150) for number in range(600)]
SKEWED = lognormal(1000, 2, 1.0)


def case(capacity: Capacity, durations: Sequence[float], factor: float, tasks: int, **more: object) -> Scenario:
    return Scenario(capacity=capacity, durations=durations, factor=factor, tasks=tasks, **more)  # type: ignore[arg-type]


SCENARIOS: dict[str, Scenario] = {
    "4 x 1 s, 4 slots": case(slots(4), [1.0] * 4, 1.01, 4),
    "2,000 x 1 ms, 2 slots": case(slots(2), [0.001] * 2000, 1.6, 6),
    "2,000 x 1 ms, 4 slots": case(slots(4), [0.001] * 2000, 1.8, 12),
    "2,000 x 1 ms, 4 slots, at once": case(slots(4), [0.001] * 2000, 1.8, 12, arrivals=at_once),
    "2,000 x 1 ms, 4 slots, remembered": case(slots(4), [0.001] * 2000, 1.1, 6, remembered=Cost(0.001)),
    "2,000 x 1 ms, 4 slots, cost 0.2 s": case(slots(4), [0.001] * 2000, 1.6, 16, cost=0.2),
    "2,000 x 1 ms, 4 slots, uneven cost": case(slots(4), [0.001] * 2000, 3.5, 20, cost=uneven(1.0)),
    "2,000 x 1 ms, 4 x 8 workers": case(WIDE, [0.001] * 2000, 2.1, 12),
    "400 x 50 ms, 4 slots": case(slots(4), [0.05] * 400, 1.4, 16),
    "400 x 50 ms, 4 slots, at once": case(slots(4), [0.05] * 400, 1.4, 16, arrivals=at_once),
    "400 x 50 ms, 4 slots, batch_size=10": case(slots(4), [0.05] * 400, 1.4, 16, batch_size=10),
    "400 x 50 ms, 4 slots, deaths": case(slots(4), [0.05] * 400, 3.0, 60, deaths=0.3),
    "400 x 50 ms, 4 x 8 workers": case(WIDE, [0.05] * 400, 1.1, 8),
    "20,000 x 0.2 ms, 4 slots": case(slots(4), [0.0002] * 20_000, 2.2, 16),
    "100,000 x 1 ms, 4 slots": case(slots(4), [0.001] * 100_000, 1.5, 60),
    "5,000 x 0.1 s, 16 slots": case(slots(16), [0.1] * 5000, 1.2, 120),
    "16 x 1 s, 2 slots, remembered alike": case(slots(2), [1.0] * 16, 1.01, 2, remembered=Cost(1.0, 0.01)),
    "32 x 1 s lognormal, remembered": case(slots(2), lognormal(32, 1, 1.0), 1.3, 16, remembered=Cost(1.0, 1.3)),
    "16 x 1 s, 2 slots": case(slots(2), [1.0] * 16, 1.01, 2),
    "60 x 0.1 s, 4 slots": case(slots(4), [0.1] * 60, 1.01, 4),
    "1,000 x 60 s, 8 slots": case(slots(8), [60.0] * 1000, 1.03, 1000),
    "1,000 x 60 s, 8 slots, late nodes": case(slots(8), [60.0] * 1000, 1.08, 1000, node_up=LATE),
    "100 x 60 s lognormal, 8 slots": case(slots(8), lognormal(100, 60, 0.7), 1.4, 100),
    "1,000 x 2 s lognormal, 8 slots": case(slots(8), SKEWED, 1.12, 120),
    "60, each quarter dearer, 2 slots": case(slots(2), QUARTERS[::10], 1.12, 12, remembered=Cost(2.75, 1.7)),
    "600, each quarter dearer, 8 slots": case(slots(8), QUARTERS, 1.1, 120, remembered=Cost(2.75, 1.7)),
    "1,000 x 2 s lognormal, uneven cost": case(slots(8), SKEWED, 1.15, 120, cost=uneven(1.0)),
    "500 x 1 s, one of 60 s, 8 slots": case(slots(8), [1.0] * 250 + [60.0] + [1.0] * 249, 1.45, 60),
    "800 increasing to 4 s, 8 slots": case(slots(8), [0.005 * i for i in range(1, 801)], 1.1, 100),
    "64 x 10 s, 4 x 8 workers": case(WIDE, [10.0] * 64, 1.05, 8),
    "2,000 x 0.5 s, 4 nodes x 4 slots x 2": case(HALVES, [0.5] * 2000, 1.2, 100),
    "500 x 0.3 s, n_jobs=3 of 8": case(slots(8), [0.3] * 500, 1.15, 24, n_jobs=3),
    # bound by the arrivals: 20 s and 18 s
    "40 x 0.2 s, one each 0.5 s, 4 slots": case(slots(4), [0.2] * 40, 7.0, 40, arrivals=every(0.5)),
    "10 x 50 x 0.1 s, a burst each 2 s": case(slots(4), [0.1] * 500, 1.7, 50, arrivals=every(2.0, 50)),
}


def main() -> None:
    print(f"{'scenario':42}{'tasks':>6}{'makespan':>10}{'÷ bound':>9}{'busy':>6}{'first':>7}")
    for name, given in SCENARIOS.items():
        done = given.run()
        print(
            f"{name:42}{done.tasks:6}{done.makespan:10.2f}{done.makespan / done.bound():9.2f}"
            f"{done.utilisation:6.0%}{done.workloads['call'].first_result:7.2f}"
        )


if __name__ == "__main__":
    main()
