"""What the next batch computes. Pure: sequences in, batches out, no clock and no llama.cpp.

Running sequences get a row each first; then waiting prompt tokens are computed, first come first
served, until `budget` of them are done, and the running ones are due again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

__all__ = ["Batch", "Chunk", "Scheduler", "Sequence"]


@dataclass(eq=False, slots=True)
class Sequence:
    """A request as the scheduler sees it: `computed` of `prompt_size` tokens are in memory."""

    prompt_size: int
    slot: int = -1
    computed: int = 0


S = TypeVar("S", bound=Sequence)


@dataclass(slots=True)
class Chunk(Generic[S]):
    """Prompt tokens `start` to `stop` of one sequence."""

    sequence: S
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        return self.stop == self.sequence.prompt_size


@dataclass(slots=True)
class Batch(Generic[S]):
    """One call of llama_decode: a row for each of `decode`, or `chunks` of equal length; both
    ascending by slot."""

    decode: list[S] = field(default_factory=list)
    chunks: list[Chunk[S]] = field(default_factory=list)


class Scheduler(Generic[S]):
    """`budget` prompt tokens between two rows of the running sequences; a pass through the model
    takes `pass_size` of them.

    Chunks are never mixed with rows of running sequences, and several go together only when they
    are of one length and fit one pass: in the partitioned layout llama.cpp takes anything else
    apart into passes of equal lengths, and a pass costs a walk over all weights.
    """

    def __init__(self, budget: int, pass_size: int) -> None:
        self.budget = budget
        self.pass_size = pass_size
        self.waiting: deque[S] = deque()
        self.prefilling: deque[S] = deque()
        self.decoding: list[S] = []
        self._left = budget
        """Prompt tokens still to be computed before the running sequences are due."""

    @property
    def has_work(self) -> bool:
        return bool(self.decoding or self.prefilling or self.waiting)

    def sequences(self) -> list[S]:
        """All, those that run first."""
        return [*self.decoding, *self.prefilling, *self.waiting]

    def enqueue(self, sequence: S) -> None:
        self.waiting.append(sequence)

    def start(self, slot: int, cached: int) -> S:
        """The sequence that waited longest has a slot which holds `cached` of its tokens."""
        sequence = self.waiting.popleft()
        sequence.slot, sequence.computed = slot, cached
        self.prefilling.append(sequence)
        return sequence

    def remove(self, sequence: S) -> None:
        """It ended, wherever it was."""
        for queue in (self.decoding, self.prefilling, self.waiting):
            if sequence in queue:
                queue.remove(sequence)
                return

    def next(self) -> Batch[S] | None:
        """The next batch, or None when nothing has a slot."""
        if not self.prefilling:
            self._left = 0
            return Batch(decode=self.decoding) if self.decoding else None
        if self.decoding and self._left < 2:
            self._left = self.budget
            return Batch(decode=self.decoding)
        if self._left < 2:
            self._left = self.budget
        return Batch(chunks=self._chunks())

    def _chunks(self) -> list[Chunk[S]]:
        """The first prompt's next chunk, with as long a one of each other that joins its pass."""
        first = self.prefilling[0]
        size = self._chunk_size(first.prompt_size - first.computed)
        room = min(self.pass_size, self._left) // size
        together = [first]
        for other in islice(self.prefilling, 1, None):
            if len(together) >= room:
                break
            remaining = other.prompt_size - other.computed
            if remaining == size or remaining >= size + 2:  # no pass for a single token later
                together.append(other)
        together.sort(key=lambda sequence: sequence.slot)
        return [Chunk(each, each.computed, each.computed + size) for each in together]

    def _chunk_size(self, remaining: int) -> int:
        """As much as the budget has left, but so that no pass is left with a single token, which
        has matrix kernels of its own: where it must be, one token over the budget."""
        most = min(remaining, self._left)
        for size in range(most, max(most - 4, 1), -1):
            if remaining - size != 1 and size % self.pass_size != 1:
                return size
        return min(remaining, 3)

    def computed(self, batch: Batch[S]) -> None:
        """A batch was computed; a prompt that is complete with it now runs."""
        for chunk in batch.chunks:
            sequence = chunk.sequence
            self._left -= chunk.stop - chunk.start
            sequence.computed = chunk.stop
            if chunk.is_last:
                self.prefilling.remove(sequence)
                position = sum(other.slot < sequence.slot for other in self.decoding)
                self.decoding.insert(position, sequence)
