"""Every parameter of a chat request does something, is refused by name, or is listed as without
effect: one table of all there are."""

from __future__ import annotations

import asyncio
from typing import Any, Literal, NamedTuple

import msgspec
import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params

from cortex_core.envelopes import openai_completions as completions
from cortex_core.envelopes.openai_chat import IGNORED_PARAMETERS, ChatRequest
from cortex_core.envelopes.openai_completions import CompletionRequest
from cortex_core.wire import ipc
from tests.unit.chat.played import Exchanged, PlayedRegistry, Script, ask, info

Effect = Literal["prompt", "worker", "answer"]

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
TOOLS = {"tools": [TOOL]}
CONTINUED = {
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "So "}]
}
TEMPLATE = """\
{%- if tools %}{{ tools | tojson }}<tool_call>{% endif %}
{%- for message in messages %}{{ message.role + ':' + message.content + ';' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant:' }}{% endif %}
{%- if enable_thinking is defined %}{{ enable_thinking }}{% endif %}
{%- if mood is defined %}{{ mood }}{% endif %}
"""
HELLO: Script = [["started"], [("content", "Hello"), "stop"]]


class Row(msgspec.Struct, frozen=True):
    """What `value` changes in a request that holds `context` besides."""

    value: Any
    effect: Effect
    context: dict[str, Any] = {}


HONOURED: dict[str, Row] = {
    "messages": Row([{"role": "user", "content": "bye"}], "prompt"),
    "tools": Row([TOOL], "prompt"),
    "tool_choice": Row("required", "worker", TOOLS),
    "parallel_tool_calls": Row(False, "worker", TOOLS),
    "reasoning_effort": Row("low", "prompt"),
    "enable_thinking": Row(False, "prompt"),
    "max_thinking_tokens": Row(0, "worker"),
    "continue_final_message": Row(True, "prompt", CONTINUED),
    "add_generation_prompt": Row(False, "prompt"),
    "chat_template_kwargs": Row({"mood": "merry"}, "prompt"),
    "response_format": Row({"type": "json_object"}, "worker"),
    "grammar": Row('root ::= "a"', "worker"),
    "regex": Row("a", "worker"),
    "max_tokens": Row(7, "worker"),
    "max_completion_tokens": Row(7, "worker", {"max_tokens": 9}),
    "stop": Row("x", "worker"),
    "n": Row(2, "answer"),
    "stream": Row(True, "answer"),
    "stream_options": Row({"include_usage": True}, "answer", {"stream": True}),
    "logprobs": Row(True, "worker"),
    "top_logprobs": Row(3, "worker", {"logprobs": True}),
    "temperature": Row(0.1, "worker"),
    "top_p": Row(0.1, "worker"),
    "top_k": Row(1, "worker"),
    "min_p": Row(0.1, "worker"),
    "repeat_penalty": Row(1.1, "worker"),
    "repeat_last_n": Row(1, "worker"),
    "presence_penalty": Row(0.1, "worker"),
    "frequency_penalty": Row(0.1, "worker"),
    "seed": Row(1, "worker"),
    "ignore_eos": Row(True, "worker"),
    "min_tokens": Row(1, "worker"),
    "logit_bias": Row({"1": 1}, "worker"),
    "typical_p": Row(0.1, "worker"),
    "top_n_sigma": Row(0.1, "worker"),
    "xtc_probability": Row(0.1, "worker"),
    "xtc_threshold": Row(0.2, "worker"),
    "dynatemp_range": Row(0.1, "worker"),
    "dynatemp_exponent": Row(0.1, "worker"),
    "mirostat": Row(1, "worker"),
    "mirostat_tau": Row(0.1, "worker"),
    "mirostat_eta": Row(0.2, "worker"),
    "dry_multiplier": Row(0.1, "worker"),
    "dry_base": Row(1.1, "worker"),
    "dry_allowed_length": Row(1, "worker"),
    "dry_penalty_last_n": Row(1, "worker"),
    "dry_sequence_breakers": Row(["x"], "worker"),
}
BY_REQUEST = {"model"}  # names who answers; a wrong one is refused
REFUSED = {
    "audio": {},
    "function_call": "auto",
    "functions": [{"name": "add"}],
    "modalities": ["text"],
    "moderation": {},
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_options": {},
    "web_search_options": {},
}
"""Known to the vendor's SDK, and nothing a local model can do, or could be told to without it."""


