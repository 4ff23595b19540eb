"""How large a buffer holds a graph's intermediate results, each only while it is needed. Pure.

ggml lays a graph out once, before anything is computed: every result takes the free gap it fits
best, and leaves it when its last reader is done. The same is played through here, for the sum of
what lives at once is up to a third less than what ggml's gaps come to.
"""

from __future__ import annotations

from collections import Counter

__all__ = ["Tape"]

_ALIGNMENT = 32
_ENDLESS = 1 << 62


class Tape:
    """The results of a graph in the order they are computed. Sizes are bytes."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._readers: list[tuple[int, ...]] = []
        self._takes_over: list[bool] = []
        self._inputs = 0

    def input(self, size: int) -> int:
        """A result that is there from the start. All inputs come before the first `add`."""
        assert self._inputs == len(self._sizes)
        self._inputs += 1
        return self._append(size, (), takes_over=False)

    def add(self, size: int, *reads: int, in_place: bool = False) -> int:
        """A result made of others. `in_place`: it may take over the place of the first of them
        that is as large and that nobody reads after."""
        return self._append(size, reads, takes_over=in_place)

    def _append(self, size: int, reads: tuple[int, ...], *, takes_over: bool) -> int:
        self._sizes.append(-(-size // _ALIGNMENT) * _ALIGNMENT)
        self._readers.append(reads)
        self._takes_over.append(takes_over)
        return len(self._sizes) - 1

    def peak_bytes(self) -> int:
        """The buffer that holds all of it. What nobody reads is kept to the end."""
        left = Counter(index for reads in self._readers for index in reads)
        arena = _Arena()
        places: dict[int, int] = {}
        for index, size in enumerate(self._sizes):
            reads = self._readers[index]
            place = None
            if self._takes_over[index]:
                for parent in reads:
                    is_last = left[parent] == 1 and parent in places
                    if is_last and self._sizes[parent] == size:
                        place = places.pop(parent)
                        break
            places[index] = arena.take(size) if place is None else place
            for parent in reads:
                left[parent] -= 1
                if left[parent] == 0 and parent in places:
                    arena.give(places.pop(parent), self._sizes[parent])
        return arena.peak


class _Arena:
    """Best fit among the gaps; the endless rest only where none is large enough."""

    def __init__(self) -> None:
        self.peak = 0
        self._gaps: list[tuple[int, int]] = [(0, _ENDLESS)]  # (start, end), ascending

    def take(self, size: int) -> int:
        if size == 0:
            return 0
        gaps = self._gaps
        fitting = [at for at, (start, end) in enumerate(gaps[:-1]) if end - start >= size]
        best = min(fitting, key=lambda at: (gaps[at][1] - gaps[at][0], -at), default=len(gaps) - 1)
        start, end = gaps[best]
        if start + size == end:
            del gaps[best]
        else:
            gaps[best] = (start + size, end)
        self.peak = max(self.peak, start + size)
        return start

    def give(self, start: int, size: int) -> None:
        if size == 0:
            return
        gaps, end = self._gaps, start + size
        at = next(at for at, gap in enumerate(gaps) if gap[0] >= end)
        if gaps[at][0] == end:
            end = gaps[at][1]
            del gaps[at]
        if at > 0 and gaps[at - 1][1] == start:
            at -= 1
            start = gaps[at][0]
            del gaps[at]
        gaps.insert(at, (start, end))
