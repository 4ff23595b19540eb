"""`POST /v1/responses`: the request's parameters. Its items stay plain dicts; see
`cortex_core.translate.responses_input`."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from cortex_core.envelopes.parameters import decode_request
from cortex_core.envelopes.sampling import check_range
from cortex_core.errors import InvalidRequest, UnsupportedParameter

__all__ = [
    "ENCRYPTED_REASONING",
    "IGNORED_PARAMETERS",
    "INCLUDABLE",
    "LOGPROBS",
    "Reasoning",
    "ResponsesRequest",
    "TextFormat",
    "TextOptions",
    "decode_responses_request",
]

ENCRYPTED_REASONING = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"

# Parts of what hosted tools and images leave in an answer; here an answer never holds such a thing.
_NEVER_THERE = (
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
)

INCLUDABLE = (ENCRYPTED_REASONING, LOGPROBS, *_NEVER_THERE)
"""What `include` may name."""

IGNORED_PARAMETERS = frozenset(
    {
        "client_metadata",  # of Codex
        "max_tool_calls",  # it counts the calls of hosted tools
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "stream_options",  # obfuscation
        "user",
    }
)
"""Defined by the vendor, without effect on what a local model answers."""


class Reasoning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`summary`, of whatever kind: the reasoning is told as a summary, not as text."""

    effort: str | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None

    @property
    def is_summarised(self) -> bool:
        return (self.summary or self.generate_summary) is not None


class TextFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`schema` for json_schema alone, and required there."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None
    description: str | None = None


class TextOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesRequest(msgspec.Struct, frozen=True):
    """The parameters that are honoured, or read to be refused where they ask for what there is
    not. `tools` and `tool_choice` as they came."""

    model: str
    input: str | list[dict[str, Any]] = []
    instructions: str | None = None
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    include: list[str] = []
    metadata: dict[str, str] = {}
    store: bool = True
    previous_response_id: str | None = None
    stream: bool = False
    background: bool = False
    truncation: Literal["auto", "disabled"] = "disabled"


def decode_responses_request(body: bytes) -> tuple[ResponsesRequest, list[str]]:
    """The checked request and the names of what has no effect.

    Raises InvalidJson, InvalidRequest or UnsupportedParameter, each naming the parameter.
    """
    request, ignored = decode_request(body, ResponsesRequest, IGNORED_PARAMETERS)
    if not request.model:
        raise InvalidRequest("model: must not be empty", param="model")
    if not request.input and request.previous_response_id is None:
        raise InvalidRequest("input: missing required parameter", param="input")
    check_range("max_output_tokens", request.max_output_tokens, like="max_tokens")
    if request.background:
        raise UnsupportedParameter("background: answers are given at once only", param="background")
    if request.truncation == "auto":
        raise UnsupportedParameter(
            "truncation: 'auto' is unsupported; what is too long is refused", param="truncation"
        )
    _check_format(request.text.format if request.text else None)
    for name in request.include:
        if name in _NEVER_THERE:
            ignored.append(f"include.{name}")
        elif name not in (ENCRYPTED_REASONING, LOGPROBS):
            raise UnsupportedParameter(f"include: {name!r} is unsupported", param="include")
    if request.top_logprobs is not None and LOGPROBS not in request.include:
        ignored.append("top_logprobs")
    if request.text is not None:
        if request.text.verbosity is not None:
            ignored.append("text.verbosity")
        if request.text.format is not None and request.text.format.description is not None:
            ignored.append("text.format.description")
    return request, ignored


def _check_format(wanted: TextFormat | None) -> None:
    if wanted is None:
        return
    is_schema = wanted.type == "json_schema"
    for name in ("name", "schema"):
        value, param = getattr(wanted, name), f"text.format.{name}"
        if is_schema and value is None:
            raise InvalidRequest(f"{param}: missing required parameter", param=param)
        if not is_schema and value is not None:
            raise InvalidRequest(f"{param}: is not for type {wanted.type!r}", param=param)
