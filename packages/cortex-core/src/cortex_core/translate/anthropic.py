"""The answer's side of an Anthropic request: a message, whole or as a stream of its blocks.

Pure: a chat completion in, a message out.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

from cortex_core.errors import CortexError, render_anthropic
from cortex_core.translate.chat_stream import (
    CallDelta,
    ChatChunk,
    ChatUsage,
    ChunkOption,
    read_chunks,
    read_whole,
)
from cortex_core.translate.names import Names
from cortex_core.translate.seal import sealed
from cortex_core.wire import sse

__all__ = ["AnthropicTranslation"]

_encode = msgspec.json.Encoder().encode
_PING = sse.encode(b'{"type":"ping"}', event="ping")
_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}

Kind = Literal["text", "thinking", "tool_use"]
_DELTAS: dict[Kind, bytes] = {
    "text": b'{"type":"text_delta","text":',
    "thinking": b'{"type":"thinking_delta","thinking":',
    "tool_use": b'{"type":"input_json_delta","partial_json":',
}


class AnthropicTranslation:
    """See `cortex_core.translate.translation.Translation`. A thinking block's signature is its
    seal where the text is not shown, and says nothing where it is."""

    def __init__(
        self,
        model: str,
        chat: bytes,
        *,
        is_stream: bool,
        ignored: tuple[str, ...] = (),
        names: Names | None = None,
        shows_thinking: bool = True,
    ) -> None:
        self.model = model
        self.is_stream = is_stream
        self.chat = chat
        self.ignored = ignored
        self.names = names or Names()
        self._shows_thinking = shows_thinking
        self._id = f"msg_{secrets.token_hex(12)}"
        self._usage = {"input_tokens": 0, "output_tokens": 0, **_cache(0)}
        self._is_open = False
        self._block: Kind | None = None
        self._call = -1
        self._blocks = 0
        self._head = b""
        self._hidden: list[str] = []
        self._end: ChunkOption | None = None
        self._spent = ChatUsage()
        self.is_ended = False

    def started(self, prompt: int, cached: int) -> None:
        self._usage |= {"input_tokens": prompt - cached, **_cache(cached)}

    # a whole answer

    def whole(self, body: bytes) -> bytes:
        choice, usage = read_whole(body)
        message = choice.message
        content: list[dict[str, Any]] = []
        if message.reasoning_content:
            content.append(self._thought(message.reasoning_content))
        if message.content:
            content.append({"type": "text", "text": message.content})
        is_cut = choice.finish_reason == "length"
        content += _tool_uses(message.tool_calls or (), is_cut=is_cut)
        reason, sequence = _stopped(choice.finish_reason, choice.stop_reason)
        if reason == "tool_use" and all(block["type"] != "tool_use" for block in content):
            reason = "end_turn"
        return _encode(
            self._message()
            | {
                "content": content or [{"type": "text", "text": ""}],
                "stop_reason": reason,
                "stop_sequence": sequence,
                "usage": _usage(usage),
            }
        )

    def error_body(self, error: CortexError) -> bytes:
        return _encode(render_anthropic(self.names.told(error)))

    # a stream

    def keep_alive(self) -> bytes:
        return _PING if self._is_open else self._open()

    def feed(self, events: bytes) -> bytes:
        out = [] if self._is_open else [self._open()]
        for chunk in read_chunks(events):
            if isinstance(chunk, ChatChunk):
                for option in chunk.choices:
                    self._option(option, out)
                self._spent = chunk.usage or self._spent
            elif isinstance(chunk, CortexError):
                out.append(self.error_event(chunk))
            elif self._end is not None:
                self._close(out)
                out.append(self._ending(self._end))
        return b"".join(out)

    def error_event(self, error: CortexError) -> bytes:
        return sse.encode(self.error_body(error), event="error")

    def _open(self) -> bytes:
        self._is_open = True
        return _event({"type": "message_start", "message": self._message()}) + _PING

    def _message(self) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage,
        }

    def _option(self, option: ChunkOption, out: list[bytes]) -> None:
        delta = option.delta
        if delta.reasoning_content:
            if self._block != "thinking":
                empty = {"type": "thinking", "thinking": "", "signature": ""}
                self._begin("thinking", empty, out)
            if self._shows_thinking:
                out.append(self._delta(delta.reasoning_content))
            else:
                self._hidden.append(delta.reasoning_content)
        if delta.content:
            if self._block != "text":
                self._begin("text", {"type": "text", "text": ""}, out)
            out.append(self._delta(delta.content))
        for call in delta.tool_calls or ():
            if self._block != "tool_use" or self._call != call.index:
                self._call = call.index
                self._begin("tool_use", _opened_call(call), out)
            if call.function is not None and call.function.arguments:
                out.append(self._delta(call.function.arguments))
        if option.finish_reason is not None:
            self._end = option

    def _begin(self, kind: Kind, block: dict[str, Any], out: list[bytes]) -> None:
        self._close(out)
        index = self._blocks
        self._blocks += 1
        self._block = kind
        self._head = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":'
            % index
        ) + _DELTAS[kind]
        out.append(_event({"type": "content_block_start", "index": index, "content_block": block}))

    def _delta(self, text: str) -> bytes:
        """What happens once per token."""
        return b"%b%b}}\n\n" % (self._head, _encode(text))

    def _close(self, out: list[bytes]) -> None:
        if self._block is None:
            return
        index = self._blocks - 1
        if self._block == "thinking":
            delta = {"type": "signature_delta", "signature": self._signature("".join(self._hidden))}
            out.append(_event({"type": "content_block_delta", "index": index, "delta": delta}))
            self._hidden.clear()
        out.append(_event({"type": "content_block_stop", "index": index}))
        self._block = None

    def _ending(self, end: ChunkOption) -> bytes:
        self.is_ended = True
        reason, sequence = _stopped(end.finish_reason, end.stop_reason)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        last = {"type": "message_delta", "delta": delta, "usage": _usage(self._spent)}
        return _event(last) + _event({"type": "message_stop"})

    def _thought(self, text: str) -> dict[str, Any]:
        shown = text if self._shows_thinking else ""
        return {"type": "thinking", "thinking": shown, "signature": self._signature(text)}

    def _signature(self, hidden: str) -> str:
        return sealed("" if self._shows_thinking else hidden)


def _event(event: dict[str, Any]) -> bytes:
    return sse.encode(_encode(event), event=event["type"])


def _cache(cached: int) -> dict[str, int]:
    """Nothing is charged for writing to the cache, so nothing is counted as written."""
    return {"cache_creation_input_tokens": 0, "cache_read_input_tokens": cached}


def _usage(usage: ChatUsage) -> dict[str, Any]:
    """`input_tokens` are those that were computed; the vendor counts reused ones apart."""
    computed = usage.prompt_tokens - usage.cached
    return {
        "input_tokens": computed,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
        **_cache(usage.cached),
    }


def _stopped(finish: str | None, stop: str | None) -> tuple[str, str | None]:
    """`stop_reason` and `stop_sequence`."""
    if finish == "stop" and stop is not None:
        return "stop_sequence", stop
    return _STOP_REASONS.get(finish or "", "end_turn"), None


def _opened_call(call: CallDelta) -> dict[str, Any]:
    name = call.function.name if call.function else None
    return {"type": "tool_use", "id": call.id or "", "name": name or "", "input": {}}


def _tool_uses(calls: Iterable[CallDelta], *, is_cut: bool) -> Iterator[dict[str, Any]]:
    """A call that the end of the answer cut in two is none. Any other whose arguments are no JSON
    object is what the model said, and nothing that could be run."""
    for call in calls:
        arguments = (call.function.arguments if call.function else None) or "{}"
        try:
            value = msgspec.json.decode(arguments, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            if is_cut:
                return
            name = (call.function.name if call.function else None) or ""
            yield {"type": "text", "text": f"{name} {arguments}"}
        else:
            yield _opened_call(call) | {"input": value}
