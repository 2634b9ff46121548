"""What a person sees while scripts run on a local cluster: recorded from real pseudo-terminals."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import cli_process
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from terminal import Screen

HEAD = """
import os, sys, threading, time
from joblib import Parallel, delayed, parallel_config
from joblib_azure import LocalCluster

def work(i, seconds=0.1):
    time.sleep(seconds)
    return i

def fails(i):
    time.sleep(0.1)
    if i == 30:
        raise LookupError("call 30 fails")

def shown():
    "Wait until something is."
    end = time.monotonic() + 30
    while "write" not in vars(sys.stdout) and time.monotonic() < end:
        time.sleep(0.02)

CLUSTER = LocalCluster(nodes=2, cores_per_node=1, emulator={"boot_seconds": BOOT})
"""
#: What no program writes but the display.
_CALLS = re.compile(r"^\S+ (?:[━─]+ )?(\d+) (?:of (\d+) )?calls")


def script(folder: Path, text: str, boot: float = 0.0) -> list[str]:
    """Write a script, and return the command that runs it."""
    lines = [*HEAD.replace("BOOT", str(boot)).splitlines(), 'if __name__ == "__main__":']
    lines += ["    with CLUSTER:", *(f"        {line}" for line in text.strip().splitlines())]
    (folder / "script.py").write_text("\n".join(lines) + "\n")
    return [sys.executable, "script.py"]


def on_terminal(folder: Path, text: str, *, boot: float = 0.0, seconds: float = 90, **env: str) -> Screen:
    """Run a script on a terminal to its end, and return what that showed."""
    program = script(folder, text, boot)
    settings = {"TERM": "xterm-256color", "PYTHONWARNINGS": "ignore", **env}
    with cli_process.Running(folder, program=program, terminal=True, **settings) as running:
        assert running.end(seconds) == 0, running.output
        return Screen(120, running.output)


def counts(screen: Screen) -> list[tuple[int, str]]:
    """Return how many calls were shown as done, of how many, in the order in which that was shown."""
    return [(int(found[1]), found[2]) for line in screen.wiped if (found := _CALLS.match(line))]


def test_a_line_tells_what_is_waited_for_and_then_how_far_the_calls_are(tmp_path: Path) -> None:
    screen = on_terminal(
        tmp_path,
        """
print("begin")
with parallel_config("azure", cluster=CLUSTER):
    found = Parallel()(delayed(work)(i) for i in range(80))
    print("sum", sum(found))
    # A list has a length; and this one's cost is known from the first.
    found = Parallel()([delayed(work)(i) for i in range(60)])
print("sum", sum(found))
""",
        boot=3.0,
    )
    assert screen.lines == ["begin", "sum 3160", "sum 1770"]
    assert screen.cursor
    waits = [line for line in screen.wiped if line.startswith("pool local waiting for the first node")]
    assert waits
    assert re.search(r"\d+ s of at most 1 min 03 s, 0 of 1 ready, nodes: 2 \w+", waits[-1]), waits
    shown = counts(screen)
    assert len({done for done, _ in shown}) > 2
    ends = [place for place in range(1, len(shown)) if shown[place][0] < shown[place - 1][0]]
    assert len(ends) == 1, shown  # it grows, but from the first call to the second
    assert {total for _, total in shown[: ends[0]]} <= {None, "80"}
    assert {total for _, total in shown[ends[0] :]} == {"60"}
    lines = [line for line in screen.wiped if _CALLS.match(line)]
    assert any(re.search(r" \d+ s left, 2 running, \d+ queued, .*2 nodes ready$", line) for line in lines), lines


def test_the_messages_of_joblib_stay_what_they_are_above_more_lines(tmp_path: Path) -> None:
    screen = on_terminal(
        tmp_path,
        """
with parallel_config("azure", cluster=CLUSTER):
    found = Parallel(verbose=10)(delayed(work)(i) for i in range(60))
