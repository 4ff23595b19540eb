"""Constraints, choices, log-probabilities and samplers through gateway and neuron, mostly by the
official openai SDK."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam

from tests.e2e.client import CHAT, TINY, ask, fetch, user
from tests.e2e.conftest import Stack

CAPITAL: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What is the capital of France?"}
]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Rome", "Paris", "Oslo"]},
        "population_millions": {"type": "integer", "minimum": 1, "maximum": 20},
        "rivers": {"type": "array", "items": {"type": "string", "maxLength": 9}, "maxItems": 2},
    },
    "required": ["city", "population_millions", "rivers"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
        },
    },
}
ADD: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "integer", "minimum": 0, "maximum": 99},
                "b": {"type": "integer", "minimum": 0, "maximum": 99},
            },
            "required": ["a", "b"],
        },
    },
}
QUIET: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
THINKING: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": True}}


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("kwargs", [QUIET, THINKING])
def test_an_answer_is_what_its_schema_says(client: openai.OpenAI, kwargs: dict[str, Any]):
    answer = client.chat.completions.create(
        model=TINY, messages=CAPITAL, temperature=0, response_format=FORMAT, extra_body=kwargs
    )
    (choice,) = answer.choices
    value = json.loads(choice.message.content or "")
    jsonschema.validate(value, SCHEMA)
    assert value["city"] == "Paris"
    assert choice.finish_reason == "stop"
    thought = getattr(choice.message, "reasoning_content", None)
    assert bool(thought) == (kwargs is THINKING)


def test_a_stream_says_the_same(client: openai.OpenAI):
    whole = client.chat.completions.create(
        model=TINY, messages=CAPITAL, temperature=0, response_format=FORMAT
    )
    stream = client.chat.completions.create(
        model=TINY, messages=CAPITAL, temperature=0, response_format=FORMAT, stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content


def test_json_is_json(client: openai.OpenAI):
    answer = client.chat.completions.create(
        model=TINY,
        messages=CAPITAL,
        temperature=0,
        max_tokens=200,
        response_format={"type": "json_object"},
    )
    (choice,) = answer.choices
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content or ""), dict)
    assert (choice.message.content or "").startswith("{")


@pytest.mark.parametrize(
    ("more", "pattern"),
    [
        ({"regex": "[A-Z][a-z]{4}[.!]"}, "[A-Z][a-z]{4}[.!]"),
        ({"grammar": 'root ::= "<" [a-z]{2,5} ">" [0-9]'}, "<[a-z]{2,5}>[0-9]"),
    ],
)
async def test_expressions_and_grammars_hold_for_chat_and_completions(
    stack: Stack, more: dict[str, Any], pattern: str
):
    answer = await ask(stack.url, "What is the capital of France?", temperature=1, **more)
    assert re.fullmatch(pattern, answer.text)
    body = {"model": TINY, "prompt": "Once", "max_tokens": 20, "temperature": 1} | more
    answer = await fetch("POST", f"{stack.url}/v1/completions", body)
    (choice,) = answer.body["choices"]
    assert re.fullmatch(pattern, choice["text"])
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("more", "param", "said"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {
                "name": "x", "schema": {"type": "object", "properties": {
                    "a": {"type": "array", "uniqueItems": True}}}}}},
            "response_format.json_schema.schema",
            "uniqueItems",
        ),
        ({"regex": "(a"}, "regex", "unclosed"),
        ({"grammar": "root ::= nobody"}, "grammar", "nobody"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "99999"),
        (
            {"tools": [{"type": "function", "function": {
                "name": "f", "strict": True, "parameters": {"not": {}}}}]},
            "tools[0].function.parameters",
            "not",
        ),
    ],
)  # fmt: skip
async def test_what_cannot_be_held_to_is_a_400_that_says_what(
    stack: Stack, more: dict[str, Any], param: str, said: str
):
    answer = await fetch("POST", stack.url + CHAT, {"model": TINY, "messages": user("x")} | more)
    assert answer.status == 400
    error = answer.body["error"]
    assert (error["code"], error["param"]) == ("invalid_request", param)
    assert said in error["message"]


NOT_HELD = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}


@pytest.mark.parametrize(
    ("path", "more", "param"),
    [
        (
            "/v1/messages",
            {"output_config": {"format": {"type": "json_schema", "schema": NOT_HELD}}},
            "output_config.format.schema",
        ),
        (
            "/v1/messages",
            {"output_format": {"type": "json_schema", "schema": NOT_HELD}},
            "output_format.schema",
        ),
        (
            "/v1/messages",
            {"tools": [{"name": "f", "strict": True, "input_schema": NOT_HELD}]},
            "tools[0].input_schema",
        ),
        (
            "/v1/responses",
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": NOT_HELD}}},
            "text.format.schema",
        ),
        (
            "/v1/responses",
            {"tools": [
                {"type": "function", "name": "f", "strict": True, "parameters": NOT_HELD}]},
            "tools[0].parameters",
        ),
    ],
)  # fmt: skip
async def test_in_other_dialects_it_is_said_by_the_clients_own_names(
    stack: Stack, path: str, more: dict[str, Any], param: str
):
    asked = {
        "/v1/messages": {"max_tokens": 9, "messages": user("x")},
        "/v1/responses": {"input": "x"},
    }
    answer = await fetch("POST", stack.url + path, {"model": TINY} | asked[path] | more)
    assert answer.status == 400
    error = answer.body["error"]
    assert error["message"].startswith(f"{param}: ")
    assert "uniqueItems" in error["message"]
    if path == "/v1/responses":
        assert error["param"] == param


# tools


@pytest.mark.parametrize("temperature", [0, 2])
@pytest.mark.parametrize("kwargs", [QUIET, THINKING])
def test_a_required_call_comes_whatever_was_asked(
    client: openai.OpenAI, temperature: float, kwargs: dict[str, Any]
):
    answer = client.chat.completions.create(
        model=TINY,
        messages=CAPITAL,
        temperature=temperature,
        seed=3,
        max_tokens=600,
        tools=[ADD, WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        extra_body=kwargs,
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    schemas = {"add": ADD, "get_weather": WEATHER}
    schema = schemas[call.function.name]["function"].get("parameters")
    jsonschema.validate(json.loads(call.function.arguments), schema)  # pyright: ignore


def test_a_named_tool_is_the_one_called(client: openai.OpenAI):
    stream = client.chat.completions.create(
        model=TINY,
        messages=[{"role": "user", "content": "What is the weather in Oslo?"}],
        temperature=0,
        tools=[ADD, WEATHER],
        tool_choice={"type": "function", "function": {"name": "add"}},
        parallel_tool_calls=False,
        stream=True,
    )
    deltas = [chunk.choices[0].delta for chunk in stream]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    names = [call.function.name for call in calls if call.function and call.function.name]
    arguments = "".join(
        call.function.arguments or "" for call in calls if call.function is not None
    )
    assert names == ["add"]
    assert set(json.loads(arguments)) == {"a", "b"}


# choices and log-probabilities


def test_choices_share_the_prompt_and_differ_by_seed(client: openai.OpenAI):
    def choices(**more: Any) -> list[str]:
        answer = client.chat.completions.create(
            model=TINY, messages=CAPITAL, temperature=8, seed=7, n=3, max_tokens=30, **more
        )
        assert answer.usage is not None
        usage = answer.usage
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content or "" for choice in answer.choices]

    wide = QUIET | {"top_k": 0, "top_p": 1, "min_p": 0}
    assert len(set(choices(extra_body=wide))) == 3


def test_streamed_choices_are_told_apart(client: openai.OpenAI):
    stream = client.chat.completions.create(
        model=TINY, messages=CAPITAL, temperature=0, n=2, stream=True
    )
    texts = {0: "", 1: ""}
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts[0] == texts[1] != ""


def test_scores_are_of_the_content(client: openai.OpenAI):
    answer = client.chat.completions.create(
        model=TINY, messages=CAPITAL, temperature=0, logprobs=True, top_logprobs=2
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None
    scores = choice.logprobs.content or []
    text = b"".join(bytes(score.bytes or []) for score in scores).decode()
    assert text.strip() == (choice.message.content or "").strip()
    assert all(score.logprob == score.top_logprobs[0].logprob for score in scores)
    assert all(len(score.top_logprobs) == 2 for score in scores)


def test_a_completion_has_scores_and_choices(client: openai.OpenAI):
    answer = client.completions.create(
        model=TINY, prompt=["Count to", "Two"], n=2, max_tokens=5, temperature=0, logprobs=3
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == answer.choices[1].text
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert "".join(choice.logprobs.tokens or []) == choice.text
        assert (choice.logprobs.text_offset or [1])[0] == 0


# samplers


@pytest.mark.parametrize(
    "more",
    [
        {"typical_p": 0.5},
        {"top_n_sigma": 1.0},
        {"xtc_probability": 1.0, "xtc_threshold": 0.05},
        {"dynatemp_range": 0.5},
        {"mirostat": 1},
        {"mirostat": 2, "mirostat_tau": 2.0},
        {"dry_multiplier": 0.8},
        {"logit_bias": {"10": -100}},
        {"min_tokens": 30},
        {"min_p": 0.2, "repeat_penalty": 1.2, "presence_penalty": 0.5},
    ],
    ids=str,
)
async def test_every_sampler_answers_and_the_same_seed_answers_the_same(
    stack: Stack, more: dict[str, Any]
):
    options = {"temperature": 1.2, "seed": 11, "max_tokens": 40} | more
    answers = [await ask(stack.url, "Tell me about tides.", **options) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].message == answers[1].message
    if "min_tokens" in more:
        assert answers[0].body["usage"]["completion_tokens"] >= 30
