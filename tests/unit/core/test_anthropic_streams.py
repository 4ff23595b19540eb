"""Chat streams as the Anthropic API's, event by event."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core.errors import (
    NoCapacity,
    UpstreamFailed,
)
from cortex_core.wire import sse
from tests.unit.core.anthropic_play import (
    STREAM,
    events_of,
    steady,
    translated,
)
from tests.unit.core.chat_answers import CLOSING, chunk, cut


def test_a_stream_tells_every_step_of_every_block() -> None:
    events = events_of(b"".join(map(translated(stream=True).feed, STREAM)))
    assert [event["type"] for event in events] == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_delta",  # the signature
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_the_beginning_says_what_is_known_of_the_prompt() -> None:
    translation = translated(stream=True)
    translation.started(20, 15)
    usage = events_of(translation.feed(STREAM[0]))[0]["message"]["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (5, 15)


def test_a_sign_of_life_opens_the_message_once() -> None:
    translation = translated(stream=True)
    kinds = [event["type"] for event in events_of(translation.keep_alive())]
    assert kinds == ["message_start", "ping"]
    data = translation.keep_alive() + translation.feed(STREAM[3])
    kinds = [event["type"] for event in events_of(data)]
    assert kinds == ["ping", "content_block_start", "content_block_delta"]


def test_errors_are_told_in_this_dialect() -> None:
    translation = translated(stream=True)
    error = json.loads(translation.error_body(NoCapacity("full")))
    details = {"error_code": "no_capacity"}
    told = {"type": "overloaded_error", "message": "full", "details": details}
    assert error == {"type": "error", "error": told}
    data = translation.feed(STREAM[3]) + translation.error_event(UpstreamFailed("it fell over"))
    assert events_of(data)[-1]["error"]["type"] == "api_error"


def test_an_error_that_the_node_tells_is_told() -> None:
    error = {"error": {"message": "gone", "code": "stalled", "type": "x", "param": None}}
    data = translated(stream=True).feed(sse.encode(json.dumps(error).encode()))
    details = {"error_code": "stalled"}
    told = {"type": "timeout_error", "message": "gone", "details": details}
    assert events_of(data)[-1]["error"] == told


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=5))
def test_however_the_events_arrive_the_same_is_told(cuts: list[int]) -> None:
    whole = steady(translated(stream=True)).feed(b"".join(STREAM))
    split = steady(translated(stream=True))
    assert b"".join(map(split.feed, cut(STREAM, cuts))) == whole


@pytest.mark.parametrize("closing", [CLOSING, sse.DONE], ids=["with usage", "without"])
def test_an_answer_that_finished_is_ended_at_done_and_not_before(closing: bytes) -> None:
    translation = translated(stream=True)
    data = translation.feed(chunk({"content": "x"}, "stop") + closing.removesuffix(sse.DONE))
    assert not translation.is_ended
    events = events_of(data + translation.feed(sse.DONE))
    assert translation.is_ended
    assert [event["type"] for event in events].count("message_stop") == 1
    assert events[-1]["type"] == "message_stop"


def test_an_answer_that_never_finished_is_not_ended_at_done() -> None:
    translation = translated(stream=True)
    events = events_of(translation.feed(chunk({"content": "x"}) + CLOSING))
    assert not translation.is_ended
    assert "message_stop" not in [event["type"] for event in events]
