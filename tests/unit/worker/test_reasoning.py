"""Reasoning told by token id."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.worker.reasoning import Markers, PairState, ReasoningState, find_pair

OPEN, CLOSE, END, WORD = 1, 2, 3, 9
MARKERS = Markers(OPEN, CLOSE, ("<think>", "</think>"))


def vocabulary(**special: int):
    """A tokenizer that knows some words; all others are a token per character."""
    return lambda text: [special[text]] if text in special else [WORD] * len(text)


def tags(*tokens: int, is_inside: bool = False) -> str:
    state = PairState(MARKERS, is_inside=is_inside)
    return "".join(state.channel(token)[0] for token in tokens)


@pytest.mark.parametrize(
    "pair",
    [
        ("<think>", "</think>"),
        ("[THINK]", "[/THINK]"),
        ("<thought>", "</thought>"),
        ("<reasoning>", "</reasoning>"),
        ("<seed:think>", "</seed:think>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
    ],
)
def test_a_known_pair_of_single_tokens_is_found(pair: tuple[str, str]) -> None:
    assert find_pair(vocabulary(**{pair[0]: 5, pair[1]: 6})) == Markers(5, 6, pair)


def test_a_vocabulary_without_markers_has_none() -> None:
    assert find_pair(vocabulary()) is None


def test_half_a_pair_is_none() -> None:
    assert find_pair(vocabulary(**{"<think>": 5})) is None


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
    state = PairState(MARKERS, is_inside=False)
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
    assert MARKERS.follow(prompt, {END}).is_inside is inside


# a limit


def limited(limit: int, *, is_inside: bool = False) -> PairState:
    return PairState(MARKERS, is_inside=is_inside, limit=limit)


def written(state: ReasoningState, wish: Iterable[int]) -> list[int]:
    """What comes of a wish for tokens: of one in whose place another has to come, nothing."""
    tokens: list[int] = []
    for token in wish:
        token = token if state.forced is None else state.forced
        tokens.append(token)
        state.channel(token)
    return tokens


def test_a_block_is_closed_where_it_has_as_many_tokens_as_it_may() -> None:
    state = limited(2)
    assert written(state, [OPEN, WORD, WORD, WORD, WORD]) == [OPEN, WORD, WORD, CLOSE, WORD]
    assert state.tokens == 2


def test_a_block_of_no_tokens_is_closed_at_once() -> None:
    assert written(limited(0), [OPEN, WORD, WORD]) == [OPEN, CLOSE, WORD]
    assert written(limited(0, is_inside=True), [WORD, WORD]) == [CLOSE, WORD]


def test_the_limit_is_one_for_all_blocks() -> None:
    state = limited(2)
    wish = [OPEN, WORD, CLOSE, WORD, OPEN, WORD, WORD, WORD, OPEN, WORD, WORD]
    came = [OPEN, WORD, CLOSE, WORD, OPEN, WORD, CLOSE, WORD, OPEN, CLOSE, WORD]
    assert written(state, wish) == came
    assert state.tokens == 2


def test_a_block_that_ends_in_time_is_left_alone() -> None:
    assert written(limited(2), [OPEN, WORD, CLOSE, WORD]) == [OPEN, WORD, CLOSE, WORD]


@given(
    wish=st.lists(st.sampled_from([OPEN, CLOSE, WORD, 8]), max_size=30),
    limit=st.one_of(st.none(), st.integers(0, 6)),
    is_inside=st.booleans(),
)
def test_no_limit_is_passed_and_up_to_it_nothing_changes(
    wish: list[int], limit: int | None, is_inside: bool
) -> None:
    free = PairState(MARKERS, is_inside=is_inside)
    bound = PairState(MARKERS, is_inside=is_inside, limit=limit)
    came = written(bound, wish)
    assert limit is None or bound.tokens <= limit
    written(free, wish)
    if limit is None or free.tokens < limit:
        assert (came, bound.tokens) == (wish, free.tokens)
    again = PairState(MARKERS, is_inside=is_inside)
    channels = [again.channel(token) for token in came]
    assert bound.tokens == channels.count("reasoning")
