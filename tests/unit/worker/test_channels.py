"""Reasoning told by the channels that messages' headers name: the state machine alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.worker.channels import Channels, ChannelState, find_marks
from neuron.worker.reasoning import Markers

FRAMES = ("start", "channel", "constrain", "message", "end", "call", "return")
WORDS = ("assistant", "analysis", "final", "commentary", " to", "=functions.", "add", "json", " hm")
IDS = {f"<|{name}|>": at for at, name in enumerate(FRAMES)}
IDS |= {word: len(FRAMES) + at for at, word in enumerate(WORDS)}
TEXTS = list(IDS)
START, CHANNEL, CONSTRAIN, MESSAGE, END, CALL, RETURN = range(len(FRAMES))


def ids(text: str) -> list[int]:
    """The tokens of a text: the longest of those above, or one a character."""
    tokens: list[int] = []
    while text:
        word = max((known for known in TEXTS if text.startswith(known)), key=len, default=text[0])
        tokens.append(IDS.get(word, 99))
        text = text[len(word) :]
    return tokens


def found(*missing: str) -> Channels | Markers | None:
    def tokenize(text: str) -> list[int]:
        return [99, 99] if text in missing else ids(text)

    marks = find_marks(tokenize, lambda token: TEXTS[token].encode())
    assert marks is None or isinstance(marks, Channels | Markers)
    return marks


_FOUND = found()
assert isinstance(_FOUND, Channels)
CHANNELS = _FOUND
ASKED = "<|start|>assistant"
THOUGHT = "<|channel|>analysis<|message|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"


def follow(
    prompt: str, limit: int | None = None, said: Sequence[str] | None = None
) -> ChannelState:
    tokens = ids(prompt)
    return CHANNELS.follow(tokens, (CALL, RETURN), limit=limit, said=said)


def tagged(answer: str, prompt: str = ASKED) -> list[tuple[str, str]]:
    """(channel, text): neighbours joined, and a marker for each header or end."""
    state = follow(prompt)
    parts: list[tuple[str, str]] = []
    is_whole = True
    for token in ids(answer):
        channel = state.channel(token)
        if parts and parts[-1][0] == channel and (channel != "marker" or not is_whole):
            parts[-1] = (channel, parts[-1][1] + TEXTS[token])
        else:
            parts.append((channel, TEXTS[token]))
        is_whole = not state.is_in_header
    return parts


# what counts


def test_channels_are_found_where_all_their_frames_are_single_tokens() -> None:
    assert CHANNELS.frames == set(range(len(FRAMES)))
    assert CHANNELS.thought == tuple(ids(ASKED + THOUGHT))
    assert CHANNELS.text == (THOUGHT, "<|end|>")


@pytest.mark.parametrize("name", FRAMES)
def test_without_one_of_them_there_are_none(name: str) -> None:
    assert found(f"<|{name}|>") is None


# an answer


def test_a_message_is_reasoning_or_content_by_its_channel() -> None:
    assert tagged(f"{THOUGHT} hm<|end|>{FINAL} hm<|return|>") == [
        ("marker", THOUGHT),
        ("reasoning", " hm"),
        ("marker", "<|end|>"),
        ("marker", FINAL),
        ("content", " hm"),
        ("marker", "<|return|>"),
    ]


CALL_HEADERS = [
    "<|channel|>commentary to=functions.add<|constrain|>json<|message|>",
    " to=functions.add<|channel|>commentary<|constrain|>json<|message|>",
    "<|channel|>analysis to=functions.add<|message|>",
    " to=functions.add<|channel|>analysis<|message|>",
]


@pytest.mark.parametrize("header", CALL_HEADERS)
def test_a_message_to_a_function_is_no_reasoning_and_its_header_one_marker(header: str) -> None:
    assert tagged(f"{header}json<|call|>") == [
        ("marker", header),
        ("content", "json"),
        ("marker", "<|call|>"),
    ]


@pytest.mark.parametrize("header", ["<|message|>", "<|channel|>commentary<|message|>"])
def test_any_other_channel_is_content(header: str) -> None:
    assert tagged(f"{header} hm") == [("marker", header), ("content", " hm")]


def test_names_of_channels_and_frames_in_a_body_are_words() -> None:
    body = "analysisassistant to=functions.add"
    assert tagged(f"<|channel|>final<|message|>{body}")[1:] == [("content", body)]


def test_a_header_may_begin_where_a_message_was_not_ended() -> None:
    other = "<|channel|>final<|message|>"
    assert tagged(f"{THOUGHT} hm{other}add") == [
        ("marker", THOUGHT),
        ("reasoning", " hm"),
        ("marker", other),
        ("content", "add"),
    ]


def test_a_header_that_begins_anew_is_that_of_the_last_beginning() -> None:
    header = f"<|channel|>analysis{FINAL}"
    assert tagged(f"{header}add") == [("marker", header), ("content", "add")]


def test_an_answer_without_a_header_is_content() -> None:
    assert tagged("add hm") == [("content", "add hm")]
    assert tagged("add hm", prompt="") == [("content", "add hm")]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (ASKED, "content"),
        (ASKED + THOUGHT, "reasoning"),
        (ASKED + THOUGHT + " hm", "reasoning"),
        (ASKED + "<|channel|>final<|message|> hm", "content"),
        (ASKED + "<|channel|>", "marker"),
        ("<|start|>assistant<|channel|>analysis<|message|> hm<|end|>" + ASKED, "content"),
        (ASKED + THOUGHT + " hm<|end|>", "content"),
        (" hm", "content"),
    ],
)
def test_the_prompts_tail_says_where_the_answer_begins(prompt: str, said: str) -> None:
    assert follow(prompt).channel(IDS["add"]) == said


# a limit


def written(state: ChannelState, wish: Sequence[int]) -> str:
    """What comes of a wish for tokens, none of which has its wish where one has to come."""
    tokens: list[int] = []
    left = list(wish)
    while left:
        forced = state.forced
        tokens.append(left.pop(0) if forced is None else forced)
        state.channel(tokens[-1])
    return "".join(TEXTS[token] for token in tokens)


CLOSED = f"<|end|>{FINAL}"


def test_where_thinking_may_go_on_no_longer_the_last_message_begins() -> None:
    state = follow(ASKED, 2)
    assert written(state, ids(f"{THOUGHT} hm hm hm")) == f"{THOUGHT} hm hm{CLOSED} hm"
    assert state.tokens == 2


@pytest.mark.parametrize("prompt", [ASKED, ASKED + THOUGHT])
def test_a_limit_of_none_at_all_closes_at_once(prompt: str) -> None:
    state = follow(prompt, 0)
    wish = ids(f"{THOUGHT} hm" if prompt == ASKED else " hm")
    assert written(state, wish).endswith(f"{CLOSED} hm")
    assert state.tokens == 0


# a constraint on what is said


def test_a_constrained_answer_is_said_after_one_block_at_most() -> None:
    state = follow(ASKED, said=[])
    assert state.forced == CHANNEL
    state.channel(CHANNEL)
    assert (state.forced, state.expected) == (None, {IDS["analysis"], IDS["final"]})
    for token in ids("analysis<|message|>"):
        state.channel(token)
    assert state.is_inside
    assert not state.expected
    assert written(state, ids(" hm<|end|> hm")) == f" hm{CLOSED} hm"


def test_a_constrained_answer_may_be_said_at_once() -> None:
    state = follow(ASKED, said=[])
    state.channel(CHANNEL)
    state.channel(IDS["final"])
    assert state.forced == MESSAGE
    assert state.channel(MESSAGE) == "marker"
    assert state.is_in_content


@pytest.mark.parametrize("prompt", ["", " hm", ASKED + "<|channel|>final<|message|>"])
def test_a_constraint_holds_at_once_where_the_prompt_leads_to_content(prompt: str) -> None:
    state = follow(prompt, said=[])
    assert state.is_in_content


def test_a_header_that_leads_elsewhere_is_ended_for_a_constraint_to_hold() -> None:
    assert follow(ASKED + "<|channel|>commentary", said=[]).forced == MESSAGE


def test_of_several_messages_any_one_may_follow_a_thought() -> None:
    header = "<|channel|>commentary to=functions.add<|message|>"
    state = follow(ASKED, 1, [header, "<|channel|>final<|message|>"])
    for token in ids(f"{THOUGHT} hm<|end|><|start|>assistant<|channel|>"):
        assert token in (state.expected or {token})
        state.channel(token)
    assert state.expected == {IDS["commentary"], IDS["final"]}
    for token in ids("commentary to=functions.add<|message|>"):
        assert state.channel(token) == "marker"
    assert (state.function, state.is_in_content) == ("add", True)


# any order of tokens

ANY = st.lists(st.integers(0, len(TEXTS) - 1), max_size=40)
LIMITS = st.one_of(st.none(), st.integers(0, 4))


@given(prompt=ANY, answer=ANY)
def test_in_any_order_each_token_has_one_channel_and_frames_none_but_theirs(
    prompt: list[int], answer: list[int]
) -> None:
    state = CHANNELS.follow(prompt, (CALL, RETURN))
    counted = 0
    for token in answer:
        was_inside, was_in_header = state.is_inside, state.is_in_header
        channel = state.channel(token)
        assert not (state.is_inside and state.is_in_header)
        if token in CHANNELS.frames:
            assert channel == "marker"
        elif was_inside:
            assert channel == "reasoning"
        elif state.is_in_header:
            assert was_in_header
            assert channel == "marker"
        else:
            assert channel == "content"
        counted += channel == "reasoning"
    assert state.tokens == counted


@given(answer=ANY, limit=LIMITS, said=st.sampled_from([None, [], CALL_HEADERS]))
def test_in_any_order_no_limit_is_passed(
    answer: list[int], limit: int | None, said: list[str] | None
) -> None:
    state = follow(ASKED, limit, said)
    for wish in answer:
        expected = sorted(state.expected)
        token = expected[wish % len(expected)] if expected else wish
        state.channel(token)
        assert limit is None or state.tokens <= limit


@given(answer=ANY)
def test_in_any_order_a_header_is_whole_or_not_over(answer: list[int]) -> None:
    """A header that the answer began is one run of markers, up to the token that ends it."""
    state = follow("")
    told: list[tuple[bool, int]] = []
    for token in answer:
        state.channel(token)
        told.append((state.is_in_header, token))
    for is_header, run in groupby(told, key=lambda one: one[0]):
        tokens = [token for _, token in run]
        if is_header:
            assert tokens[0] in (START, CHANNEL)
            assert not {MESSAGE, END, CALL, RETURN} & set(tokens)
