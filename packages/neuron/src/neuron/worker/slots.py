"""The partitioned layout: `parallel` slots, each with cells for `context` tokens of its own. A
prefix that another slot has is copied, which moves data."""

from __future__ import annotations

from itertools import pairwise

from neuron.worker.host_cache import HostCache, Parked
from neuron.worker.kv import KV, SMALL, WORTH, Copy, Op, Placement, Want
from neuron.worker.tile import Tile

__all__ = ["Slots"]

_COPY_WORTH = 128
"""Tokens a prefix must have for a copy to pay: llama.cpp copies a whole slot, full or not."""


class Slots(KV):
    def __init__(
        self,
        parallel: int,
        context: int,
        *,
        can_trim: bool = True,
        host: HostCache | None = None,
        space: str = "",
        tile: Tile | None = None,
    ) -> None:
        super().__init__(
            parallel,
            context,
            sequences=parallel,
            can_trim=can_trim,
            host=host,
            space=space,
            tile=tile,
        )

    @property
    def cells(self) -> int:
        return self.parallel * self.context

    @property
    def cells_running(self) -> int:
        return int(self.lengths[list(self._busy)].sum())

    @property
    def cells_used(self) -> int:
        return int(self.lengths.sum())

    @property
    def _copy_worth(self) -> int:
        return _COPY_WORTH

    def _place(self, want: Want, source: int, best: int, entry: Parked | None) -> Placement | None:
        free = [slot for slot in range(len(self.lengths)) if slot not in self._busy]
        if entry is not None:
            slot = self._cheapest(free)
            return Placement(slot, ops=self._give_up(slot, 0))
        slot, kept = self._own(free, want)
        if best < kept + self._copy_worth:
            source, best = slot, kept
        others = [other for other in free if other != source]
        if source != slot or self._leaves_much(slot, kept, others):
            target = self._cheapest(others) if others else slot
            if target != source:
                ops: list[Op] = [*self._give_up(target, 0), Copy(source, target, best)]
                return Placement(target, best, self._kind(source), ops=ops)
            kept = best
        ops = self._give_up(slot, kept)
        return Placement(slot, kept, "cache" if kept else "none", ops=ops)

    def _own(self, free: list[int], want: Want) -> tuple[int, int]:
        """The free slot to go on in and how many tokens of it stay.

        A prefix is worth having if it is half of the prompt or half of what the slot holds: every
        chat begins with the same few tokens of its template, and for those alone nobody's history
        should go. The free slot with the longest prefix worth having wins. Without any, one that
        loses little: the nearest to the slots in use, for rows of neighbours are computed in one
        pass; then an empty one, then the one idle for longest. While others run, what can be
        computed again in a moment (`SMALL`) counts for less than being near.
        """

        def rank(slot: int) -> tuple[int, bool, int, int, bool, int]:
            held = int(self.lengths[slot])
            kept = self._usable(slot, want.shared, want.limit)
            worth = kept if 2 * kept >= min(len(want.prompt), held) else 0
            loses_little = held - kept < SMALL
            return (
                0 if self._busy and worth < SMALL else worth,
                loses_little,
                -self._distance(slot) if loses_little else 0,
                worth,
                held == 0,
                -self._released[slot],
            )

        slot = max(free, key=rank)
        return slot, self._usable(slot, want.shared, want.limit)

    def _cheapest(self, free: list[int]) -> int:
        """The free slot whose content is missed least."""
        return max(
            free,
            key=lambda slot: (
                self.lengths[slot] < SMALL,
                -self._distance(slot),
                self.lengths[slot] == 0,
                -self._released[slot],
            ),
        )

    def _leaves_much(self, slot: int, kept: int, others: list[int]) -> bool:
        """Whether going on in `slot` would lose a tail that another's place could save: an empty
        slot, or one idle for longer."""
        if kept < WORTH or self.lengths[slot] - kept < SMALL:
            return False
        return any(
            self.lengths[other] < SMALL or self._released[other] < self._released[slot]
            for other in others
        )

    def _distance(self, slot: int) -> int:
        """How far the nearest slot in use is; 0 when none is."""
        return min((abs(slot - other) for other in self._busy), default=0)

    def bridges(self, sequences: list[int], *, widest: int, cells: int) -> list[int]:
        """Idle slots between `sequences` (ascending) that are worth a throw-away row each.

        llama.cpp computes rows of different sequences in one pass only
        where the sequence numbers have no gap; every gap costs one more pass over the weights. A
        row in each slot of the gap closes it, if there are no more than `widest`. Not where such a
        slot holds more than the longest of `sequences`: all rows would have to pass over as many of
        the `cells`.
        """
        if sequences[-1] - sequences[0] + 1 == len(sequences) or not self.can_trim:
            return []
        longest = min(int(self.lengths[sequences].max()) | 255, cells - 1)
        found: list[int] = []
        for left, right in pairwise(sequences):
            gap = range(left + 1, right)
            is_closed = any(slot in self._busy or self.lengths[slot] > longest for slot in gap)
            if len(gap) <= widest and not is_closed:
                found += gap
        return found
