"""llama.cpp's memory as it behaves towards `Memory`: cells with tokens in them, no numbers."""

from __future__ import annotations

from itertools import count

import numpy as np
import numpy.typing as npt

from neuron.worker.kv import Int32s

__all__ = ["SimulatedContext"]

Bytes = npt.NDArray[np.uint8]


class SimulatedContext:
    """`pool` cells shared by all sequences, or `pool` 0: each sequence has its own."""

    def __init__(self, *, pool: int = 0, can_trim: bool = True) -> None:
        self.pool = pool
        self.can_trim = can_trim
        self.cells: dict[int, list[tuple[int, int]]] = {}  # sequence → (cell, token), in order
        self.fails_to_restore = False
        self._numbers = count()

    def tokens(self, sequence: int) -> list[int]:
        return [token for _, token in self.cells.get(sequence, [])]

    @property
    def used(self) -> int:
        return len({cell for held in self.cells.values() for cell, _ in held})

    def write(self, sequence: int, tokens: Int32s) -> None:
        """What a decode does. Fails as llama.cpp does where no cell is free."""
        held = self.cells.setdefault(sequence, [])
        held += [(next(self._numbers), token) for token in tokens.tolist()]
        assert not self.pool or self.used <= self.pool, "no free cells"

    def trim(self, sequence: int, length: int) -> bool:
        held = self.cells.get(sequence, [])
        if not self.can_trim and length not in (0, len(held)):
            return False
        self.cells[sequence] = held[:length]
        return True

    def copy(self, source: int, target: int, length: int) -> None:
        held = self.cells[source][:length]
        assert len(held) == length
        if not self.pool:
            held = [(next(self._numbers), token) for _, token in held]
        self.cells[target] = held

    def holds(self, sequence: int, length: int) -> bool:
        return len(self.cells.get(sequence, [])) >= length

    def save(self, sequence: int) -> Bytes:
        return np.frombuffer(np.array(self.tokens(sequence), np.int32).tobytes(), np.uint8)

    def restore(self, sequence: int, data: Bytes) -> bool:
        self.cells[sequence] = []
        if self.fails_to_restore:
            return False
        self.write(sequence, np.frombuffer(data.tobytes(), np.int32))
        return True
