"""Reasoning told by token id."""

from __future__ import annotations

import pytest

from neuron.worker.reasoning import Markers, ReasoningState, find_markers, starts_inside

OPEN, CLOSE, END, WORD = 1, 2, 3, 9
MARKERS = Markers(OPEN, CLOSE, ("<think>", "</think>"))


def vocabulary(**special: int):
    """A tokenizer that knows some words; all others are a token per character."""
    return lambda text: [special[text]] if text in special else [WORD] * len(text)


def tags(*tokens: int, is_inside: bool = False) -> str:
    state = ReasoningState(MARKERS, is_inside=is_inside)
    return "".join(state.channel(token)[0] for token in tokens)


@pytest.mark.parametrize(
    "pair",
    [
        ("<think>", "</think>"),
        ("[THINK]", "[/THINK]"),
        ("<thought>", "</thought>"),
        ("<reasoning>", "</reasoning>"),
        ("<seed:think>", "</seed:think>"),
    ],
)
def test_a_known_pair_of_single_tokens_is_found(pair: tuple[str, str]) -> None:
    assert find_markers(vocabulary(**{pair[0]: 5, pair[1]: 6})) == Markers(5, 6, pair)


def test_a_vocabulary_without_markers_has_none() -> None:
    assert find_markers(vocabulary()) is None


def test_half_a_pair_is_none() -> None:
    assert find_markers(vocabulary(**{"<think>": 5})) is None


def test_an_answer_without_markers_is_content() -> None:
    assert tags(WORD, WORD, END) == "ccc"


def test_what_is_between_the_markers_is_reasoning() -> None:
    assert tags(OPEN, WORD, WORD, CLOSE, WORD) == "mrrmc"


def test_an_answer_may_begin_inside() -> None:
    assert tags(WORD, CLOSE, WORD, is_inside=True) == "rmc"


def test_an_opening_marker_inside_is_a_thought_about_markers() -> None:
    assert tags(OPEN, OPEN, CLOSE, WORD) == "mrmc"


def test_a_closing_marker_outside_is_no_content() -> None:
    assert tags(WORD, CLOSE, WORD) == "cmc"


def test_reasoning_may_come_again() -> None:
    assert tags(OPEN, WORD, CLOSE, WORD, OPEN, WORD, CLOSE) == "mrmcmrm"


def test_tokens_inside_are_counted_without_the_markers() -> None:
    state = ReasoningState(MARKERS, is_inside=False)
    for token in (OPEN, WORD, WORD, CLOSE, WORD):
        state.channel(token)
    assert state.tokens == 2


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [
        ([WORD, END, WORD], False),
        ([WORD, END, WORD, OPEN], True),
        ([WORD, END, WORD, OPEN, WORD], True),
        ([WORD, END, WORD, OPEN, WORD, CLOSE, WORD], False),
        ([WORD, OPEN, WORD, END, WORD], False),  # somebody wrote of the marker, turns ago
        ([], False),
    ],
)
def test_the_prompts_tail_says_where_the_answer_begins(prompt: list[int], inside: bool) -> None:
    assert starts_inside(prompt, MARKERS, {END}) is inside
