"""Does every call come back exactly once, whatever fails? A storm of faults for each seed, 2,000 calls under each.

::

    seed ──► schedule ──► LocalCluster(chaos=…) ──► two Parallel calls: a list, then an unordered generator
                 └── says which storms nobody survives, and by which error they end

A seed is survived where every result is right, is there once, and in order where joblib keeps one; a storm that nobody
survives must end with the one error that its schedule names. Either way within its deadline, with no thread, process,
active job or container left. The exit code is 1 where any seed does otherwise, or a class of faults has struck less
than ``--least`` times.

``--seeds N --first S`` runs the seeds S to S+N-1; ``--seeds 1 --first S -v`` shows the log of one.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import sys
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from _common import print_table, save
from joblib import Parallel, delayed, parallel_config

from joblib_azure import LocalCluster
from joblib_azure.chaos.faults import FAULTS
from joblib_azure.chaos.schedule import Schedule, make_schedule
from joblib_azure.errors import ClusterError, SessionClosedError, TaskFailedError, WorkerDiedError
from joblib_azure.local.host import processes_of
from joblib_azure.registry import close_sessions

#: The error by which a storm ends that nobody survives.
ENDINGS: dict[str, type[Exception]] = {
    "poison": WorkerDiedError,
    "pool-deleted": ClusterError,
    "job-ended": SessionClosedError,
    "sas-expired": TaskFailedError,
}
#: Seconds for which the services may be out of reach, and that a seed may take.
SERVICE_TIMEOUT, DEADLINE = 40.0, 240.0
#: Seconds between the Parallel calls where somebody ends the job meanwhile: the session then is idle.
_PAUSE = 2.0
#: Seconds within which threads have to end.
_SETTLING = 15.0
#: Seeds from which on figures are worth a file, and shares mean something.
_WORTH = 10
#: Share of seeds that must be survived, in percent.
SURVIVABLE = 90


def work(number: int, shared: np.ndarray, poison: bool) -> Any:
    """Compute for some milliseconds; every hundredth result is a large one."""
    if poison:
        import os

        os._exit(9)
    time.sleep(0.008)
    value = number * number + int(shared[number % len(shared)])
    return np.full(150_000, value) if number % 100 == 7 else value


def expected(number: int, shared: np.ndarray) -> int:
    return number * number + int(shared[number % len(shared)])


@dataclass
class Outcome:
    """What became of a seed."""

    seed: int
    ends_with: str
    ended: str = ""  #: ``survived``, the name of the fault that it had to end with, or what is wrong
    right: bool = False
    seconds: float = 0.0
    struck: Counter[str] = field(default_factory=Counter)
    missed: tuple[str, ...] = ()
    trace: str = ""


def run_seed(schedule: Schedule, calls: int) -> Outcome:
    """Run one storm, watched from outside: whatever hangs is told."""
    outcome = Outcome(seed=schedule.seed, ends_with=schedule.ends_with)
    before = set(threading.enumerate())
    begun = time.monotonic()
    thread = threading.Thread(target=_weather, args=(schedule, calls, outcome), name=f"seed-{schedule.seed}")
    thread.start()
    thread.join(DEADLINE)
    outcome.seconds = round(time.monotonic() - begun, 2)
    if thread.is_alive():
        faulthandler.dump_traceback(all_threads=True)
        outcome.ended, outcome.right = f"hangs after {DEADLINE:.0f} s", False
        return outcome
    end = time.monotonic() + _SETTLING
    while left := [each.name for each in threading.enumerate() if each not in before and each is not thread]:
        if time.monotonic() > end:
            outcome.ended, outcome.right = f"leaves threads: {', '.join(left)}", False
            break
        time.sleep(0.05)
    return outcome


def _weather(schedule: Schedule, calls: int, outcome: Outcome) -> None:
    run_id = ""
    try:
        with LocalCluster(
            nodes=4, cores_per_node=1, spot_nodes=2, chaos=schedule, service_timeout=SERVICE_TIMEOUT
        ) as cluster:
            run_id = cluster.run_id
            try:
                with parallel_config("azure", cluster=cluster):
                    _calls(cluster, schedule, calls)
                outcome.ended = "survived"
            except Exception as exc:
                wanted = ENDINGS.get(schedule.ends_with)
                expected = wanted is not None and isinstance(exc, wanted)
                outcome.ended = schedule.ends_with if expected else f"{type(exc).__name__}: {str(exc)[:300]}"
                outcome.trace = traceback.format_exc()
            outcome.right = outcome.ended == (schedule.ends_with or "survived")
            report = cluster.storm.report()
            outcome.struck, outcome.missed = Counter(report.struck), report.missed
            close_sessions(cluster)
            if outcome.right:
                _check_tidy(cluster, schedule)
    except Exception as exc:
        outcome.ended, outcome.right = f"{type(exc).__name__}: {str(exc)[:300]}", False
        outcome.trace = traceback.format_exc()
    if run_id and (left := processes_of(run_id)):
        outcome.ended, outcome.right = f"leaves processes: {left}", False


def _calls(cluster: LocalCluster, schedule: Schedule, calls: int) -> None:
    draw = np.random.default_rng(schedule.seed)
    shared = draw.integers(0, 1000, 200_000)
    half, poison = calls // 2, schedule.ends_with == "poison"
    first = Parallel()(delayed(work)(i, shared, poison and i == half // 3) for i in range(half))
    _check(first, range(half), shared)
    for strike in schedule.on_demand:
        cluster.storm.strike(strike.fault)
        time.sleep(_PAUSE)
    found = Parallel(return_as="generator_unordered")(delayed(_numbered)(i, shared) for i in range(half, calls))
    rest = dict(_once(found))
    _check([rest.get(i) for i in range(half, calls)], range(half, calls), shared)


def _numbered(number: int, shared: np.ndarray) -> tuple[int, Any]:
    return number, work(number, shared, False)


def _once(found: Any) -> Any:
    seen = set()
    for number, value in found:
        if number in seen:
            raise AssertionError(f"the result of call {number} was delivered twice")
        seen.add(number)
        yield number, value


def _check(found: list[Any], numbers: range, shared: np.ndarray) -> None:
    if len(found) != len(numbers):
        raise AssertionError(f"{len(found)} results of {len(numbers)} calls")
    for number, value in zip(numbers, found, strict=True):
        right = expected(number, shared)
        if value is None or not (
            value == right if np.ndim(value) == 0 else np.array_equal(value, np.full(150_000, right))
        ):
            raise AssertionError(f"call {number}: {value!r}, not {right}")


def _check_tidy(cluster: LocalCluster, schedule: Schedule) -> None:
    """:raises AssertionError: a job is active, or a container is there that nobody keeps."""
    jobs = cluster.batch.running_jobs("joblib-2")
    end = time.monotonic() + _SETTLING
    while jobs and time.monotonic() < end:
        time.sleep(0.1)
        jobs = cluster.batch.running_jobs("joblib-2")
    if jobs:
        raise AssertionError(f"jobs are left: {', '.join(jobs)}")
    # What failed is kept for a look, with the date until which.
    left = [
        each.name
        for each in cluster.blobs.containers("joblib-2")
        if not (schedule.ends_with and "joblib_azure_keep_until" in each.metadata)
    ]
    if left:
        raise AssertionError(f"containers are left: {', '.join(left)}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=100, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=2000, help="calls of each seed (default: %(default)s)")
    parser.add_argument("--least", type=int, help="strikes of each class at least (default: half the seeds)")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the client's log and every traceback")
    given = parser.parse_args(arguments)
    level = logging.DEBUG if given.verbose else logging.CRITICAL
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("joblib_azure").setLevel(level)
    logging.getLogger("azure").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3").setLevel(logging.CRITICAL)
    outcomes: list[Outcome] = []
    try:
        for seed in range(given.first, given.first + given.seeds):
            outcome = run_seed(make_schedule(seed), given.calls)
            outcomes.append(outcome)
            mark = "ok " if outcome.right else "BAD"
            strikes = sum(outcome.struck.values())
            print(f"{mark} seed {seed:4}: {strikes:3} strikes, {outcome.seconds:5.1f} s, {outcome.ended}", flush=True)
            if outcome.trace and (given.verbose or not outcome.right):
                print(outcome.trace, flush=True)
            if outcome.ended.startswith("hangs"):
                break  # its threads would be found with the next ones
    except KeyboardInterrupt:
        print("interrupted: what follows is of the seeds that have ended")
    return _judge(outcomes, given.seeds // 2 if given.least is None else given.least)


def _judge(outcomes: list[Outcome], least: int) -> int:
    survivable = [each for each in outcomes if not each.ends_with]
    survived = [each for each in survivable if each.right]
    right = [each for each in outcomes if each.right]
    print()
    rows = []
    for name, fault in FAULTS.items():
        struck = sum(each.struck[name] for each in outcomes)
        seeds = [each for each in outcomes if each.struck[name]]
        rows.append((name, str(struck), str(len(seeds)), str(sum(each.right for each in seeds)), fault.what))
    print_table(("fault", "strikes", "seeds", "as they must end", "what"), rows)
    seconds = sorted(each.seconds for each in outcomes) or [0.0]
    print(
        f"\n{len(outcomes)} seeds: {len(survived)} of {len(survivable)} survivable ones survived, "
        f"{len(right) - len(survived)} of {len(outcomes) - len(survivable)} others ended as they must; "
        f"{sum(sum(each.struck.values()) for each in outcomes)} strikes; "
        f"{seconds[len(seconds) // 2]:.1f} s a seed (median), {seconds[-1]:.1f} s at most"
    )
    figures = [{**vars(each), "struck": dict(each.struck)} for each in outcomes]
    if len(outcomes) >= _WORTH:
        print(f"figures in {save('soak', {'seeds': figures})}")
    rare = [name for name, struck, *_ in rows if int(struck) < least]
    if rare:
        print(f"struck less than {least} times: {', '.join(rare)}")
    if len(outcomes) >= _WORTH and 100 * len(survivable) < SURVIVABLE * len(outcomes):
        print(f"only {len(survivable)} of {len(outcomes)} storms are survivable")
        return 1
    return 1 if rare or len(right) < len(outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
