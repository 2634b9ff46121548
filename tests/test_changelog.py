"""The version is said in three places; they agree."""

from __future__ import annotations

import re
from pathlib import Path

import joblib_azure

ROOT = Path(__file__).parents[1]


def test_the_versions_agree() -> None:
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert project
    assert newest
    assert joblib_azure.__version__ == project[1] == newest[1]
