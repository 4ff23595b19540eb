"""An answer, or a thought, that the client began goes on where it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.unit.chat.played import Exchanged, PlayedRegistry, Script, ask


async def _run(script: Script, body: dict[str, Any], **more: Any) -> Exchanged:
    return await asyncio.wait_for(Exchanged(PlayedRegistry(script), body, **more).run(), 10)


def _begun(text: str, **more: Any) -> dict[str, Any]:
    messages = [*ask()["messages"], {"role": "assistant"} | more | {"content": text}]
    return {"model": "m", "messages": messages, "continue_final_message": True}


THOUGHT_ON: Script = [
    ["started"],
    [("reasoning", "\n see")],
    [("reasoning", " it\n"), ("marker", "</think>"), ("content", "\n\nPa")],
    [("content", "ris"), "stop"],
]


@pytest.mark.parametrize("text", ["<think>\nLet me", "<think>Let me ", "a <think> b <think>c"])
async def test_a_thought_the_client_began_goes_on_without_a_seam(text: str):
    (choice,) = (await _run(THOUGHT_ON, _begun(text))).json["choices"]
    assert choice["message"]["reasoning_content"] == "\n see it"
    assert choice["message"]["content"] == "Paris"


@pytest.mark.parametrize("text", ["<think>", "<think>\n"])
async def test_a_block_the_client_only_opened_begins_without_newlines(text: str):
    (choice,) = (await _run(THOUGHT_ON, _begun(text))).json["choices"]
    assert choice["message"]["reasoning_content"] == " see it"


@pytest.mark.parametrize("text", ["<think>\nLet me", "<think>\n"])
async def test_what_the_client_began_is_not_repeated_with_thinking_in_the_content(text: str):
    got = await _run(THOUGHT_ON, _begun(text), headers={"x-include-thinking": "1"})
    assert got.json["choices"][0]["message"]["content"] == "\n see it\n</think>\n\nParis"


@pytest.mark.parametrize("text", ["So", "So ", "<think>\nhm\n</think>\n\nSo"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_the_client_began_goes_on_verbatim(text: str, stream: bool):
    script: Script = [["started"], [("content", " ")], [("content", "\n it"), "stop"]]
    registry = PlayedRegistry(script)
    got = await Exchanged(registry, _begun(text) | {"stream": stream}).run()
    assert registry.generate.prompt == "<user>hi<assistant>" + text
    if stream:
        content = "".join(delta.get("content", "") for delta in got.deltas)
    else:
        content = got.json["choices"][0]["message"]["content"]
    assert content == " \n it"
