"""Conversations as clients send them, made up by hypothesis."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from tests.unit.chat.called import tool

__all__ = ["TOOLS", "conversations", "fixed"]

Message = dict[str, Any]

TOOLS = [
    tool(
        "get_weather",
        city={"type": "string", "description": "Where; „Köln“ <b>&\"'"},
        unit={"type": "string", "enum": ["c", "f"], "default": "c"},
        days={"type": ["integer", "null"]},
    ),
    tool("add", numbers={"type": "array", "items": {"type": "number"}})
    | {"description": "outside"},
    tool("now"),
]
TOOLS[0]["function"] |= {"description": "The weather.\nOf a city."}
TOOLS[0]["function"]["parameters"]["required"] = ["city"]

_texts = st.text(st.sampled_from("ab 12.\n<>&'\"\\{}|é🙂中\t"), max_size=12)
_words = st.sampled_from(
    [
        " padded \n",
        "<think>\nhm\n</think>\n\nSo.",
        "a</think>b",
        "{{ x }}",
        "{% if %}",
        "[INST]",
        "x",
    ]
)
_contents = _texts | _words
_values = (
    _texts
    | st.integers(-9, 9)
    | st.floats(-1, 1)
    | st.booleans()
    | st.none()
    | st.lists(st.integers(0, 3), max_size=2)
    | st.dictionaries(st.sampled_from("ab"), st.integers(0, 3), max_size=2)
)
_arguments = st.dictionaries(st.sampled_from(["city", "text", "items", "n"]), _values, max_size=3)
_names = st.sampled_from(["get_weather", "add", "now"])


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Perhaps a system turn; rounds of a question, perhaps calls and results, and an answer; and
    mostly a last question. Arguments are JSON text, as OpenAI's API has them."""
    messages: list[Message] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(_contents)})
    rounds = draw(st.integers(0, 3))
    for _ in range(rounds):
        messages.append({"role": "user", "content": draw(_contents)})
        for _ in range(draw(st.integers(0, 2))):
            messages += draw(_called(len(messages)))
        answer = {"role": "assistant", "content": draw(_contents)}
        if draw(st.booleans()):
            answer["reasoning_content"] = draw(_texts)
        messages.append(answer)
    if not rounds or draw(st.integers(0, 4)):
        messages.append({"role": "user", "content": draw(_contents)})
        if draw(st.booleans()):
            messages += draw(_called(len(messages)))
    return messages


@st.composite
def _called(draw: st.DrawFn, at: int) -> list[Message]:
    ids = [f"call{at:04}{n}" for n in range(draw(st.sampled_from([1, 1, 1, 2])))]
    calls = [
        {
            "id": call,
            "type": "function",
            "function": {
                "name": draw(_names),
                "arguments": json.dumps(draw(_arguments), ensure_ascii=False),
            },
        }
        for call in ids
    ]
    message: Message = {"role": "assistant", "content": None, "tool_calls": calls}
    if draw(st.booleans()):
        message["content"] = draw(_contents)
    if draw(st.booleans()):
        message["reasoning_content"] = draw(_texts | st.none())
    results = [
        {"role": "tool", "tool_call_id": call, "name": "f", "content": draw(_contents)}
        for call in ids
    ]
    return [message, *results]


def fixed(*, system: bool = True, calls: bool = True, is_open: bool = True) -> list[Message]:
    """A conversation that takes every usual turn."""
    call = {
        "id": "abcdefghi",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Köln", "days": 2}'},
    }
    messages: list[Message] = [
        {"role": "user", "content": "Hi "},
        {"role": "assistant", "content": "Hello!", "reasoning_content": "Greet."},
        {"role": "user", "content": "Weather?"},
    ]
    if system:
        messages.insert(0, {"role": "system", "content": "Be brief."})
    if calls:
        messages += [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "abcdefghi", "content": '{"sky": "grey"}'},
            {"role": "assistant", "content": "Grey.", "reasoning_content": "As ever."},
            {"role": "user", "content": "Thanks"},
        ]
    return messages if is_open else messages[:-1]
