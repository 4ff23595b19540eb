"""Penalties as arithmetic on a row; which requests need no sampler."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cortex_core.wire.ipc import Sampling
from neuron.worker.sampling import is_plain, penalize

NEUTRAL = Sampling(temperature=0.0)


def penalized(row: list[float], history: list[int], prompt_size: int, **options) -> list[float]:
    values = np.array(row, np.float32)
    penalize(values, np.array(history, np.int32), prompt_size, Sampling(**options))
    return [round(float(value), 4) for value in values]


def test_plain_greedy_needs_no_sampler() -> None:
    assert is_plain(NEUTRAL)
    assert is_plain(Sampling(temperature=0.7, top_k=1))
    assert is_plain(Sampling(temperature=0.0, ignore_eos=True))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5},
        {"repeat_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"dry_multiplier": 0.8},
        {"logit_bias": {3: 1.0}},
        {"min_tokens": 1},
        {"temperature": 0.7, "top_k": 1, "mirostat": 2},
    ],
)
def test_everything_else_does(options: dict[str, Any]) -> None:
    assert not is_plain(Sampling(**{"temperature": 0.0, **options}))


def test_a_repeat_penalty_over_no_tokens_is_none() -> None:
    assert is_plain(Sampling(temperature=0, repeat_penalty=2, repeat_last_n=0))


def test_the_repeat_penalty_makes_seen_tokens_less_likely_whatever_their_sign() -> None:
    row = penalized([2.0, -2.0, 2.0, -2.0], [0, 1], 1, repeat_penalty=2.0)
    assert row == [1.0, -4.0, 2.0, -2.0]


def test_the_repeat_penalty_looks_back_only_so_far() -> None:
    row = penalized([2.0, 2.0, 2.0], [0, 1, 2], 1, repeat_penalty=2.0, repeat_last_n=2)
    assert row == [2.0, 1.0, 1.0]
    row = penalized([2.0, 2.0, 2.0], [0, 1, 2], 1, repeat_penalty=2.0, repeat_last_n=-1)
    assert row == [1.0, 1.0, 1.0]


def test_presence_counts_a_token_once_and_only_in_the_answer() -> None:
    row = penalized([1.0, 1.0, 1.0], [0, 1, 1, 1], 1, presence_penalty=0.5)
    assert row == [1.0, 0.5, 1.0]


def test_frequency_counts_every_time() -> None:
    row = penalized([1.0, 1.0, 1.0], [2, 1, 1, 2], 1, frequency_penalty=0.25)
    assert row == [1.0, 0.5, 0.75]
