"""How many nodes does each autoscale formula have over a day, and what does that cost against the ideal?

Each named formula runs in the emulator's evaluator over recorded demand (a busy day, a weekend, a spike, nothing) on a
simulated clock: samples every 30 s that can be read a minute late, an evaluation every 5 minutes, nodes that boot in 4
minutes and leave when their tasks are done (those that leave are paid for too, so a peak may be above the maximum). The
ideal are the node-hours of nodes that come and go at once, within the same maximum; ``all nodes`` is a pool of fixed
size. A second table has spot nodes preempted, with and without ``spot_fallback``.

    python benchmarks/bench_autoscale.py [--idle SECONDS]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from _common import print_table, save

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from autoscale_simulation import (
    BOOT_SECONDS,
    DEMANDS,
    HOUR,
    MONDAY,
    STEP,
    Arrival,
    Demand,
    Preemption,
    Run,
    Simulation,
    ideal_node_hours,
)

from joblib_azure.autoscale import FORMULAS, formula

DEDICATED, SPOT, SLOTS = (0, 4), (0, 12), 4
INTERVAL = 300
#: Columns of the drawing of nodes over time.
COLUMNS = 24
#: Eight hours of forty tasks every half an hour, of twenty-five minutes each: ten nodes are full.
STEADY = Demand("steady", MONDAY, 10 * HOUR, tuple(Arrival(600 + half * HOUR // 2, 40, 25 * 60) for half in range(16)))
_BARS = " ▁▂▃▄▅▆▇█"


def drawing(values: list[int], most: int) -> str:
    """Draw numbers in a line of `COLUMNS` bars: the mean of each stretch."""
    bars = []
    for column in range(COLUMNS):
        part = values[column * len(values) // COLUMNS : (column + 1) * len(values) // COLUMNS]
        mean = sum(part) / len(part)
        # whatever is there is seen
        bars.append(_BARS[max(1 if mean else 0, round(mean / most * (len(_BARS) - 1)))])
    return "".join(bars)


def figures(run: Run, ideal: float) -> dict[str, Any]:
    """The figures of a run."""
    return {
        "nodes": [moment.nodes for moment in run.moments][:: HOUR // STEP // 4],
        "peak": max(moment.nodes for moment in run.moments),
        "node_hours": round(run.node_hours, 2),
        "ideal_node_hours": round(ideal, 2),
        "mean_wait_seconds": round(run.mean_wait, 1),
        "longest_wait_seconds": max(run.waits, default=0),
        "tasks_left": run.left,
    }


def row(demand: str, name: str, drawn: str, found: dict[str, Any]) -> list[str]:
    """A row of the table."""
    ideal = found["ideal_node_hours"]
    return [
        demand,
        name,
        drawn,
        str(found["peak"]),
        f"{found['node_hours']:.1f}",
        f"{found['node_hours'] / ideal:.2f}" if ideal else "-",
        f"{found['mean_wait_seconds'] / 60:.1f}",
    ]


def fixed(demand: Demand) -> str:
    """A pool that has all its nodes at all times."""
    return f"$TargetDedicatedNodes = {DEDICATED[1]}; $TargetLowPriorityNodes = {SPOT[1]};"


def main() -> None:
    """Run all formulas over all demand; print the tables, save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle", type=int, default=900, help="seconds that nodes stay without demand (900)")
    idle = parser.parse_args().idle
    most = DEDICATED[1] + SPOT[1]
    head = ["demand", "formula", "nodes over time", "peak", "node-hours", "÷ ideal", "wait, min"]
    rows: list[list[str]] = []
    saved: dict[str, Any] = {}
    for demand in DEMANDS:
        ideal = ideal_node_hours(demand, slots=SLOTS, most=most)
        saved[demand.name] = {}
        texts = {
            name: formula(name, dedicated=DEDICATED, spot=SPOT, task_slots_per_node=SLOTS, idle_seconds=idle)
            for name in FORMULAS
            if name != "MAX_CPU"
        }
        texts["all nodes"] = formula(fixed(demand), dedicated=DEDICATED, spot=SPOT)
        for name, text in texts.items():
            run = Simulation(demand, text, slots=SLOTS, interval=INTERVAL).run()
            found = saved[demand.name][name] = figures(run, ideal)
            drawn = drawing([moment.nodes for moment in run.moments], most)
            rows.append(row(demand.name if name == next(iter(texts)) else "", name, drawn, found))
        rows.append(["", "ideal", "", "", f"{ideal:.1f}", "1.00" if ideal else "-", ""])
    print(f"{DEDICATED[1]} dedicated and {SPOT[1]} spot nodes at most, {SLOTS} task slots a node, idle {idle} s.")
    print_table(head, rows)

    lost = (Preemption(2 * HOUR, 6, 4 * HOUR),)
    ideal = ideal_node_hours(STEADY, slots=SLOTS, most=most)
    rows = []
    saved["preempted"] = {}
    for fallback in (False, True):
        text = formula(
            "QUEUE_AND_RUNNING",
            dedicated=DEDICATED,
            spot=SPOT,
            task_slots_per_node=SLOTS,
            idle_seconds=idle,
            spot_fallback=fallback,
        )
        run = Simulation(STEADY, text, slots=SLOTS, interval=INTERVAL, preemptions=lost).run()
        name = f"spot_fallback {'on' if fallback else 'off'}"
        found = saved["preempted"][name] = figures(run, ideal)
        rows.append(
            row(STEADY.name if not fallback else "", name, drawing([m.nodes for m in run.moments], most), found)
        )
    print("\nQUEUE_AND_RUNNING, 6 spot nodes preempted in the third hour for four hours (they are not counted then).")
    print_table(head, rows)
    setting = {
        "dedicated": DEDICATED,
        "spot": SPOT,
        "slots": SLOTS,
        "idle_seconds": idle,
        "interval_seconds": INTERVAL,
        "boot_seconds": BOOT_SECONDS,
    }
    print(f"\n{save('bench_autoscale', {'setting': setting, 'demands': saved})}")


if __name__ == "__main__":
    main()
