"""What clusters and jobs cost, against the emulator: before, while and after they run."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import cli_lab
import cli_process
import jobs_lab as lab
import pytest
from cli_lab import read, run
from joblib import delayed
from jobs_lab import until
from price_list import DEDICATED, REGION, SIZE, SPOT, PriceList, entry

from joblib_azure import Cluster, Job, LocalCluster, submit
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.local.host import LocalHost
from joblib_azure.prices import VARIABLE

sys.path.insert(0, str(Path(__file__).parent))
from terminal import Screen

SECONDS = 60.0
#: High enough that a test's seconds are some cents.
PRICES = {"currency": "EUR", "dedicated": 36.0, "spot": 7.2}


@pytest.fixture(scope="module")
def host() -> Iterator[LocalHost]:
    with cli_process.account() as host:
        yield host


@pytest.fixture(scope="module")
def folder(host: LocalHost, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a pool of a dedicated and a spot node, and prices."""
    made = tmp_path_factory.mktemp("project")
    size = {"dedicatedNodes": {"max": 1}, "spotNodes": {"max": 1}, "autoscaleFormula": "FIXED"}
    done = cli_process.run(made, "init", *cli_process.init_flags(host, "pool"), "--dedicated-nodes", "1")
    assert done.returncode == 0, done.stderr
    values = json.loads((made / "cluster.json").read_text())
    values.pop("nodes", None)
    (made / "cluster.json").write_text(json.dumps({**values, "poolSize": size, "prices": PRICES}))
    return made


@pytest.fixture(scope="module")
def mixed(folder: Path) -> Iterator[Cluster]:
    config, account = ClusterConfig.load(folder / "cluster.json"), AccountConfig.load(folder / "credentials.json")
    with Cluster(config, account) as made:
        made.wait_for_nodes(timeout=SECONDS)
        yield made


