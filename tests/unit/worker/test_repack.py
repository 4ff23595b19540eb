"""Weights laid out anew for this CPU's kernels, and left as they lie in the file."""

from __future__ import annotations

import numpy as np
import pytest

from cortex_core.wire.ipc import EngineParams
from neuron.worker import llama
from neuron.worker.load import LoadedModel
from tests.unit.worker.loading import free_here, load_here
from tools.make_gguf import ModelShape, make_gguf

SHAPE = ModelShape(layers=2, width=512, heads=8, kv_heads=4, head_dim=64, ffn=1024, vocab=1024)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_gguf(tmp_path_factory.mktemp("repack") / "q4.gguf", SHAPE, file_type="Q4_K_M"))


def load(path: str, *, repack: bool) -> LoadedModel:
    loaded = load_here(path, EngineParams(context=256, parallel=1, repack=repack))
    assert isinstance(loaded, LoadedModel)
    return loaded


@pytest.mark.parametrize("repack", [True, False])
def test_weights_are_laid_out_anew_unless_that_is_not_wanted(
    quantised: str, repack: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[llama.Buffer] = []
    take = llama.take_buffers

    def watched() -> list[llama.Buffer]:
        taken = take()
        seen.extend(taken)
        return taken

    monkeypatch.setattr(llama, "take_buffers", watched)
    free_here(load(quantised, repack=repack))
    memories = {buffer.memory for buffer in seen if buffer.kind == "model"}
    assert (memories > {"CPU"}) == repack, memories


@pytest.mark.parametrize("rows", [1, 7, 8, 65])  # fewer than 8 do not make a tile
def test_both_compute_nearly_the_same(quantised: str, rows: int) -> None:
    anew, as_it_is = (logits(quantised, rows, repack=repack) for repack in (True, False))
    assert np.isfinite(as_it_is).all()
    assert np.corrcoef(anew, as_it_is)[0, 1] > 0.999


def logits(path: str, rows: int, *, repack: bool) -> np.ndarray:
    """Of the last of so many tokens, computed together."""
    loaded = load(path, repack=repack)
    context = loaded.context
    context.tokens[:rows] = np.random.default_rng(1).integers(10, 1000, rows)
    context.positions[:rows] = np.arange(rows)
    context.sequences[:rows] = 0
    context.outputs[:rows] = 0
    context.outputs[rows - 1] = 1
    assert context.decode(rows) == 0
    found = np.array(context.logits(1)).reshape(-1)
    free_here(loaded)
    return found
