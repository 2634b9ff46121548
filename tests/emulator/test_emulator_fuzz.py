"""Whatever comes over the wire is answered as the service answers: a success, or an error of its own; never a 500."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from emulator_lab import Lab
from fuzzing import fuzz
from hypothesis import event, given
from hypothesis import strategies as st
from wire_examples import BODIES
from wire_fuzz import API, NUMBERS, OPERATIONS, STRINGS, Wire, changed, check, of_type, quoted

from joblib_azure.emulator import (
    BatchEmulator,
    handlers,  # noqa: F401  (registers them)
)
from joblib_azure.emulator.calls import handler_of

pytestmark = pytest.mark.fuzz

WITH_BODY = [each for each in OPERATIONS if each["body"] and handler_of(each["id"].removesuffix("_internal"))]
_POOL = {
    "id": "fuzz",
    "vmSize": "Emulated_C1",
    "targetDedicatedNodes": 0,
    "virtualMachineConfiguration": {
        "imageReference": {"publisher": "canonical", "offer": "ubuntu-24_04-lts", "sku": "server"},
        "nodeAgentSKUId": "batch.node.ubuntu 24.04",
    },
}
_JOB = {"id": "fuzz", "poolInfo": {"poolId": "fuzz"}}
_TASK = {"id": "fuzz", "commandLine": "true"}
_numbers = itertools.count()
_KNOWN = {"poolId": "fuzz", "jobId": "fuzz", "taskId": "fuzz", "nodeId": "fuzz", "filePath": "stdout.txt"}


@pytest.fixture(scope="module")
def barren() -> Iterator[BatchEmulator]:
    """An account without cores; what it does by itself, after it has answered, does not fail either."""
    quotas = {"dedicated_core_quota": 0, "spot_core_quota": 0, "pool_quota": 10_000, "active_job_quota": 10_000}
    with BatchEmulator(clock_rate=600, **quotas) as running:
        yield running
        assert "Traceback" not in (running.root / "emulator.log").read_text()


@pytest.fixture(scope="module")
def wire(barren: BatchEmulator) -> Iterator[Wire]:
    client = Wire(barren)
    yield client
    client.close()


class Account:
    """A client, and a pool, a job and a task that it may change: others where they are on their way out."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._names = {**_KNOWN}

    def names(self) -> dict[str, str]:
        """The names that paths have."""
        for kind, path, body in (("poolId", "/pools", _POOL), ("jobId", "/jobs", _JOB), ("taskId", "", _TASK)):
            listing = path or f"/jobs/{self._names['jobId']}/tasks"
            self._have(kind, listing, {**body, "id": self._names[kind]})
        return self._names

    def _have(self, kind: str, listing: str, body: dict[str, Any]) -> None:
        status, _, answer = self.wire.ask("GET", f"{listing}/{body['id']}")
        if status == 200 and json.loads(answer)["state"] in ("active", "running"):
            return
        name = self._names[kind] = f"fuzz-{next(_numbers)}"
        found = {**body, "id": name}
        if kind == "jobId":
            found["poolInfo"] = {"poolId": self._names["poolId"]}
        status, _, answer = self.wire.ask("POST", listing, json.dumps(found).encode())
        assert status == 201, answer


@pytest.fixture(scope="module")
def account(wire: Wire) -> Account:
    return Account(wire)


def path_of(operation: dict[str, Any], names: dict[str, str]) -> str:
    path: str = operation["path"]
    for name, text in names.items():
        path = path.replace("{" + name + "}", quoted(text))
    return path


@given(data=st.data(), operation=st.sampled_from(WITH_BODY))
@fuzz(150)
def test_any_body_is_answered(account: Account, data: st.DataObject, operation: dict[str, Any]) -> None:
    name = operation["id"].removesuffix("_internal")
    example = data.draw(st.sampled_from(BODIES[name])) if name in BODIES else {}
    kind = operation["body"].removeprefix("#")
    body = data.draw(changed(example) | of_type(kind) if example else of_type(kind))
    text = json.dumps(body).replace("{new}", f"new-{next(_numbers)}")
    wire, names = account.wire, account.names()
    status, headers, answer = wire.ask(operation["method"], path_of(operation, names), text.encode())
    event(f"{name}: {status}")
    check(status, headers, answer, (name, text))
    for known in ("/pools/{poolId}", "/jobs/{jobId}", "/jobs/{jobId}/taskcounts"):
        # What was taken in is also told.
        check(*wire.ask("GET", path_of({"path": known}, names)), (name, text, known))


