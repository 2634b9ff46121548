"""By what a call is recognised in another process: what must change a fingerprint, and what must not."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joblib_azure.fingerprint import fingerprints

HEAD = """
import functools, json, sys
import numpy as np
from joblib import delayed
from joblib_azure.fingerprint import fingerprints
"""
SCRIPT = """
import helpers
FACTOR = 3
TABLE = {"a": 1, "b": [1, 2]}
def deep(x): return x + FACTOR
def outer(scale):
    def inner(x, y=2, *, z=4):
        return [deep(v) * scale + len(TABLE) for v in {"p", "q", x}]
    return inner
class Model:
    rate = 0.1
    def __init__(self, n): self.n = n
    def fit(self, X): return self.n * X.sum() + FACTOR
def recursive(n): return 1 if n < 2 else n * recursive(n - 1)
def uses_module(x): return helpers.help(x)
def run():
    X = np.arange(10.0)
    return [
        delayed(outer(2))(1), delayed(functools.partial(deep, 5))(), delayed(Model(3).fit)(X), delayed(recursive)(5),
        delayed(uses_module)({"k": {1, 2, 3}}), delayed(np.sum)(X), delayed(len)("text"),
        delayed(lambda x: x + FACTOR)(1), delayed(max)(1, 2, key=abs),
    ]
"""
TAIL = """
print(json.dumps(fingerprints(run())))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "helpers.py").write_text("STEP = 1\ndef help(x): return len(x) + STEP\ndef other(): return 1\n")
    return tmp_path


def printed(folder: Path, script: str = SCRIPT, seed: str = "1") -> list[str]:
    """Return the fingerprints that a process of its own finds."""
    path = folder / "script.py"
    path.write_text(HEAD + script + TAIL)
    environment = {
        "PYTHONPATH": f"{Path(__file__).parents[1]}:{folder}",
        "PYTHONHASHSEED": seed,
        "PATH": "/usr/bin",
        # Python takes a compiled file for current if its source has the same size and second: edits here are as quick.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def test_another_process_finds_the_same(folder: Path) -> None:
    """Whatever the order of its sets, and wherever in the file the functions are."""
    first = printed(folder, seed="1")
    assert all(first)
    assert len(set(first)) == len(first)
    assert printed(folder, seed="2") == first
    assert printed(folder, "\n\n# a comment\n" + SCRIPT, seed="3") == first


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("FACTOR = 3", "FACTOR = 4", {0, 1, 2, 7}),
        ('{"a": 1, "b": [1, 2]}', '{"a": 1, "b": [1, 3]}', {0}),
        ("return x + FACTOR\ndef outer", "return x - FACTOR\ndef outer", {0, 1}),
        ("y=2", "y=3", {0}),
        ("z=4", "z=5", {0}),
        ("outer(2)", "outer(3)", {0}),
        ("deep, 5", "deep, 6", {1}),
        ("rate = 0.1", "rate = 0.2", {2}),
        ("Model(3)", "Model(4)", {2}),
        ("n < 2", "n < 3", {3}),
        ('"p", "q"', '"p", "r"', {0}),
        ('{"k": {1, 2, 3}}', '{"k": {1, 2, 4}}', {4}),
        ("np.arange(10.0)", "np.arange(11.0)", {2, 5}),
        ("key=abs", "key=float", {8}),
    ],
)
def test_what_changes_a_call(folder: Path, before: str, after: str, changed: set[int]) -> None:
    first = printed(folder)
    assert before in SCRIPT
    then = printed(folder, SCRIPT.replace(before, after))
    assert {place for place, (one, other) in enumerate(zip(first, then, strict=True)) if one != other} == changed


def test_what_a_module_of_the_users_does_counts_where_it_is_named(folder: Path) -> None:
    first = printed(folder)
    helpers = folder / "helpers.py"
    text = helpers.read_text()
    helpers.write_text(text.replace("return 1", "return 2"))  # nobody calls that
    assert printed(folder) == first
    helpers.write_text(text.replace("STEP = 1", "STEP = 2"))
    then = printed(folder)
    assert [place for place in range(len(first)) if first[place] != then[place]] == [4]


def identity(value: Any) -> Any:
    return value


def test_what_cannot_be_hashed_equals_nothing() -> None:
    assert fingerprints([(identity, (threading.Lock(),), {})]) == [""]


def test_a_call_is_more_than_its_arguments_together() -> None:
    calls = [((1, 23), {}), ((12, 3), {}), ((1,), {"a": 23}), ((1, "23"), {}), ((1, 23.0), {}), ((True, 23), {})]
    found = fingerprints([(identity, args, kwargs) for args, kwargs in calls])
    assert len(set(found)) == len(calls)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(first=VALUES, second=VALUES)
def test_arguments_that_differ_make_calls_differ(first: Any, second: Any) -> None:
    one, other = (fingerprints([(identity, (value,), {})])[0] for value in (first, second))
    assert one
    assert other
    if repr(first) == repr(second):
        assert one == other
    elif first != second:
        assert one != other


def test_the_same_array_and_an_equal_one() -> None:
    array = np.arange(5.0)
    same, equal, other = fingerprints([(identity, (each,), {}) for each in (array, array.copy(), array + 1)])
    assert same == equal
    assert same != other
