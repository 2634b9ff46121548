"""Whatever comes is read, or refused in words: names, journals, bundles, pages, variables, command lines."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import runs_lab
from click import Command, Group
from click.testing import CliRunner
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st

from joblib_azure.cli import main
from joblib_azure.codec import read_bundle, seal, unseal_all
from joblib_azure.config import AccountConfig, ClusterConfig
from joblib_azure.config.base import Settings
from joblib_azure.config.resolve import resolve
from joblib_azure.errors import ConfigurationError, IntegrityError, masked
from joblib_azure.jobs.names import calls_of, task_id
from joblib_azure.labels import LONGEST_NAME, batch_id, check_name
from joblib_azure.node.journal import JournalReader, JournalWriter
from joblib_azure.report import Timeline
from joblib_azure.storage import session_containers

pytestmark = pytest.mark.fuzz

KEY = b"k" * 32
#: What names and texts are broken with.
EVIL = st.sampled_from(
    [
        *(
            "</script><script>alert(1)</script>",
            "<!--",
            "-->",
            "<![CDATA[",
            '"',
            "'",
            "`x`",
            "&lt;",
            "$meta",
            "\\u003c",
        ),
        *(
            "\n",
            "\r\n",
            "\x00",
            "\u2028",
            "\u202e",
            "\ufeff",
            "a" * 3000,
            "]]>",
            "<img src=x onerror=alert(1)>",
            "\\1",
            "é",
        ),
    ]
)
TEXTS = st.text(max_size=20) | EVIL | st.tuples(st.text(max_size=5), EVIL, st.text(max_size=5)).map("".join)
SIG = "c2VjcmV0LXNpZ25hdHVyZQ%3D%3D"


def told(ask: Callable[[], Any], kind: type[Exception]) -> tuple[Any, str]:
    """What is returned, or None and what the error says."""
    try:
        return ask(), ""
    except kind as exc:
        return None, str(exc)


# bundles --------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200) | st.binary(max_size=60).map(b"JAZ1".__add__))
@fuzz(300)
def test_no_bytes_are_a_bundle(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="job/task"):
        read_bundle(KEY, "job/task", data)


@given(order=st.lists(st.integers(0, 4), max_size=7))
@fuzz(200)
def test_a_bundle_s_records_are_all_there_once_and_in_their_order(order: list[int]) -> None:
    heads: list[dict[str, Any]] = [{"records": 3, "n": 0}, *({"chunk": n} for n in range(3)), {"chunk": 3}]
    records = [seal(KEY, f"job/task#{n}", head, b"body") for n, head in enumerate(heads)]
    data = b"".join(records[n] for n in order)
    if order == [0, 1, 2, 3]:
        assert sorted(read_bundle(KEY, "job/task", data).chunks) == [0, 1, 2]
        return
    with pytest.raises(IntegrityError, match="job/task"):
        read_bundle(KEY, "job/task", data)


@given(
    head=st.dictionaries(
        st.sampled_from(["records", "sizes", "urls", "chunk", "x"]), st.none() | st.integers() | st.text() | st.floats()
    ),
    chunks=st.integers(0, 3),
)
@fuzz(150)
def test_a_manifest_that_does_not_tell_how_much_there_is_is_refused(head: dict[str, Any], chunks: int) -> None:
    """Nobody but the client can have sealed it: it is one of another version, or there is less than it says."""
    records = [seal(KEY, f"job/task#{n}", {"chunk": n} if n else head) for n in range(chunks + 1)]
    found, said = told(lambda: read_bundle(KEY, "job/task", b"".join(records)), IntegrityError)
    if head.get("records") == chunks:
        assert len(found.chunks) == chunks
    else:
        assert "is cut short" in said


@given(sizes=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)), rest=st.binary(max_size=40))
@fuzz(300)
def test_no_length_that_a_record_tells_costs_memory(sizes: tuple[int, int], rest: bytes) -> None:
    data = b"JAZ1" + sizes[0].to_bytes(4, "big") + sizes[1].to_bytes(8, "big") + rest
    with contextlib.suppress(IntegrityError):
        assert list(unseal_all(KEY, "p", data)) == []


# journals -------------------------------------------------------------------------------------------------------------

_LINES = st.sampled_from(
    [
        *(
            b'{"start": 1}\n',
            b'{"end": 1, "size": 3}\nabc',
            b'{"end": 1, "size": -30}\n',
            b'{"end": 1}\n',
            b"[]\n",
            b"3\n",
        ),
        *(
            b"{}\n",
            b'{"size": 1}\nx',
            b'{"end": 1, "size": 1e9}\n',
            b'{"end": 1, "size": "3"}\n',
            b"\n",
            b"\xff\n",
            b"{",
        ),
        *(b'{"end": [1], "size": 0}\n', b'{"start": null}\n', b"[" * 5000 + b"\n", b'{"end": true, "size": true}\n'),
    ]
)


@given(pieces=st.lists(_LINES | st.binary(max_size=10), max_size=6))
@fuzz(100)
def test_whatever_stands_in_a_journal_is_read_or_told(
    pieces: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A call runs as the worker does, and may write into its journal: that ends its task, and nothing else."""
    folder = tmp_path_factory.mktemp("journal")
    writer, reader = JournalWriter(str(folder)), JournalReader(str(folder))
    writer.start(7)
    writer.end(7, {"ok": True}, b"result")
    [path] = folder.glob("*.journal")
    first = next(iter(reader.read()))
    assert (first.chunk, first.body) == (7, b"result")
    with path.open("ab") as file:
        file.write(b"".join(pieces))
    found, said = told(lambda: list(reader.read()), ValueError)
    assert path.name in said if found is None else all(isinstance(outcome.chunk, int) for outcome in found)


