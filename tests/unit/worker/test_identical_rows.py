"""Which computations of the same tokens give the same bits, and which only nearly: what exactness
stands on (docs/architecture.md)."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from neuron.worker import llama
from tests.unit.worker.driven import driven
from tests.unit.worker.worker_process import TINY

Rows = dict[int, npt.NDArray[np.float32]]
"""Position → its logits, where they were asked for."""

TOKENS = [random.Random(3).randrange(10, 1200) for _ in range(192)]
ENDS = range(63, 192, 64)


@pytest.fixture(scope="module")
def context() -> Iterator[llama.Context]:
    with driven(TINY, parallel=2, context=512, kv="partitioned") as engine:
        yield engine.engine._context


def computed(context: llama.Context, size: int) -> Rows:
    """In chunks of so many tokens, from nothing; the rows at `ENDS`."""
    rows: Rows = {}
    for start in range(0, len(TOKENS), size):
        chunk = TOKENS[start : start + size]
        count, last = len(chunk), start + len(chunk) - 1
        context.tokens[:count] = chunk
        context.positions[:count] = range(start, start + count)
        context.sequences[:count] = 0
        context.outputs[:count] = 0
        context.outputs[count - 1] = 1
        assert context.decode(count) == 0
        if last in ENDS:
            rows[last] = context.logits(1).reshape(-1).copy()
    context.trim(0, 0)
    return rows


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32])
def test_a_prompt_has_the_same_bits_in_any_chunks(context: llama.Context, size: int) -> None:
    whole, cut = computed(context, 64), computed(context, size)
    assert all(np.array_equal(whole[end], cut[end]) for end in ENDS)


def test_tokens_computed_one_by_one_are_nearly_those_of_a_chunk(context: llama.Context) -> None:
    """llama.cpp multiplies one query with the keys in another order than several."""
    whole, single = computed(context, 64), computed(context, 1)
    assert all(np.abs(whole[end] - single[end]).max() < 0.5 for end in ENDS)
    assert all(np.array_equal(single[end], row) for end, row in computed(context, 1).items())
