"""litellm as a client, by both of the dialects in which it can speak to the gateway."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import litellm
import pytest
from litellm.exceptions import ContextWindowExceededError, NotFoundError

from tests.e2e.client import TINY, user
from tests.e2e.clients.weather import ABOUT, QUESTION, SCHEMA, is_answered, report
from tests.e2e.conftest import Stack

# Their types are unions of everything that any vendor answers.
completion: Any = litellm.completion
acompletion: Any = litellm.acompletion
rebuild: Any = litellm.stream_chunk_builder

WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "description": ABOUT, "parameters": SCHEMA},
}
CAPITAL = user("What is the capital of Norway?")


class Way(NamedTuple):
    """`prefix` of the model's name, which is litellm's word for a dialect; the path it needs."""

    prefix: str
    path: str

    def options(self, stack: Stack) -> dict[str, Any]:
        return {
            "model": f"{self.prefix}/{TINY}",
            "api_base": stack.url + self.path,
            "api_key": "unused",
            "temperature": 0,
            "max_tokens": 300,
            "num_retries": 0,
        }


WAYS = pytest.mark.parametrize(
    "way", [Way("openai", "/v1"), Way("anthropic", "")], ids=lambda way: way.prefix
)


@WAYS
def test_a_task_with_a_tool(stack: Stack, way: Way):
    messages: list[Any] = user(QUESTION)
    options = way.options(stack) | {"tools": [WEATHER]}
    first = completion(messages=messages, **options)
    message = first.choices[0].message
    (call,) = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "get_weather",
        {"city": "Oslo"},
    )
    assert first.choices[0].finish_reason == "tool_calls"
    result = report(json.loads(call.function.arguments)["city"])
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": result}]
    second = completion(messages=messages, **options)
    assert is_answered(second.choices[0].message.content)
    assert second.usage.prompt_tokens_details.cached_tokens > 0


@WAYS
def test_a_stream_says_what_the_whole_answer_says(stack: Stack, way: Way):
    options = way.options(stack)
    whole = completion(messages=CAPITAL, **options)
    stream = completion(
        messages=CAPITAL, stream=True, stream_options={"include_usage": True}, **options
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert "Oslo" in text
    rebuilt = rebuild(chunks)
    assert rebuilt.usage.prompt_tokens == whole.usage.prompt_tokens


@WAYS
def test_a_streamed_tool_call(stack: Stack, way: Way):
    options = way.options(stack) | {"tools": [WEATHER], "stream": True}
    chunks = list(completion(messages=user(QUESTION), **options))
    rebuilt = rebuild(chunks)
    (call,) = rebuilt.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Oslo"}


@WAYS
async def test_async(stack: Stack, way: Way):
    answer = await acompletion(messages=CAPITAL, **way.options(stack))
    assert "Oslo" in answer.choices[0].message.content


@WAYS
def test_thinking_is_told_apart(stack: Stack, way: Way):
    options = way.options(stack)
    if way.prefix == "anthropic":
        options["thinking"] = {"type": "enabled", "budget_tokens": 200}
        options["allowed_openai_params"] = ["thinking"]  # not known of a model of no such name
    answer = completion(messages=CAPITAL, **options)
    assert answer.choices[0].message.reasoning_content
    assert "Oslo" in answer.choices[0].message.content


@WAYS
def test_errors_arrive_as_litellms_own_classes(stack: Stack, way: Way):
    options = way.options(stack)
    with pytest.raises(NotFoundError):
        completion(messages=CAPITAL, **(options | {"model": f"{way.prefix}/no/such"}))
    with pytest.raises(ContextWindowExceededError):
        completion(messages=user("word " * 100_000), **options)
