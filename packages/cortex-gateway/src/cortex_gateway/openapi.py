"""What the gateway answers, as an OpenAPI document made from the types that decode and encode it.

The public routes and nothing of /admin. A route that is not described here fails a test.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import msgspec

import cortex_gateway
from cortex_core.envelopes import (
    anthropic,
    openai_chat,
    openai_completions,
    openai_embeddings,
    openai_responses,
    rerank,
)
from cortex_core.envelopes.anthropic_models import MOST_LISTED, ModelInfo, ModelPage
from cortex_core.envelopes.models import ListedModel, ModelList
from cortex_core.envelopes.tokens import (
    Counted,
    Detokenized,
    DetokenizeRequest,
    RenderedChat,
    Tokenized,
    TokenizeRequest,
)
from cortex_core.errors import Overrun
from cortex_gateway.openapi_shapes import SHAPES, bounded

__all__ = ["OPERATIONS", "Operation", "document"]

_AT = "#/components/schemas/"
_REFERENCE = re.compile(rf'"{_AT}(\w+)"'.encode())


class ErrorDetail(msgspec.Struct):
    """`overrun`: only of a prompt that is too long."""

    message: str
    type: str
    code: str
    param: str | None
    overrun: Overrun | msgspec.UnsetType = msgspec.UNSET


class Error(msgspec.Struct):
    """Of OpenAI's routes and all that are cortex's own."""

    error: ErrorDetail


class AnthropicErrorCode(msgspec.Struct):
    error_code: str


class AnthropicErrorDetail(msgspec.Struct):
    type: str
    message: str
    details: AnthropicErrorCode


class AnthropicError(msgspec.Struct, tag="error"):
    """Of Anthropic's routes."""

    error: AnthropicErrorDetail


class InputTokens(msgspec.Struct):
    input_tokens: int


class Parameter(NamedTuple):
    """`place`: query, path or header."""

    name: str
    place: str
    schema: Mapping[str, Any]


class Operation(NamedTuple):
    """`takes`: what decodes the body; `ignored`: what it may hold without effect; `required`:
    beyond what decoding requires. `gives`: what a whole answer may be; an object that no type
    describes, where it is empty. `fails`: what a refusal may be. `streams`: it may answer with
    server-sent events."""

    summary: str
    takes: type[msgspec.Struct] | None = None
    gives: tuple[type[msgspec.Struct], ...] = ()
    ignored: Collection[str] = ()
    required: Collection[str] = ()
    parameters: Collection[Parameter] = ()
    fails: tuple[type[msgspec.Struct], ...] = (Error,)
    streams: bool = False


_PRIORITY = Parameter("x-cortex-priority", "header", {"enum": ["interactive", "batch"]})
_THINKING = Parameter("x-include-thinking", "header", {"enum": ["1", "true", "yes"]})
_MODEL = Parameter("model", "path", {"type": "string", "minLength": 1})
_RESPONSE = Parameter("response", "path", {"type": "string", "minLength": 1})
_VERSION = Parameter("anthropic-version", "header", {"type": "string", "examples": ["2023-06-01"]})
_PAGES = (
    Parameter(
        "limit", "query", {"type": "integer", "minimum": 1, "maximum": MOST_LISTED, "default": 20}
    ),
    Parameter("after_id", "query", {"type": "string"}),
    Parameter("before_id", "query", {"type": "string"}),
    Parameter(
        "lifecycle",
        "query",
        {"type": "array", "items": {"enum": ["active", "deprecated", "retired"]}},
    ),
)

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/chat/completions"): Operation(
        "Answer a conversation (OpenAI).",
        openai_chat.ChatRequest,
        (openai_chat.ChatCompletion,),
        openai_chat.IGNORED_PARAMETERS,
        parameters=(_PRIORITY, _THINKING),
        streams=True,
    ),
    ("POST", "/v1/chat/render"): Operation(
        "The prompt that a conversation would be, and its tokens.",
        openai_chat.ChatRequest,
        (RenderedChat, Counted),
        openai_chat.IGNORED_PARAMETERS,
        parameters=(Parameter("tokens", "query", {"enum": ["true", "false", "pieces"]}),),
    ),
    ("POST", "/v1/completions"): Operation(
        "Go on with a text (OpenAI).",
        openai_completions.CompletionRequest,
        (openai_completions.Completion,),
        openai_completions.IGNORED_PARAMETERS,
        parameters=(_PRIORITY,),
        streams=True,
    ),
    ("POST", "/v1/embeddings"): Operation(
        "A vector for each input (OpenAI).",
        openai_embeddings.EmbeddingRequest,
        (openai_embeddings.EmbeddingList,),
        openai_embeddings.IGNORED_PARAMETERS,
    ),
    ("POST", "/v1/rerank"): Operation(
        "Which documents answer a query best.", rerank.RerankRequest, (rerank.Reranking,)
    ),
    ("POST", "/v1/messages"): Operation(
        "Answer a conversation (Anthropic).",
        anthropic.MessagesRequest,
        (),
        anthropic.IGNORED_PARAMETERS,
        required=("max_tokens",),
        parameters=(_PRIORITY,),
        fails=(AnthropicError,),
        streams=True,
    ),
    ("POST", "/v1/messages/count_tokens"): Operation(
        "How many tokens a conversation's prompt has (Anthropic).",
        anthropic.MessagesRequest,
        (InputTokens,),
        anthropic.IGNORED_PARAMETERS,
        fails=(AnthropicError,),
    ),
    ("POST", "/v1/responses"): Operation(
        "Answer a conversation (OpenAI's Responses).",
        openai_responses.ResponsesRequest,
        (),
        openai_responses.IGNORED_PARAMETERS,
        parameters=(_PRIORITY,),
        streams=True,
    ),
    ("GET", "/v1/responses/{response}"): Operation(
        "A response that was kept.", parameters=(_RESPONSE,)
    ),
    ("DELETE", "/v1/responses/{response}"): Operation(
        "Forget a response.", parameters=(_RESPONSE,)
    ),
    ("GET", "/v1/responses/{response}/input_items"): Operation(
        "The items that a response answered.",
        parameters=(
            _RESPONSE,
            Parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": 100}),
            Parameter("order", "query", {"enum": ["asc", "desc"]}),
            Parameter("after", "query", {"type": "string"}),
        ),
    ),
    ("POST", "/v1/responses/{response}/cancel"): Operation(
        "Refused: no response is made in the background.", parameters=(_RESPONSE,)
    ),
    ("GET", "/v1/models"): Operation(
        "What can be asked for; to whoever sends an anthropic-version page by page, as that vendor "
        "has it.",
        gives=(ModelList, ModelPage),
        fails=(Error, AnthropicError),
        parameters=(_VERSION, *_PAGES),
    ),
    ("GET", "/v1/models/{model}"): Operation(
        "One of the models, by its id or an alias; likewise.",
        gives=(ListedModel, ModelInfo),
        fails=(Error, AnthropicError),
        parameters=(_VERSION, _MODEL),
    ),
    ("POST", "/tokenize"): Operation("A text's tokens.", TokenizeRequest, (Tokenized,)),
    ("POST", "/detokenize"): Operation("The text of tokens.", DetokenizeRequest, (Detokenized,)),
    ("GET", "/health"): Operation("Whether the gateway serves, and which nodes it reaches."),
    ("GET", "/version"): Operation("Which gateway this is."),
    ("GET", "/openapi.json"): Operation("This document."),
}


