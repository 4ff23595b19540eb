"""Items of a Responses conversation as chat messages.

An item is a part of a turn: reasoning, text and tool calls that follow one another are one
assistant message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from cortex_core.errors import InvalidRequest, NotFound, UnsupportedParameter
from cortex_core.translate.fields import string
from cortex_core.translate.responses_tools import function_name
from cortex_core.translate.seal import opened
from cortex_core.translate.unseen import is_unseen, told_of, unseen_kinds

__all__ = ["Item", "chat_messages", "unseen_outputs"]

Item = dict[str, Any]

_encode = msgspec.json.Encoder().encode
_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_ROLES = ("user", "assistant", "system", "developer")


def chat_messages(
    items: Iterable[Item], recall: Callable[[str], Item | None], param: str = "input"
) -> list[dict[str, Any]]:
    """`recall` finds the item of an `item_reference`.

    Raises InvalidRequest, UnsupportedParameter or NotFound that names the place, e.g.
    `input[2].content[0]`.
    """
    turns = _Turns()
    for index, item in enumerate(items):
        at = f"{param}[{index}]"
        if _kind(item, at) == "item_reference":
            item = _recalled(item, recall, at)
        _READERS[_kind(item, at)](turns, item, at)
    return turns.messages


def unseen_outputs(items: Iterable[Item]) -> list[str]:
    """Kinds of content that tools returned and a model is told of instead of shown."""
    return unseen_kinds(item.get("output") for item in items)


class _Turns:
    """Messages so far; `said` is the assistant's turn that goes on."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._said: dict[str, Any] | None = None

    def add(self, message: dict[str, Any]) -> None:
        self._said = None
        self.messages.append(message)

    def said(self, *, but_not: Iterable[str] = ()) -> dict[str, Any]:
        """The assistant's turn, a new one where it has one of these already."""
        if self._said is None or any(name in self._said for name in but_not):
            self.add({"role": "assistant"})
            self._said = self.messages[-1]
        return self._said


def _message(turns: _Turns, item: Item, at: str) -> None:
    role = item.get("role")
    if role not in _ROLES:
        raise InvalidRequest(f"{at}.role: expected one of {', '.join(_ROLES)}", param=f"{at}.role")
    content = _content(item.get("content"), f"{at}.content")
    if role == "assistant":
        turns.said(but_not=("content", "tool_calls"))["content"] = content
    else:
        turns.add({"role": role, "content": content})


def _reasoning(turns: _Turns, item: Item, at: str) -> None:
    told = item.get("content") or item.get("summary")
    text = (
        _text(told, f"{at}.content") if told else opened(string(item, "encrypted_content", at, ""))
    )
    if text:
        said = turns.said(but_not=("reasoning_content", "content", "tool_calls"))
        said["reasoning_content"] = text


def _function_call(turns: _Turns, item: Item, at: str) -> None:
    _call(turns, item, at, string(item, "arguments", at, "") or "{}")


def _custom_call(turns: _Turns, item: Item, at: str) -> None:
    _call(turns, item, at, _encode({"input": string(item, "input", at, "")}).decode())


def _call(turns: _Turns, item: Item, at: str, arguments: str) -> None:
    name = function_name(string(item, "name", at), string(item, "namespace", at, ""))
    function = {"name": name, "arguments": arguments}
    call = {"id": string(item, "call_id", at), "type": "function", "function": function}
    turns.said().setdefault("tool_calls", []).append(call)


def _call_output(turns: _Turns, item: Item, at: str) -> None:
    output = item.get("output")
    if isinstance(output, list):
        output = [_returned(part) for part in output]
    content = _content(output, f"{at}.output")
    call_id = string(item, "call_id", at)
    turns.add({"role": "tool", "tool_call_id": call_id, "content": content})


def _returned(part: Any) -> Any:
    if isinstance(part, dict) and is_unseen(part):
        return {"type": "input_text", "text": told_of(part)}
    return part


_READERS: dict[str, Callable[[_Turns, Item, str], None]] = {
    "message": _message,
    "reasoning": _reasoning,
    "function_call": _function_call,
    "custom_tool_call": _custom_call,
    "function_call_output": _call_output,
    "custom_tool_call_output": _call_output,
}


def _kind(item: Item, at: str) -> str:
    kind = item.get("type", "message")
    if not isinstance(kind, str) or (kind not in _READERS and kind != "item_reference"):
        raise UnsupportedParameter(f"{at}: an item of type {kind!r} is unsupported", param=at)
    return kind


def _recalled(item: Item, recall: Callable[[str], Item | None], at: str) -> Item:
    name = string(item, "id", at)
    found = recall(name)
    if found is None:
        raise NotFound(f"{at}.id: no item {name!r} is stored", param=f"{at}.id")
    return found


def _content(value: Any, at: str) -> str | list[dict[str, str]]:
    """Text, or parts of it, for a chat message."""
    if value is None or isinstance(value, str):
        return value or ""
    parts = [{"type": "text", "text": text} for text in _texts(value, at)]
    return parts[0]["text"] if len(parts) == 1 else parts


def _text(value: Any, at: str) -> str:
    return value if isinstance(value, str) else "\n".join(_texts(value, at))


def _texts(parts: Any, at: str) -> list[str]:
    if not isinstance(parts, list):
        raise InvalidRequest(f"{at}: expected a string or an array of parts", param=at)
    texts = []
    for index, part in enumerate(parts):
        here = f"{at}[{index}]"
        if not isinstance(part, dict):
            raise InvalidRequest(f"{here}: expected an object", param=here)
        kind = part.get("type")
        if kind == "refusal":
            texts.append(string(part, "refusal", here))
        elif kind in _TEXTS:
            texts.append(string(part, "text", here))
        else:
            raise UnsupportedParameter(
                f"{here}: content of type {kind!r} is unsupported", param=here
            )
    return texts
