"""What the nodes would get: found out on the client, with nothing created."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from joblib_azure.config import ClusterConfig
from joblib_azure.environment import node_platform, plan
from joblib_azure.environment.conda import to_pypi
from joblib_azure.environment.indexes import Indexes, read_indexes
from joblib_azure.environment.installed import distributions, owners
from joblib_azure.environment.lock import LockedFile, _preference, digest_of
from joblib_azure.environment.usercode import imports_of
from joblib_azure.environment.wheels import pack_installed
from joblib_azure.errors import PackagesError


def config(**more: object) -> ClusterConfig:
    return ClusterConfig.read({"name": "p", "vmSize": "Standard_D4s_v5", **more}, "test")


def test_nodes_that_have_everything_ask_nothing_of_anybody() -> None:
    found = plan(config(environment={"mode": "none"}, python="python3.12"))
    assert found.digest == "none"
    assert found.lock is None
    assert "python3.12" in found.task_command
    assert plan(config(containerImage="registry/image:1")).lock is None


def test_another_minor_version_is_refused() -> None:
    with pytest.raises(PackagesError, match=r"environment\.python is 3\.1 and this is Python 3\."):
        plan(config(environment={"python": "3.1"}))


CLIENT = """
import json, sys
sys.path.insert(0, {folder!r})
import script_module
from joblib_azure.environment.usercode import find_user_code
from joblib_azure.environment.packages import explicit_roots, loaded_roots
code = find_user_code()
print(json.dumps([sorted(code.packages), sorted(code.modules), sorted(code.namespaces), sorted(explicit_roots(code)),
                  sorted(loaded_roots())]))
