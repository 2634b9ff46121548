"""From arrivals to whoever collects a job's results: in order or as they come, each once."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from ..call import Outcome
from ..errors import JobError
from ..results import Window
from .arrivals import Arrival, Arrivals
from .names import OnError, calls_of
from .stored import await_end
from .watch import Watch

if TYPE_CHECKING:
    from .job import Job


def deliver(job: Job, *, ordered: bool, policy: OnError, timeout: float | None, progress: bool | None) -> Iterator[Any]:
    """Yield results as `Job.results` describes it; at their end, remove what was not to stay."""
    with contextlib.closing(collect(job, ordered=ordered, timeout=timeout, progress=progress)) as arrivals:
        for _, arrival in arrivals:
            if succeeded(arrival) or policy == "raise":
                yield value_of(arrival)
            elif policy == "return":
                yield error_of(arrival)


def collect(
    job: Job, *, ordered: bool, timeout: float | None, progress: bool | None
) -> Generator[tuple[int, Arrival], None, None]:
    """Yield the numbers of calls with what has come of them; at their end, remove what was not to stay."""
    arrived: dict[int, Arrival] = {}
    order: collections.deque[int] = collections.deque()

    def take(number: int, arrival: Arrival) -> None:
        arrived[number] = arrival
        order.append(number)

    position, failed = 0, False
    with (
        Watch(job, progress, lasting=True) as watch,
        _window(job) as window,
        contextlib.closing(Arrivals(job, take, window=window)) as arrivals,
    ):
        waited = time.monotonic()
        while True:
            while (number := position if ordered else next(iter(order), -1)) in arrived:
                if not ordered:
                    order.popleft()
                position += 1
                arrival = arrived.pop(number)
                failed = failed or not succeeded(arrival)
                yield number, arrival
                waited = time.monotonic()
            if ordered:
                order.clear()
            if arrivals.description.complete and position >= arrivals.description.calls:
                break
            if arrivals.interrupted is not None:
                raise arrivals.interrupted
            progressed = arrivals.look()
            watch.take(arrivals)
            if not progressed:
                deadline = None if timeout is None else waited + timeout
                if deadline is not None and time.monotonic() >= deadline:
                    which = f"call {position}" if ordered else "the next result"
                    raise TimeoutError(f"waited {timeout:g} s for {which} of {job.status()}")
                arrivals.sleep(progressed, deadline)
    if job.keep == "never" or (job.keep == "on_error" and not failed):
        if arrivals.description.outputs:
            await_end(job, timeout)  # tasks store files after their calls' outcomes
        job.delete()


def deliver_one(job: Job, number: int, timeout: float | None) -> Any:
    """Return one result as `Job.result` describes it."""
    found: list[Arrival] = []
    end = None if timeout is None else time.monotonic() + timeout

    def take(which: int, arrival: Arrival) -> None:
        if which == number:
            found.append(arrival)

    def wanted(task: str) -> bool:
        return number in calls_of(task)

    with (
        _window(job) as window,
        contextlib.closing(Arrivals(job, take, wanted=wanted, window=window)) as arrivals,
    ):
        while not found:
            description = arrivals.description
            if number < 0 or (description.complete and number >= description.calls):
                raise IndexError(f"call {number} of job {job.name!r}, which has {description.calls} calls")
            progressed = arrivals.look()
            if found:
                break
            if arrivals.interrupted is not None:
                raise arrivals.interrupted
            if end is not None and time.monotonic() >= end:
                raise TimeoutError(f"waited {timeout:g} s for call {number} of {job.status()}")
            arrivals.sleep(progressed, end)
        return value_of(found[0])


@contextlib.contextmanager
def _window(job: Job) -> Iterator[Window]:
    window = Window(lambda blob, *where: job.blobs.fetch(job.outputs, blob, *where))
    try:
        yield window
    finally:
        window.close(f"the results of job {job.name!r} were given up")


def succeeded(arrival: Arrival) -> bool:
    """Whether a call has returned."""
    return isinstance(arrival, Outcome) and bool(arrival.head.get("ok"))


def value_of(arrival: Arrival) -> Any:
    """Return what a call returned, or raise what it raised."""
    if not isinstance(arrival, Outcome):
        raise arrival
    (value,) = arrival.fetched().value()
    return value


def error_of(arrival: Arrival) -> BaseException:
    """Return what a call raised. :raises ServiceError: it cannot be fetched."""
    if not isinstance(arrival, Outcome):
        return arrival
    fetched = arrival.fetched()
    try:
        fetched.value()
    except Exception as exc:
        return exc.with_traceback(None)  # its own is on the node; how it was taken out here tells nothing
    raise JobError(f"an outcome of task {arrival.task} is neither a result nor an error", job=arrival.job)
