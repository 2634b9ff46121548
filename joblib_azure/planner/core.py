"""`Planner`: which call is served next, and how large its bundle is.

Bundles are sized for the slots of the pool's upper bound, not for the nodes of the moment; slots beyond the workers
of a node are a queue there, and only take what waits behind:

1. Cost of a call unknown: each free slot gets a bundle, evenly, of at most PROBE calls a worker; while chunks pour in,
   no fewer than POURED. Nothing waits behind, nor as long as the cost of a task is assumed: what waits cannot be made
   longer.
2. Both known: rounds of a bundle a slot, all alike, TARGET × the cost of a task long or a little more; once a
   call is exhausted, a round leaves as much as the slots may end apart, which depends on how alike its calls
   are. Twice the slots may be under way or waiting. What waits behind them while more comes as fast as it is taken is
   as long as the time allows for which the call has run, whatever is queued: TARGET and, after a while, MOST_TARGET.
3. Last round: once the work left is below LAST_ROUND × the cost of a task for each worker, all of it goes.
4. Whole nodes: the last chunks of a call, if no more than nodes, get a node each for their nested loops.
"""

from collections import deque
from collections.abc import Collection, Sequence
from functools import cache
from math import ceil, isfinite, sqrt
from statistics import NormalDist, median_low

from ..capacity import COLLECTION, Bundle, Capacity, Cost
from .calls import POUR, PROBE, CallState, Shape

# Seconds that Batch takes for a task beyond its work (scheduling, start, transfer), until measured; the median of the
# last tasks counts. The range keeps cold nodes (minutes) from making bundles of an hour; and the client, the service
# and storage work for a task too, which its node does not see: 0.13 s of CPU on a local cluster, where they share the
# cores with it.
TASK_COST, TASK_COST_RANGE, TASK_COST_WINDOW = 1.0, (0.2, 10.0), 15
# The next three in units of the cost of a task. How long a bundle lasts at least, where there is enough: an overhead
# below 5 %.
TARGET = 20.5
# Parts of the time for which its call has run that a bundle lasts which waits behind others: up to TARGET, and from
# there on up to MOST_TARGET. Longer ones cost less, but where all ends with them, it ends that much later.
YOUNG, OLD, MOST_TARGET = 1 / 3, 1 / 8, 41.0
# Calls a worker of a slot while they pour in, at least: a large pool's first ones would else get a few of those that
# are there by then, and leave most of their workers idle for as long as a call takes.
POURED = 2
# The part of its calls that a round takes at most where the slots would not end together.
MOST = 0.7
# Work of a worker below which halving a round is not worth it: it saves at most 1.5 of waiting and costs 1.
LAST_ROUND = 3.0
# Work below which the last round has no further bundle, unless a slot is free.
LEAST_SPLIT = 0.1
# Calls so many times as long as a task is assumed to cost need not wait until that is measured.
LONG = 5.0
# Seconds. A chunk is a round trip within the node (1 ms), and the grain of abort, streaming and balance.
CHUNK_SECONDS = 0.1
# Calls under way of one Parallel, by which longer bundles are bounded: a client holds a kilobyte of each.
MOST_OUTSTANDING = 150_000
# Queued calls of one Parallel: bounds what the client holds of an endless generator.
MAX_BACKLOG = 10_000
# What waits in the service is topped up when this part of the slots has been used of it, or as many tasks as one
# request adds: a large pool's tasks then come in hundreds, and no slot waits for that.
REFILL = 4


