"""What a request may say about its answer's content, the same on every route that makes text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cortex_core.envelopes.openai_chat import decode_chat_request
from cortex_core.envelopes.openai_completions import decode_completion_request
from cortex_core.errors import InvalidRequest
from cortex_core.wire.sampling import Grammar

Decode = Callable[[bytes], tuple[Any, list[str]]]

ROUTES: list[tuple[Decode, dict[str, Any]]] = [
    (decode_chat_request, {"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
    (decode_completion_request, {"model": "m", "prompt": "hi"}),
]
SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}}
WHERE = "response_format.json_schema.schema"


def schema_format(schema: Any = SCHEMA, **more: Any) -> dict[str, Any]:
    inner = {"name": "x", "schema": schema} | more
    return {"response_format": {"type": "json_schema", "json_schema": inner}}


def decoded(decode: Decode, body: dict[str, Any], **more: Any) -> Any:
    return decode(msgspec.json.encode(body | more))[0]


@pytest.mark.parametrize(("decode", "body"), ROUTES)
@pytest.mark.parametrize("more", [{}, {"description": "d"}])
def test_a_schemas_description_has_no_effect(
    decode: Decode, body: dict[str, Any], more: dict[str, Any]
) -> None:
    ignored = decode(msgspec.json.encode(body | schema_format(**more)))[1]
    assert ignored == [f"response_format.json_schema.{name}" for name in more]


@pytest.mark.parametrize(("decode", "body"), ROUTES)
@pytest.mark.parametrize(
    ("given", "kind", "text", "param"),
    [
        ({"grammar": "root ::= x"}, "gbnf", "root ::= x", "grammar"),
        ({"regex": "a+"}, "regex", "a+", "regex"),
        (
            {"response_format": {"type": "json_object"}},
            "json_schema",
            '{"type": "object"}',
            "response_format",
        ),
        (schema_format(None), "json_schema", '{"type": "object"}', "response_format"),
        (schema_format(True, strict=True, description="d"), "json_schema", "true", WHERE),
    ],
)
def test_each_is_a_grammar(
    decode: Decode, body: dict[str, Any], given: Any, kind: Any, text: str, param: str
) -> None:
    assert decoded(decode, body, **given).content_grammar == Grammar(kind, text, param)


@pytest.mark.parametrize(("decode", "body"), ROUTES)
def test_a_schema_goes_along_as_it_is(decode: Decode, body: dict[str, Any]) -> None:
    grammar = decoded(decode, body, **schema_format()).content_grammar
    assert msgspec.json.decode(grammar.text) == SCHEMA
    assert grammar.param == WHERE


@pytest.mark.parametrize(("decode", "body"), ROUTES)
@pytest.mark.parametrize("given", [{}, {"response_format": {"type": "text"}}])
def test_text_is_free(decode: Decode, body: dict[str, Any], given: Any) -> None:
    assert decoded(decode, body, **given).content_grammar is None


@pytest.mark.parametrize(("decode", "body"), ROUTES)
@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "text", "json_schema": {"name": "x"}}},
            "response_format.json_schema",
        ),
        ({"response_format": {"type": "json_object", "x": 1}}, "response_format"),
        (schema_format(3), WHERE),
        (schema_format(schema_={}), "response_format.json_schema"),
        ({"regex": "a", "grammar": "b"}, "regex"),
        ({"regex": "a", **schema_format()}, "response_format"),
        ({"regex": ""}, "regex"),
        ({"grammar": ""}, "grammar"),
        ({"grammar": 3}, "grammar"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    decode: Decode, body: dict[str, Any], given: Any, param: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decoded(decode, body, **given)
    assert refused.value.param == param
