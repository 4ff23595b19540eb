"""Log-probabilities are the model's own, and come with the text they are of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from cortex_core.wire.ipc import Grammar, Sampling, TokenScore
from neuron.worker.detokenize import Pieces
from neuron.worker.logprobs import ScoreLog, log_softmax, scored
from neuron.worker.rows import Rows
from tests.unit.worker.driven import Driven, Told, driven
from tests.unit.worker.worker_process import ENDLESS, GREEDY, TINY, chat

CAPITAL = chat("What is the capital of France?")


@pytest.fixture(scope="module")
def tiny() -> Iterator[Driven]:
    with driven(TINY) as engine:
        yield engine


def scores(told: Told) -> list[TokenScore]:
    return [score for delta in told.deltas for score in delta.scores]


# arithmetic


def test_probabilities_add_up_to_one() -> None:
    row = np.array([1000.0, 1001.0, -5.0, -np.inf], np.float32)
    values = log_softmax(row)
    assert np.exp(values).sum() == pytest.approx(1)
    assert values[1] - values[0] == pytest.approx(1)


def test_the_likeliest_come_first_and_no_more_than_there_are() -> None:
    row = np.array([1.0, 3.0, 2.0], np.float32)
    value, top = scored(row, 0, 2)
    assert [token for token, _ in top] == [1, 2]
    assert value == pytest.approx(top[0][1] - 2)
    assert [token for token, _ in scored(row, 0, 20)[1]] == [1, 2, 0]
    assert scored(row, 0, 0)[1] == []


# with the text


def log_of(*pieces: bytes) -> ScoreLog:
    log = ScoreLog(Pieces(len(pieces), lambda token: pieces[token]))
    for token in range(len(pieces)):
        log.add(token, (-float(token), []))
    return log


def test_a_score_comes_with_the_first_character_of_its_token() -> None:
    log = log_of(b"ab", b"c", b"d")
    assert [s.piece for s in log.release(1)] == [b"ab"]
    assert log.release(1) == []
    assert [s.piece for s in log.release(1)] == [b"c"]
    assert [s.piece for s in log.release_all()] == [b"d"]
    assert log.release_all() == []


def test_tokens_of_one_character_come_together() -> None:
    euro = "€".encode()
    log = log_of(euro[:1], euro[1:2], euro[2:], b"x")
    assert [s.piece for s in log.release(1)] == [euro[:1], euro[1:2], euro[2:]]


def test_bytes_that_are_no_character_still_have_scores() -> None:
    log = log_of(b"\xff", b"a", b"\xe2")
    assert [s.piece for s in log.release(2)] == [b"\xff", b"a"]
    assert [s.piece for s in log.release_all()] == [b"\xe2"]


# through the engine


def test_every_token_is_scored_as_the_model_saw_it(
    tiny: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the rows themselves, read before anything changes them."""
    seen: list[np.ndarray] = []
    logits = Rows.logits

    def reading(self: Rows) -> np.ndarray:
        rows = logits(self)
        seen.append(rows[0].copy())
        return rows

    monkeypatch.setattr(Rows, "logits", reading)
    sampling = Sampling(temperature=0.0, ignore_eos=True, presence_penalty=3.0, logit_bias={7: 4.0})
    told = tiny.answer(CAPITAL, sampling, max_tokens=12, top_logprobs=3)
    piece = tiny.vocabulary.piece
    told_scores = scores(told)
    assert len(told_scores) == 12
    for row, score in zip(seen, told_scores[1:], strict=True):
        values = log_softmax(row)
        best = np.argsort(-values, kind="stable")[:3]
        assert score.top == [(piece(int(t)), pytest.approx(float(values[t]))) for t in best]
        chosen = [t for t in range(len(values)) if piece(t) == score.piece]
        assert score.logprob in [pytest.approx(float(values[t])) for t in chosen]


@pytest.mark.parametrize(
    "prompt", [CAPITAL, chat("Say hello in Japanese."), chat("What is 2 + 2?", thinking=True)]
)
def test_their_bytes_are_the_content(tiny: Driven, prompt: str) -> None:
    told = tiny.answer(prompt, top_logprobs=1)
    assert b"".join(score.piece for score in scores(told)).decode() == told.text != ""
    assert told.usage.completion - told.usage.reasoning >= len(scores(told))
    assert all(score.logprob <= 0 for score in scores(told))
    assert not any(delta.scores for delta in told.deltas if delta.channel != "content")


def test_asking_changes_nothing_else(tiny: Driven) -> None:
    for sampling in (GREEDY, Sampling(temperature=1.0, seed=3)):
        plain = tiny.answer(CAPITAL, sampling)
        told = tiny.answer(CAPITAL, sampling, top_logprobs=0)
        assert (told.text, told.reason, told.usage.completion) == (
            plain.text, plain.reason, plain.usage.completion,
        )  # fmt: skip
        assert all(score.top == [] for score in scores(told))
        assert scores(plain) == []


def test_greedy_takes_the_likeliest(tiny: Driven) -> None:
    told = tiny.answer(CAPITAL, ENDLESS, max_tokens=8, top_logprobs=1, is_raw=True)
    ends = {tiny.vocabulary.piece(token) for token in tiny.vocabulary.end_ids}
    for score in scores(told):
        best, logprob = score.top[0]
        assert (score.piece, score.logprob) == (best, logprob) or best in ends


def test_a_stop_string_takes_its_scores_along(tiny: Driven) -> None:
    whole = tiny.answer(CAPITAL).text
    stop = whole[len(whole) // 2 :][:4]
    told = tiny.answer(CAPITAL, stop=(stop,), top_logprobs=0)
    text = b"".join(score.piece for score in scores(told)).decode("utf-8", "replace")
    assert told.text == whole[: whole.index(stop)]
    assert text.startswith(told.text)
    assert not scores(told) or len(text) - len(told.text) < len(scores(told)[-1].piece)


def test_a_constraint_leaves_the_models_opinion_as_it_is(tiny: Driven) -> None:
    told = tiny.answer(CAPITAL, constraint=Grammar("regex", "Rome", "regex"), top_logprobs=2)
    first = scores(told)[0]
    assert first.logprob < first.top[0][1]
    assert told.text == "Rome"


def test_several_choices_share_the_prompt(tiny: Driven) -> None:
    """What `n` is made of: the second finds the first one's cells."""
    prompt = chat("Tell me something about tides, please. " * 20)
    told = [
        tiny.submit(prompt, Sampling(temperature=1.0, seed=seed), max_tokens=8) for seed in (1, 2)
    ]
    tiny.run()
    assert told[0].usage.prompt == told[1].usage.prompt
    assert told[1].usage.cached > told[1].usage.prompt // 2
