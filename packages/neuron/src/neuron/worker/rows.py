"""The batch in which every running sequence computes one token: laid out once, and kept in the
context's arrays until a sequence comes or goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from neuron.worker.kv import KV
from neuron.worker.llama import Context
from neuron.worker.stream import Stream

__all__ = ["Rows"]


class Rows:
    """A row for each of `streams` (ascending by slot), and a throw-away one for each bridge."""

    def __init__(
        self,
        streams: Sequence[Stream],
        context: Context,
        kv: KV,
        *,
        end_ids: npt.NDArray[np.int32],
        widest_bridge: int,
    ) -> None:
        self.streams = list(streams)
        self._context = context
        self._kv = kv
        slots = [stream.slot for stream in streams]
        self._bridges = kv.bridges(slots, widest=widest_bridge, cells=context.cells)
        every = np.array(sorted(slots + self._bridges), np.int32)
        self.size = size = len(every)
        self._slots = np.array(slots, np.int32)
        self._every = every
        self._at: slice | np.ndarray = slice(0, size)
        if self._bridges:
            self._at = np.searchsorted(every, self._slots)
        context.sequences[:size] = every
        context.tokens[:size] = 0
        context.tokens[self._at] = [stream.token for stream in streams]
        context.outputs[:size] = 0
        context.outputs[self._at] = 1
        self.is_plain = all(stream.is_plain for stream in streams)
        unending = [row for row, stream in enumerate(streams) if stream.is_unending]
        self._masked = (np.array(unending)[:, None], end_ids) if unending else None

    def prepare(self) -> None:
        """For the next decode; the tokens are there already."""
        self._context.positions[: self.size] = self._kv.lengths[self._every]

    def logits(self) -> npt.NDArray[np.float32]:
        """After the decode: (streams, vocabulary). What the rows wrote is on the books now."""
        context = self._context
        for slot in self._bridges:
            context.trim(slot, int(self._kv.lengths[slot]))
        self._kv.append(self._slots, context.tokens[self._at])
        logits = context.logits(len(self.streams))
        if self._masked is not None:
            logits[self._masked] = -np.inf
        return logits

    def advance(self, tokens: Sequence[int]) -> None:
        """The tokens of the next decode."""
        self._context.tokens[self._at] = tokens
