"""Constraints are compiled and long prompts cut up beside the engine, which goes on meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cortex_core.errors import NodeUnavailable
from cortex_core.wire.ipc import Cancel, Constraint, Grammar
from neuron.worker.gbnf import GbnfGuide
from neuron.worker.grammar import Grammars
from neuron.worker.vocabulary import Vocabulary
from tests.unit.worker.driven import Driven, driven
from tests.unit.worker.worker_process import TINY, chat


@pytest.fixture(scope="module")
def tiny() -> Iterator[Driven]:
    with driven(TINY, parallel=8) as engine:
        yield engine


def _held_up(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compiling waits for the event."""
    go, compile_ = threading.Event(), Grammars.compile

    def wait(self: Grammars, constraint: Constraint) -> Any:
        go.wait(20)
        return compile_(self, constraint)

    monkeypatch.setattr(Grammars, "compile", wait)
    return go


def test_others_are_served_while_a_constraint_is_compiled(
    tiny: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = _held_up(monkeypatch)
    told = tiny.submit("hi", constraint=Grammar("regex", "abc", "it"), is_raw=True)
    other = tiny.submit(chat("What is the capital of France?"))
    while not other.is_over:
        tiny.engine._turn()
    assert not told.is_over
    assert not tiny.engine.is_idle
    assert tiny.engine.state().waiting == 1
    go.set()
    tiny.run()
    assert told.text == "abc"


def test_who_leaves_while_a_constraint_is_compiled_is_gone_at_once(
    tiny: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = _held_up(monkeypatch)
    told = tiny.submit("hi", constraint=Grammar("regex", "abc", "it"))
    tiny.engine.submit(Cancel(len(tiny.told)))
    tiny.engine._turn()
    assert told.reason == "cancelled"
    assert tiny.engine.is_idle
    go.set()
    assert tiny.answer("hi", constraint=Grammar("regex", "abc", "it"), is_raw=True).text == "abc"
    assert told.text == ""


def test_an_engine_that_stops_fails_what_is_being_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go = _held_up(monkeypatch)
    with driven(TINY) as engine:
        told = engine.submit("hi", constraint=Grammar("regex", "abc", "it"))
        engine.engine.stop(NodeUnavailable("gone").fault)
        engine.engine.run()
        assert told.fault == NodeUnavailable("gone").fault
        go.set()


def test_a_bug_in_compiling_is_a_fault_of_that_request(
    tiny: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Grammars, constraint: Constraint) -> Any:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(Grammars, "compile", broken)
    fault = tiny.constrained("regex", "abc").fault
    assert fault is not None
    assert (fault.code, "boom" in fault.message) == ("internal_error", True)


def test_who_waits_too_long_for_a_constraint_to_be_compiled_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go = _held_up(monkeypatch)
    with driven(TINY, max_wait_s=0.2) as engine:
        compiled = engine.submit("hi", constraint=Grammar("regex", "abc", "it"))
        behind = engine.submit("hi", constraint=Grammar("regex", "abc", "it"))
        while not (compiled.is_over and behind.is_over):
            engine.engine._turn()
        for told in (compiled, behind):
            assert told.fault is not None
            assert told.fault.code == "no_capacity"
            assert "within 0.2 s (engine.max_wait_s)" in told.fault.message
        go.set()
        assert engine.engine.is_idle


def test_a_constraint_whose_client_has_left_is_not_compiled(
    tiny: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, compiled = threading.Event(), list[str]()
    compile_ = Grammars.compile

    def wait(self: Grammars, constraint: Constraint) -> Any:
        assert isinstance(constraint, Grammar)
        compiled.append(constraint.text)
        go.wait(20)
        return compile_(self, constraint)

    monkeypatch.setattr(Grammars, "compile", wait)
    tiny.submit("hi", constraint=Grammar("regex", "a", "it"), is_raw=True)
    tiny.submit("hi", constraint=Grammar("regex", "b", "it"), is_raw=True)
    tiny.engine.submit(Cancel(len(tiny.told)))
    tiny.engine._turn()
    go.set()
    tiny.answer("hi", constraint=Grammar("regex", "c", "it"), is_raw=True)
    assert compiled == ["a", "c"]


def test_compiling_that_hangs_is_seen_as_a_step_that_does(
    tiny: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go, compile_ = threading.Event(), threading.Event(), Grammars.compile

    def wait(self: Grammars, constraint: Constraint) -> Any:
        begun.set()
        go.wait(20)
        return compile_(self, constraint)

    monkeypatch.setattr(Grammars, "compile", wait)
    tiny.submit("hi", constraint=Grammar("regex", "abc", "it"))
    assert begun.wait(20)
    first = tiny.engine.state().step_s
    assert 0 < first < tiny.engine.state().step_s
    go.set()
    tiny.run()
    assert tiny.engine.state().step_s == 0


def test_a_constraint_that_is_ready_only_after_the_engine_has_stopped_is_freed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go, freed, free = _held_up(monkeypatch), list[bool](), GbnfGuide.free

    def note(self: GbnfGuide) -> None:
        freed.append(True)
        free(self)

    monkeypatch.setattr(GbnfGuide, "free", note)
    with driven(TINY) as engine:
        engine.submit("hi", constraint=Grammar("gbnf", 'root ::= "a"', "it"), is_raw=True)
        engine.engine.stop(NodeUnavailable("gone").fault)
        engine.engine.run()
        go.set()
    assert freed == [True]


def test_others_are_served_while_a_long_prompt_is_cut_up(
    tiny: Driven, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, tokenize = threading.Event(), Vocabulary.tokenize

    def wait(self: Vocabulary, text: str) -> Any:
        if len(text) > 50_000:
            go.wait(20)
        return tokenize(self, text)

    monkeypatch.setattr(Vocabulary, "tokenize", wait)
    long = tiny.submit("hello " * 10_000)
    others = [
        tiny.submit("hi", constraint=Grammar("regex", "abc", "it"), is_raw=True),
        tiny.submit(chat("What is the capital of France?")),
    ]
    while not all(told.is_over for told in others):
        tiny.engine._turn()
    assert not long.is_over
    assert others[0].text == "abc"
    go.set()
    tiny.run()
    assert long.fault is not None
    assert long.fault.code == "context_length_exceeded"
