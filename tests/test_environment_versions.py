"""A node's packages that are not the client's are named before anything is unpickled; patch levels only warn."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from environment_lab import Lab

from joblib_azure import LocalCluster
from joblib_azure.codec import CallEncoder
from joblib_azure.environment import client_needs
from joblib_azure.environment.lock import uv_program
from joblib_azure.node.versions import differences


@pytest.fixture(scope="module")
def lab(wide_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(wide_cluster, tmp_path_factory.mktemp("client"))


def image_with(venv: Path, **others: str) -> Path:
    """Make what a pool's image might have: the client's packages, but for these."""
    names = ("joblib", "cloudpickle", "threadpoolctl", "azure-storage-blob")
    packages = [f"{name}=={others.get(name, metadata.version(name))}" for name in names]
    uv = uv_program()
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(venv)], check=True)
    install = [uv, "pip", "install", "--quiet", "--system-certs", "--python", str(venv / "bin" / "python")]
    subprocess.run([*install, *packages], check=True)
    return venv


def test_a_patch_level_only_warns(lab: Lab, tmp_path: Path) -> None:
    venv = image_with(tmp_path / "image")
    # There need not be another patch level on the index.
    (info,) = venv.glob("lib/python*/site-packages/cloudpickle-*.dist-info")
    other = f"{'.'.join(metadata.version('cloudpickle').split('.')[:2])}.99"
    info.rename(info.with_name(f"cloudpickle-{other}.dist-info"))
    script = """
    with parallel_config("azure", cluster="cluster.json"):
        say(found=Parallel()(delayed(abs)(-i) for i in range(3)))
    """
    done = lab.run(script, python=str(venv / "bin" / "python"), environment={"mode": "none"})
    assert done.said[0]["found"] == [0, 1, 2]
    assert f"cloudpickle is {other} on the node" in done.err


def test_other_versions_on_the_nodes_are_named(lab: Lab, tmp_path: Path) -> None:
    """Nodes whose image has another joblib: the first task says so, and it is no matter of tries."""
    venv = image_with(tmp_path / "image", joblib="1.4.2")
    script = """
    import os, pathlib

    def work(i):
        pathlib.Path(%r).touch()
        return i

    class Touches:
        def __reduce__(self):
            return pathlib.Path.touch, (pathlib.Path(%r),)

    with parallel_config("azure", cluster="cluster.json"):
        Parallel()(delayed(work)(Touches()) for i in range(2))
    """
    ran = tmp_path / "ran"
    done = lab.run(script % (str(ran), str(ran)), python=str(venv / "bin" / "python"), environment={"mode": "none"})
    assert done.code != 0
    last = done.err.strip().splitlines()[-1]
    assert f"joblib is 1.4.2 on the node and {metadata.version('joblib')} on the client" in last
    assert last.startswith("joblib_azure.errors.PackagesError")
    assert "cloudpickle" not in last
    assert str(venv) in last
    assert "Nothing was unpickled" in last
    assert not ran.exists()


NEEDS = {"python": "3.11.7", "packages": {"joblib": "1.6.0", "numpy": "2.4.6"}, "required": ["joblib"]}


@pytest.mark.parametrize(
    ("python", "packages", "serious", "slight"),
    [
        ("3.11.2", {"joblib": "1.6.0", "numpy": "2.4.6"}, [], []),
        ("3.12.7", {"joblib": "1.6.0", "numpy": "2.4.6"}, ["Python is 3.12.7 on the node and 3.11.7"], []),
        ("3.11.7", {"joblib": "1.6.3", "numpy": "2.4.6"}, [], ["joblib is 1.6.3 on the node and 1.6.0"]),
        ("3.11.7", {"joblib": "1.6.0", "numpy": "1.26.4"}, ["numpy is 1.26.4 on the node and 2.4.6"], []),
        ("3.11.7", {"joblib": "1.6.0"}, [], []),
        ("3.11.7", {"numpy": "2.4.6"}, ["joblib is not on the node (1.6.0 on the client)"], []),
        ("3.11.7", {"joblib": "1.6.0+local", "numpy": "2.4.6"}, [], ["joblib is 1.6.0+local"]),
    ],
)
def test_what_counts(python: str, packages: dict[str, str], serious: list[str], slight: list[str]) -> None:
    found = differences(NEEDS, {"python": python, "packages": packages})
    for said, expected in zip(found, (serious, slight), strict=True):
        assert len(said) == len(expected)
        assert all(text.startswith(start) for text, start in zip(said, expected, strict=True))


def test_the_pickles_tell_what_they_need() -> None:
    import numpy as np
    from joblib.parallel import BatchedCalls, delayed
    from sklearn.linear_model import LinearRegression

    encoder = CallEncoder(None)
    calls = [delayed(LinearRegression.fit)(LinearRegression(), [[1.0]], np.zeros(1))]
    encoder.chunk(BatchedCalls(calls, (None, None)))
    needs = client_needs(encoder.modules)
    assert {"scikit-learn", "numpy"} <= set(needs["required"])
    assert {"sklearn", "numpy"} <= {name.partition(".")[0] for name in needs["modules"]}  # what warm runners import
    assert "pytest" not in needs["packages"]
    assert needs["packages"]["scikit-learn"] == metadata.version("scikit-learn")
    assert needs["packages"]["joblib"] == metadata.version("joblib")
    assert "scikit-learn" not in client_needs(encoder.modules, frozenset({"scikit-learn"}))["packages"]
