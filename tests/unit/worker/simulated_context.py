"""llama.cpp's memory as it behaves towards `Memory`: cells with tokens in them, no numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from neuron.worker.kv import Int32s

__all__ = ["SimulatedContext"]

Bytes = npt.NDArray[np.uint8]


@dataclass(eq=False)
class _Cell:
    token: int
    is_written_over: bool = False
    """Where the layers with a window keep it."""


class SimulatedContext:
    """`pool` cells shared by all sequences, or `pool` 0: each sequence has its own. A token attends
    over `window` cells, its own included, or over all of them where that is 0."""

    def __init__(self, *, pool: int = 0, can_trim: bool = True, window: int = 0) -> None:
        self.pool = pool
        self.can_trim = can_trim
        self.window = window
        self.cells: dict[int, list[_Cell]] = {}  # sequence → its cells in order
        self.fails_to_restore = False

    def tokens(self, sequence: int) -> list[int]:
        return [cell.token for cell in self.cells.get(sequence, [])]

    @property
    def used(self) -> int:
        return len({cell for held in self.cells.values() for cell in held})

    def write(self, sequence: int, tokens: Int32s) -> None:
        """What a decode does. Fails as llama.cpp does where no cell is free."""
        self._add(sequence, [_Cell(token) for token in tokens.tolist()])

    def write_over(self, sequence: int) -> None:
        """What a decode of another may do to cells that only this one sees, behind its window."""
        others = {cell for each, held in self.cells.items() if each != sequence for cell in held}
        held = self.cells.get(sequence, [])
        for cell in held[: self._first(len(held))]:
            cell.is_written_over |= cell not in others

    def trim(self, sequence: int, length: int) -> bool:
        held = self.cells.get(sequence, [])
        if not self.can_trim and length not in (0, len(held)):
            return False
        self.cells[sequence] = held[:length]
        return True

    def copy(self, source: int, target: int, length: int) -> None:
        held = self.cells[source][:length]
        assert len(held) == length
        self.cells[target] = held if self.pool else [replace(cell) for cell in held]

    def holds(self, sequence: int, length: int) -> bool:
        held = self.cells.get(sequence, [])
        needed = held[self._first(length) : length]
        return len(held) >= length and not any(cell.is_written_over for cell in needed)

    def save(self, sequence: int) -> Bytes:
        saved = [(cell.token, cell.is_written_over) for cell in self.cells.get(sequence, [])]
        return np.frombuffer(np.array(saved, np.int32).tobytes(), np.uint8)

    def restore(self, sequence: int, data: Bytes) -> bool:
        self.cells[sequence] = []
        if self.fails_to_restore:
            return False
        saved = np.frombuffer(data.tobytes(), np.int32).reshape(-1, 2).tolist()
        self._add(sequence, [_Cell(token, bool(is_over)) for token, is_over in saved])
        return True

    def _first(self, length: int) -> int:
        """The first cell that the token after `length` others attends over."""
        return max(length + 1 - self.window, 0) if self.window else 0

    def _add(self, sequence: int, cells: list[_Cell]) -> None:
        self.cells.setdefault(sequence, []).extend(cells)
        assert not self.pool or self.used <= self.pool, "no free cells"
