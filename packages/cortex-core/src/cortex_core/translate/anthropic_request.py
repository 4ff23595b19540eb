"""A request of the Anthropic API as a chat request."""

from __future__ import annotations

from typing import Any

import msgspec

from cortex_core.envelopes.anthropic import MessagesRequest, decode_messages_request
from cortex_core.envelopes.parameters import refusing_depth
from cortex_core.errors import InvalidRequest, UnsupportedParameter
from cortex_core.translate.anthropic import AnthropicTranslation
from cortex_core.translate.anthropic_input import (
    chat_messages,
    system_text,
    unseen_results,
    wants_citations,
)
from cortex_core.translate.fields import unread_of_tools
from cortex_core.translate.names import Names

__all__ = ["translate_messages"]

_encode = msgspec.json.Encoder().encode
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_NAMES = {
    "max_completion_tokens": "max_tokens",
    "max_thinking_tokens": "thinking.budget_tokens",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "reasoning_effort": "output_config.effort",
    "stop": "stop_sequences",
    "tool_choice.function": "tool_choice",
    "tools.function": "tools",
    "tools.function.parameters": "tools.input_schema",
}
# What a tool is made of, and what has no effect on tools as it has none on the whole request.
_TOOL_KEYS = frozenset({"type", "name", "description", "input_schema", "strict", "cache_control"})


@refusing_depth()
def translate_messages(
    body: bytes, *, is_count: bool = False, keeps_attribution: bool = False
) -> AnthropicTranslation:
    """`is_count`: only the prompt's length will be asked for. `keeps_attribution`: a coding agent's
    line of attribution stays in the system prompt.

    Raises InvalidJson, InvalidRequest or UnsupportedParameter, each naming the parameter.
    """
    request, ignored = decode_messages_request(body, is_count=is_count)
    chat: dict[str, Any] = {"model": request.model}
    system = system_text(request.system, keeps_attribution=keeps_attribution)
    head = [{"role": "system", "content": system}] if system else []
    chat["messages"] = head + chat_messages(request.messages)
    _continue(chat)
    if request.tools:
        chat["tools"] = [_tool(tool, f"tools[{at}]") for at, tool in enumerate(request.tools)]
        ignored += unread_of_tools(request.tools, _TOOL_KEYS)
    if wants_citations(request.messages):
        ignored.append("messages.citations")
    ignored += [f"messages.tool_result.{kind}" for kind in unseen_results(request.messages)]
    _choose(request, chat)
    for theirs, ours in (
        ("max_tokens", "max_completion_tokens"),
        ("temperature", "temperature"),
        ("top_k", "top_k"),
        ("top_p", "top_p"),
    ):
        value = getattr(request, theirs)
        if value is not None:
            chat[ours] = value
    if request.stop_sequences:
        chat["stop"] = request.stop_sequences
    _think(request, chat)
    if form := request.answer_format:
        schema = {"name": "answer", "schema": form.schema, "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    if request.stream:
        chat["stream"] = True
        chat["stream_options"] = {"include_usage": True}
    is_omitted = request.thinking is not None and request.thinking.display == "omitted"
    return AnthropicTranslation(
        request.model,
        _encode(chat),
        is_stream=request.stream,
        ignored=tuple(ignored),
        names=_names(request),
        shows_thinking=not is_omitted,
    )


def _continue(chat: dict[str, Any]) -> None:
    """The assistant's own last message is the beginning of the answer."""
    messages = chat["messages"]
    if not messages:
        raise InvalidRequest("messages: all of them are empty", param="messages")
    last = messages[-1]
    if last["role"] != "assistant":
        return
    if last.get("tool_calls"):
        raise InvalidRequest(
            "messages: the last tool_use has no tool_result in a message after it",
            param="messages",
        )
    chat["continue_final_message"] = True


def _tool(tool: dict[str, Any], at: str) -> dict[str, Any]:
    kind, name = tool.get("type"), tool.get("name")
    if kind not in (None, "custom"):
        raise UnsupportedParameter(
            f"{at}: a tool of type {kind!r} is the vendor's; only tools with an input_schema of "
            f"their own are supported",
            param=at,
        )
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"{at}.name: missing required parameter", param=f"{at}.name")
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        param = f"{at}.input_schema"
        raise InvalidRequest(f"{param}: expected a JSON schema", param=param)
    function: dict[str, Any] = {"name": name, "parameters": schema}
    for key in ("description", "strict"):
        if tool.get(key) is not None:
            function[key] = tool[key]
    return {"type": "function", "function": function}


def _names(request: MessagesRequest) -> Names:
    has_old_format = request.output_config is None or request.output_config.format is None
    return Names(
        _NAMES
        | {
            # Without a word about thinking, a chat is told that there is none.
            "enable_thinking": "" if request.thinking is None else "thinking",
            "response_format.json_schema": (
                "output_format" if has_old_format else "output_config.format"
            ),
        }
    )


def _choose(request: MessagesRequest, chat: dict[str, Any]) -> None:
    choice = request.tool_choice
    if choice is None:
        return
    if choice.type == "tool":
        chat["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    else:
        chat["tool_choice"] = _CHOICES[choice.type]
    if choice.disable_parallel_tool_use:
        chat["parallel_tool_calls"] = False


def _think(request: MessagesRequest, chat: dict[str, Any]) -> None:
    chat["enable_thinking"] = request.is_thinking
    if request.thinking is not None and request.thinking.budget_tokens is not None:
        chat["max_thinking_tokens"] = request.thinking.budget_tokens
    effort = request.output_config.effort if request.output_config else None
    if effort is not None and request.is_thinking:
        chat["reasoning_effort"] = effort
