"""A grammar in llama.cpp's own notation, applied by llama.cpp."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from llguidance.gbnf_to_lark import gbnf_to_lark

from cortex_core.errors import InvalidRequest
from neuron.worker import llama
from neuron.worker.chain import CANDIDATE, apply

__all__ = ["FirstBytes", "GbnfGuide", "keep"]

lib = llama.lib  # pyright: ignore[reportPrivateImportUsage]

Floats = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]

_LONGEST = 64 * 1024  # bytes
_DEEPEST = 128  # llama.cpp reads brackets recursively
_QUOTED = re.compile(r'"(?:\\.|[^"\\\n])*"|\[(?:\\.|[^\]\\\n])*\]|#[^\n]*')
_LOOKED_AT = 1024
"""About so many of the likeliest tokens are tried first: 150,000 take llama.cpp 10 ms."""

_SAMPLED = 8192
_LONGEST_STEP_S = 0.25


class FirstBytes:
    """Of a vocabulary. Where a grammar allows no token that is one byte alone, it allows none that
    begins with it: asking for 256 spares asking for nearly all of 150,000."""

    def __init__(self, pieces: Sequence[bytes], special: Collection[int]) -> None:
        """`pieces`: each token's bytes. `special`: tokens that are not text."""
        self._of = np.array([piece[0] if piece else 0 for piece in pieces], np.uint8)
        self.alone = np.array(
            [t for t, piece in enumerate(pieces) if len(piece) == 1 and t not in special], np.int32
        )
        known = np.unique(self._of[self.alone])
        self._unknown = np.setdiff1d(np.arange(256), known)

    def restrict(self, logits: Floats, allowed: Int32s) -> None:
        """Make tokens impossible that begin with a byte which `allowed`, of those `alone`, has
        not."""
        addends = np.full(256, -np.inf, np.float32)
        addends[self._unknown] = 0.0
        addends[self._of[allowed]] = 0.0
        logits += addends.take(self._of)


class GbnfGuide:
    """Whether the answer is complete only an end-of-generation token tells, which becomes possible
    where the grammar is satisfied."""

    is_complete = False

    def __init__(
        self,
        model: llama.Model,
        text: str,
        param: str,
        *,
        special: Collection[int],
        first_bytes: FirstBytes,
    ) -> None:
        """`special`: tokens that are not text. Raises InvalidRequest that says what is wrong."""
        self._param = param
        self._check(text)
        ends = model.vocabulary.end_ids
        self._ends = np.array(sorted(ends), np.int32)
        self._forbidden = np.array(sorted(set(special) - ends), np.int32)
        self._first_bytes = first_bytes
        vocabulary: Any = lib.llama_model_get_vocab(model.handle)
        self._handle: Any = lib.llama_sampler_init_grammar(vocabulary, text.encode(), b"root")
        if not self._handle:
            raise InvalidRequest(f"{param}: {_cause(text)}", param=param)
        try:
            self._allowed(first_bytes.alone)
        except InvalidRequest:
            self.free()
            raise

    def _check(self, text: str) -> None:
        problem = ""
        if len(text.encode()) > _LONGEST:
            problem = f"longer than {_LONGEST} bytes"
        elif "\0" in text:
            problem = "has a zero character"
        elif _depth(text) > _DEEPEST:
            problem = f"brackets nested more than {_DEEPEST} deep"
        if problem:
            raise InvalidRequest(f"{self._param}: {problem}", param=self._param)

    def restrict(self, logits: Floats, wanted: int) -> None:
        ends = logits[self._ends]
        logits[self._forbidden] = -np.inf
        self._first_bytes.restrict(logits, self._allowed(self._first_bytes.alone))
        logits[self._ends] = ends
        if 0 < wanted < _LOOKED_AT < len(logits):
            allowed = self._allowed(_likeliest(logits))
            if len(allowed) >= wanted:
                keep(logits, allowed)
                return
        keep(logits, self._allowed(np.flatnonzero(logits > -np.inf).astype(np.int32)))

    def _allowed(self, tokens: Int32s) -> Int32s:
        """A few at a time, then more, to notice before it is too late that they take long: some
        grammars of thirty characters have millions of ways to go on."""
        candidates = np.zeros(len(tokens), CANDIDATE)
        candidates["id"] = tokens
        began = time.monotonic()
        at, size = 0, 1
        while at < len(tokens):
            apply(self._handle, candidates[at : at + size])
            at += size
            spent = time.monotonic() - began
            if spent > _LONGEST_STEP_S:
                raise InvalidRequest(
                    f"{self._param}: the grammar is too ambiguous: {at} tokens took {spent:.2f} s",
                    param=self._param,
                )
            size *= 4
        return candidates["id"][candidates["logit"] > -np.inf]

    def accept(self, token: int) -> None:
        # llama.cpp ends the process for a token that its grammar does not allow.
        if not len(self._allowed(np.array([token], np.int32))):
            raise InvalidRequest(
                f"{self._param}: token {token} does not follow from it", param=self._param
            )
        lib.llama_sampler_accept(self._handle, token)

    def free(self) -> None:
        handle, self._handle = self._handle, None
        if handle:
            lib.llama_sampler_free(handle)


def _likeliest(logits: Floats) -> Int32s:
    """All from some logit on. Which logit that is, part of the vocabulary tells well enough, in a
    tenth of the time."""
    stride = max(len(logits) // _SAMPLED, 1)
    kept = max(_LOOKED_AT // stride, 1)
    least = np.partition(logits[::stride], -kept)[-kept]
    return np.flatnonzero((logits >= least) & (logits > -np.inf)).astype(np.int32)


def keep(logits: Floats, tokens: Int32s) -> None:
    """Make all other tokens impossible."""
    values = logits[tokens]
    logits[:] = -np.inf
    logits[tokens] = values


def _cause(text: str) -> str:
    """What is wrong with a grammar that llama.cpp refused: its own words go to stderr alone, so
    llguidance, which can read the notation too, is asked."""
    try:
        gbnf_to_lark(text)
    except Exception as error:
        return " ".join(str(error).split())
    return "llama.cpp cannot use this grammar (is there left recursion, or too much repetition?)"


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in re.findall(r"[()]", _QUOTED.sub("", text)):
        depth += 1 if bracket == "(" else -1
        deepest = max(deepest, depth)
    return deepest
