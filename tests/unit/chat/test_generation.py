"""Which sampling, prompt and machines a request gets."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cortex_core.config.neuron import NeuronConfig
from cortex_core.envelopes.openai_chat import ChatRequest
from cortex_core.errors import ModelNotFound, TemplateRenderFailed
from cortex_core.wire import ipc
from neuron.generation import ChatService, resolve_sampling
from tests.unit.chat.played import PlayedRegistry, ask, info

TOOLS = [{"type": "function", "function": {"name": "add"}}]
RECOMMENDED = {
    "general.sampling.temp": "0.600000",
    "general.sampling.top_k": "20",
    "general.sampling.top_p": "0.9",
    "general.sampling.min_p": "0",
    "general.sampling.penalty_repeat": "1.1",
    "general.sampling.penalty_last_n": "32",
}


def _request(**more: Any) -> ChatRequest:
    return msgspec.convert(ask(**more), ChatRequest)


async def _prompt(registry: PlayedRegistry, request: ChatRequest, **config: Any) -> str:
    async with await ChatService(registry, NeuronConfig(**config)).open(request):
        prompt = registry.generate.prompt
        assert isinstance(prompt, str)
        return prompt


# sampling


def test_without_wishes_the_fixed_defaults_hold():
    assert resolve_sampling(_request(), {}) == ipc.Sampling(
        temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, repeat_penalty=1.0
    )


def test_the_models_recommendation_beats_the_defaults():
    assert resolve_sampling(_request(), RECOMMENDED) == ipc.Sampling(
        0.6, 20, 0.9, 0.0, repeat_penalty=1.1, repeat_last_n=32
    )


def test_the_request_beats_the_recommendation():
    wishes = {"temperature": 0.0, "top_k": 0, "seed": 7, "ignore_eos": True, "min_p": 0.2}
    sampling = resolve_sampling(_request(**wishes), RECOMMENDED)
    assert {name: getattr(sampling, name) for name in wishes} == wishes


@pytest.mark.parametrize("value", ["", "warm", "nan", "inf", "-1"])
def test_a_recommendation_that_is_no_number_is_none(value: str):
    metadata = dict.fromkeys(RECOMMENDED, value)
    assert resolve_sampling(_request(), metadata) == ipc.Sampling()


def test_a_recommendation_nobody_could_ask_for_is_none():
    metadata = {"general.sampling.mirostat": "7", "general.sampling.xtc_probability": "1e9"}
    assert resolve_sampling(_request(), metadata) == ipc.Sampling()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("typical_p", 0.5),
        ("top_n_sigma", 1.5),
        ("xtc_probability", 0.25),
        ("xtc_threshold", 0.25),
        ("dynatemp_range", 0.5),
        ("dynatemp_exponent", 2.0),
        ("mirostat", 2),
        ("mirostat_tau", 3.0),
        ("mirostat_eta", 0.25),
        ("dry_multiplier", 0.75),
        ("dry_base", 1.5),
        ("dry_allowed_length", 3),
        ("dry_penalty_last_n", -1),
        ("min_tokens", 4),
    ],
)
def test_every_wish_reaches_the_worker(name: str, value: float):
    assert getattr(resolve_sampling(_request(**{name: value}), {}), name) == value


def test_biases_and_breakers_reach_the_worker():
    wishes = {"logit_bias": {"7": 1.5}, "dry_sequence_breakers": ["x"]}
    sampling = resolve_sampling(_request(**wishes), {})
    assert sampling.logit_bias == {7: 1.5}
    assert sampling.dry_sequence_breakers == ("x",)


# prompt


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        ({}, ""),
        ({"reasoning_effort": "none"}, "|thinking=False"),
        ({"reasoning_effort": "low"}, "|thinking=True"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "|thinking=False"),
        (
            {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}},
            "|thinking=False",
        ),
    ],
)
async def test_thinking_is_told_to_the_template(wishes: dict[str, Any], told: str):
    assert await _prompt(PlayedRegistry(), _request(**wishes)) == "<user>hi" + told


async def test_tools_reach_the_prompt_unless_they_are_not_to_be_called():
    assert "<tools>" in await _prompt(PlayedRegistry(), _request(tools=TOOLS))
    choice = _request(tools=TOOLS, tool_choice="none")
    assert "<tools>" not in await _prompt(PlayedRegistry(), choice)
    assert "<tools>" not in await _prompt(PlayedRegistry(), _request(tools=[]))


async def test_the_switch_forces_chatml():
    prompt = await _prompt(PlayedRegistry(), _request(), use_chat_template=False)
    assert prompt.startswith("<|im_start|>user\nhi")


async def test_limits_and_stops_go_along():
    registry = PlayedRegistry()
    await _prompt(registry, _request(max_tokens=5, max_completion_tokens=7, stop=["a", "", "b"]))
    assert (registry.generate.max_tokens, registry.generate.stop) == (7, ("a", "b"))


async def test_a_model_that_was_loaded_anew_gets_its_new_template():
    registry = PlayedRegistry(known=info("old"))
    service = ChatService(registry, NeuronConfig())
    async with await service.open(_request()):
        pass
    registry.known = info("new")
    async with await service.open(_request()):
        pass
    prompts = [sent.prompt for sent in registry.sent if isinstance(sent, ipc.Generate)]
    assert prompts == ["old", "new"]


async def test_a_long_conversation_renders_the_same_in_its_thread():
    content = "x" * 100_000
    assert await _prompt(PlayedRegistry(), _request(content=content)) == "<user>" + content


async def test_an_unknown_model_and_a_failing_template_are_typed():
    with pytest.raises(ModelNotFound):
        await _prompt(PlayedRegistry(), msgspec.structs.replace(_request(), model="x"))
    registry = PlayedRegistry(known=info("{{ tools }}{{ raise_exception('no') }}"))
    with pytest.raises(TemplateRenderFailed):
        await _prompt(registry, _request(tools=TOOLS))
    assert not registry.sent
