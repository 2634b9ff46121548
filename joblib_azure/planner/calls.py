"""One Parallel call as the planner sees it: its ready queue, its bundles under way, and what its calls take."""

from bisect import bisect_right
from collections import deque
from collections.abc import Collection
from itertools import accumulate, chain
from math import inf, sqrt
from typing import NamedTuple

from ..capacity import Bundle, Cost

# Seconds. joblib dispatches a burst within a few milliseconds, and 10 more are not felt in a task of a
# second; a generator that never pauses must not keep the slots idle either.
FLUSH_AFTER_LAST, FLUSH_AFTER_FIRST = 0.010, 0.100
# Seconds for which more chunks are taken to be coming where the generator was seen to give many, up to six times that
# for a large pool: those who dispatch, encode and send them share one interpreter, and none of them is always at it.
POUR = 0.1
# Calls a worker while their cost is unknown: few enough for a minute each, enough to measure 1 ms each.
PROBE = 16
# Chunks from which on the deviation of their calls is believed.
CALM = 4
# Observations after which older ones count half, so that the mean follows durations that drift.
MEMORY = 64


class Shape(NamedTuple):
    """The next bundle of a call, before its chunks are taken."""

    slots: int = 1
    width: int = 1
    calls: int = 1  # aim for as many calls …
    least: int = 1  # … in at least and at most so many chunks
    most: int = 1
    left: int = 0  # bundles that its round still has, with this one …
    aim: int = 0  # … and calls in each; 0: all that are queued, evenly
    hands: int = 1  # bundles that the head of the queue is dealt out among, with this one


