"""`POST /tokenize` and `POST /detokenize`, in the form of llama.cpp's server."""

from __future__ import annotations

from typing import Any

import msgspec

from cortex_core.envelopes.inputs import TokenId
from cortex_core.envelopes.openai_chat import ChatRequest, check_messages
from cortex_core.envelopes.parameters import decode_request
from cortex_core.errors import InvalidRequest

__all__ = [
    "Counted",
    "DetokenizeRequest",
    "Detokenized",
    "RenderedChat",
    "TokenPiece",
    "TokenizeRequest",
    "Tokenized",
    "decode_detokenize_request",
    "decode_tokenize_request",
]


class TokenizeRequest(msgspec.Struct, frozen=True):
    """Either `content`, or `messages` (with `tools`, `chat_template_kwargs`), which are rendered
    as for a chat. `add_special` None: none around a content, and around messages what a chat's
    prompt has. `parse_special`: special tokens written in the text are read as such."""

    model: str
    content: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special: bool | None = None
    parse_special: bool = True
    with_pieces: bool = False

    @property
    def chat(self) -> ChatRequest | None:
        """The chat whose prompt is asked for."""
        if self.messages is None:
            return None
        return ChatRequest(
            self.model,
            self.messages,
            tools=self.tools,
            chat_template_kwargs=self.chat_template_kwargs,
        )


def decode_tokenize_request(body: bytes) -> tuple[TokenizeRequest, list[str]]:
    """The checked request and the names of the parameters that have no effect.

    Raises InvalidJson, InvalidRequest or UnsupportedParameter, each naming the parameter.
    """
    request, ignored = decode_request(body, TokenizeRequest)
    if not request.model:
        raise InvalidRequest("model: must not be empty", param="model")
    if (request.content is None) == (request.messages is None):
        raise InvalidRequest("content: give either content or messages", param="content")
    if request.messages is not None:
        check_messages(request.messages, request.tools)
        return request, ignored
    for name in ("tools", "chat_template_kwargs"):
        if getattr(request, name) is not None:
            ignored.append(name)
    return request, ignored


class DetokenizeRequest(msgspec.Struct, frozen=True):
    model: str
    tokens: list[TokenId]


def decode_detokenize_request(body: bytes) -> tuple[DetokenizeRequest, list[str]]:
    """The checked request, and no names: every parameter has an effect.

    Raises InvalidJson, InvalidRequest or UnsupportedParameter, each naming the parameter.
    """
    request, ignored = decode_request(body, DetokenizeRequest)
    if not request.model:
        raise InvalidRequest("model: must not be empty", param="model")
    return request, ignored


# answers


class TokenPiece(msgspec.Struct, frozen=True):
    """`piece`: the token's text, or its bytes where they are not whole characters."""

    id: int
    piece: str | list[int]


class Tokenized(msgspec.Struct, frozen=True):
    """`tokens`: ids, or with pieces a TokenPiece each; already as JSON."""

    count: int
    tokens: msgspec.Raw


class Detokenized(msgspec.Struct, frozen=True):
    content: str


class Counted(msgspec.Struct, frozen=True):
    count: int


class RenderedChat(msgspec.Struct, frozen=True, omit_defaults=True):
    """`tokens` as in Tokenized. `warnings`: what had to be done so that the template took the
    conversation, for people."""

    prompt: str
    count: int
    tokens: msgspec.Raw
    warnings: tuple[str, ...] = ()