def test_whatever_was_taken_in_is_listed(account: Account) -> None:
    for listing in ("/pools", "/jobs", "/nodecounts", f"/jobs/{account.names()['jobId']}/tasks"):
        assert account.wire.ask("GET", listing)[0] == 200


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"id":' * 100_000,
        b'{"id": NaN}',
        b'{"id": Infinity}',
        b'{"id": ' + b"9" * 5000 + b"}",
        b'{"priority": 1e999, "id": "x", "poolInfo": {"poolId": "fuzz"}}',
        b"\xff\xfe{}",
        b"\x00",
        b'{"id": "\\ud800", "poolInfo": {"poolId": "fuzz"}}',
        "{}".encode("utf-16"),
    ],
    ids=range(10),
)
def test_bodies_that_are_hard_to_read(wire: Wire, body: bytes) -> None:
    status, headers, answer = wire.ask("POST", "/jobs", body)
    check(status, headers, answer, body[:40])
    assert status == 400


@given(raw=st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
@fuzz(200)
def test_any_bytes_are_answered(wire: Wire, raw: bytes) -> None:
    status, headers, answer = wire.ask("POST", "/jobs", raw)
    check(status, headers, answer, raw)
    assert status == 400


_WORDS = st.sampled_from(
    [
        *("id", "state", "creationTime", "executionInfo/exitCode", "startswith", "and", "or", "not", "eq", "gt", "ne"),
        *("'a'", "'it''s'", "DateTime'2026-01-01'", "datetimeoffset'x'", "1", "-1", "9" * 5000, "true", "(", ")", ","),
        *("executionInfo", "/", "²", "'", "\0", "' or 1 eq 1"),
    ]
)
_QUERIES = st.lists(_WORDS | st.text(max_size=6), max_size=8).map(" ".join) | st.text(max_size=30)
_NAMES = ("$filter", "$select", "$expand", "maxresults", "$skiptoken", "timeOut", "recursive", "api-version", "force")


@given(
    operation=st.sampled_from(OPERATIONS),
    names=st.dictionaries(st.sampled_from(sorted(_KNOWN)), STRINGS.filter(bool) | st.text(min_size=1, max_size=8)),
    query=st.dictionaries(st.sampled_from(_NAMES), _QUERIES | STRINGS | NUMBERS.map(str), max_size=3),
)
@fuzz(150)
def test_any_path_and_query_are_answered(
    account: Account, operation: dict[str, Any], names: dict[str, str], query: dict[str, str]
) -> None:
    pairs = {"api-version": API, **query}
    written = "&".join(f"{quoted(name)}={quoted(text)}" for name, text in pairs.items())
    known = {**account.names(), "applicationId": "x", "jobScheduleId": "x"}
    path = path_of(operation, {**known, **names})
    body = b"{}" if operation["method"] in ("POST", "PUT", "PATCH") else None
    answer = account.wire.ask(operation["method"], path, body, query=written)
    check(*answer, (operation["method"], path, written), operation["method"])


@given(source=_QUERIES)
@fuzz(60)
def test_any_filter_and_select_are_answered(wire: Wire, source: str) -> None:
    for listing in ("/pools", "/jobs", "/jobs/fuzz/tasks", "/supportedimages"):
        for name in ("$filter", "$select"):
            answer = wire.ask("GET", listing, query=f"api-version={API}&{quoted(name)}={quoted(source)}")
            check(*answer, (listing, name, source))


@pytest.mark.parametrize(
    "nested", ["(" * 15_000, "(" * 200 + "id eq 'a'" + ")" * 200, "id eq 'a' and " * 1500 + "id eq 'a'"]
)
def test_filters_are_nested_as_deep_as_they_are_read(wire: Wire, nested: str) -> None:
    status, *rest = wire.ask("GET", "/pools", query=f"api-version={API}&%24filter={quoted(nested)}")
    check(status, *rest, nested[:40])
    assert status in (200, 400)


_HEADERS = (
    *("ocp-range", "range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "ocp-date"),
    *("date", "client-request-id", "content-type", "content-md5", "return-client-request-id", "ocp-anything", "host"),
)
_HEADER_TEXTS = st.sampled_from(
    [
        *("bytes=0-3", "bytes=²-", "bytes=0-²", "bytes=-5", "bytes=9-", "bytes=" + "9" * 5000 + "-", "bytes=0-1,2-3"),
        *("*", '"0x1"', 'W/"x"', "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 01 Jan 99999999999 00:00:00 GMT", "true"),
        *("Thu, 01 Jan 0001 00:00:00 +2359", "Thu, 01 Jan 9999 23:59:59 -2359", "Thu, 01 Jan 2026 00:00:00 +999999"),
        *("evil.example", "Thu, 32 Jan 2026 99:00:00 GMT", "1", "a b c d e", "\xff"),
    ]
)
_PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20)


@pytest.fixture(scope="module")
def owned(emulator: BatchEmulator) -> Iterator[Wire]:
    """A client of an account with nodes."""
    client = Wire(emulator)
    yield client
    client.close()


@pytest.fixture(scope="module")
def file(lab: Lab, pool: str, owned: Wire) -> tuple[Wire, str]:
    """A file that a task has written, and a client that can read it."""
    job = lab.job(pool)
    task = lab.run(job, "printf 0123456789")
    return owned, f"/jobs/{job}/tasks/{task.id}/files/stdout.txt"


@given(
    method=st.sampled_from(["GET", "HEAD"]),
    headers=st.dictionaries(st.sampled_from(_HEADERS), _HEADER_TEXTS | _PRINTABLE, max_size=3),
    listing=st.booleans(),
)
@fuzz(250)
def test_any_header_is_answered(file: tuple[Wire, str], method: str, headers: dict[str, str], listing: bool) -> None:
    wire, path = file
    if listing:
        method, path = "GET", path.rpartition("/")[0]
    check(*wire.ask(method, path, headers=headers), (method, headers), method)


@given(text=st.one_of(_PRINTABLE, _PRINTABLE.map("SharedKey emulated:".__add__), _PRINTABLE.map("Bearer ".__add__)))
@fuzz(300)
def test_any_authorization_is_refused(wire: Wire, text: str) -> None:
    status, headers, answer = wire.ask("GET", "/pools", authorization=text)
    check(status, headers, answer, text)
    assert status in (400, 401, 403)


_STEPS = st.sampled_from(
    [
        *("..", ".", "", "wd", "stdout.txt", "out", "up", "etc", "passwd", "%2e%2e", "%252e%252e", "..%2f..", "%2fetc"),
        *(
            "%5c..",
            "..%5c..",
            "%00",
            "..;",
            "%c0%ae%c0%ae",
            "%ef%bc%8e%ef%bc%8e",
            "~",
            "proc",
            "self",
            "environ",
            "tmp",
        ),
        *("%0d%0a", "%e2%82%ac", "workitems", "shared", "root"),
    ]
)


@pytest.fixture(scope="module")
def traps(lab: Lab, pool: str, owned: Wire) -> tuple[Wire, list[str]]:
    """A client, and the URLs of files of a task that has left links which lead out of its folder, and of its node."""
    job = lab.job(pool)
    links = {
        "root": "/",
        "etc": "/etc",
        "proc": "/proc",
        "up": "/".join([".."] * 12),
        "out": "/etc/passwd",
        "self": ".",
    }
    command = "; ".join(f"ln -s {target} {name}" for name, target in links.items())
    task = lab.run(job, f"sh -c '{command}; echo inside > mine'")
    files = f"/jobs/{job}/tasks/{task.id}/files"
    node = f"/pools/{pool}/nodes/{task.node_info.node_id}/files"
    return owned, [f"{files}/wd", files, f"{node}/workitems/{job}/job-1/{task.id}/wd", node]


@given(steps=st.lists(_STEPS | st.text(max_size=4).map(quoted), min_size=1, max_size=8), start=st.integers(0, 3))
@fuzz(120)
def test_no_path_leads_out_of_a_node(traps: tuple[Wire, list[str]], steps: list[str], start: int) -> None:
    wire, starts = traps
    path = f"{starts[start]}/{'/'.join(steps)}"
    for method in ("GET", "HEAD", "DELETE") if path.count("etc") else ("GET", "HEAD"):
        status, headers, body = wire.ask(method, path)
        check(status, headers, body, (method, path), method)
        assert b"root:x:" not in body, path
        assert b"PATH=" not in body, path


def test_nothing_that_a_path_names_is_found_outside(traps: tuple[Wire, list[str]]) -> None:
    """The links and the dots one by one; and that what lies inside is found, or the other tests could not fail."""
    wire, [folder, *others] = traps
    assert wire.ask("GET", f"{folder}/mine")[2] == b"inside\n"
    assert wire.ask("GET", f"{folder}/self/mine")[2] == b"inside\n"
    out = ["out", "etc/passwd", "root/etc/passwd", "proc/self/environ", "up", "up/emulator.log"]
    out += [f"{dots}/" * 12 + "etc/passwd" for dots in ("..", "%2e%2e", "%2E%2E", ".%2e")]
    out += ["..%2f" * 12 + "etc%2fpasswd", "%2fetc%2fpasswd", "/etc/passwd", "mine%00", "out%00mine", "%2e%2e%5cmine"]
    for start in (folder, *others):
        for each in out:
            for method in ("GET", "HEAD", "DELETE"):
                status, _, body = wire.ask(method, f"{start}/{each}")
                assert status in (400, 404), (method, start, each, body[:80])
