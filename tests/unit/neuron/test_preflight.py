"""Whether a load may begin, and with what context, decided before anything is touched."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex_core.errors import InvalidRequest, PreflightFailed
from cortex_core.wire.ipc import EngineParams
from neuron.models.footprint import Room
from neuron.models.gguf import read_header
from neuron.models.preflight import DEFAULT_CONTEXT, Preflight
from tools.make_gguf import PRESETS, BertShape, ModelShape, make_gguf

MIB = 2**20
GIB = 2**30
TINY = read_header(Path(str(files("neuron") / "assets" / "tiny.gguf")))


def preflight(
    free: int | None, header: Any = TINY, gpus: list[Room] | None = None, **options: Any
) -> Preflight:
    return Preflight(header, EngineParams(**options), Room("cpu", free, free), gpus or [])


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A header that says its model was trained for more than anyone gets unasked."""
    path = tmp_path_factory.mktemp("long") / "long.gguf"
    return read_header(make_gguf(path, ModelShape(context=1_000_000)))


def test_an_empty_box_gives_the_models_own_context() -> None:
    assert preflight(64 * GIB).params.context == 8192


def test_nobody_gets_more_than_the_bound_unasked(long: Any) -> None:
    assert preflight(1024 * GIB, long).params.context == DEFAULT_CONTEXT


def test_whoever_asks_for_more_gets_it(long: Any) -> None:
    assert preflight(1024 * GIB, long, context=200_000).params.context == 200_000


def test_a_small_box_gives_less_and_keeps_half_for_others() -> None:
    found = preflight(100 * MIB)
    assert 4096 <= found.params.context < 8192
    assert found.footprint.kv_bytes <= 50 * MIB
    found.check_room("tiny")


def test_a_tight_box_gives_a_useful_context_before_it_keeps_any() -> None:
    found = preflight(56 * MIB)
    assert found.footprint.total_bytes > 0.9 * 56 * MIB
    assert found.params.context < 4096
    found.check_room("tiny")


def test_memory_that_nobody_knows_of_refuses_nothing() -> None:
    found = preflight(None)
    assert found.params.context == 8192
    found.check_room("tiny")


def test_a_pool_of_fewer_cells_bounds_the_context() -> None:
    found = preflight(64 * GIB, parallel=4, kv="unified", cells=1000)
    assert found.params.context == 1000


def test_what_cannot_fit_is_refused_with_need_and_have() -> None:
    found = preflight(20 * MIB, context=8192)
    with pytest.raises(PreflightFailed) as caught:
        found.check_room("tiny")
    assert caught.value.code == "insufficient_memory"
    assert caught.value.param == "model"
    need = found.footprint.total_bytes / MIB
    assert f"cpu needs {need:,.0f} MiB and has 20 MiB free" in caught.value.message
    assert f"a context of {found.largest_context} would fit" in caught.value.message


def test_a_context_that_would_fit_does() -> None:
    most = preflight(20 * MIB, context=8192).largest_context
    assert 0 < most < 8192
    preflight(20 * MIB, context=most).check_room("tiny")
    with pytest.raises(PreflightFailed):
        preflight(20 * MIB, context=most + 256).check_room("tiny")


def test_where_nothing_fits_the_refusal_says_so() -> None:
    with pytest.raises(PreflightFailed, match="no context is small enough"):
        preflight(2 * MIB).check_room("tiny")
    assert preflight(2 * MIB).largest_context == 0


def test_a_gpu_is_short_by_its_own_memory() -> None:
    found = preflight(64 * GIB, gpus=[Room("cuda:0", 100 * MIB)])
    with pytest.raises(PreflightFailed, match="cuda:0 needs"):
        found.check_room("tiny")


def test_a_host_can_be_short_for_a_gpus_model() -> None:
    found = preflight(1 * MIB, gpus=[Room("cuda:0", 24 * GIB)], context=8192)
    with pytest.raises(PreflightFailed, match="cpu needs"):
        found.check_room("tiny")


