"""Which texts the next pass computes. Pure: sizes in, choices out.

Every request that waits gets its turn: the one at the front has at least one text in the pass, the
others fill it, a text each in turn, and then the next one is at the front. So a request for one
text never waits for all the thousands of another.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Sequence
from operator import itemgetter

__all__ = ["Choice", "Passes"]

Choice = tuple[int, int]
"""A request, and which of its texts."""

_size = itemgetter(0)


class Passes:
    """`rows` tokens and `texts` texts to a pass; a text longer than that has one to itself."""

    def __init__(self, rows: int, texts: int) -> None:
        self._rows = rows
        self._texts = texts
        self._pending: dict[int, list[tuple[int, int]]] = {}  # (size, index), ascending
        self._turns: deque[int] = deque()

    def add(self, request: int, sizes: Sequence[int]) -> None:
        """A request's texts, by their sizes in tokens; at least one."""
        pending: list[tuple[int, int]] = []
        for index, size in enumerate(sizes):
            insort(pending, (size, -index))
        self._pending[request] = pending
        self._turns.append(request)

    def remove(self, request: int) -> None:
        """Forget what is left of a request; one that is not here has nothing left."""
        if self._pending.pop(request, None) is not None:
            self._turns.remove(request)

    @property
    def waiting(self) -> int:
        """Requests with texts not yet chosen."""
        return len(self._turns)

    def next(self) -> list[Choice]:
        """The texts of one pass, none when nothing waits. Equal ones in the order they came."""
        if not self._turns:
            return []
        front = self._pending[self._turns[0]]
        if front[-1][0] > self._rows:
            chosen = [self._take(self._turns[0], len(front) - 1)]
        else:
            chosen = self._fill()
        self._turns.rotate(-1)
        for request in [request for request in self._turns if not self._pending[request]]:
            self.remove(request)
        return chosen

    def _fill(self) -> list[Choice]:
        chosen: list[Choice] = []
        room = self._rows
        is_filling = True
        while is_filling:
            is_filling = False
            for request in self._turns:
                pending = self._pending[request]
                at = bisect_right(pending, room, key=_size) - 1  # the longest that fits
                if at < 0 or len(chosen) == self._texts:
                    continue
                room -= pending[at][0]
                chosen.append(self._take(request, at))
                is_filling = True
        return chosen

    def _take(self, request: int, at: int) -> Choice:
        _, index = self._pending[request].pop(at)
        return request, -index
