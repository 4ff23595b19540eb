"""Which part of an answer is reasoning, told by token id. Pure.

No model is known by name: a marker pair counts when the vocabulary has each half as one token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cortex_core.wire.ipc import Channel

__all__ = ["Markers", "ReasoningState", "find_markers", "may_begin", "starts_inside"]

_PAIRS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
)


@dataclass(frozen=True, slots=True)
class Markers:
    """A pair of tokens around reasoning and how they are written."""

    open: int
    close: int
    text: tuple[str, str]


def find_markers(tokenize: Callable[[str], Sequence[int]]) -> Markers | None:
    """The first known pair that `tokenize` (special tokens parsed, none added) maps to a single
    token each."""
    for pair in _PAIRS:
        opening, closing = (tokenize(text) for text in pair)
        if len(opening) == len(closing) == 1 and opening[0] != closing[0]:
            return Markers(int(opening[0]), int(closing[0]), pair)
    return None


def starts_inside(prompt: Sequence[int], markers: Markers, turn_ends: Iterable[int]) -> bool:
    """Whether the answer to `prompt` begins inside reasoning: a marker is open at its tail. What
    lies before the last end of a turn is somebody's message, and may mention a marker."""
    ends = frozenset(turn_ends)
    for token in reversed(prompt):
        if token == markers.open:
            return True
        if token == markers.close or token in ends:
            return False
    return False


def may_begin(prompt: Sequence[int], markers: Markers, turn_ends: Iterable[int]) -> bool:
    """Whether the answer to `prompt` may open a block: none was opened or closed in its turn."""
    ends = frozenset(turn_ends)
    for token in reversed(prompt):
        if token in (markers.open, markers.close):
            return False
        if token in ends:
            return True
    return True


class ReasoningState:
    """Follows one answer token by token. `tokens` counts those inside, markers apart."""

    __slots__ = ("_close", "_open", "is_inside", "tokens")

    def __init__(self, markers: Markers, *, is_inside: bool) -> None:
        self._open, self._close = markers.open, markers.close
        self.is_inside = is_inside
        self.tokens = 0

    def channel(self, token: int) -> Channel:
        if token == self._close:
            self.is_inside = False
            return "marker"
        if self.is_inside:
            self.tokens += 1
            return "reasoning"
        if token == self._open:
            self.is_inside = True
            return "marker"
        return "content"
