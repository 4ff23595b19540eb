"""What the next batch computes, and who is next. Pure: sequences in, batches out, no clock and no
llama.cpp.

Running sequences get a row each first; then waiting prompt tokens are computed until `budget` of
them are done, and the running ones are due again. While anyone runs, the budget is what fits
`max_step_ms` at the speed lately measured.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from itertools import islice
from typing import Generic, TypeVar

from neuron.worker.tile import TILE

__all__ = ["Batch", "Chunk", "Scheduler", "Sequence"]

_MEMORY = 0.7
"""Weight of what is known of the prefill's speed against the newest chunk."""


@dataclass(eq=False, slots=True)
class Sequence:
    """A request as the scheduler sees it: `computed` of `prompt_size` tokens are in memory.
    `rank` 0 goes before 1. A prefill pauses at each of `stops`."""

    prompt_size: int
    slot: int = -1
    computed: int = 0
    rank: int = 0
    caller: str = ""
    stops: tuple[int, ...] = ()
    order: int = 0
    """By arrival; a sequence that was suspended goes first."""
    due: int = 0
    """How many prompt tokens of anybody should be computed by the time its own are."""
    is_paused: bool = False
    """Nobody takes its tokens: it gets no row."""


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
    """One call of llama_decode: a row for each of `decode`, ascending by slot, or `chunks`."""

    decode: list[S] = field(default_factory=list)
    chunks: list[Chunk[S]] = field(default_factory=list)


