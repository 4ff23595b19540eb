"""What a load will take, computed from the header alone, against what llama.cpp then allocates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from cortex_core.wire.ipc import EngineParams, ModelInfo
from neuron.models.footprint import Footprint, Room
from neuron.models.gguf import read_header
from neuron.models.pooling import plan_passes, pools_last
from neuron.models.preflight import Preflight
from neuron.models.shape import shape_of
from neuron.worker.host_cache import HostCache
from tests.unit.worker.loading import free_here, load_here
from tests.unit.worker.unlike_shapes import ExpertsShape, FusedShape
from tests.unit.worker.worker_process import TINY
from tools.make_gguf import PRESETS, BertShape, LastTokenShape, ModelShape, make_gguf

WITHIN = 0.10
MOST_TEXTS = 64
TWO_LAYERS_OF_QWEN = ModelShape(
    layers=2, width=1024, heads=16, kv_heads=8, head_dim=128, ffn=3072, vocab=4096, context=40_960
)
SHAPES: dict[str, tuple[Any, str]] = {
    "toy": (PRESETS["toy"], "F16"),
    "llama": (PRESETS["tiny-llama"], "F16"),
    "sliding": (PRESETS["tiny-sliding"], "F16"),
    "mamba": (PRESETS["tiny-mamba"], "F16"),
    "hybrid": (PRESETS["tiny-hybrid"], "F16"),
    "qwen": (TWO_LAYERS_OF_QWEN, "F16"),
    "qwen-q4": (replace(TWO_LAYERS_OF_QWEN, layers=1, vocab=1024), "Q4_K_M"),
    "experts": (ExpertsShape(), "F16"),
    "fused": (FusedShape(), "F16"),
    "bert": (BertShape(), "F32"),
    "rank": (BertShape(pooling="rank"), "F32"),
    "last": (LastTokenShape(), "F32"),
}
GENERATORS = [
    *("tiny", "toy", "llama", "qwen", "qwen-q4"),
    *("sliding", "mamba", "hybrid", "experts", "fused"),
]
SETTINGS: list[dict[str, Any]] = [
    {"context": 512, "parallel": 1},
    {"context": 2048, "parallel": 4},
    {"context": 300, "parallel": 3},
    {"context": 1024, "parallel": 16, "flash_attention": True},
    {"context": 4096, "parallel": 2, "kv": "unified", "cells": 5000},
    {"context": 1024, "parallel": 4, "kv": "unified", "flash_attention": True, "batch": 128},
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("footprint")
    paths = {
        name: str(make_gguf(folder / f"{name}.gguf", shape, file_type=file_type))
        for name, (shape, file_type) in SHAPES.items()
    }
    return {"tiny": TINY, **paths}


def both(path: str, **params: Any) -> tuple[Footprint, ModelInfo]:
    """Foretold and measured, with the very parameters that the parent would send."""
    preflight = Preflight(read_header(Path(path)), EngineParams(**params), Room("cpu"))
    loaded = load_here(path, preflight.params)
    free_here(loaded)
    return preflight.footprint, loaded.info


def check(foretold: Footprint, measured: ModelInfo) -> None:
    assert foretold.weights_bytes == pytest.approx(measured.weights_bytes, rel=WITHIN)
    # llama.cpp's log tells sizes to a hundredth of a MiB.
    assert foretold.kv_bytes == pytest.approx(measured.kv_bytes, rel=WITHIN, abs=2**20 // 100)
    assert foretold.compute_bytes == pytest.approx(measured.compute_bytes, rel=WITHIN)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        pytest.param(model, settings, id=f"{model}-{settings}")
        for model in GENERATORS
        for settings in SETTINGS
        if not (settings.get("kv") == "unified" and model in ("mamba", "hybrid"))
    ],
)
def test_what_is_foretold_is_what_is_allocated(
    models: dict[str, str], model: str, settings: dict[str, Any]
) -> None:
    check(*both(models[model], **settings))


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
@pytest.mark.parametrize("model", ["tiny", "toy", "sliding", "hybrid", "qwen"])
def test_quantised_caches_are_foretold(models: dict[str, str], model: str, kv_type: str) -> None:
    check(*both(models[model], context=2048, parallel=2, kv_type=kv_type))


@pytest.mark.parametrize("context", [0, 128])
@pytest.mark.parametrize("model", ["bert", "rank", "last"])
def test_embedding_models_are_foretold(models: dict[str, str], model: str, context: int) -> None:
    foretold, measured = both(models[model], context=context)
    # Rows for a pass's outputs are allocated when the first full pass comes; at the load there
    # are as many as texts.
    width = SHAPES[model][0].width
    later = 4 * (rows_of(models[model], context) - MOST_TEXTS) * (measured.vocab_size + width)
    check(foretold, structs.replace(measured, compute_bytes=measured.compute_bytes + later))


def rows_of(path: str, context: int) -> int:
    header = read_header(Path(path))
    shape = shape_of(header)
    return plan_passes(context, shape.context, is_split=pools_last(header.metadata)).rows


@pytest.mark.parametrize(("mmap", "repack"), [(False, True), (False, False), (True, False)])
def test_weights_that_are_read_or_stay_as_they_are_take_the_same(
    models: dict[str, str], mmap: bool, repack: bool
) -> None:
    check(*both(models["qwen-q4"], context=512, parallel=1, mmap=mmap, repack=repack))


def test_what_takes_the_place_of_another_model_is_measured_in_full(models: dict[str, str]) -> None:
    """The process already holds what the former one has left."""
    for _ in range(3):
        _, measured = both(models["qwen"], context=1024, parallel=4)
        buffers = measured.weights_bytes + measured.kv_bytes + measured.compute_bytes
        assert measured.memory_bytes >= buffers


def test_what_others_park_meanwhile_is_not_the_model_s(models: dict[str, str]) -> None:
    host = HostCache()

    def park(_: float) -> bool:
        if not host.all_bytes():
            host.put("other", np.arange(8, dtype=np.int32), np.ones(64 * 2**20, np.uint8))
        return True

    params = EngineParams(context=256, parallel=1)
    loaded = load_here(models["qwen"], params, on_progress=park, parked_bytes=host.all_bytes)
    free_here(loaded)
    assert host.all_bytes() == 64 * 2**20
    measured = loaded.info
    buffers = measured.weights_bytes + measured.kv_bytes + measured.compute_bytes
    assert measured.memory_bytes < buffers + 32 * 2**20