def test_the_worker_is_told_the_layout() -> None:
    assert preflight(64 * GIB, parallel=4).params.kv == "partitioned"
    assert preflight(64 * GIB, parallel=1).params.kv == "unified"
    gpu = [Room("cuda:0", 24 * GIB)]
    assert preflight(64 * GIB, gpus=gpu, parallel=4).params.kv == "unified"


def test_the_worker_is_told_whether_to_use_flash_attention() -> None:
    large = msgspec.structs.replace(TINY, file_bytes=GIB)
    assert preflight(64 * GIB, large, context=512).params.flash_attention is None
    found = preflight(64 * GIB, large, context=2048)
    assert found.params.flash_attention is False
    assert found.estimate("large", "cpu").flash_attention is False
    gpu = [Room("cuda:0", 24 * GIB)]
    assert preflight(64 * GIB, large, gpu, context=2048).params.flash_attention is None


def test_the_worker_is_told_whether_to_lay_weights_out_anew() -> None:
    large = msgspec.structs.replace(
        TINY, file_bytes=GIB, metadata=TINY.metadata | {"general.file_type": 15}
    )

    def told(context: int, repack: bool | None = None, flags: str = "avx512_vnni") -> Preflight:
        params = EngineParams(context=context, repack=repack)
        room = Room("cpu", 64 * GIB, 64 * GIB)
        return Preflight(large, params, room, cpu_flags=frozenset(flags.split()))

    assert told(512).params.repack is True
    assert told(4096).params.repack is False
    assert told(4096).estimate("large", "cpu").repack is False
    assert told(4096, flags="avx2").params.repack is True
    assert told(4096, repack=True).params.repack is True
    assert told(512, repack=False).params.repack is False


def test_a_recurrent_model_is_known_by_its_header(tmp_path: Path) -> None:
    header = read_header(make_gguf(tmp_path / "m.gguf", PRESETS["tiny-hybrid"]))
    found = preflight(64 * GIB, header, parallel=1)
    assert not found.shape.can_trim
    assert found.params.kv == "partitioned"


def test_an_embedding_model_has_the_context_of_its_passes(tmp_path: Path) -> None:
    header = read_header(make_gguf(tmp_path / "bert.gguf", BertShape()))
    found = preflight(64 * GIB, header)
    assert 0 < found.params.context <= found.shape.context
    assert found.footprint.kv_bytes == 0
    found.estimate("bert", "cpu")


def test_heads_that_a_quantised_cache_cannot_hold_are_refused(tmp_path: Path) -> None:
    header = read_header(make_gguf(tmp_path / "l.gguf", PRESETS["tiny-llama"]))
    with pytest.raises(InvalidRequest, match="has 16") as caught:
        preflight(64 * GIB, header, kv_type="q8_0")
    assert caught.value.param == "kv_type"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"context": 512, "cells": 300}, "cells"),
        ({"context": 512, "cells": 600, "kv": "partitioned"}, "cells"),
        ({"kv_type": "q8_0", "flash_attention": False}, "flash_attention"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        preflight(64 * GIB, **options)
    assert caught.value.param == param


def test_an_estimate_adds_up() -> None:
    found = preflight(1 * GIB, context=1024, parallel=2).estimate("tiny", "cpu")
    (device,) = found.devices
    parts = (device.weights_bytes, device.kv_bytes, device.compute_bytes, device.runtime_bytes)
    assert sum(parts) == device.total_bytes == found.total_bytes
    assert found.kv_bytes == found.kv_bytes_per_token * 1024 * 2
    assert (device.free_bytes, found.fits, found.largest_context) == (1 * GIB, True, 8192)


@settings(max_examples=40)
@given(free=st.integers(0, 400 * MIB), parallel=st.integers(1, 8))
def test_the_default_context_fits_or_no_context_does(free: int, parallel: int) -> None:
    found = preflight(free, parallel=parallel)
    try:
        found.check_room("tiny")
    except PreflightFailed:
        assert found.largest_context == 0
