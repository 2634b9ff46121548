"""Holds every request and answer that crosses an emulator in a test against the service's own API description.

    emulator ──a line a request (`joblib_azure.emulator.traffic`)──► Conformance ──► violations ──► the test fails
                                                                          └──► what was covered ──► the report

It knows nothing of the emulator's own reading of the description, or the same mistake would be made twice. Violations:
an answer that is not as described (properties, types, enumerations, success codes, error codes with their statuses), a
request that the emulator took and the description does not know, and a well-formed one that it called malformed.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

FOLDER_VARIABLE = "BATCH_EMULATOR_TRAFFIC"
_HERE = Path(__file__).parent / "openapi"
NEWEST, OLDER = "2025-06-01", "2024-07-01.20.0"
#: Known by other names or not at all in the description that an older api-version is held to.
DESCRIPTION_OF = {NEWEST: NEWEST, OLDER: OLDER, "2024-02-01.19.0": OLDER}
#: The emulator's refusals, and what the service answers without being in its table of codes.
UNLISTED = {(501, "NotImplemented"), (401, "AuthenticationFailed")}
#: Answers that say that the request itself was not taken.
_NOT_TAKEN = (400, 401, 403, 404, 405, 409, 412, 413, 501)
_SECRETS = ("accountKey", "password", "sasKey")
_DURATION = re.compile(r"P(?!$)(\d+D)?(T(?!$)(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")

Problems = Iterator[str]


@dataclass(frozen=True)
class Operation:
    """One operation of a description."""

    verb: str
    path: str
    described: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.verb} {self.path}"

    @property
    def successes(self) -> set[int]:
        return {int(code) for code in self.described["responses"] if code.isdigit()}

    @property
    def body(self) -> dict[str, Any] | None:
        found = [each for each in self.described["parameters"] if each.get("in") == "body"]
        return found[0]["schema"] if found else None

    @cached_property
    def query(self) -> set[str]:
        named = {each["name"].lower() for each in self.described["parameters"] if each.get("in") == "query"}
        return named | {"api-version", "timeout", "$skiptoken"}


class Description:
    """An API description: finds operations, and says what of a body it does not know."""

    def __init__(self, version: str) -> None:
        loaded = json.loads((_HERE / f"{version}.json").read_text())
        self._definitions: dict[str, Any] = loaded["definitions"]
        self.operations = [
            Operation(verb.upper(), path, described)
            for path, verbs in loaded["paths"].items()
            for verb, described in verbs.items()
        ]
        self._routes = [(self._pattern(each.path), each) for each in self.operations]

    @staticmethod
    def _pattern(path: str) -> re.Pattern[str]:
        pieces = re.split(r"\{(\w+)\}", path)
        names = ["(.+)" if each == "filePath" else "([^/]+)" for each in pieces[1::2]]
        literals = [re.escape(each) for each in pieces[::2]]
        return re.compile("".join(a + b for a, b in zip(literals, [*names, ""], strict=True)))

    def find(self, verb: str, path: str) -> Operation | None:
        fitting = [each for pattern, each in self._routes if each.verb == verb and pattern.fullmatch(path.rstrip("/"))]
        return min(fitting, key=lambda each: (each.path.count("{"), "filePath" in each.path), default=None)

    def check(self, value: Any, schema: dict[str, Any], *, answer: bool, partial: bool = False) -> list[str]:
        """What of a value is not as its schema says; `partial` values (of a `$select`) may lack what is required."""
        return list(self._check(value, schema, "", answer, partial))

    def _check(self, value: Any, schema: dict[str, Any], where: str, answer: bool, partial: bool) -> Problems:
        if "allOf" in schema:
            yield from self._check(value, schema["allOf"][0], where, answer, partial)
            return
        if "$ref" in schema:
            name = schema["$ref"].rsplit("/", 1)[-1]
            # the derived description refers to Python's type without defining it
            target = {"type": "string", "format": "date-time"} if name == "datetime" else self._definitions[name]
            yield from self._check(value, target, where, answer, partial)
            return
        if value is None:
            if answer and not schema.get("x-nullable"):
                yield f"{where}: null"
            return
        if "enum" in schema:
            given = value if answer or not isinstance(value, str) else value.lower()  # of requests the case is free
            members = schema["enum"] if answer else [each.lower() for each in schema["enum"]]
            if given not in members:
                yield f"{where}: {value!r} is none of {', '.join(schema['enum'])}"
            return
        kind = schema.get("type", "object" if "properties" in schema else None)
        if kind == "object":
            yield from self._check_object(value, schema, where, answer, partial)
        elif kind == "array":
            if not isinstance(value, list):
                yield f"{where}: no list"
                return
            for index, item in enumerate(value):
                if item is None:  # a property may be absent, an item of a list may not
                    yield f"{where}[{index}]: null"
                yield from self._check(item, schema["items"], f"{where}[{index}]", answer, partial)
        elif kind is not None:
            if kind == "integer" and not answer and isinstance(value, str) and re.fullmatch(r"-?\d{1,10}", value):
                return  # the Azure CLI sends numbers so, and Azure takes them
            yield from _check_scalar(value, kind, schema, where)

    def _check_object(self, value: Any, schema: dict[str, Any], where: str, answer: bool, partial: bool) -> Problems:
        if not isinstance(value, dict):
            yield f"{where}: no object"
            return
        known = schema.get("properties", {})
        free = schema.get("additionalProperties") or ("properties" not in schema)
        for name, item in value.items():
            if name in known:
                yield from self._check(item, known[name], f"{where}.{name}" if where else name, answer, partial)
            elif not name.startswith("odata.") and not free:
                yield f"{where}: has no property {name!r}"
        if not partial:
            for name in schema.get("required", ()):
                # an answer holds no secrets, and a PUT need not send what it cannot change
                optional = name in _SECRETS if answer else known.get(name, {}).get("readOnly", False)
                if not optional and value.get(name) is None:
                    yield f"{where}: lacks {name!r}"


def _check_scalar(value: Any, kind: str, schema: dict[str, Any], where: str) -> Problems:
    form = schema.get("format")
    if kind == "integer":
        # OData writes 64-bit integers as strings
        if form == "int64" and isinstance(value, str) and re.fullmatch(r"-?\d+", value):
            return
        right = isinstance(value, int) and not isinstance(value, bool)
    elif kind == "number":
        right = isinstance(value, (int, float)) and not isinstance(value, bool)
    else:
        right = isinstance(value, {"string": str, "boolean": bool}[kind])
    if not right:
        yield f"{where}: {value!r} is no {kind}"
    elif form == "date-time" and not _MOMENT.fullmatch(value):
        yield f"{where}: {value!r} is no date and time"
    elif form == "duration" and not _DURATION.fullmatch(value):
        yield f"{where}: {value!r} is no duration"


@cache
def description(version: str) -> Description:
    return Description(version)


@cache
def error_codes() -> set[tuple[int, str]]:
    rows = [line.split("\t") for line in (_HERE / "error_codes.tsv").read_text().splitlines() if line[:4] == "http"]
    listed = {(int(status), code.partition("(")[0]) for _, status, code in rows}
    return listed | UNLISTED


def violations(row: dict[str, Any]) -> list[str]:
    """What of a line of a record is not as the service's API is described; empty for one that is."""
    query = {name.lower(): value for name, value in parse_qsl(row["query"])}
    described = description(DESCRIPTION_OF.get(query.get("api-version", ""), NEWEST))
    operation = described.find(row["method"], row["path"])
    answer = json.loads(row["answer"]) if row["answer"] else None
    found = [] if row["answer_headers"].get("request-id") else ["the answer has no request-id"]
    status = row["status"]
    if status >= 400:
        found += _error_violations(described, row, answer)
    if operation is None:
        return [*found, "the description has no such operation"] if status < 400 else found
    if status < 400:
        found += _success_violations(described, operation, row, query, answer)
    found += _request_violations(described, operation, row, query, answer)
    return found


