"""What a request may say about sampling, the same on every route that generates text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from cortex_core.envelopes.openai_chat import decode_chat_request
from cortex_core.envelopes.openai_completions import decode_completion_request
from cortex_core.errors import InvalidRequest

Decode = Callable[[bytes], tuple[Any, list[str]]]

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "m", "prompt": "hi"}
ROUTES: list[tuple[Decode, dict[str, Any]]] = [
    (decode_chat_request, CHAT),
    (decode_completion_request, COMPLETION),
]


def decoded(decode: Decode, body: dict[str, Any], **more: Any) -> Any:
    return decode(msgspec.json.encode(body | more))[0]


@pytest.mark.parametrize(("decode", "body"), ROUTES)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("typical_p", 1.1),
        ("top_n_sigma", -2),
        ("xtc_probability", -0.1),
        ("xtc_threshold", 2),
        ("dynatemp_range", -1),
        ("dynatemp_exponent", -1),
        ("mirostat", 3),
        ("mirostat_tau", -1),
        ("mirostat_eta", 1.5),
        ("dry_multiplier", -1),
        ("dry_base", 0.9),
        ("dry_allowed_length", 0),
        ("dry_penalty_last_n", -2),
        ("min_tokens", -1),
        ("mirostat", 1.5),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"\u0663": 1}),
        ("logit_bias", [1]),
        ("dry_sequence_breakers", ["x"] * 17),
        ("dry_sequence_breakers", "x"),
        ("stop", ["x"] * 65),
        ("stop", "x" * 1025),
    ],
)
def test_a_value_out_of_range_is_named(
    decode: Decode, body: dict[str, Any], name: str, value: Any
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decoded(decode, body, **{name: value})
    assert refused.value.param == name


@pytest.mark.parametrize(("decode", "body"), ROUTES)
@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("logit_bias", {"1": 1, "5": 101}, "logit_bias.5"),
        ("dry_sequence_breakers", ["x", ""], "dry_sequence_breakers[1]"),
        ("dry_sequence_breakers", ["é" * 21], "dry_sequence_breakers[0]"),
        ("dry_sequence_breakers", ["a\0b"], "dry_sequence_breakers[0]"),
        ("stop", ["x" * 1024, "é" * 513], "stop[1]"),
    ],
)
def test_the_wrong_one_of_several_is_named(
    decode: Decode, body: dict[str, Any], name: str, value: Any, place: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decoded(decode, body, **{name: value})
    assert refused.value.param == place


@pytest.mark.parametrize(("decode", "body"), ROUTES)
def test_an_answer_cannot_have_fewer_tokens_at_most_than_at_least(
    decode: Decode, body: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest, match="min_tokens: must be at most 5") as refused:
        decoded(decode, body, min_tokens=6, max_tokens=5)
    assert refused.value.param == "min_tokens"
    assert decoded(decode, body, min_tokens=5, max_tokens=5).min_tokens == 5


def test_a_completions_own_limit_counts_too() -> None:
    with pytest.raises(InvalidRequest, match="at most 16"):
        decoded(decode_completion_request, COMPLETION, min_tokens=17)


@pytest.mark.parametrize(("decode", "body"), ROUTES)
def test_biases_come_by_token_id(decode: Decode, body: dict[str, Any]) -> None:
    assert decoded(decode, body, logit_bias={"7": -100, "12": 0.5}).token_biases == {
        7: -100.0,
        12: 0.5,
    }
    assert decoded(decode, body).token_biases is None
