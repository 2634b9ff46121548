"""The nodes get what the client has: environments made for real, from the registry, on emulated nodes."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from environment_lab import Lab, make_wheel, private_index

from joblib_azure import LocalCluster

#: A small pure package that the client does not have, and not at its newest.
PYPI = {"pypi": ["humanize==4.9.0"]}
WORK = """
def work(i):
    import humanize
    return sys.prefix, humanize.__version__, humanize.intcomma(1000 * i)

with parallel_config("azure", cluster="cluster.json"):
    found = Parallel()(delayed(work)(i) for i in range(4))
    say(found=found, preparation=preparation(), published=published())
"""


@pytest.fixture(scope="module")
def lab(wide_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(wide_cluster, tmp_path_factory.mktemp("client"))


def test_an_environment_from_the_registry_once_a_lock(lab: Lab) -> None:
    # Two nodes, as it believes: so that an archive is of use.
    first = lab.run(WORK, pythonPackages=PYPI, nodes=2).said[0]
    assert [text for _, _, text in first["found"]] == ["0", "1,000", "2,000", "3,000"]
    assert {version for _, version, _ in first["found"]} == {"4.9.0"}
    prefixes = {prefix for prefix, _, _ in first["found"]}
    assert len(prefixes) == 1
    assert sys.prefix not in prefixes
    assert re.search(r"installed \d+ packages", first["preparation"][0])
    assert re.search(r"stored its archive of \d+ MB", first["published"])

    # Another client, another job, the same lock: there is nothing to do.
    again = lab.run(WORK, pythonPackages=PYPI, nodes=2).said[0]
    assert again["found"] == first["found"]
    assert "was ready" in again["preparation"][0]
    assert again["published"] == ""

    # A node without it, as every further one of the pool: the archive.
    for folder in lab.node_folders("*"):
        if folder.name != "buffers":
            shutil.rmtree(folder)
    unpacked = lab.run(WORK, pythonPackages=PYPI).said[0]
    assert unpacked["found"] == first["found"]
    assert "unpacked from storage" in unpacked["preparation"][0]
    assert not lab.node_folders("uv-cache")


def test_an_installation_that_fails_ends_the_job_with_its_log(lab: Lab, tmp_path: Path) -> None:
    """Here storage has something else than what the lock says."""
    wheel = make_wheel(tmp_path, "broken_in_storage", "x = 1")
    from joblib_azure.environment.wheels import sha256_of
    from joblib_azure.storage import FILES

    blobs = lab.cluster.blobs
    blobs.create_container(FILES)
    blobs.put(FILES, f"{sha256_of(wheel)}/{wheel.name}", b"something else")
    begun = time.monotonic()
    done = lab.run(WORK, pythonPackages={**PYPI, "wheels": [str(wheel)]})
    assert time.monotonic() - begun < 60
    assert done.code != 0
    assert "NodesUnavailableError" in done.err
    assert "the job preparation task failed on every node" in done.err
    assert f"{wheel.name} has the SHA-256" in done.err
    assert "sig=" not in done.err


def test_a_package_that_no_index_has_is_told_before_anything_is_created(lab: Lab) -> None:
    done = lab.run(WORK, pythonPackages={"pypi": ["humanize==4.9.0+nowhere"]})
    assert done.code != 0
    assert "PackagesError: finding the packages for the nodes failed" in done.err
    assert "humanize==4.9.0+nowhere" in done.err
    assert "environment.exclude" in done.err


def test_offline_all_comes_through_storage(lab: Lab) -> None:
    """The nodes' way to the internet leads nowhere, for the preparation and for the tasks."""
    for folder in lab.node_folders("*"):
        shutil.rmtree(folder)
    script = """
    from joblib_azure.environment import EnvironmentPlan
    proxies = dict.fromkeys(("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy"), "http://127.0.0.1:9")
    settings = EnvironmentPlan.settings.fget
    EnvironmentPlan.settings = property(lambda plan: {**settings(plan), **proxies, "NO_PROXY": "127.0.0.1"})

    def work(i):
        import urllib.request
        import humanize
        try:
            return humanize.__version__, str(urllib.request.urlopen("https://pypi.org", timeout=5))
        except OSError as error:
            return humanize.__version__, str(error)

    with parallel_config("azure", cluster="cluster.json"):
        say(found=Parallel()(delayed(work)(i) for i in range(2)), preparation=preparation())
    """
    found = lab.run(script, pythonPackages={"pypi": ["humanize==4.8.0"]}, environment={"offline": True}).said[0]
    assert [version for version, _ in found["found"]] == ["4.8.0"] * 2
    assert all("Connection refused" in error for _, error in found["found"])
    assert "installed" in found["preparation"][0]


