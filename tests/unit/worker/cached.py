"""A KV over a simulated memory, and prompts to put into it."""

from __future__ import annotations

from typing import Any

import numpy as np

from neuron.worker.host_cache import HostCache
from neuron.worker.kv import KV, SMALL, Int32s, Placement, Wait
from neuron.worker.memory import Memory
from neuron.worker.pool import Pool
from neuron.worker.slots import Slots
from neuron.worker.tile import Tile
from tests.unit.worker.simulated_context import SimulatedContext

__all__ = ["LONG", "Cache", "ids", "place"]


def ids(*tokens: int) -> Int32s:
    return np.array(tokens, np.int32)


class Cache:
    """A KV over a simulated context. `pool` more than 0 makes it unified."""

    def __init__(
        self,
        parallel: int,
        context: int,
        *,
        pool: int = 0,
        sequences: int = 8,
        can_trim: bool = True,
        window: int = 0,
        host: HostCache | None = None,
        tile: Tile | None = None,
    ) -> None:
        self.context = SimulatedContext(pool=pool, can_trim=can_trim, window=window)
        self.kv: KV
        if pool:
            self.kv = Pool(parallel, context, cells=pool, sequences=sequences, host=host, tile=tile)
        else:
            self.kv = Slots(parallel, context, can_trim=can_trim, host=host, tile=tile)
        self.memory = Memory(self.context, self.kv)  # pyright: ignore[reportArgumentType]

    def acquire(self, prompt: list[int], **options: Any) -> Placement | Wait | None:
        return self.memory.acquire(ids(*prompt), **options)

    def compute(self, sequence: int, tokens: list[int]) -> None:
        self.context.write(sequence, ids(*tokens))
        self.kv.write(sequence, ids(*tokens))

    def start(self, *prompt: int, **options: Any) -> Placement:
        """Acquire and compute the whole prompt."""
        placement = self.acquire([*prompt], **options)
        assert isinstance(placement, Placement), placement
        self.compute(placement.sequence, [*prompt[placement.cached :]])
        return placement

    def generate(self, sequence: int, *tokens: int) -> None:
        for token in tokens:
            self.context.write(sequence, ids(token))
            self.kv.append(ids(sequence), ids(token))

    def serve(self, *prompt: int, answer: tuple[int, ...] = ()) -> Placement:
        placement = self.start(*prompt)
        self.generate(placement.sequence, *answer)
        self.kv.release(placement.sequence)
        return placement

    def held(self, sequence: int) -> list[int]:
        """What is there; the books must say the same."""
        tokens = self.context.tokens(sequence)
        assert self.kv.tokens(sequence).tolist() == tokens
        return tokens


def place(placement: Placement | Wait | None) -> tuple[int, int]:
    assert isinstance(placement, Placement)
    return placement.sequence, placement.cached


LONG = range(1000, 1000 + 2 * SMALL)
"""A prompt worth every trouble."""