def _error_violations(described: Description, row: dict[str, Any], answer: Any) -> list[str]:
    if row["method"] == "HEAD":
        return []
    if answer is None:
        return [f"{row['status']} without a body"]
    found = described.check(answer, {"$ref": "#/definitions/BatchError"}, answer=True)
    if (row["status"], answer.get("code")) not in error_codes():
        found.append(f"{row['status']} {answer.get('code')} is no error of the service")
    return found


def _success_violations(
    described: Description, operation: Operation, row: dict[str, Any], query: dict[str, str], answer: Any
) -> list[str]:
    status = row["status"]
    if status == 304:
        return [] if any(name.startswith("if-") for name in row["headers"]) else ["304 to a request without conditions"]
    if status not in operation.successes:
        return [f"{status} is not among the successes {sorted(operation.successes)}"]
    schema = operation.described["responses"][str(status)].get("schema", {})
    if "file" in (schema.get("type"), schema.get("format")):
        return []
    if not schema:
        return ["a body where none is described"] if answer is not None else []
    if answer is None:
        return ["no body where one is described"]
    return described.check(answer, schema, answer=True, partial="$select" in query)


def _request_violations(
    described: Description, operation: Operation, row: dict[str, Any], query: dict[str, str], answer: Any
) -> list[str]:
    unknown = [f"the query has {name!r}" for name in query if name not in operation.query]
    body: list[str] = []
    if operation.body is not None and row["body"]:
        try:
            body = described.check(json.loads(row["body"]), operation.body, answer=False)
        except (ValueError, RecursionError):
            body = ["the body is not JSON that can be read"]
    if row["status"] not in _NOT_TAKEN:
        return unknown + [f"request: {each}" for each in body]
    malformed = row["status"] == 400 and (answer or {}).get("code") == "InvalidRequestBody"
    if malformed and row["body"] and operation.body is not None and not body:
        return [f"a well-formed request was called malformed: {answer.get('values')}"]
    return []


