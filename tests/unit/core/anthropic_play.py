"""Requests of the Anthropic API and what comes of them, read as its clients read it."""

from __future__ import annotations

import json
from typing import Any

from anthropic.types import RawMessageStreamEvent
from pydantic import TypeAdapter

from cortex_core.envelopes.openai_chat import decode_chat_request
from cortex_core.translate.anthropic import AnthropicTranslation
from cortex_core.translate.anthropic_request import translate_messages
from tests.unit.core.chat_answers import CLOSING, THOUGHT_AND_ADDED, call, chunk, told

__all__ = [
    "CALLS",
    "STREAM",
    "TOOL",
    "chat_of",
    "events_of",
    "gathered",
    "messages_of",
    "steady",
    "text",
    "translated",
    "user",
]

EVENTS = TypeAdapter(RawMessageStreamEvent)

TOOL = {
    "name": "add",
    "description": "adds",
    "input_schema": {"type": "object", "properties": {}},
    "cache_control": {"type": "ephemeral"},
}


def translated(**fields: Any) -> AnthropicTranslation:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]} | fields
    return translate_messages(json.dumps(body).encode())


def chat_of(**fields: Any) -> dict[str, Any]:
    """The chat request, which is one that the chat route takes."""
    chat = translated(**fields).chat
    decode_chat_request(chat)
    return json.loads(chat)


def messages_of(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return chat_of(messages=list(messages))["messages"]


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value, "cache_control": {"type": "ephemeral"}}


STREAM = [
    *THOUGHT_AND_ADDED,
    chunk(call(1, "add", "")),
    chunk({}, "tool_calls"),
    CLOSING,
]

CALLS = [
    {"id": "call_0", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}},
    {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": ""}},
]


def events_of(data: bytes) -> list[dict[str, Any]]:
    """Each fits the vendor's type."""
    found = told(data)
    for event in found:
        if event["type"] not in ("ping", "error"):
            EVENTS.validate_python(event)
    return found


def gathered(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream's events add up to."""
    message: dict[str, Any] = {}
    partial = ""
    for event in events:
        kind = event["type"]
        if kind == "message_start":
            message = event["message"]
        elif kind == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
            partial = ""
        elif kind == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            partial += delta.get("partial_json", "")
            for name in ("text", "thinking", "signature"):
                block |= {name: block[name] + delta[name]} if name in delta else {}
        elif kind == "content_block_stop" and partial:
            message["content"][event["index"]]["input"] = json.loads(partial)
        elif kind == "message_delta":
            message |= event["delta"] | {"usage": event["usage"]}
    return message


def steady(translation: AnthropicTranslation) -> AnthropicTranslation:
    """With an id that can be foretold."""
    translation._id = "msg_0"  # pyright: ignore[reportPrivateUsage]
    return translation
