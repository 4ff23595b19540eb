"""The unified layout: one pool of cells for all sequences. A prefix that another sequence has is
shared for nothing, and any sequence may use what is free; but every row attends over all cells."""

from __future__ import annotations

from neuron.worker.cells import Cells
from neuron.worker.host_cache import HostCache, Parked
from neuron.worker.kv import KV, WORTH, Copy, Int32s, Op, Placement, Trim, Want
from neuron.worker.tile import Tile

__all__ = ["Pool"]

_MARGIN = 64
"""Cells kept for each running sequence's next tokens when another is admitted."""


class Pool(KV):
    """`cells` for all. llama.cpp decodes only the first `parallel` of the `sequences`; the others,
    but for the one right after them, keep what has ended."""

    def __init__(
        self,
        parallel: int,
        context: int,
        *,
        cells: int,
        sequences: int,
        host: HostCache | None = None,
        space: str = "",
        tile: Tile | None = None,
    ) -> None:
        super().__init__(
            parallel,
            context,
            sequences=sequences,
            can_trim=True,
            host=host,
            space=space,
            tile=tile,
        )
        self._pool = Cells(cells)
        self._reserved: dict[int, int] = {}
        """Cells promised to sequences in use: the rest of their prompts, and one token."""

    @property
    def cells(self) -> int:
        return self._pool.capacity

    @property
    def cells_running(self) -> int:
        return self._pool.held_by(list(self._busy))

    @property
    def cells_used(self) -> int:
        return self._pool.used

    @property
    def _copy_worth(self) -> int:
        return WORTH

    def _place(self, want: Want, source: int, best: int, entry: Parked | None) -> Placement | None:
        pool, prompt = self._pool, want.prompt
        need = len(prompt) + 1 + _MARGIN * len(self._busy)
        anchors, loose = [*self._busy], 0
        if entry is not None:
            need = max(need, len(entry.tokens))
        elif best:
            need -= best
            anchors.append(source)
            loose = self._loose_tail(source, best)
        promised = sum(self._reserved.values())
        if pool.held_by(anchors) - loose + promised + need > pool.capacity:
            return None
        ops: list[Op] = []
        shares = best > 0 and entry is None
        is_over = shares and source not in self._busy and self.lengths[source] - best <= WORTH
        if is_over and source < self.parallel:
            sequence = source
            ops += self._give_up(sequence, best)
            placement = Placement(sequence, best, "cache", ops=ops)
        else:
            sequence = self._seat()
            if self.lengths[sequence]:
                aside = self._put_aside(sequence, ops, keep=source)
                source = aside if sequence == source else source
            placement = Placement(sequence, ops=ops)
            if shares:
                pool.share(source, sequence, best)
                ops.append(Copy(source, sequence, best))
                placement.cached, placement.source = best, self._kind(source)
            if is_over:  # what goes on in the new one need not be kept twice
                self._forget(source, ops)
        self._evict(need, ops, keep=sequence)
        self._reserved[sequence] = len(prompt) + 1 - placement.cached
        if entry is not None:
            pool.grow(sequence, best)
            self._reserved[sequence] -= best
        return placement

    def _loose_tail(self, source: int, best: int) -> int:
        """Cells of an ended source beyond the shared prefix, which can be evicted."""
        if source in self._busy:
            return 0
        alone = self._pool.held_by([*self._busy, source]) - self._pool.held_by(self._busy)
        return min(int(self.lengths[source]) - best, alone)

    def _seat(self) -> int:
        """A sequence that may run: only the first `parallel` may be in a batch."""
        seats = (each for each in range(self.parallel) if each not in self._busy)
        return min(seats, key=lambda each: (self.lengths[each] > 0, self._released[each]))

    def _put_aside(self, sequence: int, ops: list[Op], keep: int) -> int:
        """What a seat still holds goes to a sequence beyond the seats, for nothing: its cells are
        only seen by another. If need be the one there that is idle for longest is emptied."""
        beyond = range(self.parallel + 1, len(self.lengths))
        others = (each for each in beyond if each != keep)
        aside = min(others, key=lambda each: (self.lengths[each] > 0, self._released[each]))
        ops += self._give_up(aside, 0)
        tokens = self.tokens(sequence)
        length = len(tokens)
        self._pool.share(sequence, aside, length)
        ops.append(Copy(sequence, aside, length))
        self._tokens[aside, :length] = tokens
        self.lengths[aside] = length
        self._tree.put(aside, tokens)
        self._indexed[aside] = length
        self._released[aside] = self._released[sequence]
        self._forget(sequence, ops)
        return aside

    def _forget(self, sequence: int, ops: list[Op]) -> None:
        """Empty an ended sequence whose tokens another one has."""
        ops.append(Trim(sequence, 0))
        self.clear(sequence)

    def _evict(self, need: int, ops: list[Op], keep: int = -1) -> None:
        """Empty ended sequences, those idle for longest first, until `need` cells are free."""
        pool = self._pool
        promised = sum(self._reserved.values())
        while pool.free - promised < need:
            ended = [each for each in self._ended() if each != keep]
            if not ended:
                return
            ops += self._give_up(ended[0], 0)

    def make_room(self, count: int) -> list[Op] | None:
        """What to evict so that `count` more cells can be written; None if all of it would not be
        enough: then nothing is."""
        pool, promised = self._pool, sum(self._reserved.values())
        if pool.free - promised >= count:
            return []
        if pool.held_by(list(self._busy)) + promised + count > pool.capacity:
            return None
        ops: list[Op] = []
        self._evict(count, ops)
        return ops

    def _give_up(self, sequence: int, length: int) -> list[Op]:
        ops = super()._give_up(sequence, length)
        self._pool.trim(sequence, length)
        return ops

    def clear(self, sequence: int) -> None:
        super().clear(sequence)
        self._pool.trim(sequence, 0)
        if holder := self._busy.get(sequence):
            self._reserved[sequence] = holder.planned + 1

    def write(self, sequence: int, tokens: Int32s) -> None:
        super().write(sequence, tokens)
        self._pool.grow(sequence, len(tokens))
        left = self._reserved.get(sequence, 0) - len(tokens)
        self._reserved[sequence] = max(left, 0)

    def append(self, sequences: Int32s, tokens: Int32s) -> None:
        super().append(sequences, tokens)
        for sequence in sequences.tolist():
            self._pool.grow(sequence, 1)
            self._reserved.pop(sequence, None)

    def release(self, sequence: int) -> None:
        super().release(sequence)
        self._reserved.pop(sequence, None)
