"""`POST /v1/messages` and `/v1/messages/count_tokens`: the request's parameters. Messages and
blocks stay plain dicts; see `cortex_core.translate.anthropic_input`."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from cortex_core.envelopes.parameters import decode_request
from cortex_core.errors import InvalidRequest, ThreadUnsupported, UnsupportedParameter

__all__ = [
    "IGNORED_PARAMETERS",
    "JsonFormat",
    "MessagesRequest",
    "OutputConfig",
    "Thinking",
    "decode_messages_request",
]

IGNORED_PARAMETERS = frozenset(
    {
        "billing_policy",
        "cache_control",  # whatever a prompt begins with is cached anyway
        "context_management",  # what it would clear of a conversation is kept
        "diagnostics",
        "fallback_credit_token",
        "inference_geo",
        "metadata",
        "service_tier",
        "speed",
        "user_profile_id",
        "workspace_id",
    }
)
"""Defined by the vendor, without effect on what a local model answers."""


class Thinking(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`budget_tokens` for `enabled` alone, and required there. `display: omitted`: the client gets
    the thinking's seal and not its text."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None


class JsonFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["json_schema"]
    schema: dict[str, Any] | bool


class OutputConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    effort: str | None = None
    format: JsonFormat | None = None


class MessagesRequest(msgspec.Struct, frozen=True):
    """The honoured parameters, and two that are read to be refused: `thread` as its clients expect
    it, and `mcp_servers`, which some clients always send, unless there are none.
    `max_tokens` is required of all but a count."""

    model: str
    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    system: str | list[dict[str, Any]] | None = None
    stop_sequences: list[str] = []
    stream: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    tools: list[dict[str, Any]] = []
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = None
    thread: dict[str, Any] | None = None
    mcp_servers: list[Any] = []

    @property
    def is_thinking(self) -> bool:
        """Without a word about it there is none, as the vendor has it."""
        return self.thinking is not None and self.thinking.type != "disabled"

    @property
    def answer_format(self) -> JsonFormat | None:
        return (self.output_config.format if self.output_config else None) or self.output_format


def decode_messages_request(
    body: bytes, *, is_count: bool = False
) -> tuple[MessagesRequest, list[str]]:
    """The checked request and the names of what has no effect.

    Raises InvalidJson, InvalidRequest or UnsupportedParameter, each naming the parameter.
    """
    request, ignored = decode_request(body, MessagesRequest, IGNORED_PARAMETERS)
    if not request.model:
        raise InvalidRequest("model: must not be empty", param="model")
    if not request.messages:
        raise InvalidRequest("messages: must hold at least one message", param="messages")
    if request.max_tokens is None and not is_count:
        raise InvalidRequest("max_tokens: missing required parameter", param="max_tokens")
    if request.max_tokens is not None and request.max_tokens < 1:
        raise InvalidRequest(
            f"max_tokens: expected at least 1, got {request.max_tokens}", param="max_tokens"
        )
    if request.thread is not None:
        raise ThreadUnsupported(
            "thread: no conversation is kept here; send it whole, without `thread`", param="thread"
        )
    if request.mcp_servers:
        raise UnsupportedParameter(
            "mcp_servers: servers of tools are not called from here", param="mcp_servers"
        )
    _check_thinking(request.thinking)
    if request.output_config and request.output_config.effort and not request.is_thinking:
        ignored.append("output_config.effort")
    return request, ignored


def _check_thinking(thinking: Thinking | None) -> None:
    if thinking is None:
        return
    param, budget = "thinking.budget_tokens", thinking.budget_tokens
    if (thinking.type == "enabled") != (budget is not None):
        problem = "missing" if budget is None else f"is not for type {thinking.type!r}"
        raise InvalidRequest(f"{param}: {problem}", param=param)
    if budget is not None and budget < 1:
        raise InvalidRequest(f"{param}: expected at least 1, got {budget}", param=param)
