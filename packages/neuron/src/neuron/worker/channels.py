"""Reasoning where each message of an answer says in a header which channel it goes to:
`<|start|>assistant<|channel|>analysis<|message|>…<|end|>`. Pure.

The tokens that frame messages are told by their ids; a channel's name and a recipient are text
between them. A vocabulary that has these tokens writes such messages, whatever the model's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cortex_core.wire.ipc import Channel
from neuron.worker.reasoning import Marks, ReasoningState, Tokenize, find_pair

__all__ = ["FINAL", "ChannelState", "Channels", "find_marks", "recipient"]

_THINKING = "analysis"
_FUNCTION = re.compile(r"\bto=functions\.([^\s<]+)")
_RECIPIENT = b" to="
_FRAMES = ("start", "channel", "constrain", "message", "end", "call", "return")
_BEGIN = "<|start|>assistant"
FINAL = "<|channel|>final<|message|>"


@dataclass(frozen=True, slots=True)
class Channels:
    """`start` begins a message's header and `message` ends it; `closers` end a message. `frames`
    are all of these tokens. `thought` and `final` are the whole headers of two messages;
    `tokenize` makes those of others."""

    start: int
    channel: int
    message: int
    end: int
    closers: frozenset[int]
    frames: frozenset[int]
    thought: tuple[int, ...]
    final: tuple[int, ...]
    piece: Callable[[int], bytes]
    tokenize: Tokenize

    text = (f"<|channel|>{_THINKING}<|message|>", "<|end|>")

    @property
    def ids(self) -> frozenset[int]:
        return self.frames

    @property
    def strays(self) -> frozenset[int]:
        return self.frames - {self.end}

    def follow(
        self,
        prompt: Sequence[int],
        turn_ends: Iterable[int],
        *,
        limit: int | None = None,
        said: Sequence[str] | None = None,
    ) -> ChannelState:
        places = (at for at in reversed(range(len(prompt))) if prompt[at] == self.start)
        begun = prompt[next(places, len(prompt)) :]
        headers = None
        if said is not None:
            headers = [_ids(self.tokenize, _BEGIN + header) for header in said] or [self.final]
        return ChannelState(self, begun, limit=limit, headers=headers)

    def opening(self, prompt: Sequence[int], turn_ends: Iterable[int]) -> None:
        """A header opens a block, and the state knows which may come."""


class ChannelState(ReasoningState):
    """What no header or end of one said is content: so is all of an answer that begins without."""

    __slots__ = ("_addressee", "_channels", "_headers", "_is_undecided", "_name")

    def __init__(
        self,
        channels: Channels,
        begun: Sequence[int] = (),
        *,
        limit: int | None = None,
        headers: Sequence[tuple[int, ...]] | None = None,
    ) -> None:
        """`begun`: the prompt's tokens from the last message's start on. `headers`: of the messages
        of which one has to come, after at most one block."""
        closings = [(channels.end, *header) for header in headers or [channels.final]]
        super().__init__(closings, limit)
        self._channels = channels
        self._addressee = b""  # of the header: who speaks, and to whom
        self._name: bytes | None = None  # of its channel, and what follows
        self._headers: Sequence[tuple[int, ...]] | None = None
        self._is_undecided = False
        for token in begun:
            self._tell(token)
        self._is_undecided = self.is_in_header and self._name is None
        self._headers = headers
        if headers is not None and self.is_in_header:
            self._ways = self._after(tuple(begun), headers)
        if self.is_inside:
            self._bound()

    @property
    def function(self) -> str:
        """Whom the message is addressed to; "" for no function."""
        header = self._addressee + b" " + (self._name or b"")
        return recipient(header.decode("utf-8", "replace"))

    def _after(
        self, begun: tuple[int, ...], headers: Sequence[tuple[int, ...]]
    ) -> list[tuple[int, ...]]:
        """How a header may go on."""
        known = (self._channels.thought, *headers)
        size = len(begun)
        ways = [header[size:] for header in known if header[:size] == begun and len(header) > size]
        return ways or [(self._channels.message,)]

    def _tell(self, token: int) -> Channel:
        channels = self._channels
        if token not in channels.frames:
            return self._tell_text(token)
        self._is_undecided = False
        if token == channels.start:
            self._begin()
        elif token == channels.channel:
            if not self.is_in_header:
                self._begin()
            self._name = b""
        elif token in channels.closers:
            if self.is_inside and self._headers is not None and not self._ways:
                self._ways = [*self._headers]
            self.is_inside = self.is_in_header = False
        elif self.is_in_header:
            if token == channels.message:
                self.is_in_header = False
                self.is_inside = self._is_thought()
            elif self._name is not None:
                self._name += b" "
        return "marker"

    def _tell_text(self, token: int) -> Channel:
        if self._is_undecided:
            self._is_undecided = False
            piece = self._channels.piece(token)
            self.is_in_header = _RECIPIENT.startswith(piece) or piece.startswith(_RECIPIENT)
        if not self.is_in_header:
            return "reasoning" if self.is_inside else "content"
        if self._name is None:
            self._addressee += self._channels.piece(token)
        else:
            self._name += self._channels.piece(token)
        return "marker"

    def _begin(self) -> None:
        self.is_in_header = True
        self.is_inside = False
        self._addressee, self._name = b"", None

    def _is_thought(self) -> bool:
        name = (self._name or b"").split()
        return name[:1] == [_THINKING.encode()] and not self.function


def recipient(header: str) -> str:
    """The function that a header addresses; "" if it is none."""
    met = _FUNCTION.search(header)
    return met[1] if met else ""


def find_marks(tokenize: Tokenize, piece: Callable[[int], bytes]) -> Marks | None:
    """How a vocabulary marks reasoning: by channels, if it has all their frames as single tokens,
    or by a pair."""
    found = {name: tokenize(f"<|{name}|>") for name in _FRAMES}
    frames = {name: int(ids[0]) for name, ids in found.items() if len(ids) == 1}
    if len(set(frames.values())) < len(_FRAMES):
        return find_pair(tokenize)
    return Channels(
        start=frames["start"],
        channel=frames["channel"],
        message=frames["message"],
        end=frames["end"],
        closers=frozenset((frames["end"], frames["call"], frames["return"])),
        frames=frozenset(frames.values()),
        thought=_ids(tokenize, _BEGIN + Channels.text[0]),
        final=_ids(tokenize, _BEGIN + FINAL),
        piece=piece,
        tokenize=tokenize,
    )


def _ids(tokenize: Tokenize, text: str) -> tuple[int, ...]:
    return tuple(int(token) for token in tokenize(text))
