"""Requests of the Anthropic API as chat requests, and chat answers as messages. What comes out is
also read by the vendor's own types."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from cortex_core.envelopes.openai_chat import decode_chat_request
from cortex_core.errors import (
    CortexError,
    InvalidRequest,
    NoCapacity,
    ThreadUnsupported,
    UnsupportedParameter,
    UpstreamFailed,
    render_anthropic,
)
from cortex_core.translate.anthropic import AnthropicTranslation
from cortex_core.translate.anthropic_request import translate_messages
from cortex_core.wire import sse
from tests.unit.core.chat_answers import CLOSING, call, chunk, completion, cut

EVENTS = TypeAdapter(RawMessageStreamEvent)
TOOL = {
    "name": "add",
    "description": "adds",
    "input_schema": {"type": "object", "properties": {}},
    "cache_control": {"type": "ephemeral"},
}


def translated(**fields: Any) -> AnthropicTranslation:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]} | fields
    return translate_messages(json.dumps(body).encode())


def chat_of(**fields: Any) -> dict[str, Any]:
    """The chat request, which is one that the chat route takes."""
    chat = translated(**fields).chat
    decode_chat_request(chat)
    return json.loads(chat)


def messages_of(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return chat_of(messages=list(messages))["messages"]


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value, "cache_control": {"type": "ephemeral"}}


# the request


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
        {"role": "system", "content": "note"},
        {"role": "user", "content": [text("")]},
    ) == [
        {"role": "user", "content": ""},
        {"role": "user", "content": ""},
        {"role": "system", "content": "note"},
        {"role": "user", "content": ""},
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
        asked(type="tool_result", tool_use_id="t", content=[{"type": "image"}]),
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


# the answer


STREAM = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "h"}),
    chunk({"reasoning_content": "m"}),
    chunk({"content": "né"}),
    chunk({"content": "e\n"}),
    chunk(call(0, "add", "")),
    chunk(call(0, None, '{"a"')),
    chunk(call(0, None, ":1}")),
    chunk(call(1, "add", "")),
    chunk({}, "tool_calls"),
    CLOSING,
]
CALLS = [
    {"id": "call_0", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}},
    {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": ""}},
]


def events_of(data: bytes) -> list[dict[str, Any]]:
    """Each is told by its own name and fits the vendor's type."""
    found = []
    for event in sse.Parser().feed(data):
        value = json.loads(event.data)
        assert event.event == value["type"]
        if value["type"] not in ("ping", "error"):
            EVENTS.validate_python(value)
        found.append(value)
    return found


def gathered(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream's events add up to."""
    message: dict[str, Any] = {}
    partial = ""
    for event in events:
        kind = event["type"]
        if kind == "message_start":
            message = event["message"]
        elif kind == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
            partial = ""
        elif kind == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            partial += delta.get("partial_json", "")
            for name in ("text", "thinking", "signature"):
                block |= {name: block[name] + delta[name]} if name in delta else {}
        elif kind == "content_block_stop" and partial:
            message["content"][event["index"]]["input"] = json.loads(partial)
        elif kind == "message_delta":
            message |= event["delta"] | {"usage": event["usage"]}
    return message


def steady(translation: AnthropicTranslation) -> AnthropicTranslation:
    """With an id that can be foretold."""
    translation._id = "msg_0"  # pyright: ignore[reportPrivateUsage]
    return translation


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


def test_an_empty_answer_has_an_empty_text() -> None:
    assert json.loads(translated().whole(completion(content="")))["content"] == [
        {"type": "text", "text": ""}
    ]


def test_a_call_that_was_cut_in_two_is_none() -> None:
    half = [CALLS[0], {"id": "c", "function": {"name": "add", "arguments": '{"a'}}]
    whole = json.loads(translated().whole(completion("length", tool_calls=half)))
    assert [block["id"] for block in whole["content"]] == ["call_0"]
    with pytest.raises(UpstreamFailed):
        translated().whole(completion("tool_calls", tool_calls=half))


def test_errors_are_told_in_this_dialect() -> None:
    translation = translated(stream=True)
    error = json.loads(translation.error_body(NoCapacity("full")))
    details = {"error_code": "no_capacity"}
    told = {"type": "overloaded_error", "message": "full", "details": details}
    assert error == {"type": "error", "error": told}
    data = translation.feed(STREAM[3]) + translation.error_event(UpstreamFailed("it fell over"))
    assert events_of(data)[-1]["error"]["type"] == "api_error"


def test_a_thread_is_refused_in_the_word_upon_which_clients_go_on_without() -> None:
    with pytest.raises(ThreadUnsupported) as refused:
        translated(thread={"type": "create"})
    assert refused.value.param == "thread"
    details = render_anthropic(refused.value)["error"]["details"]
    assert details == {"error_code": "thread_unsupported_request"}


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
