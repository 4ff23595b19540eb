"""A Responses request as a chat request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import Response

from cortex_core.envelopes.sampling import is_in_range
from cortex_core.errors import (
    CortexError,
    InvalidJson,
    InvalidRequest,
    NotFound,
    UnsupportedParameter,
)
from cortex_core.translate.responses_request import translate_responses
from tests.unit.core.chat_answers import CLOSING, chunk, completion
from tests.unit.core.responses_play import (
    CUSTOM,
    FUNCTION,
    Remembered,
    chat_of,
    messages_of,
    translated,
)

CRM = {
    "type": "namespace",
    "name": "crm",
    "description": "customers",
    "tools": [FUNCTION, CUSTOM],
}
MCP = CRM | {"name": "mcp__files__", "tools": [FUNCTION]}


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


def test_of_what_a_tool_returned_and_cannot_be_shown_the_model_is_told() -> None:
    image = {"type": "input_image", "image_url": "data:,"}
    output = {"type": "function_call_output", "call_id": "c", "output": [image]}
    translation = translated(input=[output])
    (message,) = json.loads(translation.chat)["messages"]
    assert message["content"] == (
        "[The tool returned an image, which you cannot see: you read only text.]"
    )
    assert translation.ignored == ("input.output.input_image",)


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


def test_tools_in_a_namespace_go_by_both_names_and_are_called_by_their_own() -> None:
    tools = [FUNCTION, CRM, MCP]
    translation = translated(
        tools=tools, tool_choice={"type": "custom", "namespace": "crm", "name": "shell"}
    )
    assert translation.ignored == ("tools.namespace.description",)
    chat = json.loads(translation.chat)
    names = ["add", "crm__add", "crm__shell", "mcp__files__add"]
    assert [tool["function"]["name"] for tool in chat["tools"]] == names
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "crm__shell"}}

    calls = [
        {"id": f"c{index}", "type": "function", "function": {"name": name, "arguments": "{}"}}
        for index, name in enumerate(names)
    ]
    answer = json.loads(translated(tools=tools).whole(completion(tool_calls=calls)))
    Response.model_validate(answer)
    assert [(item["type"], item.get("namespace"), item["name"]) for item in answer["output"]] == [
        ("function_call", None, "add"),
        ("function_call", "crm", "add"),
        ("custom_tool_call", "crm", "shell"),
        ("function_call", "mcp__files__", "add"),
    ]
    (turn,) = messages_of(*answer["output"], tools=tools)
    assert [call["function"]["name"] for call in turn["tool_calls"]] == names


def test_a_faulty_tool_is_told_by_its_place_in_the_request() -> None:
    translation = translated(tools=[{"type": "web_search"}, CRM, FUNCTION])
    assert translation.names.of("tools[1].function.parameters") == "tools[1].tools[1].parameters"
    assert translation.names.of("tools[2].function.parameters") == "tools[2].parameters"


def test_a_tool_that_nobody_here_could_run_is_left_out_beside_others_and_listed() -> None:
    hosted = [
        {"type": "web_search", "external_web_access": False},
        {"type": "image_generation", "output_format": "png"},
        {"type": "tool_search", "execution": "client"},
        {"type": "web_search_preview_2025_03_11"},
    ]
    translation = translated(tools=[*hosted, FUNCTION], client_metadata={"a": "b"})
    (tool,) = json.loads(translation.chat)["tools"]
    assert tool["function"]["name"] == "add"
    assert translation.ignored == (
        "client_metadata",
        "tools.image_generation",
        "tools.tool_search",
        "tools.web_search",
        "tools.web_search_preview_2025_03_11",
    )


def test_a_grammar_of_free_text_is_told_to_the_model_and_listed_as_not_enforced() -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": 'start: "ls"'}
    translation = translated(tools=[CUSTOM | {"format": form}])
    (tool,) = json.loads(translation.chat)["tools"]
    assert tool["function"]["description"] == (
        'runs\n\nThe input has to follow this grammar (lark):\nstart: "ls"'
    )
    assert translation.ignored == ("tools.format",)


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
        text={"verbosity": "low", "format": {"type": "json_object", "description": "d"}},
        top_logprobs=3,
        parallel_tool_calls=True,
        tool_choice="auto",
    )
    assert set(translation.ignored) == {
        "user", "service_tier", "include.web_search_call.results", "text.verbosity", "top_logprobs",
        "text.format.description", "parallel_tool_calls", "tool_choice",
    }  # fmt: skip


def test_with_tools_how_they_are_called_has_an_effect() -> None:
    choice = {"parallel_tool_calls": False, "tool_choice": "required"}
    odd = FUNCTION | {"defer_loading": True, "output_schema": None}
    translation = translated(tools=[odd, CUSTOM | {"format": {"type": "text"}}], **choice)
    assert translation.ignored == ("tools.defer_loading",)
    assert choice.items() <= json.loads(translation.chat).items()
    assert translation.response["tool_choice"] == "required"
    assert translated().response["tool_choice"] == "auto"


REFUSED: list[tuple[dict[str, Any], type[CortexError], str]] = [
    ({"model": ""}, InvalidRequest, "model"),
    ({"input": []}, InvalidRequest, "input"),
    ({"input": [{"type": "reasoning", "summary": []}]}, InvalidRequest, "input"),
    ({"max_output_tokens": 0}, InvalidRequest, "max_output_tokens"),
    ({"background": True}, UnsupportedParameter, "background"),
    ({"truncation": "auto"}, UnsupportedParameter, "truncation"),
    ({"conversation": "c"}, UnsupportedParameter, "conversation"),
    ({"include": ["no.such"]}, UnsupportedParameter, "include"),
    ({"tools": [{"type": "web_search"}]}, UnsupportedParameter, "tools[0]"),
    ({"tools": [{"type": "function"}]}, InvalidRequest, "tools[0].name"),
    ({"tools": [{"type": "web_search"}, {"type": "mcp"}]}, UnsupportedParameter, "tools[1]"),
    ({"tools": [{"type": "web_search"}] * 2}, UnsupportedParameter, "tools[0]"),
    ({"tools": [CUSTOM | {"format": {"type": "x"}}]}, UnsupportedParameter, "tools[0].format"),
    (
        {"tools": [CUSTOM | {"format": {"type": "grammar", "syntax": "lark"}}]},
        InvalidRequest,
        "tools[0].format.definition",
    ),
    ({"tools": [{"type": "namespace", "tools": []}]}, InvalidRequest, "tools[0].name"),
    ({"tools": [CRM | {"tools": "all"}]}, InvalidRequest, "tools[0].tools"),
    ({"tools": [CRM | {"tools": [CRM]}]}, UnsupportedParameter, "tools[0].tools[0]"),
    ({"tools": [CRM, FUNCTION | {"name": "crm__add"}]}, InvalidRequest, "tools[1].name"),
    (
        {"tools": [FUNCTION, {"type": "web_search"}], "tool_choice": {"type": "web_search"}},
        UnsupportedParameter,
        "tool_choice",
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
    ({"input": [{"type": []}]}, UnsupportedParameter, "input[0]"),
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


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [FUNCTION | {"parameters": "DEEP"}]},
        {"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "add", "x": "DEEP"}},
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": "DEEP"}}},
    ],
)
def test_what_is_nested_too_deeply_to_be_told_is_refused_before_it_is_asked(
    more: dict[str, Any],
) -> None:
    body = json.dumps({"model": "m", "input": "x", "stream": True} | more)
    depths = range(700, 1000)
    refused = 0
    for depth in depths:
        deep = '{"a":' * depth + "1" + "}" * depth
        try:
            translation = translate_responses(body.replace('"DEEP"', deep).encode())
        except InvalidJson:
            refused += 1
        else:
            translation.feed(chunk({"content": "x"}, "stop") + CLOSING)
    assert 0 < refused < len(depths)
