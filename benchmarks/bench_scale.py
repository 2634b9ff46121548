"""Does one client hold a pool of a thousand nodes, and what does that cost it?

Simulated nodes (`_simulation.py`) on the emulator under its azure profile, so that nodes, tasks and requests are as
slow as was published of the service, on a clock that goes ``--clock`` times faster. Calls that sleep ``--seconds`` each
go to the whole pool as one Parallel, whose generator's consumer is slow: it takes half as long again for a result as
the pool (``--slowness``). A row for each number of nodes, each in a process of its own:

- are all results right;
- by how much did the client's memory grow, from before the Parallel until its end;
- what CPU did the client spend on a call, beyond what joblib itself spends (the same calls on a backend that does
  nothing) and cloudpickle (pickling the same calls, one by one);
- which requests did it take, Batch requests for each task above all;
- how busy were the cores between ramp-up (until every node has begun its first task) and tail (from when the first node
  has ended its last one);
- was the emulator the bottleneck: what CPU its process took of a core, simulated nodes included, and how late it woke
  the calls that it let sleep;
- how long a node waited for storage, which is one Azurite for all of them: what it waits is not the client's doing, and
  weighs ``--clock`` times as much as on Azure.

Last, the emulator alone: how many tasks that do nothing go through it in a second of its CPU.

What a faster clock leaves out: the client's own intervals and its CPU are in real time, so that both weigh ``--clock``
times more here than on Azure. The bounds are those that the project has set itself for 1,000 nodes and 1,000,000 calls;
the exit code is 1 where one is not kept.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from _common import RESULTS, AccessLogs, print_table, save
from _scale import Memory, Servers, base, cpu_of_threads
from _simulation import LOG
from azure.batch import BatchClient, models
from azure.core.credentials import AzureNamedKeyCredential
from joblib import Parallel, delayed, parallel_config
from pydantic import SecretStr

from joblib_azure import Cluster, ClusterConfig
from joblib_azure.config import AccountConfig
from joblib_azure.emulator import BatchEmulator
from joblib_azure.emulator.options import Options
from joblib_azure.local.behaviour import emulator_flags
from joblib_azure.local.host import LocalHost
from joblib_azure.registry import close_sessions, session_for

EXECUTOR = f"{Path(__file__).parent / '_simulation.py'}:run"
#: Bytes, seconds a call, Batch requests a task, and part of the cores.
MOST_GROWTH, MOST_CPU, MOST_REQUESTS, LEAST_BUSY = 300e6, 0.1e-3, 1 / 50, 0.95
#: From which on a server was in the way: of one core, and of a call's real time by which it was late.
MOST_OF_A_CORE, MOST_LATE = 0.7, 0.05
#: A node looks for its call's abort blob so often, in seconds; simulated ones do not.
_ABORT_LOOK = 5.0
#: Multiples of it, less their whole part, lie evenly between 0 and 1.
_GOLDEN = (5**0.5 - 1) / 2


def work(number: int, seconds: float) -> int:
    time.sleep(seconds)
    return number * number


# one row ------------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the calls on one number of nodes."""
    flags = {"executor": EXECUTOR, "latency": "azure", "clock_rate": options.clock}
    # In memory: on a disk, Azurite would write an index of all blobs each 5 s, and answer nothing meanwhile.
    with LocalHost(running_azurite_port=None, emulator_flags=emulator_flags(flags), in_memory=True) as host:
        account = AccountConfig(
            batch_account=host.account_name,
            batch_endpoint=host.batch_endpoint,
            batch_key=SecretStr(host.account_key),
            storage_connection_string=SecretStr(host.storage_connection_string),
        )
        config = ClusterConfig(
            name="scale",
            vm_size=f"Emulated_C{options.cores}",
            cores=options.cores,
            nodes=options.nodes,
            pool_size={"autoscale_formula": "FIXED"},
            max_tasks_per_node=options.slots,
            python=sys.executable,
            node_timeout=120.0 + Options(**flags).node_seconds,
        )
        began = time.monotonic()
        cluster = Cluster.create(config, account, wait=not options.early)
        figures = {"nodes": options.nodes, "node_seconds": time.monotonic() - began}
        with parallel_config("azure", cluster=cluster):
            figures |= _run(options, cluster, host)
        close_sessions(cluster)
        requests = AccessLogs(host).counts()
        RESULTS.mkdir(exist_ok=True)
        log = Path(shutil.copy(host.folder / "nodes" / LOG, RESULTS / f"scale-{options.nodes}.jsonl"))
        figures |= _requests(requests, figures["tasks"]) | _log_figures(log, options)
        cluster.close()
    workers = options.nodes * options.cores
    figures |= base(lambda count: _calls(count, options), options.calls, figures["calls_a_chunk"], workers)
    figures["client_cpu"] = figures["cpu_a_call"] - figures["joblib_cpu"] - figures["cloudpickle_cpu"]
    return figures


