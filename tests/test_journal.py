"""Journals: what a worker finished is found, and so is what it was doing when it died."""

from __future__ import annotations

from pathlib import Path

from joblib_azure.node.journal import JournalReader, JournalWriter


def test_outcomes_are_found_once(tmp_path: Path) -> None:
    writer, reader = JournalWriter(str(tmp_path)), JournalReader(str(tmp_path))
    assert list(reader.read()) == []
    for chunk in range(3):
        writer.start(chunk)
        writer.end(chunk, {"ok": True}, b"\n\x00{" * chunk)
    assert [(o.chunk, o.head, o.body) for o in reader.read()] == [
        (chunk, {"ok": True}, b"\n\x00{" * chunk) for chunk in range(3)
    ]
    assert list(reader.read()) == []
    assert reader.take_suspects() == []


def test_a_started_chunk_is_suspect(tmp_path: Path) -> None:
    writer, reader = JournalWriter(str(tmp_path)), JournalReader(str(tmp_path))
    writer.start(1)
    writer.end(1, {}, b"x")
    writer.start(2)
    assert [o.chunk for o in reader.read()] == [1]
    assert reader.take_suspects() == [2]
    assert reader.take_suspects() == []


def test_an_outcome_cut_in_the_middle_waits_for_its_rest(tmp_path: Path) -> None:
    writer, reader = JournalWriter(str(tmp_path)), JournalReader(str(tmp_path))
    writer.start(1)
    writer.end(1, {}, b"0123456789")
    path = next(tmp_path.glob("*.journal"))
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        assert list(reader.read()) == []
    path.write_bytes(whole)
    assert [o.body for o in reader.read()] == [b"0123456789"]


def test_a_chunk_whose_outcome_was_cut_by_death_is_suspect(tmp_path: Path) -> None:
    writer, reader = JournalWriter(str(tmp_path)), JournalReader(str(tmp_path))
    writer.start(7)
    writer.end(7, {}, b"0123456789")
    path = next(tmp_path.glob("*.journal"))
    path.write_bytes(path.read_bytes()[:-3])
    assert list(reader.read()) == []
    assert reader.take_suspects() == [7]
