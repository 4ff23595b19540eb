"""Parameters that say what an answer's content must be: `response_format`, `grammar`, `regex`."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from cortex_core.envelopes.sampling import SamplingParameters
from cortex_core.errors import InvalidRequest
from cortex_core.wire.sampling import Grammar

__all__ = [
    "ConstrainedParameters",
    "JsonSchemaFormat",
    "ResponseFormat",
    "check_constraints",
    "constraints_without_effect",
]

_ANY_OBJECT = '{"type": "object"}'
_encode = msgspec.json.Encoder().encode


class JsonSchemaFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`strict` changes nothing: the schema always holds. So does none: any JSON object."""

    name: str
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class ConstrainedParameters(SamplingParameters, frozen=True, kw_only=True):
    """One of the three at most."""

    response_format: ResponseFormat | None = None
    grammar: str | None = None
    regex: str | None = None

    @property
    def content_grammar(self) -> Grammar | None:
        if self.grammar is not None:
            return Grammar("gbnf", self.grammar, "grammar")
        if self.regex is not None:
            return Grammar("regex", self.regex, "regex")
        form = self.response_format
        if form is None or form.type == "text":
            return None
        wanted = form.json_schema
        if form.type == "json_object" or wanted is None or wanted.schema is None:
            return Grammar("json_schema", _ANY_OBJECT, "response_format")
        text = _encode(wanted.schema).decode()
        return Grammar("json_schema", text, "response_format.json_schema.schema")


def constraints_without_effect(request: ConstrainedParameters) -> list[str]:
    """What this API knows and no answer is made from."""
    form = request.response_format
    wanted = form.json_schema if form is not None else None
    is_described = wanted is not None and wanted.description is not None
    return ["response_format.json_schema.description"] if is_described else []


def check_constraints(request: ConstrainedParameters) -> None:
    """Raises InvalidRequest for two at once, and for a schema where there is none to be, or none
    where there should be."""
    form = request.response_format
    if form is not None and (form.type == "json_schema") != (form.json_schema is not None):
        param = "response_format.json_schema"
        wanted = "missing" if form.json_schema is None else f"is not for type {form.type!r}"
        raise InvalidRequest(f"{param}: {wanted}", param=param)
    given = [name for name in ("grammar", "regex") if getattr(request, name) is not None]
    if form is not None and form.type != "text":
        given.append("response_format")
    if len(given) > 1:
        raise InvalidRequest(
            f"{given[1]}: cannot be given together with {given[0]}", param=given[1]
        )
    for name in ("grammar", "regex"):
        if getattr(request, name) == "":
            raise InvalidRequest(f"{name}: must not be empty", param=name)
