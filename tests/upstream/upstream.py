"""Runs other projects' tests in a pytest of their own, and tells by name what became of each.

Their run must not inherit this project's configuration (warnings as errors), and backends that are swapped
for it must not leak into this project's tests. So it is a child process::

    test_joblib.py ──run()──► pytest -c /dev/null -p joblib_plugin --pyargs joblib.test.test_parallel
                   ◄─Results─ a line of JSON for each test, from `Recorder`

The child has one local cluster for its whole run: ``JOBLIB_AZURE_CLUSTER=local``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPORT_VARIABLE = "UPSTREAM_REPORT"
#: Seconds that one upstream test may take; the slowest sleep for 10.
TEST_TIMEOUT = 120
#: The same for one that is left out, which is tried nevertheless.
LEFT_OUT_TIMEOUT = 15


# in the child ------------------------------------------------------------------------------------------------


class Recorder:
    """A pytest plugin that writes what becomes of every test, and how many chunks it sent to the nodes."""

    def __init__(self) -> None:
        from joblib_azure import AzureBackend

        self._path = Path(os.environ[REPORT_VARIABLE])
        self._submitted = 0
        self._before = 0
        submit = AzureBackend.submit

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._submitted += 1
            return submit(*args, **kwargs)

        AzureBackend.submit = counted  # type: ignore[method-assign]

    def _write(self, **what: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(what) + "\n")

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self._before = self._submitted
        self._write(test=_name(nodeid, location), outcome="hung")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        outcome = "left out" if hasattr(report, "wasxfail") and report.skipped else report.outcome
        chunks = self._submitted - self._before
        name, said = _name(report.nodeid, report.location), report.longreprtext
        self._write(test=name, outcome=outcome, seconds=report.duration, chunks=chunks, said=said)


def _name(nodeid: str, location: tuple[str, int | None, str]) -> str:
    """Return a test's name as pytest takes it. The node id of a file out of the child's folder lacks the file."""
    return f"{Path(location[0]).resolve()}::{nodeid.partition('::')[2]}"


def leave_out(items: Sequence[pytest.Item], reasons: Mapping[str, str]) -> None:
    """Expect tests to fail: one that passes, or whose name is unknown, is an error, so that the list stays true.

    Parameters
    ----------
    items : sequence of pytest.Item
    reasons : mapping
        From the name of a test, or of a function for all of its tests, to why it does not apply.
    """
    for item, reason in _named(items, reasons):
        item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
        item.add_marker(pytest.mark.timeout(LEFT_OUT_TIMEOUT))


def skip(items: Sequence[pytest.Item], reasons: Mapping[str, str]) -> None:
    """Do not run tests, named as for `leave_out`."""
    for item, reason in _named(items, reasons):
        item.add_marker(pytest.mark.skip(reason=reason))


def _named(items: Sequence[pytest.Item], reasons: Mapping[str, str]) -> Iterator[tuple[pytest.Item, str]]:
    found = set()
    for item in items:
        for name in {item.name, getattr(item, "originalname", item.name)} & set(reasons):
            found.add(name)
            yield item, reasons[name]
    if unknown := set(reasons) - found:
        raise pytest.UsageError(f"left out, but not among the tests: {', '.join(sorted(unknown))}")


# in the parent -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What became of one upstream test."""

    test: str  #: as pytest takes it as an argument
    outcome: str  #: passed, failed, skipped, left out, or hung: it had begun when the run ended
    seconds: float = 0.0
    chunks: int = 0  #: sent to the nodes
    said: str = ""


def run(folder: Path, plugin: str, *arguments: str, seconds: float, **environment: str) -> list[Result]:
    """Run upstream tests in a child process and return what became of each.

    Parameters
    ----------
    folder : Path
        An empty one, for the child to work in.
    plugin : str
        Module beside this one that is loaded before any test.
    *arguments : str
        Further ones of pytest: which tests.
    seconds : float
        Bound of the whole run.
    **environment : str
        Further variables.
    """
    report, log = folder / "report.jsonl", folder / "log.txt"
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", str(folder), "-p", plugin]
    command += ["-p", "no:cacheprovider", "--disable-warnings", f"--timeout={TEST_TIMEOUT}", *arguments]
    path = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    variables = {REPORT_VARIABLE: str(report), "JOBLIB_AZURE_CLUSTER": "local", "PYTHONPATH": path, **environment}
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    results = {}
    for line in report.read_text().splitlines() if report.exists() else ():
        values = json.loads(line)
        results[values["test"]] = Result(**values)
    tail = log.read_text()[-3000:]
    if code is None:
        hung = [result.test for result in results.values() if result.outcome == "hung"]
        pytest.fail(f"the run did not end within {seconds:g} s; it was in {hung}\n{tail}")
    # 0: all passed; 1: some failed, which the results say better.
    if code not in (0, 1) or not results:
        pytest.fail(f"the run ended with exit code {code}\n{tail}")
    return list(results.values())


def failures(results: Sequence[Result]) -> list[Result]:
    """Return those that failed or hung."""
    return [result for result in results if result.outcome in ("failed", "hung")]


def judge(results: Sequence[Result], *, reaching: int) -> None:
    """Fail with the name of every test that failed, and where fewer than `reaching` passed over the backend."""
    counts = Counter(result.outcome for result in results)
    reached = sum(1 for result in results if result.chunks and result.outcome == "passed")
    seconds = sum(result.seconds for result in results)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())), end="")
    print(f"; {reached} of those that passed ran calls on the nodes; {seconds:.0f} s")
    if failed := failures(results):
        names = "\n".join(f"  {result.test}" for result in failed)
        details = "\n\n".join(f"{result.test}\n{result.said[-3000:]}" for result in failed)
        pytest.fail(f"{len(failed)} upstream tests failed:\n{names}\n\n{details}", pytrace=False)
    assert reached >= reaching, f"only {reached} of the tests ran calls on the nodes; the backend was not in use"
