"""Channels in, content and reasoning out, wherever the chunks were cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core.wire.ipc import Channel
from neuron.chat.pieces import Text, Thought
from neuron.chat.reasoning import KeptReasoning, SplitReasoning

Deltas = Sequence[tuple[Channel, str]]


def _split(deltas: Deltas) -> tuple[str, str]:
    machine = SplitReasoning()
    pieces = [piece for channel, text in deltas for piece in machine.feed(channel, text)]
    pieces += machine.finish()
    content = "".join(piece.text for piece in pieces if isinstance(piece, Text))
    reasoning = "".join(piece.text for piece in pieces if isinstance(piece, Thought))
    return content, reasoning


def _kept(deltas: Deltas, opened: str = "") -> str:
    machine = KeptReasoning(opened)
    pieces = [piece for channel, text in deltas for piece in machine.feed(channel, text)]
    return "".join(piece.text for piece in [*pieces, *machine.finish()])


THOUGHT: Deltas = [
    ("marker", "<think>"),
    ("reasoning", "\nIt is\n\nParis.\n"),
    ("marker", "</think>"),
    ("content", "\n\nParis"),
]


def test_newlines_at_the_seams_are_tidied():
    assert _split(THOUGHT) == ("Paris", "It is\n\nParis.")


def test_thinking_kept_is_verbatim():
    assert _kept(THOUGHT) == "<think>\nIt is\n\nParis.\n</think>\n\nParis"


def test_a_block_that_the_prompt_opened_is_split_too():
    assert _split([("reasoning", "\nhm\n"), *THOUGHT[2:]]) == ("Paris", "hm")


def test_a_block_that_the_prompt_opened_is_shown_as_opened():
    assert _kept([("reasoning", "hm\n"), *THOUGHT[2:]], "<think>\n").startswith("<think>\nhm\n</th")


def test_plain_content_is_untouched():
    assert _split([("content", " \n a "), ("content", "b \n")]) == (" \n a b \n", "")


def test_only_white_space_is_still_an_answer():
    assert _split([("content", "\n"), ("content", " ")]) == ("\n ", "")


def test_white_space_before_a_block_is_no_content():
    assert _split([("content", "\n"), *THOUGHT]) == ("Paris", "It is\n\nParis.")


def test_an_indent_after_the_block_stays():
    assert _split([*THOUGHT[:3], ("content", "\n\n    x = 1")]) == ("    x = 1", "It is\n\nParis.")


def test_two_blocks_are_set_apart():
    assert _split([*THOUGHT, ("marker", "<think>"), ("reasoning", "more")]) == (
        "Paris",
        "It is\n\nParis.\n\nmore",
    )


def test_an_empty_block_says_nothing():
    empty: Deltas = [("marker", "<think>"), ("reasoning", "\n\n"), *THOUGHT[2:]]
    assert _split(empty) == ("Paris", "")


def test_a_block_cut_short_ends_without_its_trailing_space():
    assert _split([("marker", "<think>"), ("reasoning", "hm, \n")]) == ("", "hm,")


@pytest.mark.parametrize("read", [_split, _kept])
@given(data=st.data())
def test_any_cut_gives_the_same(read, data: st.DataObject):
    channels: st.SearchStrategy[Channel] = st.sampled_from(get_args(Channel))
    texts = st.text(st.sampled_from("ab \n<"), min_size=1, max_size=8)
    deltas: Deltas = data.draw(st.lists(st.tuples(channels, texts), max_size=6))
    cut: list[tuple[Channel, str]] = []
    for channel, text in deltas:
        if channel == "marker":
            cut.append((channel, text))
            continue
        at = data.draw(st.integers(0, len(text)))
        cut.append((channel, text[:at]))
        cut.append((channel, text[at:]))
    assert read(cut) == read(deltas)
