"""How many cells of one pool are in use, when sequences share them. Pure.

A mirror of llama.cpp's unified cache: a cell carries the set of sequences that see it and is free
when the set is empty. Cells that came together and are seen by the same sequences are one run.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Cells"]


class _Run:
    __slots__ = ("holders", "length")

    def __init__(self, length: int, holders: set[int]) -> None:
        self.length = length
        self.holders = holders


class Cells:
    """`capacity` cells. `used` counts each cell once, however many sequences see it."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self._runs: dict[int, list[_Run]] = {}

    @property
    def free(self) -> int:
        return self.capacity - self.used

    def length(self, sequence: int) -> int:
        return sum(run.length for run in self._runs.get(sequence, ()))

    def held_by(self, sequences: Iterable[int]) -> int:
        """Cells that at least one of `sequences` sees."""
        runs = {id(run): run for each in sequences for run in self._runs.get(each, ())}
        return sum(run.length for run in runs.values())

    def grow(self, sequence: int, count: int) -> None:
        """`count` new cells at the sequence's end."""
        if count <= 0:
            return
        runs = self._runs.setdefault(sequence, [])
        if runs and len(runs[-1].holders) == 1:
            runs[-1].length += count
        else:
            runs.append(_Run(count, {sequence}))
        self.used += count

    def share(self, source: int, target: int, length: int) -> None:
        """`target`, which holds nothing, sees the first `length` cells of `source`."""
        assert not self._runs.get(target)
        self._cut_at(source, length)
        shared: list[_Run] = []
        for run in self._runs.get(source, ()):
            if length <= 0:
                break
            run.holders.add(target)
            shared.append(run)
            length -= run.length
        self._runs[target] = shared

    def trim(self, sequence: int, length: int) -> None:
        """The sequence sees only its first `length` cells."""
        self._cut_at(sequence, length)
        kept: list[_Run] = []
        for run in self._runs.get(sequence, ()):
            if length > 0:
                kept.append(run)
                length -= run.length
                continue
            run.holders.discard(sequence)
            if not run.holders:
                self.used -= run.length
        self._runs[sequence] = kept

    def _cut_at(self, sequence: int, length: int) -> None:
        """Make `length` a border between two runs, for all who hold the run it falls into."""
        for run in self._runs.get(sequence, ()):
            if length <= 0:
                return
            if length < run.length:
                tail = _Run(run.length - length, set(run.holders))
                run.length = length
                for holder in run.holders:
                    runs = self._runs[holder]
                    runs.insert(runs.index(run) + 1, tail)
                return
            length -= run.length
