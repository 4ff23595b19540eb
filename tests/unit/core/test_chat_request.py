"""A chat request is honoured, refused by name, or listed as without effect; never half-read."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core.envelopes.openai_chat import (
    IGNORED_PARAMETERS,
    decode_chat_request,
    without_effect_on_prompt,
)
from cortex_core.errors import (
    CortexError,
    InvalidJson,
    InvalidRequest,
    RequestError,
    UnsupportedParameter,
)

MESSAGES = [{"role": "user", "content": "hi"}]


def _body(**parameters: Any) -> bytes:
    return msgspec.json.encode({"model": "m", "messages": MESSAGES, **parameters})


def test_parameters_without_effect_are_listed_and_nulls_are_absent():
    request, ignored = decode_chat_request(_body(user="me", store=True, seed=None, stop=None))
    assert ignored == ["store", "user"]
    assert request.seed is None


def test_every_ignored_parameter_is_accepted():
    _, ignored = decode_chat_request(_body(**dict.fromkeys(IGNORED_PARAMETERS, "x")))
    assert set(ignored) == IGNORED_PARAMETERS


def test_what_no_prompt_is_made_of_is_told_apart():
    tool = {"type": "function", "function": {"name": "f"}}
    of_answers = {"temperature": 0.5, "n": 2, "stop": ["x"], "max_completion_tokens": 3}
    of_prompts = {"enable_thinking": False, "chat_template_kwargs": {"a": 1}, "tool_choice": "none"}
    request, _ = decode_chat_request(_body(tools=[tool], **of_answers, **of_prompts))
    assert set(without_effect_on_prompt(request)) == set(of_answers)
    request, _ = decode_chat_request(_body(n=1, tool_choice="none"))
    assert without_effect_on_prompt(request) == ["tool_choice"]


def test_extras_of_a_message_are_kept_for_the_template():
    message = {"role": "assistant", "content": None, "made_up": [1], "tool_calls": None}
    request, _ = decode_chat_request(_body(messages=[*MESSAGES, message]))
    assert request.messages[1]["made_up"] == [1]


def test_the_newer_token_limit_wins():
    request, _ = decode_chat_request(_body(max_tokens=5, max_completion_tokens=7))
    assert request.token_limit == 7


def test_stop_is_a_string_or_a_list():
    assert decode_chat_request(_body(stop="a"))[0].stop_strings == ("a",)
    assert decode_chat_request(_body(stop=["a", "", "b"]))[0].stop_strings == ("a", "b")


TOOL = {"type": "function", "function": {"name": "f"}}
NAMED = {"type": "function", "function": {"name": "g"}}

FAULTS: list[tuple[dict[str, Any], type[CortexError], str]] = [
    ({"model": 1}, InvalidRequest, "model"),
    ({"model": ""}, InvalidRequest, "model"),
    ({"messages": []}, InvalidRequest, "messages"),
    ({"messages": "hi"}, InvalidRequest, "messages"),
    ({"messages": ["hi"]}, InvalidRequest, "messages[0]"),
    ({"messages": [{"content": "x"}]}, InvalidRequest, "messages[0]"),
    ({"messages": [{"role": "bob", "content": "x"}]}, InvalidRequest, "messages[0].role"),
    ({"messages": [{"role": "user", "content": 3}]}, InvalidRequest, "messages[0].content"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        UnsupportedParameter,
        "messages[0].content[0]",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        InvalidRequest,
        "messages[0].content[0].text",
    ),
    ({"temperature": "hot"}, InvalidRequest, "temperature"),
    ({"temperature": -1}, InvalidRequest, "temperature"),
    ({"top_p": 1.5}, InvalidRequest, "top_p"),
    ({"max_tokens": 0}, InvalidRequest, "max_tokens"),
    ({"seed": 1.5}, InvalidRequest, "seed"),
    ({"stream": "yes"}, InvalidRequest, "stream"),
    ({"stream_options": {"usage": True}}, InvalidRequest, "stream_options"),
    ({"stop": [1]}, InvalidRequest, "stop[0]"),
    ({"tools": [{"type": "function"}]}, InvalidRequest, "tools[0]"),
    ({"tools": [{"type": "web_search"}]}, InvalidRequest, "tools[0].type"),
    ({"temprature": 1}, UnsupportedParameter, "temprature"),
    ({"n": 0}, InvalidRequest, "n"),
    ({"n": 129}, InvalidRequest, "n"),
    ({"logprobs": 3}, InvalidRequest, "logprobs"),
    ({"top_logprobs": 2}, InvalidRequest, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, InvalidRequest, "top_logprobs"),
    ({"response_format": {"type": "xml"}}, InvalidRequest, "response_format.type"),
    ({"tool_choice": "required"}, InvalidRequest, "tool_choice"),
    ({"tool_choice": "f", "tools": [TOOL]}, InvalidRequest, "tool_choice"),
    ({"tool_choice": NAMED, "tools": []}, InvalidRequest, "tool_choice"),
    ({"tool_choice": NAMED, "tools": [TOOL]}, InvalidRequest, "tool_choice"),
    ({"tool_choice": NAMED | {"type": "custom"}}, InvalidRequest, "tool_choice.type"),
    ({"tools": [TOOL], "parallel_tool_calls": 0}, InvalidRequest, "parallel_tool_calls"),
    ({"max_thinking_tokens": -1}, InvalidRequest, "max_thinking_tokens"),
    ({"max_thinking_tokens": "few"}, InvalidRequest, "max_thinking_tokens"),
    ({"enable_thinking": "yes"}, InvalidRequest, "enable_thinking"),
    (
        {"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}},
        InvalidRequest,
        "enable_thinking",
    ),
    (
        {"add_generation_prompt": False, "chat_template_kwargs": {"add_generation_prompt": True}},
        InvalidRequest,
        "add_generation_prompt",
    ),
    (
        {"chat_template_kwargs": {"continue_final_message": True}},
        InvalidRequest,
        "chat_template_kwargs.continue_final_message",
    ),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}]},
        InvalidRequest,
        "tools[0].function.parameters",
    ),
]


@pytest.mark.parametrize(("change", "kind", "param"), FAULTS, ids=lambda x: str(x)[:60])
def test_a_fault_is_typed_and_names_its_parameter(
    change: dict[str, Any], kind: type[CortexError], param: str
):
    with pytest.raises(kind) as caught:
        decode_chat_request(_body(**change))
    assert caught.value.param == param
    assert param in caught.value.message


ASSISTANT = {"role": "assistant", "content": "So "}
CALLING = ASSISTANT | {"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}
JSON_OBJECT = {"type": "json_object"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "role 'user'"),
        ({"messages": [*MESSAGES, CALLING]}, "tool calls"),
        ({"messages": [*MESSAGES, ASSISTANT], "add_generation_prompt": True}, "add_generation"),
        (
            {
                "messages": [*MESSAGES, ASSISTANT],
                "chat_template_kwargs": {"add_generation_prompt": True},
            },
            "add_generation_prompt",
        ),
        ({"messages": [*MESSAGES, ASSISTANT], "response_format": JSON_OBJECT}, "response_format"),
    ],
)
def test_what_cannot_be_continued_is_refused_with_the_reason(change: dict[str, Any], said: str):
    with pytest.raises(InvalidRequest, match=said) as caught:
        decode_chat_request(_body(continue_final_message=True, **change))
    assert caught.value.param == "continue_final_message"


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"add_generation_prompt": False},
        {"response_format": {"type": "text"}},
        {"regex": "[a-z]+"},
        {"messages": [*MESSAGES, ASSISTANT | {"tool_calls": []}]},
    ],
)
def test_an_assistants_message_can_be_continued(change: dict[str, Any]):
    body = _body(**({"messages": [*MESSAGES, ASSISTANT]} | change), continue_final_message=True)
    assert decode_chat_request(body)[0].continue_final_message


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        ({}, {}),
        ({"reasoning_effort": "none"}, {"enable_thinking": False}),
        ({"reasoning_effort": "low"}, {"enable_thinking": True, "reasoning_effort": "low"}),
        ({"enable_thinking": False}, {"enable_thinking": False}),
        ({"enable_thinking": False, "reasoning_effort": "low"},
         {"enable_thinking": False, "reasoning_effort": "low"}),
        ({"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
         {"enable_thinking": False, "reasoning_effort": "low"}),
        ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": True, "x": 1}},
         {"enable_thinking": True, "x": 1}),
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
    ],
)  # fmt: skip
def test_what_a_template_is_told(wishes: dict[str, Any], told: dict[str, Any]):
    assert decode_chat_request(_body(**wishes))[0].template_kwargs == told


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_a_missing_parameter_is_named(missing: str):
    values = {"model": "m", "messages": MESSAGES}
    del values[missing]
    with pytest.raises(InvalidRequest) as caught:
        decode_chat_request(msgspec.json.encode(values))
    assert caught.value.param == missing


@pytest.mark.parametrize("body", [b"", b"{", b"{'a': 1}", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_invalid_json(body: bytes):
    with pytest.raises(InvalidJson):
        decode_chat_request(body)


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"x"', b"true"])
def test_what_is_no_object_is_an_invalid_request(body: bytes):
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        decode_chat_request(body)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        "model", "messages", "stream", "stream_options", "stop", "tools", "seed", "tool_choice",
        "n", "chat_template_kwargs", "continue_final_message", "add_generation_prompt",
        "enable_thinking", "max_thinking_tokens", "response_format", "logit_bias",
    ]
)  # fmt: skip


@given(st.dictionaries(FIELDS, JSON))
def test_any_json_is_accepted_or_refused_with_a_type(values: dict[str, Any]):
    body = msgspec.json.encode({"model": "m", "messages": MESSAGES} | values)
    with contextlib.suppress(RequestError):
        decode_chat_request(body)
