"""Plain text becomes the value its schema asks for, and a string where it fits none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.chat.calls.argument import Schemas, argument, is_text, may_hold_end, schemas_of


def _value(text: str, schema: Any) -> Any:
    kinds = Schemas({"properties": {"x": schema}}).kinds("x")
    return json.loads(argument(text, kinds), parse_constant=lambda constant: pytest.fail(constant))


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("5", {"type": "string"}, "5"),
        (" a\n", {"type": "string"}, " a\n"),
        ("null", {"type": "string"}, "null"),
        ("5", {"type": "integer"}, 5),
        (" 5\n", {"type": "integer"}, 5),
        ("5.0", {"type": "integer"}, 5),
        ("5.5", {"type": "integer"}, "5.5"),
        ("007", {"type": "integer"}, "007"),
        ("-1.5e3", {"type": "number"}, -1500.0),
        ("5", {"type": "number"}, 5),
        ("NaN", {"type": "number"}, "NaN"),
        ("True", {"type": "boolean"}, True),
        ("no", {"type": "boolean"}, "no"),
        ('{"a": [1]}', {"type": "object"}, {"a": [1]}),
        ("{'a': True, 'b': None}", {"type": "object"}, {"a": True, "b": None}),
        ("{'a': {1, 2}}", {"type": "object"}, "{'a': {1, 2}}"),
        ("{'a': float('nan')}", {"type": "object"}, "{'a': float('nan')}"),
        ("[NaN]", {"type": "array"}, "[NaN]"),
        ("[1, 'b']", {"type": "array"}, [1, "b"]),
        ("[1]", {"type": "object"}, "[1]"),
        ("null", {"type": ["string", "null"]}, None),
        ("None", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, None),
        ("5", {"oneOf": [{"type": "integer"}, {"type": "string"}]}, 5),
        ("5", {"anyOf": [{"type": "string"}, False]}, "5"),
        ("5", {"anyOf": [{"type": "string"}, True]}, 5),
        ("5", {"anyOf": 5}, 5),
        ("5", {"anyOf": {"type": "string"}}, 5),
        ("five", {"oneOf": [{"type": "integer"}, {"type": "string"}]}, "five"),
        ("5", {"type": "integer", "nullable": True}, 5),
        ("null", {"type": "integer", "nullable": True}, None),
        ("2", {"enum": [1, 2]}, 2),
        ("2", {"enum": ["1", "2"]}, "2"),
        ("2", {"const": "2"}, "2"),
        ("{}", {"properties": {}}, {}),
        ("5", {}, 5),
        ("five", {}, "five"),
        ("None", {}, "None"),
        ("{'a': 1}", {}, "{'a': 1}"),
        ("5", {"anyOf": [{}, {"type": "string"}]}, 5),
        ("5", "no schema", 5),
        ("5", {"$ref": "elsewhere#/x"}, 5),
    ],
)
def test_a_value_is_the_most_specific_that_its_schema_allows(text: str, schema: Any, value: Any):
    assert _value(text, schema) == value
    assert type(_value(text, schema)) is type(value)


def test_references_inside_the_schema_are_followed():
    schemas = Schemas(
        {
            "$defs": {"a/b": {"type": "integer"}, "loop": {"$ref": "#/$defs/loop"}},
            "properties": {"x": {"$ref": "#/$defs/a~1b"}, "y": {"$ref": "#/$defs/loop"}},
            "additionalProperties": {"type": "boolean"},
        }
    )
    assert schemas.kinds("x") == {"integer"}
    assert schemas.kinds("y") == frozenset()
    assert schemas.kinds("z") == {"boolean"}


def test_only_a_plain_string_is_text_from_the_start():
    assert is_text(frozenset({"string"}))
    assert not is_text(frozenset({"string", "null"}))
    assert may_hold_end(frozenset({"string", "null"}))
    assert may_hold_end(frozenset())
    assert not may_hold_end(frozenset({"integer"}))


def test_schemas_of_strange_tools_know_nothing():
    schemas = schemas_of([{"function": {"name": "f", "parameters": [1]}}, {"name": "g"}, {}])
    assert schemas["f"].kinds("x") == schemas["g"].kinds("x") == frozenset()


@pytest.mark.parametrize("text", ["[" * 99_999, "{'a':" * 3000, "9" * 9999, "[" + "9" * 5000 + "]"])
def test_absurd_values_stay_what_they_are(text: str):
    for kind in ("array", "object"):
        assert argument(text, frozenset({kind})) in (json.dumps(text), text)
    assert argument(text, frozenset({"integer"})) in (json.dumps(text), text)


@given(text=st.text(), kinds=st.frozensets(st.sampled_from(["string", "object", "null", "array"])))
def test_whatever_comes_is_json(text: str, kinds: frozenset[str]):
    json.loads(argument(text, kinds))
