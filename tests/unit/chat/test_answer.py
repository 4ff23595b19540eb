"""A worker's events in, pieces out: markers, reasoning and calls of one answer."""

from __future__ import annotations

from typing import Any

import pytest

from cortex_core.errors import UpstreamFailed
from cortex_core.outcome import Usage
from cortex_core.wire import ipc
from neuron.chat.answer import Answer, collect
from neuron.chat.reasoning import KeptReasoning, SplitReasoning
from tests.unit.chat.called import parser

HARMONY = "<|start|>assistant<|channel|>final<|message|>"
USAGE = Usage(prompt=1, cached=0, completion=1, reasoning=1)
THOUGHT: list[tuple[ipc.Channel, str]] = [
    ("marker", "<|channel|>analysis<|message|>"),
    ("reasoning", "Adding needs a tool."),
    ("marker", "<|end|>"),
    ("marker", "<|start|>assistant<|channel|>commentary to=functions.add<|message|>"),
    ("content", '{"a": '),
    ("content", "1}"),
]


def _answer(
    deltas: list[tuple[ipc.Channel, str]],
    template: str,
    *,
    reason: ipc.FinishReason = "stop",
    is_kept: bool = False,
) -> tuple[Any, str]:
    answer = Answer(KeptReasoning() if is_kept else SplitReasoning(), parser(template))
    pieces = [
        piece for channel, text in deltas for piece in answer.feed([ipc.Delta(1, text, channel)])
    ]
    pieces += answer.feed([ipc.Finished(1, reason, USAGE)])
    assert answer.ending is not None
    return collect(pieces), answer.ending.finish_reason


def test_a_message_addressed_to_a_function_is_a_call_and_its_header_nothing_to_read():
    message, reason = _answer(THOUGHT, HARMONY)
    (call,) = message.tool_calls
    assert (call.function.name, call.function.arguments) == ("add", '{"a": 1}')
    assert (message.content, message.reasoning_content) == (None, "Adding needs a tool.")
    assert reason == "tool_calls"


def test_thinking_kept_shows_the_markers_but_not_the_calls():
    message, _ = _answer(THOUGHT, HARMONY, is_kept=True)
    assert message.content == "<|channel|>analysis<|message|>Adding needs a tool.<|end|>"
    assert len(message.tool_calls) == 1


@pytest.mark.parametrize("is_kept", [False, True])
def test_calls_inside_reasoning_are_thoughts(is_kept: bool):
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    deltas: list[tuple[ipc.Channel, str]] = [
        ("marker", "<think>"), ("reasoning", call), ("marker", "</think>"), ("content", "No."),
    ]  # fmt: skip
    message, reason = _answer(deltas, "<tool_call>", is_kept=is_kept)
    assert message.content == (f"<think>{call}</think>No." if is_kept else "No.")
    assert not message.tool_calls
    assert reason == "stop"


def test_a_call_cut_short_by_the_limit_ends_with_length():
    assert _answer(THOUGHT[:-1], HARMONY, reason="length")[1] == "length"


def test_the_stop_string_that_ended_it_is_told():
    answer = Answer(SplitReasoning(), None)
    answer.feed([ipc.Finished(1, "stop", USAGE, "END")])
    assert answer.ending is not None
    assert answer.ending.stop == "END"


def test_a_cancelled_answer_is_no_answer():
    with pytest.raises(UpstreamFailed, match="cancelled"):
        _answer([], "<tool_call>", reason="cancelled")
