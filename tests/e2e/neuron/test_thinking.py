"""Reasoning over HTTP: by a pair of markers and by channels, bounded, constrained and not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from cortex_core.wire import sse
from tests.e2e.neuron.client import QUESTION, TINY, Client, ask, connect
from tests.processes import Daemon, start_neuron
from tools.make_gguf import PRESETS, make_gguf

CHANNELS = "channels.gguf"
FRAMES = "<|"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "sure": {"type": "boolean"}},
    "required": ["city", "sure"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}


@pytest.fixture(scope="module")
def neuron(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("models")
    make_gguf(folder / CHANNELS, PRESETS["tiny-channels"], file_type="Q8_0", seed=3)
    with start_neuron(config=f'[models]\noffline = true\nlocal = ["{folder}"]\n') as daemon:
        yield daemon


@pytest.fixture
async def client(neuron: Daemon) -> AsyncIterator[Client]:
    async with connect(neuron.url) as client:
        await client.until_ready()
        if all(model.id != CHANNELS for model in (await anext(client.states())).models):
            await client.post("/models/load", {"model": CHANNELS, "wait": True})
        yield client


@dataclass
class Said:
    content: str
    reasoning: str
    finish_reason: str
    usage: dict[str, Any]

    @property
    def thought_tokens(self) -> int:
        return self.usage["completion_tokens_details"]["reasoning_tokens"]


async def said(client: Client, body: dict[str, Any], headers: dict[str, str]) -> list[Said]:
    """Twice, at once and streamed."""
    answer = await client.post("/v1/chat/completions", body, headers=headers)
    assert answer.status == 200, answer.body
    (choice,) = answer.json["choices"]
    message = choice["message"]
    at_once = Said(
        message["content"] or "",
        message.get("reasoning_content") or "",
        choice["finish_reason"],
        answer.json["usage"],
    )
    body = body | {"stream": True, "stream_options": {"include_usage": True}}
    answer = await client.post("/v1/chat/completions", body, headers=headers)
    streamed = Said("", "", "", {})
    for event in sse.Parser().feed(answer.body):
        if event.data == b"[DONE]":
            continue
        chunk = json.loads(event.data)
        streamed.usage = chunk.get("usage") or streamed.usage
        for choice in chunk["choices"]:
            streamed.content += choice["delta"].get("content") or ""
            streamed.reasoning += choice["delta"].get("reasoning_content") or ""
            streamed.finish_reason = choice["finish_reason"] or streamed.finish_reason
    return [at_once, streamed]


async def one(client: Client, body: dict[str, Any], **headers: str) -> Said:
    """What is said, which is the same streamed and not."""
    at_once, streamed = await said(client, body, headers)
    for each in (at_once, streamed):  # the second finds more of its prompt in the cache
        each.usage.pop("prompt_tokens_details")
    assert streamed == at_once
    return at_once


@pytest.mark.parametrize("limit", [0, 3])
async def test_a_thought_is_as_long_as_the_request_says(client: Client, limit: int):
    body = ask(QUESTION, chat_template_kwargs={"enable_thinking": True})
    free = await one(client, body)
    held = await one(client, body | {"max_thinking_tokens": limit})
    assert free.thought_tokens > limit == held.thought_tokens
    assert free.reasoning.startswith(held.reasoning)
    assert held.content
    assert "think>" not in held.content


@pytest.mark.parametrize("limit", [0, 5])
async def test_a_thought_that_the_conversation_began_is_ended(client: Client, limit: int):
    thought = {"role": "assistant", "reasoning_content": "The user asks"}
    body = {
        "model": CHANNELS,
        "messages": [{"role": "user", "content": "Hi"}, thought],
        "continue_final_message": True,
        "temperature": 0,
        "max_tokens": 40,
        "ignore_eos": True,
        "max_thinking_tokens": limit,
    }
    answer = await one(client, body)
    assert answer.thought_tokens == limit
    assert answer.content
    assert FRAMES not in answer.content + answer.reasoning


async def test_an_answer_in_channels_is_split_and_held_to_its_schema(client: Client):
    body = ask("Where?", CHANNELS, response_format=FORMAT, max_thinking_tokens=6, max_tokens=120)
    answer = await one(client, body)
    assert json.loads(answer.content).keys() == {"city", "sure"}
    assert answer.finish_reason == "stop"
    assert bool(answer.reasoning) == (answer.thought_tokens == 6)
    kept = await one(client, body, **{"x-include-thinking": "1"})
    assert kept.content.startswith("<|channel|>")
    assert kept.content.endswith(answer.content)
    assert answer.reasoning in kept.content


async def test_a_limit_below_nothing_is_refused_by_name(client: Client):
    body = ask(QUESTION, TINY, max_thinking_tokens=-1)
    refused = await client.post("/v1/chat/completions", body)
    assert refused.status == 400
    assert refused.error["param"] == "max_thinking_tokens"


async def test_a_required_call_in_channels_is_one_of_the_tools(client: Client):
    parameters = SCHEMA | {"properties": {"city": {"enum": ["Oslo"]}, "sure": {"const": True}}}
    tools = [
        {"type": "function", "function": {"name": name, "parameters": parameters}}
        for name in ("get_weather", "list_dir")
    ]
    body = ask("Do!", CHANNELS, tools=tools, tool_choice="required", max_thinking_tokens=3)
    for choice in ("required", {"type": "function", "function": {"name": "list_dir"}}):
        answer = await client.post("/v1/chat/completions", body | {"tool_choice": choice})
        (made,) = answer.json["choices"]
        (call,) = made["message"]["tool_calls"]
        assert call["function"]["name"] in ("get_weather", "list_dir")
        assert choice == "required" or call["function"]["name"] == "list_dir"
        assert json.loads(call["function"]["arguments"]) == {"city": "Oslo", "sure": True}
        assert (made["finish_reason"], made["message"]["content"]) == ("tool_calls", None)
