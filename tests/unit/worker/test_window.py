"""A sliding window's cells in llama.cpp's own memory: what is behind it may be written over."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from cortex_core.wire.ipc import EngineParams
from neuron.worker.llama import Context
from neuron.worker.load import LoadedModel
from tests.unit.worker.loading import free_here, load_here
from tools.make_gguf import PRESETS, make_gguf

WINDOW = 64
KEPT = 200
TOKENS = np.random.default_rng(1).integers(10, 400, 1000)


@pytest.fixture
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    path = str(tmp_path_factory.mktemp("gguf") / "sliding.gguf")
    make_gguf(path, PRESETS["tiny-sliding"], file_type="F32", seed=1, name="sliding")
    loaded = load_here(path, EngineParams(parallel=4, context=512, kv="unified", cells=600))
    assert isinstance(loaded, LoadedModel)
    assert loaded.model.window == WINDOW
    yield loaded.context
    free_here(loaded)


def compute(context: Context, sequence: int, start: int, tokens: np.ndarray) -> np.ndarray:
    """The logits behind the last of `tokens`."""
    size = len(tokens)
    context.tokens[:size] = tokens
    context.positions[:size] = np.arange(start, start + size)
    context.sequences[:size] = sequence
    context.outputs[:size] = 0
    context.outputs[size - 1] = 1
    assert context.decode(size) == 0
    return context.logits(1)[0].copy()


def write_over_what_is_behind_the_window(context: Context) -> None:
    """Of sequence 1, which has TOKENS[:KEPT]."""
    compute(context, 0, 0, TOKENS[:100])
    compute(context, 1, 0, TOKENS[:KEPT])
    context.trim(0, 0)  # from its cells on the next ones are looked for, and taken
    compute(context, 2, 0, TOKENS[-300:])


@pytest.mark.parametrize(("cut", "is_there"), [(0, True), (1, False)])
def test_a_sequence_goes_on_where_it_ended_and_no_sooner(
    context: Context, cut: int, is_there: bool
) -> None:
    write_over_what_is_behind_the_window(context)
    length = KEPT - cut
    context.trim(1, length)
    assert context.holds(1, length) is is_there
    compute(context, 3, 0, TOKENS[:length])
    ahead, cold = (compute(context, each, length, TOKENS[length : length + 2]) for each in (1, 3))
    assert np.allclose(ahead, cold, atol=0.005) is is_there
