"""llama.cpp refuses a batch, and the engine goes on with its context."""

from __future__ import annotations

import pytest

from cortex_core.wire.ipc import EngineParams
from neuron.worker.load import LoadedModel
from tests.unit.worker.driven import driven
from tests.unit.worker.loading import free_here, load_here
from tests.unit.worker.worker_process import ENDLESS, TINY


def test_a_refused_batch_writes_nothing_not_even_where_there_is_room() -> None:
    """A bridge's throw-away row is only ever trimmed after a decode that was done."""
    loaded = load_here(TINY, EngineParams(parallel=3, context=256, kv="partitioned"))
    assert isinstance(loaded, LoadedModel)
    context = loaded.context

    def decode(*rows: tuple[int, int]) -> int:
        for row, (sequence, position) in enumerate(rows):
            context.sequences[row], context.positions[row] = sequence, position
            context.tokens[row], context.outputs[row] = 300, row == len(rows) - 1
        return context.decode(len(rows))

    assert {decode((0, place)) for place in range(context.cells)} == {0}
    assert decode((1, 0)) == 0
    before = [context.save(sequence).tolist() for sequence in range(3)]
    assert decode((0, context.cells), (1, 1), (2, 0)) == 1
    assert [context.save(sequence).tolist() for sequence in range(3)] == before
    free_here(loaded)


@pytest.mark.parametrize("code", [1, -1])
def test_who_was_in_a_refused_batch_hears_it_and_who_comes_next_is_answered(code: int) -> None:
    with driven(TINY, parallel=2) as engine:
        expected = engine.answer([300, 301, 302], ENDLESS, max_tokens=8).text
        two = [engine.submit([300 + n, 301], ENDLESS, max_tokens=50) for n in range(2)]
        while not all(told.deltas for told in two):
            engine.engine._turn()
        context = engine.engine._context
        decode, codes = context.decode, [code]
        context.decode = lambda rows: codes.pop() if codes else decode(rows)
        engine.run()
        assert [told.fault.code for told in two if told.fault] == ["no_capacity"] * 2
        assert engine.answer([300, 301, 302], ENDLESS, max_tokens=8).text == expected
