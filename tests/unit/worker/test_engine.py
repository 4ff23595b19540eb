"""The loop of one model, turn by turn on this thread, with the real model and real llama.cpp.

Only here can a step be made to fail: llama_decode's code is replaced for one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cortex_core.errors import NodeUnavailable
from cortex_core.wire.ipc import (
    Cancel,
    EngineParams,
    Generate,
    Pause,
    Resume,
    Sampling,
    Step,
)
from neuron.worker import engine as engine_module
from neuron.worker.engine import Engine
from neuron.worker.load import LoadedModel
from tests.unit.worker.loading import load_here
from tests.unit.worker.worker_process import ENDLESS, GREEDY, TINY, chat


class ProcessEndedError(BaseException):
    pass


class Bench:
    """An engine and what it emitted."""

    def __init__(self, **params: Any) -> None:
        settings: dict[str, Any] = {"parallel": 4, "context": 512} | params
        loaded = load_here(TINY, EngineParams(**settings))
        assert isinstance(loaded, LoadedModel)
        loaded.widest_bridge = 2  # tiny models have none by themselves
        self.steps: list[Step] = []
        self.engine = Engine("tiny", loaded, emit=self.steps.append, die=self.die)
        self.last_words = ""

    def die(self, message: str) -> None:
        self.last_words = message
        raise ProcessEndedError

    def submit(self, request: int, prompt: str = "on", sampling: Sampling = ENDLESS) -> None:
        self.engine.submit(Generate(request, "tiny", prompt, sampling))

    def turn(self, times: int = 1) -> list[Step]:
        """What the next turns emit."""
        before = len(self.steps)
        for _ in range(times):
            self.engine._turn()
        return self.steps[before:]

    def fail_decode(self, code: int | Exception, times: int = 1) -> None:
        context = self.engine._context
        real = context.decode
        left = times

        def decode(rows: int) -> int:
            nonlocal left
            left -= 1
            if left < 0:
                return real(rows)
            if isinstance(code, Exception):
                raise code
            return code

        context.decode = decode

    def faults(self, steps: list[Step]) -> dict[int, str]:
        return {failed.request: failed.fault.code for step in steps for failed in step.failed}

    def answer(self, prompt: str) -> str:
        """A whole answer, whatever else runs."""
        before = len(self.steps)
        self.submit(99, prompt, GREEDY)
        while not any(done.request == 99 for s in self.steps[before:] for done in s.finished):
            self.turn()
        deltas = [delta for step in self.steps[before:] for delta in step.deltas]
        return "".join(delta.text for delta in deltas if delta.request == 99)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.engine.close()


def test_every_turn_with_text_emits_one_step_for_all(bench: Bench) -> None:
    for request in range(1, 5):
        bench.submit(request)
    bench.turn(6)
    steps = bench.turn(10)
    assert len(steps) <= 10
    assert all(len(step.deltas) == len({d.request for d in step.deltas}) for step in steps)


def test_a_request_is_started_before_its_prompt_is_computed(bench: Bench) -> None:
    bench.submit(1)
    first, second = bench.turn()
    assert [s.request for s in first.started] == [1]
    assert not first.deltas
    assert [d.request for d in second.deltas] == [1]


def test_what_is_counted_as_generated_is_what_was_answered(bench: Bench) -> None:
    for request in (1, 2):
        bench.engine.submit(Generate(request, "tiny", "on", ENDLESS, max_tokens=5))
    steps = bench.turn(20)
    usages = [finished.usage for step in steps for finished in step.finished]
    assert [usage.completion for usage in usages] == [5, 5]
    assert bench.engine.state().generated == 10


def test_a_cancel_frees_the_sequence_in_the_next_turn(bench: Bench) -> None:
    for request in range(1, 6):  # one more than there are slots
        bench.submit(request)
    bench.turn(8)
    assert bench.engine.state().waiting == 1
    bench.engine.submit(Cancel(2))
    steps = bench.turn()
    assert [(f.request, f.reason) for s in steps for f in s.finished] == [(2, "cancelled")]
    assert [s.request for step in steps for s in step.started] == [5]


def test_a_paused_request_says_nothing_until_it_is_resumed(bench: Bench) -> None:
    for request in (1, 2):
        bench.submit(request)
    bench.turn(6)
    bench.engine.submit(Pause(1))
    assert {delta.request for step in bench.turn(10) for delta in step.deltas} == {2}
    state = bench.engine.state()
    assert (state.running, state.paused, state.waiting) == (2, 1, 0)
    bench.engine.submit(Resume(1))
    assert {delta.request for step in bench.turn(10) for delta in step.deltas} == {1, 2}
    assert bench.engine.state().paused == 0


@pytest.mark.parametrize("others", [0, 4], ids=["in its slot", "without a slot"])
def test_a_paused_request_can_be_cancelled(bench: Bench, others: int) -> None:
    bench.submit(1)
    bench.turn(6)
    bench.engine.submit(Pause(1))
    for request in range(2, 2 + others):
        bench.submit(request)
    bench.turn(8)
    assert len(bench.engine._kv._busy) == (others or 1)
    bench.engine.submit(Cancel(1))
    steps = bench.turn()
    assert [(f.request, f.reason) for s in steps for f in s.finished] == [(1, "cancelled")]
    assert (bench.engine.state().running, bench.engine.state().paused) == (others, 0)
    assert len(bench.engine._kv._busy) == others


def test_no_request_waits_for_a_slot_of_one_that_is_paused(bench: Bench) -> None:
    for request in range(1, 5):
        bench.submit(request)
    bench.turn(12)
    for request in (3, 1):
        bench.engine.submit(Pause(request))
    bench.turn()
    alone = bench.answer(chat("What is 3 + 4?"))
    for request in (1, 3):
        bench.engine.submit(Resume(request))
    said = {delta.request for step in bench.turn(12) for delta in step.deltas}
    assert said == {1, 2, 3, 4}
    for request in range(1, 5):
        bench.engine.submit(Cancel(request))
    bench.turn()
    assert bench.answer(chat("What is 3 + 4?")) == alone


def test_words_about_a_request_that_has_ended_are_no_trouble(bench: Bench) -> None:
    answer = bench.answer(chat("What is 3 + 4?"))
    for command in (Pause(99), Resume(99), Resume(1), Pause(2)):
        bench.engine.submit(command)
    assert bench.answer(chat("What is 3 + 4?")) == answer


def test_slots_given_back_out_of_order_leave_no_trace_in_the_answers(bench: Bench) -> None:
    """Rows of the running sequences bridge the gap of an idle one; its cache stays true."""
    questions = [f"What is {n} + {n + 1}?" for n in range(4)]
    alone = [bench.answer(chat(question)) for question in questions]
    for request in range(1, 4):
        bench.submit(request)
    bench.turn(6)
    bench.engine.submit(Cancel(2))
    bench.turn(20)
    assert bench.engine._rows is not None
    assert bench.engine._rows._bridges == [1]
    assert [bench.answer(chat(question)) for question in questions] == alone


@pytest.mark.parametrize("code", [1, -1])
def test_a_refused_batch_fails_its_requests_and_nobody_else(bench: Bench, code: int) -> None:
    bench.submit(1)
    bench.turn(3)
    context = bench.engine._context
    bench.submit(2)
    bench.turn()  # the running row is due first, then the prompt of 2
    bench.fail_decode(code)
    assert bench.faults(bench.turn()) == {2: "no_capacity"}
    assert bench.engine._context is context
    assert any(delta.request == 1 for step in bench.turn(2) for delta in step.deltas)


@pytest.mark.parametrize("code", [2, -2, -3, RuntimeError("boom")])
def test_a_failed_step_fails_all_requests_with_the_cause(
    bench: Bench, code: int | Exception
) -> None:
    bench.submit(1)
    bench.turn(6)
    bench.engine.submit(Pause(1))
    for request in range(2, 7):
        bench.submit(request)
    bench.turn(6)
    bench.fail_decode(code)
    steps = bench.turn()
    assert bench.faults(steps) == dict.fromkeys(range(1, 7), "upstream_failed")
    message = steps[-1].failed[0].fault.message
    assert ("boom" if isinstance(code, Exception) else f"failed with {code}") in message


def test_after_a_failed_step_the_model_answers_on_a_new_context(bench: Bench) -> None:
    before = bench.answer(chat("What is the capital of France?"))
    context = bench.engine._context
    bench.submit(1)
    bench.turn(2)
    bench.fail_decode(-3)
    bench.turn()
    assert bench.engine._context is not context
    assert bench.answer(chat("What is the capital of France?")) == before


def test_a_second_failure_in_a_row_ends_the_process(bench: Bench) -> None:
    bench.submit(1)
    bench.fail_decode(-3)
    bench.turn()
    bench.submit(2)
    bench.fail_decode(-3)
    with pytest.raises(ProcessEndedError):
        bench.turn()
    assert "failed with -3" in bench.last_words
    assert bench.faults(bench.steps)[2] == "upstream_failed"


def test_a_request_that_cannot_be_taken_fails_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.submit(1)
    bench.turn(2)
    real: Callable[[str], object] = bench.engine._vocabulary.tokenize

    def tokenize(text: str) -> object:
        if text == "poison":
            raise RuntimeError("boom")
        return real(text)

    monkeypatch.setattr(bench.engine._vocabulary, "tokenize", tokenize)
    bench.submit(2, "poison")
    assert bench.faults(bench.turn()) == {2: "internal_error"}
    assert bench.turn()[0].deltas[0].request == 1


def test_stopping_fails_what_is_left_with_the_given_fault(bench: Bench) -> None:
    fault = NodeUnavailable("gone").fault
    for request in (1, 3):
        bench.submit(request)
    bench.turn(4)
    bench.engine.submit(Pause(3))
    bench.turn()
    bench.submit(2)
    bench.engine.stop(fault)
    bench.engine.run()
    assert bench.faults(bench.steps) == dict.fromkeys((1, 2, 3), "node_unavailable")
    assert bench.engine.is_idle


def test_max_tokens_below_one_is_refused(bench: Bench) -> None:
    bench.engine.submit(Generate(1, "tiny", "on", GREEDY, max_tokens=0))
    assert bench.faults(bench.turn()) == {1: "invalid_request"}


def test_rows_sampled_on_threads_get_the_tokens_they_get_in_turn(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[list[str]] = []
    for threaded_from in (0, 2**40):
        monkeypatch.setattr(engine_module, "_THREADED_FROM", threaded_from)
        before = len(bench.steps)
        for request in range(1, 5):
            sampling = Sampling(temperature=1.0, seed=request, ignore_eos=True)
            bench.submit(request, chat(f"Hello {request}"), sampling)
        bench.turn(30)
        deltas = [delta for step in bench.steps[before:] for delta in step.deltas]
        texts.append(["".join(d.text for d in deltas if d.request == n) for n in range(1, 5)])
        for request in range(1, 5):
            bench.engine.submit(Cancel(request))
        bench.turn(2)
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 4
