"""Which sampling a request gets: its own, its load's, what its model's makers recommend, or what is
fixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex_core.config.neuron import NeuronConfig
from cortex_core.envelopes.openai_chat import ChatRequest
from cortex_core.envelopes.openai_completions import CompletionRequest
from cortex_core.wire import ipc
from neuron.completion import CompletionService
from neuron.generation import ChatService
from neuron.recommended import recommended, resolve_sampling
from tests.unit.chat.played import PlayedRegistry, ask, info

METADATA = {
    "general.sampling.temp": "0.600000",
    "general.sampling.top_k": "20",
    "general.sampling.top_p": "0.9",
    "general.sampling.min_p": "0",
    "general.sampling.penalty_repeat": "1.1",
    "general.sampling.penalty_last_n": "32",
}
IN_METADATA = {
    "temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.0,
    "repeat_penalty": 1.1, "repeat_last_n": 32,
}  # fmt: skip


def _request(**more: Any) -> ChatRequest:
    return msgspec.convert(ask(**more), ChatRequest)


def _beside(folder: Path, config: str | bytes) -> str:
    """The path of a GGUF that lies beside this generation_config.json."""
    data = config.encode() if isinstance(config, str) else config
    (folder / "generation_config.json").write_bytes(data)
    return str(folder / "m.gguf")


# precedence


def test_without_wishes_the_fixed_defaults_hold():
    assert resolve_sampling(_request(), {}, {}) == ipc.Sampling(
        temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, repeat_penalty=1.0
    )


@pytest.mark.parametrize(
    ("wish", "default", "advice", "got"),
    [
        ({"top_k": 1}, {"top_k": 2}, {"top_k": 3}, 1),
        ({}, {"top_k": 2}, {"top_k": 3}, 2),
        ({}, {}, {"top_k": 3}, 3),
        ({}, {}, {}, 40),
        ({"top_k": 0}, {"top_k": 2}, {"top_k": 3}, 0),
    ],
)
def test_the_nearest_to_the_request_wins(
    wish: dict[str, int], default: dict[str, int], advice: dict[str, int], got: int
):
    assert resolve_sampling(_request(**wish), default, advice).top_k == got


def test_each_value_is_decided_alone():
    sampling = resolve_sampling(
        _request(temperature=0.0), {"top_p": 0.5, "temperature": 1.0}, {"min_p": 0.2, "top_p": 0.1}
    )
    assert sampling == ipc.Sampling(temperature=0.0, top_p=0.5, min_p=0.2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.25),
        ("top_k", 7),
        ("top_p", 0.5),
        ("min_p", 0.25),
        ("repeat_penalty", 1.25),
        ("repeat_last_n", 7),
        ("presence_penalty", 0.25),
        ("frequency_penalty", 0.25),
        ("seed", 7),
        ("ignore_eos", True),
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
    assert getattr(resolve_sampling(_request(**{name: value}), {}, {}), name) == value


def test_biases_and_breakers_reach_the_worker():
    wishes = {"logit_bias": {"7": 1.5}, "dry_sequence_breakers": ["x"]}
    sampling = resolve_sampling(_request(**wishes), {}, {})
    assert sampling.logit_bias == {7: 1.5}
    assert sampling.dry_sequence_breakers == ("x",)


async def test_chats_and_completions_of_a_model_get_the_same(tmp_path: Path):
    path = _beside(tmp_path, '{"top_k": 3, "min_p": 0.5}')
    registry = PlayedRegistry(known=info(path=path, metadata={"general.sampling.temp": "0.1"}))
    registry.defaults = {"top_k": 2}
    async with await ChatService(registry, NeuronConfig()).open(_request(seed=1)):
        pass
    completion = CompletionRequest(model="m", prompt="x", seed=1)
    async with await CompletionService(registry).open(completion):
        pass
    samplings = [sent.sampling for sent in registry.sent if isinstance(sent, ipc.Generate)]
    expected = ipc.Sampling(temperature=0.1, top_k=2, min_p=0.5, seed=1)
    assert samplings == [expected, expected]


# what makers recommend


def test_metadata_recommends():
    assert recommended(info(metadata=METADATA)) == IN_METADATA


def test_a_file_beside_the_model_recommends_before_its_metadata(tmp_path: Path):
    path = _beside(
        tmp_path,
        '{"temperature": 0.7, "top_k": 64, "repetition_penalty": 1.05, "typical_p": 0.9,'
        ' "do_sample": true, "eos_token_id": [1, 2], "max_new_tokens": 9}',
    )
    assert recommended(info(metadata=METADATA, path=path)) == IN_METADATA | {
        "temperature": 0.7, "top_k": 64, "repeat_penalty": 1.05, "typical_p": 0.9,
    }  # fmt: skip


@pytest.mark.parametrize("value", ["", "warm", "nan", "inf", "-1"])
def test_metadata_that_is_no_number_recommends_nothing(value: str):
    assert recommended(info(metadata=dict.fromkeys(METADATA, value))) == {}


@pytest.mark.parametrize("value", ['"warm"', "null", "true", "[0.5]", "-1", "1e99", "NaN"])
def test_a_value_that_no_request_may_have_gives_way_to_the_metadata(tmp_path: Path, value: str):
    path = _beside(tmp_path, f'{{"temperature": {value}, "top_k": {value}}}')
    assert recommended(info(metadata=METADATA, path=path)) == IN_METADATA


def test_what_nobody_could_ask_for_is_no_recommendation():
    metadata = {"general.sampling.mirostat": "7", "general.sampling.xtc_probability": "1e9"}
    assert recommended(info(metadata=metadata)) == {}


@pytest.mark.parametrize("config", ["", "{", "[1]", "7", b"\xff", "[" * 100_000])
def test_a_file_that_cannot_be_read_recommends_nothing(tmp_path: Path, config: str | bytes):
    path = _beside(tmp_path, config)
    assert recommended(info(metadata=METADATA, path=path)) == IN_METADATA


@given(st.dictionaries(st.sampled_from([*METADATA, "general.sampling.mirostat"]), st.text()))
def test_any_metadata_recommends_only_what_a_worker_can_take(metadata: dict[str, str]):
    sampling = resolve_sampling(_request(), {}, recommended(info(metadata=metadata)))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sampling), type=ipc.Sampling) == sampling