"""


def test_what_a_script_imports_is_found_where_it_is_not_imported_yet(tmp_path: Path) -> None:
    (tmp_path / "script_module.py").write_text("import helper\nimport spread.inside\ndef f():\n    import own\n")
    (tmp_path / "helper.py").write_text("def g():\n    from own.deep import thing\n    import narwhals\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").write_text("")
    (tmp_path / "own" / "deep.py").write_text("from . import deeper\n")
    (tmp_path / "own" / "deeper.py").write_text("def h():\n    import azure.storage.blob, no_such_module, os.path\n")
    (tmp_path / "spread").mkdir()
    (tmp_path / "spread" / "inside.py").write_text("")
    (tmp_path / "unused.py").write_text("import psutil\n")
    code = CLIENT.format(folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages, modules, namespaces, explicit, loaded = json.loads(done.stdout)
    assert (packages, modules, namespaces) == (["own"], ["helper", "script_module"], ["spread"])
    # Of the namespace azure what is named, not all that has a part in it.
    assert explicit == ["azure-storage-blob", "narwhals"]
    assert not {"pydantic", "azure-batch", "rich", "pytest", "uv"} & set(loaded)


def test_imports_are_read_with_their_relatives(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("import a.b as c\nfrom .. import d\nfrom .e import f\nfrom g import *\n")
    assert imports_of(source, "top.sub") == {"a.b", "top", "top.d", "top.sub.e", "top.sub.e.f", "g"}
    source.write_text("this is not Python")
    assert imports_of(source, "") == set()


def test_modules_have_owners() -> None:
    assert [found.name for found in owners("sklearn.ensemble")] == ["scikit-learn"]
    assert [found.name for found in owners("azure.storage.blob.BlobClient")] == ["azure-storage-blob"]
    assert owners("os.path") == owners("no_such_module") == owners("azure") == ()
    assert distributions()["joblib-azure"].editable


@pytest.mark.parametrize(
    ("spec", "requirement"),
    [
        ("scikit-learn", "scikit-learn"),
        ("conda-forge::pytorch=2.4", "torch==2.4.*"),
        ("pytables >=3.9,<4", "tables>=3.9,<4"),
        ("numpy==1.26.4", "numpy==1.26.4"),
        ("numpy=1.26.4=py312h_0", "numpy==1.26.4.*"),
        ("numpy 1.26.4 py312h_0", "numpy==1.26.4"),
        ("matplotlib-base", "matplotlib"),
        ("pandas=2.*", "pandas==2.*"),
        ("python=3.11", None),
    ],
)
def test_conda_names(spec: str, requirement: str | None) -> None:
    assert to_pypi(spec) == requirement


@pytest.mark.parametrize(
    ("spec", "said"),
    [("cudatoolkit=11.8", "commandLine"), ("r-base", "no Python package"), ("numpy=1.26|2.0", "alternatives")],
)
def test_conda_names_that_mean_nothing_to_pypi(spec: str, said: str) -> None:
    with pytest.raises(PackagesError, match=said):
        to_pypi(spec)


def test_pips_settings_are_uvs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    certificates = tmp_path / "certificates.pem"
    certificates.write_text("")
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://file/simple\nextra-index-url =\n    https://one/simple\n    https://two/simple\n"
        f"[install]\nfind-links = {tmp_path}\ntrusted-host = one\n"
    )
    environ = {
        "PIP_CONFIG_FILE": str(file),
        "PIP_INDEX_URL": "https://u:p%40ss@env/simple",
        "PIP_CERT": str(certificates),
    }
    environ["HOME"] = environ["XDG_CONFIG_HOME"] = str(tmp_path)
    found = read_indexes(config(), environ)
    assert found.default == "https://u:p%40ss@env/simple"
    assert found.extra == ("https://one/simple", "https://two/simple")
    assert found.find_links == (str(tmp_path),)
    variables = found.uv_environment()
    assert variables["UV_INDEX"] == "https://one/simple https://two/simple"
    assert variables["SSL_CERT_FILE"] == str(certificates)
    assert variables["UV_INSECURE_HOST"] == "one"
    # The nodes know nothing of the one with a password, and nobody sees it.
    assert found.node_environment()["UV_DEFAULT_INDEX"] == "https://two/simple"
    assert not any("p%40ss" in text for text in found.node_environment().values())
    assert "p%40ss" not in repr(found)
    assert "p@ss" not in found.mask("refused https://u:p%40ss@env/simple and p@ss")
    # The configuration's own count more.
    own = config(pythonPackages={"indexUrl": "https://own/simple", "extraIndexUrls": ["https://more/simple"]})
    assert read_indexes(own, environ).all == ("https://more/simple", "https://own/simple")


@pytest.mark.parametrize(
    ("indexes", "url", "fetches"),
    [
        (Indexes(), "https://files.pythonhosted.org/packages/x.whl", True),
        (Indexes(), "file:///wheels/x.whl", False),
        (Indexes(default="http://127.0.0.1:1/simple"), "http://127.0.0.1:1/x.whl", False),
        (Indexes(extra=("https://u:p@private/simple",)), "https://files.pythonhosted.org/packages/x.whl", True),
        (Indexes(extra=("https://u:p@private/simple",)), "https://private/x.whl", False),
        # Where such an index keeps its files is its own affair.
        (Indexes(extra=("https://u:p@private/simple",)), "https://blobs.example/x.whl", False),
        (Indexes(extra=("https://mirror/simple",)), "https://blobs.example/x.whl", True),
        (Indexes(), "https://blobs.example/x.whl?sig=secret", False),
    ],
)
def test_who_fetches_a_file(
    indexes: Indexes, url: str, fetches: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert indexes.node_fetches(url) is fetches


@pytest.mark.parametrize(
    ("size", "platform"),
    [
        ("Standard_D4s_v5", "x86_64-manylinux_2_28"),
        ("Standard_D4ps_v5", "aarch64-manylinux_2_28"),
        ("Standard_E16-8pds_v6", "aarch64-manylinux_2_28"),
        ("Standard_NP10s", "x86_64-manylinux_2_28"),
        ("Standard_F2", "x86_64-manylinux_2_28"),
        ("Emulated_C2", None),
    ],
)
def test_platforms_of_sizes(size: str, platform: str | None) -> None:
    assert node_platform(size) == platform


def test_a_lock_is_named_by_its_content_and_not_by_where_that_lies() -> None:
    one = LockedFile(name="a", version="1", file="a-1-py3-none-any.whl", sha256="0" * 64, url="https://one/a.whl")
    two = LockedFile(name="a", version="1", file="a-1-py3-none-any.whl", sha256="0" * 64, path="/somewhere/a.whl")
    assert digest_of([one], "3.11", None) == digest_of([two], "3.11", None)
    assert digest_of([one], "3.11", None) != digest_of([one], "3.12", None)


def test_the_wheel_that_fits_best_is_taken() -> None:
    wheels = [
        "a-1-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "a-1-cp39-abi3-manylinux_2_28_x86_64.whl",
        "a-1-cp311-cp311-manylinux_2_28_x86_64.whl",
        "a-1-py3-none-any.whl",
    ]
    assert max(wheels, key=_preference) == wheels[2]


def test_a_local_build_that_no_index_has_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyTorch's builds for one CUDA: installed here, and on no index that is known."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    info = tmp_path / "site" / "humanize-4.9.0+cu126.dist-info"
    info.mkdir(parents=True)
    (info / "RECORD").write_text("humanize/__init__.py,,\n")
    (info / "METADATA").write_text("Name: humanize\nVersion: 4.9.0+cu126\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(PackagesError, match=r"Here humanize==4\.9\.0\+cu126 is installed, which is a local build"):
        # Other tests of this process may have loaded it, and not every version of it has wheels for the nodes.
        plan(config(pythonPackages={"pypi": ["humanize"]}, environment={"exclude": ["cryptography"]}))


def test_what_was_installed_from_a_folder_is_packed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    site = tmp_path / "site"
    info = site / "from_folder-1.0.dist-info"
    (site / "from_folder").mkdir(parents=True)
    info.mkdir()
    (site / "from_folder" / "__init__.py").write_text("x = 'packed'\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: from-folder\nVersion: 1.0\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    (info / "direct_url.json").write_text(json.dumps({"url": "file:///home/me/from_folder", "dir_info": {}}))
    (info / "RECORD").write_text(
        "from_folder/__init__.py,,\nfrom_folder-1.0.dist-info/METADATA,,\nfrom_folder-1.0.dist-info/WHEEL,,\n"
        "from_folder-1.0.dist-info/direct_url.json,,\nfrom_folder-1.0.dist-info/RECORD,,\n"
    )
    monkeypatch.syspath_prepend(site)
    wheel = pack_installed(distributions()["from-folder"])
    assert wheel.name == "from_folder-1.0-py3-none-any.whl"
    assert wheel == pack_installed(distributions()["from-folder"])
    target = tmp_path / "target"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True)
    found = subprocess.check_output([sys.executable, "-c", "import from_folder; print(from_folder.x)"], cwd=target)
    assert found.strip() == b"packed"
    with (info / "RECORD").open("a") as record:
        record.write("from_folder/fast.abi3.so,,\n")
    with pytest.raises(PackagesError, match="has parts that were built for this machine"):
        pack_installed(distributions()["from-folder"])


def test_emulated_nodes_that_run_the_clients_python_have_what_the_client_has() -> None:
    own = {"vmSize": "Emulated_C1", "python": sys.executable}
    assert plan(config(**own)).lock is None
