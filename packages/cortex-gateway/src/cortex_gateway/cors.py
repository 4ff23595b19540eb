"""Cross-origin requests of browsers: who may send them, and which headers their pages may read.

Around the whole app, and only where origins are configured. A page elsewhere gets no such headers,
so its browser keeps the answer from it; nothing is refused here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from cortex_gateway.edge import Headers, Send
from cortex_gateway.vigil import Receive

__all__ = ["Cors"]

# How long a browser may remember what it was told; the longest that browsers accept is two hours.
MAX_AGE_S = b"7200"

_METHODS = b"GET, HEAD, POST, DELETE"
_EXPOSED = b"x-request-id, request-id, retry-after, x-cortex-node, x-cortex-cache, x-cortex-ignored"


class Cors:
    """`origins` as browsers send them (`https://chat.example`), or `*` for all of them."""

    def __init__(self, app: Callable[..., Awaitable[None]], origins: Iterable[str]) -> None:
        self._app = app
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = scope["headers"]
        granted = self._granted(_value(headers, b"origin"))
        if scope["method"] == "OPTIONS" and _value(headers, b"access-control-request-method"):
            await _answer_preflight(headers, granted, send)
            return

        async def send_granted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *granted]
            await send(message)

        await self._app(scope, receive, send_granted)

    def _granted(self, origin: bytes) -> list[tuple[bytes, bytes]]:
        if not origin or not self._origins & {origin, b"*"}:
            return [(b"vary", b"origin")]
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"origin"),
        ]


async def _answer_preflight(
    headers: Headers, granted: list[tuple[bytes, bytes]], send: Send
) -> None:
    wanted = _value(headers, b"access-control-request-headers")
    answered = [
        *granted,
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-max-age", MAX_AGE_S),
    ]
    if wanted:  # no header can do harm here: what is not known is not read
        answered.append((b"access-control-allow-headers", wanted))
    await send({"type": "http.response.start", "status": 204, "headers": answered})
    await send({"type": "http.response.body", "body": b""})


def _value(headers: Headers, wanted: bytes) -> bytes:
    for name, value in headers:
        if name == wanted:
            return value
    return b""
