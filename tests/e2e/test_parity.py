"""A stream and a whole answer say the same, whatever was asked; and a stream has its shape."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from tests.e2e.client import CHAT, TINY, Answer, eventually, fetch, user
from tests.processes import Daemon, start_neuron

CAPITAL = {"messages": user("What is the capital of France?")}
QUIET = CAPITAL | {"enable_thinking": False}
THINKING = CAPITAL | {"enable_thinking": True}
ANSWER = "The capital of France is Paris."


def _tool(name: str, **properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TOOLS = [
    _tool("get_weather", city={"type": "string"}),
    _tool("add", a={"type": "integer"}, b={"type": "integer"}),
]
WEATHER = {"messages": user("What is the weather in Oslo?"), "tools": TOOLS}
CALLED = [
    *user("What is the weather in Oslo?"),
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "23 C, windy"},
]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Paris"]}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}


class Said(NamedTuple):
    """One choice, put together: of a call, its name and arguments."""

    content: str
    reasoning: str
    calls: list[tuple[str, str]]
    finish_reason: str
    stop: str | None
    scores: list[dict[str, Any]]


Proof = Callable[[list[Said], dict[str, Any]], bool]
"""Whether choices and usage show that the case is what its name says."""


class Case(NamedTuple):
    body: dict[str, Any]
    proof: Proof
    headers: dict[str, str] = {}  # noqa: RUF012 - nobody writes to it


def _begun(text: str, **more: Any) -> dict[str, Any]:
    begun = {"role": "assistant", "content": text} | more
    return {"messages": [*CAPITAL["messages"], begun], "continue_final_message": True}


def _thought(usage: dict[str, Any]) -> int:
    return usage["completion_tokens_details"]["reasoning_tokens"]


WILD = {"temperature": 5, "top_p": 1, "top_k": 0, "min_p": 0, "seed": 7, "max_tokens": 30}
BEGUN_THOUGHT = _begun("", content=None, reasoning_content="The user asks")

CASES: dict[str, Case] = {
    "plain": Case(QUIET, lambda said, usage: said[0].content == ANSWER and _thought(usage) == 0),
    "thinking": Case(
        THINKING,
        lambda said, usage: (
            said[0].content == ANSWER and bool(said[0].reasoning) and _thought(usage) > 0
        ),
    ),
    "thinking inside the content": Case(
        THINKING,
        lambda said, _: bool(re.fullmatch(f"<think>.+</think>\\s*{ANSWER}", said[0].content, re.S)),
        {"x-include-thinking": "1"},
    ),
    "no thinking inside the content": Case(
        QUIET, lambda said, _: said[0].content == ANSWER, {"x-include-thinking": "1"}
    ),
    "cut short while thinking": Case(
        THINKING | {"max_tokens": 5},
        lambda said, usage: bool(said[0].reasoning) and not said[0].content and _thought(usage) > 0,
    ),
    "a bound on thinking": Case(
        THINKING | {"max_thinking_tokens": 3},
        lambda said, usage: bool(said[0].content) and _thought(usage) == 3,
    ),
    "no thinking at all": Case(
        THINKING | {"max_thinking_tokens": 0},
        lambda said, usage: bool(said[0].content) and not said[0].reasoning,
    ),
    "a tool call": Case(
        WEATHER | {"enable_thinking": False},
        lambda said, _: (
            said[0].calls == [("get_weather", '{"city": "Oslo"}')]
            and said[0].finish_reason == "tool_calls"
            and not said[0].content
        ),
    ),
    "a tool call after thinking": Case(
        WEATHER | {"enable_thinking": True},
        lambda said, _: len(said[0].calls) == 1 and bool(said[0].reasoning),
    ),
    "a tool call cut short": Case(
        WEATHER | {"enable_thinking": False, "max_tokens": 16},
        lambda said, _: (
            said[0].finish_reason == "length"
            and [name for name, _ in said[0].calls] == ["get_weather"]
            and not said[0].calls[0][1].endswith("}")
        ),
    ),
    "text that might have become a tool call": Case(
        WEATHER | {"enable_thinking": False, "max_tokens": 8},
        lambda said, _: not said[0].calls and said[0].content.startswith("<tool_call>"),
    ),
    # While the answer may not end, nothing but another call is allowed.
    "several tool calls": Case(
        WEATHER | {"enable_thinking": False, "tool_choice": "required", "min_tokens": 40},
        lambda said, _: len(said[0].calls) >= 2 and said[0].finish_reason == "tool_calls",
    ),
    "a tool that has to be called": Case(
        QUIET | {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "add"}}},
        lambda said, _: {name for name, _ in said[0].calls} == {"add"},
    ),
    "tools that are not to be called": Case(
        WEATHER | {"tool_choice": "none", "max_tokens": 40}, lambda said, _: not said[0].calls
    ),
    "a tool's result": Case(
        {"messages": CALLED, "tools": TOOLS, "enable_thinking": False},
        lambda said, _: "23" in said[0].content and not said[0].calls,
    ),
    "a JSON schema": Case(
        QUIET | {"response_format": FORMAT},
        lambda said, _: json.loads(said[0].content)["city"] == "Paris",
    ),
    "a JSON schema after thinking": Case(
        THINKING | {"response_format": FORMAT},
        lambda said, _: bool(said[0].reasoning) and "Paris" in json.loads(said[0].content).values(),
    ),
    "a regular expression": Case(
        QUIET | {"regex": "[A-Z][a-z]{4}[.!]"},
        lambda said, _: bool(re.fullmatch("[A-Z][a-z]{4}[.!]", said[0].content)),
    ),
    "a grammar": Case(
        QUIET | {"grammar": 'root ::= "<" [a-z]{2,5} ">"'},
        lambda said, _: bool(re.fullmatch("<[a-z]{2,5}>", said[0].content)),
    ),
    "log-probabilities": Case(
        QUIET | {"logprobs": True, "top_logprobs": 3},
        lambda said, _: (
            "".join(score["token"] for score in said[0].scores).startswith(ANSWER)
            and all(len(score["top_logprobs"]) == 3 for score in said[0].scores)
        ),
    ),
    "log-probabilities after thinking": Case(
        THINKING | {"logprobs": True},
        lambda said, _: ANSWER in "".join(score["token"] for score in said[0].scores),
    ),
    "log-probabilities of a call": Case(
        WEATHER | {"enable_thinking": False, "logprobs": True},
        lambda said, _: "get_weather" in "".join(score["token"] for score in said[0].scores),
    ),
    "two choices": Case(
        QUIET | WILD | {"n": 2},
        lambda said, _: len({one.content for one in said}) == 2,
    ),
    "two choices with calls": Case(
        WEATHER | {"n": 2, "enable_thinking": False},
        lambda said, _: [len(one.calls) for one in said] == [1, 1],
    ),
    "a seed": Case(QUIET | WILD, lambda said, _: said[0].content not in ("", ANSWER)),
    "a stop string across tokens": Case(
        QUIET | {"stop": ["pital of Fra", "nobody"]},
        lambda said, _: said[0][0::3] == ("The ca", "stop") and said[0].stop == "pital of Fra",
    ),
    "a stop string at once": Case(QUIET | {"stop": "T"}, lambda said, _: said[0].content == ""),
    "a stop string that almost comes": Case(
        QUIET | {"stop": "Paris.!"},
        lambda said, _: said[0].content == ANSWER and said[0].stop is None,
    ),
    "an end by length": Case(
        QUIET | {"max_completion_tokens": 4},
        lambda said, usage: said[0].finish_reason == "length" and usage["completion_tokens"] == 4,
    ),
    "a least length": Case(
        QUIET | {"min_tokens": 40, "max_tokens": 60},
        lambda _, usage: usage["completion_tokens"] >= 40,
    ),
    "an end that is ignored": Case(
        QUIET | {"ignore_eos": True, "max_tokens": 40},
        lambda said, usage: said[0].finish_reason == "length" and usage["completion_tokens"] == 40,
    ),
    "characters of many bytes": Case(
        {"messages": user("Say hello with a wave."), "regex": "[👋🎉]{3}日本 é"},
        lambda said, _: bool(re.fullmatch("[👋🎉]{3}日本 é", said[0].content)),
    ),
    "a character cut short": Case(
        QUIET | {"regex": "[👋🎉]{3}", "max_tokens": 6},
        lambda said, _: said[0].finish_reason == "length" and len(said[0].content) in (1, 2),
    ),
    "an answer that the client began": Case(
        _begun("The capital of"),
        lambda said, _: "The capital of" + said[0].content == ANSWER,
    ),
    "a thought that the client began": Case(
        BEGUN_THOUGHT,
        lambda said, usage: (
            bool(said[0].reasoning)
            and not said[0].reasoning.startswith("The user")
            and ANSWER in said[0].content
            and _thought(usage) > 0
        ),
    ),
    "a thought begun inside the content": Case(
        _begun("<think>\nThe user asks"),
        lambda said, usage: (
            bool(said[0].reasoning) and _thought(usage) > 0 and "<think>" not in said[0].content
        ),
    ),
    "a begun thought that stays in the content": Case(
        BEGUN_THOUGHT,
        lambda said, _: (
            "</think>" in said[0].content
            and not said[0].content.startswith(("<think>", "The user"))
            and said[0].content.endswith(ANSWER)
        ),
        {"x-include-thinking": "1"},
    ),
}


@pytest.fixture(scope="module")
def neuron() -> Iterator[Daemon]:
    with start_neuron(models=(TINY,), config="[engine]\nparallel = 4\n") as neuron:

        async def is_ready() -> bool:
            models = (await fetch("GET", f"{neuron.url}/models")).body["models"]
            return [model["phase"] for model in models] == ["ready"]

        asyncio.run(eventually(is_ready, "cortex/tiny is ready"))
        yield neuron


async def _asked(neuron: Daemon, case: Case, **more: Any) -> Answer:
    body = {"model": TINY, "temperature": 0, "max_tokens": 400} | case.body | more
    if "max_completion_tokens" in body:
        del body["max_tokens"]
    answer = await fetch("POST", neuron.url + CHAT, body, headers=case.headers)
    assert answer.status == 200, answer.body
    return answer


def _whole(answer: Answer) -> list[Said]:
    return [
        Said(
            choice["message"]["content"] or "",
            choice["message"].get("reasoning_content") or "",
            [
                (call["function"]["name"], call["function"]["arguments"])
                for call in choice["message"].get("tool_calls", ())
            ],
            choice["finish_reason"],
            choice.get("stop_reason"),
            choice.get("logprobs", {}).get("content", []),
        )
        for choice in answer.body["choices"]
    ]


def _chunks(answer: Answer) -> list[dict[str, Any]]:
    """The stream's chunks, whose shape is as it has to be."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [event for event in answer.body.split("\n\n") if not event.startswith(":")]
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def _check_shape(chunks: list[dict[str, Any]], count: int) -> None:
    """One id; every choice opens with its role and closes with its reason; usage comes last."""
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    *spoken, last = chunks
    assert last["choices"] == []
    assert not any("usage" in chunk for chunk in spoken)
    choices = [choice for chunk in spoken for choice in chunk["choices"]]
    for index in range(count):
        opening, *rest, ending = [choice for choice in choices if choice["index"] == index]
        assert opening["delta"] == {"role": "assistant", "content": ""}
        assert ending["delta"] == {}
        assert ending["finish_reason"]
        assert all(choice["finish_reason"] is None for choice in (opening, *rest))
        assert not any("stop_reason" in choice for choice in (opening, *rest))
        assert not any("role" in choice["delta"] for choice in rest)


