"""Pieces of an answer as server-sent `chat.completion.chunk` events.

All chunks of a stream share everything but a few characters, so the frequent ones are cut once,
around a marked place, and then only filled in.
"""

from __future__ import annotations

import msgspec

from cortex_core.envelopes.logprobs import ChoiceLogprobs, chat_logprobs
from cortex_core.envelopes.openai_chat import (
    ChatCompletionChunk,
    ChoiceDelta,
    ChunkChoice,
    FinishReason,
    FunctionCallDelta,
    ToolCallDelta,
    UsageReport,
)
from cortex_core.outcome import Usage
from cortex_core.wire import sse
from neuron.chat.answer import Ending
from neuron.chat.pieces import CallStarted, Piece, Text, Thought

__all__ = ["ChunkEncoder"]

_encode = msgspec.json.Encoder().encode
_PLACE = "\x00place\x00"  # its last occurrence is ours, whatever the model's name holds
_ENCODED_PLACE = _encode(_PLACE)


class ChunkEncoder:
    """For one choice of a stream: one id, one `created`."""

    def __init__(self, stream_id: str, created: int, model: str, index: int = 0) -> None:
        self._index = index
        self._id = stream_id
        self._created = created
        self._model = model
        self._text = self._cut(ChoiceDelta(content=_PLACE))
        self._thought: tuple[bytes, bytes] | None = None

    def opening(self) -> bytes:
        """The chunk that tells the role; it can be sent before anything is known."""
        return self._event(ChoiceDelta(role="assistant", content=""))

    def pieces(self, pieces: list[Piece]) -> bytes:
        return b"".join(map(self._piece, pieces))

    def ending(self, ending: Ending) -> bytes:
        """The finish chunk."""
        return self._event(
            ChoiceDelta(), ending.finish_reason, stop_reason=ending.stop or msgspec.UNSET
        )

    def closing(self, usage: Usage | None) -> bytes:
        """After all choices: the usage chunk if asked for, and the end mark."""
        if usage is None:
            return sse.DONE
        report = UsageReport.of(usage)
        chunk = ChatCompletionChunk(self._id, self._created, self._model, [], report)
        return sse.encode(_encode(chunk)) + sse.DONE

    def _piece(self, piece: Piece) -> bytes:
        if isinstance(piece, Text):
            if piece.scores:
                logprobs = chat_logprobs(piece.scores)
                return self._event(ChoiceDelta(content=piece.text), logprobs=logprobs)
            head, tail = self._text
            return head + _encode(piece.text) + tail
        if isinstance(piece, Thought):
            if self._thought is None:
                self._thought = self._cut(ChoiceDelta(reasoning_content=_PLACE))
            head, tail = self._thought
            return head + _encode(piece.text) + tail
        if isinstance(piece, CallStarted):
            function = FunctionCallDelta(piece.name, "")
            call = ToolCallDelta(piece.index, piece.id, "function", function)
        else:
            call = ToolCallDelta(piece.index, function=FunctionCallDelta(None, piece.fragment))
        return self._event(ChoiceDelta(tool_calls=[call]))

    def _event(
        self,
        delta: ChoiceDelta,
        finish_reason: FinishReason | None = None,
        logprobs: ChoiceLogprobs | msgspec.UnsetType = msgspec.UNSET,
        stop_reason: str | msgspec.UnsetType = msgspec.UNSET,
    ) -> bytes:
        choice = ChunkChoice(self._index, delta, finish_reason, logprobs, stop_reason)
        chunk = ChatCompletionChunk(self._id, self._created, self._model, [choice])
        return sse.encode(_encode(chunk))

    def _cut(self, delta: ChoiceDelta) -> tuple[bytes, bytes]:
        head, _, tail = self._event(delta).rpartition(_ENCODED_PLACE)
        return head, tail
