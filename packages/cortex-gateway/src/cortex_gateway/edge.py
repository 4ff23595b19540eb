"""The gateway's edge: request ids, errors as responses, and answers to bodies that nobody read.

What an answer is called, and by whose custom, is decided here for the hot path, too.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

import msgspec

from cortex_core.errors import CortexError, UnsupportedEncoding, render_openai
from cortex_gateway.inflate import ACCEPTED
from cortex_gateway.vigil import Receive

__all__ = [
    "Edge",
    "Headers",
    "Send",
    "error_body",
    "error_head",
    "has_body",
    "id_headers",
    "request_id_of",
    "send_despite_body",
    "speaks_anthropic",
]

Headers = Iterable[tuple[bytes, bytes]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# How long the gateway goes on reading, and forgetting, the body of a request that it has already
# refused: a connection that is closed on unread bytes is reset, and the refusal may never arrive.
LINGER_S = 2.0

_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


def request_id_of(headers: Headers) -> bytes:
    """The client's `x-request-id` if it is sane, else a new one."""
    for name, value in headers:
        if name == b"x-request-id":
            if _SANE_ID.fullmatch(value):
                return value
            break
    return b"%032x" % random.getrandbits(128)


def speaks_anthropic(scope: Mapping[str, Any]) -> bool:
    """Whether the route is that vendor's alone, or the client, which then always says so."""
    if (scope["path"] + "/").startswith("/v1/messages/"):
        return True
    return any(name == b"anthropic-version" for name, _ in scope["headers"])


def id_headers(scope: Mapping[str, Any], request_id: bytes) -> list[tuple[bytes, bytes]]:
    """By what its client finds an answer's request id; Anthropic's have their own name for it."""
    if speaks_anthropic(scope):
        return [(b"x-request-id", request_id), (b"request-id", request_id)]
    return [(b"x-request-id", request_id)]


def has_body(headers: Headers) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in headers
    )


def error_body(error: CortexError) -> bytes:
    return msgspec.json.encode(render_openai(error))


def error_head(error: CortexError) -> list[tuple[bytes, bytes]]:
    """The headers that go with an error, without a length."""
    headers = [(b"content-type", b"application/json")]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    if isinstance(error, UnsupportedEncoding):  # RFC 9110, 12.5.3
        headers.append((b"accept-encoding", ", ".join(ACCEPTED).encode()))
    return headers


async def send_despite_body(
    receive: Receive, send: Send, start: MutableMapping[str, Any], body: bytes
) -> None:
    """Send a whole answer to a request whose body is still coming in, and close the connection.

    The body is read and forgotten for a moment: hypercorn hands over at most ten pieces ahead, so
    with nobody reading, the connection would never be done with; see also LINGER_S.
    """
    start["headers"].append((b"connection", b"close"))
    discarder = asyncio.create_task(_discard(receive))
    try:
        await send(start)
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await asyncio.wait({discarder}, timeout=LINGER_S)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    finally:
        discarder.cancel()


async def _discard(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return


class Edge:
    """Around every app but the hot path: puts the request id on, minds unread bodies, and takes a
    path with a slash at its end for the one without."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        request_id = request_id_of(scope["headers"])
        scope["state"]["request_id"] = request_id.decode()
        if scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        named = id_headers(scope, request_id)
        is_unread = has_body(scope["headers"])
        start: MutableMapping[str, Any] = {}

        async def receive_and_see() -> MutableMapping[str, Any]:
            nonlocal is_unread
            message = await receive()
            if not message.get("more_body"):
                is_unread = False
            return message

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *named]
                if is_unread:
                    start.update(message)  # to be sent with the body, below
                    return
            elif start and is_unread:
                await send_despite_body(receive, send, start, message.get("body", b""))
                return
            await send(message)

        await self._app(scope, receive_and_see, send_with_id)
