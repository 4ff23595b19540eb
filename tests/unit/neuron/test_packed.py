"""Packed numbers become the JSON that encoding them at once would give."""

from __future__ import annotations

import base64
import json
import math
import struct

from hypothesis import given
from hypothesis import strategies as st

from cortex_core.wire import ipc
from neuron.packed import encode_tokens, encode_vectors

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(FLOATS, min_size=n, max_size=n))))
def test_floats_keep_every_bit(rows: list[list[float]]):
    width = len(rows[0]) if rows else 1
    data = b"".join(struct.pack(f"<{width}f", *row) for row in rows)
    parts = list(encode_vectors(ipc.Vectors(data, width), "float"))
    for index, (part, row) in enumerate(zip(parts, rows, strict=True)):
        decoded = json.loads(bytes(part))
        assert decoded == {"index": index, "embedding": row, "object": "embedding"}
        assert [math.copysign(1, x) for x in decoded["embedding"]] == [
            math.copysign(1, x) for x in row
        ]


def test_base64_is_little_endian_float32():
    data = struct.pack("<4f", 1.5, -2.0, 0.0, 0.1)
    parts = encode_vectors(ipc.Vectors(data, 2), "base64")
    embeddings = [json.loads(bytes(part))["embedding"] for part in parts]
    assert [struct.unpack("<2f", base64.b64decode(text)) for text in embeddings] == [
        (1.5, -2.0),
        struct.unpack("<2f", data[8:]),
    ]


@given(st.lists(st.integers(0, 200_000)))
def test_ids_are_listed_in_order(ids: list[int]):
    tokens = ipc.Tokens(ipc.pack_ids(ids))
    assert json.loads(b"".join(encode_tokens(tokens))) == ids


def test_many_ids_come_in_several_parts():
    parts = list(encode_tokens(ipc.Tokens(ipc.pack_ids(list(range(20_000))))))
    assert json.loads(b"".join(parts)) == list(range(20_000))
    assert max(map(len, parts)) < 60_000


def test_a_piece_that_is_no_text_is_its_bytes():
    pieces = {1: b"a", 2: "é".encode()[:1], 3: b""}
    tokens = ipc.Tokens(ipc.pack_ids([2, 1, 3, 1]), pieces)
    assert json.loads(b"".join(encode_tokens(tokens))) == [
        {"id": 2, "piece": [195]},
        {"id": 1, "piece": "a"},
        {"id": 3, "piece": ""},
        {"id": 1, "piece": "a"},
    ]


def test_no_tokens_with_pieces_are_an_empty_list():
    assert b"".join(encode_tokens(ipc.Tokens(b"", {}))) == b"[]"
