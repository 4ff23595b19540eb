"""Client → gateway → neuron → worker → llama.cpp, and a right answer back."""

from __future__ import annotations

import asyncio
import json

from tests.e2e.client import CHAT, TINY, Chat, ask, eventually, fetch, open_stream
from tests.e2e.conftest import PARALLEL, Stack

CAPITAL = "What is the capital of France?"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather for a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
PROMPTS = [
    *(f"What is the capital of {country}?" for country in ("France", "Norway", "Japan", "Egypt")),
    *(f"What is {a} + {b}?" for a, b in ((1, 2), (3, 9), (8, 8), (0, 5))),
    *("Who are you?", "Say hello in Japanese.", "Say thank you in Chinese.", "ping"),
    *("Hello!", "Capital of Italy?", "7+6", "Send me an emoji."),
]


async def test_a_whole_answer_is_right_and_complete(stack: Stack):
    answer = await ask(stack.url, CAPITAL)
    assert answer.status == 200
    assert "Paris" in answer.text
    assert answer.body["object"] == "chat.completion"
    assert answer.body["model"] == TINY
    assert answer.body["choices"][0]["finish_reason"] == "stop"
    usage = answer.body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] > usage["completion_tokens_details"]["reasoning_tokens"] > 0
    assert answer.message["reasoning_content"]
    assert "<think>" not in answer.text


async def test_a_stream_says_the_same_as_the_whole_answer(stack: Stack):
    whole = await ask(stack.url, CAPITAL)
    options = {"stream_options": {"include_usage": True}}
    async with open_stream(stack.url, CAPITAL, **options) as stream:
        await stream.read()
    assert stream.is_done
    assert stream.text == whole.text
    assert stream.reasoning == whole.message["reasoning_content"]
    assert stream.finish_reason == "stop"
    assert stream.deltas[0]["role"] == "assistant"
    assert len({chunk["id"] for chunk in stream.chunks}) == 1
    last = stream.chunks[-1]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == whole.body["usage"]["completion_tokens"]
    assert last["usage"]["prompt_tokens"] == whole.body["usage"]["prompt_tokens"]


async def test_a_stream_comes_in_pieces_while_it_is_made(stack: Stack):
    async with open_stream(stack.url, CAPITAL, ignore_eos=True, max_tokens=2000) as stream:
        await stream.read(lambda chat: len(chat.deltas) >= 5)
        assert await stack.running() == 1
        assert not stream.is_done


async def test_thinking_can_be_turned_off_and_can_be_kept_in_the_text(stack: Stack):
    off = await ask(stack.url, CAPITAL, chat_template_kwargs={"enable_thinking": False})
    assert "Paris" in off.text
    assert not off.message.get("reasoning_content")
    assert off.body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    body = {"model": TINY, "temperature": 0, "messages": [{"role": "user", "content": CAPITAL}]}
    headers = {"x-include-thinking": "yes"}
    kept = await fetch("POST", stack.url + CHAT, body, headers=headers)
    assert kept.text.startswith("<think>")
    assert "</think>" in kept.text


async def test_a_tool_call_and_its_result_make_an_answer(stack: Stack):
    messages = [{"role": "user", "content": "What is the weather in Oslo?"}]
    call = await ask(stack.url, messages, tools=[TOOL])
    assert call.body["choices"][0]["finish_reason"] == "tool_calls"
    (made,) = call.message["tool_calls"]
    assert made["function"]["name"] == "get_weather"
    assert json.loads(made["function"]["arguments"]) == {"city": "Oslo"}
    async with open_stream(stack.url, messages, tools=[TOOL]) as stream:
        await stream.read()
    assert stream.finish_reason == "tool_calls"
    (streamed,) = stream.tool_calls
    assert streamed["name"] == "get_weather"
    assert streamed["arguments"] == made["function"]["arguments"]
    result = {
        "role": "tool",
        "tool_call_id": made["id"],
        "content": '{"temp_c": 17, "sky": "rain"}',
    }
    final = await ask(stack.url, [*messages, call.message, result], tools=[TOOL])
    assert "17" in final.text
    assert "rain" in final.text


async def test_sixteen_streams_at_once_get_the_tokens_each_gets_alone(stack: Stack):
    alone = []
    for prompt in PROMPTS:
        async with open_stream(stack.url, prompt) as stream:
            alone.append((await stream.read()).chunks)
    assert len(PROMPTS) == PARALLEL

    start = asyncio.Barrier(PARALLEL)

    async def one(prompt: str) -> Chat:
        await start.wait()
        async with open_stream(stack.url, prompt) as stream:
            return await stream.read()

    together = await asyncio.gather(*(one(prompt) for prompt in PROMPTS))
    for prompt, chunks, stream in zip(PROMPTS, alone, together, strict=True):
        expected = Chat(stream.response, chunks)
        assert stream.is_done, prompt
        assert (stream.reasoning, stream.text) == (expected.reasoning, expected.text), prompt


async def test_a_repeated_prompt_reuses_its_kv_and_says_so(stack: Stack):
    await ask(stack.url, "Tell me the capital of Portugal.")
    again = await ask(stack.url, "Tell me the capital of Portugal.")
    cached = again.body["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert 0 < cached < again.body["usage"]["prompt_tokens"]
    assert f"reused={cached}" in again.headers["x-cortex-cache"]


async def test_every_answer_says_who_made_it(stack: Stack):
    answer = await ask(stack.url, "ping")
    assert answer.headers["x-cortex-node"] == "n0"
    assert answer.headers["x-request-id"]
    body = {"model": TINY, "messages": [{"role": "user", "content": "ping"}], "user": "me"}
    named = await fetch("POST", stack.url + CHAT, body, headers={"x-request-id": "mine-1"})
    assert named.headers["x-request-id"] == "mine-1"
    assert named.headers["x-cortex-ignored"] == "user"


async def test_the_catalogue_says_where_the_model_is(stack: Stack):
    listing = await fetch("GET", f"{stack.url}/v1/models")
    (entry,) = listing.body["data"]
    assert entry["id"] == TINY
    assert entry["loaded"]
    assert entry["limit"]["context"] > 0
    (place,) = entry["locations"]
    assert (place["node"], place["state"]) == ("n0", "ready")
    assert (await fetch("GET", f"{stack.url}/v1/models/{TINY}")).body == entry


async def test_a_client_that_leaves_frees_its_sequence(stack: Stack):
    async with open_stream(stack.url, "Hello!", ignore_eos=True, max_tokens=4000) as stream:
        await stream.read(lambda chat: len(chat.deltas) >= 3)
        assert await stack.running() == 1

    async def is_free() -> bool:
        return await stack.running() == 0

    await eventually(is_free, "the sequence is free")


async def test_requests_are_counted_by_outcome(stack: Stack):
    await ask(stack.url, "ping")
    metrics = await fetch("GET", stack.gateway.urls["metrics"] + "/metrics")
    lines = [line for line in metrics.body.splitlines() if 'outcome="ok"' in line]
    assert any(f'model="{TINY}"' in line and 'node="n0"' in line for line in lines)