class Planner:
    """Chunks in, bundles out.

    Not safe for threads: the session holds a lock. Times are seconds of any one monotonic clock.
    Every method raises KeyError for a Parallel call that is not open, unless it says otherwise.

    Parameters
    ----------
    capacity : Capacity
        The pool's upper bound; `plan` may replace it.
    """

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._calls: dict[str, CallState] = {}
        self._bundles: dict[int, tuple[Bundle, CallState]] = {}  # a closed call lives on in its bundles
        self._slots = 0
        self._topping_up = False  # bundles are added to those that wait in the service, until there are enough
        self._last_id = 0
        self._costs: deque[float] = deque(maxlen=TASK_COST_WINDOW)

    # What happens

    def open_call(self, call: str, *, n_jobs: int, cost: Cost | None = None) -> None:
        """Begin a Parallel call.

        Parameters
        ----------
        call : str
            Its id; ValueError if it is open already.
        n_jobs : int
            At least 1. Below the pool's workers, the widths of the bundles under way sum to at most that;
            else the pool itself is the limit, and bundles may wait behind the running ones.
        cost : Cost, optional
            What an earlier Parallel of the same function measured; it holds until this one is measured.
        """
        if call in self._calls:
            raise ValueError(f"call {call!r} is open already")
        if n_jobs < 1:
            raise ValueError(f"n_jobs must be at least 1 (resolve negative values first), got {n_jobs}")
        if cost is not None:
            cost = cost._replace(seconds=max(1e-6, _seconds("cost.seconds", cost.seconds)))
        self._calls[call] = CallState(call, n_jobs, cost)

    def add(self, call: str, chunk: int, calls: int, now: float) -> None:
        """Queue a chunk of `calls` delayed calls; ValueError if it is there or the call is exhausted."""
        self._open(call).add(chunk, calls, now)

    def pour(self, call: str, now: float) -> None:
        """Say that the generator of calls gives many, so that more chunks come in a moment."""
        state = self._open(call)
        state.pouring = max(state.pouring, now + POUR * (1 + min(self.capacity.lanes / 200, 5)))

    def exhaust(self, call: str) -> None:
        """Say that no further chunks will come for this call."""
        state = self._open(call)
        state.exhausted, state.left, state.dealt = True, 0, 0

    def close_call(self, call: str) -> None:
        """Forget the call: its queued chunks are dropped; its bundles under way count until `finish`."""
        self._open(call)
        del self._calls[call]

    def observe(self, call: str, calls: int, seconds: float) -> None:
        """Take in that `calls` calls took `seconds` of one worker; ignored once the call is closed."""
        seconds = _seconds("seconds", seconds)
        state = self._calls.get(call)
        if state is None or calls < 1:
            return
        state.observe(calls, seconds, self.task_cost)

    def finish(self, bundle: int, *, cost: float | None = None) -> None:
        """End a bundle; `cost` is what its task took beyond the work. KeyError if it is not under way."""
        if cost is not None:  # from the clocks of two machines: a little below zero is zero
            cost = min(TASK_COST_RANGE[1], max(TASK_COST_RANGE[0], _seconds("cost", max(cost, 0.0))))
        self._retire(bundle, ())
        if cost is not None:
            self._costs.append(cost)

    def requeue(self, bundle: int, chunks: Sequence[int], *, alone: bool | Collection[int] = False) -> None:
        """End a bundle after a fault of the infrastructure; `chunks` of it go back to the head of the queue.

        Parameters
        ----------
        bundle : int
            Id of a bundle; KeyError if it is not under way.
        chunks : sequence of int
            Those without an outcome; dropped if the call was closed. ValueError if not chunks of the bundle.
        alone : bool or collection of int
            True: each in a bundle of its own, ahead of all others. A collection: those of them (what was
            running when a worker died), while the rest travels together as before.
        """
        state, back = self._retire(bundle, chunks)
        if not back or self._calls.get(state.name) is not state:
            return
        state.put_back(back, set(back) if alone is True else set(alone or ()))

    # What to do

    def plan(self, now: float, *, capacity: Capacity | None = None) -> list[Bundle]:
        """Return the bundles to submit now; they are under way from here on."""
        self.capacity = capacity or self.capacity
        for state in self._calls.values():
            if state.window and state.settled(now):
                state.window, state.ripe = None, True
        bundles = []
        while (choice := self._next(now)) is not None:
            bundles.append(self._take(*choice))
        return bundles

    def next_flush(self, now: float) -> float | None:
        """Return when `plan` has something to do without a further event (maybe `now`), else None."""
        dues = {state.due() for state in self._calls.values()}
        dues |= {state.pouring for state in self._calls.values() if state.pours(now)}
        times = sorted({now, *(due for due in dues if due is not None and due > now)})
        return next((time for time in times if self._next(time) is not None), None)

    def wanted(self, call: str) -> int:
        """Return how many further delayed calls the backend should dispatch now."""
        return self._wanted(self._open(call))

    def _wanted(self, state: CallState) -> int:
        if state.exhausted:
            return 0
        workers = self._workers(state)
        if state.mean is None:  # two probes, and no less than joblib's own pre_dispatch
            goal = max(min(2 * PROBE * workers, MAX_BACKLOG), 2 * state.n_jobs)
            return max(0, goal - state.outstanding)
        # Running, waiting behind, and two rounds to choose from.
        goal = 4 * workers * ceil(max(1.0, TARGET * self.task_cost / state.mean))
        more = min(goal - state.outstanding, MAX_BACKLOG - state.queued)
        return max(0, more, 2 * workers - state.outstanding)

    def chunk_size(self, call: str, *, drip: bool = False) -> int:
        """Return how many calls the next chunk should have: joblib's ``compute_batch_size``.

        With `drip` a chunk comes only when another has ended, so that it is all that its bundle will have:
        it doubles until it is as long as a bundle should be.
        """
        state = self._open(call)
        if drip:
            _, done, spent, _ = state.observations
            mean = max(1e-6, spent / done) if done else state.mean
            return 1 if mean is None else max(1, min(round(TARGET * self.task_cost / mean), 2 * state.largest))
        if state.mean is None:
            return 1
        tail = state.outstanding // (2 * self._workers(state))  # grows e-fold within as many chunks
        return max(1, min(round(CHUNK_SECONDS / state.mean), tail))

    # What is known

    def cost(self, call: str) -> Cost | None:
        """Return what recent calls took, the remembered cost until they are measured, or None."""
        return self._open(call).cost

    @property
    def task_cost(self) -> float:
        """Seconds that a task costs beyond its work."""
        return median_low(self._costs) if self._costs else TASK_COST

    @property
    def task_measured(self) -> bool:
        """Whether a task's cost is measured, and not assumed."""
        return bool(self._costs)

    @property
    def under_way(self) -> int:
        """Slots of all bundles under way, running or waiting in the service."""
        return self._slots

    @property
    def bundles(self) -> tuple[Bundle, ...]:
        """The bundles under way."""
        return tuple(bundle for bundle, _ in self._bundles.values())

    def pours(self, now: float) -> bool:
        """Whether chunks come so fast that there are more in a moment."""
        return any(state.pours(now) for state in self._calls.values())

    @property
    def queued(self) -> int:
        """Delayed calls that wait for a bundle, of all Parallel calls."""
        return sum(state.queued for state in self._calls.values())

    # How it decides

    def _open(self, call: str) -> CallState:
        try:
            return self._calls[call]
        except KeyError:
            raise KeyError(f"call {call!r} is not open (never opened, or closed already)") from None

    def _workers(self, state: CallState) -> int:
        return min(state.n_jobs, self.capacity.parallel)

    def _room(self, state: CallState) -> int | None:
        """Return what n_jobs still allows, or None if the pool is the limit."""
        return max(0, state.n_jobs - state.width) if state.n_jobs < self.capacity.parallel else None

    def _next(self, now: float) -> tuple[CallState, Shape] | None:
        """Choose who is served next, the call with the fewest slots under way first, and how."""
        waiting = (state for state in self._calls.values() if state.waiting and self._room(state) != 0)
        ready = [state for state in waiting if state.ripe or state.settled(now)]
        for state in sorted(ready, key=lambda state: (state.slots, state.served)):
            shape = self._shape(state, now, ready=len(ready))
            if shape is not None:
                return state, shape
        return None

    def _shape(self, state: CallState, now: float, *, ready: int) -> Shape | None:
        """Shape the next bundle of a call, or None if it has to wait for a slot."""
        if ready == 1 and self._whole_nodes(state):
            return Shape(slots=self.capacity.slots_per_node)
        free, limit = self.capacity.lanes - self._slots, self.capacity.most_under_way
        if self._slots >= limit:
            self._topping_up = False
            return None
        # A call that came late gets its part of the slots even if others have filled them.
        active = sum(1 for other in self._calls.values() if other.waiting or other.slots)
        owed = max(1, self.capacity.lanes // active) - state.slots if active > 1 else 0
        parts = ceil(free / ready) if free > 0 else max(1, owed)
        waits = free <= 0 and owed <= 0
        pours = state.pours(now)
        # Where more comes as fast as it is taken, what is queued says nothing of the work that is left.
        plenty = waits and not state.exhausted and (pours or not self._wanted(state))
        length = self._longest(state, now) if plenty else None
        shape = Shape() if state.alone else self._sized(state, parts, length, pours=pours, waits=waits)
        # The rest of it is there in a moment, or comes with the outcomes of what runs while it would only wait.
        least = shape.calls if pours else min(shape.calls, MAX_BACKLOG // 2) if plenty else 0
        if state.queued < least and not state.alone:
            return None
        if not waits:
            return shape
        # What waits in the service is topped up by many at once, which takes one request then.
        refill = min(COLLECTION, self.capacity.lanes // REFILL)
        self._topping_up = self._topping_up or self._slots <= limit - refill
        if not self._topping_up:
            return None
        # No slot is free: wait in the service only if that is known to pay, and leave the others their part.
        known = self._costs or (state.mean is not None and state.mean >= LONG * TASK_COST)
        if state.mean is None or not known or not state.settled(now) or state.slots >= max(1, limit // ready):
            return None
        head = state.size[(state.alone or state.queue)[0]]
        seconds = state.mean * max(head, min(shape.calls, state.queued) / shape.width)
        return shape if state.exhausted or state.alone or seconds >= self.task_cost else None

    def _longest(self, state: CallState, now: float) -> float:
        """Return how many seconds a bundle may last that waits behind others."""
        age = now - state.begun
        return max(min(TARGET * self.task_cost, YOUNG * age), min(MOST_TARGET * self._bundle_cost(state), OLD * age))

    def _bundle_cost(self, state: CallState) -> float:
        """Return the seconds that a bundle costs beyond its work, those included that its workers wait for the last."""
        width = min(self.capacity.workers_per_slot, self._workers(state))
        if width == 1 or state.mean is None or not isfinite(state.deviation):
            return self.task_cost
        return max(self.task_cost, TASK_COST + min(state.mean, state.deviation * _latest(width)))

    def _ragged(self, state: CallState) -> bool:
        """Whether the bundles under way leave the slots so far apart that evening it out is worth a task."""
        calls = [bundle.calls / bundle.width for bundle, owner in self._bundles.values() if owner is state]
        apart = max(calls) - (min(calls) if len(calls) % self.capacity.lanes == 0 else 0) if calls else 0
        return state.mean is not None and apart * state.mean > LAST_ROUND * self.task_cost

    def _sized(self, state: CallState, parts: int, length: float | None, *, pours: bool, waits: bool) -> Shape:
        """Shape a one-slot bundle of a call that has `parts` slots to fill, or of so many seconds."""
        count, width, room = len(state.queue), self.capacity.workers_per_slot, self._room(state)
        lanes, share = min(self.capacity.lanes, state.n_jobs), 0.0
        parts = min(parts, count)
        if room is not None:  # spread what n_jobs allows over the slots
            parts = min(parts, room)
            width = min(width, ceil(room / max(1, min(parts, lanes - state.slots))))
            share = width / room
        left, aim = state.left, state.aim
        if state.mean is None:
            calls = min(PROBE * width, ceil(state.queued * max(1 / parts, share)))
            # No more than the others have where those that came first got few.
            calls = min(calls, max(width, ceil(state.outstanding * max(1 / lanes, share))))
            if calls > width and not state.exhausted:
                calls -= calls % width  # whole rounds of its workers, as below
        elif length is not None:
            rounds = min(ceil(max(1.0, length / state.mean)), max(1, MOST_OUTSTANDING // (2 * lanes * width)))
            calls = aim = rounds * width
            left = max(1, min(lanes, state.queued // aim))
        else:
            if not left:  # a new round: a bundle for each slot, all alike, so that they end together
                work, cost = state.queued * state.mean, self._bundle_cost(state)
                left = min(count, lanes)
                if work <= LAST_ROUND * cost * self._workers(state):
                    left, aim = min(left, max(parts, ceil(work / (LEAST_SPLIT * cost)))), 0
                else:
                    lane = state.queued / lanes
                    # As few rounds as keep the cost of a task below its part of the work.
                    rounds = max(1, int(lane * state.mean / (width * TARGET * cost)))
                    aim = ceil(max(lane / rounds, float(width)))
                    # How far apart equal bundles of all that is left would end: two standard deviations.
                    apart = 2 * state.deviation * sqrt(state.queued / self._workers(state))
                    # How long a slot would wait for the last of them, which is what a further round saves.
                    last = apart / 2 * _latest(lanes) if lanes > 1 else 0.0
                    if not state.exhausted:
                        aim = min(aim, ceil(max(1.0, TARGET * cost / state.mean) * width))
                    elif waits and self._ragged(state):
                        # The slots end far apart whatever their calls do, and smaller bundles even that out.
                        aim = min(aim, ceil(max(lane / 2, LAST_ROUND * cost / state.mean * width)))
                    elif last > cost:
                        # That much is left to even it out, and some since calls may become longer.
                        aim = min(aim, ceil(min(MOST * lane, max(lane / 2, lane - apart / state.mean * width))))
                    # Whole rounds of its workers: the last call of an odd one keeps one of them only.
                    aim = ceil(aim / width) * width
            calls = aim or ceil(state.queued / left)
        if pours:
            calls = max(calls, POURED * width)
            parts = max(1, min(parts, state.queued // calls))  # the others get what comes
        # Long calls or big chunks: still one for every worker of the free slots, as far as they go round.
        least = min(width, ceil(count / parts))
        return Shape(1, width, calls, least, count - (parts - 1), left=left, aim=aim, hands=left or parts)

    def _whole_nodes(self, state: CallState) -> bool:
        """Whether each chunk that the call still has can have a node to itself."""
        nodes = self.capacity.nodes
        if self.capacity.slots_per_node == 1 or not state.exhausted or state.alone or len(state.size) > nodes:
            return False
        # Which node a bundle is on is the service's secret: each one may hold a node of its own.
        return nodes - len(self._bundles) >= len(state.queue)

    def _take(self, state: CallState, shape: Shape) -> Bundle:
        self._last_id += 1
        bundle = state.take(shape, self._last_id)
        self._bundles[bundle.id] = bundle, state
        self._slots += bundle.slots
        return bundle

    def _retire(self, number: int, lost: Sequence[int]) -> tuple[CallState, dict[int, int]]:
        """End a bundle; return its call and the calls of its lost chunks, in order."""
        if number not in self._bundles:
            raise KeyError(f"bundle {number} is not under way (finished or requeued already)")
        bundle, state = self._bundles[number]
        missing = set(lost)
        if len(missing) != len(lost) or not missing <= set(bundle.chunks):
            raise ValueError(f"chunks to requeue must be distinct ones of {bundle.chunks}, got {tuple(lost)}")
        del self._bundles[number]
        self._slots -= bundle.slots
        return state, state.retire(bundle, missing)


@cache
def _latest(number: int) -> float:
    """Return about how many standard deviations the last of so many ends behind their mean, for a normal distribution.

    Blom, Statistical Estimates and Transformed Beta-Variables (1958), with the simplest of his constants.
    """
    return NormalDist().inv_cdf(number / (number + 1))


def _seconds(name: str, value: float) -> float:
    if not (isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of seconds, at least 0, got {value}")
    return value
