"""Files on a node: what is linked into a task's folder, and what of it is stored at its end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joblib_azure.emulator import outputfiles
from joblib_azure.node.given import (
    FOLDER,
    VARIABLE,
    fixed_folder,
    found_files,
    has_wildcards,
    link_files,
    matches,
    store_files,
)

FILES = ("a.txt", "b1", "b2", ".hidden", "in/c.txt", "in/.e", "in/deep/d.txt", "in/deep/a", ".cache/f.txt", "[x]/b1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("wd")
    for name in FILES:
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(name)
    return made


NAME = st.sampled_from(
    ["*", "**", "a.txt", "*.txt", "in", "i*", "deep", ".*", "b?", "b[12]", "b[!1]", "[[]x]", "?", "d*", ".cache", "a"]
)


@settings(max_examples=300)
@given(st.lists(NAME, min_size=1, max_size=4))
def test_a_task_finds_what_the_service_finds(folder: Path, parts: list[str]) -> None:
    """The two were written apart, by what is documented."""
    pattern = "/".join(parts)
    theirs = {file.relative_to(folder).as_posix() for file, _ in outputfiles.matches(folder, pattern)}
    assert set(found_files(folder, pattern)) == theirs
    assert {name for name in FILES if matches(pattern, name)} == theirs


def test_where_a_pattern_begins() -> None:
    begins = {"*": "", "a/*": "a", "a/b/*.txt": "a/b", "a/*/b/c": "a", "a/b": "a", "x": ""}
    assert {each: fixed_folder(each) for each in begins} == begins
    assert [has_wildcards(each) for each in ("a.b", "a*", "a?", "a[b]")] == [False, True, True, True]


def test_links(tmp_path: Path) -> None:
    prepared, task = tmp_path / "prepared" / FOLDER, tmp_path / "task"
    (prepared / "in" / "deep").mkdir(parents=True)
    (prepared / "one").write_text("1")
    (prepared / "in" / "deep" / "two").write_text("2")
    task.mkdir()
    environ = {"AZ_BATCH_TASK_WORKING_DIR": str(task), "AZ_BATCH_JOB_PREP_WORKING_DIR": str(prepared.parent)}
    link_files(environ)
    assert list(task.iterdir()) == []
    link_files({**environ, VARIABLE: "1"})
    assert (task / "one").read_text() + (task / "in/deep/two").read_text() == "12"
    # What a call writes beside a file is its own, and what an earlier run of the task has put there stays.
    (task / "in" / "mine").touch()
    (task / "one").unlink()
    (task / "one").write_text("changed")
    link_files({**environ, VARIABLE: "1"})
    assert (task / "one").read_text() == "changed"
    assert os.listdir(prepared / "in") == ["deep"]


@pytest.mark.parametrize("failed", [False, True])
def test_what_is_stored(folder: Path, failed: bool) -> None:
    put: list[tuple[str, str, str]] = []
    uploads = [
        {"pattern": "in/*.txt", "url": "one", "path": "", "on": "success"},
        {"pattern": "b?", "url": "two", "path": "x/y/", "on": "failure"},
    ]
    store_files(
        uploads, folder, "task-1", failed=failed, put=lambda url, name, file: put.append((url, name, file.read_text()))
    )
    expected = [("two", "x/y/task-1/b1", "b1"), ("two", "x/y/task-1/b2", "b2")]
    assert put == (expected if failed else [("one", "task-1/in/c.txt", "in/c.txt")])
