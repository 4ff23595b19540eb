"""Greedy text from a GGUF through llama.cpp, for the evaluation only.

One context, one sequence. What a new prompt shares with the previous one stays in the cache.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np


class Player:
    """Plays one model on the CPU. Close it to free the native memory."""

    def __init__(self, path: Path, context: int = 8192, threads: int = 1) -> None:
        llama_cpp.llama_backend_init()
        # Only errors: the loader is talkative.
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {path}")
        self.vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(self.vocab)
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = context
        parameters.n_batch = context
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        self._cached: list[int] = []

    def close(self) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, markers parsed, nothing added."""
        raw = text.encode()
        room = (llama_cpp.llama_token * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(self.vocab, raw, len(raw), room, len(room), False, True)
        if count < 0:
            raise ValueError("llama_tokenize needs more room than one id per byte")
        return list(room[:count])

    def piece(self, token: int) -> bytes:
        """Bytes of one token; control tokens are empty."""
        room = ctypes.create_string_buffer(256)
        count = llama_cpp.llama_token_to_piece(self.vocab, token, room, 256, 0, False)
        return room.raw[:count]

    def complete(self, prompt: str, limit: int = 400) -> tuple[str, list[int]]:
        """Greedy continuation up to an end-of-generation token: its text and its ids."""
        ids = self.tokenize(prompt)
        same = 0
        while same < min(len(self._cached), len(ids) - 1) and self._cached[same] == ids[same]:
            same += 1
        memory = llama_cpp.llama_get_memory(self._context)
        llama_cpp.llama_memory_seq_rm(memory, 0, same, -1)
        self._cached = ids[:same]
        produced: list[int] = []
        feed = ids[same:]
        while len(produced) < limit:
            token = self._step(feed)
            produced.append(token)
            if llama_cpp.llama_vocab_is_eog(self.vocab, token):
                break
            feed = [token]
        return b"".join(map(self.piece, produced)).decode(errors="replace"), produced

    def _step(self, feed: list[int]) -> int:
        array = (llama_cpp.llama_token * len(feed))(*feed)
        code = llama_cpp.llama_decode(
            self._context, llama_cpp.llama_batch_get_one(array, len(feed))
        )
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        self._cached += feed
        scores = llama_cpp.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(scores, shape=(self.vocab_size,)).argmax())
