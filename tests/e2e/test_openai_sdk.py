"""The official openai SDK, unmodified, against the gateway."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.e2e.client import TINY
from tests.e2e.conftest import Stack

MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the capital of Norway?"}
]


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_a_whole_answer(client: openai.OpenAI):
    answer = client.chat.completions.create(model=TINY, messages=MESSAGES, temperature=0)
    assert "Oslo" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens > 0


def test_a_stream(client: openai.OpenAI):
    stream = client.chat.completions.create(
        model=TINY,
        messages=MESSAGES,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert "Oslo" in text
    assert chunks[-1].usage is not None


def test_the_stream_helper_accumulates(client: openai.OpenAI):
    with client.chat.completions.stream(model=TINY, messages=MESSAGES, temperature=0) as stream:
        final = stream.get_final_completion()
    assert "Oslo" in (final.choices[0].message.content or "")


async def test_async_whole_and_stream(stack: Stack):
    base = f"{stack.url}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="unused", max_retries=0) as client:
        answer = await client.chat.completions.create(model=TINY, messages=MESSAGES, temperature=0)
        assert "Oslo" in (answer.choices[0].message.content or "")
        stream = await client.chat.completions.create(
            model=TINY, messages=MESSAGES, temperature=0, stream=True
        )
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    assert text == answer.choices[0].message.content


def test_a_tool_call(client: openai.OpenAI):
    answer = client.chat.completions.create(
        model=TINY,
        messages=[{"role": "user", "content": "What is the weather in Oslo?"}],
        temperature=0,
        tools=[
            {
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
        ],
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Oslo"}')


def test_models_are_listed_and_found(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == [TINY]
    assert client.models.retrieve(TINY).id == TINY


def test_errors_arrive_as_the_sdks_own_classes(client: openai.OpenAI):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nope", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=TINY, messages=[])
    assert bad.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as unknown:
        client.chat.completions.create(model=TINY, messages=MESSAGES, extra_body={"temprature": 1})
    assert unknown.value.code == "unsupported_parameter"
