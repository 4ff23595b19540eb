"""Constraints are compiled beside the engine, which goes on meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cortex_core.errors import NodeUnavailable
from cortex_core.wire.ipc import Cancel, Constraint, Grammar
from neuron.worker.grammar import Grammars
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
