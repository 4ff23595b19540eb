"""Undoing a request body's content encoding, in bounded memory and without holding up the loop."""

from __future__ import annotations

import asyncio
import zlib

from cortex_core.errors import InvalidRequest, UnsupportedEncoding

__all__ = ["ACCEPTED", "inflated"]

ACCEPTED = ("gzip", "deflate")
"""The content encodings that a request's body may have."""

# What each coding is to zlib. `deflate` means the zlib format (RFC 9110, 8.4.1.2).
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}

# Half a millisecond's work; then others have their turn. A few bytes can become a thousand times
# as many, so what comes out is counted and not what goes in.
STEP_BYTES = 256 * 1024
_SLICE_BYTES = 64 * 1024


async def inflated(body: bytes, encoding: str, limit: int) -> bytes | None:
    """The body as it was before it was encoded; None where that has more than `limit` bytes.

    Raises UnsupportedEncoding, and InvalidRequest over a body that is not what its encoding says.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        raise UnsupportedEncoding(
            f"content-encoding: {encoding[:80]!r} is not supported; send {', '.join(ACCEPTED)} or "
            "none",
            param="content-encoding",
        )
    inflater = zlib.decompressobj(bits)
    parts: list[bytes] = []
    size = start = 0
    try:
        while not inflater.eof:
            piece = inflater.unconsumed_tail
            if not piece:
                piece = body[start : start + _SLICE_BYTES]
                start += len(piece)
            part = inflater.decompress(piece, STEP_BYTES)
            if not part and not piece:
                raise _not_what_it_says(encoding, "it breaks off")
            size += len(part)
            if size > limit:
                return None
            parts.append(part)
            if len(part) == STEP_BYTES:
                await asyncio.sleep(0)
    except zlib.error as error:
        raise _not_what_it_says(encoding, str(error)) from None
    if inflater.unused_data or start < len(body):
        raise _not_what_it_says(encoding, "something follows its end")
    return b"".join(parts)


def _not_what_it_says(encoding: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"content-encoding: the request body is not valid {encoding}: {why}")