def _streamed(chunks: list[dict[str, Any]], count: int) -> list[Said]:
    said: list[Said] = []
    for index in range(count):
        own = [one for chunk in chunks for one in chunk["choices"] if one["index"] == index]
        deltas = [choice["delta"] for choice in own]
        calls: list[tuple[str, str]] = []
        identities: list[str] = []
        for part in (part for delta in deltas for part in delta.get("tool_calls", ())):
            function = part["function"]
            if part["index"] == len(calls):
                assert (part["type"], function["arguments"]) == ("function", "")
                identities.append(part["id"])
                calls.append((function["name"], ""))
            else:
                assert part.keys() == {"index", "function"}
                name, arguments = calls[part["index"]]
                calls[part["index"]] = (name, arguments + function["arguments"])
        assert len(set(identities)) == len(identities)
        said.append(
            Said(
                "".join(delta.get("content", "") for delta in deltas),
                "".join(delta.get("reasoning_content", "") for delta in deltas),
                calls,
                own[-1]["finish_reason"],
                own[-1].get("stop_reason"),
                [score for one in own for score in one.get("logprobs", {}).get("content", [])],
            )
        )
    return said


def _rounded(said: list[Said]) -> list[Said]:
    """What was computed in batches of another shape differs in the last digits."""

    def score(one: dict[str, Any]) -> dict[str, Any]:
        top = {best["token"]: round(best["logprob"], 2) for best in one["top_logprobs"]}
        return one | {"logprob": round(one["logprob"], 2), "top_logprobs": top}

    return [one._replace(scores=[score(each) for each in one.scores]) for one in said]


