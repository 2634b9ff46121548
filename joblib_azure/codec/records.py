"""Authenticated records: what a bundle and a stream of outcomes are made of.

::

    record = magic · length of head · length of body · head (JSON) · body · HMAC-SHA256

A record's HMAC covers its bytes and its *place* (which job, which blob, which position), so that a record
cannot be moved to another place, and it is checked before the body is unpickled.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ..errors import IntegrityError

MAGIC = b"JAZ1"
#: Bytes: what the widest vector instructions want of an array that is mapped where it lies.
ALIGNMENT = 64
#: Of a job's key.
KEY_BYTES = 32
_PREFIX = struct.Struct(">4sIQ")
#: As ``json.dumps`` and ``loads``, which make these anew each time.
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_from_json = json.JSONDecoder().decode
#: Bytes up to which a copy costs less than what it saves.
_SMALL = 8 << 10
_DIGEST_SIZE = hashlib.sha256().digest_size


def new_key() -> bytes:
    """Return a job's random authentication key."""
    return secrets.token_bytes(KEY_BYTES)


class Record(NamedTuple):  # several for each outcome of a long run
    """One authenticated record: a JSON head and a body of bytes."""

    head: dict[str, Any]
    body: memoryview
    offset: int  #: of the body
    end: int  #: offset of the byte behind the record


def _code(key: bytes, place: str, *parts: bytes | memoryview) -> bytes:
    where = place.encode()
    parts = (struct.pack(">I", len(where)), where, *parts)
    if sum(map(len, parts)) <= _SMALL:
        return hmac.digest(key, b"".join(parts), "sha256")  # a third of the time, for a copy
    mac = hmac.new(key, digestmod="sha256")
    for part in parts:
        mac.update(part)
    return mac.digest()


def seal(
    key: bytes, place: str, head: dict[str, Any], body: bytes | memoryview = b"", *, at: int | None = None
) -> bytes:
    """Return the bytes of one record.

    Parameters
    ----------
    key : bytes
        The job's key.
    place : str
        Where the record belongs, for example ``"job-1/c1-000000-0/000#3"``; `unseal` must name the same.
    head : dict
        Small JSON values.
    body : bytes
        The payload.
    at : int, optional
        Where the record begins in its blob, so that its body can begin at a multiple of `ALIGNMENT`.
    """
    text = _to_json(head).encode()
    if at is not None:
        text += b" " * (-(at + _PREFIX.size + len(text)) % ALIGNMENT)
    prefix = _PREFIX.pack(MAGIC, len(text), len(body))
    return b"".join((prefix, text, body, _code(key, place, prefix, text, body)))


def unseal(key: bytes, place: str, data: bytes | memoryview, offset: int = 0) -> Record | None:
    """Return the record that begins at `offset`, or None where `data` ends before it does.

    Raises
    ------
    IntegrityError
        Where the bytes are no record or its code does not fit; the error names the place.
    """
    view = memoryview(data)
    if len(view) - offset < _PREFIX.size:
        return None
    prefix = view[offset : offset + _PREFIX.size]
    magic, head_size, body_size = _PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise IntegrityError(
            f"{place} does not begin as a record of joblib_azure does; it was damaged or written by "
            "something else, and nothing of it was unpickled"
        )
    body_at = offset + _PREFIX.size + head_size
    code_at = body_at + body_size
    end = code_at + _DIGEST_SIZE
    if len(view) < end:
        return None
    text, body = view[offset + _PREFIX.size : body_at], view[body_at:code_at]
    if not hmac.compare_digest(_code(key, place, prefix, text, body), view[code_at:end]):
        raise IntegrityError(
            f"the authentication code of {place} does not fit its content and place; nothing of it was "
            "unpickled. Somebody without the job's key wrote it, or it was moved or damaged"
        )
    return Record(head=_from_json(str(text, "utf-8")), body=body, offset=body_at, end=end)


def divided(record: Record, parts: Iterable[tuple[dict[str, Any], int]]) -> Iterator[Record]:
    """Yield what shares a record, each as if it had one of its own; of each part its head and the size of its body."""
    at = 0
    for head, size in parts:
        yield Record(head, record.body[at : at + size], record.offset + at, record.end)
        at += size


def unseal_all(key: bytes, place: str, data: bytes | memoryview, first: int = 0) -> Iterator[Record]:
    """Yield the whole records of `data`; the k-th one's place is ``f"{place}#{first + k}"``."""
    offset = 0
    while (record := unseal(key, f"{place}#{first}", data, offset)) is not None:
        yield record
        first, offset = first + 1, record.end