def _run(options: argparse.Namespace, cluster: Cluster, host: LocalHost) -> dict[str, Any]:
    pause = options.slowness * options.seconds / options.clock / (options.nodes * options.cores)
    servers = Servers(host)
    right = 0
    gc.collect()
    with Memory() as memory:
        cpu, began = time.process_time(), time.monotonic()
        results = Parallel(return_as="generator")(_calls(options.calls, options))
        first = None
        for number, result in enumerate(results):
            first = time.monotonic() - began if first is None else first
            right += result == number * number
            # Not a sleep a result: those of a millisecond are longer than they say.
            behind = began + first + number * pause - time.monotonic()
            if behind > 0.01:
                time.sleep(behind)
        cpu, seconds = time.process_time() - cpu, time.monotonic() - began
        growth = memory.growth()
    tasks = session_for(cluster).work.tasks_added
    by_thread = cpu_of_threads(options.calls)
    return {
        "calls": options.calls,
        "right": right,
        "tasks": tasks,
        "seconds": seconds,
        "first_result": first,
        "growth": growth,
        "cpu_a_call": (cpu - memory.cpu) / options.calls,
        "cpu_by_thread": by_thread,
        **servers.cpu(seconds),
    }


def _requests(found: Counter[str], tasks: int) -> dict[str, Any]:
    batch = sum(count for name, count in found.items() if "  batch  " in name)
    return {"requests": dict(found.most_common()), "batch_requests": batch, "batch_requests_a_task": batch / tasks}