def _counted(usage: dict[str, Any]) -> dict[str, Any]:
    """Of the usage, what does not depend on what was asked before."""
    return usage | {"prompt_tokens_details": None}


@pytest.mark.parametrize("name", CASES)
async def test_a_stream_says_what_a_whole_answer_says(neuron: Daemon, name: str):
    case = CASES[name]
    whole = await _asked(neuron, case)
    stream = await _asked(neuron, case, stream=True, stream_options={"include_usage": True})
    said, chunks = _whole(whole), _chunks(stream)
    assert case.proof(said, whole.body["usage"]), (said, whole.body["usage"])
    _check_shape(chunks, len(said))
    assert _rounded(_streamed(chunks, len(said))) == _rounded(said)
    assert _counted(chunks[-1]["usage"]) == _counted(whole.body["usage"])
    assert stream.headers.get("x-cortex-ignored") == whole.headers.get("x-cortex-ignored")


@pytest.mark.parametrize("name", CASES)
async def test_a_prompt_that_is_shown_is_the_one_that_is_answered(neuron: Daemon, name: str):
    body = {"model": TINY} | CASES[name].body | {"n": 1}
    shown = await fetch("POST", f"{neuron.url}/v1/chat/render", body)
    counted = await fetch("POST", f"{neuron.url}/v1/chat/render?tokens=false", body)
    answered = await _asked(neuron, CASES[name], n=1)
    assert shown.body["count"] == answered.body["usage"]["prompt_tokens"]
    assert len(shown.body["tokens"]) == shown.body["count"]
    assert counted.body == {"count": shown.body["count"]}
    text = await fetch(
        "POST", f"{neuron.url}/detokenize", {"model": TINY, "tokens": shown.body["tokens"]}
    )
    assert text.body["content"] == shown.body["prompt"]
