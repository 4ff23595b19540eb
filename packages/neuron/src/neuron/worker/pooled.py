"""A llama_context that gives each text one vector. Like `llama`, a thin, typed face: no policy."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from neuron.models.pooling import MEAN_POOLING, PassPlan
from neuron.worker import llama
from neuron.worker.llama import Int32s, LlamaError, Model, take_lines

__all__ = ["PooledContext"]

Floats = npt.NDArray[np.float32]

# Through `llama`, which must be imported before the library is.
lib = llama.lib  # pyright: ignore[reportPrivateImportUsage]

KV_TYPES = llama._KV_TYPES  # pyright: ignore[reportPrivateUsage]
_NONE, _RANK = 0, 4  # llama_pooling_type
_MOST_TEXTS = 64  # per pass; each costs a row of the pooling matrix, used or not


class PooledContext:
    """Belongs to one thread. `width` numbers come of each text, `texts` of which go into a pass
    of `plan.rows` tokens."""

    def __init__(
        self,
        model: Model,
        plan: PassPlan,
        *,
        threads: int,
        flash_attention: bool | None,
        kv_type: str = "f16",
    ) -> None:
        """`kv_type` is for causal models; the others keep no KV. Raises LlamaError."""
        self.plan = plan
        self.texts = _MOST_TEXTS
        params = lib.llama_context_default_params()
        # One pool of cells: a text of any length may use them all. Models without a causal mask
        # have none; there n_ctx only bounds positions.
        params.n_ctx = max(plan.context, plan.rows)
        params.kv_unified = True
        params.n_seq_max = self.texts
        params.n_batch = params.n_ubatch = plan.rows
        params.n_outputs_max = plan.rows
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = KV_TYPES[kv_type]
        params.embeddings = True
        params.no_perf = True
        params.flash_attn_type = -1 if flash_attention is None else int(flash_attention)
        handle = self._open(model, params)
        if lib.llama_pooling_type(handle) == _NONE:  # an encoder that does not say how it pools
            lib.llama_free(handle)
            params.pooling_type = MEAN_POOLING
            handle = self._open(model, params)
        self.handle: Any = handle
        self._memory: Any = lib.llama_get_memory(handle)
        is_rank = lib.llama_pooling_type(handle) == _RANK
        count = lib.llama_model_n_cls_out if is_rank else lib.llama_model_n_embd_out
        self.width = int(count(model.handle))

        rows = plan.rows
        self._tokens: Int32s = np.zeros(rows, np.int32)
        self._positions: Int32s = np.zeros(rows, np.int32)
        self._sequences: Int32s = np.zeros(rows, np.int32)
        self._outputs = np.ones(rows, np.int8)
        self._counts = np.ones(rows, np.int32)
        # The C batch wants a pointer per row; they point into `sequences` once and for all.
        self._pointers = self._sequences.ctypes.data + 4 * np.arange(rows, dtype=np.uintp)
        int32s = ctypes.POINTER(ctypes.c_int32)
        self._c_batch = lib.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(int32s),
            pos=self._positions.ctypes.data_as(int32s),
            n_seq_id=self._counts.ctypes.data_as(int32s),
            seq_id=self._pointers.ctypes.data_as(ctypes.POINTER(int32s)),
            logits=self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    @staticmethod
    def _open(model: Model, params: Any) -> Any:
        take_lines()
        llama.take_buffers()  # of one that was opened in vain
        handle = lib.llama_init_from_model(model.handle, params)
        if not handle:
            raise LlamaError("llama.cpp cannot create the context", take_lines())
        return handle

    def compute(self, texts: Sequence[Int32s]) -> tuple[int, Floats]:
        """llama_decode's code, 0 = done, and (texts, width) numbers as the model pools them.

        Either up to `self.texts` texts of up to `plan.rows` tokens together, or, where the plan
        splits, one longer one.
        """
        if self._memory:
            lib.llama_memory_clear(self._memory, False)
        if len(texts) == 1:
            return self._compute_long(texts[0])
        at = 0
        for sequence, tokens in enumerate(texts):
            at = self._lay(at, tokens, 0, sequence)
        if code := self._decode(at):
            return code, np.empty((0, self.width), np.float32)
        return 0, np.stack([self._vector(sequence) for sequence in range(len(texts))])

    def _compute_long(self, tokens: Int32s) -> tuple[int, Floats]:
        for start in range(0, len(tokens), self.plan.rows):
            size = self._lay(0, tokens[start : start + self.plan.rows], start, 0)
            if code := self._decode(size):
                return code, np.empty((0, self.width), np.float32)
        return 0, self._vector(0)[None]

    def _lay(self, at: int, tokens: Int32s, start: int, sequence: int) -> int:
        rows = slice(at, end := at + len(tokens))
        self._tokens[rows] = tokens
        self._positions[rows] = np.arange(start, start + len(tokens))
        self._sequences[rows] = sequence
        return end

    def _decode(self, rows: int) -> int:
        self._c_batch.n_tokens = rows
        return lib.llama_decode(self.handle, self._c_batch)

    def _vector(self, sequence: int) -> Floats:
        pointer = lib.llama_get_embeddings_seq(self.handle, sequence)
        return np.ctypeslib.as_array(pointer, (self.width,)).copy()

    def free(self) -> None:
        handle, self.handle = self.handle, None
        if handle:
            lib.llama_free(handle)
