"""Storms of faults: a seed is always the same one, what is asked for strikes, and the unmodified SDKs see it."""

from __future__ import annotations

import json
import time
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joblib import Parallel, delayed, parallel_config

from joblib_azure import LocalCluster
from joblib_azure.chaos.answers import Request, Response, fits, late, refusal, skewed
from joblib_azure.chaos.faults import FAULTS
from joblib_azure.chaos.schedule import (
    FATAL,
    FATAL_EVERY,
    ON_DEMAND,
    Schedule,
    ScheduleError,
    Strike,
    make_schedule,
    schedule_of,
)
from joblib_azure.chaos.weather import Weather
from joblib_azure.errors import ConfigurationError, LocalClusterError
from joblib_azure.local.storm import CHAOS_VARIABLE

# schedules ----------------------------------------------------------------------------------------------------


@given(st.integers(-(2**40), 2**40))
def test_a_seed_is_always_the_same_storm(seed: int) -> None:
    schedule = make_schedule(seed)
    assert make_schedule(seed) == schedule
    assert schedule.seed == seed
    assert Schedule.from_json(schedule.to_json()) == schedule


def test_of_a_hundred_storms_ninety_are_survivable_and_every_class_of_fault_is_in_fifty() -> None:
    schedules = [make_schedule(seed) for seed in range(100)]
    assert sum(not schedule.ends_with for schedule in schedules) >= 90
    assert {schedule.ends_with for schedule in schedules} == {"", *FATAL}
    fatal = [schedule.seed for schedule in schedules if schedule.ends_with]
    assert fatal == [*range(FATAL_EVERY - 1, 100, FATAL_EVERY)]
    found = Counter(name for schedule in schedules for name in {strike.fault for strike in schedule.strikes})
    assert set(found) == set(FAULTS)
    assert min(found.values()) >= 50


def test_what_ends_a_client_is_in_its_schedule_only() -> None:
    for seed in range(100):
        schedule = make_schedule(seed)
        for strike in schedule.strikes:
            fatal = {
                "pool-deleted": strike.after >= 0,
                "job-ended": strike.after < ON_DEMAND,
                "sas-expired": strike.times > 9,
            }
            assert not fatal.get(strike.fault) or schedule.ends_with == strike.fault


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "no JSON"),
        ("[]", "is a list, not an object"),
        ('{"seeds": 1}', "has no 'seeds'; known are seed"),
        ('{"strikes": {}}', "strikes is a dict"),
        ('{"strikes": [3]}', r"strikes\[0\] is a int"),
        ('{"strikes": [{"fault": "resett", "service": "batch"}]}', "did you mean 'reset'"),
        ('{"strikes": [{"fault": "reset"}]}', "reset strikes batch and storage"),
        ('{"strikes": [{"fault": "quota", "service": "storage"}]}', "quota strikes batch"),
        ('{"strikes": [{"fault": "lost", "service": "batch"}]}', "strikes no requests, so it has no service"),
        ('{"strikes": [{"fault": "lost", "target": "x"}]}', "so it has no target"),
        ('{"strikes": [{"fault": "reset", "service": "batch", "times": 0}]}', "times is 0, below 1"),
        ('{"strikes": [{"fault": "slow", "service": "batch", "seconds": -1}]}', "seconds is -1, below 0"),
        ('{"strikes": [{"fault": "lost", "after": "soon"}]}', "not usable"),
        ('{"ends_with": "rain"}', "ends_with is 'rain'; known are"),
    ],
)
def test_a_schedule_that_is_none_is_told(text: str, said: str) -> None:
    with pytest.raises(ScheduleError, match=said):
        Schedule.from_json(text)


def test_a_seed_or_a_file_make_a_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "storm.json"
    file.write_text('{"seed": 3, "strikes": [{"fault": "rebooted", "after": 2}]}')
    assert schedule_of(str(file)).strikes == (Strike(fault="rebooted", after=2),)
    assert schedule_of("17") == make_schedule(17) == schedule_of(17)
    for bad in (str(tmp_path / "nothing"), ""):
        with pytest.raises(ConfigurationError, match="neither a seed nor a file"):
            LocalCluster(chaos=bad)
    file.write_text("{}x")
    monkeypatch.setenv(CHAOS_VARIABLE, str(file))
    with pytest.raises(ConfigurationError, match="no JSON"):
        LocalCluster()


# what strikes what --------------------------------------------------------------------------------------------


def request(target: str, method: str = "GET", service: str = "batch") -> Request:
    return Request(service=service, method=method, target=target)


def test_a_strike_waits_for_its_request_and_hits_what_repeats_it() -> None:
    strike = Strike(fault="lost-answer", service="batch", at=3, times=2)
    weather = Weather(Schedule(strikes=(strike,)))
    asked = [("PUT", "/a"), ("PUT", "/b"), ("GET", "/c"), ("PUT", "/d"), ("PUT", "/e"), ("PUT", "/d"), ("PUT", "/d")]
    hit = [target for method, target in asked if weather.strike(request(target, method)) is not None]
    assert hit == ["/d", "/d"]


@given(st.lists(st.sampled_from(["GET", "PUT"]), max_size=60), st.integers(0, 99))
def test_nothing_strikes_more_often_than_its_schedule_says(methods: list[str], seed: int) -> None:
    schedule = make_schedule(seed)
    weather = Weather(schedule)
    struck = Counter(
        strike.fault
        for number, method in enumerate(methods)
        for service in ("batch", "storage")
        if (strike := weather.strike(request(f"/c/{number % 7}", method, service))) is not None
    )
    allowed = Counter[str]()
    for strike in schedule.strikes:
        allowed[strike.fault] += strike.times
    assert struck <= allowed


