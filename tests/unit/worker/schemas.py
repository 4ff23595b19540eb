"""Sixty JSON schemas, as clients write them: what an answer may have to look like."""

from __future__ import annotations

from typing import Any

__all__ = ["SCHEMAS", "closed"]


def closed(**properties: Any) -> dict[str, Any]:
    """An object with exactly these."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def listed(items: Any, **bounds: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "maxItems": 3} | bounds


def whole(low: int, high: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": high}


TEXT = {"type": "string", "maxLength": 12}
DIGIT = whole(0, 9)
FLAG = {"type": "boolean"}
COLOUR = {"enum": ["red", "green", "blue"]}
POINT = closed(x=DIGIT, y=DIGIT)

SCHEMAS: dict[str, Any] = {
    "boolean": FLAG,
    "null": {"type": "null"},
    "whole number in bounds": whole(-5, 120),
    "whole number above": {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 12},
    "number in bounds": {"type": "number", "minimum": 0, "maximum": 1},
    "multiple": {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100},
    "short text": TEXT,
    "text of a length": {"type": "string", "minLength": 3, "maxLength": 5},
    "empty text": {"type": "string", "maxLength": 0},
    "one of some texts": COLOUR,
    "one of anything": {"enum": [1, "two", None, True, {"three": 3}, [4]]},
    "constant": {"const": "yes"},
    "constant object": {"const": {"a": [1, 2], "b": None}},
    "unicode constant": {"const": "Grüße, 世界 🙂"},
    "unicode choice": {"enum": ["é", "日本", "🚀", "\\", '"', "\n"]},
    "unicode key": closed(größe=DIGIT, 名前=COLOUR),
    "key with marks": closed(**{'a"b\\c/d': DIGIT}),
    "several types": {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
    "text or nothing": {"type": ["string", "null"], "maxLength": 4},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"},
    "pattern with choice": {"type": "string", "pattern": "^(foo|bar|ba[zx])$"},
    "unicode pattern": {"type": "string", "pattern": "^[äöü]{1,3}$"},
    "pattern with escapes": {"type": "string", "pattern": r"^\d{1,3}\.\d{2}$"},
    "date": {"type": "string", "format": "date"},
    "time of day": {"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"},
    "uuid": {"type": "string", "format": "uuid"},
    "address of a host": {"type": "string", "format": "ipv4"},
    "object": closed(name=TEXT, age=whole(0, 150)),
    "object with choices": {"type": "object", "properties": {"a": DIGIT, "b": FLAG, "c": COLOUR},
                            "required": ["b"], "additionalProperties": False},
    "empty object": closed(),
    "nested": closed(a=closed(b=closed(c=closed(d=DIGIT)))),
    "nested lists": listed(listed(listed(DIGIT, minItems=1), minItems=1), minItems=1),
    "two objects": closed(origin=POINT, target=POINT),
    "more properties": {"type": "object", "properties": {"a": DIGIT}, "required": ["a"],
                        "additionalProperties": FLAG, "maxProperties": 2},
    "properties by pattern": {"type": "object", "patternProperties": {"^n[0-9]$": DIGIT},
                              "additionalProperties": False, "maxProperties": 2},
    "number of properties": {"type": "object", "additionalProperties": DIGIT,
                             "minProperties": 1, "maxProperties": 2},
    "list": listed(DIGIT),
    "list of a size": listed(FLAG, minItems=2, maxItems=2),
    "list of at least": listed(COLOUR, minItems=1, maxItems=4),
    "empty list": listed(DIGIT, maxItems=0),
    "tuple": {"type": "array", "prefixItems": [DIGIT, COLOUR, FLAG], "items": False, "minItems": 3},
    "tuple and more": {"type": "array", "prefixItems": [COLOUR], "items": DIGIT, "minItems": 1,
                       "maxItems": 3},
    "list of objects": listed(POINT, minItems=1, maxItems=2),
    "list of mixed": listed({"anyOf": [DIGIT, COLOUR, POINT]}, minItems=1),
    "any of": {"anyOf": [DIGIT, COLOUR]},
    "any of objects": {"anyOf": [closed(kind={"const": "a"}, a=DIGIT),
                                 closed(kind={"const": "b"}, b=COLOUR)]},
    "any of with common": {"type": "object", "properties": {"id": DIGIT}, "required": ["id"],
                           "anyOf": [{"properties": {"id": whole(0, 3)}},
                                     {"properties": {"id": whole(6, 9)}}],
                           "additionalProperties": False},
    "all of": {"allOf": [whole(0, 60), {"type": "integer", "minimum": 50}]},
    "all of objects": {"allOf": [closed(a=DIGIT), closed(a=whole(4, 20))]},
    "one of apart": {"oneOf": [{"type": "boolean"}, {"type": "null"}]},
    "reference": {"$ref": "#/$defs/point", "$defs": {"point": POINT}},
    "references": {"$defs": {"p": POINT, "c": COLOUR},
                   **closed(a={"$ref": "#/$defs/p"}, b={"$ref": "#/$defs/c"})},
    "reference to a reference": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"},
                                                                "b": COLOUR}},
    "older definitions": {"$ref": "#/definitions/c", "definitions": {"c": COLOUR}},
    "tree": {"$ref": "#/$defs/node", "$defs": {"node": closed(
        value=DIGIT, next={"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]})}},
    "tree of lists": {"$ref": "#/$defs/node", "$defs": {"node": closed(
        v=DIGIT, children=listed({"$ref": "#/$defs/node"}, maxItems=1))}},
    "with words about it": {"$schema": "https://json-schema.org/draft/2020-12/schema",
                            "title": "T", "description": "d", "default": 1, "examples": [1],
                            **closed(a=DIGIT | {"description": "a digit"})},
    "person": closed(name=TEXT, tags=listed(COLOUR), born={"type": "string", "format": "date"},
                     home=closed(city=TEXT, zip={"type": "string", "pattern": "^[0-9]{5}$"})),
    "call": closed(name={"const": "get_weather"}, arguments=closed(city=TEXT, days=whole(1, 7))),
    "extraction": closed(items=listed(closed(label=COLOUR, score={"type": "number", "minimum": 0,
                                                                  "maximum": 1}), minItems=1)),
}  # fmt: skip
