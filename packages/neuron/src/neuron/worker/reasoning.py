"""Which part of an answer is reasoning, told by token id, and when that has to end. Pure.

No model is known by name: a marker pair counts when the vocabulary has each half as one token.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cortex_core.wire.ipc import Channel

__all__ = ["Markers", "Marks", "PairState", "ReasoningState", "Tokenize", "find_pair"]

Tokenize = Callable[[str], Sequence[int]]
"""Special tokens parsed, none added."""

_PAIRS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)


class ReasoningState(ABC):
    """Follows one answer token by token. `is_inside`: the next token is reasoning; `is_in_header`:
    the next is still part of the marker that has begun. `tokens` counts those inside, markers
    apart; where there are `limit` of them the block is closed."""

    __slots__ = ("_closings", "_limit", "_ways", "is_in_header", "is_inside", "tokens")

    def __init__(self, closings: Sequence[tuple[int, ...]], limit: int | None) -> None:
        """`closings`: tokens that end a block and lead to the content, in one way or another."""
        self.is_inside = False
        self.is_in_header = False
        self.tokens = 0
        self._closings = closings
        self._limit = math.inf if limit is None else limit
        self._ways: list[tuple[int, ...]] = []

    def channel(self, token: int) -> Channel:
        """What the answer's next token is."""
        if self._ways:
            self._ways = [way[1:] for way in self._ways if way[0] == token and len(way) > 1]
        channel = self._tell(token)
        if channel == "reasoning":
            self.tokens += 1
        if self.is_inside:
            self._bound()
        return channel

    @property
    def expected(self) -> frozenset[int]:
        """The tokens of which one has to come next; none where anything may."""
        return frozenset(way[0] for way in self._ways)

    @property
    def is_in_content(self) -> bool:
        """The next token is content, or a marker that nobody demands."""
        return not (self.is_inside or self.is_in_header or self._ways)

    @property
    def forced(self) -> int | None:
        """The one token that has to come next."""
        if not self._ways:
            return None
        first, *others = self.expected
        return None if others else first

    def _bound(self) -> None:
        if self.tokens >= self._limit and not self._ways:
            self._ways = [*self._closings]

    @abstractmethod
    def _tell(self, token: int) -> Channel: ...


class Marks(Protocol):
    """How a vocabulary marks reasoning. `text`: what a block begins and ends with. `ids`: tokens
    that frame an answer and are no text; `strays`: those that have no place inside a block."""

    @property
    def text(self) -> tuple[str, str]: ...
    @property
    def ids(self) -> frozenset[int]: ...
    @property
    def strays(self) -> frozenset[int]: ...

    def follow(
        self,
        prompt: Sequence[int],
        turn_ends: Iterable[int],
        *,
        limit: int | None = None,
        said: Sequence[str] | None = None,
    ) -> ReasoningState:
        """The state in which the answer to `prompt` begins. `said`, where somebody constrains what
        is: after at most one block comes a message with one of these headers, if messages have any;
        empty: the usual one."""
        ...

    def opening(self, prompt: Sequence[int], turn_ends: Iterable[int]) -> int | None:
        """The token that may begin the answer to `prompt` in place of content, to open a block."""
        ...


@dataclass(frozen=True, slots=True)
class Markers:
    """A pair of tokens around reasoning and how they are written."""

    open: int
    close: int
    text: tuple[str, str]

    @property
    def ids(self) -> frozenset[int]:
        return frozenset((self.open, self.close))

    @property
    def strays(self) -> frozenset[int]:
        return frozenset()

    def follow(
        self,
        prompt: Sequence[int],
        turn_ends: Iterable[int],
        *,
        limit: int | None = None,
        said: Sequence[str] | None = None,
    ) -> PairState:
        return PairState(self, is_inside=self._last(prompt, turn_ends) == self.open, limit=limit)

    def opening(self, prompt: Sequence[int], turn_ends: Iterable[int]) -> int | None:
        return None if self._last(prompt, turn_ends) in self.ids else self.open

    def _last(self, prompt: Sequence[int], turn_ends: Iterable[int]) -> int | None:
        """The last marker of the answer's own turn. What lies before the last end of a turn is
        somebody's message, and may mention a marker."""
        ends = frozenset(turn_ends)
        for token in reversed(prompt):
            if token in ends:
                return None
            if token == self.open or token == self.close:
                return token
        return None


class PairState(ReasoningState):
    __slots__ = ("_close", "_open")

    def __init__(self, markers: Markers, *, is_inside: bool, limit: int | None = None) -> None:
        super().__init__([(markers.close,)], limit)
        self._open, self._close = markers.open, markers.close
        self.is_inside = is_inside
        if is_inside:
            self._bound()

    def _tell(self, token: int) -> Channel:
        if token == self._close:
            self.is_inside = False
            return "marker"
        if self.is_inside:
            return "reasoning"
        if token == self._open:
            self.is_inside = True
            return "marker"
        return "content"


def find_pair(tokenize: Tokenize) -> Markers | None:
    """The first known pair of which each half is a single token."""
    for pair in _PAIRS:
        opening, closing = (tokenize(text) for text in pair)
        if len(opening) == len(closing) == 1 and opening[0] != closing[0]:
            return Markers(int(opening[0]), int(closing[0]), pair)
    return None
