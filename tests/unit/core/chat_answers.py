"""Chat completions as a node sends them, for what translates them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

from cortex_core.wire import sse

__all__ = ["CLOSING", "THOUGHT_AND_ADDED", "USAGE", "call", "chunk", "completion", "cut", "told"]

USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 5,
    "total_tokens": 16,
    "prompt_tokens_details": {"cached_tokens": 7},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


def completion(finish: str = "stop", stop: str | None = None, **message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": None} | message}
    choice |= {"finish_reason": finish, "stop_reason": stop}
    return json.dumps({"choices": [choice], "usage": USAGE}).encode()


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish} | more
    return sse.encode(json.dumps({"id": "x", "choices": [choice]}).encode())


def call(index: int, name: str | None = None, arguments: str | None = None) -> dict[str, Any]:
    """The delta of a tool call: its beginning has a name."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value}
    begun = {"id": f"call_{index}", "type": "function"} if name else {}
    return {"tool_calls": [{"index": index, **begun, "function": function}]}


CLOSING = sse.encode(json.dumps({"choices": [], "usage": USAGE}).encode()) + sse.DONE


THOUGHT_AND_ADDED = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "h"}),
    chunk({"reasoning_content": "m"}),
    chunk({"content": "né"}),
    chunk({"content": "e\n"}),
    chunk(call(0, "add", "")),
    chunk(call(0, None, '{"a"')),
    chunk(call(0, None, ":1}")),
]
"""The beginning of a stream: thinking, text, and a call."""


def told(data: bytes) -> list[dict[str, Any]]:
    """A translated stream's events; each is told by its own name."""
    found: list[dict[str, Any]] = []
    for event in sse.Parser().feed(data):
        found.append(json.loads(event.data))
        assert event.event == found[-1]["type"]
    return found


def cut(events: Sequence[bytes], places: Sequence[int]) -> list[bytes]:
    """The same stream in other pieces."""
    ends = [0, *sorted(set(places)), len(events)]
    return [b"".join(events[a:b]) for a, b in itertools.pairwise(ends)]