# names ----------------------------------------------------------------------------------------------------------------


@given(
    st.text(max_size=50)
    | st.from_regex(r"[a-z0-9]+(-[a-z0-9]+){0,5}\n?", fullmatch=True)
    | st.integers()
    | st.none()
    | st.binary()
)
@fuzz(200)
def test_any_name_is_a_job_s_or_refused(name: Any) -> None:
    found, said = told(lambda: check_name(name), ConfigurationError)
    if found is None:
        assert repr(name) in said
        return
    assert len(name) <= LONGEST_NAME
    job = batch_id(name, 999)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", job)
    for container in session_containers(job):
        assert re.fullmatch(r"(?=.{3,63}$)[a-z0-9](-?[a-z0-9])*", container)


@given(st.text(max_size=30) | st.from_regex(r"\w+-\d{9}-\d+", fullmatch=True) | st.just("d0-000000000-" + "9" * 5000))
@fuzz(150)
def test_any_task_has_calls_or_none(task: str) -> None:
    found = calls_of(task)
    assert found == range(0) or task_id(task.split("-")[0], found.start, len(found)).split("-")[0] == task.split("-")[0]


# pages ----------------------------------------------------------------------------------------------------------------


class _Elements(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.handlers: list[str] = []
        self.comments: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name in ("src", "href")]

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _timeline(name: str, function: str, pool: str, node: str, task: str) -> Timeline:
    runs = [
        runs_lab.task_run(0, node, 0.5, runs_lab.phases(), task=task),
        runs_lab.task_run(1, "tvm-two", 0.5, runs_lab.phases(9.0)),
    ]
    return Timeline(runs_lab.history(runs, name=name, function=function, pool=pool))


@functools.cache
def _plain() -> _Elements:
    """The page of a run with decent names."""
    return _Elements(_timeline("sweep", "fit", "pool", "tvm-one", "d0-000000000-10").html())


@given(name=TEXTS, function=TEXTS, pool=TEXTS, node=TEXTS, task=TEXTS)
@fuzz(25)
def test_no_name_breaks_out_of_a_page(name: str, function: str, pool: str, node: str, task: str) -> None:
    plain = _plain()
    timeline = _timeline(name, function, pool, node, task)
    page = timeline.html()
    page.encode("utf-8")
    found = _Elements(page)
    # Backquotes in what is advised are code.
    assert [each for each in found.elements if each != "code"] == [each for each in plain.elements if each != "code"]
    assert found.handlers == plain.handlers == []
    assert found.comments == plain.comments
    json.dumps(timeline.data())