class CallState:
    """State of one Parallel call."""

    def __init__(self, name: str, n_jobs: int, cost: Cost | None) -> None:
        self.name, self.n_jobs = name, n_jobs
        self.mean: float | None = cost.seconds if cost else None
        self.deviation = cost.deviation if cost else inf
        self.measured = False  # `mean` is not just remembered
        # Number of chunks, calls, seconds, and the sum of seconds² ÷ calls.
        self.observations = 0.0, 0.0, 0.0, 0.0
        self.size: dict[int, int] = {}  # calls of every chunk that is queued or under way
        self.queue: deque[int] = deque()
        self.alone: deque[int] = deque()  # suspects of a death: ahead of the queue, a bundle each
        self.queued = 0  # calls in both
        self.largest = 0  # calls of the largest chunk so far
        self.exhausted = False
        self.slots = self.width = self.calls = 0  # of the bundles under way
        self.streamed = 0  # calls measured in them so far
        self.window: tuple[float, float] | None = None  # first and last add since the last flush
        self.begun, self.pouring = inf, -inf  # first add of all, and until when more are taken to be coming
        self.ripe = False  # something queued was flushed already and waits for a slot only
        self.left = self.aim = 0  # as in Shape, for the next bundle
        self.dealt = 0  # bundles for which the head of the queue was dealt out
        self.served = 0  # its latest bundle: ties go to whoever waits longest

    # the ready queue

    @property
    def waiting(self) -> bool:
        return bool(self.queue or self.alone)

    @property
    def outstanding(self) -> int:
        return self.queued + max(0, self.calls - self.streamed)

    def add(self, chunk: int, calls: int, now: float) -> None:
        """Queue a chunk of `calls` delayed calls; ValueError if it is there or the call is exhausted."""
        if self.exhausted:
            raise ValueError(f"chunk {chunk} of call {self.name!r} came after exhaust()")
        if chunk in self.size:
            raise ValueError(f"chunk {chunk} of call {self.name!r} is queued or under way already")
        if calls < 1:
            raise ValueError(f"chunk {chunk} of call {self.name!r} must have at least one call, got {calls}")
        self.size[chunk] = calls
        self.queue.append(chunk)
        self.queued += calls
        self.largest = max(self.largest, calls)
        self.left = self.dealt = 0
        self.window = (self.window[0] if self.window else now), now
        self.begun, self.pouring = min(self.begun, now), max(self.pouring, now + FLUSH_AFTER_LAST)

    def put_back(self, back: dict[int, int], suspects: Collection[int]) -> None:
        """Queue chunks, with their calls, ahead of all others; each of the suspects for a bundle of its own."""
        self.alone.extend(chunk for chunk in back if chunk in suspects)
        self.queue.extendleft(chunk for chunk in reversed(back) if chunk not in suspects)
        for chunk, calls in back.items():
            self.size[chunk] = calls
            self.queued += calls
        self.left, self.dealt, self.ripe = 0, 0, True

    def due(self) -> float | None:
        """When what was added since the last flush is flushed."""
        return self.window and min(self.window[0] + FLUSH_AFTER_FIRST, self.window[1] + FLUSH_AFTER_LAST)

    def pours(self, now: float) -> bool:
        """Whether chunks come so fast that more of them are there in a moment."""
        return not self.exhausted and now < self.pouring

    def settled(self, now: float) -> bool:
        due = self.due()
        return self.exhausted or due is None or now >= due

    # bundles

    def take(self, shape: Shape, id: int) -> Bundle:
        """Turn the head of the queue into a bundle under way."""
        if not self.alone:
            if not self.dealt:
                self._deal(shape)
            self.dealt -= 1
        source, chunks, calls = (self.alone or self.queue), list[int](), 0
        while source and len(chunks) < shape.most:
            size = self.size[source[0]]
            if len(chunks) >= shape.least and calls + size > shape.calls:
                break
            chunks.append(source.popleft())
            calls += size
        load = {"calls": calls, "slots": shape.slots, "width": min(shape.width, len(chunks))}
        bundle = Bundle(id=id, call=self.name, chunks=tuple(chunks), **load)
        self._count(bundle, 1)
        self.queued -= calls
        self.left, self.aim, self.served = max(0, shape.left - 1), shape.aim, id
        if not self.waiting:
            self.window, self.ripe = None, False
        return bundle

    def _deal(self, shape: Shape) -> None:
        """Deal the chunks of the next bundles out among them, once for all of them.

        Neighbours take about as long as each other, and the first results are wanted first.
        """
        waiting = sorted(self.queue)  # as they came, however they were dealt before
        sums = list(accumulate(self.size[chunk] for chunk in waiting))
        end = bisect_right(sums, shape.hands * shape.calls)
        head, self.dealt = waiting[:end], shape.hands
        hands = (head[hand :: shape.hands] for hand in range(shape.hands))
        self.queue = deque([*chain.from_iterable(hands), *waiting[end:]])

    def retire(self, bundle: Bundle, lost: Collection[int]) -> dict[int, int]:
        """End a bundle; return the calls of its lost chunks, in order."""
        self._count(bundle, -1)
        sizes = {chunk: self.size.pop(chunk) for chunk in bundle.chunks}
        back = {chunk: calls for chunk, calls in sizes.items() if chunk in lost}
        # Outcomes do not name their bundle: assume that all of this one's were seen.
        seen = bundle.calls - sum(back.values())
        self.streamed = max(0, self.streamed - seen) if self.calls else 0
        return back

    def _count(self, bundle: Bundle, sign: int) -> None:
        self.slots += sign * bundle.slots
        self.width += sign * bundle.width
        self.calls += sign * bundle.calls

    # what is known

    @property
    def cost(self) -> Cost | None:
        """What recent calls took, the remembered cost until they are measured, or None."""
        return None if self.mean is None else Cost(self.mean, self.deviation)

    def observe(self, calls: int, seconds: float, enough: float) -> None:
        """Take in that `calls` calls took `seconds` of one worker; those of `enough` seconds are believed if few."""
        number, done, spent, squares = self.observations
        keep = 0.5 if number >= MEMORY else 1.0
        number, done, spent = number * keep + 1, done * keep + calls, spent * keep + seconds
        squares = squares * keep + seconds**2 / calls
        self.observations = number, done, spent, squares
        self.streamed += calls
        # The first outcomes are those of the shortest calls: wait for a worker's probe, or for a long one.
        if self.measured or done >= PROBE or spent >= enough:
            self.mean, self.measured = max(1e-6, spent / done), True
        if number >= CALM:
            # Chunks of n calls: (seconds − n × mean)² ÷ n is on average the variance of one call.
            self.deviation = sqrt(max(0.0, squares - spent**2 / done) / (number - 1))