@dataclass
class Conformance:
    """Reads the records of a folder as they grow."""

    folder: Path
    #: Requests by operation, version of the description and status.
    covered: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    _read: dict[Path, int] = field(default_factory=dict)

    def look(self) -> list[str]:
        """What came since the last look and is not as described."""
        found = []
        for path in sorted(self.folder.glob("*.jsonl")):
            for row in self._rows(path):
                self._count(row)
                found += [
                    f"{row['method']} {row['path']}?{row['query']} → {row['status']}: {e}" for e in violations(row)
                ]
        return found

    def _rows(self, path: Path) -> Iterator[dict[str, Any]]:
        with open(path, "rb") as file:
            file.seek(self._read.get(path, 0))
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it is being written
                self._read[path] = self._read.get(path, 0) + len(line)
                yield json.loads(line)

    def _count(self, row: dict[str, Any]) -> None:
        version = dict(parse_qsl(row["query"])).get("api-version", "")
        held = DESCRIPTION_OF.get(version, NEWEST)
        operation = description(held).find(row["method"], row["path"])
        if operation is not None:
            self.covered[operation.name, held, row["status"]] += 1


def report(covered: Counter[tuple[str, str, int]]) -> list[str]:
    """A line for each operation: how often it was asked with success and without, by description."""
    lines = []
    for operation in description(NEWEST).operations:
        cells = []
        for version in (NEWEST, OLDER):
            asked = (operation.name, version)
            rows = {status: count for (*key, status), count in covered.items() if tuple(key) == asked}
            good = sum(count for status, count in rows.items() if status < 400)
            codes = ", ".join(f"{status}×{count}" for status, count in sorted(rows.items()) if status >= 400)
            cells.append(f"{good:>7}{' (' + codes + ')' if codes else ''}")
        lines.append(f"{operation.name:<66}{cells[0]:<40}{cells[1]}")
    return lines


# -- pytest -----------------------------------------------------------------------------------------------------------

_session: Conformance | None = None
_all: Counter[tuple[str, str, int]] = Counter()


def start() -> None:
    """Have all emulators that this process starts, and those that its children start, keep records."""
    global _session
    folder = tempfile.TemporaryDirectory(prefix="batch-traffic-")
    _session = Conformance(Path(folder.name))
    os.environ[FOLDER_VARIABLE] = folder.name
    _keep.append(folder)


_keep: list[tempfile.TemporaryDirectory[str]] = []


@pytest.fixture(autouse=True)
def conforms() -> Iterator[None]:
    """Fail a test that made an emulator answer, or a client ask, other than as described."""
    yield
    if _session is not None and (found := _session.look()):
        more = f"\n… and {len(found) - 10} more" if len(found) > 10 else ""
        pytest.fail("not as the API is described:\n  " + "\n  ".join(found[:10]) + more, pytrace=False)


class Report:
    """Adds up what the workers covered; prints it with ``-v``, its sum in any case."""

    @staticmethod
    def pytest_sessionfinish(session: pytest.Session) -> None:
        if _session is None:
            return
        _session.look()
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["conformance"] = [[*key, count] for key, count in _session.covered.items()]
        else:
            _all.update(_session.covered)

    @staticmethod
    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(node: Any, error: Any) -> None:
        for name, version, status, count in getattr(node, "workeroutput", {}).get("conformance", []):
            _all[name, version, status] += count

    @staticmethod
    def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
        if not _all:
            return
        operations = {each.name for each in description(NEWEST).operations}
        asked = {name for name, _, status in _all if status < 400}
        terminalreporter.section("operations of the Batch API")
        if config.get_verbosity() > 0:
            terminalreporter.write_line(f"{'':<66}{NEWEST:<40}{OLDER} and before")
            for line in report(_all):
                terminalreporter.write_line(line)
        terminalreporter.write_line(
            f"{sum(_all.values())} requests were held to the API description; "
            f"{len(asked & operations)} of {len(operations)} operations were asked with success"
        )