def _log_figures(log: Path, options: argparse.Namespace) -> dict[str, Any]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    firsts: dict[str, float] = {}
    lasts: dict[str, float] = {}
    for line in lines:
        firsts[line["node"]] = min(line["admitted"], firsts.get(line["node"], line["admitted"]))
        lasts[line["node"]] = max(line["ran"], lasts.get(line["node"], 0.0))
    ramp, tail = max(firsts.values()), min(lasts.values())
    busy = 0.0
    for line in lines:
        span = line["ran"] - line["admitted"]
        within = max(0.0, min(line["ran"], tail) - max(line["admitted"], ramp))
        busy += line["busy"] * within / span if span > 0 else 0.0
    whole = max(lasts.values()) - min(firsts.values())
    cores = options.nodes * options.cores
    return {
        "nodes_used": len(firsts),
        "calls_a_chunk": options.calls / max(1, sum(line["chunks"] for line in lines)),
        "ramp": ramp - min(firsts.values()),
        "steady": tail - ramp,
        "tail": max(lasts.values()) - tail,
        "busy": busy / (cores * (tail - ramp)) if tail > ramp else None,
        "busy_in_all": sum(line["busy"] for line in lines) / (cores * whole),
        "late": sorted(line["late"] for line in lines)[len(lines) * 95 // 100],
        "storage_wait": sum(line["read"] - line["begun"] for line in lines) / max(1, len(lines)),
        "abort_looks": sum(line["ran"] - line["admitted"] for line in lines) * options.clock / _ABORT_LOOK,
    }


def _calls(count: int, options: argparse.Namespace) -> Iterator[Any]:
    """Yield calls whose durations lie around the mean, each number's always the same."""
    for number in range(count):
        place = 2 * (number * _GOLDEN % 1) - 1
        yield delayed(work)(number, options.seconds * (1 + options.spread * place))


# the emulator alone -------------------------------------------------------------------------------------------


async def nothing(task: Any) -> int:
    """Executor of tasks that do nothing."""
    return 0


def emulator_alone(nodes: int, slots: int, tasks: int) -> dict[str, float]:
    """Send tasks that do nothing through an emulator as fast as they go."""
    with BatchEmulator(executor=f"{Path(__file__).resolve()}:nothing") as emulator:
        client = BatchClient(emulator.endpoint, AzureNamedKeyCredential(emulator.account_name, emulator.account_key))
        image = models.BatchVmImageReference(publisher="canonical", offer="ubuntu-24_04-lts", sku="server")
        machine = models.VirtualMachineConfiguration(image_reference=image, node_agent_sku_id="batch.node.ubuntu 24.04")
        pool = models.BatchPoolCreateOptions(
            id="pool",
            vm_size=f"Emulated_C{slots}",
            virtual_machine_configuration=machine,
            target_dedicated_nodes=nodes,
            task_slots_per_node=slots,
        )
        client.create_pool(pool)
        _until(lambda: _idle(client) == nodes)
        client.create_job(models.BatchJobCreateOptions(id="job", pool_info=models.BatchPoolInfo(pool_id="pool")))
        process = psutil.Process(emulator.pid)
        cpu, began = sum(process.cpu_times()[:2]), time.monotonic()
        specs = [models.BatchTaskCreateOptions(id=f"task-{n}", command_line="true") for n in range(tasks)]
        client.create_tasks("job", specs, max_concurrency=4)
        _until(lambda: client.get_job_task_counts("job").task_counts.completed == tasks)
        seconds, cpu = time.monotonic() - began, sum(process.cpu_times()[:2]) - cpu
    return {"nodes": nodes, "tasks": tasks, "tasks_a_second": tasks / seconds, "tasks_a_cpu_second": tasks / cpu}


def _idle(client: BatchClient) -> int:
    return next(iter(client.list_pool_node_counts())).dedicated.idle


def _until(what: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:.0f} s")
        time.sleep(0.1)


# the report ---------------------------------------------------------------------------------------------------


def judged(row: dict[str, Any], options: argparse.Namespace) -> dict[str, bool]:
    """Return which bounds a row keeps."""
    return {
        f"all {row['calls']} results are right": row["right"] == row["calls"],
        f"memory grew by ≤ {MOST_GROWTH / 1e6:.0f} MB": row["growth"] <= MOST_GROWTH,
        f"the client's own CPU is ≤ {MOST_CPU * 1e3:g} ms a call": row["client_cpu"] <= MOST_CPU,
        f"≤ {MOST_REQUESTS:g} Batch requests a task": row["batch_requests_a_task"] <= MOST_REQUESTS,
        f"cores are ≥ {LEAST_BUSY:.0%} busy between ramp-up and tail": (row["busy"] or 0.0) >= LEAST_BUSY,
    }


def in_the_way(row: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """Return which of the servers, each a process for all nodes, were the bottleneck."""
    late = row["late"] * options.clock / options.seconds
    waited = row["storage_wait"] * options.clock / options.seconds
    found = {
        "the emulator": row["emulator_load"] > MOST_OF_A_CORE or late > MOST_LATE,
        "Azurite": row["azurite_load"] > MOST_OF_A_CORE or waited > MOST_LATE,
    }
    return [name for name, holds in found.items() if holds]


_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "calls": lambda row: f"{row['calls']}",
    "right": lambda row: f"{row['right']}",
    "tasks": lambda row: f"{row['tasks']}",
    "seconds": lambda row: f"{row['seconds']:.1f}",
    "memory grown, MB": lambda row: f"{row['growth'] / 1e6:.0f}",
    "client CPU, ms a call": lambda row: f"{row['cpu_a_call'] * 1e3:.3f}",
    "… joblib's": lambda row: f"{row['joblib_cpu'] * 1e3:.3f}",
    "… cloudpickle's": lambda row: f"{row['cloudpickle_cpu'] * 1e3:.3f}",
    "… its own": lambda row: f"{row['client_cpu'] * 1e3:.3f}",
    "Batch requests": lambda row: f"{row['batch_requests']}",
    "… a task": lambda row: f"{row['batch_requests_a_task']:.4f}",
    "cores busy, steady": lambda row: "none" if row["busy"] is None else f"{row['busy']:.1%}",
    "… in all": lambda row: f"{row['busy_in_all']:.1%}",
    "ramp-up, steady, tail, s": lambda row: f"{row['ramp']:.1f}, {row['steady']:.1f}, {row['tail']:.1f}",
    "emulator, of a core": lambda row: f"{row['emulator_load']:.0%}",
    "… woke calls late, ms": lambda row: f"{row['late'] * 1e3:.0f}",
    "a node waited for its bundle, ms": lambda row: f"{row['storage_wait'] * 1e3:.0f}",
    "Azurite, of a core": lambda row: f"{row['azurite_load']:.0%}",
}


def report(rows: list[dict[str, Any]], alone: dict[str, float], options: argparse.Namespace) -> bool:
    """Print what was found; return whether all bounds were kept."""
    print(
        f"calls of {options.seconds:g} s ± {options.spread:.0%}, nodes of {options.cores} cores, slots {options.slots},"
    )
    print(f"a clock {options.clock:g} times faster, a consumer {options.slowness:g} times slower than the pool\n")
    print_table(
        ("nodes", *(f"{row['nodes']}" for row in rows)),
        [(name, *(text(row) for row in rows)) for name, text in _COLUMNS.items()],
    )
    kinds = sum((Counter[str](row["requests"]) for row in rows), Counter[str]())
    print()
    print_table(
        ("requests", *(f"{row['nodes']}" for row in rows)),
        [(name, *(f"{row['requests'].get(name, 0)}" for row in rows)) for name, _ in kinds.most_common()],
    )
    threads = Counter[str]()
    for row in rows:
        threads.update(row["cpu_by_thread"])
    print()
    print_table(
        ("client CPU by thread, ms a call", *(f"{row['nodes']}" for row in rows)),
        [(name, *(f"{row['cpu_by_thread'].get(name, 0.0) * 1e3:.3f}" for row in rows)) for name in threads],
    )
    print("\nnodes would also have looked for the abort blob", end=" ")
    print(", ".join(f"{row['abort_looks']:.0f} times ({row['nodes']} nodes)" for row in rows))
    kept = True
    for row in rows:
        print()
        for bound, holds in judged(row, options).items():
            kept = kept and holds
            print(f"{'kept' if holds else 'NOT KEPT'}: {row['nodes']} nodes: {bound}")
        servers = in_the_way(row, options)
        who = " and ".join(servers) or "none of the servers"
        print(f"{who} was in the way" + (": the cores would be busier else" if servers else ""))
    print(
        f"\nthe emulator alone, {alone['nodes']:.0f} nodes: {alone['tasks_a_second']:.0f} tasks a second, "
        f"{alone['tasks_a_cpu_second']:.0f} in one of its CPU's"
    )
    return kept


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--cores", type=int, default=16, help="of a node")
    parser.add_argument("--slots", type=int, default=1, help="task slots of a node (maxTasksPerNode)")
    parser.add_argument("--calls", type=int, default=1_000_000, help="on the largest pool; others get their part")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a call, on the service's clock")
    parser.add_argument("--spread", type=float, default=0.0, help="by what part of it calls are shorter and longer")
    parser.add_argument("--clock", type=float, default=10.0, help="how many times faster than real time it goes")
    parser.add_argument("--slowness", type=float, default=1.5, help="of the consumer: its time a result by the pool's")
    parser.add_argument("--early", action="store_true", help="begin before the nodes are up")
    parser.add_argument("--quick", action="store_true", help="20 and 40 nodes, 4,000 calls")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.nodes, options.calls = [20, 40], 4000
    return options


def _row(nodes: int, options: argparse.Namespace) -> dict[str, Any]:
    calls = max(1, options.calls * nodes // max(options.nodes))
    command = [sys.executable, __file__, "--row", "--nodes", str(nodes), "--calls", str(calls)]
    for name in ("cores", "slots", "seconds", "spread", "clock", "slowness"):
        command += [f"--{name}", str(getattr(options, name))]
    command += ["--early"] if options.early else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    options = _parse()
    if options.row:
        options.nodes = options.nodes[0]
        print(json.dumps(measure(options)))
        return 0
    rows = [_row(nodes, options) for nodes in options.nodes]
    alone = emulator_alone(max(options.nodes), options.slots, 2000 if options.quick else 10_000)
    kept = report(rows, alone, options)
    print(f"\n{save('scale', {'options': vars(options), 'rows': rows, 'emulator': alone, 'kept': kept})}")
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
