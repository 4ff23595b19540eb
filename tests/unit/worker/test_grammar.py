"""Guides token by token: GBNF looks at the likeliest first and comes to the same as looking at them
all; a constraint on the content leaves reasoning alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from cortex_core.errors import InvalidRequest
from cortex_core.wire.ipc import Grammar
from neuron.worker import gbnf, llama
from neuron.worker.grammar import ContentGuide, Grammars
from neuron.worker.reasoning import Markers, PairState
from neuron.worker.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def model(other_gguf: str) -> Iterator[llama.Model]:
    llama.start()
    model = llama.Model(other_gguf, Vocabulary(other_gguf), gpu_layers=0)
    yield model
    model.free()


TEXT = r'root ::= [a-m ]{2,9} "-" [0-9]+ ("," [^a-z"]+)* "!"'


OPEN = r'root ::= ([^"\x00-\x1f]{3,9} "\"" [0-9] "-")+'


@pytest.mark.parametrize("text", [TEXT, OPEN])
@pytest.mark.parametrize("wanted", [1, 3, 12])
def test_the_likeliest_of_the_allowed_are_the_same(
    model: llama.Model, text: str, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gbnf, "_LOOKED_AT", 64)
    monkeypatch.setattr(gbnf, "_GROUP", 4)
    grammars = Grammars(model)
    constraint = Grammar("gbnf", text, "grammar")
    some, every = grammars.compile(constraint), grammars.compile(constraint)
    assert isinstance(some, gbnf.GbnfGuide)
    rng = np.random.default_rng(wanted)
    is_shorter = False
    was_open: set[bool] = set()
    for _ in range(12 if text == TEXT else 60):
        row = rng.normal(scale=4, size=model.vocabulary.size).astype(np.float32)
        few, all_ = row.copy(), row.copy()
        some.restrict(few, wanted)
        every.restrict(all_, 0)
        best = np.argsort(all_)[::-1][:wanted]
        best = best[all_[best] > -np.inf]
        assert (few[best] == row[best]).all()
        assert (few[all_ == -np.inf] == -np.inf).all()
        is_shorter |= (few > -np.inf).sum() < (all_ > -np.inf).sum()
        was_open.add(some._is_open)
        token = int(best[0])
        some.accept(token)
        every.accept(token)
    assert is_shorter
    assert was_open == {False, True} or text == TEXT
    some.free()
    every.free()


def test_where_all_are_equally_likely_none_that_may_come_is_spared(model: llama.Model) -> None:
    grammars = Grammars(model)
    guide = grammars.compile(Grammar("gbnf", "root ::= [^\\x00]*", "grammar"))
    every = np.zeros(model.vocabulary.size, np.float32)
    guide.restrict(every, 0)
    for _ in range(3):
        row = np.zeros(model.vocabulary.size, np.float32)
        guide.restrict(row, 5)
        assert (row == every).all()
        guide.accept(int(model.vocabulary.tokenize_bare("a")[0]))
    guide.free()


def test_where_few_are_allowed_all_are_looked_at(model: llama.Model) -> None:
    guide = Grammars(model).compile(Grammar("gbnf", 'root ::= "~"', "grammar"))
    tilde = int(model.vocabulary.tokenize_bare("~")[0])
    row = np.zeros(model.vocabulary.size, np.float32)
    row[tilde] = -50.0
    guide.restrict(row, 1)
    assert np.flatnonzero(row > -np.inf).tolist() == [tilde]
    guide.free()


@pytest.mark.parametrize("many", [0, 3, 10_000])
@pytest.mark.parametrize(
    "text",
    [
        'root ::= [é-ü世a-c]+ "!"',
        'root ::= " "? ("the" | "that " [a-z]+ | "is" | "世" | "é" "t")*',
        "root ::= [^\\x00]+",
        TEXT,
    ],
)
def test_first_bytes_spare_no_token_that_may_come(
    model: llama.Model, text: str, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against llama.cpp asked about every token."""
    monkeypatch.setattr(gbnf, "_LOOKED_AT", 4)
    monkeypatch.setattr(gbnf, "_MANY", many)
    guide = Grammars(model).compile(Grammar("gbnf", text, "grammar"))
    assert isinstance(guide, gbnf.GbnfGuide)
    size = model.vocabulary.size
    is_text = [guide._first_bytes.is_text(token) or token in guide._ends for token in range(size)]
    rng = np.random.default_rng(many)
    for _ in range(12):
        every = guide._allowed(np.flatnonzero(is_text).astype(np.int32)).tolist()
        row = np.zeros(size, np.float32)
        guide.restrict(row, 0)
        assert set(np.flatnonzero(row > -np.inf).tolist()) == set(every)
        going_on = [token for token in every if token not in guide._ends]
        if not going_on:
            break
        guide.accept(int(rng.choice(going_on)))
    guide.free()


