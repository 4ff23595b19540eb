"""A made-up byte-level BPE vocabulary of any size, in which every text round-trips.

The 256 byte tokens make any text expressible; whole multi-byte characters and made-up words, each
the merge of two earlier tokens, make it shorter. Special tokens come last, as in Qwen's files.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product
from typing import Literal

__all__ = ["Vocabulary", "make_vocabulary"]

Kind = Literal["normal", "control", "user_defined"]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`tokens` in byte-level spelling, special ones in plain text; `merges` as "left right".
    `template`: the file beside this one that holds the chat template."""

    pre_type: str
    tokens: list[str]
    kinds: list[Kind]
    merges: list[str]
    bos: str
    eos: str
    adds_bos: bool
    template: str


@dataclass(frozen=True, slots=True)
class _Dialect:
    pre_type: str
    special: dict[str, Kind]
    bos: str
    eos: str
    adds_bos: bool
    template: str


# In Qwen's files thinking and tool markers are user-defined (printed even where control tokens are
# hidden); in Mistral's they are control tokens. In gpt-oss's there are no pairs: each message says
# in a header which channel it goes to. All kinds are here so that code meets all.
_CHATML = _Dialect(
    pre_type="qwen2",
    special={
        "<|endoftext|>": "control",
        "<|im_start|>": "control",
        "<|im_end|>": "control",
        "<tool_call>": "user_defined",
        "</tool_call>": "user_defined",
        "<tool_response>": "user_defined",
        "</tool_response>": "user_defined",
        "<think>": "user_defined",
        "</think>": "user_defined",
        "<|fim_prefix|>": "control",
        "<|fim_middle|>": "control",
        "<|fim_suffix|>": "control",
    },
    bos="<|endoftext|>",
    eos="<|im_end|>",
    adds_bos=False,
    template="chatml.jinja",
)
_BRACKETS = _Dialect(
    pre_type="tekken",
    special={
        "<s>": "control",
        "</s>": "control",
        "[INST]": "control",
        "[/INST]": "control",
        "[SYSTEM_PROMPT]": "control",
        "[/SYSTEM_PROMPT]": "control",
        "[AVAILABLE_TOOLS]": "control",
        "[/AVAILABLE_TOOLS]": "control",
        "[TOOL_CALLS]": "control",
        "[TOOL_RESULTS]": "control",
        "[/TOOL_RESULTS]": "control",
        "[THINK]": "control",
        "[/THINK]": "control",
    },
    bos="<s>",
    eos="</s>",
    adds_bos=True,
    template="bracket.jinja",
)
_CHANNELS = _Dialect(
    pre_type="gpt-4o",
    special={
        "<|startoftext|>": "control",
        "<|endoftext|>": "control",
        "<|return|>": "control",
        "<|constrain|>": "control",
        "<|channel|>": "control",
        "<|start|>": "control",
        "<|end|>": "control",
        "<|message|>": "control",
        "<|call|>": "control",
    },
    bos="<|startoftext|>",
    eos="<|return|>",
    adds_bos=False,
    template="channels.jinja",
)
# By architecture; every other one speaks ChatML.
_DIALECTS = {"llama": _BRACKETS, "internlm2": _CHANNELS}

# Letters in rough order of frequency, repeated by weight: made-up words then share pieces with
# real ones, and English costs about a third of a token per letter, as with a trained tokenizer.
_LETTERS = "eeeeeetttttaaaaaooooiiiinnnnsssshhhrrrdddlllcuumwfgypbvkjxqz"
_CHARACTERS = "éèüöäñçß°€“”…–中国日本語你好世界東京한국русский🙂🚀🎉👍🔥❤✅"  # noqa: RUF001
_MAX_WORD = 10


def make_vocabulary(arch: str, size: int, seed: int) -> Vocabulary:
    """`size` distinct tokens, the same for the same arguments."""
    dialect = _DIALECTS.get(arch, _CHATML)
    spelling = _byte_spelling()
    tokens = dict.fromkeys(spelling[byte] for byte in range(256))  # a dict is an ordered set
    merges: list[str] = []
    room = size - len(dialect.special)

    def merge(left: str, right: str) -> None:
        token = left + right
        if token not in tokens and len(tokens) < room:
            tokens[token] = None
            merges.append(f"{left} {right}")

    for character in _CHARACTERS:
        pieces = [spelling[byte] for byte in character.encode()]
        for end in range(1, len(pieces)):
            merge("".join(pieces[:end]), pieces[end])

    space = spelling[ord(" ")]
    letters = sorted(set(_LETTERS))
    for letter in letters:
        merge(space, letter)
    for left, right in product(letters, letters):
        merge(left, right)

    rng = random.Random(seed)
    words = [token for token in tokens if len(token) == 2 and token.isascii()]
    words += [space + letter for letter in letters]
    while len(tokens) < room:
        left = rng.choice(words)
        right = rng.choice(words) if rng.random() < 0.5 else rng.choice(_LETTERS)
        if right.startswith(space) or len(left) + len(right) > _MAX_WORD:
            continue
        before = len(tokens)
        merge(left, right)
        if len(tokens) > before:
            words.append(left + right)

    kinds: list[Kind] = ["normal"] * len(tokens)
    return Vocabulary(
        pre_type=dialect.pre_type,
        tokens=[*tokens, *dialect.special],
        kinds=[*kinds, *dialect.special.values()],
        merges=merges,
        bos=dialect.bos,
        eos=dialect.eos,
        adds_bos=dialect.adds_bos,
        template=dialect.template,
    )


def _byte_spelling() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself where printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spelling = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in spelling]
    spelling.update({byte: chr(0x100 + index) for index, byte in enumerate(others)})
    return spelling
