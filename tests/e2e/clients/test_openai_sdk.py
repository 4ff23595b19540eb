"""What the official openai SDK does by itself: shapes, a tool loop, retries of nothing. Its plain
calls are in tests/e2e/test_openai_sdk.py and test_responses_sdk.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest
from openai.lib._tools import pydantic_responses_function_tool
from openai.lib.responses_tool_runner import RegisteredFunction, ResponsesToolRunner
from openai.types.chat import ChatCompletionMessageParam

from tests.e2e.client import TINY
from tests.e2e.clients.weather import ABOUT, QUESTION, is_answered, report
from tests.e2e.conftest import Stack

CAPITAL: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the capital of Norway?"}
]
WEATHER: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]


class Place(pydantic.BaseModel):
    city: Literal["Oslo", "Paris"]
    is_capital: bool


class GetWeather(pydantic.BaseModel):
    """Get the current weather for a city."""

    city: str


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_a_chat_is_parsed_into_the_shape_that_is_wanted(client: openai.OpenAI):
    answer = client.chat.completions.parse(
        model=TINY, messages=CAPITAL, response_format=Place, temperature=0
    )
    place = answer.choices[0].message.parsed
    assert place is not None
    assert place.city == "Oslo"


def test_a_stream_is_parsed_too(client: openai.OpenAI):
    with client.chat.completions.stream(
        model=TINY, messages=CAPITAL, response_format=Place, temperature=0
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"content.delta", "content.done", "chunk"} <= kinds
    assert isinstance(final.choices[0].message.parsed, Place)


def test_a_strict_tools_arguments_are_parsed(client: openai.OpenAI):
    tool = openai.pydantic_function_tool(GetWeather, name="get_weather", description=ABOUT)
    answer = client.chat.completions.parse(
        model=TINY, messages=WEATHER, tools=[tool], temperature=0
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.function.parsed_arguments == GetWeather(city="Oslo")


def test_a_streams_tool_call_is_put_together_by_the_helper(client: openai.OpenAI):
    tool = openai.pydantic_function_tool(GetWeather, name="get_weather", description=ABOUT)
    with client.chat.completions.stream(
        model=TINY, messages=WEATHER, tools=[tool], temperature=0
    ) as stream:
        done = [e for e in stream if e.type == "tool_calls.function.arguments.done"]
    assert [event.parsed_arguments for event in done] == [GetWeather(city="Oslo")]


def test_an_answer_that_is_cut_short_is_not_parsed(client: openai.OpenAI):
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(
            model=TINY, messages=CAPITAL, response_format=Place, temperature=0, max_tokens=3
        )


@pytest.mark.parametrize("streams", [False, True])
def test_the_tool_runner_calls_the_tool_and_gets_its_answer(client: openai.OpenAI, streams: bool):
    asked: list[str] = []

    def get_weather(arguments: GetWeather) -> str:
        asked.append(arguments.city)
        return report(arguments.city)

    tool = pydantic_responses_function_tool(GetWeather, name="get_weather", description=ABOUT)
    runner = ResponsesToolRunner(
        functions=[RegisteredFunction.from_tool(tool, execute=get_weather)]
    )
    response = runner.run(
        client,
        {"model": TINY, "input": QUESTION, "temperature": 0},
        max_steps=4,
        stream=streams,
    )
    assert asked == ["Oslo"]
    assert is_answered(response.output_text)


async def test_async_streams_and_shapes(stack: Stack):
    base = f"{stack.url}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="unused", max_retries=0) as client:
        async with client.chat.completions.stream(
            model=TINY, messages=CAPITAL, temperature=0
        ) as stream:
            text = (await stream.get_final_completion()).choices[0].message.content
        async with client.responses.stream(
            model=TINY, input="What is the capital of Norway?", text_format=Place, temperature=0
        ) as stream:
            response = await stream.get_final_response()
        models = [model.id async for model in client.models.list()]
    assert "Oslo" in (text or "")
    assert response.output_parsed is not None
    assert response.output_parsed.city == "Oslo"
    assert models == [TINY]


def test_a_model_without_embeddings_says_so(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="cannot give embeddings"):
        client.embeddings.create(model=TINY, input="hello")


def test_errors_tell_what_the_sdk_reads(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match="maximum context length is") as long:
        client.completions.create(model=TINY, prompt="word " * 100_000)
    assert long.value.code == "context_length_exceeded"
    assert long.value.request_id
    kind: Any = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(openai.BadRequestError) as image:
        client.chat.completions.create(model=TINY, messages=[{"role": "user", "content": [kind]}])
    assert image.value.param == "messages[0].content[0]"
    with (
        pytest.raises(openai.NotFoundError),
        client.chat.completions.stream(model="no/such", messages=CAPITAL),
    ):
        pass
