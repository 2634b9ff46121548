"""What crosses the wire, as bytes: calls on their way to a node and outcomes on their way back.

Used on both ends, so that client and node share one definition; no azure, no threads. Read in this order::

    records.py    what is authenticated: a head, a body, and an HMAC over both and their place
    content.py    how content is named, so that the same bytes move once
    pickling.py   pickles with their large buffers beside them
    bundles.py    the calls of some chunks
    outcomes.py   what they returned or raised
    streams.py    the outcomes of a task, as it appends them
"""

from __future__ import annotations

from .bundles import CallEncoder, EncodedChunk, Part, ReadBundle, read_bundle, write_bundle
from .content import PIECE, content_name, name_of, spans
from .outcomes import Landing, Layout, Payload, decode_outcome, encode_outcome, group_size
from .pickling import PROTOCOL, Buffer, Digests, Packed, Unpickler, pack, unpack
from .records import KEY_BYTES, Record, new_key, seal, unseal, unseal_all
from .streams import FAILED, outcomes_of, seal_outcomes

__all__ = [
    "FAILED",
    "KEY_BYTES",
    "PIECE",
    "PROTOCOL",
    "Buffer",
    "CallEncoder",
    "Digests",
    "EncodedChunk",
    "Landing",
    "Layout",
    "Packed",
    "Part",
    "Payload",
    "ReadBundle",
    "Record",
    "Unpickler",
    "content_name",
    "decode_outcome",
    "encode_outcome",
    "group_size",
    "name_of",
    "new_key",
    "outcomes_of",
    "pack",
    "read_bundle",
    "seal",
    "seal_outcomes",
    "spans",
    "unpack",
    "unseal",
    "unseal_all",
    "write_bundle",
]
