"""The short form of benchmarks/soak.py: storms that a session survives, one after the other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[1] / "benchmarks" / "soak.py"


@pytest.mark.timeout(400)
def test_storms_are_survived_with_every_result_once() -> None:
    """Seed 0 has no time-out, which would take ten seconds; seed 11 is a storm that nobody survives, with a poison."""
    said = ""
    for seed in (0, 11):
        done = subprocess.run(
            [sys.executable, str(SOAK), "--seeds", "1", "--first", str(seed), "--calls", "400", "--least", "0"],
            capture_output=True,
            text=True,
            timeout=200,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            check=False,
        )
        said += done.stdout + done.stderr
    assert re.findall(r"^ok  seed +(\d+): +\d+ strikes, .* s, (\w+)$", said, re.MULTILINE) == [
        ("0", "survived"),
        ("11", "poison"),
    ], said
