"""What the engine benchmarks compute from what they see: a wrong ruler measures nothing."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from tests.bench.engine import agents, prompts
from tests.bench.engine.prompts import Tokenizer
from tests.bench.engine.rounds import ratio_cells
from tests.bench.engine.servers import Counts, LlamaServer, Neuron, Setup
from tests.bench.engine.streams import Stream


@pytest.fixture(scope="module")
def tokenizer() -> Iterator[Tokenizer]:
    with prompts.opened(Path(str(files("neuron") / "assets" / "tiny.gguf"))) as tokenizer:
        yield tokenizer


def _stream(*arrivals: float) -> Stream:
    stream = Stream(0.0)
    for at in arrivals:
        stream.arrive(at)
    return stream


@pytest.mark.parametrize(
    ("arrivals", "gap_s"),
    [
        ((1, 2, 3, 4), 1),
        ((1, 2, 5, 6), 3),
        ((1, 9), 8),  # both ends lie outside the span: the whole gap counts
        ((1, 3), 2),  # silent since: up to the span's end
        ((1, 2), 3),
        ((1, 1.5, 6, 20), 4.5),  # from the last before the span, to the first after it
    ],
)
def test_the_longest_gap_is_the_one_that_a_reader_sees_across_the_span(arrivals, gap_s):
    assert _stream(*arrivals).longest_gap_s(2, 5) == pytest.approx(gap_s)


def test_a_gap_outside_the_span_does_not_count():
    assert _stream(0, 50, 60, 61, 62, 90).longest_gap_s(60, 62) == pytest.approx(1)


@pytest.mark.parametrize("tokens", [1, 12, 700])
def test_prose_has_the_asked_number_of_tokens(tokenizer: Tokenizer, tokens: int):
    text = prompts.prose(tokenizer, tokens, "seed")
    assert tokens <= tokenizer.count(text) <= tokens + 3  # it ends with a whole word
    assert text == prompts.prose(tokenizer, tokens, "seed")


def test_prose_of_another_seed_shares_no_prefix_to_speak_of(tokenizer: Tokenizer):
    one, other = (tokenizer.ids(prompts.prose(tokenizer, 200, seed)) for seed in (1, 2))
    assert one[:4] != other[:4]


def test_the_script_counts_as_known_what_any_prompt_before_began_with(tokenizer: Tokenizer):
    turns = list(agents.script(tokenizer, 3, 0))
    prompts_ = [tokenizer.ids(prompts.chatml(turn.conversation)) for turn in turns]
    assert [turn.prompt_tokens for turn in turns] == [len(ids) for ids in prompts_]
    assert turns[0].known_tokens == 0
    # The other agent's first prompt knows the system prompt; from then on each knows its own last.
    assert agents.SYSTEM_TOKENS <= turns[1].known_tokens < agents.SYSTEM_TOKENS + 20
    for turn in range(2, len(turns)):
        known = turns[turn].known_tokens
        assert known == turns[turn - 2].prompt_tokens
        assert prompts_[turn][:known] == prompts_[turn - 2][:known]


def test_a_ratio_is_the_median_of_the_rounds():
    assert ratio_cells([2, 9, 4], [1, 3, 4]) == ("2.00", "1.00 to 3.00")


def test_both_sides_tell_what_they_counted(tmp_path):
    setup = Setup(tmp_path / "m.gguf", 1, 64, 1)
    details = {"cached_tokens": 7}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": details}
    assert Neuron(setup).counts({"choices": [], "usage": usage}) == Counts(9, 7, 3)
    assert Neuron(setup).counts({"choices": [{}]}) is None
    last = {"stop": True, "tokens_evaluated": 9, "tokens_predicted": 3, "timings": {"cache_n": 7}}
    theirs = LlamaServer(tmp_path, setup)
    assert theirs.counts(last) == Counts(9, 7, 3)
    assert theirs.counts({"stop": False, "content": "x"}) is None


def test_the_opening_of_a_stream_is_no_text(tmp_path):
    ours = Neuron(Setup(tmp_path / "m.gguf", 1, 64, 1))
    assert not ours.has_text({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    assert ours.has_text({"choices": [{"delta": {"content": "x"}}]})
    assert ours.has_text({"choices": [{"delta": {"reasoning_content": "x"}}]})
    assert not ours.has_text({"choices": []})
