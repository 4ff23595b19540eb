"""A chat completion as a translation reads it: the chunks of a stream, or the whole answer.

Only what a translation needs is decoded, because it happens once per token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from cortex_core.errors import CortexError, UpstreamFailed, parse_openai

__all__ = [
    "CallDelta",
    "CallFunction",
    "ChatChoice",
    "ChatChunk",
    "ChatMessage",
    "ChatUsage",
    "ChunkDelta",
    "ChunkOption",
    "WholeAnswer",
    "read_chunks",
    "read_whole",
]

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class CallFunction(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class CallDelta(msgspec.Struct):
    """Of one tool call; the first of a call has its id and its name."""

    index: int = 0
    id: str | None = None
    function: CallFunction | None = None


class ChunkDelta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChunkOption(msgspec.Struct):
    """A choice of a chunk. `stop_reason`: the stop string that ended the answer, if one did.
    `logprobs` as they came."""

    delta: ChunkDelta
    finish_reason: str | None = None
    stop_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class ChatUsage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None

    @property
    def cached(self) -> int:
        details = self.prompt_tokens_details
        return (details.cached_tokens or 0) if details else 0

    @property
    def reasoning(self) -> int:
        details = self.completion_tokens_details
        return (details.reasoning_tokens or 0) if details else 0


class ChatChunk(msgspec.Struct):
    choices: list[ChunkOption] = []
    usage: ChatUsage | None = None
    error: dict[str, Any] | None = None


class ChatMessage(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallDelta] | None = None


class ChatChoice(msgspec.Struct):
    """Of a whole answer; `stop_reason` and `logprobs` as in a chunk."""

    message: ChatMessage
    finish_reason: str | None = None
    stop_reason: str | None = None
    logprobs: dict[str, Any] | None = None


class WholeAnswer(msgspec.Struct):
    choices: list[ChatChoice]
    usage: ChatUsage | None = None


_chunk = msgspec.json.Decoder(ChatChunk)
_whole = msgspec.json.Decoder(WholeAnswer)


def read_chunks(events: bytes) -> Iterator[ChatChunk | CortexError | None]:
    """The chunks in whole events, in order; None for `[DONE]`; an error where the stream tells of
    one. Comments are left out. Raises UpstreamFailed over an event that is none of these."""
    if b"\r" in events:
        events = events.replace(b"\r\n", b"\n")
    for event in events.split(b"\n\n"):
        if not event or event[:1] == b":":
            continue
        if event[:6] != b"data: ":
            raise _no_stream(event)
        data = event[6:]
        if data == b"[DONE]":
            yield None
            continue
        try:
            chunk = _chunk.decode(data)
        except _UNREADABLE:
            raise _no_stream(event) from None
        yield chunk if chunk.error is None else parse_openai(data, status=502)


def read_whole(body: bytes) -> tuple[ChatChoice, ChatUsage]:
    """The one choice of an answer, and what it cost. Raises UpstreamFailed."""
    try:
        answer = _whole.decode(body)
        return answer.choices[0], answer.usage or ChatUsage()
    except (*_UNREADABLE, IndexError):
        excerpt = body[:200].decode("utf-8", "replace")
        raise UpstreamFailed(f"the node's answer is no chat completion: {excerpt!r}") from None


def _no_stream(event: bytes) -> UpstreamFailed:
    excerpt = event[:200].decode("utf-8", "replace")
    return UpstreamFailed(f"the node's stream holds what is no chat chunk: {excerpt!r}")
