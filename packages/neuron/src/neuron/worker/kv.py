"""Which sequence slot holds which tokens. Pure: it decides, the engine carries out.

The `partitioned` layout: every slot owns cells for `context` tokens. A finished sequence's tokens
stay in its slot as cache until another prompt takes the slot.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

__all__ = ["RECOMPUTED", "SMALL", "Slots", "common_prefix"]

Int32s = npt.NDArray[np.int32]

RECOMPUTED = 2
"""Tokens at a prompt's end that are computed even when cached. The last one's logits are needed;
a batch of two takes the same matrix kernels as a long prompt (a single row has its own), so that
an answer from cache equals a cold one where llama.cpp's kernels allow it."""


SMALL = 256
"""Tokens that are computed again sooner than a gap between slots costs: one more pass over the
weights for every token of an answer, against a fraction of that per token of a prompt."""


def common_prefix(left: Int32s, right: Int32s) -> int:
    """Length of the longest common prefix."""
    size = min(len(left), len(right))
    differs = left[:size] != right[:size]
    first = int(differs.argmax()) if size else 0
    return first if size and differs[first] else size


class Slots:
    """`parallel` slots of `context` tokens. `can_trim`: the memory can drop a sequence's tail;
    where it cannot, a slot's cache is of use only to a prompt that continues all of it."""

    def __init__(self, parallel: int, context: int, *, can_trim: bool = True) -> None:
        self.parallel = parallel
        self.context = context
        self.can_trim = can_trim
        self._tokens: Int32s = np.zeros((parallel, context), np.int32)
        self.lengths: Int32s = np.zeros(parallel, np.int32)
        self._busy = [False] * parallel
        self._released = [0] * parallel
        self._clock = 0

    @property
    def has_free(self) -> bool:
        return not all(self._busy)

    def tokens(self, slot: int) -> Int32s:
        """The tokens whose KV the slot holds (a view)."""
        return self._tokens[slot, : self.lengths[slot]]

    def acquire(self, prompt: Int32s) -> tuple[int, int] | None:
        """A slot for the prompt and how many of its tokens the slot already holds, or None while
        all are taken. The memory must be trimmed to that length; if it refuses, `clear`.

        A prefix is worth having if it is half of the prompt or half of what the slot holds: every
        chat begins with the same few tokens of its template, and for those alone nobody's history
        should go. The free slot with the longest prefix worth having wins. Without any, one that
        loses little: the nearest to the slots in use, for rows of neighbours are computed in one
        pass; then an empty one, then the one idle for longest. While others run, what can be
        computed again in a moment (`SMALL`) counts for less than being near.
        """
        best: tuple[int, int] | None = None
        best_rank: tuple[int, bool, int, int, bool, int] | None = None
        is_anyone_running = any(self._busy)
        for slot in range(self.parallel):
            if self._busy[slot]:
                continue
            held = int(self.lengths[slot])
            kept = self._usable(slot, prompt)
            worth = kept if 2 * kept >= min(len(prompt), held) else 0
            loses_little = held - kept < SMALL
            rank = (
                0 if is_anyone_running and worth < SMALL else worth,
                loses_little,
                -self._distance(slot) if loses_little else 0,
                worth,
                held == 0,
                -self._released[slot],
            )
            if best_rank is None or rank > best_rank:
                best, best_rank = (slot, kept), rank
        if best is None:
            return None
        slot, kept = best
        self._busy[slot] = True
        self.lengths[slot] = kept
        return slot, kept

    def _usable(self, slot: int, prompt: Int32s) -> int:
        held = self.tokens(slot)
        kept = min(common_prefix(held, prompt), max(len(prompt) - RECOMPUTED, 0))
        if not self.can_trim and kept != len(held):
            return 0
        return kept

    def _distance(self, slot: int) -> int:
        """How far the nearest slot in use is; 0 when none is."""
        return min((abs(slot - other) for other, busy in enumerate(self._busy) if busy), default=0)

    def clear(self, slot: int) -> None:
        """The slot's memory holds nothing any more."""
        self.lengths[slot] = 0

    def write(self, slot: int, tokens: Int32s) -> None:
        """A part of a prompt was computed."""
        start = self.lengths[slot]
        self._tokens[slot, start : start + len(tokens)] = tokens
        self.lengths[slot] = start + len(tokens)

    def append(self, slots: Int32s, tokens: Int32s) -> None:
        """One more token was computed in each of `slots`."""
        self._tokens[slots, self.lengths[slots]] = tokens
        self.lengths[slots] += 1

    def release(self, slot: int) -> None:
        """Its sequence ended; what it holds stays as cache."""
        self._busy[slot] = False
        self._clock += 1
        self._released[slot] = self._clock

    def bridges(self, slots: list[int], *, widest: int, cells: int) -> list[int]:
        """Idle slots between `slots` (ascending) that are worth a throw-away row each.

        llama.cpp computes rows of different sequences in one pass only where the sequence numbers
        have no gap; every gap costs one more pass over the weights. A row in each slot of the gap
        closes it, if there are no more than `widest`. Not where such a slot holds more than the
        longest of `slots`: all rows would have to pass over as many of the `cells`.
        """
        if slots[-1] - slots[0] + 1 == len(slots) or not self.can_trim:
            return []
        longest = min(int(self.lengths[slots].max()) | 255, cells - 1)
        found: list[int] = []
        for left, right in pairwise(slots):
            gap = range(left + 1, right)
            is_closed = any(self._busy[slot] or self.lengths[slot] > longest for slot in gap)
            if len(gap) <= widest and not is_closed:
                found += gap
        return found
