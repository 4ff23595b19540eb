"""Whom a request is counted for when a neuron shares its turns out among callers.

Never what the client says of itself: whoever could choose a name could be everybody at once.
"""

from __future__ import annotations

import hashlib

from cortex_gateway.edge import Headers

__all__ = ["caller_of"]

_CREDENTIALS = (b"authorization", b"x-api-key")


def caller_of(headers: Headers, address: str) -> str:
    """`key-` and 64 bits of a hash of the client's credential and address; without a credential,
    the address.

    Both, because nobody has checked the credential: many clients of many people send the same
    placeholder for a key, and behind one proxy many keys have one address. The hash is the same in
    every gateway and after every restart; the credential itself stays here.
    """
    address = address or "unknown"
    for name, value in headers:
        if name in _CREDENTIALS and value:
            text = b"cortex caller\0" + address.encode() + b"\0" + value
            return "key-" + hashlib.sha256(text).hexdigest()[:16]
    return address
