"""The report of a run: slots, where the time went, advice with its own causes, and the page that anybody may open."""

from __future__ import annotations

import base64
import itertools
import json
import re
import struct
import sys
import time
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import runs_lab as lab
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from joblib_azure.errors import ConfigurationError, MissingExtraError
from joblib_azure.report import History, Phases, Timeline
from joblib_azure.report.lanes import pack
from joblib_azure.report.page import as_json
from joblib_azure.report.tables import table
from joblib_azure.report.usage import critical_path, gaps, tail, totals, utilisation
from joblib_azure.report.words import percent, said

#: The machine may be busy, and this process collect what a hundred thousand tasks have left.
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
times = st.integers(0, 60)
intervals = st.lists(st.tuples(times, times).map(lambda pair: (min(pair), max(pair))), max_size=40)


# slots ------------------------------------------------------------------------------------------------------


@relaxed
@given(intervals)
def test_lanes_do_not_overlap_and_are_as_few_as_can_be(given: list[tuple[int, int]]) -> None:
    lanes = pack(given)
    assert len(lanes) == len(given)
    for lane in set(lanes):
        inside = sorted(each for each, found in zip(given, lanes, strict=True) if found == lane)
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(inside))
    if given:
        # At least the busiest moment needs one each; a moment that is nothing but a point takes a lane too.
        busiest = max(sum(begin <= moment < max(end, begin + 0.5) for begin, end in given) for moment, _ in given)
        assert set(lanes) == set(range(max(lanes) + 1))
        assert max(lanes) + 1 <= busiest
        if all(begin < end for begin, end in given):
            assert max(lanes) + 1 == busiest


def test_slots_belong_to_their_nodes_in_the_order_in_which_those_began() -> None:
    runs = [*lab.rounds(3, nodes=["late"], start=9.0), *lab.rounds(3, nodes=["early"])]
    found = [(lane.node, lane.slot, len(lane.runs)) for lane in lab.history(runs).lanes]
    assert found == [("early", 0, 3), ("early", 1, 3), ("late", 0, 3), ("late", 1, 3)]


# where the time went ----------------------------------------------------------------------------------------


@st.composite
def histories(draw: Any) -> History:
    """Runs of all kinds, in no order, some of them at once."""
    runs = []
    for number in range(draw(st.integers(1, 12))):
        spent = Phases(*(draw(st.integers(0, 20)) / 4 for _ in range(6)))
        begun = draw(st.integers(0, 80)) / 4
        runs.append(
            lab.task_run(
                number,
                draw(st.sampled_from(["one", "two", "three"])),
                begun,
                spent,
                created=lab.ORIGIN + begun * draw(st.integers(0, 4)) / 4,
                state=draw(st.sampled_from(["done", "running", "failed", "preempted"])),
                work=spent.compute,
            )
        )
    return lab.history(runs)


@relaxed
@given(histories())
def test_every_second_of_every_slot_is_accounted_for_once(history: History) -> None:
    spent = totals(history)
    assert all(seconds >= 0 for seconds in spent.values())
    assert sum(spent.values()) == pytest.approx(len(history.lanes) * history.seconds, abs=1e-4)


@relaxed
@given(histories(), st.integers(1, 300))
def test_the_curve_holds_all_the_work(history: History, bins: int) -> None:
    use = utilisation(history, bins)
    assert len(use.busy) == len(use.cores) == bins
    assert sum(use.busy) * use.step == pytest.approx(sum(run.work for run in history.runs), abs=1e-4)
    there = sum(
        history.cores[node] * (history.ended - min(run.begun for run in history.runs if run.node == node))
        for node in history.cores
    )
    assert sum(use.cores) * use.step == pytest.approx(there, abs=1e-4)
    assert all(busy >= 0 for busy in use.busy)


@relaxed
@given(histories())
def test_the_tail_is_where_fewer_than_half_of_the_slots_work(history: History) -> None:
    """Compared with a count at each quarter of a second, between which nothing begins or ends."""
    half = len(history.lanes) / 2
    moment, expected = history.ended, 0.0
    while moment > history.begun + 1e-6:
        middle = moment - 0.125
        if sum(run.begun < middle < run.ended for run in history.runs) >= half:
            break
        expected += 0.25
        moment -= 0.25
    assert tail(history) == pytest.approx(expected, abs=1e-3)


@relaxed
@given(histories())
def test_the_critical_path_is_one_chain_to_the_end(history: History) -> None:
    path = critical_path(history)
    assert path is not None
    assert path.steps[-1].ended == pytest.approx(history.ended)
    moment = history.begun
    for step in path.steps:
        assert step.begun == pytest.approx(moment, abs=1e-5)
        assert step.ended >= step.begun
        moment = step.ended
    assert sum(path.seconds().values()) == pytest.approx(history.seconds, abs=1e-4)


