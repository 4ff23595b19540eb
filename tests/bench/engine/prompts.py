"""Conversations of counted length: whoever says 1.7k tokens shall send 1.7k tokens."""

from __future__ import annotations

import bisect
import contextlib
import os
import random
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import llama_cpp

__all__ = ["Conversation", "Tokenizer", "chatml", "opened", "prose", "say"]

Conversation = list[dict[str, str]]

_WORDS = ["".join(letters) for letters in product("bdfgklmnprst", "aeiou", "lnrst")]


class Tokenizer:
    """The vocabulary of a GGUF, without its weights."""

    def __init__(self, model: Path) -> None:
        self._vocabulary = llama_cpp.Llama(str(model), vocab_only=True, verbose=False)

    def ids(self, text: str) -> list[int]:
        """Special tokens are parsed, as both servers do with a rendered prompt."""
        return self._vocabulary.tokenize(text.encode(), add_bos=False, special=True)

    def count(self, text: str) -> int:
        return len(self.ids(text))

    def close(self) -> None:
        self._vocabulary.close()


@contextlib.contextmanager
def opened(model: Path) -> Iterator[Tokenizer]:
    """llama.cpp greets on stderr, which is a table's neighbour here; so it is not listened to."""
    with open(os.devnull, "wb") as nowhere:
        stderr = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            tokenizer = Tokenizer(model)
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
    try:
        yield tokenizer
    finally:
        tokenizer.close()


def prose(tokenizer: Tokenizer, tokens: int, seed: int | str) -> str:
    """Words in random order, the shortest run of them that is `tokens` tokens or more; texts of
    different seeds share no prefix beyond their first word."""
    rng = random.Random(seed)
    words = [rng.choice(_WORDS) for _ in range(tokens)]  # no word is less than a token
    lengths = range(1, tokens + 1)
    need = bisect.bisect_left(lengths, tokens, key=lambda n: tokenizer.count(" ".join(words[:n])))
    return " ".join(words[: need + 1])


def say(user: str, *, system: str | None = None) -> Conversation:
    """The first request of a conversation."""
    opening = [{"role": "system", "content": system}] if system is not None else []
    return [*opening, {"role": "user", "content": user}]


def chatml(conversation: Conversation) -> str:
    """As the template inside the benchmark's models renders it."""
    turns = [f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in conversation]
    return "".join(turns) + "<|im_start|>assistant\n"
