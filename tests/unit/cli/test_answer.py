"""A streamed answer, from bytes to parts."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cortex_cli.answer import Answer, Part
from cortex_cli.failure import Failure
from cortex_core.errors import UpstreamFailed


def _chunk(delta: dict[str, Any] | None = None, **extra: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": None}]
    return b"data: " + msgspec.json.encode({"choices": choices, **extra}) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def test_reasoning_and_content_come_out_as_parts_in_order() -> None:
    answer = Answer(0.0)
    parts = answer.feed(_chunk({"reasoning_content": "hm"}) + _chunk({"content": "Paris"}), 1.0)
    assert parts == [Part("reasoning", "hm"), Part("content", "Paris")]


def test_a_chunk_cut_anywhere_yields_the_same_text() -> None:
    stream = _chunk({"content": "Grüße 👋"}) + _chunk({"content": "!"}) + DONE
    answer = Answer(0.0)
    for byte in stream:
        answer.feed(bytes([byte]), 1.0)
    answer.end()
    assert answer.content == "Grüße 👋!"


def test_keep_alives_and_the_role_chunk_show_nothing() -> None:
    answer = Answer(0.0)
    assert answer.feed(b": keep-alive\n\n" + _chunk({"role": "assistant"}), 1.0) == []
    assert answer.ttft_s is None


def test_the_first_token_is_timed_from_the_request() -> None:
    answer = Answer(10.0)
    answer.feed(_chunk({"role": "assistant"}), 10.1)
    answer.feed(_chunk({"reasoning_content": "a"}), 10.5)
    answer.feed(_chunk({"content": "b"}), 11.5)
    answer.feed(_chunk(usage={"completion_tokens": 11}), 11.5)
    assert answer.ttft_s == pytest.approx(0.5)
    assert answer.tokens_per_s == pytest.approx(10)
    assert answer.summary() == "11 tokens · first after 500 ms · 10 tokens/s"


def test_an_answer_without_usage_is_summed_up_by_what_is_known() -> None:
    answer = Answer(0.0)
    answer.feed(_chunk({"content": "x"}), 2.0)
    assert answer.summary() == "first after 2.0 s"


def test_a_truncated_answer_says_so() -> None:
    answer = Answer(0.0)
    answer.feed(
        b'data: {"choices": [{"delta": {"content": "x"}, "finish_reason": "length"}]}\n\n', 1.0
    )
    assert "token limit" in answer.summary()


def test_no_rate_is_claimed_for_what_came_in_one_piece() -> None:
    answer = Answer(0.0)
    usage = b'data: {"choices": [], "usage": {"completion_tokens": 28}}\n\n'
    answer.feed(_chunk({"content": "Pa"}), 0.050)
    answer.feed(_chunk({"content": "ris"}) + usage, 0.052)
    assert answer.summary() == "28 tokens · first after 50 ms"


def test_tool_call_deltas_are_joined() -> None:
    answer = Answer(0.0)
    head = {"index": 0, "id": "c1", "type": "function", "function": {"name": "get_weather"}}
    answer.feed(_chunk({"tool_calls": [head]}), 1.0)
    for piece in ('{"city":', ' "Bergen"}'):
        answer.feed(_chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}), 1.1)
    function = {"name": "get_weather", "arguments": '{"city": "Bergen"}'}
    assert answer.message() == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }


def test_two_tool_calls_stay_apart() -> None:
    answer = Answer(0.0)
    for index, name in enumerate(("a", "b")):
        call = {"index": index, "id": name, "function": {"name": name, "arguments": "{}"}}
        answer.feed(_chunk({"tool_calls": [call]}), 1.0)
    assert [call["function"]["name"] for call in answer.tool_calls] == ["a", "b"]


def test_reasoning_is_not_kept_in_the_conversation() -> None:
    answer = Answer(0.0)
    answer.feed(_chunk({"reasoning_content": "hm"}) + _chunk({"content": "Paris"}), 1.0)
    assert answer.message() == {"role": "assistant", "content": "Paris"}


def test_an_error_event_is_raised_as_the_error_it_stands_for() -> None:
    answer = Answer(0.0)
    answer.feed(_chunk({"content": "Pa"}), 1.0)
    with pytest.raises(UpstreamFailed, match="the worker died"):
        answer.feed(
            b'data: {"error": {"message": "the worker died", "code": "upstream_failed"}}\n\n', 1.0
        )
    assert answer.content == "Pa"


def test_a_stream_that_breaks_off_is_not_a_whole_answer() -> None:
    answer = Answer(0.0)
    answer.feed(_chunk({"content": "Pa"}), 1.0)
    with pytest.raises(Failure, match="incomplete"):
        answer.end()
