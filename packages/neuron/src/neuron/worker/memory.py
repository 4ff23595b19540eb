"""The KV cache of one model: does what `kv` decides, on llama.cpp's memory and the host's."""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt

from neuron.worker import llama
from neuron.worker.host_cache import Parked
from neuron.worker.kv import KV, Copy, Op, Park, Placement, Restore, Trim, Wait

__all__ = ["Memory"]

Int32s = npt.NDArray[np.int32]


class Memory:
    """For one thread: the engine's."""

    def __init__(self, context: llama.Context, kv: KV) -> None:
        self.kv = kv
        self._context = context

    def acquire(
        self,
        prompt: Int32s,
        *,
        needs_logits: bool = True,
        rank: int = 0,
        stops: tuple[int, ...] = (),
    ) -> Placement | Wait | None:
        """As `KV.acquire`, with everything in place. What turns out not to be there after all
        counts as a miss, and its cells have to be found like any others."""
        placement = self.kv.acquire(prompt, needs_logits=needs_logits, rank=rank, stops=stops)
        if not isinstance(placement, Placement):
            return placement
        sequence = placement.sequence
        is_sound = self._carry_out(placement.ops)
        if is_sound and placement.cached:
            is_sound = self._context.holds(sequence, placement.cached)
        if not is_sound:
            self._context.trim(sequence, 0)
            self.kv.clear(sequence)
            placement.cached, placement.source, placement.miss = 0, "none", "unusable"
            if not self.make_room(0):  # for what was to be shared
                self.kv.release(sequence)
                return None
        return placement

    def make_room(self, count: int) -> bool:
        """Evict what has ended until `count` more cells can be written; False if none is left."""
        ops = self.kv.make_room(count)
        if ops is None:
            return False
        self._carry_out(ops)
        return True

    def suspend(self, sequence: int, tokens: Int32s) -> Parked | None:
        """Move a sequence in use out of the way; the request goes on from what is returned, or
        from its tokens alone."""
        entry = self._park(sequence, tokens, is_pinned=True)
        self.kv.release(sequence)
        self._context.trim(sequence, 0)
        self.kv.clear(sequence)
        return entry

    def snapshot(self, sequence: int) -> None:
        """Park a copy of what a sequence in use holds, for memory that cannot be cut."""
        tokens = self.kv.tokens(sequence).copy()
        if not self.kv.host.shared(self.kv.space, tokens, whole=True):
            self._park(sequence, tokens)

    def park_all(self) -> None:
        """Everything that has ended goes to host memory."""
        self._carry_out(self.kv.empty())

    def drop(self, sequence: int) -> None:
        """A sequence that has ended, and nothing of which is trusted as cache."""
        self._context.trim(sequence, 0)
        self.kv.clear(sequence)

    def _carry_out(self, ops: list[Op]) -> bool:
        """False if a prefix could not be put where it was wanted."""
        is_sound = True
        context = self._context
        for op in ops:
            match op:
                case Park():
                    if context.holds(op.sequence, len(op.tokens)):
                        self._park(op.sequence, op.tokens)
                case Trim():
                    if not context.trim(op.sequence, op.length):
                        is_sound = False
                case Copy():
                    if context.holds(op.source, op.length):
                        context.copy(op.source, op.target, op.length)
                    else:
                        self.kv.clear(op.target)
                case Restore():
                    if not context.restore(op.sequence, op.entry.data):
                        self.kv.host.drop(op.entry)
                        is_sound = False
                    elif not context.trim(op.sequence, op.length):
                        is_sound = False
        return is_sound

    def _park(self, sequence: int, tokens: Int32s, *, is_pinned: bool = False) -> Parked | None:
        host, space = self.kv.host, self.kv.space
        if not is_pinned and not host.budget_bytes:
            return None
        try:
            data = self._context.save(sequence)
        except llama.LlamaError as error:
            sys.stderr.write(f"not parked: {error.message}\n")
            return None
        if self.kv.can_trim and not is_pinned:
            host.drop_prefixes(space, tokens)
        return host.put(space, tokens, data, is_pinned=is_pinned)
