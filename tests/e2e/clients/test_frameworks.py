"""Agent frameworks over the openai SDK, each at one task with a tool."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic_ai import Agent
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.e2e.client import TINY
from tests.e2e.clients.weather import QUESTION, is_answered, report
from tests.e2e.conftest import Stack


class Place(pydantic.BaseModel):
    """Which city it is."""

    city: str


@tool
def get_weather(city: str) -> str:
    """Get the current weather for a city."""
    return report(city)


def chat_of(stack: Stack, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model=TINY,
        base_url=f"{stack.url}/v1",
        api_key=pydantic.SecretStr("unused"),
        temperature=0,
        max_retries=0,
        **options,
    )


@pytest.mark.parametrize("uses_responses", [False, True])
def test_langchain_binds_a_tool_calls_it_and_gets_its_answer(stack: Stack, uses_responses: bool):
    chat = chat_of(stack, use_responses_api=uses_responses).bind_tools([get_weather])
    turns: list[BaseMessage] = [HumanMessage(QUESTION)]
    called = chat.invoke(turns)
    assert isinstance(called, AIMessage)
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Oslo"})
    turns += [called, get_weather.invoke(call)]
    assert is_answered(chat.invoke(turns).text)


def test_langchain_streams_a_tool_call(stack: Stack):
    chat = chat_of(stack, stream_usage=True).bind_tools([get_weather])
    chunks = list(chat.stream(QUESTION))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert isinstance(whole, AIMessage)
    assert [call["args"] for call in whole.tool_calls] == [{"city": "Oslo"}]
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0


def test_langchain_gets_the_shape_that_is_wanted(stack: Stack):
    place = chat_of(stack).with_structured_output(Place).invoke("What is the capital of Norway?")
    assert isinstance(place, Place)
    assert place.city == "Oslo"


@pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])
@pytest.mark.parametrize("streams", [False, True])
async def test_a_pydantic_agent_uses_its_tool(stack: Stack, kind: type[Model], streams: bool):
    agent = agent_of(stack, kind)
    asked: list[str] = []

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Get the current weather for a city."""
        asked.append(city)
        return report(city)

    if streams:
        async with agent.run_stream(QUESTION) as run:
            output = await run.get_output()
    else:
        output = (await agent.run(QUESTION)).output
    assert asked == ["Oslo"]
    assert is_answered(output)


async def test_a_pydantic_agent_gets_the_shape_that_is_wanted(stack: Stack):
    agent = agent_of(stack, OpenAIChatModel)
    run = await agent.run("What is the capital of Norway?", output_type=Place)
    assert isinstance(run.output, Place)


def agent_of(stack: Stack, kind: Any) -> Agent[None, str]:
    provider = OpenAIProvider(base_url=f"{stack.url}/v1", api_key="unused")
    return Agent(kind(TINY, provider=provider), model_settings={"temperature": 0})
