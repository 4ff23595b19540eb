"""Reading a request: its bounded body, and the few fields that the gateway acts on."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from cortex_core.envelopes.parameters import decode_object
from cortex_core.errors import InvalidJson, InvalidRequest, RequestTooLarge
from cortex_core.fleet.affinity import BLOCK_BYTES, MOST_KEYS, prefix_keys
from cortex_gateway.edge import Headers
from cortex_gateway.inflate import inflated
from cortex_gateway.vigil import ClientGone, Receive, Vigil

__all__ = ["RequestHead", "decode_head", "read_body", "renamed"]

# Prefix keys look no further into a prompt.
_PREFIX_BYTES = BLOCK_BYTES * MOST_KEYS


class RequestHead(NamedTuple):
    """`prefix`: see `cortex_core.fleet.affinity.prefix_keys`; empty for what has no prompt."""

    model: str
    stream: bool
    prefix: tuple[int, ...] = ()


class _Head(msgspec.Struct):
    model: str
    stream: bool | None = None


_NOTHING = msgspec.Raw()


class _Prompt(_Head):
    """The parts of a prompt in the order in which templates print them. As they were written: a
    client that writes the same beginning in another way gets another prefix, which costs it no
    more than a cache."""

    tools: msgspec.Raw = _NOTHING
    messages: msgspec.Raw = _NOTHING
    prompt: msgspec.Raw = _NOTHING


_head_decoder = msgspec.json.Decoder(_Head)
_prompt_decoder = msgspec.json.Decoder(_Prompt)


async def read_body(
    receive: Receive,
    headers: Headers,
    limit: int,
    vigil: Vigil | None = None,
    idle_timeout_s: float = 0.0,
) -> bytes:
    """The whole body, by content-length or chunked, with its content encoding undone.

    With a `vigil`, whoever sends none of it for `idle_timeout_s` ends the request. Raises
    RequestTooLarge as soon as it is known to exceed `limit` bytes, UnsupportedEncoding,
    InvalidRequest and ClientGone.
    """
    encoding = b""
    for name, value in headers:
        if name == b"content-length":
            if int(value) > limit:  # a number: the server has checked
                raise _too_large(limit)
        elif name == b"content-encoding":
            encoding = value
    message = await receive()
    body: bytes = message.get("body", b"")
    size = len(body)
    if message.get("more_body"):
        parts = [body]
        while message.get("more_body") and size <= limit:
            if vigil is not None:
                vigil.expect(idle_timeout_s)
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
        body = b"".join(parts)
    if size > limit:
        raise _too_large(limit)
    if message["type"] == "http.disconnect":
        raise ClientGone("the client left before its request was complete")
    if vigil is not None:
        vigil.has_read()
    if encoding:
        plain = await inflated(body, encoding.decode("latin-1"), limit)
        if plain is None:
            raise _too_large(limit)
        return plain
    return body


def decode_head(body: bytes, *, has_prompt: bool = False) -> RequestHead:
    """The model and whether to stream; the rest of the body is the neuron's to judge.

    Raises InvalidJson or InvalidRequest (with `param`).
    """
    try:
        if has_prompt and len(body) > BLOCK_BYTES:
            head = _prompt_decoder.decode(body)
        else:
            head = _head_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _explain(body)
    if not head.model:
        raise InvalidRequest("model: must not be empty", param="model")
    return RequestHead(head.model, head.stream or False, _prefix_of(head))


def renamed(body: bytes, model: str) -> bytes:
    """The same request for another model, the one that an alias stands for."""
    values = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    values["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(values)


def _prefix_of(head: _Head) -> tuple[int, ...]:
    if not isinstance(head, _Prompt):
        return ()
    parts = (head.tools, head.messages, head.prompt)
    return prefix_keys(bytes(memoryview(part)[:_PREFIX_BYTES]) for part in parts)


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
