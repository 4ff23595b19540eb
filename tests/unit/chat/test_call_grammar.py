"""What a request for tools asks of the worker, by the format the template teaches."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cortex_core.envelopes.openai_chat import ChatRequest, decode_chat_request
from cortex_core.errors import UnsupportedParameter
from cortex_core.wire.sampling import Calls, Constraint, Grammar
from neuron.chat.call_grammar import constraint_for, is_strict_ignored
from neuron.chat.pieces import CallArguments, CallStarted
from neuron.chat.tool_calls import parser_for

HERMES = "{{ tools }} <tool_call> {{ arguments }} </tool_call>"
BARE = '{{ tools }} {"name": function name, "parameters": dictionary}'
BRACKETS = "{{ tools }} [TOOL_CALLS] name [ARGS]"
LISTED = "{{ tools }} [TOOL_CALLS][ ... ]"
KEYED = "{{ tools }} <tool_call><function=x><parameter=y></tool_call>"
ADDRESSED = "{{ tools }} <|start|>assistant to=functions.x<|channel|>commentary<|message|>"
NONE = "{{ messages }}"


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name} | more}


def request(**more: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | more
    return decode_chat_request(json.dumps(body).encode())[0]


def calls(template: str = HERMES, **more: Any) -> Calls:
    constraint = constraint_for(request(**more), template)
    assert isinstance(constraint, Calls)
    return constraint


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


TOOLS = [tool("add", parameters={"properties": {"a": {"type": "integer"}}}), tool("sub")]


@pytest.mark.parametrize("more", [{}, {"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "auto"}])
def test_what_was_not_asked_for_is_free(more: dict[str, Any]) -> None:
    assert constraint_for(request(**more), HERMES) is None


def test_required_means_a_call_of_any_tool() -> None:
    made = calls(tools=TOOLS, tool_choice="required")
    assert made.is_required
    assert not made.is_single
    assert [form.param for form in made.forms] == [
        "tools[0].function.parameters",
        "tools[1].function.parameters",
    ]


def test_a_named_tool_is_the_only_one() -> None:
    (form,) = calls(tools=TOOLS, tool_choice=named("sub")).forms
    assert '"sub"' in form.before
    assert form.param == "tools[1].function.parameters"


def test_one_call_at_most_holds_whether_or_not_one_is_required() -> None:
    for choice, is_required in (("auto", False), ("required", True)):
        made = calls(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
        assert (made.is_single, made.is_required) == (True, is_required)


def test_a_strict_tool_among_others_is_enough() -> None:
    made = calls(tools=[tool("add", strict=True), tool("sub")])
    assert (made.is_required, made.is_single) == (False, False)
    strict, other = (json.loads(form.schema) for form in made.forms)
    assert "x-guidance" not in strict
    assert other["x-guidance"] == {"lenient": True}


def test_arguments_are_an_object_with_what_the_schema_lists() -> None:
    first, second = calls(tools=TOOLS, tool_choice="required").forms
    schema = json.loads(first.schema)
    assert schema["type"] == "object"
    assert schema["properties"] == {"a": {"type": "integer"}}
    assert schema["additionalProperties"] is False
    assert json.loads(second.schema)["properties"] == {}


@pytest.mark.parametrize(
    "more", [{"additionalProperties": True}, {"anyOf": [{"type": "object"}]}, {"$ref": "#/x"}]
)
def test_a_schema_that_says_more_is_left_as_it_is(more: dict[str, Any]) -> None:
    (form,) = calls(tools=[tool("f", parameters=more)], tool_choice="required").forms
    schema = json.loads(form.schema)
    assert schema.get("additionalProperties") is more.get("additionalProperties")


@pytest.mark.parametrize("template", [HERMES, BARE, BRACKETS, LISTED])
def test_a_call_in_its_form_is_one_to_the_parser(template: str) -> None:
    tools = [tool('né "x"' if '"name": ' in template else "get_x")]
    name = tools[0]["function"]["name"]
    made = calls(template, tools=tools, tool_choice="required")
    (form,) = made.forms
    arguments = '{"a": "</tool_call>"}'
    one = made.opens + form.before + arguments + form.after + made.closes
    for count in (1, 2):
        parser = parser_for(template, tools)
        assert parser is not None
        pieces = parser.feed(made.separator.join([one] * count)) + parser.finish()
        assert [p.name for p in pieces if isinstance(p, CallStarted)] == [name] * count
        given = "".join(p.fragment for p in pieces if isinstance(p, CallArguments))
        assert given == arguments * count


def test_an_addressed_call_in_its_form_is_one_to_the_parser() -> None:
    made = calls(ADDRESSED, tools=TOOLS, tool_choice="required")
    assert (made.is_addressed, made.is_required) == (True, True)
    for name, form in zip(("add", "sub"), made.forms, strict=True):
        parser = parser_for(ADDRESSED, TOOLS)
        assert parser is not None
        pieces, is_of_call = parser.mark(form.before)
        assert is_of_call
        pieces += parser.feed('{"a": 1}')
        assert [p.name for p in pieces if isinstance(p, CallStarted)] == [name]


@pytest.mark.parametrize("more", [{"parallel_tool_calls": False}, {"regex": "a"}])
def test_messages_may_be_addressed_to_a_function_or_not(more: dict[str, Any]) -> None:
    made = calls(ADDRESSED, tools=TOOLS, **more)
    assert (made.is_addressed, made.is_required) == (True, False)
    assert (made.content is not None) == ("regex" in more)


@pytest.mark.parametrize(
    ("template", "more", "param"),
    [
        (NONE, {"tool_choice": "required"}, "tool_choice"),
        (NONE, {"tool_choice": named("add")}, "tool_choice"),
        (NONE, {"parallel_tool_calls": False}, "parallel_tool_calls"),
        (BARE, {"parallel_tool_calls": False}, "parallel_tool_calls"),
        (BARE, {"response_format": {"type": "json_object"}}, "response_format"),
        (NONE, {"regex": "a"}, "regex"),
        (HERMES, {"grammar": "root ::= x"}, "grammar"),
    ],
)
def test_what_a_format_cannot_be_held_to_is_refused_by_name(
    template: str, more: dict[str, Any], param: str
) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        constraint_for(request(tools=TOOLS, **more), template)
    assert refused.value.param == param


def test_strict_has_no_effect_where_calls_cannot_be_told_from_text() -> None:
    strict = request(tools=[tool("f", strict=True)])
    for template in (BARE, NONE):
        assert constraint_for(strict, template) is None
        assert is_strict_ignored(strict, template)
        assert not is_strict_ignored(request(tools=[tool("f")]), template)
    for template in (HERMES, KEYED, ADDRESSED):
        assert not is_strict_ignored(strict, template)


def test_content_is_held_to_where_no_tool_is_called() -> None:
    content = Grammar("regex", "a", "regex")
    assert calls(tools=TOOLS, regex="a").content == content
    assert calls(tools=TOOLS, regex="a", tool_choice="required").content is None
    free: Constraint | None = constraint_for(
        request(tools=TOOLS, regex="a", tool_choice="none"), HERMES
    )
    assert free == content
