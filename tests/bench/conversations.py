"""Conversations that grow turn by turn, and how much of them a server had to compute again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import median

from tests.bench.engine import prompts
from tests.bench.engine.prompts import Conversation, Tokenizer

__all__ = ["ANSWER_TOKENS", "RECALL_HEADINGS", "Recall", "Turn", "next_turn", "recall_cells"]

TURN_TOKENS = (80, 50)  # what the user or a tool said, what the assistant said
ANSWER_TOKENS = 16


@dataclass(frozen=True)
class Turn:
    """`known_tokens`: of the prompt's, those with which an earlier one began."""

    conversation: Conversation
    prompt_tokens: int
    known_tokens: int

    def recomputed(self, cached_tokens: int) -> int:
        return max(0, self.known_tokens - cached_tokens)


@dataclass(frozen=True)
class Recall:
    """Of a run's prompts, in tokens."""

    prompt_tokens: int
    known_tokens: int
    recomputed_tokens: int

    @property
    def recomputed_percent(self) -> float:
        return 100 * self.recomputed_tokens / self.known_tokens


RECALL_HEADINGS = ("prompt tokens", "known", "recomputed", "%")


def recall_cells(runs: Sequence[Recall]) -> tuple[str, ...]:
    """Medians, under those headings."""
    return (
        f"{median(run.prompt_tokens for run in runs):,.0f}",
        f"{median(run.known_tokens for run in runs):,.0f}",
        f"{median(run.recomputed_tokens for run in runs):,.0f}",
        f"{median(run.recomputed_percent for run in runs):.1f}",
    )


def next_turn(tokenizer: Tokenizer, chat: Conversation, seen: list[list[int]], seed: str) -> Turn:
    """`chat` grows by what is asked and answered, and `seen`, the prompts of earlier turns, by this
    one's."""
    heard, said = (prompts.prose(tokenizer, tokens, f"{seed} {tokens}") for tokens in TURN_TOKENS)
    chat.append({"role": "user", "content": heard})
    ids = tokenizer.ids(prompts.chatml(chat))
    known = max((_shared(ids, other) for other in seen), default=0)
    turn = Turn(list(chat), len(ids), known)
    seen.append(ids)
    chat.append({"role": "assistant", "content": said})
    return turn


def _shared(one: list[int], other: list[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
