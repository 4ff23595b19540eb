"""Log-probabilities of an answer's tokens, as the chat and the completions API tell them."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

import msgspec

from cortex_core.wire.ipc import TokenScore

__all__ = [
    "ChoiceLogprobs",
    "CompletionLogprobs",
    "TextOffsets",
    "TokenLogprob",
    "TopLogprob",
    "chat_logprobs",
    "completion_logprobs",
]

_new_decoder = codecs.getincrementaldecoder("utf-8")
_LEAST = -9999.0  # JSON has no infinity


class TopLogprob(msgspec.Struct, frozen=True):
    """`bytes` because a token may be a part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChoiceLogprobs(msgspec.Struct, frozen=True):
    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """`text_offset`: where in the choice's text each token begins, in characters."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


def chat_logprobs(scores: Iterable[TokenScore]) -> ChoiceLogprobs:
    return ChoiceLogprobs([_token(score) for score in scores])


class TextOffsets:
    """Where in one choice's text each of its tokens begins."""

    def __init__(self) -> None:
        self._decoder = _new_decoder("replace")
        self._offset = 0

    def next(self, piece: bytes) -> int:
        """In characters; one that is spread over tokens begins with the first of them."""
        offset = self._offset
        self._offset += len(self._decoder.decode(piece))
        return offset


def completion_logprobs(scores: Iterable[TokenScore], offsets: TextOffsets) -> CompletionLogprobs:
    told = CompletionLogprobs([], [], [], [])
    for score in scores:
        best: dict[str, float] = {}
        for piece, logprob in score.top:  # the likeliest of those that are written alike
            best.setdefault(_text(piece), max(logprob, _LEAST))
        told.tokens.append(_text(score.piece))
        told.token_logprobs.append(max(score.logprob, _LEAST))
        told.top_logprobs.append(best)
        told.text_offset.append(offsets.next(score.piece))
    return told


def _token(score: TokenScore) -> TokenLogprob:
    return TokenLogprob(
        _text(score.piece),
        max(score.logprob, _LEAST),
        list(score.piece),
        [TopLogprob(_text(piece), max(value, _LEAST), list(piece)) for piece, value in score.top],
    )


def _text(piece: bytes) -> str:
    return piece.decode("utf-8", "replace")
