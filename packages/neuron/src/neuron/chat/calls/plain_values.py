"""What an argument may be that is written as plain text, by its schema. Pure.

The other way round than `argument`: whatever is written by this, that reads as a value the schema
takes. It need not be all that the schema takes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from neuron.chat.calls.argument import Kinds, argument, kinds_of, resolved

__all__ = ["Plain", "Unwritable", "object_schema", "plain_value", "spelt"]

_ANYTHING = "(?s:.*)"
_SCALARS = {
    "null": "null",
    "boolean": "true|false",
    "integer": "-?(?:0|[1-9][0-9]{0,17})",
    "number": r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,17})?",
}
_SPACE = r"[\s\x00-\x1f]*"
_NUMBERS = _SPACE + "[-0-9]" + _ANYTHING
_CONTAINERS = _SPACE + r"[\[{]" + _ANYTHING
_NARROWING = frozenset(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"))
_OPEN = frozenset(("not", "if", "allOf"))  # what may narrow a value of any type
_OF_TYPES = frozenset(("items", "prefixItems", "minItems", "minProperties", "minLength", "pattern"))
_BESIDE_UNIONS = frozenset(
    ("anyOf", "oneOf", "title", "description", "default", "examples", "type", "nullable")
)
_COMBINING = (
    "allOf", "anyOf", "oneOf", "not", "if", "patternProperties", "propertyNames",
    "dependentRequired", "dependentSchemas", "minProperties", "maxProperties",
)  # fmt: skip
_NOT_REGULAR = re.compile(r"\(\?[=!<]|\\[bB1-9]")
_IN_PATTERN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[()|^$]", re.DOTALL)
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")
_MAX_DEPTH = 16

Schema = Mapping[str, Any]


class Unwritable(Exception):
    """What in a schema cannot be held to in plain text."""


@dataclass(slots=True)
class Plain:
    """A text that matches `text` and not `barred`, or JSON by `schema`; None where not so."""

    text: str = ""
    barred: list[str] = field(default_factory=list)
    schema: dict[str, Any] | None = None


def object_schema(parameters: Any, *, is_strict: bool) -> tuple[dict[str, Any], list[str]]:
    """The schemas of the arguments by name, in their order, and the names of those that have to be
    there. Raises Unwritable for what holds between arguments; without `is_strict` that is passed
    over, if it lists no arguments of its own."""
    root: Schema = parameters if isinstance(parameters, Mapping) else {}
    top: Any = root
    for _ in range(_MAX_DEPTH):
        if not isinstance(top, Mapping) or not isinstance(top.get("$ref"), str):
            break
        top = resolved(top["$ref"], root)
    if not isinstance(top, Mapping) or "$ref" in top:
        raise Unwritable(f"$ref {root.get('$ref')!r}")
    listed = top.get("properties")
    schemas: dict[str, Any] = dict(listed) if isinstance(listed, Mapping) else {}
    for keyword in _COMBINING:
        if keyword in top and (is_strict or not schemas):
            raise Unwritable(keyword)
    required = [name for name in top.get("required") or () if isinstance(name, str)]
    others = top.get("additionalProperties")
    for name in required:
        if name in schemas:
            continue
        if others is False:
            raise Unwritable(f"required: {name!r} is not among the properties")
        schemas[name] = others if isinstance(others, Mapping) else {}
    return schemas, required


def plain_value(schema: Any, root: Any, *, is_strict: bool) -> Plain:
    """Of an argument of this schema, which refers to others in `root`. Raises Unwritable; without
    `is_strict`, what cannot be held to is passed over where anything can be written at all."""
    root = root if isinstance(root, Mapping) else {}
    kinds = kinds_of(schema, root)
    if kinds and "string" not in kinds:
        return Plain(schema=_alone(schema, root))
    return _Reading(root, kinds, is_strict).plain(schema)


class _Reading:
    """Of a schema that takes strings, into what is written for each of its alternatives."""

    def __init__(self, root: Schema, kinds: Kinds, is_strict: bool) -> None:
        self._root = root
        self._kinds = kinds
        self._is_strict = is_strict
        self._barred: list[str] = []

    def plain(self, schema: Any) -> Plain:
        texts: list[str] = []
        held: list[dict[str, Any]] = []
        for leaf in self._leaves(schema, 0):
            kind = leaf.get("type")
            if "enum" in leaf or "const" in leaf:
                texts += self._literals(leaf)
            elif kind in ("object", "array") or (kind in _SCALARS and _NARROWING & leaf.keys()):
                self._barred.append(_CONTAINERS if kind in ("object", "array") else _NUMBERS)
                held.append(dict(leaf))
            elif kind in _SCALARS:
                self._check(leaf, _OPEN)
                texts.append(_SCALARS[kind])
            elif kind == "string":
                texts.append(self._string(leaf))
            else:
                self._check(leaf, _OPEN | _OF_TYPES | _NARROWING)
                texts.append(_ANYTHING)
        if not texts and not held:
            raise Unwritable("no value")
        return Plain(
            "|".join(f"(?:{text})" for text in texts),
            list(dict.fromkeys(self._barred)),
            _alone(held[0] if len(held) == 1 else {"anyOf": held}, self._root) if held else None,
        )

    def _leaves(self, schema: Any, depth: int) -> Iterator[Schema]:
        """The alternatives, each of one type, or of any."""
        if schema is False:
            return
        if depth > _MAX_DEPTH:
            raise Unwritable("references without an end")
        if not isinstance(schema, Mapping):
            yield {}
            return
        if isinstance(schema.get("$ref"), str):
            found = resolved(schema["$ref"], self._root)
            if found is None:
                raise Unwritable(f"$ref {schema['$ref']!r}")
            yield from self._leaves(found, depth + 1)
            return
        for union in ("anyOf", "oneOf", "allOf"):
            parts = schema.get(union)
            if not isinstance(parts, list) or (union == "allOf" and len(parts) != 1):
                continue
            self._check(schema, schema.keys() - _BESIDE_UNIONS - {union})
            leaves = [leaf for part in parts for leaf in self._leaves(part, depth + 1)]
            if (
                union == "oneOf"
                and sum(leaf.get("type") in (None, "string") for leaf in leaves) > 1
            ):
                self._check(schema, frozenset(("oneOf",)))
            yield from leaves
            return
        kind = schema.get("type")
        if "enum" in schema or "const" in schema or not isinstance(kind, list):
            yield schema
            return
        for each in kind:
            yield {**schema, "type": each}

    def _check(self, leaf: Schema, unheld: frozenset[str] | set[str]) -> None:
        if self._is_strict and (found := sorted(leaf.keys() & unheld)):
            raise Unwritable(found[0])

    def _literals(self, leaf: Schema) -> Iterator[str]:
        """The listed values, as far as each reads as itself."""
        self._check(leaf, _OPEN | {"pattern", "minLength", "maxLength"} | _NARROWING)
        for value in leaf["enum"] if "enum" in leaf else [leaf["const"]]:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            is_text_only = self._kinds == {"string"}
            read = text if is_text_only else json.loads(argument(text, self._kinds))
            if read == value and type(read) is type(value):
                yield spelt(text)

    def _string(self, leaf: Schema) -> str:
        self._check(leaf, _OPEN | {"format"})
        least, most = leaf.get("minLength") or 0, leaf.get("maxLength")
        pattern = leaf.get("pattern")
        whole = _whole(pattern) if isinstance(pattern, str) else None
        if whole is None:
            if pattern is not None and self._is_strict:
                raise Unwritable(f"pattern {pattern!r}")
            return f"(?s:.{{{least},{'' if most is None else most}}})"
        if least:
            self._barred.append(f"(?s:.{{0,{least - 1}}})")
        if most is not None:
            self._barred.append(f"(?s:.{{{most + 1},}})")
        return whole


def spelt(text: str) -> str:
    """A regular expression of this text alone."""
    return _SPECIAL.sub(r"\\\g<0>", text)


def _whole(pattern: str) -> str | None:
    """For all of a text in which `pattern` is found; None if that cannot be said regularly."""
    if _NOT_REGULAR.search(pattern):
        return None
    wholes: list[str] = []
    start = depth = 0
    anchors: list[int] = []
    for met in [*_IN_PATTERN.finditer(pattern), None]:
        mark = "|" if met is None else met[0]
        at = len(pattern) if met is None else met.start()
        depth += (mark == "(") - (mark == ")")
        if mark in ("^", "$"):
            anchors.append(at)
        if mark != "|" or (depth and met is not None):
            continue
        is_begun, is_ended = start in anchors, at - 1 in anchors and pattern[at - 1] == "$"
        is_begun = is_begun and pattern[start] == "^"
        if len(anchors) != is_begun + is_ended:
            return None
        inner = pattern[start + is_begun : at - is_ended]
        before, after = "" if is_begun else _ANYTHING, "" if is_ended else _ANYTHING
        wholes.append(f"{before}(?:{inner}){after}")
        start, anchors = at + 1, []
    return "|".join(wholes)


def _alone(schema: Any, root: Schema) -> dict[str, Any]:
    """With the definitions that it may refer to."""
    shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
    return shared | dict(schema)
