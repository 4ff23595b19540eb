"""Which paths a model answers, where a neuron answers them, and in which dialect their clients are
spoken to.

What is not translated passes byte for byte. A dialect speaks for itself where there is no
translation yet: when a body cannot even be read.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import msgspec

from cortex_core.errors import CortexError, UpstreamFailed, render_anthropic, render_responses
from cortex_core.translate.anthropic_request import translate_messages
from cortex_core.translate.responses_request import Memory, NoMemory, translate_responses
from cortex_core.translate.translation import Translation
from cortex_core.wire import sse
from cortex_gateway.edge import error_body

__all__ = [
    "ANTHROPIC",
    "DIALECTS",
    "OPENAI",
    "RESPONSES",
    "Counting",
    "Dialect",
    "Route",
    "Voice",
    "dialects",
]

_encode = msgspec.json.Encoder().encode


class Voice(Protocol):
    """How a client is told what no neuron says. A Translation is one, and so is a Dialect."""

    def keep_alive(self) -> bytes: ...
    def error_event(self, error: CortexError) -> bytes: ...
    def error_body(self, error: CortexError) -> bytes: ...


class Dialect:
    """OpenAI's, unless another says otherwise."""

    def keep_alive(self) -> bytes:
        return sse.KEEP_ALIVE

    def error_event(self, error: CortexError) -> bytes:
        return sse.encode(self.error_body(error))

    def error_body(self, error: CortexError) -> bytes:
        return error_body(error)


class _Anthropic(Dialect):
    def error_event(self, error: CortexError) -> bytes:
        return sse.encode(self.error_body(error), event="error")

    def error_body(self, error: CortexError) -> bytes:
        return _encode(render_anthropic(error))


class _Responses(Dialect):
    def error_event(self, error: CortexError) -> bytes:
        return sse.encode(_encode(render_responses(error)), event="error")


OPENAI = Dialect()
ANTHROPIC = _Anthropic()
RESPONSES = _Responses()


class Route(NamedTuple):
    """`path`: where a neuron answers it. `is_generating`: it may stream, and it has a prompt, whose
    beginning may be cached somewhere. `has_query`: the neuron reads the query string. `translate`
    makes a body's translation, whose chat is sent there in its place."""

    path: str
    dialect: Dialect = OPENAI
    is_generating: bool = False
    has_query: bool = False
    translate: Callable[[bytes], Translation] | None = None


class _Count(msgspec.Struct):
    count: int


class Counting:
    """A translation of which only the prompt's length is asked for: a chat's rendering in,
    `{"input_tokens": n}` out."""

    is_stream = False
    is_ended = False

    def __init__(self, of: Translation) -> None:
        self.model = of.model
        self.chat = of.chat
        self.ignored = of.ignored
        self.names = of.names
        self.error_body = of.error_body
        self.error_event = of.error_event
        self.keep_alive = of.keep_alive
        self.started = of.started
        self.feed = of.feed

    def whole(self, body: bytes) -> bytes:
        try:
            count = msgspec.json.decode(body, type=_Count).count
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UpstreamFailed("the node answered with something that is no count") from None
        return _encode({"input_tokens": count})


def dialects(memory: Memory, *, keeps_attribution: bool) -> dict[str, Route]:
    """By path. `memory` is where responses are kept; `keeps_attribution` as
    `cortex_core.translate.anthropic_request` has it."""

    def respond(body: bytes) -> Translation:
        return translate_responses(body, memory, created_at=time.time())

    def message(body: bytes) -> Translation:
        return translate_messages(body, keeps_attribution=keeps_attribution)

    def count(body: bytes) -> Translation:
        return Counting(
            translate_messages(body, is_count=True, keeps_attribution=keeps_attribution)
        )

    chat = Route("/v1/chat/completions", is_generating=True)
    return {
        "/v1/chat/completions": chat,
        "/v1/chat/render": Route("/v1/chat/render", has_query=True),
        "/v1/completions": Route("/v1/completions", is_generating=True),
        "/v1/embeddings": Route("/v1/embeddings"),
        "/v1/messages": chat._replace(dialect=ANTHROPIC, translate=message),
        "/v1/messages/count_tokens": Route(
            "/v1/chat/render?tokens=false", ANTHROPIC, translate=count
        ),
        "/v1/rerank": Route("/v1/rerank"),
        "/v1/responses": chat._replace(dialect=RESPONSES, translate=respond),
        "/tokenize": Route("/tokenize"),
        "/detokenize": Route("/detokenize"),
    }


DIALECTS = dialects(NoMemory(), keeps_attribution=False)
"""Those of a gateway that keeps no responses."""
