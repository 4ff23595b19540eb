"""Shape a request's messages into what a chat template iterates. Nothing a template may look at is
dropped: messages stay dicts, and keys that this API does not know pass through."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["for_template", "through_text"]

Message = dict[str, Any]


def for_template(
    messages: list[Message], *, keeps_parts: bool, knows_developer: bool, parses_arguments: bool
) -> list[Message]:
    """Shaped copies; the originals are left as they are.

    `keeps_parts`: the template iterates content parts itself. `knows_developer`: it has that role.
    `parses_arguments`: it wants a call's arguments as an object (the convention) and not as text.
    """
    shaped = []
    for message in messages:
        changes: Message = {}
        if message["role"] == "developer" and not knows_developer:
            changes["role"] = "system"
        content = message.get("content")
        if isinstance(content, list) and not keeps_parts:
            changes["content"] = _joined(content)
        if message.get("tool_calls"):
            calls = message["tool_calls"]
            changes["tool_calls"] = [_shaped_call(call, parses_arguments) for call in calls]
        shaped.append(message | changes if changes else message)
    return shaped


def through_text(messages: list[Message], tools: list[dict[str, Any]] | None) -> list[Message]:
    """Tools, calls and results as plain text in the Hermes format, for a template without them.

    Takes what `for_template` gives with parts joined.
    """
    told: list[Message] = []
    results: list[str] = []  # of one turn: they go into one user message

    def end_results() -> None:
        if results:
            told.append({"role": "user", "content": "\n".join(results)})
            results.clear()

    for message in messages:
        if message["role"] in ("tool", "function"):
            results.append(f"<tool_response>\n{message.get('content') or ''}\n</tool_response>")
            continue
        end_results()
        if message["role"] == "assistant" and message.get("tool_calls"):
            calls = [_call_text(call["function"]) for call in message["tool_calls"]]
            content = "\n".join([*filter(None, [message.get("content")]), *calls])
            message = {key: value for key, value in message.items() if key != "tool_calls"}
            message["content"] = content
        told.append(message)
    end_results()
    return _with_tools(told, tools) if tools else told


def _joined(parts: list[dict[str, Any]]) -> str:
    return "\n".join(part["text"] for part in parts if part.get("type") == "text")


def _shaped_call(call: dict[str, Any], parses_arguments: bool) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments")
    if isinstance(arguments, str) and parses_arguments:
        arguments = _parsed(arguments)
    elif not isinstance(arguments, str) and not parses_arguments:
        arguments = json.dumps(arguments, ensure_ascii=False)
    return call | {"function": function | {"arguments": arguments}}


def _parsed(arguments: str) -> Any:
    """Arguments that are no JSON object stay the text they are."""
    if not arguments.strip():
        return {}
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _call_text(function: dict[str, Any]) -> str:
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    name = json.dumps(function["name"], ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'


def _with_tools(messages: list[Message], tools: list[dict[str, Any]]) -> list[Message]:
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    text = (
        "# Tools\n\nThese functions may be called, one JSON object per line:\n"
        f"<tools>\n{listed}\n</tools>\n\n"
        "To call one, write its name and arguments as JSON between these tags:\n"
        '<tool_call>\n{"name": <name>, "arguments": <arguments as a JSON object>}\n</tool_call>'
    )
    if messages and messages[0]["role"] == "system":
        first = messages[0]
        own = first.get("content")
        return [first | {"content": f"{own}\n\n{text}" if own else text}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]
