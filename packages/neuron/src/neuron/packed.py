"""Packed numbers as JSON, piece by piece: an event loop that makes a megabyte of it at once serves
nobody meanwhile. Pure."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Literal

import msgspec

from cortex_core.envelopes.openai_embeddings import Embedding
from cortex_core.envelopes.tokens import TokenPiece
from cortex_core.wire import ipc

__all__ = ["encode_tokens", "encode_vectors"]

_encode = msgspec.json.Encoder().encode
_IDS_AT_ONCE = 8192


def encode_vectors(
    vectors: ipc.Vectors, encoding: Literal["float", "base64"]
) -> Iterator[msgspec.Raw]:
    """An Embedding for each."""
    size = 4 * vectors.width
    for index, start in enumerate(range(0, len(vectors.data), size)):
        row = vectors.data[start : start + size]
        if encoding == "base64":
            embedding: list[float] | str = base64.b64encode(row).decode("ascii")
        else:
            embedding = list(struct.unpack(f"<{vectors.width}f", row))
        yield msgspec.Raw(_encode(Embedding(index, embedding)))


def encode_tokens(tokens: ipc.Tokens) -> Iterator[bytes]:
    """Parts that make up a JSON array: of ids, or where there are pieces, of TokenPieces."""
    pieces = {
        token: _encode(TokenPiece(token, _text(piece)))
        for token, piece in (tokens.pieces or {}).items()
    }
    yield b"["
    for start in range(0, len(tokens.ids), 4 * _IDS_AT_ONCE):
        packed = tokens.ids[start : start + 4 * _IDS_AT_ONCE]
        some = struct.unpack(f"<{len(packed) // 4}i", packed)
        if start:
            yield b","
        if pieces:
            yield b",".join([pieces[token] for token in some])
        else:
            yield _encode(some)[1:-1]
    yield b"]"


def _text(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
