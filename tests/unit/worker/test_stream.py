"""One answer's tokens in, deltas out: which channel a text goes to, and when."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core.wire.ipc import Delta, Generate, Sampling
from neuron.worker.channels import find_marks
from neuron.worker.detokenize import Pieces
from neuron.worker.stream import Stream

FRAMES = [f"<|{n}|>" for n in ("start", "channel", "constrain", "message", "end", "call", "return")]
PAIR = ["<think>", "</think>"]
WORDS = ["assistant", "analysis", "final", "commentary", " to=functions.add", "hm", "\n", " <", "|"]
CLEF = "𝄞".encode()
END = "</s>"


class Vocabulary:
    """One token for each of some words, and for each byte of a clef."""

    def __init__(self, words: list[str]) -> None:
        self.pieces = [word.encode() for word in [END, *words]]
        self.pieces += [bytes([byte]) for byte in CLEF]

    def tokens(self, text: str) -> list[int]:
        data, found = text.encode(), list[int]()
        while data:
            piece = max((one for one in self.pieces if data.startswith(one)), key=len, default=b"")
            if not piece:
                return [*found, -1, -1]  # cannot be written: no single token
            found.append(self.pieces.index(piece))
            data = data[len(piece) :]
        return found

    def stream(self, prompt: str, **more: Any) -> Stream:
        ids = self.tokens(prompt)
        command = Generate(1, "m", prompt, Sampling(), **more)
        marks = find_marks(self.tokens, self.pieces.__getitem__)
        limit = command.max_thinking_tokens
        return Stream(
            command,
            np.array(ids, np.int32),
            limit=command.max_tokens or 1000,
            ends=frozenset([0]),
            pieces=Pieces(len(self.pieces), self.pieces.__getitem__),
            reasoning=None if marks is None else marks.follow(ids, [0], limit=limit),
            sampler=None,
        )


CHANNELS = Vocabulary(FRAMES + WORDS)
PAIRS = Vocabulary(PAIR + WORDS)
PLAIN = Vocabulary(WORDS)

Told = list[tuple[str, str]]


def told(stream: Stream, tokens: list[int]) -> Told:
    """What is said of an answer, delta by delta."""
    deltas: list[Delta] = []
    for token in tokens:
        if stream.take(token, deltas):
            break
    return [(delta.channel, delta.text) for delta in deltas]


def of(vocabulary: Vocabulary, answer: str, prompt: str = "hm", **more: Any) -> Told:
    return told(vocabulary.stream(prompt, **more), vocabulary.tokens(answer))


THOUGHT = "<|channel|>analysis<|message|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
ASKED = "<|start|>assistant"


def test_a_header_is_one_delta() -> None:
    assert of(CHANNELS, f"{THOUGHT}hm<|end|>{FINAL}hm{END}", ASKED) == [
        ("marker", THOUGHT),
        ("reasoning", "hm"),
        ("marker", "<|end|>"),
        ("marker", FINAL),
        ("content", "hm"),
    ]


def test_a_header_cut_short_is_a_marker_too() -> None:
    assert of(CHANNELS, THOUGHT, ASKED, max_tokens=2) == [("marker", "<|channel|>analysis")]
    assert of(CHANNELS, f"<|channel|>commentary to=functions.add{END}", ASKED) == [
        ("marker", "<|channel|>commentary to=functions.add")
    ]


@pytest.mark.parametrize(
    ("vocabulary", "prompt", "answer"),
    [(CHANNELS, ASKED + THOUGHT, "<|end|>"), (PAIRS, "hm<think>", "</think>")],
)
def test_a_character_that_a_block_ends_in_the_middle_of_is_not_lost(
    vocabulary: Vocabulary, prompt: str, answer: str
) -> None:
    half = [vocabulary.pieces.index(CLEF[at : at + 1]) for at in range(2)]
    stream = vocabulary.stream(prompt)
    assert told(stream, [*half, *vocabulary.tokens(answer)]) == [
        ("reasoning", "\ufffd"),
        ("marker", answer),
    ]


@pytest.mark.parametrize(
    ("vocabulary", "prompt", "closing"),
    [(CHANNELS, ASKED + THOUGHT, "<|end|>"), (PAIRS, "hm<think>", "</think>")],
)
@pytest.mark.parametrize("limit", [3, 4, 5])
def test_a_thought_that_is_ended_inside_a_character_says_nothing_of_it(
    vocabulary: Vocabulary, prompt: str, closing: str, limit: int
) -> None:
    """One that is whole is said."""
    clef = [vocabulary.pieces.index(CLEF[at : at + 1]) for at in range(4)]
    tokens = [*vocabulary.tokens("hm"), *clef][:limit]
    stream = vocabulary.stream(prompt, max_thinking_tokens=limit)
    came = told(stream, [*tokens, *vocabulary.tokens(closing)])
    assert came == [
        ("reasoning", "hm"),
        *[("reasoning", "𝄞")] * (limit == 5),
        ("marker", closing),
    ]


@pytest.mark.parametrize("vocabulary", [PAIRS, CHANNELS])
def test_a_stop_string_is_looked_for_in_the_content_alone(vocabulary: Vocabulary) -> None:
    thought = "<think>hm\n</think>" if vocabulary is PAIRS else f"{THOUGHT}hm\n<|end|>{FINAL}"
    prompt = "hm" if vocabulary is PAIRS else ASKED
    came = of(vocabulary, f"{thought}final\nhm", prompt, stop=("hm", "\n"))
    assert [one for one in came if one[0] != "marker"] == [
        ("reasoning", "hm"),
        ("reasoning", "\n"),
        ("content", "final"),
    ]


def test_an_answer_says_which_stop_string_ended_it() -> None:
    for answer, stop in ((f"hm\n{END}", "\n"), (f"hm|{END}", None)):
        stream = PLAIN.stream("hm", stop=("final", "\n"))
        told(stream, PLAIN.tokens(answer))
        assert stream.stopped_by == stop


def test_where_a_vocabulary_has_no_markers_all_is_content() -> None:
    answer = "hm <|analysis|\n"
    stream = PLAIN.stream("hm", max_thinking_tokens=0)
    assert stream.forced is None
    assert stream.is_plain
    assert "".join(text for _, text in told(stream, PLAIN.tokens(answer))) == answer
    assert stream.usage.reasoning == 0


def test_who_may_think_only_so_long_is_not_simply_the_likeliest() -> None:
    assert PAIRS.stream("hm").is_plain
    assert not PAIRS.stream("hm", max_thinking_tokens=5).is_plain


@pytest.mark.parametrize(
    ("vocabulary", "prompt"),
    [
        (PLAIN, "hm"),
        (PAIRS, "hm"),
        (PAIRS, "hm<think>"),
        (CHANNELS, ASKED),
        (CHANNELS, ASKED + THOUGHT),
    ],
)
@given(data=st.data())
def test_in_any_order_every_token_is_told_once_in_its_channel(
    vocabulary: Vocabulary, prompt: str, data: st.DataObject
) -> None:
    ids = st.integers(1, len(vocabulary.pieces) - 1)
    tokens = data.draw(st.lists(ids, max_size=30))
    stream = vocabulary.stream(prompt)
    came = told(stream, [*tokens, 0])
    state = vocabulary.stream(prompt)._reasoning
    channels = ["content" if state is None else state.channel(token) for token in tokens]
    runs = itertools.groupby(zip(channels, tokens, strict=True), key=lambda each: each[0])
    whole = {"content": "", "reasoning": "", "marker": ""}
    for kind, run in runs:
        # Where a channel ends inside a character, that becomes several replacement characters.
        whole[kind] += b"".join(vocabulary.pieces[t] for _, t in run).decode("utf-8", "ignore")
    for kind, text in whole.items():
        said = "".join(text for channel, text in came if channel == kind)
        assert said.replace("\ufffd", "") == text
    assert stream.usage.reasoning == channels.count("reasoning")
