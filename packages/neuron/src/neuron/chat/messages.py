"""Shape a request's messages into what a chat template iterates. Nothing a template may look at is
dropped: messages stay dicts, and keys that this API does not know pass through."""

from __future__ import annotations

import json
from typing import Any

import msgspec

__all__ = ["REASONING_KEYS", "Arguments", "Wants", "for_template", "through_text"]

Message = dict[str, Any]

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Under which reasoning comes back from clients; the first is what templates read by now."""

_REASONING = frozenset(REASONING_KEYS)


class Wants(msgspec.Struct, frozen=True):
    """What a template expects of messages, as far as its text tells."""

    parts: bool = False
    """It iterates content parts; else it is given one text."""
    only_parts: bool = False
    """It does so without asking whether content is a text already."""
    developer: bool = False
    """It knows that role, which is newer than most templates."""
    empty_content: bool = False
    """It asks whether content is none, so a none is not left out."""
    objects: bool = True
    """It is given a call's arguments as an object (the convention) and not as text."""


class Arguments(dict[str, Any]):
    """A call's arguments for templates that take an object, and for those that take its JSON text:
    printed, or added to a text, it is that text."""

    # Mangled, because to a template an attribute would hide the argument of that name.
    __slots__ = ("__text",)

    def __init__(self, value: dict[str, Any], text: str) -> None:
        super().__init__(value)
        self.__text = text

    def __str__(self) -> str:
        return self.__text

    def __add__(self, other: object) -> str:
        return self.__text + other if isinstance(other, str) else NotImplemented

    def __radd__(self, other: object) -> str:
        return other + self.__text if isinstance(other, str) else NotImplemented


def for_template(messages: list[Message], wants: Wants) -> list[Message]:
    """Shaped copies; the originals are left as they are. A key whose value is null is left out, as
    clients send nulls for what templates expect to be undefined."""
    return [_shaped(message, wants) for message in messages]


def through_text(messages: list[Message], tools: list[dict[str, Any]] | None) -> list[Message]:
    """Tools, calls and results as plain text in the Hermes format, for a template without them.

    Takes what `for_template` gives with parts joined and arguments as text.
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


def _shaped(message: Message, wants: Wants) -> Message:
    shaped = message.copy()
    if None in message.values():
        kept = "content" if wants.empty_content else None
        for key in [key for key, value in message.items() if value is None and key != kept]:
            del shaped[key]
    if shaped["role"] == "developer" and not wants.developer:
        shaped["role"] = "system"
    content = shaped.get("content")
    if isinstance(content, list) and not wants.parts:
        shaped["content"] = _joined(content)
    elif isinstance(content, str) and wants.only_parts:
        shaped["content"] = [{"type": "text", "text": content}]
    calls = shaped.get("tool_calls")
    if calls:
        shaped["tool_calls"] = [_shaped_call(call, wants.objects) for call in calls]
    if not _REASONING.isdisjoint(shaped):
        key = next(key for key in REASONING_KEYS if key in shaped)
        shaped.setdefault("thinking", shaped[key])
        shaped["reasoning_content"] = shaped[key]
    return shaped


def _joined(parts: list[dict[str, Any]]) -> str:
    return "\n".join(part["text"] for part in parts if part.get("type") == "text")


def _shaped_call(call: dict[str, Any], as_object: bool) -> dict[str, Any]:
    function = call["function"]
    arguments = function.get("arguments")
    if as_object:
        arguments = _object(arguments)
    elif not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return call | {"function": function | {"arguments": arguments}}


def _object(arguments: Any) -> Any:
    """Arguments that are no JSON object stay what they are."""
    if isinstance(arguments, dict):
        return Arguments(arguments, json.dumps(arguments, ensure_ascii=False))
    if not isinstance(arguments, str):
        return arguments
    if not arguments.strip():
        return Arguments({}, "{}")
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return Arguments(value, arguments) if isinstance(value, dict) else arguments


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
