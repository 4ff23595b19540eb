"""Whatever may be written for an argument in plain text reads as a value that its schema takes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jsonschema.validators import validator_for

from cortex_core.envelopes.openai_chat import decode_chat_request
from cortex_core.errors import UnsupportedParameter
from cortex_core.wire.sampling import Calls
from neuron.chat.call_grammar import constraint_for
from neuron.chat.calls.argument import argument, kinds_of
from neuron.chat.calls.plain_values import Plain, Unwritable, object_schema, plain_value, spelt

KEYED = "<tool_call>\n<function=x>\n<parameter=y>\n"
ROOT = {"$defs": {"unit": {"enum": ["c", "f"]}, "self": {"$ref": "#/$defs/self"}}}
TEXT = {"type": "string"}
SCHEMAS: list[Any] = [
    {}, True, TEXT, {"description": "no type"},
    TEXT | {"minLength": 2}, TEXT | {"maxLength": 3}, TEXT | {"minLength": 2, "maxLength": 2},
    TEXT | {"pattern": "^a+$"}, TEXT | {"pattern": "b"}, TEXT | {"pattern": "^a|b$|c"},
    TEXT | {"pattern": r"^\$\^[$^|(]\|$", "minLength": 2, "maxLength": 9},
    TEXT | {"pattern": "a[|$]b", "maxLength": 5}, TEXT | {"pattern": ""},
    {"enum": ["a", " b", "3", "null", "[1]", "x.*|y", "</p>"]}, {"const": "true"},
    TEXT | {"enum": ["a", 5, "5"]},
    {"enum": ["a", "5", 5, 1.5, None, "none", False, "{}", [1], {"a": 1}]},
    {"type": ["string", "null"]}, {"type": ["boolean", "string"], "maxLength": 6},
    {"type": ["integer", "string"], "minLength": 3}, {"type": ["number", "string"]},
    {"anyOf": [TEXT, {"type": "integer", "minimum": 3}]},
    {"anyOf": [TEXT | {"maxLength": 4}, {"type": "array", "items": {"type": "integer"}}]},
    {"oneOf": [{"const": "auto"}, {"type": "number", "exclusiveMaximum": 0}]},
    {"anyOf": [{"$ref": "#/$defs/unit"}, {"type": "null"}], "default": None},
    {"allOf": [{"$ref": "#/$defs/unit"}], "title": "Unit"},
    {"anyOf": [TEXT, False]},
]  # fmt: skip


@given(st.sampled_from(SCHEMAS), st.data())
def test_what_may_be_written_is_taken_by_the_schema(schema: Any, data: st.DataObject) -> None:
    plain = plain_value(schema, ROOT, is_strict=True)
    text = data.draw(st.from_regex(re.compile(plain.text), fullmatch=True))
    assume(not any(re.fullmatch(barred, text) for barred in plain.barred))
    value = json.loads(argument(text, kinds_of(schema, ROOT)))
    whole = ROOT | schema if isinstance(schema, dict) else schema
    validator_for(whole)(whole).validate(value)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (TEXT, "any\nthing </x> 1"),
        ({}, "5"),
        (TEXT | {"pattern": "b"}, "abc"),
        (TEXT | {"pattern": "^a|b$|c"}, "xcx"),
        ({"enum": ["a", None, 1.5, [1, 2]]}, "[1, 2]"),
        ({"type": ["string", "null"]}, "null"),
        ({"type": ["integer", "string"], "minLength": 3}, "-12"),
        ({"anyOf": [{"$ref": "#/$defs/unit"}, {"type": "null"}]}, "f"),
        (TEXT | {"format": "date", "not": {}, "pattern": "(?=a)"}, "passed over"),
        ({"minLength": 3}, "ab"),
        ({"allOf": [TEXT, {"minLength": 3}]}, "ab"),
    ],
)
def test_what_a_model_would_write_may_be_written(schema: Any, text: str) -> None:
    plain = plain_value(schema, ROOT, is_strict=False)
    assert re.fullmatch(plain.text, text)
    assert not any(re.fullmatch(barred, text) for barred in plain.barred)


def test_what_is_no_text_is_left_to_json() -> None:
    number = {"type": "integer", "minimum": 3}
    assert plain_value(number, ROOT, is_strict=True) == Plain(schema=ROOT | number)
    either = plain_value({"anyOf": [TEXT, number]}, {}, is_strict=True)
    assert either.schema == number
    assert re.fullmatch(either.barred[0], " -3 to 5")


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        (TEXT | {"format": "date"}, "format"),
        (TEXT | {"not": {"const": "a"}}, "not"),
        (TEXT | {"pattern": "(?=a)b"}, "pattern '(?=a)b'"),
        (TEXT | {"pattern": "(^a)"}, "pattern '(^a)'"),
        (TEXT | {"pattern": r"\bword"}, r"pattern '\\bword'"),
        ({"minLength": 3}, "minLength"),
        ({"enum": ["a"], "maxLength": 3}, "maxLength"),
        ({"allOf": [TEXT, {"minLength": 3}]}, "allOf"),
        ({"anyOf": [TEXT], "minLength": 3}, "minLength"),
        ({"oneOf": [TEXT, {"enum": ["a"]}]}, "oneOf"),
        ({"anyOf": [TEXT, {"type": "boolean", "not": {"const": True}}]}, "not"),
    ],
)
def test_what_cannot_be_held_to_is_named_where_it_has_to_be(schema: Any, named: str) -> None:
    with pytest.raises(Unwritable, match=re.escape(named)):
        plain_value(schema, ROOT, is_strict=True)
    assert plain_value(schema, ROOT, is_strict=False).text


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"anyOf": [{"$ref": "#/$defs/nobody"}, TEXT]}, "#/$defs/nobody"),
        ({"$ref": "#/$defs/self"}, "without an end"),
        ({"type": "string", "enum": []}, "no value"),
    ],
)
def test_what_cannot_be_written_at_all_is_refused(schema: Any, named: str) -> None:
    for is_strict in (False, True):
        with pytest.raises(Unwritable, match=re.escape(named)):
            plain_value(schema, ROOT, is_strict=is_strict)


@given(st.text())
def test_a_text_is_spelt_as_itself_alone(text: str) -> None:
    assert re.fullmatch(spelt(text), text, re.DOTALL)
    assert not re.fullmatch(spelt(text), text + "x", re.DOTALL)


# objects


def test_arguments_keep_their_order_and_what_has_to_be_there_is() -> None:
    schema = {"properties": {"b": TEXT, "a": {}}, "required": ["a", "c"]}
    assert object_schema(schema, is_strict=True) == ({"b": TEXT, "a": {}, "c": {}}, ["a", "c"])
    more = schema | {"additionalProperties": TEXT}
    assert object_schema(more, is_strict=True)[0]["c"] == TEXT
    apart = {"$ref": "#/$defs/it", "$defs": {"it": schema}}
    assert object_schema(apart, is_strict=True)[1] == ["a", "c"]
    assert object_schema(None, is_strict=True) == ({}, [])


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"anyOf": [{"required": ["a"]}]}, "anyOf"),
        ({"$ref": "#/$defs/nobody"}, "#/$defs/nobody"),
        ({"$ref": "#"}, "#"),
        ({"required": ["a"], "additionalProperties": False}, "'a' is not among the properties"),
    ],
)
def test_an_object_that_cannot_be_written_is_refused(schema: Any, named: str) -> None:
    for is_strict in (False, True):
        with pytest.raises(Unwritable, match=re.escape(named)):
            object_schema(schema, is_strict=is_strict)


def test_what_holds_between_listed_arguments_counts_where_it_has_to() -> None:
    schema = {"properties": {"a": {}}, "dependentRequired": {"a": ["b"]}}
    assert object_schema(schema, is_strict=False) == ({"a": {}}, [])
    with pytest.raises(Unwritable, match="dependentRequired"):
        object_schema(schema, is_strict=True)


# requests


def _constraint(name: str, key: str, schema: Any, template: str = KEYED) -> Calls:
    parameters = {"type": "object", "properties": {key: schema}}
    function = {"name": name, "strict": True, "parameters": parameters}
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
    }
    constraint = constraint_for(decode_chat_request(json.dumps(body).encode())[0], template)
    assert isinstance(constraint, Calls)
    return constraint


@pytest.mark.parametrize(
    ("name", "key", "schema", "named"),
    [
        ("f", "a", TEXT | {"format": "date"}, "properties.a: format"),
        ("f", "a>b", TEXT, "the name 'a>b'"),
        ("f", " ", TEXT, "the name ' '"),
        ("f", "x" * 257, TEXT, "the name"),
        ("get x", "a", TEXT, "the name 'get x'"),
    ],
)
def test_a_request_that_cannot_be_held_to_says_what_in_it(
    name: str, key: str, schema: Any, named: str
) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        _constraint(name, key, schema)
    assert refused.value.param == "tools[0].function.parameters"
    assert f"tools[0].function.parameters: {named}" in str(refused.value)


def test_a_text_never_holds_its_own_closing_tag() -> None:
    ((part,),) = (form.parts for form in _constraint("f", "a", TEXT).forms)
    assert re.fullmatch(part.barred, "a </parameter> b")
    assert (part.before, part.after) == ("\n<parameter=a>\n", "\n</parameter>")
