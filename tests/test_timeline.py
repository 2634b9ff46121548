"""The timeline of real jobs on a local cluster, and its page in a real browser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromium_lab
import jobs_lab as lab
import pytest
import runs_lab
from joblib import delayed
from test_report import decoded, evil

from joblib_azure import Job, LocalCluster, submit
from joblib_azure.errors import JobError
from joblib_azure.jobs import names
from joblib_azure.report import Timeline

SECONDS = 60.0


def until(condition: Any, what: str) -> Any:
    end = time.monotonic() + SECONDS
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {SECONDS:.0f} s until {what}")
        time.sleep(0.02)
    return found


# jobs -------------------------------------------------------------------------------------------------------


def test_the_timeline_of_a_job_that_is_over(slotted_cluster: LocalCluster, tmp_path: Path) -> None:
    calls = [delayed(lab.marked)(str(tmp_path), i, 0.1) for i in range(32)]
    begun = time.time()
    job = submit(calls, cluster=slotted_cluster, name="picture", calls_per_task=4)
    job.wait(SECONDS)
    until(lambda: job.status().state == "completed", "the service has ended it")
    ended = time.time()
    timeline = Job.attach("picture", slotted_cluster).timeline()
    history = timeline.history
    tasks = {task.id: task for task in job.tasks()}
    assert sorted(run.task for run in history.runs) == sorted(tasks)
    assert (history.calls, history.done, history.failed, history.waiting, history.running) == (32, 32, 0, 0, False)
    assert history.function == "jobs_lab.marked(str, int, float)"
    assert set(history.cores.values()) == {2}
    assert len(history.cores) == 2
    assert len(history.lanes) <= 4
    for run in history.runs:
        task = tasks[run.task]
        assert (run.state, run.node, run.calls, run.done, run.workers) == ("done", task.node, 4, 4, 1)
        # The service's own words on its begin and its end …
        assert run.begun == pytest.approx(task.started.timestamp(), abs=0.05)  # type: ignore[union-attr]
        assert run.ended == pytest.approx(task.ended.timestamp(), abs=0.05)  # type: ignore[union-attr]
        # … and the workers' on what they did in between.
        assert 0.4 <= run.work < 1.0
        assert run.phases.compute == pytest.approx(run.work, abs=0.3)
        assert all(seconds >= 0 for seconds in run.phases)
    assert begun - 0.1 <= history.begun <= history.ended <= ended
    assert 0 < timeline.utilisation.share <= 1
    assert "32 of 32 calls done; 8 tasks on 2 nodes" in timeline.summary
    meta, columns, _ = decoded(timeline.html())
    assert meta["runs"] == 8
    assert sum(columns["calls"]) == 32


def test_the_timeline_of_a_job_that_runs(cluster: LocalCluster, tmp_path: Path) -> None:
    calls = [delayed(lab.square)(3), *(delayed(lab.waits)(str(tmp_path), i) for i in range(1, 6))]
    job = submit(calls, cluster=cluster, calls_per_task=2)
    until(lambda: len(list(tmp_path.glob("started-*"))) == 2 and job.status().done == 1, "two run, one is done")
    history = job.timeline().history
    assert (history.calls, history.done, history.waiting, history.running) == (6, 1, 1, True)
    assert [run.state for run in history.runs] == ["running", "running"]
    # One has told how far it is, with its first outcome; the other one is known from the service.
    assert sorted(run.done for run in history.runs) == [0, 1]
    assert {run.node for run in history.runs} == {node.id for node in cluster.nodes()}
    assert history.ended == pytest.approx(time.time(), abs=5)
    assert all(run.ended == pytest.approx(history.ended, abs=0.01) for run in history.runs)
    time.sleep(0.3)
    assert job.timeline().history.seconds > history.seconds
    assert "up to now" in job.timeline().summary
    (tmp_path / "stop").touch()
    job.wait(SECONDS)
    after = until(lambda: not (found := job.timeline().history).running and found, "it is over")
    assert [run.state for run in after.runs] == ["done"] * 3


def test_calls_that_fail_and_tasks_that_are_lost(cluster: LocalCluster, tmp_path: Path) -> None:
    calls = [delayed(lab.odd_ones_fail)(i) for i in range(4)] + [delayed(lab.waits)(str(tmp_path), 4)]
    job = submit(calls, cluster=cluster, calls_per_task=2, retries=0, name="mixed")
    until(lambda: (tmp_path / "started-4").exists() and job.status().failed == 2, "the last one runs")
    (task,) = [each.id for each in job.tasks() if 4 in names.calls_of(each.id)]
    cluster.batch.terminate_task(job.id, task)
    job.wait(SECONDS)
    timeline = job.timeline()
    states = {run.task: run.state for run in timeline.history.runs}
    assert states.pop(task) == "failed"
    assert set(states.values()) == {"done"}
    assert (timeline.history.done, timeline.history.failed) == (4, 2)
    kinds = {finding.kind: finding for finding in timeline.findings}
    assert {"failed-calls", "lost-tasks"} <= kinds.keys()
    assert f"joblib-azure job logs mixed {task}" in kinds["lost-tasks"].advice


def test_a_task_whose_node_went_is_drawn_twice(cluster: LocalCluster, tmp_path: Path) -> None:
    calls = [delayed(lab.square)(2), delayed(lab.waits)(str(tmp_path), 1)]
    job = submit(calls, cluster=cluster, calls_per_task=2)
    until(lambda: (tmp_path / "started-1").exists() and job.status().done == 1, "its second call runs")
    (task,) = job.tasks()
    assert task.node is not None
    (tmp_path / "started-1").unlink()
    how = {"nodeRebootOption": "requeue"}
    cluster.batch._client.begin_reboot_node(cluster.config.name, task.node, how, polling_interval=0.1).result()
    until(lambda: (tmp_path / "started-1").exists(), "it runs again")
    (tmp_path / "stop").touch()
    job.wait(SECONDS)
    timeline = until(lambda: not (found := job.timeline()).history.running and found, "it is over")
    first, second = sorted(timeline.history.runs, key=lambda run: run.begun)
    assert (first.state, first.done, first.node) == ("preempted", 1, task.node)
    assert (second.state, second.done, second.requeues) == ("done", 2, 1)
    assert first.ended <= second.begun
    assert first.seconds > 0
    assert timeline.history.done == 2
    assert "preemptions" in {finding.kind for finding in timeline.findings}


def test_the_timeline_of_a_job_that_is_gone(cluster: LocalCluster) -> None:
    job = submit([delayed(lab.square)(1)], cluster=cluster, name="gone")
    job.wait(SECONDS)
    other = Job.attach("gone", cluster)
    job.delete(wait=True)
    with pytest.raises(JobError, match="was deleted"):
        other.timeline()


def test_tables_in_notebooks(cluster: LocalCluster) -> None:
    job = submit([delayed(lab.odd_ones_fail)(i) for i in range(4)], cluster=cluster, name="shown")
    status = job.wait(SECONDS)
    assert "4 of 4" not in status._repr_html_()
    assert "2 of 4, and 2 failed" in status._repr_html_()
    assert "Job shown" in job._repr_html_()
    assert "2 of 2" in cluster._repr_html_()
    assert job.id in cluster._repr_html_() or job.status().state == "completed"
    job.delete(wait=True)
    assert "was deleted" in job._repr_html_()
    assert "LocalCluster local" in LocalCluster(nodes=1, cores_per_node=1)._repr_html_()


# the page in a browser --------------------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(
    chromium_lab.PROGRAM is None, reason="no Chromium on the PATH: apt-get install chromium, or put one there"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium_lab.Browser]:
    with chromium_lab.browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


#: Of a canvas's pixels, how many have a colour of the style sheet, by its name.
COUNT = """(() => {
  const found = {}, style = getComputedStyle(document.documentElement);
  const canvas = document.getElementById(%r), copy = new OffscreenCanvas(canvas.width, canvas.height);
  const g = copy.getContext("2d", {willReadFrequently: true});
  g.drawImage(canvas, 0, 0);
  const data = new Uint32Array(g.getImageData(0, 0, canvas.width, canvas.height).data.buffer), counts = new Map();
  for (const each of data) counts.set(each, (counts.get(each) || 0) + 1);
  for (const name of ["paper", "ink", "accent", "idle", "queued", "fetch", "compute", "upload", "lost"]) {
    const text = style.getPropertyValue("--" + name).trim();
    const [r, g, b] = [1, 3, 5].map((k) => parseInt(text.slice(k, k + 2), 16));
    found[name] = (counts.get(((255 << 24) | (b << 16) | (g << 8) | r) >>> 0) || 0) / data.length;
  }
  return {...found, kinds: counts.size};
})()"""


@needs_chromium
def test_a_job_of_20000_calls_is_drawn(
    slotted_cluster: LocalCluster, browser: chromium_lab.Browser, tmp_path: Path
) -> None:
    calls = (delayed(lab.square)(i) for i in range(20_000))
    job = submit(calls, cluster=slotted_cluster, name="many", calls_per_task=200)
    job.wait(SECONDS)
    timeline = job.timeline()
    assert (timeline.history.done, len(timeline.history.runs)) == (20_000, 100)
    timeline.save(tmp_path / "run.html")
    browser.said.clear()
    browser.open(tmp_path / "run.html")
    assert browser.said == []
    colours = browser.run(COUNT % "gantt")
    assert colours["kinds"] > 50
    assert colours["idle"] + colours["paper"] < 0.7
    text = browser.run("document.body.innerText")
    assert "20,000 of 20,000 calls done" in text
    # The calls are over at once, and the advice is to make tasks larger, or to do without so many nodes.
    assert "a task costs" in text.lower()


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_a_run_of_2000_tasks_is_drawn(browser: chromium_lab.Browser, tmp_path: Path, dark: bool) -> None:
    timeline = Timeline(runs_lab.large(2000, nodes=8))
    assert timeline.history.calls == 20_000
    timeline.save(tmp_path / "run.html")
    browser.said.clear()
    browser.open(tmp_path / "run.html", dark=dark)
    assert browser.said == []
    colours = browser.run(COUNT % "gantt")
    # Most of such a run is computing, and no pixel of the chart was left as it was.
    assert colours["compute"] > 0.3
    assert colours["accent"] > 0
    assert colours["kinds"] > 100
    assert browser.run(COUNT % "cores")["kinds"] > 20
    assert "20,000 of 20,000 calls done" in browser.run("document.body.innerText")
    # It is as wide as the window, also where that is a telephone's.
    for width in (1280, 390):
        browser.open(tmp_path / "run.html", width=width, dark=dark)
        assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        # The narrower, the more tasks share a pixel, and the more shades there are of their colours.
        assert browser.run(COUNT % "gantt")["kinds"] > 100
    assert browser.said == []


@needs_chromium
def test_the_keyboard_reaches_every_task(browser: chromium_lab.Browser, tmp_path: Path) -> None:
    history = runs_lab.history(runs_lab.rounds(3))
    Timeline(history).save(tmp_path / "run.html")
    browser.said.clear()
    browser.open(tmp_path / "run.html")
    browser.run("document.getElementById('gantt').focus()")
    status = "document.getElementById('where').textContent"
    assert browser.run(status).startswith("All 16 s")
    wide = browser.run(COUNT % "gantt")
    browser.press("+")
    assert " of 16 s" in browser.run(status)
    assert browser.run(COUNT % "gantt") != wide
    browser.press("0")
    assert browser.run(COUNT % "gantt") == wide
    browser.press("n")
    first = browser.run(status)
    browser.press("n")
    second = browser.run(status)
    browser.press("ArrowDown")
    below = browser.run(status)
    assert "on tvm-" in first
    assert "on the critical path" in first
    assert len({first, second, below}) == 3
    assert "compute 5 s" in first
    assert browser.run("document.getElementById('tip').hidden") is False
    browser.press("Escape")
    assert browser.run("document.getElementById('tip').hidden") is True
    before = browser.run(COUNT % "gantt")["accent"]
    browser.press("c")
    assert browser.run(COUNT % "gantt")["accent"] < before
    assert browser.said == []


@needs_chromium
def test_the_mouse_zooms_and_tells(browser: chromium_lab.Browser, tmp_path: Path) -> None:
    Timeline(runs_lab.history(runs_lab.rounds(3))).save(tmp_path / "run.html")
    browser.said.clear()
    browser.open(tmp_path / "run.html")
    x, y = browser.run(
        "(({x, y, width}) => [x + width / 2, y + 10])(document.getElementById('gantt').getBoundingClientRect())"
    )
    status = "document.getElementById('where').textContent"
    browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    browser.until(f"{status}.includes('on tvm-')")
    browser.ask("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-300, modifiers=2)
    browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=5, y=5)
    browser.until(f"{status}.includes(' of 16 s')")
    assert browser.said == []


@needs_chromium
def test_names_do_no_harm_in_a_browser(browser: chromium_lab.Browser, tmp_path: Path) -> None:
    evil().save(tmp_path / "evil.html")
    browser.said.clear()
    browser.open(tmp_path / "evil.html")
    browser.run("document.getElementById('gantt').focus()")
    browser.press("n")
    assert browser.run("typeof window.evil") == "undefined"
    assert browser.run("document.images.length") == 0
    assert "</script><script>" in browser.run("document.getElementById('tip').textContent")
    assert browser.said == []


@needs_chromium
def test_a_hundred_thousand_tasks_are_drawn(browser: chromium_lab.Browser, tmp_path: Path) -> None:
    Timeline(runs_lab.large(100_000, nodes=100)).save(tmp_path / "large.html")
    browser.said.clear()
    begun = time.monotonic()
    browser.open(tmp_path / "large.html")
    assert time.monotonic() - begun < 30
    assert browser.run(COUNT % "gantt")["kinds"] > 100
    browser.run("document.getElementById('gantt').focus()")
    browser.press("+")
    assert browser.said == []


@needs_chromium
def test_a_run_without_tasks_has_a_page_too(browser: chromium_lab.Browser, tmp_path: Path) -> None:
    Timeline(runs_lab.history([], calls=3, done=0, waiting=1, running=True, ended=runs_lab.ORIGIN + 9)).save(
        tmp_path / "no.html"
    )
    browser.said.clear()
    browser.open(tmp_path / "no.html")
    browser.run("document.getElementById('gantt').focus()")
    for key in ("n", "+", "ArrowUp", "0"):
        browser.ask("Input.dispatchKeyEvent", type="keyDown", key=key)
    assert "No task has begun" in browser.run("document.body.innerText")
    assert browser.said == []
