"""Text in, events out: an answer's text, cut into chunks, as content and calls."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from neuron.chat.pieces import CallArguments, CallStarted, Piece
from neuron.chat.tool_calls import ToolCallParser, parser_for

Seen = list[str | tuple[str, str]]
"""Content as strings, calls as (name, arguments); neighbours merged."""


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def parser(template: str, tools: Sequence[dict[str, Any]] = ()) -> ToolCallParser:
    """With ids call_0, call_1, …"""
    made = parser_for(template, tools, iter(map("call_{}".format, itertools.count())).__next__)
    assert made is not None
    return made


def read(template: str, *chunks: str, tools: Sequence[dict[str, Any]] = ()) -> Seen:
    machine = parser(template, tools)
    return seen([event for chunk in chunks for event in machine.feed(chunk)] + machine.finish())


def seen(events: Sequence[Piece]) -> Seen:
    found: Seen = []
    calls = 0
    for event in events:
        if isinstance(event, CallStarted):
            assert (event.index, event.id) == (calls, f"call_{calls}")
            calls += 1
            found.append((event.name, ""))
        elif isinstance(event, CallArguments):
            last = found[-1]
            assert isinstance(last, tuple)
            assert event.index == calls - 1
            assert event.fragment
            found[-1] = (last[0], last[1] + event.fragment)
        else:
            assert event.text
            if found and isinstance(found[-1], str):
                found[-1] += event.text
            else:
                found.append(event.text)
    return found


def cut(text: str, data: st.DataObject) -> list[str]:
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[a:b] for a, b in itertools.pairwise([0, *places, len(text)])]