@pytest.mark.parametrize("kind", ["gbnf", "regex"])
def test_a_token_that_may_not_come_is_refused_and_ends_no_process(
    model: llama.Model, kind: str
) -> None:
    text = 'root ::= "a"' if kind == "gbnf" else "a"
    guide = Grammars(model).compile(Grammar(kind, text, "it"))  # pyright: ignore
    wrong = int(model.vocabulary.tokenize_bare("z")[0])
    with pytest.raises(InvalidRequest) as refused:
        guide.accept(wrong)
    assert refused.value.param == "it"
    guide.free()


def test_a_step_that_takes_too_long_is_given_up(
    model: llama.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = Grammars(model).compile(Grammar("gbnf", 'root ::= "a"+', "grammar"))
    monkeypatch.setattr(gbnf, "_LONGEST_STEP_S", -1.0)
    with pytest.raises(InvalidRequest, match="grammar: the grammar is too ambiguous"):
        guide.restrict(np.zeros(model.vocabulary.size, np.float32), 1)
    guide.free()


MARKERS = Markers(1, 2, ("<think>", "</think>"))


@pytest.mark.parametrize(
    ("prompt", "may"),
    [
        ([5, 6], True),
        ([1, 5, 2, 9, 5], True),  # of an earlier turn
        ([9, 5, 1, 2], False),
        ([9, 5, 1], False),
        ([], True),
    ],
)
def test_reasoning_may_begin_where_its_turn_has_none_yet(prompt: list[int], may: bool) -> None:
    assert MARKERS.opening(prompt, {9}) == (1 if may else None)


class _OnlyToken:
    """Allows one token, over and over."""

    is_complete = True

    def __init__(self, token: int) -> None:
        self.token = token
        self.accepted: list[int] = []

    def restrict(self, logits: np.ndarray, wanted: int) -> None:
        value = logits[self.token]
        logits[:] = -np.inf
        logits[self.token] = value

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    def free(self) -> None: ...


def allowed(guide: ContentGuide) -> list[int]:
    row = np.zeros(10, np.float32)
    guide.restrict(row, 0)
    return np.flatnonzero(row > -np.inf).tolist()


def test_a_content_guide_follows_the_answer_through_its_block() -> None:
    state = PairState(MARKERS, is_inside=False)
    inner = _OnlyToken(7)
    guide = ContentGuide(inner, state, barred={9}, opening=1)

    def take(token: int) -> None:
        guide.accept(token)
        state.channel(token)

    assert allowed(guide) == [1, 7]
    take(1)
    assert not guide.is_complete
    assert allowed(guide) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    take(7)
    take(2)
    assert guide.is_complete
    assert allowed(guide) == [7]
    take(7)
    assert inner.accepted == [7]


def test_content_that_has_begun_is_not_interrupted() -> None:
    state = PairState(MARKERS, is_inside=False)
    guide = ContentGuide(_OnlyToken(7), state, barred={9}, opening=1)
    guide.accept(7)
    assert allowed(guide) == [7]