print("sum", sum(found))
""",
    )
    *messages, last = screen.lines
    assert last == "sum 1770"
    form = (
        r"\[Parallel\(n_jobs=-1\)\]: (Using backend AzureBackend with 2 concurrent workers\.|"
        r"(Done .*\| elapsed: .*|The calls' duration is not known yet\. .*|A Batch task costs .*))"
    )
    assert [line for line in messages if not re.fullmatch(form, line)] == []
    assert re.search(r"Done  60 out of  60 \| elapsed: .* finished$", messages[-1])
    assert any(re.match(r"  Batch tasks: \d+ running, \d+ waiting", line) for line in screen.wiped)
    assert any(re.match(r"  [\d.]+ k?B up, [\d.]+ k?B down, a call takes ", line) for line in screen.wiped)


def test_who_switches_it_off_and_on(tmp_path: Path) -> None:
    screen = on_terminal(
        tmp_path,
        """
def run(name, variable, **settings):
    os.environ["JOBLIB_AZURE_PROGRESS"] = variable
    with parallel_config("azure", cluster=CLUSTER, **settings):
        Parallel()(delayed(work)(i, 1.0) for i in range(6))
    print("ended:", name)

run("parameter 0", "1", progress=False)
run("variable 0", "0")
run("parameter 1", "0", progress=True)
run("variable 1", "1")
""",
    )
    assert screen.lines == ["ended: parameter 0", "ended: variable 0", "ended: parameter 1", "ended: variable 1"]
    parts = screen.text.split("ended: ")
    assert [" calls" in part for part in parts] == [False, False, True, True, False]


@pytest.mark.parametrize("setting", ["", ", progress=True"])
def test_without_a_terminal_nothing_is_said_unless_it_is_asked_for(tmp_path: Path, setting: str) -> None:
    program = script(
        tmp_path,
        f"""
with parallel_config("azure", cluster=CLUSTER{setting}):
    print("sum", sum(Parallel()(delayed(work)(i) for i in range(60))))
""",
    )
    environment = cli_process.environment()
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=90)
    assert done.stdout == "sum 1770\n"
    assert done.returncode == 0
    if not setting:
        assert done.stderr == ""
    else:
        # Whatever there was after a second, and then again ten seconds later.
        assert re.match(r"(work: \d+ (of 60 )?calls?, 2 \w+|(pool|cluster) local: \w+)", done.stderr), done.stderr
        assert "\x1b" not in done.stderr


def test_an_exception_and_ctrl_c_leave_the_terminal_as_it_was(tmp_path: Path) -> None:
    program = script(
        tmp_path,
        """
with parallel_config("azure", cluster=CLUSTER):
    try:
        Parallel()(delayed(fails)(i) for i in range(60))
    except LookupError as exc:
        print("caught", exc)
    try:
        Parallel()(delayed(work)(i, 0.3) for i in range(100))
    except KeyboardInterrupt:
        print("interrupted")
    print("sum", sum(Parallel()(delayed(work)(i) for i in range(3))))
""",
    )
    with cli_process.Running(tmp_path, program=program, terminal=True, TERM="xterm-256color") as running:
        running.expect("caught")
        before, running.output = running.output, ""
        running.expect(" queued")
        running.type("\x03")
        assert running.end() == 0, running.output
    screen = Screen(120, before + running.output)
    assert screen.lines == ["caught call 30 fails", "interrupted", "sum 3"]
    assert screen.cursor
    assert counts(screen)


def test_ctrl_c_while_nodes_start_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    program = script(
        tmp_path,
        """
with parallel_config("azure", cluster=CLUSTER):
    try:
        Parallel()(delayed(work)(i) for i in range(60))
    except KeyboardInterrupt:
        print("interrupted")
""",
        boot=600.0,
    )
    with cli_process.Running(tmp_path, program=program, terminal=True, TERM="xterm-256color") as running:
        running.expect("waiting for the first node")
        running.type("\x03")
        assert running.end() == 0, running.output
    screen = Screen(120, running.output)
    assert screen.lines == ["interrupted"]
    assert screen.cursor


def test_the_line_of_a_generator_goes_with_it(tmp_path: Path) -> None:
    """Closed, collected, and consumed to its end; what is printed meanwhile is above it."""
    screen = on_terminal(
        tmp_path,
        """
