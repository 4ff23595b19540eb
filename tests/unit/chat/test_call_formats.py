"""Every tool call format: the calls it writes, text around them, and any cut of it the same."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuron.chat.calls.json_text import is_object
from neuron.chat.pieces import CallArguments, CallStarted, Piece, Text
from neuron.chat.tool_calls import reader_for
from tests.unit.chat.called import Seen, cut, parser, read, seen, tool

WEATHER = tool("get_weather", city={"type": "string"}, days={"type": "integer"})
ADD = tool("add", a={"type": "number"}, b={"type": "number"})
TOOLS = [WEATHER, ADD]

# What a template writes that teaches the format, a call of get_weather in Paris and one of add(1,
# 2.5) as it is written, alone and together.
TAUGHT = {
    "tagged": "<tool_call>",
    "list": "<|tool_call|>",
    "action": "<|START_ACTION|>",
    "bare": '{"name": function name, "parameters": its arguments}',
    "bracket": "[TOOL_CALLS]",
    "fenced": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>",
    "section": "<|tool_calls_section_begin|><|tool_call_begin|>",
    "function": "<tool_call><function=name><parameter=key>",
    "pairs": "<tool_call>name<arg_key>",
    "invoke": '<ns:tool_call><invoke name="',
}
_F = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>"
_S = "<｜tool▁call▁begin｜>"
WRITTEN: dict[str, list[str]] = {
    "tagged": [
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2.5}}\n</tool_call>'
    ],
    "list": [
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}, '
        '{"name": "add", "arguments": {"a": 1, "b": 2.5}}]',
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}, '
        '{"name": "add", "arguments": {"a": 1, "b": 2.5}}]<|/tool_call|>',
    ],
    "action": [
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", '
        '"parameters": {"city": "Paris"}},\n    {"tool_call_id": "1", "tool_name": "add", '
        '"parameters": {"a": 1, "b": 2.5}}\n]<|END_ACTION|>'
    ],
    "bare": [
        '{"name": "get_weather", "parameters": {"city": "Paris"}}; '
        '{"name": "add", "parameters": {"a": 1, "b": 2.5}}',
        '<|python_tag|>{"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}}'
        '\n{"function": "add", "parameters": {"a": 1, "b": 2.5}}',
    ],
    "bracket": [
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris"}, "id": "abc123xyz"}, '
        '{"name": "add", "arguments": {"a": 1, "b": 2.5}, "id": "abc123xya"}]',
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]add[ARGS]{"a": 1, "b": 2.5}',
        '[TOOL_CALLS]get_weather[CALL_ID]q1w2e3r4t[ARGS]{"city": "Paris"}'
        '[TOOL_CALLS]add{"a": 1, "b": 2.5}',
    ],
    "fenced": [
        f'<｜tool▁calls▁begin｜>{_F}get_weather\n```json\n{{"city": "Paris"}}\n```'
        f'<｜tool▁call▁end｜>\n{_F}add\n```json\n{{"a": 1, "b": 2.5}}\n```'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        f'<｜tool▁calls▁begin｜>{_S}get_weather<｜tool▁sep｜>{{"city": "Paris"}}<｜tool▁call▁end｜>'
        f'{_S}add<｜tool▁sep｜>{{"a": 1, "b": 2.5}}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    ],
    "section": [
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
        '<|tool_call_argument_begin|>{"city": "Paris"}<|tool_call_end|><|tool_call_begin|>add'
        '<|tool_call_argument_begin|>{"a": 1, "b": 2.5}<|tool_call_end|>'
        "<|tool_calls_section_end|>"
    ],
    "function": [
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n"
        "</tool_call>\n<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>"
        "\n2.5\n</parameter>\n</function>\n</tool_call>",
        # without the blocks' own marks, as models write it when they forget
        "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>"
        "\n<function=add><parameter=a>1</parameter><parameter=b>2.5</parameter></function>",
    ],
    "pairs": [
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
        "</tool_call>\n<tool_call>add<arg_key>a</arg_key><arg_value>1</arg_value><arg_key>b"
        "</arg_key><arg_value>2.5</arg_value></tool_call>"
    ],
    "invoke": [
        '<ns:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris</parameter>\n'
        '</invoke>\n<invoke name="add">\n<parameter name="a">1</parameter>\n<parameter name="b">'
        "2.5</parameter>\n</invoke>\n</ns:tool_call>"
    ],
}
BOTH: Seen = [("get_weather", '{"city": "Paris"}'), ("add", '{"a": 1, "b": 2.5}')]
CASES = [(name, text) for name, texts in WRITTEN.items() for text in texts]


def _read(name: str, *chunks: str, tools: Sequence[dict[str, Any]] = TOOLS) -> Seen:
    return read(TAUGHT[name], *chunks, tools=tools)


@pytest.mark.parametrize(("name", "text"), CASES)
def test_two_calls_are_found_at_every_cut(name: str, text: str):
    assert _read(name, text) == BOTH
    assert _read(name, *text) == BOTH
    for at in range(len(text)):
        assert _read(name, text[:at], text[at:]) == BOTH


@pytest.mark.parametrize(("name", "text"), [case for case in CASES if case[0] != "bare"])
def test_text_around_calls_is_content(name: str, text: str):
    before, *calls, after = _read(name, f"Let me see: a < b [1].\n\n{text}\n Done.")
    assert (before, calls) == ("Let me see: a < b [1].", BOTH)
    assert str(after).strip("\n") == " Done."


@pytest.mark.parametrize(("name", "text"), CASES)
def test_cut_short_anywhere_it_says_no_more_than_the_whole(name: str, text: str):
    whole = dict(call for call in BOTH if isinstance(call, tuple))
    for at in range(len(text)):
        for call in _read(name, text[:at]):
            if isinstance(call, tuple):
                called, arguments = call
                assert arguments == whole[called] or not is_object(arguments)
                assert whole[called].replace('"', "").startswith(arguments.replace('"', ""))


@pytest.mark.parametrize(("name", "text"), CASES)
def test_every_event_of_a_call_comes_as_soon_as_it_is_certain(name: str, text: str):
    machine = parser(TAUGHT[name], TOOLS)
    events: list[Piece] = []
    for character in text[: text.index("Paris") + 3]:
        events += machine.feed(character)
    assert seen(events) == [("get_weather", '{"city": "Par')]


BROKEN = {
    "tagged": ["<tool_call>oops</tool_call>"],
    "list": ["<|tool_call|>[1, 2]", "<|tool_call|>none at all"],
    "action": ['<|START_ACTION|>[{"name": "f", "parameters": {}}]<|END_ACTION|>'],
    "bare": [
        '{"name": "nobody", "parameters": {"a": 1}}',
        '{"answer": 42}',
        "{ not json",
        '<|python_tag|>print("hi")',
        '{"parameters": {"a": 1}, "name": "nobody"}',
        'See {"name": "add", "parameters": {"a": 1}}',
        '  \n{"name": ["add"]}',
    ],
    "bracket": ["[TOOL_CALLS]", "[TOOL_CALLS] are nice [ARGS]", "[TOOL_CALLS][ARGS]{}", "[TOOL_CA"],
    "fenced": [
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁begin｜>nothing<｜tool▁calls▁end｜>",
        f"{_F}add\n```json\n[1]\n```<｜tool▁call▁end｜>",
        f"{_S}add{{}}",
    ],
    "section": ["<|tool_call_begin|>functions.f:0 {}", "<|tool_calls_section_begin|>x"],
    "function": [
        "<tool_call>\n<function=add>\nsoon\n</tool_call>",
        "<tool_call>not a function</tool_call>",
        "use <function=nobody><parameter=a>1</parameter></function>",
        "use <function=add> like this",
        "<function=" + "x" * 300 + ">",
        "<tool_call><function=>",
        "<tool_call><function=add",
    ],
    "pairs": ["<tool_call>add 1 and 2</tool_call>", "<tool_call></tool_call>", "<tool_call>a\n"],
    "invoke": ['<ns:tool_call><invoke name="f" >', "<ns:tool_call>x", '<invoke name="nobody">'],
}


@pytest.mark.parametrize(("name", "text"), [(n, text) for n, ts in BROKEN.items() for text in ts])
def test_what_is_no_call_is_given_back_whole(name: str, text: str):
    assert _read(name, *text) == [text]
    for at in range(len(text)):
        assert _read(name, text[:at], text[at:]) == [text]


@pytest.mark.parametrize(
    ("name", "text"), [(n, ts[0]) for n, ts in WRITTEN.items() if n not in ("bare",)]
)
def test_calls_after_something_broken_are_found(name: str, text: str):
    broken = BROKEN[name][0]
    found = _read(name, f"{broken} {text}")
    assert found[-2:] == BOTH
    assert found[:-2] == [broken]


@settings(max_examples=300)
@given(name=st.sampled_from(sorted(WRITTEN)), data=st.data())
def test_any_cut_of_any_mixture_gives_the_same_and_loses_no_text(name: str, data: st.DataObject):
    whole_texts = [*WRITTEN[name], *BROKEN[name]]
    marks = [mark for text in whole_texts for mark in _parts(text)]
    pieces = st.sampled_from([*whole_texts, *marks, " ", "\n", "text", '"', "{", "}", "\\", "é🙂"])
    text = "".join(data.draw(st.lists(pieces, max_size=8)))
    whole = _read(name, text)
    assert _read(name, *text) == whole
    assert _read(name, *cut(text, data)) == whole
    if all(isinstance(part, str) for part in whole):
        assert "".join(map(str, whole)) == text


def _parts(text: str) -> list[str]:
    """A written call in a few parts, cut where its marks and values meet."""
    edges = [0, *(i for i, c in enumerate(text) if c in "<>[{" and i), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


# values without types of their own


def test_a_value_gets_its_type_from_the_schema():
    kinds = tool(
        "f",
        text={"type": "string"},
        whole={"type": "integer"},
        flag={"type": "boolean"},
        many={"type": "array"},
        maybe={"type": ["string", "null"]},
    )
    values = {"text": "5", "whole": "5", "flag": "True", "many": "[1, 'a']", "maybe": "null"}
    body = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in values.items())
    text = f"<tool_call>\n<function=f>\n{body}</function>\n</tool_call>"
    ((_, arguments),) = _read("function", text, tools=[kinds])
    assert json.loads(arguments) == {
        "text": "5", "whole": 5, "flag": True, "many": [1, "a"], "maybe": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        "",
        "\n",
        "two\nlines\n",
        "  indented",
        'quotes " and \\ and \t',
        "a </parameter> b",
        "</parameter>\n</parameter> x",
        "<parameter=x> <tool_call> </tool_call>",
        "é🙂",
    ],
)
def test_a_string_value_is_verbatim(value: str):
    text = f"<function=get_weather>\n<parameter=city>\n{value}\n</parameter>\n</function>"
    for at in range(len(text)):
        ((_, arguments),) = _read("function", text[:at], text[at:])
        assert json.loads(arguments) == {"city": value}


@given(value=st.text(st.sampled_from('ab \n</parmet>="\\{}é🙂')), data=st.data())
def test_any_string_value_survives(value: str, data: st.DataObject):
    text = f"<tool_call><function=get_weather><parameter=city>\n{value}\n</parameter></function>"
    ((_, arguments),) = _read("function", *cut(text, data))
    assert json.loads(arguments) == {"city": value}


def test_a_call_without_values_has_an_empty_object():
    assert _read("function", "<tool_call>\n<function=add>\n</function>\n</tool_call>") == [
        ("add", "{}")
    ]
    assert _read("pairs", "<tool_call>add\n</tool_call>") == [("add", "{}")]


def test_garbage_between_values_ends_the_call_and_stays_text():
    text = "<tool_call><function=add><parameter=a>1</parameter>oops</function></tool_call>"
    assert _read("function", text) == [("add", '{"a": 1}'), "oops"]


def test_a_string_value_is_passed_on_as_it_comes():
    machine = parser(TAUGHT["function"], TOOLS)
    machine.feed("<tool_call><function=get_weather><parameter=city>\n")
    assert machine.feed("Par") == [CallArguments(0, "Par")]
    assert machine.feed("is\n") == [CallArguments(0, "is")]
    assert machine.feed("</para") == []
    assert machine.feed("graph>") == [CallArguments(0, "\\n</paragraph>")]


# framing that is not the answer's


def test_the_marks_around_a_response_are_no_content():
    assert _read("action", "<|START_RESPONSE|>Paris.<|END_RESPONSE|>") == ["Paris."]


def test_without_tools_the_marks_around_a_response_are_hidden_and_nothing_is_a_call():
    call = '<|START_ACTION|>[{"tool_name": "add", "parameters": {}}]<|END_ACTION|>'
    text = f" <|START_RESPONSE|>{call} it is.\n<|END_RESPONSE|>"
    for chunks in ([text], list(text)):
        reader = reader_for(TAUGHT["action"])
        assert reader is not None
        events = [event for chunk in chunks for event in reader.feed(chunk)] + reader.finish()
        assert seen(events) == [f" {call} it is.\n"]


@pytest.mark.parametrize("name", sorted(TAUGHT.keys() - {"action"}))
def test_without_tools_and_without_framing_an_answer_is_left_as_it_is(name: str):
    assert reader_for(TAUGHT[name]) is None


@pytest.mark.parametrize("name", TAUGHT)
def test_with_tools_an_answer_is_read_as_their_format_has_it(name: str):
    reader, machine = reader_for(TAUGHT[name], TOOLS), parser(TAUGHT[name], TOOLS)
    assert type(reader) is type(machine)


# calls addressed by a message's header

HARMONY = "<|start|>assistant<|channel|>final<|message|>"
Marked = list[tuple[str, str]]  # what the worker tells apart, and what it says


def _addressed(deltas: Marked) -> tuple[Seen, list[bool]]:
    machine = parser(HARMONY)
    events: list[Piece] = []
    of_call: list[bool] = []
    for kind, text in deltas:
        if kind == "marker":
            found, is_of_call = machine.mark(text)
            of_call.append(is_of_call)
            events += found
        else:
            for character in text:
                events += machine.feed(character)
    return seen(events + machine.finish()), of_call


def test_a_message_to_a_function_is_a_call():
    header = "<|channel|>commentary to=functions.add <|constrain|>json<|message|>"
    assert _addressed([("marker", header), ("", '{"a": 1}')]) == ([("add", '{"a": 1}')], [True])
    header = "<|start|>assistant to=functions.add<|channel|>commentary json<|message|>"
    assert _addressed([("marker", header), ("", ' {"a": 1}\n')]) == ([("add", '{"a": 1}')], [True])


def test_messages_to_the_user_are_content_and_may_quote_a_header():
    quoted = "write <|channel|>commentary to=functions.add<|message|>{}"
    deltas = [
        ("marker", "<|channel|>commentary<|message|>"),
        ("", "I will add."),
        ("marker", "<|end|>"),
        ("marker", "<|start|>assistant<|channel|>commentary to=functions.add<|message|>"),
        ("", "{}"),
        ("marker", "<|call|>"),
        ("marker", "<|start|>assistant<|channel|>final<|message|>"),
        ("", quoted),
    ]
    assert _addressed(deltas) == (
        ["I will add.", ("add", "{}"), quoted],
        [False, False, True, False, False],
    )


def test_a_message_to_a_function_that_is_no_object_is_content():
    header = "<|channel|>commentary to=functions.add<|message|>"
    assert _addressed([("marker", header), ("", "a=1"), ("marker", "<|call|>")])[0] == ["a=1"]


def test_a_name_comes_with_the_first_brace():
    machine = parser(HARMONY)
    machine.mark("<|channel|>commentary to=functions.f<|message|>")
    assert machine.feed("\n") == []
    found = machine.feed('{"a')
    assert found[0] == CallStarted(0, "call_0", "f")
    assert seen(found) == [("f", '{"a')]


def test_a_format_that_needs_no_markers_ignores_them():
    machine = parser("<tool_call>")
    assert machine.mark("<think>") == ([], False)
    assert machine.feed("x") == [Text("x")]


# which format


@pytest.mark.parametrize("name", TAUGHT)
def test_a_format_is_known_by_its_marks_and_not_taken_for_another(name: str):
    for other, texts in WRITTEN.items():
        found = _read(name, texts[0])
        assert (found == BOTH) == (other == name) or {name, other} <= {"tagged", "pairs"}
