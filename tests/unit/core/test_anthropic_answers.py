"""Chat answers as messages of the Anthropic API, which the vendor's own types read, too."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import Message

from tests.unit.core.anthropic_play import (
    CALLS,
    STREAM,
    events_of,
    gathered,
    messages_of,
    steady,
    text,
    translated,
    user,
)
from tests.unit.core.chat_answers import CLOSING, chunk, completion


@pytest.mark.parametrize("display", ["summarized", "omitted"])
def test_a_stream_adds_up_to_the_whole_answer(display: str) -> None:
    thinking = {"type": "adaptive", "display": display}
    streamed = steady(translated(stream=True, thinking=thinking))
    message = gathered(events_of(b"".join(map(streamed.feed, STREAM))))
    body = completion("tool_calls", reasoning_content="hm", content="née\n", tool_calls=CALLS)
    whole = json.loads(steady(translated(thinking=thinking)).whole(body))
    assert message == whole
    Message.model_validate(whole)
    assert whole["stop_reason"] == "tool_use"
    assert whole["usage"] == {
        "input_tokens": 4,
        "output_tokens": 5,
        "output_tokens_details": {"thinking_tokens": 2},
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 7,
    }


def test_thinking_that_is_not_shown_comes_back_by_its_signature() -> None:
    translation = translated(thinking={"type": "adaptive", "display": "omitted"})
    body = completion(reasoning_content="because", content="so")
    content = json.loads(translation.whole(body))["content"]
    assert content[0]["thinking"] == ""
    turn = {"role": "assistant", "content": content}
    assert messages_of(turn, user(text("x")))[0]["reasoning_content"] == "because"


@pytest.mark.parametrize(
    ("finish", "stop", "told"),
    [
        ("stop", None, ("end_turn", None)),
        ("stop", "END", ("stop_sequence", "END")),
        ("length", None, ("max_tokens", None)),
    ],
)
def test_how_an_answer_ended_is_told(finish: str, stop: str | None, told: Any) -> None:
    whole = json.loads(translated().whole(completion(finish, stop, content="x")))
    assert (whole["stop_reason"], whole["stop_sequence"]) == told
    events = [chunk({"content": "x"}), chunk({}, finish, stop_reason=stop), CLOSING]
    message = gathered(events_of(b"".join(map(translated(stream=True).feed, events))))
    assert (message["stop_reason"], message["stop_sequence"]) == told


def test_an_empty_answer_has_an_empty_text() -> None:
    assert json.loads(translated().whole(completion(content="")))["content"] == [
        {"type": "text", "text": ""}
    ]


def test_a_call_that_was_cut_in_two_is_none() -> None:
    half = [CALLS[0], {"id": "c", "function": {"name": "add", "arguments": '{"a'}}]
    whole = json.loads(translated().whole(completion("length", tool_calls=half)))
    assert [block["id"] for block in whole["content"]] == ["call_0"]


@pytest.mark.parametrize("others", [CALLS[:1], []])
def test_a_call_that_cannot_be_run_is_what_the_model_said(others: list[Any]) -> None:
    """The client is not to send its request again, and no call is made up in its place."""
    broken = {"id": "c", "function": {"name": "add", "arguments": '{"a": 1, ""}'}}
    body = completion("tool_calls", tool_calls=[*others, broken])
    whole = json.loads(translated().whole(body))
    assert whole["content"][-1] == {"type": "text", "text": 'add {"a": 1, ""}'}
    assert len(whole["content"]) == len(others) + 1
    assert whole["stop_reason"] == ("tool_use" if others else "end_turn")
    Message.model_validate(whole)
