"""The user's own modules travel with the calls: what the nodes import is what the client has now."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from environment_lab import Lab

from joblib_azure import LocalCluster
from joblib_azure.environment import overlay
from joblib_azure.environment.overlay import Overlay
from joblib_azure.errors import PackagesError

#: The nodes have all packages already; and no path of the client's: these clients are none of the local cluster's.
NONE = {"python": sys.executable, "environment": {"mode": "none"}}


@pytest.fixture(scope="module")
def lab(wide_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(wide_cluster, tmp_path_factory.mktemp("client"))


def test_an_edit_is_seen_by_the_next_call_of_the_same_job(lab: Lab) -> None:
    package = lab.folder / "mine"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("from .numbers import number\n")
    (package / "numbers.py").write_text("def number(i):\n    return 10 * i\n")
    (package / "late.py").write_text("import unloaded\nvalue = unloaded.value\n")
    (package / "data" / "words.txt").write_text("first")
    (lab.folder / "unloaded.py").write_text("value = 'found'\n")
    found = lab.run(
        """
        import importlib, pathlib
        import mine.numbers

        def work(i):
            from mine import late, number
            here = pathlib.Path(mine.__file__)
            return number(i), late.value, (here.parent / "data" / "words.txt").read_text(), str(here)

        def outer():
            return Parallel(n_jobs=2)(delayed(mine.number)(i) for i in range(2))

        with parallel_config("azure", cluster="cluster.json"):
            before = Parallel()(delayed(work)(i) for i in range(2))
            nested = Parallel()([delayed(outer)()])
            job = session().job
            pathlib.Path("mine/numbers.py").write_text("def number(i):\\n    return 20 * i\\n")
            pathlib.Path("mine/data/words.txt").write_text("second")
            importlib.reload(mine.numbers)
            after = Parallel()(delayed(work)(i) for i in range(2))
            # By reference, and the client has what it had.
            again = Parallel()(delayed(mine.numbers.number)(i) for i in range(2))
            say(before=before, after=after, again=again, nested=nested, same=session().job == job)
        """,
        **NONE,
    ).said[0]
    assert [call[:3] for call in found["before"]] == [[0, "found", "first"], [10, "found", "first"]]
    assert [call[:3] for call in found["after"]] == [[0, "found", "second"], [20, "found", "second"]]
    assert found["again"] == [0, 20]
    assert found["nested"] == [[0, 10]]
    assert found["same"]
    # They came from the nodes' own folders, not from the client's.
    files = [Path(call[3]) for call in found["before"] + found["after"]]
    assert not any(file.is_relative_to(lab.folder) for file in files)
    assert files[0] != files[2]


def test_an_editable_project_need_not_be_imported_here(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "src" / "project").mkdir(parents=True)
    (tmp_path / "src" / "project" / "__init__.py").write_text("name = 'a project'\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "project"\nversion = "1"\ndependencies = []\n')
    found = lab.run(
        """
        def work(i):
            import project
            return project.name

        with parallel_config("azure", cluster="cluster.json"):
            say(found=Parallel()(delayed(work)(i) for i in range(2)))
        """,
        **NONE,
        pythonPackages={"editable": [str(tmp_path)]},
    ).said[0]
    assert found["found"] == ["a project"] * 2


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the user's that is loaded, in a folder on the path."""
    folder = tmp_path / "overlay_sample"
    folder.mkdir()
    (folder / "__init__.py").write_text("import overlay_single\n")
    (tmp_path / "overlay_single.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("overlay_sample")
    yield folder
    for name in ("overlay_sample", "overlay_single"):
        sys.modules.pop(name, None)


def only(found: Overlay) -> dict[str, str]:
    """Digests of the parts that the sample is in."""
    _, code = found.look()
    assert "overlay_sample" in code
    assert "overlay_single" in code
    return {name: part.buffer.digest for name, part in found._parts.items() if name in ("overlay_sample", "")}


def test_the_same_files_are_the_same_archives(package: Path) -> None:
    one = only(Overlay())
    (package / "__init__.py").touch()
    (package / "__pycache__").mkdir(exist_ok=True)
    (package / "__pycache__" / "x.pyc").write_bytes(b"byte code")
    (package / ".git").mkdir()
    (package / ".git" / "HEAD").write_text("left out")
    assert only(Overlay()) == one


def test_an_edit_changes_what_was_edited_alone(package: Path) -> None:
    following = Overlay()
    one = only(following)
    (package / "more.txt").write_text("data")
    two = only(following)
    assert one["overlay_sample"] != two["overlay_sample"]
    assert one[""] == two[""]
    (package / "more.txt").unlink()
    assert only(following) == one


def test_what_is_excluded_stays(package: Path) -> None:
    _, code = Overlay(exclude=["overlay_sample"]).look()
    assert "overlay_sample" not in code


def test_too_much_is_told_with_the_largest(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "MAX_OVERLAY", 1 << 20)
    (package / "big.bin").write_bytes(bytes(2 << 20))
    with pytest.raises(PackagesError, match=r"overlay_sample has 2 MB.*environment\.exclude"):
        Overlay().look()


def test_extension_modules_do_not_go_to_another_platform(package: Path) -> None:
    (package / "fast.abi3.so").write_bytes(b"")
    with pytest.raises(PackagesError, match=r"fast\.abi3\.so was built for this machine"):
        Overlay(foreign_platform=True).look()
    Overlay(foreign_platform=False).look()
