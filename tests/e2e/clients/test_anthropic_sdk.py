"""The official anthropic SDK, unmodified, against the gateway."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import pydantic
import pytest
from anthropic.types import MessageParam, ToolParam

from tests.e2e.client import TINY
from tests.e2e.clients.weather import ABOUT, QUESTION, SCHEMA, TOLD, is_answered, report
from tests.e2e.conftest import Stack

CAPITAL: list[MessageParam] = [{"role": "user", "content": "What is the capital of Norway?"}]
WEATHER: ToolParam = {"name": "get_weather", "description": ABOUT, "input_schema": SCHEMA}
GREEDY = {"temperature": 0}  # which the SDK's methods have no name for any more
THINKING: Any = {"type": "enabled", "budget_tokens": 200}


@pytest.fixture
def client(stack: Stack) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=stack.url, api_key="unused", max_retries=0) as client:
        yield client


def ask(client: anthropic.Anthropic, messages: list[MessageParam] = CAPITAL, **fields: Any) -> Any:
    fields = {"max_tokens": 300, "extra_body": GREEDY} | fields
    return client.messages.create(model=TINY, messages=messages, **fields)


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def kinds_of(message: Any) -> list[str]:
    return [block.type for block in message.content]


# messages


def test_a_whole_message(client: anthropic.Anthropic):
    message = ask(client, system="You are brief.")
    assert "Oslo" in text_of(message)
    assert (message.role, message.model, message.stop_reason) == ("assistant", TINY, "end_turn")
    assert message.usage.output_tokens > 0


def test_what_is_counted_before_is_what_is_charged_after(client: anthropic.Anthropic):
    parts: dict[str, Any] = {
        "system": [{"type": "text", "text": "You are brief."}],
        "tools": [WEATHER],
        "thinking": THINKING,
    }
    count = client.messages.count_tokens(model=TINY, messages=CAPITAL, **parts)
    usages = [ask(client, **parts).usage for _ in range(2)]
    for usage in usages:
        assert count.input_tokens == usage.input_tokens + usage.cache_read_input_tokens
    assert usages[1].cache_read_input_tokens > 0


def test_an_answer_ends_at_a_stop_sequence_and_says_which(client: anthropic.Anthropic):
    message = ask(client, stop_sequences=["nowhere", "Oslo"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "Oslo")
    assert text_of(message) == "The capital of Norway is "


def test_an_answer_that_is_cut_short_says_so(client: anthropic.Anthropic):
    message = ask(client, max_tokens=2)
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 2


def test_the_assistants_beginning_is_gone_on_from(client: anthropic.Anthropic):
    begun: list[MessageParam] = [*CAPITAL, {"role": "assistant", "content": "The capital of"}]
    message = ask(client, begun)
    assert text_of(message).lstrip().startswith("Norway is Oslo")


class Place(pydantic.BaseModel):
    city: Literal["Oslo", "Paris"]
    is_capital: bool


def test_an_answer_has_the_shape_that_is_wanted(client: anthropic.Anthropic):
    message = client.messages.parse(
        model=TINY, max_tokens=300, messages=CAPITAL, output_format=Place, extra_body=GREEDY
    )
    assert isinstance(message.parsed_output, Place)
    assert message.parsed_output.city == "Oslo"


# thinking


@pytest.mark.parametrize("thinking", [THINKING, {"type": "adaptive"}])
def test_thinking_is_a_block_before_the_text(client: anthropic.Anthropic, thinking: Any):
    message = ask(client, thinking=thinking)
    assert kinds_of(message) == ["thinking", "text"]
    assert message.content[0].thinking
    assert message.content[0].signature
    usage = message.usage
    assert 0 < usage.output_tokens_details.thinking_tokens < usage.output_tokens


@pytest.mark.parametrize("fields", [{}, {"thinking": {"type": "disabled"}}])
def test_without_leave_to_think_there_is_no_thinking(client: anthropic.Anthropic, fields: Any):
    assert kinds_of(ask(client, **fields)) == ["text"]


def test_a_budget_ends_the_thinking_and_not_the_answer(client: anthropic.Anthropic):
    free = ask(client, thinking=THINKING)
    held = ask(client, thinking={"type": "enabled", "budget_tokens": 3})
    assert len(held.content[0].thinking) < len(free.content[0].thinking)
    assert "Oslo" in text_of(held)


def test_thinking_goes_back_with_the_tools_result_as_it_came(client: anthropic.Anthropic):
    asked: list[MessageParam] = [{"role": "user", "content": QUESTION}]
    first = ask(client, asked, tools=[WEATHER], thinking=THINKING)
    assert kinds_of(first) == ["thinking", "tool_use"]
    call = first.content[-1]
    result: Any = {
        "type": "tool_result",
        "tool_use_id": call.id,
        "content": [{"type": "text", "text": report(call.input["city"])}],
    }
    turns: list[MessageParam] = [
        *asked,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    assert is_answered(text_of(ask(client, turns, tools=[WEATHER], thinking=THINKING)))


# streams


def test_the_text_of_a_stream(client: anthropic.Anthropic):
    with client.messages.stream(
        model=TINY, max_tokens=300, messages=CAPITAL, extra_body=GREEDY
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert "Oslo" in text
    assert text_of(final) == text == stream.get_final_text()
    assert final.stop_reason == "end_turn"


def test_a_stream_tells_each_block_from_its_beginning_to_its_end(client: anthropic.Anthropic):
    whole = ask(client, tools=[WEATHER], thinking=THINKING, messages=asked_weather())
    with client.messages.stream(
        model=TINY,
        max_tokens=300,
        messages=asked_weather(),
        tools=[WEATHER],
        thinking=THINKING,
        extra_body=GREEDY,
    ) as stream:
        events: list[Any] = list(stream)
        final = stream.get_final_message()
    kinds = [event.type for event in events]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    for kind in ("content_block_start", "content_block_stop"):
        assert [e.index for e in events if e.type == kind] == [0, 1]
    assert {"thinking", "signature", "input_json"} <= set(kinds)
    assert kinds_of(final) == ["thinking", "tool_use"]
    assert final.content[0] == whole.content[0]
    called = final.content[1]
    assert called.type == "tool_use"
    assert (called.name, called.input) == ("get_weather", {"city": "Oslo"})
    assert final.stop_reason == "tool_use"
    prompt = whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    for usage in (events[0].message.usage, final.usage):
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == prompt


def asked_weather() -> list[MessageParam]:
    return [{"role": "user", "content": QUESTION}]


def test_the_events_as_they_come(client: anthropic.Anthropic):
    stream = ask(client, stream=True)
    text = "".join(
        event.delta.text
        for event in stream
        if event.type == "content_block_delta" and event.delta.type == "text_delta"
    )
    assert text == text_of(ask(client))


def test_a_stream_that_is_left_is_left(client: anthropic.Anthropic):
    with client.messages.stream(
        model=TINY, max_tokens=8000, messages=CAPITAL, extra_body=GREEDY
    ) as stream:
        next(iter(stream))
    assert "Oslo" in text_of(ask(client))


# tools


def runs(client: anthropic.Anthropic, asked: list[str], **fields: Any) -> Any:
    """A tool runner whose tool writes the cities it was asked for into `asked`."""

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Get the current weather for a city.

        Args:
            city: Its name.
        """
        asked.append(city)
        return report(city)

    return client.beta.messages.tool_runner(
        model=TINY,
        max_tokens=300,
        messages=[{"role": "user", "content": QUESTION}],
        tools=[get_weather],
        extra_body=GREEDY,
        **fields,
    )


