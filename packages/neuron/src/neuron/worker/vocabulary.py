"""Vocabularies: text to tokens and back, and which of them are kept when their models go.

To read a vocabulary of 150,000 tokens, and ask of each whether it is an end, takes 0.2 s, at every
load of its model: of a model of 400 MB that is half of the time. So weights are loaded without it,
and it is read by itself, once.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from cortex_core.errors import PreflightFailed
from neuron.models.identity import Identity, check_unchanged, identity_of
from neuron.worker import llama
from neuron.worker.llama import Int32s, LlamaError

__all__ = ["Vocabularies", "Vocabulary"]

lib = llama.lib  # pyright: ignore[reportPrivateImportUsage]

_KEPT = 3
"""Unused ones that stay: of 150,000 tokens each holds about 25 MB."""


class Vocabularies:
    """Of a worker's models. Any thread may use it."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        self._known: dict[Identity, Vocabulary] = {}  # who was opened last is last
        self._users: dict[Vocabulary, int] = {}

    def open(self, path: str) -> Vocabulary:
        """That of this model's files as they are now, until `close`. Raises OSError, LlamaError
        and PreflightFailed."""
        files = identity_of(Path(path))
        with self._lock:
            vocabulary = self._known.pop(files, None) or _read(path, files)
            self._known[files] = vocabulary
            self._users[vocabulary] = self._users.get(vocabulary, 0) + 1
        return vocabulary

    def close(self, vocabulary: Vocabulary) -> None:
        with self._lock:
            self._users[vocabulary] -= 1
            unused = [files for files, each in self._known.items() if not self._users[each]]
            for files in unused[: max(len(unused) - self._kept, 0)]:
                freed = self._known.pop(files)
                del self._users[freed]
                freed.free()


class Vocabulary:
    """Tokens of a model. `end_ids` are all tokens that end a generation, by the model's word.
    `fill_in`: the tokens before a prefix, a suffix and the middle that is to be filled in. Any
    thread may use it until it is freed."""

    def __init__(self, path: str) -> None:
        """Reads a GGUF's. Raises LlamaError."""
        params = lib.llama_model_default_params()
        params.vocab_only = True
        params.n_gpu_layers = 0
        params.devices = llama.NO_DEVICES
        llama.take_lines()
        model = lib.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise LlamaError(f"llama.cpp cannot load {path}", llama.take_lines())
        self._model = model
        read = lib.llama_model_meta_val_str
        self.architecture = llama.read_text(read, model, b"general.architecture")
        self.handle: Any = lib.llama_model_get_vocab(model)
        handle = self.handle
        self.size = int(lib.llama_vocab_n_tokens(handle))
        self.bos = int(lib.llama_vocab_bos(handle))
        self.eos = int(lib.llama_vocab_eos(handle))
        self.adds_bos = bool(lib.llama_vocab_get_add_bos(handle)) and self.bos >= 0
        fill_in = (
            int(lib.llama_vocab_fim_pre(handle)),
            int(lib.llama_vocab_fim_suf(handle)),
            int(lib.llama_vocab_fim_mid(handle)),
        )
        self.fill_in = fill_in if min(fill_in) >= 0 else None
        is_end = lib.llama_vocab_is_eog
        self.end_ids = frozenset(i for i in range(self.size) if is_end(handle, i))
        self._pieces: list[bytes | None] = [None] * self.size

    def text_of(self, token: int) -> str:
        """How the vocabulary writes a token, e.g. `<|im_end|>`; empty for an absent one."""
        if token < 0:
            return ""
        return lib.llama_vocab_get_text(self.handle, token).decode("utf-8", "replace")

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for, special tokens as they are written."""
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token)
        return piece

    def _read_piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        size = lib.llama_token_to_piece(self.handle, token, buffer, len(buffer), 0, True)
        if size < 0:
            self._buffer = buffer = ctypes.create_string_buffer(-size)
            size = lib.llama_token_to_piece(self.handle, token, buffer, len(buffer), 0, True)
        return buffer.raw[:size]

    def tokenize(self, text: str) -> Int32s:
        """Token ids of a prompt; special tokens in it are parsed, and exactly one BOS leads where
        the model wants one, whether or not the text has it already."""
        ids = self.tokenize_bare(text)
        if self.adds_bos and (len(ids) == 0 or ids[0] != self.bos):
            return np.concatenate((np.array([self.bos], np.int32), ids))
        return ids

    def tokenize_bare(self, text: str, *, parse_special: bool = True) -> Int32s:
        """Token ids of exactly this text; special tokens in it are parsed, or are plain text."""
        data = text.encode()
        ids = np.empty(len(data) + 16, np.int32)
        count = self._tokenize_into(data, ids, parse_special)
        if count < 0:
            ids = np.empty(-count, np.int32)
            count = self._tokenize_into(data, ids, parse_special)
            if count < 0:
                raise LlamaError(f"cannot tokenize {len(data)} bytes")
        return ids[:count]

    def _tokenize_into(self, data: bytes, ids: Int32s, parse: bool) -> int:
        pointer: Any = ids.ctypes.data_as(lib.llama_token_p)
        return lib.llama_tokenize(self.handle, data, len(data), pointer, len(ids), False, parse)

    def free(self) -> None:
        model, self._model = self._model, None
        if model:
            lib.llama_model_free(model)


def _read(path: str, files: Identity) -> Vocabulary:
    vocabulary = Vocabulary(path)
    try:
        check_unchanged(Path(path), files)
    except PreflightFailed:
        vocabulary.free()
        raise
    return vocabulary
