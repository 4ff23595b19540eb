"""Reading a request: its bounded body, and the two fields that the gateway acts on."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from cortex_core.envelopes.parameters import decode_object
from cortex_core.errors import InvalidJson, InvalidRequest, RequestTooLarge
from cortex_gateway.edge import Headers
from cortex_gateway.vigil import ClientGone, Receive

__all__ = ["RequestHead", "decode_head", "read_body"]


class RequestHead(NamedTuple):
    model: str
    stream: bool


class _Head(msgspec.Struct):
    model: str
    stream: bool | None = None


_decoder = msgspec.json.Decoder(_Head)


async def read_body(receive: Receive, headers: Headers, limit: int) -> bytes:
    """The whole body, by content-length or chunked.

    Raises RequestTooLarge as soon as it is known to exceed `limit` bytes, and ClientGone.
    """
    for name, value in headers:
        if name == b"content-length" and int(value) > limit:  # a number: the server has checked
            raise _too_large(limit)
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        parts = [body]
        size = len(body)
        while message.get("more_body"):
            message = await receive()
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise _too_large(limit)
            parts.append(part)
        body = b"".join(parts)
    if message["type"] == "http.disconnect":
        raise ClientGone("the client left before its request was complete")
    return body


def decode_head(body: bytes) -> RequestHead:
    """The model and whether to stream; the rest of the body is the neuron's to judge.

    Raises InvalidJson or InvalidRequest (with `param`).
    """
    try:
        head = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _explain(body)
    if not head.model:
        raise InvalidRequest("model: must not be empty", param="model")
    return RequestHead(head.model, head.stream or False)


def _explain(body: bytes) -> RequestHead:
    """What is wrong with a body that does not decode, in words."""
    if not body.strip():
        raise InvalidJson("the request body is empty; expected a JSON object")
    values = decode_object(body)
    model = values.get("model")
    if model is None:
        raise InvalidRequest("model: missing required parameter", param="model")
    for name, kind in (("model", str), ("stream", bool)):
        value = values.get(name)
        if value is not None and not isinstance(value, kind):
            wanted = "a string" if kind is str else "a boolean"
            raise InvalidRequest(f"{name}: expected {wanted}, got {_shown(value)}", param=name)
    raise InvalidRequest("the request body cannot be read")


def _shown(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else text[:77] + "..."


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"the request body exceeds {limit // (1024 * 1024)} MiB (gateway.max_body_mb)"
    )