@pytest.mark.parametrize(
    ("fault", "target", "method", "expected"),
    [
        ("lost-answer", "/jobs", "POST", True),
        ("lost-answer", "/jobs", "GET", False),
        ("stale", "/jobs/j/tasks?$filter=x", "GET", True),
        ("stale", "/jobs/j/taskcounts?x=1", "GET", True),
        ("stale", "/jobs/j/tasks/t", "GET", False),
        ("quota", "/jobs?api-version=1", "POST", True),
        ("quota", "/jobs/j/terminate", "POST", False),
        ("truncated", "/pools", "HEAD", False),
    ],
)
def test_faults_fit_only_what_they_can_happen_to(fault: str, target: str, method: str, expected: bool) -> None:
    assert fits(Strike(fault=fault, service="batch"), request(target, method)) is expected


def test_storage_never_throttles_with_429_and_says_why_a_sas_is_refused() -> None:
    assert FAULTS["throttled"].services == ("batch",)
    answer = refusal(Strike(fault="sas-expired", service="storage"), request("/c/b?sig=x", service="storage"))
    assert answer is not None
    assert answer.status == 403
    assert b"Signature not valid in the specified time frame" in answer.body


def test_a_late_listing_hides_the_last_seconds_only() -> None:
    now = datetime.now(timezone.utc)
    times = {"old": now - timedelta(seconds=9), "new": now - timedelta(seconds=1)}
    rows = [{"id": name, "stateTransitionTime": f"{moment:%Y-%m-%dT%H:%M:%S.%f}0Z"} for name, moment in times.items()]
    listing = request("/jobs/j/tasks?x")
    response = Response(status=200, body=json.dumps({"value": rows}).encode())
    found = late(listing, response, None, now - timedelta(seconds=3))
    assert found is not None
    assert [row["id"] for row in json.loads(found.body)["value"]] == ["old"]
    assert late(listing, response, None, now) is None
    counts = request("/jobs/j/taskcounts")
    assert late(counts, response, Response(status=200, body=b"{}"), now) == Response(status=200, body=b"{}")
    assert late(counts, response, response, now) is None


def test_a_skewed_clock_shows_in_the_headers_of_dates() -> None:
    headers = ((b"Date", b"Fri, 27 Nov 2026 12:00:00 GMT"), (b"ETag", b'"1"'))
    found = skewed(Response(status=200, headers=headers), -90)
    assert dict(found.headers) == {b"Date": b"Fri, 27 Nov 2026 11:58:30 GMT", b"ETag": b'"1"'}


# a cluster in a storm -----------------------------------------------------------------------------------------


def squares(calls: int, seconds: float = 0.0) -> list[int]:
    return list(Parallel(batch_size=1)(delayed(square)(i, seconds) for i in range(calls)))


def square(number: int, seconds: float) -> int:
    time.sleep(seconds)
    return number * number


WIRE = [
    (name, service)
    for name, fault in FAULTS.items()
    for service in fault.services
    if name not in ("quota", "stale", "sas-expired")
]


def test_every_fault_on_the_wire_strikes_the_unmodified_sdks_and_changes_no_result(stormy: LocalCluster) -> None:
    with parallel_config("azure", cluster=stormy):
        squares(2)
        before = stormy.storm.report().struck
        for fault, service in WIRE:
            stormy.storm.strike(fault, service=service, seconds=0.5, pick=0.7)
        for _ in range(20):
            assert squares(8, 0.01) == [i * i for i in range(8)]
            struck = stormy.storm.report().struck
            if all(struck[fault] > before[fault] for fault, _ in WIRE):
                break
    assert [fault for fault, _ in WIRE if struck[fault] == before[fault]] == []


NODES = ["preempted", "rebooted", "unusable", "lost", "disk-full", "start-task-failed"]
NODES += ["task-killed", "supervisor-killed", "runner-killed", "azurite-restarted"]


@pytest.mark.parametrize("kind", NODES)
def test_whatever_happens_to_nodes_and_processes_changes_no_result(stormy: LocalCluster, kind: str) -> None:
    before = stormy.storm.report().struck[kind]
    with parallel_config("azure", cluster=stormy):
        results = Parallel(batch_size=1, return_as="generator")(delayed(square)(i, 0.2) for i in range(10))
        first = next(results)
        stormy.storm.strike(kind, seconds=0.5, pick=0.3)
        assert [first, *results] == [i * i for i in range(10)]
    assert stormy.storm.report().struck[kind] == before + 1


def large(number: int) -> np.ndarray:
    time.sleep(0.05)
    return np.full(300_000, number)


def test_a_full_disk_is_no_error_of_the_calls_whose_results_it_does_not_take(stormy: LocalCluster) -> None:
    with parallel_config("azure", cluster=stormy):
        results = Parallel(batch_size=1, return_as="generator")(delayed(large)(i) for i in range(60))
        found = [next(results)]
        stormy.storm.strike("disk-full", seconds=0.5, pick=0.9)
        found += results
    assert [int(each[0]) for each in found] == list(range(60))


def test_what_cannot_be_struck_is_told(stormy: LocalCluster) -> None:
    with pytest.raises(LocalClusterError, match="did you mean 'rebooted'"):
        stormy.storm.strike("reboted")
    with LocalCluster(nodes=1, cores_per_node=1) as calm, pytest.raises(LocalClusterError, match="has no storm"):
        _ = calm.storm