@cache
def document() -> bytes:
    """The document as JSON."""
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = _described(operation)
    value = {
        "openapi": "3.1.0",
        "info": {"title": "cortex", "version": cortex_gateway.__version__},
        "paths": paths,
        "components": {"schemas": _reached(paths, _schemas())},
    }
    # A type that is private in its module is not so to whoever reads this.
    return msgspec.json.encode(value).replace(_AT.encode() + b"_", _AT.encode())


def _described(operation: Operation) -> dict[str, Any]:
    schema = _any_of(operation.gives)
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if operation.streams:
        content["text/event-stream"] = {}  # no one schema says what a stream of events is
    described: dict[str, Any] = {
        "summary": operation.summary,
        "parameters": [_parameter(each) for each in operation.parameters],
        "responses": {
            "200": {"description": "The answer.", "content": content},
            "default": {
                "description": "Why there is none.",
                "content": {"application/json": {"schema": _any_of(operation.fails)}},
            },
        },
    }
    if operation.takes is not None:
        schema = _reference(operation.takes)
        if operation.required:
            given = {name: {"not": {"type": "null"}} for name in operation.required}
            schema = {"allOf": [schema, {"required": list(given), "properties": given}]}
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        described["requestBody"] = body
    return described


def _parameter(of: Parameter) -> dict[str, Any]:
    is_required = of.place == "path"
    return {"name": of.name, "in": of.place, "required": is_required, "schema": of.schema}


def _any_of(kinds: Sequence[type[msgspec.Struct]]) -> dict[str, Any]:
    given = [_reference(kind) for kind in kinds]
    return {"anyOf": given} if len(given) > 1 else given[0] if given else {"type": "object"}


def _reference(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": _AT + kind.__name__}


def _schemas() -> dict[str, Any]:
    kinds: list[Any] = [
        kind for fields in SHAPES.values() for shapes in fields.values() for kind in shapes
    ]
    for operation in OPERATIONS.values():
        kinds += [*operation.gives, *operation.fails]
        if operation.takes is not None:
            kinds.append(operation.takes)
    given, schemas = msgspec.json.schema_components(kinds, ref_template=_AT + "{name}")
    for schema in schemas.values():
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
    shapes = iter(given)
    for name, fields in SHAPES.items():
        for field, choices in fields.items():
            found = [next(shapes) for _ in choices]
            schemas[name]["properties"][field] = found[0] if len(found) == 1 else {"anyOf": found}
    for operation in OPERATIONS.values():
        if operation.takes is not None:
            schema = schemas[operation.takes.__name__]
            schema["properties"]["model"] = {"type": "string", "minLength": 1}
            bounded(schema)
            _close(schema, operation.ignored)
    return schemas


def _reached(paths: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """Those that the paths speak of: a field that was given other shapes leaves its own behind."""
    reached: set[str] = set()
    left: list[Any] = [paths]
    while left:
        found = {name.decode() for name in _REFERENCE.findall(msgspec.json.encode(left.pop()))}
        left += [schemas[name] for name in found - reached]
        reached |= found
    return {name.lstrip("_"): schema for name, schema in schemas.items() if name in reached}


def _close(schema: dict[str, Any], ignored: Iterable[str]) -> None:
    """No parameter is unknown and taken all the same."""
    for name in sorted(ignored):
        schema["properties"].setdefault(name, {"description": "Has no effect here."})
    schema["additionalProperties"] = False