def test_a_gap_is_queued_only_once_the_task_was_there() -> None:
    first = lab.task_run(0, "one", 2.0, lab.phases(), created=lab.ORIGIN + 1.5)
    second = lab.task_run(1, "one", 12.0, lab.phases(), created=lab.ORIGIN + 10.0)
    history = lab.history([first, second])
    (lane,) = history.lanes
    found = [(gap.first, round(gap.idle, 3), round(gap.queued, 3)) for gap in gaps(history, lane)]
    assert found == [(True, 1.5, 0.5), (False, 2.8, 2.0)]


# advice -----------------------------------------------------------------------------------------------------


def good() -> History:
    return lab.history(lab.rounds())


def small_bundles() -> History:
    return lab.history(lab.rounds(100, lab.phases(0.2, unpickle=0.01)))


def short_run() -> History:
    return lab.history(lab.rounds(1, lab.phases(1.0, start=1.2), start=0.1))


def cold_start() -> History:
    runs = lab.rounds(start=10.5)
    first = [lab.task_run(90 + i, run.node, 0.2, lab.phases(fetch=5.0, unpickle=5.1)) for i, run in enumerate(runs[:4])]
    return lab.history([*first, *runs[4:]])


def transfer() -> History:
    return lab.history(lab.rounds(spent=lab.phases(fetch=2.0)))


def unpickling() -> History:
    return lab.history(lab.rounds(spent=lab.phases(unpickle=2.0)))


def stragglers() -> History:
    runs = lab.rounds()
    return lab.history([*runs, lab.task_run(99, "tvm-one", runs[-1].ended - lab.ORIGIN, lab.phases(30.0))])


def nodes() -> History:
    return lab.history(lab.rounds(start=20.0))


def submission() -> History:
    runs = lab.rounds(apart=3.0)
    return lab.history(
        [lab.task_run(i, r.node, r.begun - lab.ORIGIN, r.phases, created=r.begun) for i, r in enumerate(runs)]
    )


def unequal_nodes() -> History:
    runs = [
        *lab.rounds(16, nodes=["tvm-one"]),
        *lab.rounds(16, nodes=["tvm-two"]),
        *lab.rounds(8, lab.phases(10.3), nodes=["lame"]),
    ]
    return lab.history([lab.task_run(i, r.node, r.begun - lab.ORIGIN, r.phases) for i, r in enumerate(runs)])


def idle_cores() -> History:
    return lab.history(lab.rounds(slots=1, workers=2, work=5.0))


def preemptions() -> History:
    lost = lab.task_run(0, "spot", 0.5, lab.phases(2.0), state="preempted", done=0)
    return lab.history(
        [lost, *lab.rounds(requeues=0), lab.task_run(0, "spot", 2.8, lab.phases(35.0), requeues=1, calls=70)]
    )


def retries() -> History:
    first, *others = lab.rounds()
    again = lab.task_run(0, first.node, first.begun - lab.ORIGIN, first.phases, retries=1)
    return lab.history([again, *others])


def lost_tasks() -> History:
    *others, last = lab.rounds()
    failed = lab.task_run(31, last.node, last.begun - lab.ORIGIN, last.phases, state="failed", done=0)
    return lab.history([*others, failed])


def failed_calls() -> History:
    return lab.history(lab.rounds(), failed=3)


CASES: dict[str, tuple[Callable[[], History], str]] = {
    "small-bundles": (small_bundles, "calls_per_task="),
    "short-run": (short_run, "poolSize"),
    "cold-start": (cold_start, "warmRunners"),
    "transfer": (transfer, "nodeCache"),
    "unpickling": (unpickling, "warmRunners"),
    "stragglers": (stragglers, "calls_per_task="),
    "nodes": (nodes, "joblib-azure cluster resize"),
    "submission": (submission, "calls_per_task"),
    "unequal-nodes": (unequal_nodes, "joblib-azure cluster nodes"),
    "idle-cores": (idle_cores, "maxTasksPerNode"),
    "preemptions": (preemptions, "poolSize"),
    "retries": (retries, "joblib-azure job logs sweep-7 d0-000000000-10"),
    "lost-tasks": (lost_tasks, "joblib-azure job logs sweep-7 d0-000000310-10"),
    "failed-calls": (failed_calls, "joblib-azure job results sweep-7"),
}


def test_a_good_run_needs_no_advice() -> None:
    timeline = Timeline(good())
    assert timeline.findings == ()
    assert "Nothing stands out" in timeline.summary
    assert timeline.utilisation.share > 0.9


