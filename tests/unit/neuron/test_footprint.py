"""Sums over shapes that no test model has; what llama.cpp really allocates is compared in
tests/unit/worker."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex_core.wire.ipc import EngineParams
from neuron.models.arena import Tape
from neuron.models.footprint import Footprint, Room, footprint_of, largest_context
from neuron.models.layout import plan_kv
from neuron.models.shape import Layer, ModelShape

GPUS = [Room("cuda:0", 30, 100), Room("cuda:1", 10, 100)]
WEIGHT = 1_000_000


def shape(layers: int = 4, *, is_tied: bool = False) -> ModelShape:
    layer = Layer(
        WEIGHT, query=256, key=128, value=128, has_cells=True, feed_forward=512, is_gated=True
    )
    return ModelShape(
        width=256,
        heads=4,
        head_width=64,
        value_head_width=64,
        vocabulary=1000,
        context=8192,
        window=0,
        experts_used=0,
        is_tied=is_tied,
        is_causal=True,
        input_bytes=500,
        output_bytes=700,
        layers=(layer,) * layers,
    )


def foretell(
    model: ModelShape, *, gpus: list[Room] | None = None, context: int = 512, **options: Any
) -> Footprint:
    params = EngineParams(**options)
    plan = plan_kv(params, context=context, can_trim=True, is_cpu=not gpus)
    return footprint_of(model, params, plan, flash_attention=True, host="host", gpus=gpus or [])


def weights(footprint: Footprint) -> dict[str, int]:
    return {device.device: device.weights_bytes for device in footprint.devices}


def test_a_cpu_holds_everything() -> None:
    found = foretell(shape())
    assert weights(found) == {"host": 4 * WEIGHT + 1200}
    assert found.kv_bytes_per_token == 4 * 2 * (128 + 128)
    assert found.kv_bytes == found.kv_bytes_per_token * 512 * 4


def test_a_gpu_holds_the_layers_and_the_host_the_embeddings() -> None:
    found = foretell(shape(), gpus=GPUS[:1])
    assert weights(found) == {"cuda:0": 4 * WEIGHT + 700, "host": 500}
    gpu, host = found.devices
    assert host.kv_bytes == 0 < gpu.kv_bytes
    assert host.runtime_bytes == 0 < gpu.runtime_bytes


def test_a_tied_matrix_is_on_the_gpu_a_second_time() -> None:
    found = foretell(shape(is_tied=True), gpus=GPUS[:1])
    assert weights(found) == {"cuda:0": 4 * WEIGHT + 700 + 500, "host": 500}


def test_the_first_layers_stay_on_the_host() -> None:
    found = foretell(shape(), gpus=GPUS[:1], gpu_layers=3)  # two layers and the output
    assert weights(found) == {"cuda:0": 2 * WEIGHT + 700, "host": 2 * WEIGHT + 500}
    assert found.devices[0].kv_bytes == found.devices[1].kv_bytes > 0


def test_without_gpu_layers_a_gpu_is_not_touched() -> None:
    found = foretell(shape(), gpus=GPUS[:1], gpu_layers=0)
    assert found.devices[0].total_bytes == 0


def test_layers_are_split_by_free_memory() -> None:
    found = foretell(shape(layers=7), gpus=GPUS)  # and the output: 6 to 2
    assert weights(found) == {"cuda:0": 6 * WEIGHT, "cuda:1": WEIGHT + 700, "host": 500}


def test_layers_are_split_as_asked() -> None:
    found = foretell(shape(layers=7), gpus=GPUS, tensor_split=(1.0, 1.0))
    assert weights(found) == {"cuda:0": 4 * WEIGHT, "cuda:1": 3 * WEIGHT + 700, "host": 500}


def test_one_gpu_may_have_it_all() -> None:
    found = foretell(shape(), gpus=GPUS, split_mode="none", main_gpu=1)
    assert weights(found) == {"cuda:0": 0, "cuda:1": 4 * WEIGHT + 700, "host": 500}


def test_gpus_that_hide_their_memory_share_evenly() -> None:
    found = foretell(shape(layers=7), gpus=[Room("cuda:0"), Room("cuda:1")])
    assert weights(found)["cuda:0"] == 4 * WEIGHT


def test_a_smaller_pool_takes_less() -> None:
    whole = foretell(shape(), kv="unified", parallel=4)
    assert foretell(shape(), kv="unified", parallel=4, cells=1024).kv_bytes == whole.kv_bytes // 2


@pytest.mark.parametrize(("kind", "part"), [("q8_0", 34 / 64), ("q4_0", 18 / 64)])
def test_a_quantised_cache_takes_its_part(kind: str, part: float) -> None:
    assert foretell(shape(), kv_type=kind).kv_bytes == foretell(shape()).kv_bytes * part


@settings(max_examples=30)
@given(
    context=st.integers(1, 20_000),
    more=st.integers(0, 20_000),
    parallel=st.integers(1, 16),
    kv=st.sampled_from(["unified", "partitioned"]),
)
def test_more_context_never_takes_less(context: int, more: int, parallel: int, kv: str) -> None:
    small = foretell(shape(), context=context, parallel=parallel, kv=kv)
    large = foretell(shape(), context=context + more, parallel=parallel, kv=kv)
    assert small.total_bytes <= large.total_bytes


@settings(max_examples=30)
@given(parallel=st.integers(1, 32), kv=st.sampled_from(["unified", "partitioned"]))
def test_more_sequences_never_take_less_for_their_cells(parallel: int, kv: str) -> None:
    small = foretell(shape(), parallel=parallel, kv=kv)
    assert small.kv_bytes < foretell(shape(), parallel=parallel + 1, kv=kv).kv_bytes


@given(most=st.integers(1, 100_000), limit=st.integers(0, 120_000))
def test_the_largest_context_is_the_last_block_that_fits(most: int, limit: int) -> None:
    found = largest_context(most, lambda context: context <= limit)
    if most <= limit:
        assert found == most
    else:
        assert found == limit // 256 * 256


# the arena


def test_results_share_a_place_one_after_the_other() -> None:
    tape = Tape()
    at = tape.input(320)
    for _ in range(5):
        at = tape.add(320, at)
    assert tape.peak_bytes() == 640


def test_a_result_may_take_over_its_last_readers_place() -> None:
    tape = Tape()
    at = tape.input(320)
    for _ in range(5):
        at = tape.add(320, at, in_place=True)
    assert tape.peak_bytes() == 320


def test_what_is_read_again_is_not_taken_over() -> None:
    tape = Tape()
    first = tape.input(320)
    second = tape.add(320, first, in_place=True)
    tape.add(320, first, second, in_place=True)
    assert tape.peak_bytes() == 640


def test_a_gap_that_is_too_small_is_left() -> None:
    tape = Tape()
    small, kept = tape.input(32), tape.input(320)
    large = tape.add(64, small)  # behind both, and then the small one's place is free
    tape.add(64, kept, large)
    assert tape.peak_bytes() == 32 + 320 + 64 + 64


@given(
    st.lists(
        st.tuples(st.integers(0, 500), st.lists(st.integers(0, 100), max_size=3), st.booleans()),
        min_size=1,
        max_size=40,
    )
)
def test_a_buffer_is_no_smaller_than_its_largest_result_and_no_larger_than_all(
    nodes: list[tuple[int, list[int], bool]],
) -> None:
    tape = Tape()
    tape.input(64)
    for index, (size, reads, in_place) in enumerate(nodes, 1):
        tape.add(size, *{read % index for read in reads}, in_place=in_place)
    sizes = [64, *(-(-size // 32) * 32 for size, _, _ in nodes)]
    assert max(sizes) <= tape.peak_bytes() <= sum(sizes)
