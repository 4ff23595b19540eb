"""Where to go on in a prompt, for llama.cpp's CPU attention. Pure.

It takes tiles of `TILE` queries, and fewer by a path that is several times slower per query: behind
1,664 cached tokens a 0.6B model took 2.3 s for 63 more and 1.1 s for 64. So a little of a cached
prefix is sometimes computed again, to fill a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TILE", "Tile"]

TILE = 64

_SLOWER = 3.5
"""Times that a query outside of a tile takes to attend over a cell."""

_ATTENTION_PACE = 0.6
"""Multiplications with cells in the time of one with a weight."""

_MARGIN = 1.1
"""What is won must be worth a smaller share of cached tokens, and the constants are measured ones
(0.6B, Q4_K_M, AVX-512)."""


@dataclass(frozen=True, slots=True)
class Tile:
    """`row_cells`: over how many cells a query in a tile attends in the time that all else takes
    for one token."""

    row_cells: float

    @classmethod
    def of(cls, weights: int, attention: int) -> Tile:
        """Of a model that multiplies `weights` numbers with a token, and of whose queries
        `attention` numbers meet each cell, all layers together."""
        return cls(_ATTENTION_PACE * weights / (2 * attention))

    def start(self, size: int, cached: int) -> int:
        """From where to compute a prompt of `size` tokens, of which `cached` are there: from there
        on, or so much sooner that it fills a tile."""
        left = size - cached
        if left >= TILE or size <= TILE:
            return cached
        as_is = left * (self.row_cells + _SLOWER * cached)
        in_tile = TILE * (self.row_cells + cached)
        return size - TILE if _MARGIN * in_tile < as_is else cached