@pytest.mark.parametrize("kind", CASES)
def test_each_advice_has_its_own_cause_and_names_what_to_change(kind: str) -> None:
    history, setting = CASES[kind]
    timeline = Timeline(history())
    assert [finding.kind for finding in timeline.findings] == [kind]
    (finding,) = timeline.findings
    assert setting in finding.advice
    assert finding.advice.count("`") % 2 == 0
    assert finding.advice.split("`")[1] in timeline.summary


def test_the_advice_on_small_bundles_makes_a_good_run() -> None:
    """The same calls in bundles as it says them need no advice any more."""
    (finding,) = Timeline(small_bundles()).findings
    number = int(re.search(r"calls_per_task=(\d+)", finding.advice)[1])  # type: ignore[index]
    assert 10 < number <= 500
    larger = lab.history(
        lab.rounds(1000 // number, lab.phases(0.02 * number, unpickle=0.01), calls=number, done=number)
    )
    assert [finding.kind for finding in Timeline(larger).findings if finding.kind == "small-bundles"] == []
    assert larger.seconds < small_bundles().seconds


def test_a_straggler_of_one_call_is_no_matter_of_bundles() -> None:
    runs = lab.rounds()
    long = lab.task_run(99, "tvm-one", runs[-1].ended - lab.ORIGIN, lab.phases(30.0), calls=1, longest=30.0)
    (finding,) = Timeline(lab.history([*runs, long])).findings
    assert "longest calls first" in finding.advice
    # While tasks wait, nobody knows yet which the last ones are.
    assert Timeline(lab.history([*runs, long], waiting=3, running=True)).findings == ()


def test_the_most_expensive_comes_first() -> None:
    runs = lab.rounds(spent=lab.phases(fetch=3.0), start=60.0)
    found = Timeline(lab.history(runs, failed=1)).findings
    assert [finding.kind for finding in found] == ["nodes", "transfer", "failed-calls"]


# words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (0.0123, "12 ms"), (0.0994, "99 ms"), (0.0996, "0.1 s"), (1.24, "1.2 s"), (9.96, "10 s"),
        (99.4, "99 s"), (99.6, "1 min 40 s"), (120, "2 min"), (3599.6, "1 h"), (7300, "2 h 2 min"),
    ],
)  # fmt: skip
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert said(seconds) == text


def test_a_share_is_not_said_to_be_nothing() -> None:
    assert [percent(share) for share in (0, 0.001, 0.006, 0.5, 1)] == ["0 %", "under 1 %", "1 %", "50 %", "100 %"]


def test_a_run_in_which_nothing_has_begun() -> None:
    timeline = Timeline(lab.history([], calls=10, done=0, waiting=4, running=True, ended=lab.ORIGIN + 30))
    assert timeline.findings == ()
    assert timeline.critical_path is None
    assert "No task has begun" in timeline.summary
    assert "4 tasks waiting" in timeline.summary
    assert decoded(timeline.html())[0]["runs"] == 0
    assert json.loads(json.dumps(timeline.data()))["runs"] == []


# the page ---------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """What a browser makes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text: list[str] = []
        self._script: str | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = dict(attrs).get("id") or "code" if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        else:
            self.text.append(data)


def decoded(page: str) -> tuple[dict[str, Any], dict[str, tuple[int, ...]], list[str]]:
    """Return what the page holds of the run, as its script reads it."""
    scripts = Tags(page).scripts
    meta = json.loads(scripts["meta"])
    data = zlib.decompress(base64.b64decode(scripts["data"]))
    count = meta["runs"]
    columns = {
        name: struct.unpack_from(f"<{count}I", data, 4 * count * place) for place, name in enumerate(meta["columns"])
    }
    return meta, columns, data[4 * count * len(columns) :].decode().split("\n")


EVIL = "</script><script>window.evil=1</script><img src=x onerror=window.evil=1>\"'&<!--"


