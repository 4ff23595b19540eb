"""Chat answers as responses, which the vendor's own types read, too."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from openai.types.responses import Response

from cortex_core.errors import (
    UpstreamFailed,
)
from cortex_core.translate.responses_request import translate_responses
from tests.unit.core.chat_answers import CLOSING, chunk, completion
from tests.unit.core.responses_play import (
    CUSTOM,
    FUNCTION,
    STREAM,
    Remembered,
    events_of,
    steady,
    translated,
)


def test_a_stream_ends_in_what_the_whole_answer_is() -> None:
    tools = [FUNCTION, CUSTOM]
    streamed = steady(translated(stream=True, tools=tools))
    events = events_of(b"".join(map(streamed.feed, STREAM)))
    calls = [
        {"id": "call_0", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}},
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "shell", "arguments": '{"input":"ls"}'},
        },
    ]
    body = completion(reasoning_content="hm", content="née\n", tool_calls=calls)
    whole = json.loads(steady(translated(tools=tools)).whole(body))
    assert events[-1]["response"] == whole
    Response.model_validate(whole)


@pytest.mark.parametrize(
    ("said", "kinds"),
    [
        ({}, ["message"]),
        ({"content": "x"}, ["message"]),
        ({"reasoning_content": "h"}, ["reasoning"]),
        ({"reasoning_content": "h", "content": "x"}, ["reasoning", "message"]),
    ],
)
@pytest.mark.parametrize(("finish", "status"), [("stop", "completed"), ("length", "incomplete")])
def test_an_answer_is_the_same_whole_and_streamed_wherever_it_ends(
    said: dict[str, Any], kinds: list[str], finish: str, status: str
) -> None:
    events = events_of(
        steady(translated(stream=True)).feed(chunk(said) + chunk({}, finish) + CLOSING)
    )
    whole = json.loads(steady(translated()).whole(completion(finish, **said)))
    assert events[-1]["response"] == whole
    assert [item["type"] for item in whole["output"]] == kinds
    statuses = [item["status"] for item in whole["output"]]
    assert statuses == [*["completed"] * (len(kinds) - 1), status]


def test_what_is_not_to_be_stored_is_not_kept() -> None:
    memory = Remembered({})
    body = {"model": "m", "input": "hi", "store": False}
    translate_responses(json.dumps(body).encode(), memory).whole(completion(content="x"))
    assert not memory.kept


def test_an_empty_answer_is_an_empty_message() -> None:
    response = json.loads(translated().whole(completion(content="")))
    assert response["output"][0]["content"][0]["text"] == ""


@pytest.mark.parametrize("body", [b"", b"[]", b'{"choices":[]}'])
def test_what_is_no_completion_is_the_nodes_fault(body: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        translated().whole(body)


def test_a_custom_call_that_is_no_object_is_given_as_it_came() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "shell", "arguments": "ls"}}]
    body = completion(tool_calls=calls)
    output = json.loads(translated(tools=[CUSTOM]).whole(body))["output"]
    assert (output[0]["type"], output[0]["input"]) == ("custom_tool_call", "ls")


def test_the_response_says_what_was_asked() -> None:
    response = msgspec.json.decode(
        translated(metadata={"k": "v"}, temperature=0.1, instructions="i").whole(
            completion(content="x")
        )
    )
    assert response["metadata"] == {"k": "v"}
    assert response["created_at"] == 1700000000
    assert (response["temperature"], response["instructions"]) == (0.1, "i")
