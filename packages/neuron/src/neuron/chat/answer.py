"""The answer to one chat request: a worker's events in, pieces for the client out. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from cortex_core.envelopes.openai_chat import FinishReason, FunctionCall, Message, ToolCall
from cortex_core.errors import UpstreamFailed
from cortex_core.outcome import Usage
from cortex_core.wire import ipc
from neuron.chat.pieces import CallArguments, CallStarted, Piece, Text, Thought
from neuron.chat.reasoning import KeptReasoning, Marked, SplitReasoning
from neuron.chat.tool_calls import ToolCallParser

__all__ = ["Answer", "Ending", "collect"]


class Ending(msgspec.Struct, frozen=True):
    """`stop`: the stop string that ended the answer, if one did."""

    finish_reason: FinishReason
    usage: Usage
    stop: str | None = None


class Answer:
    """Streaming and not, every answer goes through here, so both say the same.

    `started` and `ending` are there once the worker told of them.
    """

    def __init__(
        self, reasoning: SplitReasoning | KeptReasoning, calls: ToolCallParser | None
    ) -> None:
        self.started: ipc.Started | None = None
        self.ending: Ending | None = None
        self._reasoning = reasoning
        self._calls = calls
        self._has_called = False

    def feed(self, events: Iterable[ipc.StepEvent]) -> list[Piece]:
        """The pieces of one batch, neighbours of a kind joined. Raises UpstreamFailed if the
        worker ended the request without being asked to."""
        pieces: list[Piece] = []
        scores: list[ipc.TokenScore] = []
        for event in events:
            if isinstance(event, ipc.Delta):
                scores += event.scores
                if event.channel == "marker" and self._mark(event.text, pieces):
                    continue
                for part in self._reasoning.feed(event.channel, event.text):
                    self._add(part, pieces)
            elif isinstance(event, ipc.Started):
                self.started = event
            elif isinstance(event, ipc.Finished):
                self._finish(event, pieces)
        if len(pieces) > 1:
            pieces = _joined(pieces)
        return _scored(pieces, scores) if scores else pieces

    def _add(self, part: Text | Thought, pieces: list[Piece]) -> None:
        if self._calls is None or isinstance(part, Thought | Marked):
            pieces.append(part)
            return
        self._add_called(self._calls.feed(part.text), pieces)

    def _mark(self, header: str, pieces: list[Piece]) -> bool:
        """Whether the marker is part of a call, and so nothing to read."""
        if self._calls is None:
            return False
        events, is_of_call = self._calls.mark(header)
        self._add_called(events, pieces)
        return is_of_call

    def _add_called(self, events: Iterable[Piece], pieces: list[Piece]) -> None:
        for piece in events:
            self._has_called |= isinstance(piece, CallStarted)
            pieces.append(piece)

    def _finish(self, event: ipc.Finished, pieces: list[Piece]) -> None:
        if event.reason == "cancelled":
            raise UpstreamFailed("the worker cancelled the request")
        for part in self._reasoning.finish():
            self._add(part, pieces)
        if self._calls is not None:
            self._add_called(self._calls.finish(), pieces)
        is_call = event.reason == "stop" and self._has_called
        reason = "tool_calls" if is_call else event.reason
        self.ending = Ending(reason, event.usage, event.stop)


def _joined(pieces: list[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, Text) and isinstance(last, Text):
            joined[-1] = Text(last.text + piece.text)
        elif isinstance(piece, Thought) and isinstance(last, Thought):
            joined[-1] = Thought(last.text + piece.text)
        elif (
            isinstance(piece, CallArguments)
            and isinstance(last, CallArguments)
            and piece.index == last.index
        ):
            joined[-1] = CallArguments(piece.index, last.fragment + piece.fragment)
        else:
            joined.append(piece)
    return joined


def _scored(pieces: list[Piece], scores: list[ipc.TokenScore]) -> list[Piece]:
    """They go with the last text; without any, alone."""
    for at in range(len(pieces) - 1, -1, -1):
        piece = pieces[at]
        if isinstance(piece, Text):
            pieces[at] = Text(piece.text, scores)
            return pieces
    return [*pieces, Text("", scores)]


def collect(pieces: Iterable[Piece]) -> Message:
    """All pieces of an answer as one message."""
    text: list[str] = []
    thoughts: list[str] = []
    calls: list[CallStarted] = []
    arguments: list[list[str]] = []
    for piece in pieces:
        if isinstance(piece, Text):
            text.append(piece.text)
        elif isinstance(piece, Thought):
            thoughts.append(piece.text)
        elif isinstance(piece, CallStarted):
            calls.append(piece)
            arguments.append([])
        else:
            arguments[piece.index].append(piece.fragment)
    made = [
        ToolCall(call.id, FunctionCall(call.name, "".join(fragments)))
        for call, fragments in zip(calls, arguments, strict=True)
    ]
    return Message(
        content="".join(text) or (None if made else ""),
        reasoning_content="".join(thoughts) if thoughts else msgspec.UNSET,
        tool_calls=made or msgspec.UNSET,
    )
