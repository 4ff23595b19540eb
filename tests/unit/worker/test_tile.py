"""From where a prompt is computed so that a tile of the CPU's attention is filled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuron.worker.tile import TILE, Tile

SMALL_MODEL = Tile.of(440_000_000, 28 * 16 * 128)  # Qwen3 0.6B
LARGE_MODEL = Tile.of(7_000_000_000, 36 * 32 * 128)  # 8B


@pytest.mark.parametrize(
    ("cached", "left", "is_filled"),
    [(1664, 63, True), (1664, 48, True), (1088, 48, True), (1664, 24, False), (1088, 24, False)],
)
def test_a_tile_is_filled_where_it_was_measured_to_be_quicker(
    cached: int, left: int, is_filled: bool
) -> None:
    size = cached + left
    assert SMALL_MODEL.start(size, cached) == (size - TILE if is_filled else cached)


def test_behind_little_the_weights_cost_more_than_the_attention() -> None:
    assert SMALL_MODEL.start(63 + 64, 64) == 64


def test_a_large_model_computes_fewer_tokens_again() -> None:
    assert SMALL_MODEL.start(2048 + 44, 2048) < 2048
    assert LARGE_MODEL.start(2048 + 44, 2048) == 2048
    assert LARGE_MODEL.start(16_384 + 44, 16_384) < 16_384


@given(size=st.integers(1, 40_000), left=st.integers(0, 200), cells=st.floats(0, 1e6))
def test_all_is_left_as_it_is_or_just_a_tile_is_computed(
    size: int, left: int, cells: float
) -> None:
    cached = max(size - left, 0)
    start = Tile(cells).start(size, cached)
    assert start in (cached, size - TILE)
    assert 0 <= start <= cached
