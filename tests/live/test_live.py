"""The smoke suite: a small pool, the main job on it, a look at everything, and the end of all of it.

In this order: each test goes on where the one before it stopped.
"""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
from joblib import Parallel, delayed, parallel_config
from live_account import is_live, lacking

from joblib_azure import OutputFile, submit
from joblib_azure.cluster import Cluster
from joblib_azure.cluster.spec import differences, pool_spec
from joblib_azure.config import ClusterConfig
from joblib_azure.errors import ResourceNotFoundError
from joblib_azure.registry import close_sessions, session_for

if is_live() and lacking():
    pytest.skip(lacking(), allow_module_level=True)

# A pool's allocation and its first node take minutes on Azure.
pytestmark = pytest.mark.timeout(2400)


def _work(number: int) -> int:
    return sum(divisor for divisor in range(1, number) if number % divisor == 0)


def _copy(number: int) -> int:
    content = Path("given/deep/one.txt").read_text()
    Path("left/here").mkdir(parents=True)
    for name in (f"{number}.txt", "here/a.csv", "here/deep.log"):
        (Path("left") / name).write_text(content)
    print(content)
    return len(content)


def test_a_new_pool_costs_nothing(cluster: Cluster) -> None:
    status = cluster.status()
    assert (status.pool.state, status.pool.target_nodes) == ("active", 0)
    assert status.pool.autoscale_run is None or status.pool.autoscale_run.error == ""


def test_what_the_service_made_is_what_was_asked_for(cluster: Cluster, config: ClusterConfig) -> None:
    found = cluster.batch.pool(config.name)
    wanted = pool_spec(config, cluster.account, found.spec.image, found.spec.node_agent_sku)
    assert differences(config, wanted, found) == []
    Cluster.create(config, cluster.account, wait=False).close()


def test_the_service_knows_images(cluster: Cluster) -> None:
    images = cluster.batch.supported_images()
    assert any(each.verified and each.os == "linux" for each in images)
    assert any("DockerCompatible" in each.capabilities for each in images)


def test_the_formula_is_evaluated(cluster: Cluster, config: ClusterConfig) -> None:
    run = cluster.batch.evaluate_autoscale(config.name, "$TargetDedicatedNodes = 0;")
    assert run.error == ""
    assert "$TargetDedicatedNodes=0" in run.results


def test_the_main_job(cluster: Cluster) -> None:
    """From zero nodes: the session asks for one, waits for it, and gives joblib the results that it has at home."""
    numbers = range(2000, 2040)
    with parallel_config("azure", cluster=cluster):
        assert Parallel()(delayed(_work)(number) for number in numbers) == [_work(number) for number in numbers]
        with pytest.raises(ZeroDivisionError):
            Parallel()(delayed(divmod)(1, i) for i in range(2))
    floor = cluster.status().floor
    assert floor is not None
    assert floor.dedicated == 1


def test_a_look_at_everything(cluster: Cluster, config: ClusterConfig) -> None:
    status = cluster.status()
    assert sum(status.counts.dedicated.values()) == 1
    assert session_for(cluster).job in {job.id for job in status.jobs}
    (node,) = cluster.nodes()
    assert node.dedicated
    assert node.start_task_exit == 0
    assert b"a node of the smoke suite" in cluster.file(node.id, "startup/stdout.txt")
    assert cluster.file(node.id, "startup/stdout.txt", tail=6) == b"suite\n"
    assert cluster.batch.node_file_tail(config.name, node.id, "startup/stdout.txt", 6) == "suite\n"
    assert "startup" in {file.name for file in cluster.files(node.id)}
    assert config.name in {pool.id for pool in Cluster.list(cluster.account, config.name[:-2])}


def test_another_client_by_name(cluster: Cluster, config: ClusterConfig) -> None:
    other = Cluster.attach(config.name, cluster.account)
    assert (other.config.nodes, other.config.cores) == (config.nodes, config.cores)
    assert len(other.wait_for_nodes(1)) == 1
    other.demand(1)
    other.close()


def test_a_sas_reads_what_it_names(cluster: Cluster, config: ClusterConfig) -> None:
    import urllib.request

    container = f"{config.name.lower().replace('_', '-')}-sas"
    cluster.blobs.create_container(container)
    try:
        cluster.blobs.put(container, "one", b"content")
        url = cluster.blobs.blob_url(container, "one", timedelta(minutes=10))
        with urllib.request.urlopen(url, timeout=30) as found:
            assert found.read() == b"content"
        assert [blob.name for blob in cluster.blobs.blobs(container, "")] == ["one"]
    finally:
        cluster.blobs.delete_container(container)


def test_files_in_and_out(cluster: Cluster, tmp_path: Path) -> None:
    """What is not documented too: how the service names what it stores, and what a pattern makes of linked files."""
    (tmp_path / "given" / "deep").mkdir(parents=True)
    (tmp_path / "given" / "deep" / "one.txt").write_text("content")
    wanted = ["left/*.txt", "left/here/[a-z]*.csv", OutputFile("**/*.log", on="success"), "../stdout.txt"]
    job = submit(
        [delayed(_copy)(number) for number in range(2)],
        cluster=cluster,
        calls_per_task=1,
        resource_files=tmp_path / "given",
        output_files=wanted,
    )
    try:
        assert list(job.results(timeout=1200)) == [7, 7]
        job.download(tmp_path / "had", timeout=600)
        assert [each.failure for each in job.tasks()] == [None, None]
        had = {path.relative_to(tmp_path / "had").as_posix().partition("/")[2] for path in tmp_path.glob("had/**/*.*")}
        assert had == {"stdout.txt", "left/0.txt", "left/1.txt", "left/here/a.csv", "left/here/deep.log"}
    finally:
        job.delete(wait=True)


def test_other_bounds(cluster: Cluster, config: ClusterConfig) -> None:
    close_sessions(cluster)
    cluster.resize(dedicated=(0, 2), interval=600, timeout=900)
    found = cluster.status().pool
    assert found.autoscale is not None
    assert found.autoscale.interval == timedelta(minutes=10)
    assert Cluster.attach(config.name, cluster.account).config.nodes == 2


def test_to_fixed_numbers_and_to_nothing(cluster: Cluster) -> None:
    cluster.resize(dedicated=0, formula="FIXED", wait=True, timeout=900)
    end = time.monotonic() + 900
    while cluster.nodes() or cluster.status().pool.allocation != "steady":
        assert time.monotonic() < end
        time.sleep(0.2)
    assert cluster.status().pool.autoscale is None


def test_the_end(cluster: Cluster) -> None:
    cluster.delete(wait=True, timeout=1200)
    with pytest.raises(ResourceNotFoundError):
        cluster.status()
    assert Cluster.list(cluster.account, cluster.config.name) == ()
