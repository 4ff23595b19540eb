"""How long a model may think, and where its messages go: real llama.cpp, real engine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cortex_core.wire.ipc import CallForm, Calls, Constraint, Grammar, Sampling
from neuron.worker.stream import Stream
from tests.unit.worker.driven import Driven, Told, driven
from tests.unit.worker.worker_process import ENDLESS, GREEDY, TINY, chat
from tools.make_gguf import PRESETS, make_gguf

QUESTION = "What is the capital of France?"
WARM: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 1}
KINDS = {
    "greedy": ENDLESS,
    "drawn": Sampling(**WARM, ignore_eos=True),
    "mirostat": Sampling(**WARM, mirostat=1, ignore_eos=True),
    "dry": Sampling(**WARM, dry_multiplier=5.0, ignore_eos=True),
    "penalised": Sampling(temperature=0.0, presence_penalty=1.0, ignore_eos=True),
}

ASKED = "<|start|>user<|message|>hi<|end|><|start|>assistant"
THOUGHT = "<|channel|>analysis<|message|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
CLOSED = f"<|end|>{FINAL}"

Tokens = dict[int, list[int]]


@pytest.fixture(scope="module")
def tiny() -> Iterator[Driven]:
    with driven(TINY, parallel=8) as engine:
        yield engine


@pytest.fixture(scope="module")
def channels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driven]:
    """Random weights, and a vocabulary that frames messages."""
    path = tmp_path_factory.mktemp("gguf") / "channels.gguf"
    make_gguf(path, PRESETS["tiny-channels"], file_type="Q8_0", seed=3)
    with driven(str(path), parallel=8) as engine:
        yield engine


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Tokens:
    """request → every token of its answer."""
    seen: Tokens = {}
    take = Stream.take

    def noting(self: Stream, token: int, deltas: Any) -> Any:
        seen.setdefault(self.request, []).append(token)
        return take(self, token, deltas)

    monkeypatch.setattr(Stream, "take", noting)
    return seen


def ids(engine: Driven, text: str) -> list[int]:
    return engine.vocabulary.tokenize_bare(text).tolist()


def markers(told: Told) -> list[str]:
    return [delta.text for delta in told.deltas if delta.channel == "marker"]


# how long


@pytest.mark.parametrize("limit", [1, 3])
def test_a_thought_cut_short_is_the_beginning_of_the_whole_one(tiny: Driven, limit: int) -> None:
    free = tiny.answer(chat(QUESTION, thinking=True))
    held = tiny.answer(chat(QUESTION, thinking=True), max_thinking_tokens=limit)
    assert free.usage.reasoning > limit == held.usage.reasoning
    assert free.thought.startswith(held.thought)
    assert markers(held) == ["<think>", "</think>"]
    assert (held.text != "", held.reason) == (True, "stop")


def test_a_thought_that_is_short_enough_is_left_alone(tiny: Driven, taken: Tokens) -> None:
    free = tiny.answer(chat(QUESTION, thinking=True))
    held = tiny.answer(chat(QUESTION, thinking=True), max_thinking_tokens=free.usage.reasoning)
    assert (held.thought, held.text, held.usage.reasoning) == (
        free.thought,
        free.text,
        free.usage.reasoning,
    )
    first, second = taken.values()
    assert first == second


@pytest.mark.parametrize("prompt", [chat(QUESTION, thinking=True), "hi<think>\n"])
def test_who_may_not_think_at_all_has_the_block_closed_at_once(tiny: Driven, prompt: str) -> None:
    told = tiny.answer(prompt, max_thinking_tokens=0, max_tokens=40)
    assert (told.thought, told.usage.reasoning) == ("", 0)
    assert markers(told)[-1] == "</think>"


def test_no_thought_is_nothing_to_cut_short(tiny: Driven) -> None:
    free = tiny.answer(chat(QUESTION))
    held = tiny.answer(chat(QUESTION), max_thinking_tokens=0)
    assert (held.text, held.usage.completion) == (free.text, free.usage.completion)


def test_a_raw_answer_has_no_thoughts_to_cut_short(tiny: Driven) -> None:
    prompt = chat(QUESTION, thinking=True)
    free = tiny.answer(prompt, is_raw=True)
    assert tiny.answer(prompt, is_raw=True, max_thinking_tokens=0).text == free.text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [0, 1, 7])
def test_the_last_message_begins_however_tokens_are_chosen(
    channels: Driven, kind: str, limit: int
) -> None:
    told = channels.answer(
        ASKED + THOUGHT, KINDS[kind], max_thinking_tokens=limit, max_tokens=limit + 30
    )
    assert (told.usage.reasoning, told.reason) == (limit, "length")
    assert markers(told) == ["<|end|>", FINAL]
    assert (told.thought != "", told.text != "") == (limit > 0, True)
    closing = len(ids(channels, CLOSED))
    assert told.usage.completion == limit + 30 > limit + closing


@pytest.mark.parametrize("sampling", [ENDLESS, Sampling(temperature=0.0, logit_bias={0: -1.0})])
def test_what_follows_is_what_would_follow_a_prompt_of_the_same_tokens(
    channels: Driven, taken: Tokens, sampling: Sampling
) -> None:
    prompt = ids(channels, ASKED + THOUGHT)
    channels.answer(prompt, sampling, max_thinking_tokens=4, max_tokens=40)
    (came,) = taken.values()
    taken.clear()
    size = 4 + len(ids(channels, CLOSED))
    assert came[4:size] == ids(channels, CLOSED)
    for at in (2, 4, size):
        channels.answer(
            prompt + came[:at], sampling, max_tokens=40 - at, max_thinking_tokens=max(4 - at, 0)
        )
        assert taken.popitem()[1] == came[at:]


def test_those_beside_one_that_is_cut_short_answer_as_alone(channels: Driven) -> None:
    prompts = [f"{ASKED}{THOUGHT}{n}" for n in range(3)]
    alone = [channels.answer(prompt, ENDLESS, max_tokens=30).thought for prompt in prompts]
    beside = [channels.submit(prompt, ENDLESS, max_tokens=30) for prompt in prompts]
    channels.answer(ASKED + THOUGHT, ENDLESS, max_thinking_tokens=5, max_tokens=30)
    assert [told.thought for told in beside] == alone


def test_an_answer_cut_short_goes_on_where_it_was_suspended() -> None:
    """Fewer cells than the sequences want: the youngest waits in host memory."""
    asked: dict[str, Any] = {"sampling": ENDLESS, "max_thinking_tokens": 40, "max_tokens": 100}
    prompts = [f"prompt {n} " * 8 + "<think>" for n in range(4)]
    with driven(TINY, kv="unified", cells=320, context=320, host_cache_mb=64) as narrow:
        told = [narrow.submit(prompt, **asked) for prompt in prompts]
        parked = 0
        while not all(one.is_over for one in told):
            narrow.engine._turn()
            parked += any(s.resumes for s in narrow.engine._scheduler.waiting)
    assert parked
    counts = [one.usage.reasoning for one in told]
    assert (max(counts), counts.count(40) > 1) == (40, True)
    assert [markers(one) for one in told] == [["</think>"]] * 4
    assert [(one.usage.completion, one.text != "") for one in told] == [(100, True)] * 4


def test_scores_are_told_of_the_content_after_a_thought_cut_short(tiny: Driven) -> None:
    told = tiny.answer(chat(QUESTION, thinking=True), max_thinking_tokens=2, top_logprobs=1)
    scores = [score for delta in told.deltas for score in delta.scores]
    assert b"".join(score.piece for score in scores).decode() == told.text


# constraints


@pytest.mark.parametrize("limit", [None, 0, 2])
def test_a_constraint_begins_after_a_thought_cut_short(tiny: Driven, limit: int | None) -> None:
    told = tiny.constrained(
        "regex", "It is (Rome|Paris)!", chat(QUESTION, thinking=True), max_thinking_tokens=limit
    )
    assert (told.text, told.reason) == ("It is Paris!", "stop")
    assert limit is None or told.usage.reasoning == limit


@pytest.mark.parametrize(
    ("kind", "text"), [("regex", "[ab]{4}"), ("gbnf", "root ::= [ab] [ab] [ab] [ab]")]
)
@pytest.mark.parametrize("sampling", KINDS)
def test_a_constrained_answer_thinks_once_at_most_and_then_says_it(
    channels: Driven, kind: Any, text: str, sampling: str
) -> None:
    held: Constraint = Grammar(kind, text, "it")
    thinks = ids(channels, THOUGHT)[1]
    wish = dict.fromkeys([thinks, *ids(channels, "<|channel|><|start|><|return|>")], 50.0)
    biased = replace(KINDS[sampling], logit_bias=wish)
    told = channels.answer(ASKED, biased, constraint=held, max_thinking_tokens=6, max_tokens=60)
    assert (told.fault, told.reason) == (None, "stop")
    assert markers(told) == [THOUGHT, "<|end|>", FINAL]
    assert told.usage.reasoning == 6
    assert len(told.text) == 4
    assert set(told.text) <= set("ab")


def test_a_constrained_answer_may_be_said_without_a_thought(channels: Driven) -> None:
    wish = Sampling(temperature=0.0, logit_bias={ids(channels, "final")[0]: 50.0})
    told = channels.constrained("regex", "[ab]{4}", ASKED, wish)
    assert markers(told) == ["<|channel|>final<|message|>"]
    assert (len(told.text), told.thought, told.reason) == (4, "", "stop")


def test_a_constraint_holds_in_a_message_that_the_prompt_began(channels: Driven) -> None:
    told = channels.constrained("regex", "[ab]{4}", ASKED + "<|channel|>final<|message|>")
    assert (len(told.text), markers(told), told.reason) == (4, [], "stop")


# calls


def addressed(*names: str, **more: Any) -> Calls:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    forms = tuple(
        CallForm(
            f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>",
            json.dumps(schema | {"$comment": name}),
            "",
            f"tools[{index}]",
        )
        for index, name in enumerate(names)
    )
    return Calls(forms, "", "", "", is_addressed=True, **more)


HEADER = re.compile(
    r"(<\|start\|>assistant)?<\|channel\|>commentary to=functions\.(add|sub)"
    r" <\|constrain\|>json<\|message\|>"
)


@pytest.mark.parametrize("limit", [None, 0, 4])
@pytest.mark.parametrize("sampling", KINDS)
def test_a_required_call_is_a_message_that_its_schema_fits(
    channels: Driven, sampling: str, limit: int | None
) -> None:
    told = channels.answer(
        ASKED,
        KINDS[sampling],
        constraint=addressed("add", "sub", is_required=True),
        max_thinking_tokens=limit,
        max_tokens=200 if limit is None else 120,
    )
    assert told.fault is None
    if told.reason == "stop":
        assert HEADER.fullmatch(markers(told)[-1])
        assert json.loads(told.text)["a"] in (1, 2)
    else:
        assert (limit, told.text) == (None, "")


@pytest.mark.parametrize("first", ["commentary", "final"])
@pytest.mark.parametrize("content", [None, Grammar("regex", "[ab]{4}", "regex")])
def test_an_answer_is_an_addressed_call_or_the_content_it_is_to_be(
    channels: Driven, first: str, content: Grammar | None
) -> None:
    wish = Sampling(temperature=0.0, logit_bias={ids(channels, first)[0]: 20.0}, ignore_eos=True)
    constraint = addressed("add", content=content)
    told = channels.answer(ASKED, wish, constraint=constraint, max_tokens=80)
    (header,) = markers(told)
    assert told.fault is None
    assert ("functions.add" in header) == (first == "commentary")
    if first == "commentary":
        assert json.loads(told.text)["a"] in (1, 2)
    elif content is not None:
        assert re.fullmatch("[ab]{4}", told.text)
    else:
        assert (told.reason, len(told.text) > 20) == ("length", True)


@pytest.mark.parametrize(
    ("engine", "prompt", "cause"),
    [
        ("tiny", ASKED, "no tokens"),
        ("channels", ASKED + "<|channel|>final<|message|>", "leads to text"),
    ],
)
def test_a_call_that_cannot_be_addressed_is_refused_and_says_why(
    request: pytest.FixtureRequest, engine: str, prompt: str, cause: str
) -> None:
    driven: Driven = request.getfixturevalue(engine)
    fault = driven.answer(prompt, constraint=addressed("add", is_required=True)).fault
    assert fault is not None
    assert (fault.code, fault.param) == ("invalid_request", "tools")
    assert cause in fault.message


def test_the_tool_whose_schema_is_wrong_is_named(channels: Driven) -> None:
    (good,) = addressed("add").forms
    wrong = CallForm(good.before.replace("add", "sub"), '{"type": "objekt"}', "", "tools[1]")
    calls = Calls((good, wrong), "", "", "", is_required=True, is_addressed=True)
    fault = channels.answer(ASKED, constraint=calls).fault
    assert fault is not None
    assert fault.param == "tools[1]"


# markers that are none


def test_a_marker_written_in_letters_is_content(tiny: Driven, channels: Driven) -> None:
    code = "```\n<think>hm</think>\n```"
    told = tiny.constrained("regex", code, chat(QUESTION))
    assert (told.text, told.thought, told.usage.reasoning) == (code, "", 0)
    code = f"```\n{THOUGHT}hm<|end|>\n```"
    regex = code.replace("|", r"\|")
    told = channels.constrained("regex", regex, ASKED + "<|channel|>final<|message|>")
    assert (told.text, told.usage.reasoning, told.usage.completion > 20) == (code, 0, True)


def test_a_model_without_markers_answers_as_one_whose_markers_are_words(
    other_gguf: str, tmp_path: Path
) -> None:
    plain = tmp_path / "plain.gguf"
    data = Path(other_gguf).read_bytes()
    plain.write_bytes(data.replace(b"[THINK]", b"[TH1NK]").replace(b"[/THINK]", b"[/TH1NK]"))
    with driven(str(plain)) as without, driven(other_gguf) as marked:
        assert without.loaded.info.reasoning is None
        free = marked.answer("hi", ENDLESS, max_tokens=40, is_raw=True)
        told = without.answer("hi", ENDLESS, max_tokens=40, max_thinking_tokens=0)
        assert told.text == free.text != ""
        assert told.usage.reasoning == 0
        assert without.constrained("regex", "abc", "hi", max_thinking_tokens=0).text == "abc"


# what a vocabulary says


def test_channels_are_what_a_vocabulary_with_their_frames_has(channels: Driven) -> None:
    assert channels.loaded.info.reasoning == (THOUGHT, "<|end|>")
    ends = {channels.vocabulary.text_of(token) for token in channels.vocabulary.end_ids}
    assert {"<|return|>", "<|call|>"} <= ends
    assert "<|end|>" not in ends


@pytest.mark.parametrize("end", ["<|return|>", "<|call|>"])
def test_a_message_that_is_the_last_ends_the_answer(channels: Driven, end: str) -> None:
    wish = Sampling(temperature=0.0, logit_bias={ids(channels, end)[0]: 100.0}, min_tokens=3)
    told = channels.answer(ASKED + "<|channel|>final<|message|>", wish)
    assert (told.reason, markers(told), told.usage.completion) == ("stop", [], 4)


def test_an_answer_that_begins_without_a_header_is_content(channels: Driven) -> None:
    told = channels.answer(ASKED, GREEDY, max_tokens=10)
    assert (told.text != "", told.thought) == (True, "")