@pytest.fixture(autouse=True)
def at_home(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli_lab.at_home(folder, monkeypatch)


# after ------------------------------------------------------------------------------------------------------


def test_the_cost_of_a_job_on_nodes_of_both_kinds(mixed: Cluster, tmp_path: Path) -> None:
    calls = [delayed(lab.marked)(str(tmp_path), i, 0.5) for i in range(8)]
    begun = time.time()
    job = submit(calls, cluster=mixed, name="mixed", calls_per_task=2)
    job.wait(SECONDS)
    until(lambda: job.status().state == "completed", "the service has ended it")
    whole = time.time() - begun
    # Anybody with the credentials may ask; the prices are those of the submission.
    found = Job.attach("mixed", account=mixed.account).cost()
    kept, used = found.kept.hours, found.used
    assert kept.unknown == used.unknown == 0
    runs = job.timeline().history.runs
    kinds = {node.id: node.dedicated for node in mixed.nodes()}
    assert {run.node: run.dedicated for run in runs} == kinds
    for dedicated, hours, busy in ((True, kept.dedicated, used.dedicated), (False, kept.spot, used.spot)):
        mine = [run for run in runs if kinds[run.node] is dedicated]
        first, last = min(run.begun for run in mine), max(run.ended for run in mine)
        assert hours * 3600 == pytest.approx(last - first, abs=0.05)
        assert 0.5 * 2 * len(mine) <= 3600 * busy <= 3600 * hours + 0.01 <= whole + 0.05
    amount = 36.0 * kept.dedicated + 7.2 * kept.spot
    assert found.kept.amount == pytest.approx(amount)
    assert (found.kept.prices.currency, found.nodes, found.running) == ("EUR", 2, False)
    said = run("job", "cost", "mixed")
    assert said.startswith(f"job mixed: {found.kept.short}, estimated: ")
    assert "36 EUR dedicated and 7.2 EUR spot an hour, the configuration's; on 2 nodes of Emulated_C1" in said
    assert "Note: starts of nodes that are gone, and idle nodes after the job, are not in it." in said
    told = read("job", "cost", "mixed")
    assert told["amount"] == pytest.approx(amount)
    assert (told["estimate"], told["currency"], told["vm_size"]) == (True, "EUR", "Emulated_C1")
    assert f"\ncost: {found.kept.short}, estimated: " in run("job", "show", "mixed", "--cost")
    assert read("job", "show", "mixed", "--cost")["cost"]["amount"] == pytest.approx(amount)
    assert f"\nCost: {found.kept.short}, estimated: " in run("job", "timeline", "mixed")
    assert read("job", "timeline", "mixed")["cost"]["node_hours"] == vars(kept)
    run("job", "timeline", "mixed", "--html", str(tmp_path / "run.html"))
    assert f"<b>{found.kept.short}</b><span>estimated, for " in (tmp_path / "run.html").read_text()
    assert re.fullmatch(r"≈ 0\.\d+ EUR", found.kept.short)
    assert found.kept.short in found._repr_html_()


def preempt(host: LocalHost, pool: str, node: str, seconds: float) -> None:
    url = f"{host.batch_endpoint}/_emulator/pools/{pool}/nodes/{node}/preempt?seconds={seconds}"
    request = Request(url, data=b"", headers={"x-emulator-key": host.account_key}, method="POST")
    with build_opener(ProxyHandler({})).open(request, timeout=10) as answer:
        assert answer.status == 204


def test_a_job_that_runs_costs_more_each_second_and_a_preempted_node_nothing(
    host: LocalHost, mixed: Cluster, tmp_path: Path
) -> None:
    (spot,) = [node.id for node in mixed.nodes() if not node.dedicated]
    calls = [delayed(lab.waits)(str(tmp_path), i) for i in range(2)]
    job = submit(calls, cluster=mixed, name="runs", calls_per_task=1)
    until(lambda: len(list(tmp_path.glob("started-*"))) == 2, "both run")
    first = job.cost()
    time.sleep(0.5)
    second = job.cost()
    assert first.running
    assert second.running
    assert second.kept.hours.dedicated * 3600 >= first.kept.hours.dedicated * 3600 + 0.5
    assert "up to now" in run("job", "cost", "runs")
    assert "cost up to now: " in run("job", "show", "runs", "--cost")
    preempt(host, "pool", spot, seconds=3.0)
    lost = until(
        lambda: [task for task in job.tasks() if task.requeues and task.state != "running"], "a task waits again"
    )
    assert len(lost) == 1
    # Nothing of that node runs: it costs no more, while the other one does.
    before, now = job.cost(), None
    time.sleep(1.0)
    now = job.cost()
    assert now.kept.hours.dedicated * 3600 >= before.kept.hours.dedicated * 3600 + 1.0
    assert now.kept.hours.spot == pytest.approx(before.kept.hours.spot, abs=1e-6)
    (tmp_path / "stop").touch()
    job.wait(SECONDS)
    job.delete(wait=True)


def test_the_cost_of_a_job_whose_pool_is_gone(folder: Path, tmp_path: Path) -> None:
    values = json.loads((folder / "cluster.json").read_text())
    config = ClusterConfig(**{**values, "name": "gone", "prices": {"dedicated": 1.0}})
    with Cluster(config, AccountConfig.load(folder / "credentials.json")) as cluster:
        job = submit([delayed(lab.square)(i) for i in range(4)], cluster=cluster, name="outlives", calls_per_task=1)
        job.wait(SECONDS)
        before = job.cost()
        cluster.delete(wait=True)
        after = job.cost()
    # The tasks have said of which kind their nodes were.
    assert after.kept.hours.unknown == 0
    assert after.used == before.used
    # The nodes' start was known as long as they were there.
    assert 0 < after.kept.hours.total <= before.kept.hours.total
    assert after.vm_size == "Emulated_C1"
    if after.kept.hours.spot:
        assert after.kept.amount is None
        assert after.kept.why == "there is no price of spot nodes (the configuration's)"
        assert "no money: there is no price of spot nodes" in str(after)
        assert "not known" in after._repr_html_()
    else:
        assert after.kept.amount == pytest.approx(after.kept.hours.dedicated)
    assert "there is no job 'nowhere'" in run("job", "cost", "nowhere", exit_code=1)


def test_a_local_cluster_costs_nothing_and_says_so(cluster: LocalCluster) -> None:
    job = submit([delayed(lab.square)(i) for i in range(4)], cluster=cluster, name="local")
    job.wait(SECONDS)
    found = job.cost()
    assert found.kept.amount == 0
    assert str(found).startswith("job local: no cost (the nodes are emulated on this machine); 0.00")
    assert found.kept.hours.dedicated > 0
    assert "none: the nodes are emulated" in cluster._repr_html_()


# before -----------------------------------------------------------------------------------------------------


def test_what_a_pool_costs_an_hour_before_and_while_it_is_there(host: LocalHost, mixed: Cluster) -> None:
    said = run("cluster", "create", "--dry-run")
    assert (
        "Cost of 1 dedicated and 1 spot nodes, estimated: ≈ 43.2 EUR an hour (36 EUR dedicated and 7.2 EUR spot an "
        "hour, the configuration's)." in said
    )
    told = read("cluster", "create", "--dry-run")["cost_per_hour"]
    assert told["least"] == told["most"]
    assert told["most"]["amount"] == pytest.approx(43.2)
    assert "≈ 43.2 EUR with the nodes of now, estimated (36 EUR dedicated" in run("cluster", "show")
    assert "≈ 43.2 EUR, estimated" in mixed._repr_html_()
    assert read("cluster", "show")["cost_per_hour"]["node_hours"] == {"dedicated": 1, "spot": 1, "unknown": 0.0}
    (spot,) = [node.id for node in mixed.nodes() if not node.dedicated]
    preempt(host, "pool", spot, seconds=2.0)
    assert "≈ 36 EUR with the nodes of now" in run("cluster", "show")
    until(lambda: mixed.status().counts.spot == {"idle": 1}, "it is back")


def project(path: Path, endpoint: str, **cluster: Any) -> None:
    """Write the files of a pool on Azure, which nobody asks."""
    values = {"name": "my-pool", "vmSize": SIZE, **cluster}
    account = {
        "batchAccount": "me",
        "batchEndpoint": endpoint,
        "batchKey": "a2V5",
        "storageAccount": "mine",
        "storageKey": "a2V5",
    }
    cli_process.folder_of(path, {"cluster.json": json.dumps(values), "credentials.json": json.dumps(account)})


def test_a_dry_run_asks_the_price_list_and_nobody_else(tmp_path: Path) -> None:
    azure, home = f"https://me.{REGION}.batch.azure.com", tmp_path / "home"
    size = {"dedicatedNodes": {"min": 1, "max": 4}, "spotNodes": {"max": 10}}

    def dry(name: str, endpoint: str = azure, **more: Any) -> str:
        project(tmp_path / name, endpoint, **more)
        found = cli_process.run(
            tmp_path / name, "cluster", "create", "--dry-run", XDG_CACHE_HOME=str(home), **{VARIABLE: prices.url}
        )
        assert found.returncode == 0, found.stderr
        return next(line for line in found.stdout.splitlines() if line.startswith("Cost"))

    with PriceList().served() as prices:
        line = dry("both", poolSize=size)
        least, most = DEDICATED, 4 * DEDICATED + 10 * SPOT
        assert line.startswith(
            f"Cost of 1 to 4 dedicated and 0 to 10 spot nodes, estimated: ≈ {least} USD an hour with the fewest, "
            f"≈ {most:.2f} USD with all of them ({DEDICATED} USD dedicated and {SPOT} USD spot an hour, Azure's retail "
            f"list for {REGION}, looked up on 2"
        )
        asked = len(prices.asked)
        assert asked == 3
        assert dry("again", poolSize=size) == line
        assert len(prices.asked) == asked
        to_zero = dry("to zero", nodes=4)
        assert "nothing without nodes, ≈ 0.92 USD an hour with all of them" in to_zero
        assert dry("local", "http://127.0.0.1:9/account") == "Cost: none, since the nodes are emulated on this machine."
        assert "not known, since the account's endpoint, batch.example" in dry("odd", "https://batch.example")
        assert len(prices.asked) == asked
        prices.entries = [entry(0.5, armSkuName="Standard_D8s_v5")]
        spot = dry("no spot", vmSize="Standard_D8s_v5", poolSize=size)
        assert "not known, since there is no price of spot nodes (Azure's retail list" in spot
        prices.status = 500
        assert "not known, since looking up prices: " in dry("broken", vmSize="Standard_D16s_v5")
    begun = time.monotonic()
    assert "not known, since looking up prices: nothing answers" in dry("away", vmSize="Standard_D32s_v5")
    assert time.monotonic() - begun < 15


# while it runs ----------------------------------------------------------------------------------------------

SCRIPT = """
import time
from joblib import Parallel, delayed, parallel_config
import joblib_azure

def work(i):
    time.sleep(0.1)
    return i

if __name__ == "__main__":
    with parallel_config("azure", cluster=CLUSTER):
        for _ in range(2):
            print("sum", sum(Parallel(verbose=VERBOSE)([delayed(work)(i) for i in range(40)])))
"""


def hours_shown(screen: Screen) -> list[float]:
    found = (re.search(r"cost so far: .*; ([\d.]+) dedicated node-hours", line) for line in screen.wiped)
    return [float(each[1]) for each in found if each]


def shown(folder: Path, cluster: str, *, verbose: int = 0, **env: str) -> Screen:
    """Run a script on a terminal, and return what that showed."""
    text = SCRIPT.replace("CLUSTER", cluster).replace("VERBOSE", str(verbose))
    (folder / "script.py").write_text(text)
    settings = {"TERM": "xterm-256color", "PYTHONWARNINGS": "ignore", **env}
    program = [sys.executable, "script.py"]
    with cli_process.Running(folder, program=program, terminal=True, **settings) as running:
        assert running.end(90) == 0, running.output
        return Screen(120, running.output)


def test_the_line_of_progress_has_what_it_has_cost_so_far(mixed: Cluster, folder: Path) -> None:
    begun = time.monotonic()
    screen = shown(folder, '"cluster.json"', verbose=10)
    most = 43.2 * (time.monotonic() - begun) / 3600
    assert screen.lines[-1] == "sum 780"
    costs = [float(found[1]) for line in screen.wiped if (found := re.search(r", ≈ ([\d.]+) EUR, 2 nodes ready", line))]
    assert len(set(costs)) > 3, screen.wiped
    # It grows, and begins anew with the second call.
    drops = [place for place in range(1, len(costs)) if costs[place] < costs[place - 1]]
    assert len(drops) == 1, costs
    # 43.2 EUR an hour are 0.012 a second, and the calls took two at least.
    for highest in (costs[drops[0] - 1], costs[-1]):
        assert 0.01 < highest < most
    details = [line for line in screen.wiped if "cost so far: " in line]
    form = r"  cost so far: ≈ [\d.]+ EUR, estimated: [\d.]+ dedicated and [\d.]+ spot node-hours at 36 EUR"
    assert any(re.match(form, line) for line in details), details


def test_a_local_clusters_line_has_no_cost_and_nodes_count_from_their_start(tmp_path: Path) -> None:
    boot = 5.0
    local = f"joblib_azure.LocalCluster(nodes=2, cores_per_node=1, emulator={{'boot_seconds': {boot}}})"
    screen = shown(tmp_path, local, verbose=10)
    lines = [line for line in screen.wiped if re.match(r"\S+ .*\d+ of 40 calls", line)]
    assert lines
    assert not any("≈" in line or "cost" in line for line in lines)
    assert any("cost so far: no cost (the nodes are emulated on this machine); " in line for line in screen.wiped)
    hours = hours_shown(screen)
    # Both were starting while the first call waited; the second one did not wait.
    assert 3600 * hours[0] > 2 * (boot - 2), hours
    assert min(hours) < hours[0]