def evil() -> Timeline:
    runs = [
        lab.task_run(i, EVIL + str(i % 2), 0.5 + i // 2, lab.phases(0.5), task=f"{EVIL}-{i}", retries=1)
        for i in range(8)
    ]
    return Timeline(lab.history(runs, name=EVIL, function=EVIL, pool=EVIL))


def test_names_do_no_harm_to_the_page() -> None:
    timeline = evil()
    page = timeline.html()
    harmless = Tags(Timeline(good()).html())
    found = Tags(page)
    # The same elements as of a page with decent names: nothing in a name is one.
    kinds = {tag for tag, _ in found.tags}
    assert kinds - {"ol", "li", "b", "code"} <= {tag for tag, _ in harmless.tags}
    assert [tag for tag, _ in found.tags].count("script") == [tag for tag, _ in harmless.tags].count("script") == 3
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert EVIL in "".join(found.text)
    meta, _, tasks = decoded(page)
    assert meta["nodes"][0][0] == EVIL + "0"
    assert tasks[0] == EVIL + "-0"
    assert "<img" not in re.sub("<script.*?</script>", "", table(EVIL, {EVIL: EVIL}), flags=re.DOTALL)
    assert json.loads(as_json({"name": EVIL + "\u2028"})) == {"name": EVIL + "\u2028"}
    # In a notebook all of it is one attribute.
    (frame,) = Tags(timeline._repr_html_()).tags
    assert frame[0] == "iframe"
    assert frame[1]["srcdoc"] == page
    assert frame[1]["sandbox"] == "allow-scripts"


def test_the_page_needs_nothing_but_itself() -> None:
    page = Timeline(lab.large(300)).html()
    for tag, attributes in Tags(page).tags:
        assert not {"src", "href"} & attributes.keys(), tag
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest|WebSocket", page)
    assert "default-src 'none'" in page


def test_the_page_holds_the_run_as_it_was() -> None:
    history = lab.large(2000)
    meta, columns, tasks = decoded(Timeline(history).html())
    tick = meta["tick"]
    runs = [run for lane in history.lanes for run in lane.runs]
    assert tasks == [run.task for run in runs]
    assert tick < history.seconds / 1e6
    for number, run in enumerate(runs):
        assert columns["begun"][number] * tick == pytest.approx(run.begun - history.begun, abs=tick)
        for name, seconds in run.phases._asdict().items():
            assert columns[name][number] * tick == pytest.approx(seconds, abs=tick)
        node, slot = meta["rows"][columns["row"][number]]
        assert meta["nodes"][node][0] == run.node
        assert history.lanes[columns["row"][number]].slot == slot
        assert meta["states"][columns["state"][number]] == run.state
        assert (columns["state"][number] >= meta["lost"]) == (run.state == "preempted")
        assert columns["again"][number] == run.requeues
        assert columns["failed"][number] == run.failed


def test_the_words_of_the_page_are_those_of_the_summary() -> None:
    timeline = Timeline(stragglers())
    text = "".join(Tags(timeline.html()).text)
    (finding,) = timeline.findings
    assert finding.what[1:] in text
    assert "The end was decided on node tvm-one" in text
    assert "compute" in text


def test_a_hundred_thousand_tasks() -> None:
    small, large = lab.large(10_000), lab.large(100_000)
    begun = time.monotonic()
    page = Timeline(large).html()
    assert time.monotonic() - begun < 30
    # A run takes some 30 bytes; nothing grows faster than their number.
    ratio = len(page) / len(Timeline(small).html())
    assert 5 < ratio < 11
    assert len(page) < 60 * len(large.runs)


# files ------------------------------------------------------------------------------------------------------


def test_a_file_is_what_its_suffix_says(tmp_path: Path) -> None:
    timeline = Timeline(good())
    timeline.save(tmp_path / "run.html")
    assert (tmp_path / "run.html").read_text(encoding="utf-8") == timeline.html()
    with pytest.raises(ConfigurationError, match=r"\.html nor in \.png"):
        timeline.save(tmp_path / "run.pdf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.html"]


def test_a_picture_needs_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingExtraError, match=r"joblib_azure\[plots\]"):
        Timeline(good()).save(tmp_path / "run.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [good, preemptions, lambda: lab.large(5000), lambda: evil().history])
@pytest.mark.filterwarnings("default:.*:DeprecationWarning")
def test_a_picture(make: Callable[[], History], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, of the extra [plots], is not installed")
    import numpy as np
    from matplotlib.image import imread

    from joblib_azure.report.png import COLOURS

    history = make()
    Timeline(history).save(tmp_path / "run.png")
    pixels = (imread(tmp_path / "run.png")[:, :, :3] * 255).round().astype(int)
    height, width, _ = pixels.shape
    assert width > 1000
    assert height > 300
    blue = [int(COLOURS["compute"][place : place + 2], 16) for place in (1, 3, 5)]
    # Most of such a run is computing, and so is most of the picture.
    assert (np.abs(pixels - blue).sum(axis=2) < 60).mean() > 0.05


@relaxed
@given(histories())
def test_json_has_every_run(history: History) -> None:
    data = json.loads(json.dumps(Timeline(history).data()))
    assert sorted(run["task"] for run in data["runs"]) == sorted(run.task for run in history.runs)
    assert sum(data["slot_seconds"].values()) == pytest.approx(len(history.lanes) * history.seconds, abs=1e-4)
