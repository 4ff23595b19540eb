"""The Hermes format: text in, calls out, wherever the chunks were cut, and nothing lost."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neuron.chat.pieces import CallArguments, CallStarted
from neuron.chat.tool_calls import new_call_id, parser_for

CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TWO = CALL + '\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


def _read(*chunks: str) -> list[str | tuple[str, str]]:
    """Content as strings, calls as (name, arguments); neighbours merged."""
    parser = parser_for("<tool_call>", iter(map("call_{}".format, itertools.count())).__next__)
    assert parser is not None
    events = [event for chunk in chunks for event in parser.feed(chunk)] + parser.finish()
    seen: list[str | tuple[str, str]] = []
    calls = 0
    for event in events:
        if isinstance(event, CallStarted):
            assert (event.index, event.id) == (calls, f"call_{calls}")
            calls += 1
            seen.append((event.name, ""))
        elif isinstance(event, CallArguments):
            last = seen[-1]
            assert isinstance(last, tuple)
            assert event.index == calls - 1
            assert event.fragment
            seen[-1] = (last[0], last[1] + event.fragment)
        else:
            assert event.text
            if seen and isinstance(seen[-1], str):
                seen[-1] += event.text
            else:
                seen.append(event.text)
    return seen


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
    parser = parser_for("<tool_call>", new_call_id)
    assert parser is not None
    assert parser.feed('<tool_call>\n{"name": "write", "argum') == []
    (started,) = parser.feed('ents": ')[:1] or parser.feed("{")[:1]
    assert isinstance(started, CallStarted)
    assert started.name == "write"
    assert parser.feed('"text": "some') == [CallArguments(0, '"text": "some')]


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


@settings(deadline=None)
@given(parts=st.lists(_PIECES, max_size=12), data=st.data())
@example(parts=[TWO], data=None)
def test_any_cut_gives_the_same(parts: list[str], data: st.DataObject | None):
    text = "".join(parts)
    whole = _read(text)
    assert _read(*text) == whole
    if data is not None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
        edges = [0, *cuts, len(text)]
        assert _read(*(text[a:b] for a, b in itertools.pairwise(edges))) == whole


@settings(deadline=None)
@given(parts=st.lists(_PIECES, max_size=12))
def test_text_without_a_call_comes_back_as_it_was(parts: list[str]):
    text = "".join(parts)
    seen = _read(text)
    if all(isinstance(part, str) for part in seen):
        assert "".join(map(str, seen)) == text


@settings(deadline=None)
@given(name=st.text(min_size=1), arguments=st.dictionaries(st.text(), st.text() | st.integers()))
def test_whatever_json_can_say_is_called(name: str, arguments: dict):
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    assert _read(f"<tool_call>{body}</tool_call>") == [
        (name, json.dumps(arguments, ensure_ascii=False))
    ]


def test_ids_are_unique():
    assert len({new_call_id() for _ in range(100)}) == 100


def test_a_template_without_a_known_format_has_no_parser():
    assert parser_for("[TOOL_CALLS]") is None
