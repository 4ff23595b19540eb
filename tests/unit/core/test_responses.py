"""A Responses request as a chat request, and chat answers as responses. What comes out is also read
by the vendor's own types."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from cortex_core.envelopes.sampling import is_in_range
from cortex_core.errors import (
    CortexError,
    InvalidRequest,
    NotFound,
    UnsupportedParameter,
    UpstreamFailed,
)
from cortex_core.translate.responses import ResponsesTranslation
from cortex_core.translate.responses_input import Item
from cortex_core.translate.responses_request import translate_responses
from cortex_core.wire import sse
from tests.unit.core.chat_answers import CLOSING, call, chunk, completion, cut

EVENTS = TypeAdapter(ResponseStreamEvent)
FUNCTION = {
    "type": "function",
    "name": "add",
    "description": "adds",
    "parameters": {"type": "object", "properties": {}},
    "strict": True,
}
CUSTOM = {"type": "custom", "name": "shell", "description": "runs"}


class Remembered:
    def __init__(self, responses: dict[str, list[Item]]) -> None:
        self._responses = responses
        self.kept: list[str] = []

    def items(self, response: str) -> list[Item] | None:
        return self._responses.get(response)

    def item(self, name: str) -> Item | None:
        every = (item for items in self._responses.values() for item in items)
        return next((item for item in every if item.get("id") == name), None)

    def keep(self, response: dict[str, Any], conversation: list[Item]) -> None:
        self.kept.append(response["status"])
        self._responses[response["id"]] = conversation + response["output"]


ASKED = json.dumps({"model": "m", "input": "hi", "stream": True}).encode()


def translated(**fields: Any) -> ResponsesTranslation:
    body = {"model": "m", "input": "hi"} | fields
    return translate_responses(json.dumps(body).encode(), created_at=1700000000.5)


def chat_of(**fields: Any) -> dict[str, Any]:
    return json.loads(translated(**fields).chat)


def messages_of(*items: Item, **fields: Any) -> list[dict[str, Any]]:
    return chat_of(input=list(items), **fields)["messages"]


# the request


def test_a_string_is_a_user_turn_below_the_instructions() -> None:
    assert chat_of(instructions="be brief")["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
    ]


def test_parameters_have_their_chat_names() -> None:
    chat = chat_of(
        max_output_tokens=9,
        temperature=0.5,
        top_p=0.9,
        reasoning={"effort": "low"},
        stream=True,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
    )
    del chat["messages"]
    assert chat == {
        "model": "m",
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "reasoning_effort": "low",
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert is_in_range("temperature", chat["temperature"])


def test_reasoning_text_and_calls_that_follow_one_another_are_one_turn() -> None:
    assert messages_of(
        {"role": "user", "content": [{"type": "input_text", "text": "2+3?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "let me add", "annotations": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a":2}'},
        {"type": "custom_tool_call", "call_id": "c2", "name": "shell", "input": "ls\n"},
        {"type": "function_call_output", "call_id": "c1", "output": "5"},
        {
            "type": "custom_tool_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
    ) == [
        {"role": "user", "content": "2+3?"},
        {
            "role": "assistant",
            "reasoning_content": "hm",
            "content": "let me add",
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "add", "arguments": '{"a":2}'},
                },
                {
                    "id": "c2",
                    "type": "function",
                    "function": {"name": "shell", "arguments": '{"input":"ls\\n"}'},
                },
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "5"},
        {
            "role": "tool",
            "tool_call_id": "c2",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
    ]


def test_a_second_text_of_the_assistant_is_a_turn_of_its_own() -> None:
    said = {"role": "assistant", "content": "one"}
    assert messages_of(said, {"role": "assistant", "content": "two"}) == [
        {"role": "assistant", "content": "one"},
        {"role": "assistant", "content": "two"},
    ]


def test_tools_keep_what_a_function_has() -> None:
    chat = chat_of(tools=[FUNCTION, CUSTOM], tool_choice={"type": "custom", "name": "shell"})
    functions = [tool["function"] for tool in chat["tools"]]
    assert functions[0] == {key: FUNCTION[key] for key in FUNCTION if key != "type"}
    assert functions[1]["name"] == "shell"
    assert functions[1]["parameters"]["required"] == ["input"]
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "shell"}}


def test_allowed_tools_are_the_only_ones_offered() -> None:
    allowed = {
        "type": "allowed_tools",
        "mode": "required",
        "tools": [{"type": "function", "name": "add"}],
    }
    chat = chat_of(tools=[FUNCTION, CUSTOM], tool_choice=allowed)
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["add"]
    assert chat["tool_choice"] == "required"


def test_a_format_is_a_response_format() -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    assert chat_of(text={"format": form})["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
    }
    assert "response_format" not in chat_of(text={"format": {"type": "text"}})


def test_a_later_request_goes_on_from_what_is_stored_without_its_instructions() -> None:
    memory = Remembered(
        {"resp_1": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    )
    body = {"model": "m", "input": "c", "previous_response_id": "resp_1", "instructions": "new"}
    translation = translate_responses(json.dumps(body).encode(), memory)
    contents = [message["content"] for message in json.loads(translation.chat)["messages"]]
    assert contents == ["new", "a", "b", "c"]
    assert len(translation.conversation) == 3


def test_a_reference_is_the_item_it_names() -> None:
    memory = Remembered({"resp_1": [{"id": "msg_1", "role": "assistant", "content": "b"}]})
    body = {"model": "m", "input": [{"type": "item_reference", "id": "msg_1"}]}
    chat = json.loads(translate_responses(json.dumps(body).encode(), memory).chat)
    assert chat["messages"] == [{"role": "assistant", "content": "b"}]


def test_reasoning_that_was_sealed_comes_back() -> None:
    first = translated(include=["reasoning.encrypted_content"], store=False)
    answer = json.loads(first.whole(completion(reasoning_content="because", content="so")))
    reasoning = answer["output"][0]
    assert reasoning["type"] == "reasoning"
    kept = {"type": "reasoning", "summary": [], "encrypted_content": reasoning["encrypted_content"]}
    said = {"role": "assistant", "content": "so"}
    assert messages_of(kept, said)[0]["reasoning_content"] == "because"


def test_reasoning_that_others_sealed_is_left_out() -> None:
    foreign = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}
    assert messages_of(foreign, {"role": "user", "content": "x"}) == [
        {"role": "user", "content": "x"}
    ]


def test_what_has_no_effect_is_listed() -> None:
    translation = translated(
        user="u",
        service_tier="auto",
        include=["web_search_call.results"],
        text={"verbosity": "low"},
        top_logprobs=3,
    )
    assert set(translation.ignored) == {
        "user", "service_tier", "include.web_search_call.results", "text.verbosity", "top_logprobs",
    }  # fmt: skip


REFUSED: list[tuple[dict[str, Any], type[CortexError], str]] = [
    ({"model": ""}, InvalidRequest, "model"),
    ({"input": []}, InvalidRequest, "input"),
    ({"background": True}, UnsupportedParameter, "background"),
    ({"truncation": "auto"}, UnsupportedParameter, "truncation"),
    ({"conversation": "c"}, UnsupportedParameter, "conversation"),
    ({"include": ["no.such"]}, UnsupportedParameter, "include"),
    ({"tools": [{"type": "web_search"}]}, UnsupportedParameter, "tools[0]"),
    ({"tools": [{"type": "function"}]}, InvalidRequest, "tools[0].name"),
    (
        {"tools": [CUSTOM | {"format": {"type": "grammar"}}]},
        UnsupportedParameter,
        "tools[0].format",
    ),
    ({"tool_choice": "required"}, InvalidRequest, "tool_choice"),
    ({"tools": [FUNCTION], "tool_choice": "maybe"}, InvalidRequest, "tool_choice"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "mcp"}}, UnsupportedParameter, "tool_choice"),
    (
        {"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "mode": "auto"}},
        InvalidRequest,
        "tool_choice",
    ),
    ({"text": {"format": {"type": "json_schema"}}}, InvalidRequest, "text.format.name"),
    (
        {"text": {"format": {"type": "text", "schema": {}}}},
        InvalidRequest,
        "text.format.schema",
    ),
    ({"previous_response_id": "resp_x"}, NotFound, "previous_response_id"),
    ({"input": [{"type": "item_reference", "id": "x"}]}, NotFound, "input[0].id"),
    ({"input": [{"type": "item_reference"}]}, InvalidRequest, "input[0].id"),
    ({"input": [{"type": "image_generation_call"}]}, UnsupportedParameter, "input[0]"),
    ({"input": [{"role": "robot", "content": ""}]}, InvalidRequest, "input[0].role"),
    ({"input": [{"role": "user", "content": 3}]}, InvalidRequest, "input[0].content"),
    ({"input": [{"role": "user", "content": [3]}]}, InvalidRequest, "input[0].content[0]"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        UnsupportedParameter,
        "input[0].content[0]",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
        InvalidRequest,
        "input[0].content[0].text",
    ),
    ({"input": [{"type": "function_call", "name": "f"}]}, InvalidRequest, "input[0].call_id"),
]


@pytest.mark.parametrize(("fields", "kind", "param"), REFUSED)
def test_what_cannot_be_done_is_refused_by_name(
    fields: dict[str, Any], kind: type[CortexError], param: str
) -> None:
    with pytest.raises(kind) as caught:
        translated(**fields)
    assert caught.value.param == param


# the answer


END = chunk({}, "stop") + CLOSING
STREAM = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "h"}),
    chunk({"reasoning_content": "m"}),
    chunk({"content": "né"}),
    chunk({"content": "e\n"}),
    chunk(call(0, "add", "")),
    chunk(call(0, None, '{"a"')),
    chunk(call(0, None, ":1}")),
    chunk(call(1, "shell", "")),
    chunk(call(1, None, '{"input":"l')),
    chunk(call(1, None, 's"}')),
    END,
]


def events_of(data: bytes) -> list[dict[str, Any]]:
    """Each is told by its own name, fits the vendor's type, and has the next number."""
    found = []
    for event in sse.Parser().feed(data):
        value = json.loads(event.data)
        assert event.event == value["type"]
        EVENTS.validate_python(value)
        found.append(value)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def steady(translation: ResponsesTranslation) -> ResponsesTranslation:
    """With ids that can be foretold."""
    numbers = iter(range(100))
    translation._new_id = lambda kind: f"{kind}_{next(numbers)}"  # pyright: ignore[reportPrivateUsage]
    translation.response["id"] = "resp_0"
    return translation


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


def test_what_is_not_to_be_stored_is_not_kept() -> None:
    memory = Remembered({})
    body = {"model": "m", "input": "hi", "store": False}
    translate_responses(json.dumps(body).encode(), memory).whole(completion(content="x"))
    assert not memory.kept


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


def test_an_empty_answer_is_an_empty_message() -> None:
    response = json.loads(translated().whole(completion(content="")))
    assert response["output"][0]["content"][0]["text"] == ""


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


@pytest.mark.parametrize("body", [b"", b"[]", b'{"choices":[]}'])
def test_what_is_no_completion_is_the_nodes_fault(body: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        translated().whole(body)


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=5))
def test_however_the_events_arrive_the_same_is_told(cuts: list[int]) -> None:
    whole = steady(translated(stream=True, tools=[FUNCTION, CUSTOM])).feed(b"".join(STREAM))
    split = steady(translated(stream=True, tools=[FUNCTION, CUSTOM]))
    assert b"".join(map(split.feed, cut(STREAM, cuts))) == whole


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
