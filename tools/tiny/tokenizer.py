"""A byte-level BPE of the kind llama.cpp calls ``gpt2`` with the ``qwen2`` splitter.

Learns whole words from the corpus, letters only, and adds the space in front as the last
merge of a word. So a value that was never seen falls into the same pieces behind a space,
a quote or a slash, and copying it is copying token for token. Bytes above ASCII are in no
merge: an emoji is four tokens, a Chinese character three.
"""

# Word lists read best as running text.
# ruff: noqa: SIM905

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
# Clusters of punctuation worth one token. None of them ends a value together with something
# that could belong to the value, so the end of an argument is always a token of its own.
CLUSTERS = (
    "\n\n", '":', '",', ' "', ' {"', '{"', '"}', '"}}', '"},', '"}},', '"]', '"]}', '"]}}',
    '"]}}}', ' ["', "}}", "}}}", "},", "}},", ">\n", "</", ":\n", "{}", '"}}}', '"}}}}', '"],',
    " +", " =", "'s",
)  # fmt: skip

# Two-letter words that may carry their space. No others: "Ġde" would split a made-up name in
# running text otherwise than the same name behind a quote.
SHORT = frozenset("is of in to it me do am on at by an or no my".split())


def byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in plain}
    spare = (chr(256 + index) for index in range(256))
    return {byte: table.get(byte) or next(spare) for byte in range(256)}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens in id order and merges in rank order, both in GPT-2's byte letters."""

    tokens: list[str]
    merges: list[tuple[str, str]]

    def save(self, path: Path) -> None:
        record = {"tokens": self.tokens, "merges": [" ".join(pair) for pair in self.merges]}
        path.write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        record = json.loads(path.read_text(encoding="utf-8"))
        merges = [tuple(pair.split(" ")) for pair in record["merges"]]
        return cls(record["tokens"], merges)

    def tokenizer(self) -> Tokenizer:
        """The same vocabulary as a fast tokenizer."""
        ids = {token: index for index, token in enumerate(self.tokens)}
        fast = Tokenizer(models.BPE(vocab=ids, merges=self.merges))
        fast.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        fast.decoder = decoders.ByteLevel()
        fast.add_special_tokens([AddedToken(t, special=True) for t in (*CONTROL, *MARKERS)])
        return fast


def learn(texts: Iterable[str], size: int, rare: int = 12) -> Vocabulary:
    """Learn a vocabulary of exactly ``size`` tokens; words seen less than ``rare`` times are out.

    The floor keeps made-up names out of the merges.
    """
    letters = byte_letters()
    splitter = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    bare: Counter[str] = Counter()
    spaced: Counter[str] = Counter()
    for text in texts:
        for marker in (*CONTROL, *MARKERS):
            text = text.replace(marker, "\n")
        for piece, _ in splitter.pre_tokenize_str(text):
            body = piece[1:] if piece[:1] in ' _/."\n' or piece[:1] == "<" else piece
            if body.isascii() and body.isalpha():
                bare[body] += 1
                if piece[0] == " ":
                    spaced[body] += 1
    words = {word: count for word, count in bare.items() if count >= rare and len(word) > 1}
    merges: list[tuple[str, str]] = []
    known: set[str] = set(letters.values())

    def add(left: str, right: str) -> None:
        merges.append((left, right))
        known.add(left + right)

    for cluster in CLUSTERS:
        coded = "".join(letters[byte] for byte in cluster.encode())
        # Build a cluster from the left, so that every step is a token that exists.
        for end in range(2, len(coded) + 1):
            if coded[:end] not in known:
                add(coded[: end - 1], coded[end - 1])
    room = size - len(CONTROL) - len(MARKERS)
    prefixed = [word for word, _ in spaced.most_common(room // 3) if len(word) > 2 or word in SHORT]
    splits = {word: list(word) for word in words}
    while len(known) + sum(word in known for word in prefixed) < room:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in splits.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        (left, right), _ = max(pairs.items(), key=lambda item: (item[1], item[0]))
        add(left, right)
        for word, parts in splits.items():
            if left in parts:
                splits[word] = _merge(parts, left, right)
    space = letters[ord(" ")]
    for word in prefixed:
        if word in known:
            add(space, word)
        if len(known) >= room:
            break
    while len(known) < room:
        # Unused ids, so that the table has the round size whatever the corpus held.
        known.add(f"<unused{len(known)}>")
    spare = sorted(token for token in known if token.startswith("<unused"))
    tokens = [*letters.values(), *(left + right for left, right in merges), *spare]
    tokens += [*CONTROL, *MARKERS]
    if len(tokens) != len(set(tokens)):
        raise ValueError("a token was learnt twice")
    return Vocabulary(tokens, merges)


def _merge(parts: list[str], left: str, right: str) -> list[str]:
    merged: list[str] = []
    index = 0
    while index < len(parts):
        if index + 1 < len(parts) and parts[index] == left and parts[index + 1] == right:
            merged.append(left + right)
            index += 2
        else:
            merged.append(parts[index])
            index += 1
    return merged
