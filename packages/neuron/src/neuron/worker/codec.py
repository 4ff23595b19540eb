"""Text to token ids and back, for any thread: nothing is kept between calls.

llama.cpp's vocabulary is read-only once it is loaded, and its calls let go of the GIL.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from neuron.worker import llama
from neuron.worker.llama import Int32s, LlamaError
from neuron.worker.vocabulary import Vocabulary

__all__ = ["Codec"]

lib = llama.lib  # pyright: ignore[reportPrivateImportUsage]


class Codec:
    """Good for as long as its vocabulary is."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._handle = vocabulary.handle
        self.size = int(lib.llama_vocab_n_tokens(self._handle))
        self.adds_bos = bool(lib.llama_vocab_get_add_bos(self._handle))
        self.adds_eos = bool(lib.llama_vocab_get_add_eos(self._handle))
        self.adds_sep = bool(lib.llama_vocab_get_add_sep(self._handle))
        self.bos = int(lib.llama_vocab_bos(self._handle))
        self.eos = int(lib.llama_vocab_eos(self._handle))
        self.sep = int(lib.llama_vocab_sep(self._handle))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> Int32s:
        """`add_special`: the tokens this model wants at a text's ends. `parse_special`: special
        tokens written in the text are read as such. Raises LlamaError."""
        data = text.encode()
        ids = np.empty(len(data) + 16, np.int32)
        count = self._tokenize_into(data, ids, add_special, parse_special)
        if count < 0:
            ids = np.empty(-count, np.int32)
            count = self._tokenize_into(data, ids, add_special, parse_special)
            if count < 0:
                raise LlamaError(f"cannot tokenize {len(data)} bytes")
        return ids[:count]

    def _tokenize_into(self, data: bytes, ids: Int32s, add_special: bool, parse: bool) -> int:
        pointer: Any = ids.ctypes.data_as(lib.llama_token_p)
        return lib.llama_tokenize(
            self._handle, data, len(data), pointer, len(ids), add_special, parse
        )

    def unknown(self, ids: Int32s) -> int | None:
        """The first id that is no token of this model."""
        wrong = ids[(ids < 0) | (ids >= self.size)]
        return int(wrong[0]) if len(wrong) else None

    def piece(self, token: int) -> bytes:
        """The bytes one token stands for, a special one as it is written."""
        buffer = ctypes.create_string_buffer(64)
        size = lib.llama_token_to_piece(self._handle, token, buffer, len(buffer), 0, True)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = lib.llama_token_to_piece(self._handle, token, buffer, len(buffer), 0, True)
        return buffer.raw[:size]

    def detokenize(self, ids: Int32s) -> bytes:
        """The text of tokens that exist, special ones as they are written; perhaps cut inside a
        character. Raises LlamaError."""
        if len(ids) == 0:
            return b""
        ids = np.ascontiguousarray(ids, np.int32)
        buffer = ctypes.create_string_buffer(8 * len(ids) + 64)
        size = self._detokenize_into(ids, buffer)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = self._detokenize_into(ids, buffer)
            if size < 0:
                raise LlamaError(f"cannot detokenize {len(ids)} tokens")
        return ctypes.string_at(buffer, size)

    def _detokenize_into(self, ids: Int32s, buffer: Any) -> int:
        pointer: Any = ids.ctypes.data_as(lib.llama_token_p)
        return lib.llama_detokenize(
            self._handle, pointer, len(ids), buffer, len(buffer), False, True
        )