def begin():
    return Parallel(return_as="generator", batch_size=1)(delayed(work)(i) for i in range(100))

with parallel_config("azure", cluster=CLUSTER):
    results = begin()
    print("first", next(results))
    shown()
    print("meanwhile")
    time.sleep(0.5)
    results.close()
    print("closed")
    results = begin()
    next(results)
    shown()
    del results
    print("collected")
    time.sleep(0.5)
    print("sum", sum(begin()))
    results = begin()
    next(results)
    shown()
    # Of a generator that is still there at the end of the program nothing stays either.
""",
    )
    assert screen.lines == ["first 0", "meanwhile", "closed", "collected", "sum 4950"]
    parts = re.split(r"closed|collected|sum \d+", screen.text)
    assert [" calls" in part for part in parts] == [True] * 4


def test_a_job_shows_how_much_of_it_was_sent_and_then_how_far_it_is(tmp_path: Path) -> None:
    """For whoever submits it, waits for it and collects its results."""
    screen = on_terminal(
        tmp_path,
        """
from joblib_azure import submit

def calls():
    for i in range(60):
        time.sleep(0.04)
        yield delayed(work)(i, 0.2)

job = submit(calls(), cluster=CLUSTER, name="sweep", calls_per_task=5)
print("sent")
results = job.results(timeout=60)
print("first", next(results))
print("sum", sum(results))
calls = [delayed(work)(i, 0.2) for i in range(40)]
job = submit(calls, cluster=CLUSTER, name="other", calls_per_task=5)
job.wait(60)
print("over")
submit(calls, cluster=CLUSTER, name="silent", progress=False).wait(60, progress=False)
""",
    )
    assert screen.lines == ["sent", "first 0", "sum 1770", "over"]
    assert any(re.match(r"job sweep \d+ calls sent, .*[kM]?B up", line) for line in screen.wiped)
    pattern = re.compile(r"job sweep (?:[━─]+ )?(\d+) of 60 calls, .*tasks: \d+ running, \d+ waiting")
    shown = [int(found[1]) for line in screen.wiped if (found := pattern.match(line))]
    assert len(set(shown)) > 2
    assert sorted(shown) == shown
    assert any(re.match(r"job other [━─]+ \d+ of 40 calls, .*2 nodes ready", line) for line in screen.wiped)
    assert "job silent" not in screen.text


def test_calls_of_several_threads_have_a_line_each(tmp_path: Path) -> None:
    screen = on_terminal(
        tmp_path,
        """
def other(i):
    return work(i)

def run(function):
    with parallel_config("azure", cluster=CLUSTER):
        Parallel()(delayed(function)(i) for i in range(40))

threads = [threading.Thread(target=run, args=(function,)) for function in (work, other)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("end")
""",
    )
    assert screen.lines == ["end"]
    names = [line.split()[0] for line in screen.wiped if _CALLS.match(line)]
    assert {"work", "other"} <= set(names)
    assert any({before, after} == {"work", "other"} for before, after in itertools.pairwise(names))


def test_a_forked_child_shows_nothing(tmp_path: Path) -> None:
    screen = on_terminal(
        tmp_path,
        """
with parallel_config("azure", cluster=CLUSTER):
    results = Parallel(return_as="generator", batch_size=1)(delayed(work)(i) for i in range(100))
    next(results)
    shown()
    print("parent", ["write" in vars(stream) for stream in (sys.stderr, sys.stdout)])
    child = os.fork()
    if not child:
        changed = ["write" in vars(stream) for stream in (sys.stderr, sys.stdout)]
        sys.stderr.write(f"\\r\\x1b[2Kchild {changed}\\n")
        os._exit(0)
    os.waitpid(child, 0)
    print("sum", sum(results))
""",
    )
    assert screen.lines == ["parent [True, True]", "child [False, False]", "sum 4950"]