# variables ------------------------------------------------------------------------------------------------------------

_VALUES = st.sampled_from(
    [
        *("", " ", "https://", "http://[", "https://a:b", "AccountKey=;", "AccountName=a;AccountKey=!;BlobEndpoint=x"),
        *(
            "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=a2V5;EndpointSuffix=core.windows.net",
            "a2V5",
            "\udcff",
        ),
    ]
)


@given(data=st.data(), kind=st.sampled_from([ClusterConfig, AccountConfig]))
@fuzz(80)
def test_any_variables_are_a_configuration_or_told(data: st.DataObject, kind: type[Settings]) -> None:
    names = sorted({kind.file_variable, *kind.variables})
    environ = data.draw(st.dictionaries(st.sampled_from(names), _VALUES | st.text(max_size=20), max_size=5))
    environ |= {name: f"Key{text}" for name, text in environ.items() if name.endswith("_KEY")}
    found, said = told(lambda: resolve(kind, environ=environ), ConfigurationError)
    said = said or repr(found.config)
    said.encode("utf-8", "surrogateescape")
    for name in ("AZURE_BATCH_ACCESS_KEY", "AZURE_STORAGE_KEY"):
        assert len(environ.get(name, "")) < 8 or environ[name] not in said


# signatures of SAS ----------------------------------------------------------------------------------------------------


@given(before=st.text(max_size=10), after=st.sampled_from(["", "&se=1", "'", '"', " ", "\n", "&amp;x", ")"]))
@fuzz(150)
def test_a_signature_is_masked_wherever_it_stands(before: str, after: str) -> None:
    for mark in ("?", "&", "&amp;"):
        text = f"{before}https://a/b{mark}sig={SIG}{after}"
        assert SIG not in masked(text)
        assert masked(masked(text)) == masked(text)


# command lines --------------------------------------------------------------------------------------------------------


def _commands(group: Group, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Command]]:
    found: list[tuple[tuple[str, ...], Command]] = []
    for name in group.commands if not hasattr(group, "list_commands") else group.list_commands(None):  # type: ignore[arg-type]
        command = group.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        found.append(((*path, name), command))
        if isinstance(command, Group):
            found += _commands(command, (*path, name))
    return found


#: The demo is the one that starts something without being given an account.
COMMANDS = [(path, command) for path, command in _commands(main) if path != ("demo",)]
_WORDS = st.sampled_from(
    ["", "-", "--", "-1", "0", "1e999", "²", "nowhere.json", ".", "/", "a b", "\udcff", "--json", "--help"]
)


def test_every_command_is_among_them() -> None:
    paths = {" ".join(path) for path, _ in COMMANDS}
    assert {"cluster create", "job results", "storage gc", "config show", "account setup", "init", "doctor"} <= paths


@given(data=st.data(), chosen=st.sampled_from(COMMANDS))
@fuzz(80)
def test_any_command_line_is_done_or_told(
    data: st.DataObject, chosen: tuple[tuple[str, ...], Command], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In an empty folder, without an account: nothing can be reached, and nothing ends in a traceback."""
    path, command = chosen
    options = [name for each in command.params for name in each.opts if name.startswith("-")]
    word = _WORDS | st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8)
    pieces = st.lists(st.sampled_from(options) | word if options else word, max_size=5)
    arguments = [*path, *data.draw(pieces)]
    folder = tmp_path_factory.mktemp("cli")
    before = Path.cwd()
    os.chdir(folder)
    try:
        variables = {name: None for name in os.environ if name.startswith(("AZURE_", "JOBLIB_AZURE_"))}
        done = CliRunner(env={**variables, "AZURE_TOKEN_CREDENTIALS": "EnvironmentCredential"}).invoke(
            main, arguments, input=""
        )
    finally:
        os.chdir(before)
    assert done.exception is None or isinstance(done.exception, SystemExit), (arguments, done.exc_info)
    assert done.exit_code in (0, 1, 2), (arguments, done.output)
    assert "Traceback" not in done.output, (arguments, done.output)
