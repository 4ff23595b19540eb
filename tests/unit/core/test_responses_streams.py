"""Chat streams as a response's, event by event."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core.errors import (
    UpstreamFailed,
)
from cortex_core.translate.responses_request import translate_responses
from cortex_core.wire import sse
from tests.unit.core.chat_answers import CLOSING, chunk, cut
from tests.unit.core.responses_play import (
    ASKED,
    CUSTOM,
    END,
    FUNCTION,
    STREAM,
    Remembered,
    events_of,
    steady,
    translated,
)


def test_a_stream_tells_every_step_of_every_item() -> None:
    translation = translated(stream=True, tools=[FUNCTION, CUSTOM])
    events = events_of(b"".join(map(translation.feed, STREAM)))
    told = [event["type"].removeprefix("response.") for event in events]
    assert told == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
        "completed",
    ]
    deltas = [event["delta"] for event in events if event["type"].endswith("delta")]
    assert deltas == ["h", "m", "né", "e\n", '{"a"', ":1}", "ls"]
    indices = [event["output_index"] for event in events if event["type"].endswith("item.done")]
    assert indices == [0, 1, 2, 3]
    response = events[-1]["response"]
    assert [item["status"] for item in response["output"]] == ["completed"] * 4
    assert response["usage"]["input_tokens_details"]["cached_tokens"] == 7


def test_a_summary_is_told_as_one() -> None:
    translation = translated(stream=True, reasoning={"summary": "auto"})
    events = events_of(b"".join(map(translation.feed, [*STREAM[:4], END])))
    kinds = {event["type"] for event in events}
    assert "response.reasoning_summary_text.delta" in kinds
    assert "response.reasoning_text.delta" not in kinds
    reasoning = events[-1]["response"]["output"][0]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "hm"}]


def test_an_answer_cut_short_is_incomplete() -> None:
    translation = translated(stream=True)
    short = [STREAM[3], chunk({}, "length"), CLOSING]
    last = events_of(b"".join(map(translation.feed, short)))[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"][0]["status"] == "incomplete"


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_what_came_to_its_end_is_kept_before_that_is_told(finish: str) -> None:
    memory = Remembered({})
    translation = translate_responses(ASKED, memory)
    translation.feed(STREAM[3] + chunk({}, finish))
    assert not memory.kept
    translation.feed(CLOSING)
    assert memory.kept == ["completed" if finish == "stop" else "incomplete"]
    kept = memory.items(translation.response["id"]) or []
    assert [item["role"] for item in kept] == ["user", "assistant"]


def test_logprobs_go_with_their_text() -> None:
    score = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    logprobs = {"content": [score], "refusal": None}
    translation = translated(stream=True, include=["message.output_text.logprobs"])
    data = [chunk({"content": "a"}, logprobs=logprobs), chunk({"content": "a"}, logprobs=logprobs)]
    events = events_of(b"".join(map(translation.feed, [*data, END])))
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [event["logprobs"] for event in deltas] == [[score], [score]]
    part = events[-1]["response"]["output"][0]["content"][0]
    assert part["logprobs"] == [score, score]


def test_a_broken_stream_is_a_failed_response_that_is_not_kept() -> None:
    memory = Remembered({})
    translation = translate_responses(ASKED, memory)
    data = translation.feed(STREAM[3]) + translation.error_event(UpstreamFailed("it fell over"))
    events = events_of(data)
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-1]["response"]["error"]["code"] == "server_error"
    assert not memory.kept


def test_an_error_that_the_node_tells_is_told() -> None:
    translation = translated(stream=True)
    error = {"error": {"message": "gone", "code": "stalled", "type": "x", "param": None}}
    events = events_of(translation.feed(STREAM[3] + sse.encode(json.dumps(error).encode())))
    assert events[-2]["code"] == "stalled"


def test_a_sign_of_life_opens_the_response_once() -> None:
    translation = translated(stream=True)
    data = translation.keep_alive()
    assert translation.keep_alive() == sse.KEEP_ALIVE
    data += b"".join(map(translation.feed, STREAM))
    kinds = [event["type"] for event in events_of(data)]
    assert kinds.count("response.created") == 1


@pytest.mark.parametrize("data", [b"event: x\n\n", b"data: {\n\n", b"data: 3\n\n"])
def test_what_is_no_chat_stream_is_the_nodes_fault(data: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        translated(stream=True).feed(data)


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=5))
def test_however_the_events_arrive_the_same_is_told(cuts: list[int]) -> None:
    whole = steady(translated(stream=True, tools=[FUNCTION, CUSTOM])).feed(b"".join(STREAM))
    split = steady(translated(stream=True, tools=[FUNCTION, CUSTOM]))
    assert b"".join(map(split.feed, cut(STREAM, cuts))) == whole


@pytest.mark.parametrize("closing", [CLOSING, sse.DONE], ids=["with usage", "without"])
def test_an_answer_that_finished_is_ended_at_done_and_not_before(closing: bytes) -> None:
    translation = translated(stream=True)
    data = translation.feed(chunk({"content": "x"}, "stop") + closing.removesuffix(sse.DONE))
    assert not translation.is_ended
    events = events_of(data + translation.feed(sse.DONE))
    assert translation.is_ended
    assert [event["type"] for event in events].count("response.completed") == 1
    assert events[-1]["type"] == "response.completed"


def test_an_answer_that_never_finished_is_not_ended_at_done() -> None:
    translation = translated(stream=True)
    events = events_of(translation.feed(chunk({"content": "x"}) + CLOSING))
    assert not translation.is_ended
    assert "response.completed" not in [event["type"] for event in events]
