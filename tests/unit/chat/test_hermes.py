"""The Hermes format: text in, calls out, wherever the chunks were cut, and nothing lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from neuron.chat.pieces import CallArguments, CallStarted
from neuron.chat.tool_calls import new_call_id, parser_for
from tests.unit.chat.called import Seen, cut, parser, read

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TWO = CALL + '\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


def _read(*chunks: str) -> Seen:
    return read("<tool_call>", *chunks)


def test_a_call_is_a_name_and_its_arguments_verbatim():
    assert _read(CALL) == [("get_weather", '{"city": "Paris"}')]


def test_several_calls_are_numbered():
    assert _read(TWO) == [("get_weather", '{"city": "Paris"}'), ("add", '{"a": 1, "b": 2}')]


def test_text_around_a_call_is_content_without_the_seams():
    assert _read("Let me see.\n\n" + CALL + "\n") == [
        "Let me see.",
        ("get_weather", '{"city": "Paris"}'),
    ]
    assert _read("One.\n" + CALL + "\nTwo.") == [
        "One.",
        ("get_weather", '{"city": "Paris"}'),
        "\n\nTwo.",
    ]
    assert _read(CALL + "\nTwo.") == [("get_weather", '{"city": "Paris"}'), "Two."]


def test_the_name_comes_before_the_arguments_are_whole():
    machine = parser("<tool_call>")
    assert machine.feed('<tool_call>\n{"name": "write", "argum') == []
    assert machine.feed('ents": ') == []
    assert machine.feed("{") == [CallStarted(0, "call_0", "write"), CallArguments(0, "{")]
    assert machine.feed('"text": "some') == [CallArguments(0, '"text": "some')]


def test_arguments_first_wait_for_the_name():
    assert _read('<tool_call>{"arguments": {"a": [1]}, "name": "f"}</tool_call>') == [
        ("f", '{"a": [1]}')
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        '{"text": "a </tool_call> \\" } b"}',
        '{"deep": {"list": [{"x": [1, {}]}], "s": "]}"}}',
        '{"path": "C:\\\\", "e": "\\u00e9 é 🙂"}',
        "{}",
    ],
)
def test_arguments_may_hold_anything(arguments: str):
    text = f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>'
    for at in range(len(text)):
        assert _read(text[:at], text[at:]) == [("f", arguments)]


@pytest.mark.parametrize("given", ["", ', "arguments": null', ', "arguments": "{}"'])
def test_absent_arguments_are_an_empty_object(given: str):
    assert _read(f'<tool_call>{{"name": "f"{given}}}</tool_call>') == [("f", "{}")]


def test_arguments_written_as_a_string_are_the_string():
    inner = json.dumps('{"a": "b\\n"}')
    assert _read(f'<tool_call>{{"name": "f", "arguments": {inner}}}</tool_call>') == [
        ("f", '{"a": "b\\n"}')
    ]


def test_other_keys_are_passed_over():
    text = '<tool_call>{"id": 7, "x": {"name": "no"}, "name": "f", "parameters": {"a": 1}}'
    assert _read(text + "</tool_call>") == [("f", '{"a": 1}')]


def test_a_call_that_was_not_closed_counts():
    two = TWO.replace("\n</tool_call>", "")
    assert _read(two) == _read(TWO)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\nnot json\n</tool_call>",
        '<tool_call>\n["name"]\n</tool_call>',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "no object"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": 1e5}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
        '<tool_call>{"name": nul, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f"',
        "<tool_call>",
        "a < b, <tool_cal",
        "</tool_call> alone",
        "\n  indented, with an end \n",
    ],
)
def test_what_is_no_call_is_given_back_whole(text: str):
    for at in range(len(text)):
        assert _read(text[:at], text[at:]) == [text]


def test_several_calls_may_share_one_block():
    one = CALL.removesuffix("\n</tool_call>")
    rest = '{"name": "add", "arguments": {}}'
    both = [("get_weather", '{"city": "Paris"}'), ("add", "{}")]
    assert _read(f"{one}\n{rest}</tool_call>") == both
    listed = "[" + one.removeprefix("<tool_call>") + f", {rest}]"
    assert _read(f"<tool_call>{listed}</tool_call>!") == [*both, "!"]


def test_a_list_that_goes_wrong_keeps_its_whole_calls_and_the_rest_is_text():
    assert _read('<tool_call>[{"name": "f"}, {"name": 5}]</tool_call>') == [
        ("f", "{}"),
        ', {"name": 5}]',
    ]


def test_a_raw_newline_in_an_argument_is_escaped_as_json_wants_it():
    text = '<tool_call>{"name": "f", "arguments": {"a":\n"x\ny\t\\n"}}</tool_call>'
    for at in range(len(text)):
        ((_, arguments),) = _read(text[:at], text[at:])
        assert json.loads(arguments) == {"a": "x\ny\t\n"}


def test_what_is_given_back_is_not_repaired():
    text = '<tool_call>{"arguments": {"a": "x\ny"}, "name": 5}'
    assert _read(text) == [text]


def test_an_outer_brace_that_is_missing_does_not_spoil_the_call():
    assert _read(CALL.replace("}}", "}")) == _read(CALL)


def test_a_call_after_a_broken_one_is_found():
    assert _read("<tool_call>oops " + CALL) == ["<tool_call>oops", *_read(CALL)]


def test_a_call_cut_short_keeps_what_came():
    assert _read('<tool_call>{"name": "f", "arguments": {"a": "b') == [("f", '{"a": "b')]


def test_a_bracket_that_does_not_match_ends_the_call_and_loses_nothing():
    assert _read('<tool_call>{"name": "f", "arguments": {"a": ]}}') == [("f", '{"a": '), "]}}"]


_PIECES = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "\n",
        "text ",
        '{"name": "f", "arguments": ',
        '{"a": "}"}',
        '"{\\"q\\": 1}"',
        "{",
        "}",
        '"',
        "\\",
        "[",
        "]",
        ",",
        ":",
        " null",
        "12",
        CALL,
    ]
)


@given(parts=st.lists(_PIECES, max_size=12), data=st.data())
@example(parts=[TWO], data=None)
def test_any_cut_gives_the_same(parts: list[str], data: st.DataObject | None):
    text = "".join(parts)
    whole = _read(text)
    assert _read(*text) == whole
    if data is not None:
        assert _read(*cut(text, data)) == whole


@given(parts=st.lists(_PIECES, max_size=12))
def test_text_without_a_call_comes_back_as_it_was(parts: list[str]):
    text = "".join(parts)
    seen = _read(text)
    if all(isinstance(part, str) for part in seen):
        assert "".join(map(str, seen)) == text


@given(name=st.text(min_size=1), arguments=st.dictionaries(st.text(), st.text() | st.integers()))
def test_whatever_json_can_say_is_called(name: str, arguments: dict):
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    assert _read(f"<tool_call>{body}</tool_call>") == [
        (name, json.dumps(arguments, ensure_ascii=False))
    ]


def test_ids_are_unique():
    assert len({new_call_id() for _ in range(100)}) == 100


def test_a_template_without_a_known_format_has_no_parser():
    assert parser_for("{{ tools }} call as you like") is None
