"""Which sequence holds which tokens, and which one a new prompt gets. Pure: it decides, `memory`
carries out.

Two layouts behind one face: `slots`, where each sequence has cells of its own, and `pool`, where
all share them. In both a finished sequence's tokens stay as cache until its place is needed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cortex_core.wire.ipc import CacheSource
from neuron.worker.host_cache import HostCache, Parked
from neuron.worker.prefix_tree import PrefixTree
from neuron.worker.tile import Tile

__all__ = [
    "KV",
    "RECOMPUTED",
    "SMALL",
    "WORTH",
    "Copy",
    "Op",
    "Park",
    "Placement",
    "Restore",
    "Trim",
    "Wait",
    "Want",
]

Int32s = npt.NDArray[np.int32]

RECOMPUTED = 2
"""Tokens at a prompt's end that are computed even when cached. The last one's logits are needed;
a batch of two takes the same matrix kernels as a long prompt (a single row has its own), so that
an answer from cache equals a cold one where llama.cpp's kernels allow it."""

SMALL = 256
"""Tokens that are computed again sooner than a gap between slots costs: one more pass over the
weights for every token of an answer, against a fraction of that per token of a prompt."""

WORTH = 32
"""Tokens a prefix must have, or have more than another, to be copied, awaited, parked or brought
back: what all chats of a template begin with is not worth the trouble."""

_TAIL = 96
"""Tokens at a sequence's end that are worth parking the whole of it for their sake alone."""

_FORGOTTEN = 64
"""Sequences whose tokens are remembered after their data went, to say so on a miss."""


@dataclass(slots=True)
class Park:
    """Save the sequence to host memory, as `tokens`, before its cells are taken."""

    sequence: int
    tokens: Int32s


@dataclass(slots=True)
class Trim:
    sequence: int
    length: int


@dataclass(slots=True)
class Copy:
    """The first `length` tokens of `source` into the empty `target`."""

    source: int
    target: int
    length: int


@dataclass(slots=True)
class Restore:
    """A parked sequence into an empty one, then keep `length` tokens."""

    entry: Parked
    sequence: int
    length: int


Op = Park | Trim | Copy | Restore


@dataclass(slots=True)
class Placement:
    """A sequence for the prompt, which holds `cached` of its tokens once `ops` are done."""

    sequence: int
    cached: int = 0
    source: CacheSource = "none"
    miss: str = ""
    ops: list[Op] = field(default_factory=list)


@dataclass(slots=True)
class Want:
    """A prompt that asks for a sequence: who shares how much of it (`shared`), and how much of it
    at most may come from a cache (`limit`)."""

    prompt: Int32s
    shared: dict[int, int]
    limit: int


class _Busy:
    """A sequence in use: `planned` tokens of prompt are or will be computed, with a snapshot at
    each of `stops`. `rank` 0 goes before 1."""

    __slots__ = ("planned", "rank", "stops")

    def __init__(self, planned: int, rank: int, stops: tuple[int, ...]) -> None:
        self.planned = planned
        self.rank = rank
        self.stops = stops


@dataclass(slots=True)
class Wait:
    """Another's prefill will have `length` tokens of the prompt; then it is time to ask again."""

    sequence: int
    length: int
    holder: _Busy


