"""What crosses the wire, as bytes: calls on their way to a node and outcomes on their way back.

Used on both ends, so that client and node share one definition; no azure, no threads. Read in this order::

    records.py    what is authenticated: a head, a body, and an HMAC over both and their place
    content.py    how content is named, so that the same bytes move once
    pickling.py   pickles with their large buffers beside them
    bundles.py    the calls of some chunks
    outcomes.py   what they returned or raised
"""

from __future__ import annotations

from .bundles import CallEncoder, EncodedChunk, Part, ReadBundle, read_bundle, write_bundle
from .content import PIECE, content_name, name_of, spans
from .outcomes import Landing, Layout, Payload, decode_outcome, encode_outcome, group_size
from .pickling import PROTOCOL, Buffer, Digests, Packed, Unpickler, pack, unpack
from .records import KEY_BYTES, Record, new_key, seal, unseal, unseal_all

__all__ = [
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
    "pack",
    "read_bundle",
    "seal",
    "spans",
    "unpack",
    "unseal",
    "unseal_all",
    "write_bundle",
]
