"""`POST /v1/messages` and `/v1/messages/count_tokens`: the request's parameters. Messages and
blocks stay plain dicts; see `cortex_core.translate.anthropic_input`."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from cortex_core.envelopes.parameters import decode_request
from cortex_core.envelopes.sampling import check_range
from cortex_core.errors import InvalidRequest, ThreadUnsupported, UnsupportedParameter

__all__ = [
    "IGNORED_PARAMETERS",
    "JsonFormat",
    "MessagesRequest",
    "OutputConfig",
    "Thinking",
    "ToolUseChoice",
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


_NOT_PARALLEL = "tool_choice.disable_parallel_tool_use"


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


class ToolUseChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`name` for `tool` alone, and required there."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


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
    tool_choice: ToolUseChoice | None = None
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
    """The checked request and the names of what has no effect. Of a count's request only that is
    left which its prompt is made of.

    Raises InvalidJson, InvalidRequest or UnsupportedParameter, each naming the parameter.
    """
    request, ignored = decode_request(body, MessagesRequest, IGNORED_PARAMETERS)
    if not request.model:
        raise InvalidRequest("model: must not be empty", param="model")
    if not request.messages:
        raise InvalidRequest("messages: must hold at least one message", param="messages")
    if request.max_tokens is None and not is_count:
        raise InvalidRequest("max_tokens: missing required parameter", param="max_tokens")
    check_range("max_tokens", request.max_tokens)
    if request.thread is not None:
        raise ThreadUnsupported(
            "thread: no conversation is kept here; send it whole, without `thread`", param="thread"
        )
    if request.mcp_servers:
        raise UnsupportedParameter(
            "mcp_servers: servers of tools are not called from here", param="mcp_servers"
        )
    _check_thinking(request.thinking)
    _check_choice(request.tool_choice)
    if request.output_config and request.output_config.effort and not request.is_thinking:
        ignored.append("output_config.effort")
    choice = request.tool_choice
    if choice is not None and not request.tools and choice.type in ("auto", "none"):
        ignored.append("tool_choice")
        request = replace(request, tool_choice=None)
    elif choice is not None and choice.type == "none" and choice.disable_parallel_tool_use:
        ignored.append(_NOT_PARALLEL)
        request = replace(request, tool_choice=ToolUseChoice("none"))
    return _counted(request, ignored) if is_count else (request, ignored)


_BLANK = MessagesRequest("", [])
_OF_ANSWERS = (
    "max_tokens",
    "output_format",
    "stop_sequences",
    "stream",
    "temperature",
    "top_k",
    "top_p",
)
"""What no prompt is made of."""


def _counted(request: MessagesRequest, ignored: list[str]) -> tuple[MessagesRequest, list[str]]:
    given = [name for name in _OF_ANSWERS if getattr(request, name) != getattr(_BLANK, name)]
    counted = replace(request, **{name: getattr(_BLANK, name) for name in given})
    thinking, output, choice = request.thinking, request.output_config, request.tool_choice
    if thinking is not None:
        parts = ("budget_tokens", "display")
        given += [f"thinking.{name}" for name in parts if getattr(thinking, name) is not None]
        counted = replace(counted, thinking=Thinking(thinking.type))
    if output is not None and output.format is not None:
        given.append("output_config.format")
        counted = replace(counted, output_config=OutputConfig(output.effort))
    if choice is not None and choice.disable_parallel_tool_use:
        given.append(_NOT_PARALLEL)
        counted = replace(counted, tool_choice=ToolUseChoice(choice.type, choice.name))
    return counted, ignored + given


def _check_choice(choice: ToolUseChoice | None) -> None:
    if choice is None or (choice.type == "tool") == (choice.name is not None):
        return
    problem = "missing" if choice.name is None else f"is not for type {choice.type!r}"
    raise InvalidRequest(f"tool_choice.name: {problem}", param="tool_choice.name")


def _check_thinking(thinking: Thinking | None) -> None:
    if thinking is None:
        return
    param, budget = "thinking.budget_tokens", thinking.budget_tokens
    if (thinking.type == "enabled") != (budget is not None):
        problem = "missing" if budget is None else f"is not for type {thinking.type!r}"
        raise InvalidRequest(f"{param}: {problem}", param=param)
    check_range(param, budget, like="max_tokens")