class Seen(NamedTuple):
    prompt: str
    generate: ipc.Generate
    answer: Exchanged

    @property
    def ignored(self) -> list[str]:
        return self.answer.headers.get("x-cortex-ignored", "").split(", ")


async def _seen(parameters: dict[str, Any], known: ipc.ModelInfo | None = None) -> Seen:
    registry = PlayedRegistry(HELLO, known or info(TEMPLATE))
    exchanged = Exchanged(registry, ask(**parameters))
    answer = await asyncio.wait_for(exchanged.run(), 10)
    assert answer.status == 200, answer.json
    first = next(sent for sent in registry.sent if isinstance(sent, ipc.Generate))
    assert isinstance(first.prompt, str)
    return Seen(first.prompt, msgspec.structs.replace(first, request=0, prompt=""), answer)


def test_the_table_has_every_parameter():
    assert HONOURED.keys() | BY_REQUEST == set(ChatRequest.__struct_encode_fields__)


def _known(params: Any) -> set[str]:
    base, more = params.CompletionCreateParamsBase, params.CompletionCreateParamsNonStreaming
    return set(base.__annotations__) | set(more.__annotations__)


def test_every_parameter_of_the_official_sdk_has_its_place():
    known = _known(chat_params)
    assert known <= HONOURED.keys() | BY_REQUEST | REFUSED.keys() | IGNORED_PARAMETERS
    assert not HONOURED.keys() & REFUSED.keys()


def test_every_parameter_of_a_completion_in_the_official_sdk_has_its_place():
    honoured = set(CompletionRequest.__struct_encode_fields__)
    assert _known(completion_params) <= honoured | completions.IGNORED_PARAMETERS


@pytest.mark.parametrize("name", HONOURED)
async def test_a_parameter_does_what_it_is_for(name: str):
    row = HONOURED[name]
    before = await _seen(row.context)
    after = await _seen(row.context | {name: row.value})
    assert name not in after.ignored
    if row.effect == "prompt":
        assert before.prompt != after.prompt
        return
    assert before.prompt == after.prompt
    if row.effect == "worker":
        assert before.generate != after.generate
    else:
        shapes = [
            [len(event["choices"]) for event in seen.answer.events if event != "[DONE]"]
            if seen.answer.headers["content-type"].startswith("text/event-stream")
            else len(seen.answer.json["choices"])
            for seen in (before, after)
        ]
        assert shapes[0] != shapes[1]


@pytest.mark.parametrize("name", sorted(IGNORED_PARAMETERS))
async def test_a_parameter_without_effect_is_listed(name: str):
    before, after = await _seen({}), await _seen({name: "x"})
    assert (before.prompt, before.generate) == (after.prompt, after.generate)
    assert after.ignored == [name]


PLAIN = info("{% for m in messages %}{{ m.content }}{% endfor %}", reasoning=None)


@pytest.mark.parametrize(
    ("parameters", "listed"),
    [
        ({"reasoning_effort": "low"}, ["reasoning_effort"]),
        ({"reasoning_effort": "none"}, ["reasoning_effort"]),
        ({"enable_thinking": True}, ["enable_thinking"]),
        ({"max_thinking_tokens": 5}, ["max_thinking_tokens"]),
        ({"add_generation_prompt": False}, ["add_generation_prompt"]),
        ({"chat_template_kwargs": {"mood": 1}}, ["chat_template_kwargs.mood"]),
        ({"chat_template_kwargs": {"é\r\nx: y": 1, "a b": 2}}, ["chat_template_kwargs"]),
        ({"tool_choice": "auto"}, ["tool_choice"]),
        ({"parallel_tool_calls": False}, ["parallel_tool_calls"]),
        ({"stream_options": {}}, ["stream_options"]),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            ["stream_options.include_obfuscation"],
        ),
    ],
)
async def test_a_parameter_that_this_model_or_request_leaves_without_effect_is_listed(
    parameters: dict[str, Any], listed: list[str]
):
    assert (await _seen(parameters, PLAIN)).ignored == listed


@pytest.mark.parametrize("name", [*REFUSED, "temprature", "guided_json"])
async def test_a_parameter_that_is_unknown_is_refused_by_name(name: str):
    body = ask(**{name: REFUSED.get(name, 1)})
    got = await Exchanged(PlayedRegistry(HELLO), body).run()
    assert (got.status, got.json["error"]["code"]) == (400, "unsupported_parameter")
    assert got.json["error"]["param"] == name
