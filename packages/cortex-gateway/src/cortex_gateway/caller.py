"""Whom a request is counted for when turns are shared out among callers.

Never what the client says of itself: whoever could choose a name could be everybody at once.
"""

from __future__ import annotations

import hashlib

from cortex_gateway.edge import Headers

__all__ = ["caller_of"]


def caller_of(headers: Headers, address: str) -> str:
    """`key-` and 64 bits of a hash of the client's credential and address; without a credential,
    the address.

    Both, because nobody has checked the credential: many clients of many people send the same
    placeholder for a key, and behind one proxy many keys have one address. A key is the same in
    `Authorization: Bearer` and in `x-api-key`: the vendors' dialects differ in where they put it.
    The hash is the same in every gateway and after every restart; the credential itself stays
    here.
    """
    address = address or "unknown"
    credential = b""
    for name, value in headers:
        if name == b"authorization" and value:
            scheme, _, token = value.partition(b" ")
            credential = token.strip() if scheme.lower() == b"bearer" else value
            break
        if name == b"x-api-key" and value:
            credential = value
    if not credential:
        return address
    text = b"cortex caller\0" + address.encode() + b"\0" + credential
    return "key-" + hashlib.sha256(text).hexdigest()[:16]
