"""Small GGUF files, byte by byte, so that tests can also write wrong ones."""

from __future__ import annotations

import struct
from collections.abc import Sequence

STRING, ARRAY, U32, F32 = 8, 9, 4, 6


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def string(key: str, value: str) -> bytes:
    return entry(key, STRING, text(value))


def u32(key: str, value: int) -> bytes:
    return entry(key, U32, struct.pack("<I", value))


def strings(key: str, values: Sequence[str]) -> bytes:
    body = b"".join(map(text, values))
    return entry(key, ARRAY, struct.pack("<IQ", STRING, len(values)) + body)


def floats(key: str, values: Sequence[float]) -> bytes:
    body = struct.pack(f"<{len(values)}f", *values)
    return entry(key, ARRAY, struct.pack("<IQ", F32, len(values)) + body)


def tensor(name: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


def gguf(
    keys: Sequence[bytes] | None = None,
    tensors: Sequence[bytes] | None = None,
    *,
    data_bytes: int = 256,
    version: int = 3,
    key_count: int | None = None,
    tensor_count: int | None = None,
    magic: bytes = b"GGUF",
) -> bytes:
    """A whole file; by default a sound one with one 8 by 8 F32 tensor."""
    if keys is None:
        keys = [string("general.architecture", "test"), u32("test.block_count", 1)]
    if tensors is None:
        tensors = [tensor("token_embd.weight", [8, 8], 0, 0)]
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    body = head + b"".join(keys) + b"".join(tensors)
    return body + bytes(-len(body) % 32) + bytes(data_bytes)
