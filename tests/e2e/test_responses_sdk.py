"""The Responses API through the official openai SDK, unmodified, on the real model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.e2e.client import TINY
from tests.e2e.conftest import Stack

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
    "strict": False,
}


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, question: str, **fields: Any) -> Any:
    return client.responses.create(model=TINY, input=question, temperature=0, **fields)


def test_a_whole_response(client: openai.OpenAI) -> None:
    response = ask(client, "What is the capital of Norway?", instructions="Be brief.")
    assert "Oslo" in response.output_text
    assert response.status == "completed"
    assert response.usage.total_tokens > 0


def test_a_stream_ends_in_the_whole_response(client: openai.OpenAI) -> None:
    events = list(ask(client, "What is the capital of Norway?", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert "Oslo" in text
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == text


def test_the_stream_helper_accumulates(client: openai.OpenAI) -> None:
    with client.responses.stream(model=TINY, input="What is the capital of Norway?") as stream:
        final = stream.get_final_response()
    assert "Oslo" in final.output_text


def test_reasoning_is_an_item_of_its_own(client: openai.OpenAI) -> None:
    response = ask(
        client,
        "What is the capital of Norway?",
        reasoning={"effort": "low", "summary": "auto"},
        include=["reasoning.encrypted_content"],
    )
    reasoning, message = response.output
    assert reasoning.type == "reasoning"
    assert reasoning.summary[0].text
    assert reasoning.encrypted_content
    assert message.type == "message"
    assert response.usage.output_tokens_details.reasoning_tokens > 0


def test_a_tools_result_goes_on_from_the_stored_response(client: openai.OpenAI) -> None:
    first = ask(client, "What is the weather in Oslo?", tools=[WEATHER])
    call = next(item for item in first.output if item.type == "function_call")
    assert (call.name, call.arguments) == ("get_weather", '{"city": "Oslo"}')
    output: Any = {
        "type": "function_call_output",
        "call_id": call.call_id,
        "output": '{"temperature": 7, "sky": "rain"}',
    }
    second = client.responses.create(
        model=TINY,
        input=[output],
        previous_response_id=first.id,
        tools=[WEATHER],
        temperature=0,
    )
    assert second.output_text
    assert second.previous_response_id == first.id
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens > 0


def test_a_stored_response_is_shown_listed_and_deleted(client: openai.OpenAI) -> None:
    made = ask(client, "What is the capital of Norway?", metadata={"k": "v"})
    assert client.responses.retrieve(made.id) == made
    (item,) = client.responses.input_items.list(made.id).data
    assert item.type == "message"
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        ask(client, "And of Sweden?", previous_response_id=made.id)


def test_what_is_not_to_be_stored_is_not(client: openai.OpenAI) -> None:
    made = ask(client, "What is the capital of Norway?", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(made.id)


def test_a_response_of_the_foreground_cannot_be_cancelled(client: openai.OpenAI) -> None:
    made = ask(client, "What is the capital of Norway?")
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(made.id)


def test_items_are_listed_page_by_page(client: openai.OpenAI) -> None:
    turns: Any = [
        {"role": "user", "content": "What is the capital of Norway?"},
        {"role": "assistant", "content": "Oslo."},
        {"role": "user", "content": "And of Sweden?"},
    ]
    made = client.responses.create(model=TINY, input=turns, temperature=0)
    page = client.responses.input_items.list(made.id, limit=2, order="asc")
    items: list[Any] = list(page)  # the SDK follows the pages
    assert [item.content[0].text for item in items] == [turn["content"] for turn in turns]
    with pytest.raises(openai.BadRequestError, match="limit"):
        client.responses.input_items.list(made.id, limit=0)
    with pytest.raises(openai.BadRequestError, match="order"):
        client.responses.input_items.list(made.id, order="up")  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="after"):
        client.responses.input_items.list(made.id, after="nothing")


class Place(pydantic.BaseModel):
    city: Literal["Oslo", "Paris"]
    is_capital: bool


def test_an_answer_has_the_shape_that_is_wanted(client: openai.OpenAI) -> None:
    response = client.responses.parse(
        model=TINY, input="Which city is it?", text_format=Place, temperature=0
    )
    assert isinstance(response.output_parsed, Place)


def test_an_answer_that_is_cut_short_says_so(client: openai.OpenAI) -> None:
    response = ask(client, "What is the capital of Norway?", max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"


async def test_async(stack: Stack) -> None:
    base = f"{stack.url}/v1"
    async with openai.AsyncOpenAI(base_url=base, api_key="unused", max_retries=0) as client:
        response = await client.responses.create(model=TINY, input="What is the capital of Norway?")
        assert "Oslo" in response.output_text


def test_errors_are_the_vendors_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="no/such", input="x")
    with pytest.raises(openai.BadRequestError, match="web_search"):
        ask(client, "x", tools=[{"type": "web_search"}])
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        ask(client, "word " * 100_000)
