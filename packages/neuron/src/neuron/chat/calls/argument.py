"""Arguments written as plain text, made into JSON by the schema of the tool's parameters. Pure.

Formats that put values between tags do not say whether `5` is a number or a text; the schema does.
What does not fit its schema stays a string, for the tool itself to refuse.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "Kinds",
    "Schemas",
    "argument",
    "is_text",
    "kinds_of",
    "may_hold_end",
    "resolved",
    "schemas_of",
]

_INTEGER = re.compile(r"(-?(?:0|[1-9]\d*))(?:\.0+)?")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_MAX_LITERAL = 64 * 1024  # characters of a Python literal that is tried
_MAX_DEPTH = 16  # of references and unions in a schema

Kinds = frozenset[str]
_ANY: Kinds = frozenset()


class Schemas:
    """The schemas of one tool's parameters."""

    def __init__(self, parameters: Any) -> None:
        root = parameters if isinstance(parameters, Mapping) else {}
        listed = root.get("properties")
        self._root = root
        self._listed: Mapping[str, Any] = listed if isinstance(listed, Mapping) else {}
        self._kinds: dict[str, Kinds] = {}

    def kinds(self, key: str) -> Kinds:
        """The JSON types `key` may have; empty where the schema does not say."""
        if key not in self._kinds:
            schema = self._listed.get(key, self._root.get("additionalProperties"))
            self._kinds[key] = kinds_of(schema, self._root)
        return self._kinds[key]


def schemas_of(tools: Sequence[Mapping[str, Any]]) -> dict[str, Schemas]:
    """By the tool's name."""
    functions = [tool.get("function", tool) for tool in tools]
    return {
        function["name"]: Schemas(function.get("parameters"))
        for function in functions
        if isinstance(function.get("name"), str)
    }


def is_text(kinds: Kinds) -> bool:
    """Whether the value can only be a string, so that it is one from its first character."""
    return kinds == {"string"}


def may_hold_end(kinds: Kinds) -> bool:
    """Whether the value may hold text, and so its own closing tag."""
    return not kinds or not kinds.isdisjoint(("string", "object", "array"))


def argument(text: str, kinds: Kinds) -> str:
    """The JSON text of the value that `text` stands for: the most specific of `kinds` it fits."""
    bare = text.strip()
    if not kinds or kinds & {"object", "array"}:
        value = _container(bare, kinds)
        if value is not None:
            return value
    if _may(kinds, "null") and bare.lower() in ("null", "none") and (kinds or bare == "null"):
        return "null"
    if _may(kinds, "boolean") and bare.lower() in ("true", "false"):
        return bare.lower()
    if _may(kinds, "number") and _NUMBER.fullmatch(bare):
        return bare
    if _may(kinds, "integer") and (met := _INTEGER.fullmatch(bare)):
        return met[1]
    return json.dumps(text, ensure_ascii=False)


def _may(kinds: Kinds, kind: str) -> bool:
    return not kinds or kind in kinds


def _container(text: str, kinds: Kinds) -> str | None:
    """An object or list as JSON, or as Python writes it, which models do too."""
    if not text or text[0] not in "{[":
        return None
    try:
        value = json.loads(text, parse_constant=_refuse)
        written = text
    except (ValueError, RecursionError):
        if not kinds or len(text) > _MAX_LITERAL:
            return None
        try:
            value = ast.literal_eval(text)
            written = json.dumps(value, ensure_ascii=False, allow_nan=False)
            written.encode()
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    kind = {dict: "object", list: "array"}.get(type(value), "")
    return written if kind and _may(kinds, kind) else None


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


_KIND_OF = {
    str: "string", bool: "boolean", int: "integer", float: "number",
    type(None): "null", dict: "object", list: "array",
}  # fmt: skip


def kinds_of(schema: Any, root: Mapping[str, Any]) -> Kinds:
    """The JSON types that a schema takes, which refers to others in `root`; empty if any."""
    return _kinds(schema, root, 0)


def _kinds(schema: Any, root: Mapping[str, Any], depth: int) -> Kinds:
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return _ANY
    found: set[str] = set()
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _kinds(resolved(reference, root), root, depth + 1)
    given = schema.get("type")
    found.update(kind for kind in (given if isinstance(given, list) else [given]) if kind)
    if not found:
        for union in ("anyOf", "oneOf", "allOf"):
            parts = schema.get(union)
            parts = [part for part in parts if part is not False] if isinstance(parts, list) else ()
            kinds = [_kinds(part, root, depth + 1) for part in parts]
            if kinds and not all(kinds) and union != "allOf":
                return _ANY  # one of them takes anything
            found.update(*kinds)
    if not found:
        values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
        found.update(_KIND_OF.get(type(value), "") for value in values)
    if not found and "properties" in schema:
        found.add("object")
    if found and schema.get("nullable") is True:
        found.add("null")
    return frozenset(found - {""})


def resolved(reference: str, root: Mapping[str, Any]) -> Any:
    """What a reference inside the same schema points at; None for any other."""
    if not reference.startswith("#"):
        return None
    at: Any = root
    for step in reference[1:].split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        at = at.get(name) if isinstance(at, Mapping) else None
    return at