def test_a_private_index_leaves_no_credentials_anywhere(lab: Lab, tmp_path: Path) -> None:
    password = "pa55/w0rd~of=the+index"
    wheel = make_wheel(tmp_path / "wheels", "jazprivate", "answer = 42")
    script = """
    import logging
    logging.basicConfig(level=logging.DEBUG, filename="debug.log")

    def work(i):
        import jazprivate
        return jazprivate.answer + i

    with parallel_config("azure", cluster="cluster.json"):
        say(found=Parallel()(delayed(work)(i) for i in range(2)), preparation=preparation(), plan=repr(session().plan))
    """
    with private_index(tmp_path / "index", wheel, f"bob:{password}") as (host, asked):
        url = f"http://bob:{quote(password, safe='')}@{host}/simple"
        variables = {"UV_CACHE_DIR": str(lab.folder / "uv-cache")}
        # From pip's settings, as the client's pip has them.
        variables["PIP_EXTRA_INDEX_URL"] = url
        done = lab.run(script, variables, pythonPackages={"pypi": ["jazprivate"]})
        assert done.said[0]["found"] == [42, 43]
        assert any(path.endswith(".whl") for path in asked)
        # The next client is refused, and says so without the password.
        variables["PIP_EXTRA_INDEX_URL"] = url.replace("bob:", "eve:")
        refused = lab.run(script, variables, pythonPackages={"pypi": ["jazprivate==2"]})
        assert refused.code != 0
        assert "jazprivate" in refused.err
    secrets = [password, quote(password, safe=""), base64.b64encode(f"bob:{password}".encode()).decode()]
    secrets.append(base64.b64encode(f"eve:{password}".encode()).decode())
    for text in (done.out, done.err, refused.out, refused.err):
        assert not any(secret in text for secret in secrets)
    # Logs at DEBUG, locks, uv's cache; the servers' logs, the nodes' folders, all blobs.
    looked_at = 0
    for root in (lab.folder, lab.cluster.host.folder):
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                looked_at += 1
                data = path.read_bytes()
                assert not any(secret.encode() in data for secret in secrets), path
    assert looked_at > 100
    assert (lab.folder / "debug.log").stat().st_size > 1000


def test_git_and_wheels_of_the_client(lab: Lab, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "wheels", "local_wheel", "x = 'wheel'")
    repository = tmp_path / "repository"
    (repository / "sub" / "from_git").mkdir(parents=True)
    (repository / "sub" / "from_git" / "__init__.py").write_text("x = 'git'")
    (repository / "sub" / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "from-git"\nversion = "3"\n'
    )
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "."], [*identity, "commit", "--quiet", "-m", "x"], ["tag", "v3"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    script = """
    def work(i):
        import from_git, local_wheel
        return from_git.x, local_wheel.x

    with parallel_config("azure", cluster="cluster.json"):
        say(found=Parallel()(delayed(work)(i) for i in range(2)))
    """
    git = f"git+file://{repository}@v3#subdirectory=sub"
    found = lab.run(script, pythonPackages={"git": [git], "wheels": [str(wheel)]}).said
    assert found[0]["found"] == [["git", "wheel"]] * 2


def test_what_the_code_comes_to_import_makes_a_new_environment(lab: Lab) -> None:
    """cloudpickle and joblib are there from the start; threadpoolctl's neighbour numpy is not until it is imported."""
    script = """
    def first(i):
        return i

    with parallel_config("azure", cluster="cluster.json"):
        Parallel()(delayed(first)(i) for i in range(2))
        one = session()
        with open("late.py", "w") as file:
            file.write("def second(i):\\n    import narwhals\\n    return narwhals.__version__\\n")
        import late
        found = Parallel()(delayed(late.second)(i) for i in range(2))
        two = session()
        third = Parallel()(delayed(late.second)(i) for i in range(2))
        say(found=found, renewed=one.plan.digest != two.plan.digest, stays=session() is two)
    """
    import narwhals

    found = lab.run(script).said[0]
    assert found == {"found": [narwhals.__version__] * 2, "renewed": True, "stays": True}