def test_the_tool_runner_calls_the_tool_and_gets_its_answer(client: anthropic.Anthropic):
    asked: list[str] = []
    last = runs(client, asked).until_done()
    assert asked == ["Oslo"]
    assert is_answered(text_of(last))


def test_the_tool_runner_streams(client: anthropic.Anthropic):
    asked: list[str] = []
    texts = []
    for stream in runs(client, asked, stream=True):
        texts.append("".join(event.text for event in stream if event.type == "text"))
    assert asked == ["Oslo"]
    assert is_answered(texts[-1])


def test_a_tool_that_failed_is_an_error_that_the_model_hears_of(client: anthropic.Anthropic):
    call = ask(client, asked_weather(), tools=[WEATHER]).content[0]
    failed: Any = {
        "type": "tool_result",
        "tool_use_id": call.id,
        "is_error": True,
        "content": "not found",
    }
    turns: list[MessageParam] = [
        *asked_weather(),
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [failed]},
    ]
    assert "failed" in text_of(ask(client, turns, tools=[WEATHER]))


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"type": "any", "disable_parallel_tool_use": True}, "tool_use"),
        ({"type": "tool", "name": "get_weather"}, "tool_use"),
        ({"type": "none"}, "end_turn"),
    ],
)
def test_the_choice_of_a_tool_is_kept_to(client: anthropic.Anthropic, choice: Any, reason: str):
    message = ask(client, tools=[WEATHER], tool_choice=choice)
    assert message.stop_reason == reason
    assert ("tool_use" in kinds_of(message)) == (reason == "tool_use")


# the async client


