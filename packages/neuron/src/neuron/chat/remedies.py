"""What can be done about a conversation that a template rejects.

Some templates take one system turn, or none, want turns to alternate, or calls to have ids of nine
characters; clients know nothing of that. A remedy changes as little as it can, and is tried only
once the template has refused the conversation as it is; several together, only where none does
alone. What helped against a complaint is tried first against the same one: in a conversation that
goes on, it comes with every request.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from itertools import chain, combinations
from typing import Any

from neuron.chat.messages import Arguments

__all__ = ["Remedies"]

Message = dict[str, Any]
Remedy = Callable[[list[Message]], list[Message]]
Together = tuple[Remedy, ...]

_MOST_COMPLAINTS = 16  # of one template, which can make up any number
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")


class Remedies:
    """For one template. Any thread may use it."""

    def __init__(self) -> None:
        self._helped: dict[str, Together] = {}

    def tried(
        self, messages: list[Message], complaint: str
    ) -> Iterator[tuple[Together, list[Message]]]:
        """Remedies with the conversation they make, to try in turn: what helped against this
        complaint before, each that changes something alone, each two of them, then all up to each.
        `messages` are shaped already, and left as they are."""
        known = self._helped.get(complaint, ())
        if known and (changed := _applied(known, messages)) != messages:
            yield known, changed
        helpful = [remedy for remedy in _REMEDIES if remedy(messages) != messages]
        more = (tuple(helpful[:count]) for count in range(3, len(helpful) + 1))
        for remedies in chain(combinations(helpful, 1), combinations(helpful, 2), more):
            if remedies != known:
                yield remedies, _applied(remedies, messages)

    def learn(self, complaint: str, remedies: Together) -> None:
        """They helped, together."""
        if len(self._helped) < _MOST_COMPLAINTS:
            self._helped[complaint] = remedies


def _applied(remedies: Together, messages: list[Message]) -> list[Message]:
    for remedy in remedies:
        messages = remedy(messages)
    return messages


def _one_system(messages: list[Message]) -> list[Message]:
    """All system turns as the first."""
    told = [message for message in messages if message["role"] == "system"]
    if not told or (len(told) == 1 and messages[0] is told[0]):
        return messages
    rest = [message for message in messages if message["role"] != "system"]
    content = told[0].get("content")
    for message in told[1:]:
        content = _together(content, message.get("content"))
    return [told[0] | {"content": content}, *rest]


def _short_ids(messages: list[Message]) -> list[Message]:
    """Ids of nine letters and digits, the same for a call and its result."""
    shortened = []
    for message in messages:
        changes: Message = {}
        if message.get("tool_calls"):
            changes["tool_calls"] = [
                call | {"id": _short(call.get("id"))} for call in message["tool_calls"]
            ]
        if "tool_call_id" in message:
            changes["tool_call_id"] = _short(message["tool_call_id"])
        shortened.append(message | changes)
    return shortened


def _short(given: Any) -> str:
    if isinstance(given, str) and _SHORT_ID.fullmatch(given):
        return given
    return hashlib.sha256(str(given).encode()).hexdigest()[:9]


def _alternating(messages: list[Message]) -> list[Message]:
    """Neighbours of one role as one turn, calls and results apart."""
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last["role"] == message["role"]
            and message["role"] in ("user", "assistant", "system")
            and not last.get("tool_calls")
        ):
            content = _together(last.get("content"), message.get("content"))
            joined[-1] = last | message | {"content": content}
        else:
            joined.append(message)
    return joined


def _system_in_user(messages: list[Message]) -> list[Message]:
    """System turns as the beginning of the next user turn."""
    told: list[Message] = []
    waiting: Any = None
    for message in messages:
        if message["role"] == "system":
            waiting = _together(waiting, message.get("content"))
        elif message["role"] == "user" and waiting is not None:
            told.append(message | {"content": _together(waiting, message.get("content"))})
            waiting = None
        else:
            told.append(message)
    if waiting is not None:
        told.append({"role": "user", "content": waiting})
    return told


def _arguments_as_text(messages: list[Message]) -> list[Message]:
    def as_text(call: dict[str, Any]) -> dict[str, Any]:
        function = call["function"]
        arguments = function.get("arguments")
        if not isinstance(arguments, Arguments):
            return call
        return call | {"function": function | {"arguments": str(arguments)}}

    return [
        message | {"tool_calls": [as_text(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _with_content(messages: list[Message]) -> list[Message]:
    """An empty text where there is no content."""
    return [
        message if message.get("content") is not None else message | {"content": ""}
        for message in messages
    ]


_REMEDIES: tuple[Remedy, ...] = (
    _with_content,
    _arguments_as_text,
    _one_system,
    _short_ids,
    _alternating,
    _system_in_user,
)


def _together(first: Any, second: Any) -> Any:
    """Two contents as one: texts, or lists of parts, or either with nothing."""
    if not first or not second:
        return first or second
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return [*_parts(first), *_parts(second)]


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