class Scheduler(Generic[S]):
    """`batch` prompt tokens at most between two rows of the running sequences; a pass through the
    model takes `pass_size` of them.

    Chunks are never mixed with rows of running sequences. Where sequences have cells of their own
    (`is_unified` False), several chunks go together only when they are of one length and fit one
    pass: llama.cpp would take anything else apart into passes of equal lengths, and a pass costs a
    walk over all weights. Chunks of one pool go together as they come.
    """

    def __init__(
        self, batch: int, pass_size: int, *, max_step_ms: float = 0, is_unified: bool = False
    ) -> None:
        """`max_step_ms` 0: no bound."""
        self.batch = batch
        self.pass_size = pass_size
        self.waiting: list[S] = []
        self.prefilling: list[S] = []
        self.decoding: list[S] = []
        self.paused: list[S] = []
        """With a slot or, once others needed that, without; who was paused first is first."""
        self.changes = 0
        """Grows whenever who runs has changed, or where."""
        self._max_step_ms = max_step_ms
        self._is_unified = is_unified
        self._token_ms = 0.0
        self._is_speed_known = False
        self._left = 0
        """Prompt tokens still to be computed before the running sequences are due."""
        self._arrivals = 0
        self._computed = 0
        """Prompt tokens of anybody, ever."""
        self._active: Counter[str] = Counter()

    # who

    @property
    def has_work(self) -> bool:
        """Paused sequences are none."""
        return bool(self.decoding or self.prefilling or self.waiting)

    def enqueue(self, sequence: S) -> None:
        self._arrivals += 1
        sequence.order = self._arrivals
        self.waiting.append(sequence)

    def candidates(self) -> Iterator[S]:
        """Who waits, in the order in which they should start: by rank, then whose caller has the
        fewest sequences now, then by arrival. One that is started meanwhile counts for its caller
        at once, so a burst takes turns with everybody else."""
        heap = [(self._turn(each), place, each) for place, each in enumerate(self.waiting)]
        heapify(heap)
        while heap:
            turn, place, first = heap[0]
            if (now := self._turn(first)) > turn:
                heapreplace(heap, (now, place, first))
            else:
                heappop(heap)
                yield first

    def _turn(self, sequence: S) -> tuple[bool, int, int, int]:
        return sequence.order >= 0, sequence.rank, self._active[sequence.caller], sequence.order

    def start(self, sequence: S, slot: int, cached: int) -> None:
        """A waiting sequence has a slot which holds `cached` of its tokens."""
        self.waiting.remove(sequence)
        sequence.slot, sequence.computed = slot, cached
        self._active[sequence.caller] += 1
        if not self.prefilling:
            self._left = 0  # the running ones are due: to find a place may have taken a while
        if cached < sequence.prompt_size:
            sequence.due = self._begins(sequence) + sequence.prompt_size - cached
            insort(self.prefilling, sequence, key=lambda s: (s.rank, s.order >= 0, s.due, s.order))
        else:
            self._run(sequence)

    def _begins(self, sequence: S) -> int:
        """How many prompt tokens will have been computed when its turn begins: as many as have
        been, or as the last prompt of its caller is due with. So a short prompt goes before what
        is left of a long one and before a burst, prompts of one length go one after the other, and
        nobody is overtaken for ever by those who come later."""
        caller = sequence.rank, sequence.caller
        before = (each.due for each in self.prefilling if (each.rank, each.caller) == caller)
        return max(self._computed, max(before, default=0))

    def suspend(self, sequence: S, prompt_size: int) -> None:
        """It lost its slot; `prompt_size` tokens will have to be there for it to go on. It is the
        next to start, before all who never have."""
        self.remove(sequence)
        sequence.slot, sequence.computed, sequence.prompt_size = -1, 0, prompt_size
        sequence.stops = ()
        sequence.order = -self._arrivals + max(sequence.order, 0) - 1
        (self.paused if sequence.is_paused else self.waiting).append(sequence)

    def pause(self, sequence: S) -> None:
        """It gets no row until `resume`. A prompt that is being computed is computed first."""
        sequence.is_paused = True
        for queue in (self.decoding, self.waiting):
            if sequence in queue:
                queue.remove(sequence)
                self.paused.append(sequence)
                self.changes += 1

    def resume(self, sequence: S) -> None:
        """It goes on; one without a slot is the next to start."""
        sequence.is_paused = False
        if sequence in self.paused:
            self.paused.remove(sequence)
            if sequence.slot < 0:
                self.waiting.append(sequence)
            else:
                self._run(sequence)

    def first_paused(self) -> S | None:
        """Of the paused ones with a slot, who has been so for longest."""
        return next((sequence for sequence in self.paused if sequence.slot >= 0), None)

    def youngest(self) -> S | None:
        """Of those with a slot that are not paused, who came last; ranks that go last, first."""
        active = [*self.prefilling, *self.decoding]
        return max(active, key=lambda s: (s.rank, s.order), default=None)

    def remove(self, sequence: S) -> None:
        """It ended, wherever it was."""
        for queue in (self.waiting, self.paused, self.decoding, self.prefilling):
            if sequence in queue:
                queue.remove(sequence)
                self.changes += 1
                if sequence.slot >= 0:
                    self._active[sequence.caller] -= 1
                    if not self._active[sequence.caller]:
                        del self._active[sequence.caller]

    # what

    @property
    def budget(self) -> int:
        """Prompt tokens to compute before the running sequences are due; a tile at least, however
        slow a step is: fewer take longer, and every chunk walks over all weights."""
        if not self.decoding or not self._max_step_ms:
            return self.batch
        fits = int(self._max_step_ms / self._token_ms) if self._token_ms else 0
        return min(max(fits, TILE), self.batch)

    @property
    def prefill_s(self) -> float:
        """How long the prompts that have a slot will take, as far as that is known."""
        left = sum(sequence.prompt_size - sequence.computed for sequence in self.prefilling)
        return left * self._token_ms / 1000

    def measured(self, tokens: int, seconds: float) -> None:
        """A chunk of a prompt took so long."""
        token_ms = 1000 * seconds / tokens
        if tokens < TILE:  # mostly the cost of a pass, whatever its size; better than nothing
            if not self._is_speed_known:
                self._token_ms = min(token_ms, self._token_ms or token_ms)
            return
        known = self._token_ms if self._is_speed_known else token_ms
        self._token_ms = _MEMORY * known + (1 - _MEMORY) * token_ms
        self._is_speed_known = True

    def next(self) -> Batch[S] | None:
        """The next batch, or None when nothing has a slot."""
        if not self.prefilling:
            self._left = 0
            return Batch(decode=self.decoding) if self.decoding else None
        budget = self.budget
        is_spent = self._left < (TILE if budget >= TILE else 2)
        if is_spent and self.decoding:
            self._left = budget
            return Batch(decode=self.decoding)
        # What began with nobody running was promised a full batch; now somebody may wait for it.
        self._left = budget if is_spent else min(self._left, budget)
        return Batch(chunks=self._packed() if self._is_unified else self._chunks())

    def _chunks(self) -> list[Chunk[S]]:
        """The first prompt's next chunk, with as long a one of each other that joins its pass."""
        first = self.prefilling[0]
        size = self._chunk_size(first, self._left, self.batch)
        room = min(self.pass_size, self._left) // size
        together = [first]
        if not first.stops:
            for other in islice(self.prefilling, 1, None):
                if len(together) >= room:
                    break
                remaining = other.prompt_size - other.computed
                if remaining == size or remaining >= size + 2:  # no pass for a single token later
                    together.append(other)
        together.sort(key=lambda sequence: sequence.slot)
        return [Chunk(each, each.computed, each.computed + size) for each in together]

    def _packed(self) -> list[Chunk[S]]:
        """Chunks of as many prompts as the budget has room for, first come first served."""
        chunks: list[Chunk[S]] = []
        left = min(self._left, self.batch)
        for sequence in self.prefilling:
            if chunks and left < min(TILE, sequence.prompt_size - sequence.computed):
                break
            size = self._chunk_size(sequence, left, left if chunks else self.batch)
            chunks.append(Chunk(sequence, sequence.computed, sequence.computed + size))
            left -= size
            if left < 2:
                break
        return chunks

    def _chunk_size(self, sequence: S, left: int, room: int) -> int:
        """As much as the budget has `left`, but so that what remains is whole tiles: the odd ones
        are computed first, where they attend over least. A tile over the budget, if need be, but
        never more than the batch has `room` for. Below a tile, so that no pass is left with a
        single token, which has matrix kernels of its own: where it must be, one token over the
        budget."""
        remaining = sequence.prompt_size - sequence.computed
        stops = [stop for stop in sequence.stops if stop > sequence.computed]
        if stops:
            return min(stops[0] - sequence.computed, remaining, left)
        if remaining > left >= TILE:
            size = left - (left - remaining) % TILE
            if size < TILE or size + TILE <= left + left // 8:
                size += TILE  # a little over the budget, sooner than far below it
            if size % self.pass_size == 1 or size > room:
                size -= TILE
            if size >= 2:
                return size
        most = min(remaining, left)
        for size in range(most, max(most - 4, 1), -1):
            if remaining - size != 1 and size % self.pass_size != 1:
                return size
        return min(remaining, 3)

    def computed(self, batch: Batch[S]) -> None:
        """A batch was computed; a prompt that is complete with it now runs."""
        for chunk in batch.chunks:
            sequence = chunk.sequence
            self._left -= chunk.stop - chunk.start
            self._computed += chunk.stop - chunk.start
            sequence.computed = chunk.stop
            if chunk.is_last:
                self.prefilling.remove(sequence)
                self._run(sequence)

    def _run(self, sequence: S) -> None:
        if sequence.is_paused:
            self.paused.append(sequence)
        else:
            insort(self.decoding, sequence, key=lambda s: s.slot)
            self.changes += 1
