"""Calls that are broken: what came stands, marks are never arguments, what follows is read."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neuron.chat.calls.json_text import is_json
from tests.unit.chat.called import Seen, cut, read, tool

TOOLS = [tool("f", a={"type": "string"}), tool("add", a={"type": "number"})]

_CALL = '{"name": "NAME", "arguments": ARGS}'
_SECTION = "<|tool_calls_section_begin|><|tool_call_begin|>functions.NAME:0"
# What is before a call of NAME, the JSON that is to be broken, and what is behind.
FORMATS: dict[str, tuple[str, str, str]] = {
    "tagged": ("<tool_call>\n", _CALL, "\n</tool_call>"),
    "list": ("<|tool_call|>", f"[{_CALL}]", "<|/tool_call|>"),
    "action": (
        "<|START_ACTION|>",
        '[\n{"tool_call_id": "0", "tool_name": "NAME", "parameters": ARGS}\n]',
        "<|END_ACTION|>",
    ),
    "bracket": ("[TOOL_CALLS]", f"[{_CALL}]", ""),
    "named": ("[TOOL_CALLS]NAME[ARGS]", "ARGS", ""),
    "section": (
        f"{_SECTION}<|tool_call_argument_begin|>",
        "ARGS",
        "<|tool_call_end|><|tool_calls_section_end|>",
    ),
    "fenced": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n",
        "ARGS",
        "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
}
MARKS = ("<", "|>", "｜>", "[TOOL_CALLS]")
CLOSED = sorted(name for name, (_, _, closes) in FORMATS.items() if closes)


def _written(form: str, name: str, arguments: str) -> tuple[str, str, str]:
    opens, body, closes = (FORMATS | KEYED)[form]
    body = body.replace("NAME", name).replace("ARGS", arguments)
    return opens.replace("NAME", name), body, closes


def _read(form: str, *chunks: str) -> Seen:
    return read("".join((FORMATS | KEYED)[form]), *chunks, tools=TOOLS)


def _same_at_every_cut(form: str, text: str) -> Seen:
    whole = _read(form, text)
    assert _read(form, *text) == whole
    for at in range(len(text)):
        assert _read(form, text[:at], text[at:]) == whole
    return whole


# The text of a call in the Hermes format between its marks, and what is made of it.
BROKEN: dict[str, tuple[str, Seen]] = {
    "its own brace is missing": ('{"name": "f", "arguments": {"a": 1}', [("f", '{"a": 1}')]),
    "two braces are missing": (
        '{"name": "f", "arguments": {"a": {"b": 1}',
        [("f", '{"a": {"b": 1}')],
    ),
    "a bracket is missing": ('{"name": "f", "arguments": {"a": [1, 2', [("f", '{"a": [1, 2')]),
    "a bracket of a list is missing": (
        '{"name": "f", "arguments": {"a": [1, 2}}',
        [("f", '{"a": [1, 2')],
    ),
    "a brace too many": ('{"name": "f", "arguments": {"a": 1}}}', [("f", '{"a": 1}')]),
    "a comma after the arguments": ('{"name": "f", "arguments": {"a": 1},}', [("f", '{"a": 1}')]),
    "a comma within them": ('{"name": "f", "arguments": {"a": 1,}}', [("f", '{"a": 1,}')]),
    "one quote in a string": (
        '{"name": "f", "arguments": {"a": "5" tall"}}',
        [("f", '{"a": "5" tall"}')],
    ),
    "two quotes in a string": (
        '{"name": "f", "arguments": {"a": "say "hi" to"}}',
        [("f", '{"a": "say "hi" to"}')],
    ),
    "a string without an end": ('{"name": "f", "arguments": {"a": "x}}', [("f", '{"a": "x}')]),
    "an end that is escaped": (
        '{"name": "f", "arguments": {"a": "x\\"}}',
        [("f", '{"a": "x\\"}')],
    ),
    "a backslash at the end": ('{"name": "f", "arguments": {"a": "x\\', [("f", '{"a": "x\\')]),
    "a second object": (
        '{"name": "f", "arguments": {"a": 1}}{"b": 2}',
        [("f", '{"a": 1}'), '{"b": 2}'],
    ),
    "a second object inside": (
        '{"name": "f", "arguments": {"a": 1}{"b": 2}}',
        [("f", '{"a": 1}'), '{"b": 2}}'],
    ),
    "a key without an end": (
        '{"name": "f", "arguments": {"a": 1}, "x": "y}',
        [("f", '{"a": 1}'), ', "x": "y}'],
    ),
    "an object without an end": (
        '{"name": "f", "arguments": {"a": 1}, "x": {"y": 2}',
        [("f", '{"a": 1}')],
    ),
    "words behind": ('{"name": "f", "arguments": {"a": 1}} so', [("f", '{"a": 1}'), " so"]),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_came_of_a_broken_call_stands(broken: str):
    body, expected = BROKEN[broken]
    found = _same_at_every_cut("tagged", f"<tool_call>\n{body}\n</tool_call>")
    assert [part.strip() if isinstance(part, str) else part for part in found] == [
        part.strip() if isinstance(part, str) else part for part in expected
    ]


@pytest.mark.parametrize("form", FORMATS)
def test_a_string_without_an_end_ends_with_the_call(form: str):
    opens, body, closes = _written(form, "f", '{"a": "x}')
    second = "".join(_written(form, "add", '{"a": 1}'))
    found = _same_at_every_cut(form, f"{opens}{body}{closes}\n{second}")
    assert found == [("f", '{"a": "x}'), ("add", '{"a": 1}')]


@pytest.mark.parametrize("form", FORMATS)
def test_marks_in_arguments_that_are_json_belong_to_them(form: str):
    marks = f"{FORMATS[form][0]} }}] {FORMATS[form][2]}"
    arguments = json.dumps({"a": marks, "b": [marks, "x\n"]}, ensure_ascii=False)
    text = "".join(_written(form, "f", arguments))
    assert _same_at_every_cut(form, text + " Done.")[0] == ("f", arguments)


def test_marks_in_arguments_with_raw_control_characters_belong_to_them():
    text = '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>\n\t"}}</tool_call>'
    assert _same_at_every_cut("tagged", text) == [("f", '{"a": "</tool_call>\\n\\t"}')]


def test_a_call_that_is_cut_short_inside_of_a_string_ends_where_its_mark_is():
    text = '<tool_call>{"name": "f", "arguments": {"a": "see </tool_call> and'
    assert _same_at_every_cut("tagged", text) == [("f", '{"a": "see'), "and"]


@pytest.mark.parametrize("form", CLOSED)
def test_a_call_that_is_quoted_in_a_broken_one_is_not_made(form: str):
    quoted = "".join(_written(form, "add", '{"a": 1}'))
    opens, body, closes = _written(form, "f", f'{{"a": "use {quoted}"}}')
    found = _same_at_every_cut(form, opens + body + closes)
    assert [part[0] for part in found if isinstance(part, tuple)] == ["f"]


def test_a_closing_mark_is_text_where_no_call_is_to_be_closed():
    call = '<tool_call>{"name": "f"}</tool_call>'
    text = f"{call} and </tool_call> too"
    assert _same_at_every_cut("tagged", text) == [("f", "{}"), "and </tool_call> too"]
    assert _same_at_every_cut("tagged", "a </tool_call> b") == ["a </tool_call> b"]


def test_only_one_mark_closes_a_block():
    text = '<tool_call>{"name": "f", "arguments": {}} so </tool_call> </tool_call>'
    assert _same_at_every_cut("tagged", text) == [("f", "{}"), "so  </tool_call>"]


def test_a_broken_call_in_a_section_does_not_end_it():
    text = (
        '<|tool_call_begin|>f<|tool_call_argument_begin|>{"a": [1}} oh<|tool_call_end|>'
        '<|tool_call_begin|>add<|tool_call_argument_begin|>{"a": 2}<|tool_call_end|>'
    )
    text = f"<|tool_calls_section_begin|>{text}<|tool_calls_section_end|> Done."
    found = _same_at_every_cut("section", text)
    assert found == [("f", '{"a": [1'), "}} oh", ("add", '{"a": 2}'), " Done."]


# The same, of a value between tags and not of JSON.
KEYED: dict[str, tuple[str, str, str]] = {
    "function": (
        "<tool_call>\n<function=NAME>\n",
        "<parameter=a>\nARGS\n</parameter>",
        "\n</function>\n</tool_call>",
    ),
    "pairs": (
        "<tool_call>NAME\n",
        "<arg_key>a</arg_key>\n<arg_value>ARGS</arg_value>",
        "\n</tool_call>",
    ),
    "invoke": (
        '<ns:tool_call>\n<invoke name="NAME">\n',
        '<parameter name="a">ARGS</parameter>',
        "\n</invoke>\n</ns:tool_call>",
    ),
}
_VALUE_END = {"function": "\n</parameter>", "pairs": "</arg_value>", "invoke": "</parameter>"}


@pytest.mark.parametrize("form", KEYED)
@pytest.mark.parametrize("follows", ["nothing", "text", "a call"])
def test_a_value_without_an_end_ends_with_the_call(form: str, follows: str):
    behind = {"nothing": "", "text": " Done.", "a call": "".join(_written(form, "add", "1"))}
    opens, body, closes = _written(form, "f", "Paris")
    text = opens + body.removesuffix(_VALUE_END[form]) + closes + behind[follows]
    came = '{"a": "Paris' + ("" if form == "function" else "\\n")
    found = _same_at_every_cut(form, text)
    assert found[0] == ("f", came)
    assert found[1:] == {"nothing": [], "text": ["Done."], "a call": [("add", '{"a": 1}')]}[follows]


@pytest.mark.parametrize("form", KEYED)
def test_the_end_of_a_call_may_be_part_of_a_value(form: str):
    value = f"end it with {KEYED[form][2]} and go on"
    text = "".join(_written(form, "f", value))
    assert _same_at_every_cut(form, text) == [("f", json.dumps({"a": value}))]


@given(form=st.sampled_from(sorted(KEYED)), data=st.data())
def test_whatever_is_left_out_of_a_value_what_follows_is_read(form: str, data: st.DataObject):
    opens, body, closes = _written(form, "f", "Paris")
    begin, end = sorted(
        (data.draw(st.integers(0, len(body))), data.draw(st.integers(0, len(body))))
    )
    second = "".join(_written(form, "add", "1"))
    text = f"Before.\n{opens}{body[:begin]}{body[end:]}{closes}\n{second}\nAfter."
    whole = _read(form, text)
    assert _read(form, *text) == whole
    assert _read(form, *cut(text, data)) == whole
    assert str(whole[0]).startswith("Before.")
    assert whole[-2] == ("add", '{"a": 1}')
    assert str(whole[-1]).strip() == "After."
    assert not any(mark in str(whole[1][1]) for mark in closes.split() if len(whole) == 4)


_EDITS = st.lists(
    st.tuples(
        st.integers(0, 200),
        st.integers(0, 2),
        st.sampled_from(["", "", '"', "{", "}", "[", "]", ",", ":", "\\", "\n", " ", "x", "`"]),
    ),
    min_size=1,
    max_size=4,
)
"""Where, how many characters are left out there, and what is put in their place."""


def _edited(text: str, edits: list[tuple[int, int, str]]) -> str:
    for place, count, instead in edits:
        at = place % (len(text) + 1)
        text = text[:at] + instead + text[at + count :]
    return text


@settings(max_examples=500)
@given(
    form=st.sampled_from(sorted(FORMATS)),
    arguments=st.sampled_from(
        ['{"a": "Paris"}', '{"a": {"b": [1, "c"]}, "d": "e\\n"}', "{}", '{"a": "\\\\"}']
    ),
    edits=_EDITS,
    data=st.data(),
)
def test_whatever_is_wrong_with_a_call_no_mark_is_an_argument_and_what_follows_is_read(
    form: str, arguments: str, edits: list[tuple[int, int, str]], data: st.DataObject
):
    opens, body, closes = _written(form, "f", arguments)
    first = f"{opens}{_edited(body, edits)}{closes}"
    second = "".join(_written(form, "add", '{"a": 1}'))
    text = f"Before.\n{first}\n{second}\nAfter."
    whole = _read(form, text)
    assert _read(form, *text) == whole
    assert _read(form, *cut(text, data)) == whole
    assert whole[0] == "Before." or str(whole[0]).startswith("Before.\n")
    assert whole[-2:] == [("add", '{"a": 1}'), whole[-1]]
    assert str(whole[-1]).strip() == "After."
    for part in whole:
        if isinstance(part, tuple) and not is_json(part[1]):
            assert not any(mark in part[1] for mark in MARKS), part
            assert form != "fenced" or "```" not in part[1]


@given(form=st.sampled_from(CLOSED), edits=_EDITS, data=st.data())
@example(form="tagged", edits=[(42, 1, "")], data=None)
def test_text_behind_a_broken_call_is_text(
    form: str, edits: list[tuple[int, int, str]], data: st.DataObject | None
):
    opens, body, closes = _written(form, "f", '{"a": "Paris", "b": [1]}')
    text = f"{opens}{_edited(body, edits)}{closes}\nAfter."
    whole = _read(form, text)
    assert str(whole[-1]).endswith("After.")
    if data is not None:
        assert _read(form, *cut(text, data)) == whole
