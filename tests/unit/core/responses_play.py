"""Responses requests and what comes of them, read as their clients read it."""

from __future__ import annotations

import json
from typing import Any

from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from cortex_core.translate.responses import ResponsesTranslation
from cortex_core.translate.responses_input import Item
from cortex_core.translate.responses_request import translate_responses
from tests.unit.core.chat_answers import CLOSING, THOUGHT_AND_ADDED, call, chunk, told

__all__ = [
    "ASKED",
    "CUSTOM",
    "END",
    "FUNCTION",
    "STREAM",
    "Remembered",
    "chat_of",
    "events_of",
    "messages_of",
    "steady",
    "translated",
]

EVENTS = TypeAdapter(ResponseStreamEvent)

FUNCTION = {
    "type": "function",
    "name": "add",
    "description": "adds",
    "parameters": {"type": "object", "properties": {}},
    "strict": True,
}

CUSTOM = {"type": "custom", "name": "shell", "description": "runs"}


class Remembered:
    def __init__(self, responses: dict[str, list[Item]]) -> None:
        self._responses = responses
        self.kept: list[str] = []

    def items(self, response: str) -> list[Item] | None:
        return self._responses.get(response)

    def item(self, name: str) -> Item | None:
        every = (item for items in self._responses.values() for item in items)
        return next((item for item in every if item.get("id") == name), None)

    def keep(self, response: dict[str, Any], conversation: list[Item]) -> None:
        self.kept.append(response["status"])
        self._responses[response["id"]] = conversation + response["output"]


ASKED = json.dumps({"model": "m", "input": "hi", "stream": True}).encode()


def translated(**fields: Any) -> ResponsesTranslation:
    body = {"model": "m", "input": "hi"} | fields
    return translate_responses(json.dumps(body).encode(), created_at=1700000000.5)


def chat_of(**fields: Any) -> dict[str, Any]:
    return json.loads(translated(**fields).chat)


def messages_of(*items: Item, **fields: Any) -> list[dict[str, Any]]:
    return chat_of(input=list(items), **fields)["messages"]


END = chunk({}, "stop") + CLOSING

STREAM = [
    *THOUGHT_AND_ADDED,
    chunk(call(1, "shell", "")),
    chunk(call(1, None, '{"input":"l')),
    chunk(call(1, None, 's"}')),
    END,
]


def events_of(data: bytes) -> list[dict[str, Any]]:
    """Each fits the vendor's type, and has the next number."""
    found = told(data)
    for event in found:
        EVENTS.validate_python(event)
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def steady(translation: ResponsesTranslation) -> ResponsesTranslation:
    """With ids that can be foretold."""
    numbers = iter(range(100))
    translation._new_id = lambda kind: f"{kind}_{next(numbers)}"  # pyright: ignore[reportPrivateUsage]
    translation.response["id"] = "resp_0"
    return translation