async def test_async_whole_stream_and_tool_runner(stack: Stack):
    asked: list[str] = []

    @anthropic.beta_async_tool
    async def get_weather(city: str) -> str:
        """Get the current weather for a city."""
        asked.append(city)
        return TOLD[city]

    async with anthropic.AsyncAnthropic(
        base_url=stack.url, api_key="unused", max_retries=0
    ) as client:
        whole = await client.messages.create(
            model=TINY, max_tokens=300, messages=CAPITAL, extra_body=GREEDY
        )
        async with client.messages.stream(
            model=TINY, max_tokens=300, messages=CAPITAL, extra_body=GREEDY
        ) as stream:
            text = "".join([text async for text in stream.text_stream])
        runner = client.beta.messages.tool_runner(
            model=TINY,
            max_tokens=300,
            messages=[{"role": "user", "content": QUESTION}],
            tools=[get_weather],
            extra_body=GREEDY,
        )
        last = await runner.until_done()
    assert "Oslo" in text
    assert text == text_of(whole)
    assert asked == ["Oslo"]
    assert is_answered(text_of(last))


# models and errors


def test_models_are_listed_and_found_as_the_vendors_are(client: anthropic.Anthropic):
    (model,) = client.models.list(limit=1)
    assert (model.id, model.type, model.lifecycle) == (TINY, "model", "active")
    assert model.max_input_tokens == 8192
    assert client.models.retrieve(TINY) == model
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.models.retrieve("no/such")
    assert missing.value.error_code == "model_not_found"
    with pytest.raises(anthropic.BadRequestError, match="limit"):
        client.models.list(limit=0)


def test_errors_arrive_as_the_sdks_own_classes(client: anthropic.Anthropic):
    with pytest.raises(anthropic.NotFoundError, match="no/such") as missing:
        client.messages.create(model="no/such", max_tokens=9, messages=CAPITAL)
    assert missing.value.type == "not_found_error"
    assert missing.value.error_code == "model_not_found"
    assert missing.value.request_id
    search: Any = {"type": "web_search_20250305", "name": "web_search"}
    with pytest.raises(anthropic.BadRequestError, match="web_search") as hosted:
        ask(client, tools=[search])
    assert hosted.value.error_code == "unsupported_parameter"
    with pytest.raises(anthropic.BadRequestError, match="temprature"):
        ask(client, extra_body={"temprature": 1})
    long: list[MessageParam] = [{"role": "user", "content": "word " * 100_000}]
    count = client.messages.count_tokens(model=TINY, messages=long).input_tokens
    words = f"prompt is too long: {count} tokens > 8191 maximum"
    with pytest.raises(anthropic.BadRequestError, match=words):
        ask(client, long)
    image: Any = {"type": "image", "source": {"type": "url", "url": "data:,"}}
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content\[0\]"):
        ask(client, [{"role": "user", "content": [image]}])


def test_a_refused_stream_is_the_same_error(client: anthropic.Anthropic):
    with (
        pytest.raises(anthropic.NotFoundError),
        client.messages.stream(model="no/such", max_tokens=9, messages=CAPITAL),
    ):
        pass


def test_an_answer_names_its_request(client: anthropic.Anthropic):
    message = ask(client)
    raw = client.messages.with_raw_response.create(model=TINY, max_tokens=9, messages=CAPITAL)
    assert message._request_id
    assert raw.headers["request-id"] == raw.headers["x-request-id"] != message._request_id
    model = client.models.retrieve(TINY)
    count = client.messages.count_tokens(model=TINY, messages=CAPITAL)
    page = client.models.list()
    for answer in (model, count, page):
        assert answer._request_id


def test_an_error_names_its_request_too(client: anthropic.Anthropic):
    with pytest.raises(anthropic.NotFoundError) as model:
        client.models.retrieve("no/such")
    with pytest.raises(anthropic.NotFoundError) as route:
        client.messages.batches.list()
    with pytest.raises(anthropic.BadRequestError) as count:
        client.messages.count_tokens(model=TINY, messages=[])
    with pytest.raises(anthropic.APIStatusError) as method:
        client.get("/v1/messages", cast_to=object)
    assert method.value.status_code == 405
    for error in (model, route, count, method):
        assert error.value.request_id == error.value.response.headers["x-request-id"]


def test_unknown_betas_are_taken(client: anthropic.Anthropic):
    message = client.beta.messages.create(
        model=TINY,
        max_tokens=300,
        messages=[{"role": "user", "content": "What is the capital of Norway?"}],
        betas=["no-such-beta-2030-01-01", "interleaved-thinking-2025-05-14"],
        extra_body=GREEDY,
    )
    assert "Oslo" in text_of(message)
