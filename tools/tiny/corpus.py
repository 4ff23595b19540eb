"""Conversations as token rows with a loss mask, and rows as batches.

Renders with the very template that ships in the GGUF. The loss counts what the model itself
would have to write; see :func:`targets`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from jinja2 import Environment
from tokenizers import Tokenizer

from tools.tiny.conversation import Conversation, Mix, converse

TEMPLATE = Path(__file__).parent / "chat_template.jinja"
PAD = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class Batch:
    """``ids`` and ``wanted`` are ``[rows, length]``; ``wanted`` is the next id, or -1."""

    ids: np.ndarray
    wanted: np.ndarray


class Renderer:
    """The chat template as HF-style callers run it."""

    def __init__(self) -> None:
        environment = Environment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        self._template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))

    def __call__(self, messages: list[dict[str, Any]], **variables: Any) -> str:
        return self._template.render(messages=messages, **variables)

    def whole(self, conversation: Conversation) -> str:
        """A finished conversation, as training reads it."""
        return self(conversation.messages, tools=conversation.tools or None)


class Codec:
    """Text to ids, and the loss mask that goes with them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        single = {name: tokenizer.token_to_id(name) for name in ("<|im_start|>", "<|im_end|>")}
        self._start, self._end = single["<|im_start|>"], single["<|im_end|>"]
        self._think = tokenizer.token_to_id("<think>")
        self._role = self.encode("assistant\n")
        self._empty = self.encode("<think>\n\n</think>\n\n")
        self.pad = tokenizer.token_to_id(PAD)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text).ids

    def targets(self, ids: list[int]) -> list[int]:
        """The next id where the model would have to write it, otherwise -1.

        Only assistant turns count. An empty thinking block is the server's to write, so it
        does not count. A turn from before the last question is shown without its thinking
        block; its first token does not count, or the model would learn to skip thinking.
        """
        wanted = [-1] * len(ids)
        position = 0
        while position < len(ids):
            if ids[position] != self._start:
                position += 1
                continue
            position += 1
            if ids[position : position + len(self._role)] != self._role:
                continue
            first = position + len(self._role)
            end = ids.index(self._end, first)
            if ids[first : first + len(self._empty)] == self._empty:
                first += len(self._empty)
            elif ids[first] != self._think:
                first += 1
            for index in range(first, end + 1):
                wanted[index - 1] = ids[index]
            position = end
        return wanted


def texts(seed: int, count: int) -> Iterator[str]:
    """Rendered conversations, to learn the tokenizer from."""
    rng, render = Random(seed), Renderer()
    for _ in range(count):
        yield render.whole(converse(rng, Mix()))


def batches(
    codec: Codec, seed: int, mix: Mix, tokens: int, longest: int, pool: int = 512
) -> Iterator[Batch]:
    """Endless batches of about ``tokens`` ids; rows of like length share a batch."""
    rng, render = Random(seed), Renderer()
    while True:
        rows: list[list[int]] = []
        while len(rows) < pool:
            ids = codec.encode(render.whole(converse(rng, mix)))
            if len(ids) <= longest:
                rows.append(ids)
        rows.sort(key=len)
        groups: list[list[list[int]]] = [[]]
        for row in rows:
            if groups[-1] and (len(groups[-1]) + 1) * len(row) > tokens:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            length = -(-len(group[-1]) // 8) * 8
            ids = np.full((len(group), length), codec.pad, dtype=np.int64)
            wanted = np.full((len(group), length), -1, dtype=np.int64)
            for index, row in enumerate(group):
                ids[index, : len(row)] = row
                wanted[index, : len(row)] = codec.targets(row)
            yield Batch(ids, wanted)