class KV(ABC):
    """Sequences of at most `context` tokens, `parallel` of them in use. `can_trim`: the memory can
    drop a sequence's tail; where it cannot, a sequence is of use only to a prompt that continues
    all of it. Parked ones are in `host` under `space`, the name of the model file. `tile`: where a
    pass of some size pays, and cached tokens are computed again to fill it."""

    def __init__(
        self,
        parallel: int,
        context: int,
        *,
        sequences: int,
        can_trim: bool,
        host: HostCache | None,
        space: str,
        tile: Tile | None = None,
    ) -> None:
        self.parallel = parallel
        self.context = context
        self.can_trim = can_trim
        self.space = space
        self._tile = tile
        self.host = HostCache(0) if host is None else host
        self._tokens: Int32s = np.zeros((sequences, context), np.int32)  # pages come as used
        self.lengths: Int32s = np.zeros(sequences, np.int32)
        self._busy: dict[int, _Busy] = {}
        self._tree: PrefixTree[int] = PrefixTree()
        self._indexed = [0] * sequences
        self._forgotten: PrefixTree[int] = PrefixTree()
        self._forgotten_keys: OrderedDict[int, None] = OrderedDict()
        self._released = [0] * sequences
        self._clock = 0

    # what a layout decides

    @property
    @abstractmethod
    def cells(self) -> int:
        """In all."""

    @property
    @abstractmethod
    def cells_running(self) -> int:
        """Seen by sequences in use. Any thread may ask: a moment's approximation."""

    @property
    @abstractmethod
    def cells_used(self) -> int:
        """Seen by any sequence."""

    @property
    @abstractmethod
    def _copy_worth(self) -> int:
        """Tokens that a prefix must have more than another to be copied or awaited."""

    @abstractmethod
    def _place(self, want: Want, source: int, best: int, entry: Parked | None) -> Placement | None:
        """A sequence for a prompt of which `source` has `best` tokens, the longest prefix; or of
        which `entry` has them: then an empty one with room for all of the entry."""

    def make_room(self, count: int) -> list[Op] | None:
        """What to evict so that `count` more cells can be written; None if that is not enough."""
        return []

    def bridges(self, sequences: list[int], *, widest: int, cells: int) -> list[int]:
        """Ended sequences that are worth a throw-away row each."""
        return []

    # facts

    @property
    def has_free(self) -> bool:
        return len(self._busy) < self.parallel

    def tokens(self, sequence: int) -> Int32s:
        """The tokens whose KV the sequence holds (a view)."""
        return self._tokens[sequence, : self.lengths[sequence]]

    def is_on_its_way(self, wait: Wait) -> bool:
        """Whether what is waited for is still being computed."""
        holder = self._busy.get(wait.sequence)
        return holder is wait.holder and self.lengths[wait.sequence] < wait.length

    # placing

    def acquire(
        self,
        prompt: Int32s,
        *,
        needs_logits: bool = True,
        rank: int = 0,
        stops: tuple[int, ...] = (),
    ) -> Placement | Wait | None:
        """A sequence for the prompt; or whose prefill to wait for; or None while there is no room.

        `needs_logits` False: the prompt's last token need not be computed again.
        """
        if not self.has_free:
            return None
        limit = max(len(prompt) - RECOMPUTED, 0) if needs_logits else len(prompt)
        self._index_answers()
        shared = self._tree.shared(prompt)
        parked = self.host.find(self.space, prompt, whole=not self.can_trim)
        placement = self._choose(Want(prompt, shared, limit), rank, parked)
        has_room = placement is not None
        if not has_room and parked:  # it may be longer than the prompt, and than the whole cache
            placement = self._choose(Want(prompt, shared, limit), rank, None)
        if not isinstance(placement, Placement):
            return placement
        if placement.cached == 0:
            placement.miss = self._why_missed(prompt, shared) if has_room else "unusable"
        sequence, cached = placement.sequence, placement.cached
        self._tokens[sequence, :cached] = prompt[:cached]
        self.lengths[sequence] = cached
        self._busy[sequence] = _Busy(len(prompt), rank, stops)
        self._tree.put(sequence, prompt)
        self._indexed[sequence] = len(prompt)
        return placement

    def _choose(
        self, want: Want, rank: int, parked: tuple[int, Parked] | None
    ) -> Placement | Wait | None:
        """By the longest prefix: of a sequence, of one that is on its way, or of what is parked."""
        shared, limit = want.shared, want.limit
        best, source = self._longest(shared, limit)
        in_host = min(parked[0], limit) if parked else 0
        if parked and not self.can_trim and parked[0] > limit:
            in_host = 0
        coming = self._coming(shared, limit, rank)
        if coming is not None and coming.length >= max(best, in_host) + self._copy_worth:
            return coming
        reused = max(best, in_host)
        if self._tile and (start := self._tile.start(len(want.prompt), reused)) < reused:
            want.limit, in_host = start, min(in_host, start)
            best, source = self._longest(shared, start)
        entry = parked[1] if parked and in_host >= best + WORTH else None
        if entry is not None:
            source, best = -1, in_host
        placement = self._place(want, source, best, entry)
        if placement is not None and entry is not None:
            placement.ops.append(Restore(entry, placement.sequence, in_host))
            placement.cached, placement.source = in_host, "host"
        return placement

    def _longest(self, shared: dict[int, int], limit: int) -> tuple[int, int]:
        """(length, sequence) of the longest prefix that is computed; one that has ended first."""
        best, source = 0, -1
        for sequence in shared:
            usable = self._usable(sequence, shared, limit)
            if usable > best or (usable == best > 0 and source in self._busy):
                best, source = usable, sequence
        return best, source

    def _usable(self, sequence: int, shared: dict[int, int], limit: int) -> int:
        held = int(self.lengths[sequence])
        usable = min(shared.get(sequence, 0), held, limit)
        if not self.can_trim and (usable != held or sequence in self._busy):
            return 0
        return usable

    def _coming(self, shared: dict[int, int], limit: int, rank: int) -> Wait | None:
        """The longest prefix that a prefill in progress will have; never one that goes after us."""
        best: Wait | None = None
        for sequence, common in shared.items():
            holder = self._busy.get(sequence)
            if holder is None or holder.rank > rank:
                continue
            target = min(common, holder.planned, limit)
            if not self.can_trim:
                target = max((stop for stop in holder.stops if stop <= target), default=0)
            if self.lengths[sequence] < target and (best is None or target > best.length):
                best = Wait(sequence, target, holder)
        return best

    def _why_missed(self, prompt: Int32s, shared: dict[int, int]) -> str:
        if len(prompt) <= WORTH:
            return "short"
        if not self.can_trim and max(shared.values(), default=0) >= WORTH:
            return "uncuttable"
        if max(self._forgotten.shared(prompt).values(), default=0) >= WORTH:
            return "evicted"
        return "unseen" if len(self._tree) or len(self._forgotten) else "empty"

    # changing

    def _kind(self, source: int) -> CacheSource:
        return "live" if source in self._busy else "cache"

    def _give_up(self, sequence: int, length: int) -> list[Op]:
        """A sequence that has ended keeps `length` tokens; the rest is parked if it is the only
        copy and worth it."""
        ops: list[Op] = []
        held = self.tokens(sequence)
        if len(held) == length:
            return ops
        if len(held) - length >= WORTH:
            tokens = held.copy()
            self._remember(tokens)
            if self._is_missed(sequence, tokens):
                ops.append(Park(sequence, tokens))
        ops.append(Trim(sequence, length))
        self.lengths[sequence] = length
        self._tree.cut(sequence, length) if length else self._tree.drop(sequence)
        self._indexed[sequence] = length
        return ops

    def _is_missed(self, sequence: int, tokens: Int32s) -> bool:
        """Whether parking pays: nobody else has the tokens, but for a tail that is computed again
        sooner than all of them are copied. A burst of chats with one long system prompt is not
        parked once for each chat."""
        in_host = self.host.shared(self.space, tokens, whole=not self.can_trim)
        if not self.can_trim:
            return in_host < len(tokens)
        elsewhere = max(
            (
                min(length, int(self.lengths[other]))
                for other, length in self._tree.shared(tokens).items()
                if other != sequence
            ),
            default=0,
        )
        alone = len(tokens) - max(in_host, elsewhere)
        return alone >= _TAIL or (alone >= WORTH and 8 * alone >= len(tokens))

    def _remember(self, tokens: Int32s) -> None:
        self._clock += 1
        self._forgotten.put(self._clock, tokens)
        self._forgotten_keys[self._clock] = None
        if len(self._forgotten_keys) > _FORGOTTEN:
            oldest, _ = self._forgotten_keys.popitem(last=False)
            self._forgotten.drop(oldest)

    def _index_answers(self) -> None:
        """Tokens generated since the last look go into the index."""
        for sequence in self._busy:
            length, indexed = int(self.lengths[sequence]), self._indexed[sequence]
            if length > indexed:
                self._tree.extend(sequence, self._tokens[sequence, indexed:length])
                self._indexed[sequence] = length

    def clear(self, sequence: int) -> None:
        """The sequence's memory holds nothing any more; it may be in use."""
        self.lengths[sequence] = 0
        if sequence not in self._busy:
            self._tree.drop(sequence)
            self._indexed[sequence] = 0

    def write(self, sequence: int, tokens: Int32s) -> None:
        """A part of a prompt was computed."""
        start = self.lengths[sequence]
        self._tokens[sequence, start : start + len(tokens)] = tokens
        self.lengths[sequence] = start + len(tokens)

    def append(self, sequences: Int32s, tokens: Int32s) -> None:
        """One more token was computed in each of `sequences`."""
        self._tokens[sequences, self.lengths[sequences]] = tokens
        self.lengths[sequences] += 1

    def release(self, sequence: int) -> None:
        """It ended; what it holds stays as cache."""
        self._index_answers()
        length = int(self.lengths[sequence])
        if length < self._indexed[sequence]:
            self._tree.cut(sequence, length) if length else self._tree.drop(sequence)
            self._indexed[sequence] = length
        del self._busy[sequence]
        self._clock += 1
        self._released[sequence] = self._clock

    def empty(self) -> list[Op]:
        """Give up all that has ended, the least recently used first."""
        return [op for each in self._ended() for op in self._give_up(each, 0)]

    def _ended(self) -> list[int]:
        """Sequences that hold something and are not in use, those idle for longest first."""
        held = np.flatnonzero(self.lengths).tolist()
        return sorted(set(held) - self._busy.keys(), key=lambda each: self._released[each])
