"""Each of llama.cpp's samplers does to a row what its parameter says, and a request's biases and
bans hold; over a vocabulary that is real and rows that are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cortex_core.errors import InvalidRequest
from cortex_core.wire.ipc import Sampling
from neuron.worker import llama
from neuron.worker.sampling import sampler_for
from neuron.worker.vocabulary import Vocabulary
from tests.unit.worker.worker_process import TINY

# Nothing cut off, one draw from the softmax: what a test changes is all that there is.
OPEN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
NO_CONTEXT: Any = None


@pytest.fixture(scope="module")
def model() -> Iterator[llama.Model]:
    llama.start()
    model = llama.Model(TINY, Vocabulary(TINY), gpu_layers=0)
    yield model
    model.free()


@pytest.fixture
def draws(model: llama.Model) -> Any:
    """How often each token is drawn, over as many seeds."""

    def draw(logits: list[float], times: int = 60, **options: Any) -> Counter[int]:
        counts: Counter[int] = Counter()
        for seed in range(times):
            (token,) = run(model, logits, [], 1, **({"seed": seed} | options))
            counts[token] += 1
        return counts

    return draw


def run(
    model: llama.Model, logits: list[float], prompt: list[int], times: int, **options: Any
) -> list[int]:
    """The tokens one request is given, each from the same row. Tokens that `logits` do not reach
    are impossible."""
    sampler = sampler_for(Sampling(**(OPEN | options)), model, context=512)
    row = np.full(model.vocabulary.size, -np.inf, np.float32)
    row[: len(logits)] = logits
    if sampler is None:
        return [int(row.argmax())] * times
    if sampler._chain is not None:
        sampler._chain.needs_finite = True  # so that no context is asked for its logits
    history = list(prompt)
    for _ in range(times):
        history.append(
            sampler.choose(
                row[None].copy(), 0, np.array(history, np.int32), len(prompt), NO_CONTEXT
            )
        )
    sampler.free()
    return history[len(prompt) :]


def test_typical_p_keeps_what_is_about_as_surprising_as_expected(draws: Any) -> None:
    row = [5.0, *[3.0] * 200]  # the best is likelier than typical
    assert 0 in draws(row)
    assert 0 not in draws(row, typical_p=0.5)


def test_top_n_sigma_drops_what_is_too_far_below_the_best(draws: Any) -> None:
    row = [2.0, 1.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert set(draws(row)) > {0, 1}
    assert set(draws(row, top_n_sigma=1.0)) == {0, 1}


def test_xtc_drops_all_probable_tokens_but_the_least_probable_of_them(draws: Any) -> None:
    row = [3.0, 2.5, 2.0, -9.0]
    assert set(draws(row)) == {0, 1, 2}
    assert set(draws(row, xtc_probability=1.0, xtc_threshold=0.1)) <= {2, 3}


def test_xtc_leaves_alone_what_is_below_its_threshold(draws: Any) -> None:
    row = [3.0, 2.5, 2.0]
    assert 0 in draws(row, xtc_probability=1.0, xtc_threshold=0.49)


def test_dynamic_temperature_is_low_where_the_model_is_sure(draws: Any) -> None:
    row = [4.0, 0.0, 0.0, 0.0]
    steady = draws(row, temperature=4.0)
    dynamic = draws(row, temperature=4.0, dynatemp_range=4.0)
    assert dynamic[0] > steady[0]


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_keeps_to_the_surprise_it_is_told(model: llama.Model, version: int) -> None:
    row = (-1.1 * np.log(np.arange(1, 301))).tolist()  # as words are distributed
    options = {"mirostat": version, "mirostat_eta": 0.5, "seed": 1}
    calm = run(model, row, [], 60, mirostat_tau=0.1, **options)[30:]
    lively = run(model, row, [], 60, mirostat_tau=7.0, **options)[30:]
    assert calm.count(0) > 20
    assert len(set(lively)) > 10


def test_mirostat_takes_the_place_of_the_cuts(model: llama.Model) -> None:
    row = (-1.1 * np.log(np.arange(1, 301))).tolist()
    tokens = run(model, row, [], 40, mirostat=2, mirostat_tau=8.0, top_k=1, seed=1)
    assert len(set(tokens)) > 10


DRY = {"temperature": 0.0, "dry_multiplier": 10.0, "dry_sequence_breakers": ()}


def test_dry_keeps_a_greedy_answer_from_repeating_what_the_prompt_said(model: llama.Model) -> None:
    row = [0.0, 1.0, 0.0, 3.0, 0.0, 0.0]
    prompt = [5, 4, 2, 3, 5, 4, 2]
    assert run(model, row, prompt, 1, temperature=0.0) == [3]
    assert run(model, row, prompt, 1, **DRY) == [1]


def test_dry_looks_back_only_so_far(model: llama.Model) -> None:
    row = [0.0, 1.0, 0.0, 3.0, 0.0, 0.0]
    prompt = [5, 4, 2, 3, 5, 4, 2]
    assert run(model, row, prompt, 1, **DRY, dry_penalty_last_n=4) == [3]
    assert run(model, row, prompt, 1, **DRY, dry_penalty_last_n=-1) == [1]
    assert run(model, row, prompt, 1, **DRY, dry_penalty_last_n=0) == [3]


def test_dry_allows_repetitions_up_to_a_length(model: llama.Model) -> None:
    row = [0.0, 1.0, 0.0, 3.0, 0.0, 0.0]
    prompt = [5, 4, 2, 3, 5, 4, 2]
    assert run(model, row, prompt, 1, **DRY, dry_allowed_length=5) == [3]


def test_dry_starts_anew_after_a_breaker(model: llama.Model) -> None:
    a, b, stop, again = (
        int(token) for text in "ab\nz" for token in model.vocabulary.tokenize_bare(text)
    )
    row = [0.0] * (max(a, b, stop, again) + 1)
    row[again], row[0] = 3.0, 1.0
    prompt = [a, b, stop, again, a, b, stop]
    assert run(model, row, prompt, 1, **DRY) == [0]
    options = DRY | {"dry_sequence_breakers": ("\n",)}
    assert run(model, row, prompt, 1, **options) == [again]


def test_dry_counts_what_the_answer_said_too(model: llama.Model) -> None:
    tokens = run(model, [1.0, 1.1], [], 12, **DRY, frequency_penalty=0.0)
    assert tokens[:3] == [1, 1, 1]
    assert 0 in tokens


def test_a_bias_makes_a_token_the_best_or_impossible(model: llama.Model) -> None:
    row = [1.0, 2.0, 3.0]
    assert run(model, row, [], 1, temperature=0.0, logit_bias={0: 50.0}) == [0]
    assert run(model, row, [], 1, temperature=0.0, logit_bias={2: -100.0}) == [1]


def test_a_bias_works_on_draws_too(draws: Any) -> None:
    assert set(draws([1.0, 1.0, 1.0], logit_bias={1: -100.0})) == {0, 2}


@pytest.mark.parametrize("token", [-1, 1280])
def test_a_bias_for_what_is_no_token_is_refused_by_name(model: llama.Model, token: int) -> None:
    with pytest.raises(InvalidRequest, match=f"logit_bias: {token} is no token") as caught:
        sampler_for(Sampling(logit_bias={token: 1.0}), model, context=512)
    assert caught.value.param == "logit_bias"


def test_no_end_before_the_least_number_of_tokens(model: llama.Model) -> None:
    end = min(model.vocabulary.end_ids)
    row = [0.0] * model.vocabulary.size
    row[end] = 9.0
    row[7] = 1.0
    assert run(model, row, [1, 2], 4, temperature=0.0, min_tokens=3) == [7, 7, 7, end]
    assert run(model, row, [], 3, temperature=0.0, min_tokens=1, ignore_eos=True) == [7, 7, 7]


@pytest.mark.parametrize("options", [{"typical_p": 0.9}, {"mirostat": 1}])
def test_a_token_that_cannot_be_breaks_no_arithmetic(
    model: llama.Model, options: dict[str, Any]
) -> None:
    tokens = run(model, [1.0, 0.5, -1e30, -300.0], [], 50, seed=3, **options)
    assert set(tokens) <= {0, 1}


def test_the_only_possible_token_is_drawn(model: llama.Model) -> None:
    assert run(model, [1.0], [], 3, mirostat=1) == [0, 0, 0]


def test_the_same_seed_draws_the_same(model: llama.Model) -> None:
    row = np.linspace(0, 1, 500).tolist()
    assert run(model, row, [], 20, seed=5) == run(model, row, [], 20, seed=5)
    assert run(model, row, [], 20, seed=5) != run(model, row, [], 20, seed=6)
