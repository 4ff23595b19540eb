"""Whom a request is counted for when a neuron shares its turns out among callers.

Never what the client says of itself: whoever could choose a name could be everybody at once.
"""

from __future__ import annotations

import hashlib

from cortex_gateway.edge import Headers

__all__ = ["caller_of"]

_CREDENTIALS = (b"authorization", b"x-api-key")


def caller_of(headers: Headers, address: str) -> str:
    """`key-` and 64 bits of a hash of the client's credential; without one, its address.

    The hash is the same in every gateway and after every restart, so that one client is one caller
    to a neuron however it came; the credential itself stays here.
    """
    for name, value in headers:
        if name in _CREDENTIALS and value:
            return "key-" + hashlib.sha256(b"cortex caller\0" + value).hexdigest()[:16]
    return address or "unknown"
