"""Which maxTasksPerNode suits which loop?

The seed's guidance as a table: one node with all of this machine's cores; a flat loop of calls that compute, and a
nested one, whose outer calls each run an inner ``Parallel(n_jobs=-1)`` of calls that compute; with maxTasksPerNode 1,
the cores, twice and four times the cores. Wall time of the Parallel call, and utilisation: the CPU seconds that the
calls asked for, divided by wall time × cores. Each once warm: shorter loops of the same calls go before, two of them,
since the first task of a node does not tell what the service takes for one. Loky at home is there as a yardstick of
the machine: what it does not reach, because others compute too, no cluster can.

Then the same, where the guidance says that it is right (flat: as many slots as cores or more; nested: one), on a
service that takes 2 s to bring a task to its node. These loops are longer, so that bundles can be: at least 40 times
the cost of a task for each slot.

The exit code is 1 where the utilisation is below 90 % in one of those cases.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from _common import print_table, save, settle
from joblib import Parallel, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor

from joblib_azure import LocalCluster
from joblib_azure.local.cluster import machine_cores
from joblib_azure.registry import session_for

LEAST_UTILISATION = 0.9
#: CPU seconds of a call, and calls of an inner loop.
CALL_SECONDS, INNER = 0.1, 20


def burn(seconds: float) -> float:
    start = time.thread_time()
    while time.thread_time() - start < seconds:
        pass
    return seconds


def nest(calls: int, seconds: float) -> float:
    return sum(Parallel(n_jobs=-1)(delayed(burn)(seconds) for _ in range(calls)))


def flat_loop(work: float) -> float:
    return sum(Parallel(n_jobs=-1)(delayed(burn)(CALL_SECONDS) for _ in range(max(1, round(work / CALL_SECONDS)))))


def nested_loop(work: float) -> float:
    outer = max(1, round(work / CALL_SECONDS / INNER))
    return sum(Parallel(n_jobs=-1)(delayed(nest)(INNER, CALL_SECONDS) for _ in range(outer)))


LOOPS: dict[str, Callable[[float], float]] = {"flat": flat_loop, "nested": nested_loop}


def suits(loop: str, slots: int, cores: int) -> bool:
    """Whether the guidance recommends it."""
    return slots >= cores if loop == "flat" else slots == 1


def measure(loop: str, slots: int, options: argparse.Namespace, *, dispatch: float, seconds: float) -> dict[str, Any]:
    """Run a loop of about so many seconds on a cluster of its own, once warm."""
    cores = options.cores
    emulator = {"dispatch_seconds": dispatch}
    with (
        LocalCluster(nodes=1, cores_per_node=cores, max_tasks_per_node=slots, emulator=emulator) as cluster,
        parallel_config("azure", cluster=cluster),
    ):
        for _ in range(2):
            LOOPS[loop](seconds * cores * options.warm_up / 2)
        session = session_for(cluster)
        settle(session)
        tasks, start = session.work.tasks_added, time.perf_counter()
        work = LOOPS[loop](seconds * cores)
        wall = time.perf_counter() - start
        settle(session)
        tasks = session.work.tasks_added - tasks
    return {
        "loop": loop,
        "slots": slots,
        "dispatch": dispatch,
        "seconds": round(wall, 3),
        "work": round(work, 3),
        "utilisation": round(work / wall / cores, 4),
        "tasks": tasks,
        "judged": suits(loop, slots, cores),
    }


def at_home(loop: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run the same loop with loky."""
    with parallel_config("loky", n_jobs=options.cores):
        LOOPS[loop](options.seconds * options.cores * options.warm_up)
        start = time.perf_counter()
        work = LOOPS[loop](options.seconds * options.cores)
        wall = time.perf_counter() - start
    get_reusable_executor().shutdown(wait=True)
    return {"loop": loop, "seconds": round(wall, 3), "utilisation": round(work / wall / options.cores, 4)}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cores", type=int, default=machine_cores(), help="cores of the node")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a loop, with all cores busy")
    parser.add_argument("--dispatch", type=float, default=2.0, help="seconds of the slower service; 0: leave it out")
    parser.add_argument("--dispatch-loop", type=float, default=105.0, help="length of a loop there, in seconds")
    parser.add_argument("--warm-up", type=float, default=0.25, help="length of the loops before, as a part")
    parser.add_argument("--quick", action="store_true", help="short loops, and the exit code judges nothing")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.dispatch = 4.0, 0.0
    return options


def main() -> int:
    options = _parse()
    cores = options.cores
    counts = sorted({1, cores, 2 * cores, 4 * cores})
    cases = [(loop, slots, 0.0, options.seconds) for loop in LOOPS for slots in counts]
    if options.dispatch:
        slower = options.dispatch, options.dispatch_loop
        cases += [(loop, slots, *slower) for loop in LOOPS for slots in counts if suits(loop, slots, cores)]
    home = {loop: at_home(loop, options) for loop in LOOPS}
    print(f"loky at home: {', '.join(f'{loop} {_text(case)}' for loop, case in home.items())}", flush=True)
    found: list[dict[str, Any]] = []
    for loop, slots, dispatch, seconds in cases:
        found.append(case := measure(loop, slots, options, dispatch=dispatch, seconds=seconds))
        print(
            f"{loop}, maxTasksPerNode {slots}, dispatch {dispatch:g} s: {_text(case)}, {case['tasks']} tasks",
            flush=True,
        )
    for dispatch in sorted({case["dispatch"] for case in found}):
        print(f"\none node, {cores} core(s), dispatch of {dispatch:g} s: wall time, core utilisation\n")
        texts = {(case["loop"], case["slots"]): _text(case) for case in found if case["dispatch"] == dispatch}
        rows = [[f"{slots}", *(texts.get((loop, slots), "") for loop in LOOPS)] for slots in counts]
        if not dispatch:
            rows.append(["(loky at home)", *(_text(home[loop]) for loop in LOOPS)])
        print_table(("maxTasksPerNode", *LOOPS), rows)
    missed = [case for case in found if case["judged"] and case["utilisation"] < LEAST_UTILISATION]
    print("\n* recommended")
    bound = f"recommended settings use at least {LEAST_UTILISATION:.0%} of the cores"
    print(f"{'NOT KEPT' if missed else 'kept'}: {bound}")
    figures = {"options": vars(options), "home": home, "cases": found, "kept": not missed}
    print(f"\n{save('max_tasks_quick' if options.quick else 'max_tasks', figures)}")
    return 1 if missed and not options.quick else 0


def _text(case: dict[str, Any]) -> str:
    return f"{case['seconds']:.1f} s {case['utilisation']:5.1%}{' *' if case.get('judged') else '  '}"


if __name__ == "__main__":
    raise SystemExit(main())
