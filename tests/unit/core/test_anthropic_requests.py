"""Requests of the Anthropic API as chat requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cortex_core.envelopes.openai_chat import decode_chat_request
from cortex_core.errors import (
    CortexError,
    InvalidJson,
    InvalidRequest,
    ThreadUnsupported,
    UnsupportedParameter,
    render_anthropic,
)
from cortex_core.translate.anthropic_request import translate_messages
from tests.unit.core.anthropic_play import (
    TOOL,
    chat_of,
    messages_of,
    text,
    translated,
    user,
)


def test_a_plain_request_is_a_plain_chat_without_thinking() -> None:
    assert chat_of() == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_completion_tokens": 9,
        "enable_thinking": False,
    }


def test_parameters_have_their_chat_names() -> None:
    chat = chat_of(
        stop_sequences=["END"],
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        stream=True,
        thinking={"type": "enabled", "budget_tokens": 4},
        output_config={"effort": "low"},
    )
    del chat["messages"]
    assert chat == {
        "model": "m",
        "max_completion_tokens": 9,
        "stop": ["END"],
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "stream": True,
        "stream_options": {"include_usage": True},
        "enable_thinking": True,
        "max_thinking_tokens": 4,
        "reasoning_effort": "low",
    }


@pytest.mark.parametrize("kind", ["adaptive", "between_tools"])
def test_thinking_without_a_budget_has_no_limit(kind: str) -> None:
    chat = chat_of(thinking={"type": kind})
    assert chat["enable_thinking"]
    assert "max_thinking_tokens" not in chat


@pytest.mark.parametrize("system", ["be brief", [text("be brief")]])
def test_a_system_prompt_is_a_string_or_blocks(system: Any) -> None:
    assert chat_of(system=system)["messages"][0] == {"role": "system", "content": "be brief"}


BILLING = "x-anthropic-billing-header: cc_version=2.1.37.0d9; cc_entrypoint=cli; cch=fa690;"


@pytest.mark.parametrize(
    "system", [[text(BILLING), text("You are an agent.")], BILLING + "\nYou are an agent."]
)
def test_a_line_of_attribution_is_no_part_of_the_prompt(system: Any) -> None:
    assert chat_of(system=system)["messages"][0]["content"] == "You are an agent."


def test_a_line_of_attribution_stays_where_that_is_wanted() -> None:
    body = {"model": "m", "max_tokens": 1, "messages": [user(text("x"))], "system": BILLING}
    translation = translate_messages(json.dumps(body).encode(), keeps_attribution=True)
    assert json.loads(translation.chat)["messages"][0]["content"] == BILLING


def test_attribution_that_a_user_quotes_is_content() -> None:
    quoted = user(text(BILLING))
    assert messages_of(quoted) == [{"role": "user", "content": BILLING}]


def test_a_conversation_with_tools_is_turn_by_turn_the_same() -> None:
    assert messages_of(
        {"role": "user", "content": "2+3?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "cortex1:"},
                {"type": "redacted_thinking", "data": "zzz"},
                text("let me "),
                text("add"),
                {"type": "tool_use", "id": "t1", "name": "add", "input": {"a": 2}},
                {"type": "tool_use", "id": "t2", "name": "add", "input": {}},
            ],
        },
        user(
            {"type": "tool_result", "tool_use_id": "t1", "content": "5"},
            {
                "type": "tool_result",
                "tool_use_id": "t2",
                "content": [text("no"), text("way")],
                "is_error": True,
            },
            text("go on"),
            {"type": "tool_result", "tool_use_id": "t3"},
        ),
    ) == [
        {"role": "user", "content": "2+3?"},
        {
            "role": "assistant",
            "reasoning_content": "hm",
            "content": "let me add",
            "tool_calls": [
                {
                    "id": "t1",
                    "type": "function",
                    "function": {"name": "add", "arguments": '{"a":2}'},
                },
                {"id": "t2", "type": "function", "function": {"name": "add", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "5"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no\nway"},
        {"role": "user", "content": "go on"},
        {"role": "tool", "tool_call_id": "t3", "content": ""},
    ]


def test_text_comes_in_documents_and_search_results_too() -> None:
    plain = {"type": "text", "media_type": "text/plain", "data": "d"}
    nested = {"type": "content", "content": [text("n")]}
    found = {"type": "search_result", "title": "t", "source": "s", "content": [text("c")]}
    assert messages_of(
        user(
            {"type": "document", "source": plain, "title": "T", "context": "C"},
            {"type": "document", "source": nested},
            found,
        )
    ) == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "T\n\nC\n\nd"},
                {"type": "text", "text": "n"},
                {"type": "text", "text": "t\ns\nc"},
            ],
        }
    ]


def test_what_agents_send_by_carelessness_is_taken() -> None:
    assert messages_of(
        {"role": "user", "content": None},
        {"role": "assistant", "content": []},
        {"role": "user", "content": []},
        {"role": "user", "content": [text("")]},
    ) == [
        {"role": "user", "content": ""},
        {"role": "user", "content": ""},
        {"role": "user", "content": ""},
    ]


def test_what_the_system_says_later_is_a_reminder_where_it_was_said() -> None:
    told = [{"role": "system", "content": word} for word in ("one", "two")]
    assert messages_of(*told, user(text("x")), *told) == [
        {"role": "system", "content": "one"},
        {"role": "system", "content": "two"},
        {"role": "user", "content": "x"},
        {"role": "user", "content": "<system-reminder>\none\n</system-reminder>"},
        {"role": "user", "content": "<system-reminder>\ntwo\n</system-reminder>"},
    ]


def test_the_assistants_last_words_are_gone_on_from() -> None:
    chat = chat_of(messages=[user(text("x")), {"role": "assistant", "content": "The answer"}])
    assert chat["continue_final_message"]
    assert "continue_final_message" not in chat_of()


def test_tools_and_their_choice() -> None:
    choice = {"type": "tool", "name": "add", "disable_parallel_tool_use": True}
    chat = chat_of(tools=[TOOL], tool_choice=choice)
    function = {"name": "add", "parameters": TOOL["input_schema"], "description": "adds"}
    assert chat["tools"] == [{"type": "function", "function": function}]
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "add"}}
    assert chat["parallel_tool_calls"] is False


@pytest.mark.parametrize(
    ("kind", "chosen"), [("auto", "auto"), ("any", "required"), ("none", "none")]
)
def test_choices_have_their_chat_names(kind: str, chosen: str) -> None:
    assert chat_of(tools=[TOOL], tool_choice={"type": kind})["tool_choice"] == chosen


@pytest.mark.parametrize("field", ["output_config", "output_format"])
def test_a_format_is_a_response_format(field: str) -> None:
    form: Any = {"type": "json_schema", "schema": {"type": "object"}}
    given = {"format": form} if field == "output_config" else form
    wanted = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    chat = chat_of(**{field: given})
    assert chat["response_format"] == {"type": "json_schema", "json_schema": wanted}


def test_what_has_no_effect_is_listed() -> None:
    translation = translated(
        metadata={"user_id": "u"},
        service_tier="auto",
        cache_control={"type": "ephemeral"},
        context_management={"edits": []},
        output_config={"effort": "low"},
    )
    assert set(translation.ignored) == {
        "metadata", "service_tier", "cache_control", "context_management", "output_config.effort",
    }  # fmt: skip


def test_no_servers_of_tools_are_none() -> None:
    assert chat_of(mcp_servers=[]) == chat_of()


def test_a_count_needs_no_limit_and_is_no_stream() -> None:
    body = {"model": "m", "messages": [user(text("x"))]}
    translation = translate_messages(json.dumps(body).encode(), is_count=True)
    assert not translation.is_stream
    decode_chat_request(translation.chat)


OF_ANSWERS: dict[str, Any] = {
    "max_tokens": 9,
    "stop_sequences": ["END"],
    "stream": True,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.9,
    "thinking": {"type": "enabled", "budget_tokens": 4, "display": "omitted"},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
}


def test_of_a_count_only_that_is_asked_which_its_prompt_is_made_of() -> None:
    body = {"model": "m", "messages": [user(text("x"))], "tools": [TOOL]}
    plain = json.dumps(body | {"thinking": {"type": "adaptive"}, "tool_choice": {"type": "auto"}})
    translation = translate_messages(json.dumps(body | OF_ANSWERS).encode(), is_count=True)
    chat = json.loads(translate_messages(plain.encode(), is_count=True).chat)
    assert json.loads(translation.chat) == chat | {"reasoning_effort": "low"}
    assert not translation.is_stream
    assert set(translation.ignored) == {
        "max_tokens", "stop_sequences", "stream", "temperature", "top_k", "top_p",
        "thinking.budget_tokens", "thinking.display", "output_config.format",
        "tool_choice.disable_parallel_tool_use",
    }  # fmt: skip


@pytest.mark.parametrize("is_count", [False, True])
def test_a_choice_with_nothing_to_choose_from_has_no_effect(is_count: bool) -> None:
    body = {"model": "m", "max_tokens": 1, "messages": [user(text("x"))]}
    choice = {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}
    with_choice = translate_messages(json.dumps(body | choice).encode(), is_count=is_count)
    without = translate_messages(json.dumps(body).encode(), is_count=is_count)
    assert with_choice.chat == without.chat
    assert set(with_choice.ignored) - set(without.ignored) == {"tool_choice"}


def test_where_nothing_may_be_called_nothing_is_parallel() -> None:
    choice = {"type": "none", "disable_parallel_tool_use": True}
    translation = translated(tools=[TOOL], tool_choice=choice)
    assert translation.ignored == ("tool_choice.disable_parallel_tool_use",)
    assert "parallel_tool_calls" not in json.loads(translation.chat)


def test_what_else_a_tool_holds_is_listed_and_what_is_no_word_is_not_repeated() -> None:
    odd = TOOL | {"defer_loading": True, "input_examples": None, "a\r\nb": 1, "ü": 2}
    translation = translated(tools=[TOOL, odd, TOOL | {"defer_loading": False}])
    assert translation.ignored == ("tools", "tools.defer_loading")


@pytest.mark.parametrize(
    ("block", "is_listed"),
    [
        ({"citations": {"enabled": True}}, True),
        ({"citations": {"enabled": False}}, False),
        ({"citations": None}, False),
        ({}, False),
    ],
)
def test_citations_that_are_wanted_are_listed(block: dict[str, Any], is_listed: bool) -> None:
    document = {"type": "document", "source": {"type": "text", "data": "d"}} | block
    result = {"type": "tool_result", "tool_use_id": "t", "content": [document]}
    for turn in (user(text("x"), document), user(result)):
        assert ("messages.citations" in translated(messages=[turn]).ignored) is is_listed


def test_of_what_a_tool_returned_and_cannot_be_shown_the_model_is_told() -> None:
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf"}}
    parts = [text("here"), {"type": "image", "source": {"type": "base64"}}, pdf]
    result = {"type": "tool_result", "tool_use_id": "t", "content": parts}
    translation = translated(messages=[user(result)])
    (message,) = json.loads(translation.chat)["messages"]
    assert message["content"].split("\n") == [
        "here",
        "[The tool returned an image, which you cannot see: you read only text.]",
        "[The tool returned a document, which you cannot see: you read only text.]",
    ]
    assert translation.ignored == ("messages.tool_result.document", "messages.tool_result.image")


def test_what_is_beside_a_result_is_from_the_tool_too() -> None:
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "read"}
    translation = translated(messages=[user(result, pdf)])
    assert json.loads(translation.chat)["messages"] == [
        {"role": "tool", "tool_call_id": "t", "content": "read"},
        {
            "role": "user",
            "content": "[The tool returned a document, which you cannot see: you read only text.]",
        },
    ]
    assert translation.ignored == ("messages.tool_result.document",)


def test_tools_that_a_search_found_are_named_to_the_model() -> None:
    found = [{"type": "tool_reference", "tool_name": name} for name in ("Fetch", "Grep")]
    result = {"type": "tool_result", "tool_use_id": "t", "content": found}
    (message,) = messages_of(user(result))
    assert message["content"] == "Found the tool Fetch\nFound the tool Grep"


def asked(**block: Any) -> dict[str, Any]:
    return {"messages": [user(block)]}


def said(**block: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "content": [block]}]}


REFUSED: list[tuple[dict[str, Any], type[CortexError], str]] = [
    ({"model": ""}, InvalidRequest, "model"),
    ({"messages": []}, InvalidRequest, "messages"),
    ({"messages": [{"role": "assistant", "content": ""}]}, InvalidRequest, "messages"),
    ({"max_tokens": None}, InvalidRequest, "max_tokens"),
    ({"max_tokens": 0}, InvalidRequest, "max_tokens"),
    ({"max_tokens": 2**31}, InvalidRequest, "max_tokens"),
    ({"mcp_servers": [{}]}, UnsupportedParameter, "mcp_servers"),
    ({"container": "c"}, UnsupportedParameter, "container"),
    ({"thinking": {"type": "enabled"}}, InvalidRequest, "thinking.budget_tokens"),
    (
        {"thinking": {"type": "enabled", "budget_tokens": 0}},
        InvalidRequest,
        "thinking.budget_tokens",
    ),
    (
        {"thinking": {"type": "adaptive", "budget_tokens": 1}},
        InvalidRequest,
        "thinking.budget_tokens",
    ),
    ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, UnsupportedParameter, "tools[0]"),
    ({"tools": [{"input_schema": {}}]}, InvalidRequest, "tools[0].name"),
    ({"tools": [{"name": "n"}]}, InvalidRequest, "tools[0].input_schema"),
    ({"tool_choice": {"type": "maybe"}}, InvalidRequest, "tool_choice.type"),
    ({"tool_choice": {"type": "tool"}}, InvalidRequest, "tool_choice.name"),
    ({"tool_choice": {"type": "auto", "name": "add"}}, InvalidRequest, "tool_choice.name"),
    ({"messages": [{"role": "robot", "content": ""}]}, InvalidRequest, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 3}]}, InvalidRequest, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [3]}]}, InvalidRequest, "messages[0].content[0]"),
    (asked(type="image"), UnsupportedParameter, "messages[0].content[0]"),
    (asked(type="text"), InvalidRequest, "messages[0].content[0].text"),
    (asked(type="text", text=3), InvalidRequest, "messages[0].content[0].text"),
    (asked(type="document"), InvalidRequest, "messages[0].content[0].source"),
    (
        asked(type="document", source={"type": "base64"}),
        UnsupportedParameter,
        "messages[0].content[0].source",
    ),
    (
        asked(type="tool_result", tool_use_id="t", content=[{"type": "video"}]),
        UnsupportedParameter,
        "messages[0].content[0].content[0]",
    ),
    (asked(type="tool_result"), InvalidRequest, "messages[0].content[0].tool_use_id"),
    (said(type="server_tool_use"), UnsupportedParameter, "messages[0].content[0]"),
    (
        said(type="tool_use", id="t", name="n", input=3),
        InvalidRequest,
        "messages[0].content[0].input",
    ),
    (said(type="tool_use", id="t", name="n", input={}), InvalidRequest, "messages"),
    ({"system": [{"type": "image"}]}, UnsupportedParameter, "system[0]"),
]


@pytest.mark.parametrize(("fields", "kind", "param"), REFUSED)
def test_what_cannot_be_done_is_refused_by_name(
    fields: dict[str, Any], kind: type[CortexError], param: str
) -> None:
    with pytest.raises(kind) as caught:
        translated(**fields)
    assert caught.value.param == param


def test_a_thread_is_refused_in_the_word_upon_which_clients_go_on_without() -> None:
    with pytest.raises(ThreadUnsupported) as refused:
        translated(thread={"type": "create"})
    assert refused.value.param == "thread"
    details = render_anthropic(refused.value)["error"]["details"]
    assert details == {"error_code": "thread_unsupported_request"}


def test_text_that_is_nested_too_deeply_is_refused() -> None:
    block = text("x")
    for _ in range(400):
        block = {"type": "search_result", "title": "t", "source": "s", "content": [block]}
    with pytest.raises(InvalidJson, match="nested too deeply"):
        translated(messages=[user(block)])
