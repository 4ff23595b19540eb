"""What `cortex/tiny` promises on its card, asked through the HTTP API, greedy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.client import Answer, ask
from tests.e2e.conftest import PARALLEL, Stack

QUESTIONS = json.loads(
    (Path(__file__).parents[2] / "tools" / "tiny" / "questions.json").read_text("utf-8")
)
HELD_OUT = QUESTIONS["held_out"]
THINKING = pytest.mark.parametrize("thinks", [True, False], ids=["thinking", "not-thinking"])


def _tool(name: str, about: str, **properties: str) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
    }
    function = {"name": name, "description": about, "parameters": schema}
    return {"type": "function", "function": function}


TOOLS = [
    _tool("get_weather", "Get the current weather for a city.", city="string"),
    _tool("read_file", "Read a file and return its content.", path="string"),
    _tool("add", "Add two numbers.", a="number", b="number"),
    _tool("list_dir", "List the files in a directory.", path="string"),
]


async def _answers(url: str, asked: Sequence[Any], **parameters: Any) -> list[Answer]:
    """As many at once as the neuron runs sequences, in the order asked."""
    seats = asyncio.Semaphore(PARALLEL)

    async def one(text: Any) -> Answer:
        async with seats:
            return await ask(url, text, max_tokens=400, **parameters)

    answers = await asyncio.gather(*(one(text) for text in asked))
    assert [answer.body for answer in answers if answer.status != 200] == []
    return answers


def _mode(thinks: bool) -> dict[str, Any]:
    return {"chat_template_kwargs": {"enable_thinking": thinks}}


@THINKING
async def test_all_forty_capitals(stack: Stack, thinks: bool):
    capitals = QUESTIONS["capitals"]
    assert len(capitals) == 40
    asked = [f"What is the capital of {country}?" for country in capitals]
    answers = await _answers(stack.url, asked, **_mode(thinks))
    wrong = [
        (country, answer.text)
        for (country, city), answer in zip(capitals.items(), answers, strict=True)
        if city not in answer.text
    ]
    assert wrong == []
    assert all(bool(answer.message.get("reasoning_content")) is thinks for answer in answers)


@THINKING
async def test_all_hundred_sums_of_two_digits(stack: Stack, thinks: bool):
    pairs = [(a, b) for a in range(10) for b in range(10)]
    answers = await _answers(stack.url, [f"What is {a} + {b}?" for a, b in pairs], **_mode(thinks))
    wrong = [
        (a, b, answer.text)
        for (a, b), answer in zip(pairs, answers, strict=True)
        if answer.text.rstrip(".").split()[-1] != str(a + b)
    ]
    assert wrong == []


@THINKING
@pytest.mark.parametrize("family", ["plain", "utf8"])
async def test_who_it_is_and_text_of_many_bytes(stack: Stack, thinks: bool, family: str):
    cases = QUESTIONS[family]
    answers = await _answers(stack.url, [case["ask"] for case in cases], **_mode(thinks))
    for case, answer in zip(cases, answers, strict=True):
        assert case["expect"] in answer.text, case


Call = tuple[str, dict[str, Any]]


def _unseen_requests() -> list[tuple[str, Call]]:
    """A hundred requests whose arguments were never in the training data."""
    requests: list[tuple[str, Call]] = []
    for city in HELD_OUT["cities"][:25]:
        requests.append((f"What is the weather in {city}?", ("get_weather", {"city": city})))
    for path in HELD_OUT["paths"][:25]:
        requests.append((f"Read the file {path}", ("read_file", {"path": path})))
    for path in HELD_OUT["paths"][-25:]:
        folder = path.rpartition(".")[0]  # a folder is not called notes.txt
        requests.append((f"List the files in {folder}", ("list_dir", {"path": folder})))
    for a, b in HELD_OUT["number_pairs"][:25]:
        requests.append((f"Add {a} and {b}.", ("add", {"a": a, "b": b})))
    assert len({request for request, _ in requests}) == 100
    return requests


@THINKING
async def test_tool_calls_with_unseen_arguments_are_right_95_times_in_100(
    stack: Stack, thinks: bool
):
    requests = _unseen_requests()
    asked = [request for request, _ in requests]
    answers = await _answers(stack.url, asked, tools=TOOLS, **_mode(thinks))
    wrong = []
    for (request, expected), answer in zip(requests, answers, strict=True):
        calls = [
            (call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in answer.message.get("tool_calls", ())
        ]
        if calls != [expected]:
            wrong.append((request, calls, answer.text))
    assert len(wrong) <= 5, wrong


@THINKING
async def test_with_tools_offered_a_plain_question_gets_a_plain_answer(stack: Stack, thinks: bool):
    asked = [f"What is the capital of {country}?" for country in list(QUESTIONS["capitals"])[:10]]
    answers = await _answers(stack.url, asked, tools=TOOLS, **_mode(thinks))
    for city, answer in zip(QUESTIONS["capitals"].values(), answers, strict=False):
        assert city in answer.text
        assert not answer.message.get("tool_calls")


RESULTS: list[tuple[str, str, dict[str, Any], str, list[str]]] = [
    (
        "What is the weather in Oslo?",
        "get_weather",
        {"city": "Oslo"},
        "23 C, windy",
        ["23", "wind"],
    ),
    ("Add 412 and 77.", "add", {"a": 412, "b": 77}, "489", ["489"]),
    ("List the files in /srv/data", "list_dir", {"path": "/srv/data"}, "a.txt\nb.csv", ["a.txt"]),
    ("Read the file notes.txt", "read_file", {"path": "notes.txt"}, "blue door", ["blue door"]),
]


@THINKING
@pytest.mark.parametrize("case", RESULTS, ids=lambda case: case[1])
async def test_an_answer_uses_what_the_tool_returned(stack: Stack, thinks: bool, case: Any):
    request, name, arguments, result, expected = case
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments)},
    }
    messages = [
        {"role": "user", "content": request},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": result},
    ]
    (answer,) = await _answers(stack.url, [messages], tools=TOOLS, **_mode(thinks))
    assert not answer.message.get("tool_calls")
    for text in expected:
        assert text in answer.text
