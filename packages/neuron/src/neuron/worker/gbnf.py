"""A grammar in llama.cpp's own notation, applied by llama.cpp."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from llguidance.gbnf_to_lark import gbnf_to_lark

from cortex_core.errors import InvalidRequest
from neuron.worker import llama
from neuron.worker.chain import CANDIDATE, apply
from neuron.worker.gbnf_notation import problem_of

__all__ = ["FirstBytes", "GbnfGuide", "keep"]

lib = llama.lib  # pyright: ignore[reportPrivateImportUsage]

Floats = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.bool_]

_LOOKED_AT = 1024
"""About so many of the likeliest tokens are tried before all: 150,000 take llama.cpp 10 ms."""

_MANY = 256
"""Tokens that begin alike: to ask what may follow takes as long as to ask about so many."""

_MOST_BYTES = 128  # where more may come next, it is text of any kind

_SAMPLED = 8192
_GROUP = 64
_NO_TEXT = 256  # in place of a byte
_NONE: Int32s = np.empty(0, np.int32)
_LONGEST_STEP_S = 0.25


class FirstBytes:
    """The tokens of a vocabulary that are text, by the byte they begin with. Where a grammar allows
    no token that is one byte alone, it allows none that begins with it: asking for 256 spares
    asking for nearly all of 150,000."""

    def __init__(self, pieces: Sequence[bytes], special: Collection[int]) -> None:
        """`pieces`: each token's bytes. `special`: tokens that are not text."""
        text = [t for t, piece in enumerate(pieces) if piece and t not in special]
        first = np.array([pieces[t][0] for t in text], np.uint8)
        self.alone = np.array([t for t in text if len(pieces[t]) == 1], np.int32)
        self.byte = {pieces[t][0]: t for t in self.alone.tolist()}
        in_order = sorted(text, key=pieces.__getitem__)
        self._in_order = np.array(in_order, np.int32)
        self._pieces_in_order = [pieces[t] for t in in_order]
        self._unknown = np.setdiff1d(np.arange(256), [pieces[t][0] for t in self.alone.tolist()])
        ids = np.array(text, np.int32)
        self._sample = ids[:: max(len(ids) // _SAMPLED, 1)]
        order = np.argsort(first, kind="stable")
        places = np.searchsorted(first[order], np.arange(1, 256))
        self._of_byte = np.split(ids[order], places)
        self._sizes = np.array([*map(len, self._of_byte), 0])
        self._of = np.full(len(pieces), _NO_TEXT, np.int16)
        self._of[ids] = first
        self._of_sample = self._of[self._sample]

    def is_text(self, token: int) -> bool:
        return self._of[token] != _NO_TEXT

    def begun(self, allowed: Int32s) -> Bytes:
        """Which bytes may come first where `allowed`, of those `alone`, may."""
        may = np.zeros(257, np.bool_)
        may[self._unknown] = True
        may[self._of[allowed]] = True
        return may

    def size(self, begun: Bytes) -> int:
        return int(self._sizes[begun].sum())

    def all(self, begun: Bytes) -> Int32s:
        return np.concatenate([self._of_byte[byte] for byte in np.flatnonzero(begun)] or [_NONE])

    def beginning(self, prefix: bytes) -> tuple[Int32s, Int32s]:
        """Those that are no more than it, and those that go on."""
        pieces = self._pieces_in_order
        start = bisect_left(pieces, prefix)
        longer = bisect_right(pieces, prefix, start)
        below = prefix.rstrip(b"\xff")
        end = bisect_left(pieces, below[:-1] + bytes([below[-1] + 1])) if below else len(pieces)
        return self._in_order[start:longer], self._in_order[longer:end]

    def likeliest(self, begun: Bytes, logits: Floats, count: int) -> Int32s:
        """All from some logit on, about `count`. Which logit that is, a sample tells well enough,
        in a tenth of the time."""
        values = logits[self._sample[begun[self._of_sample]]]
        kept = min(1 + count * len(values) // self.size(begun), len(values))
        least = np.partition(values, -kept)[-kept] if kept else -np.inf
        tokens = np.flatnonzero(logits >= least)
        return tokens[begun[self._of[tokens]]].astype(np.int32)

    def likeliest_text(self, logits: Floats, count: int) -> Int32s:
        """As `likeliest`, of all that is text, whatever it begins with, and in half the time: the
        best of every 64 tell which logit that is. There may be fewer than `count` where others than
        text are likely."""
        best = logits[: len(logits) // _GROUP * _GROUP].reshape(_GROUP, -1).max(axis=0)
        kept = min(count, len(best))
        least = np.partition(best, -kept)[-kept] if kept else -np.inf
        tokens = np.flatnonzero(logits >= least)
        return tokens[self._of[tokens] != _NO_TEXT].astype(np.int32)


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
        first_bytes: FirstBytes,
    ) -> None:
        """Raises InvalidRequest that says what is wrong."""
        self._param = param
        self._kept = _NONE
        self._is_open = False  # of what was likely at the last step, enough was possible
        problem = problem_of(text)
        if problem is not None:
            raise InvalidRequest(f"{param}: {problem or _cause(text)}", param=param)
        self._ends = np.array(sorted(model.vocabulary.end_ids), np.int32)
        self._first_bytes = first_bytes
        self._handle: Any = lib.llama_sampler_init_grammar(
            model.vocabulary.handle, text.encode(), b"root"
        )
        if not self._handle:
            raise InvalidRequest(f"{param}: {_cause(text)}", param=param)
        try:
            self._allowed(first_bytes.alone)
        except InvalidRequest:
            self.free()
            raise

    def restrict(self, logits: Floats, wanted: int) -> None:
        self._kept = self._possible(logits, wanted)
        keep(logits, self._kept)

    def _possible(self, logits: Floats, wanted: int) -> Int32s:
        """Only tokens that may come next, and at least so many of the likeliest of them."""
        first = self._first_bytes
        if wanted == 1:
            best = int(logits.argmax())
            if first.is_text(best) and len(allowed := self._allowed(np.array([best], np.int32))):
                return allowed
        few, enough = 16 + 3 * wanted, wanted + len(self._ends)
        if wanted and self._is_open:  # as inside of a string: it mostly goes on
            likeliest = first.likeliest_text(logits, few)
            allowed = self._allowed(self._with_ends(logits, likeliest))
            if len(allowed) >= enough:
                return allowed
        self._is_open = False
        begun = first.begun(self._allowed(first.alone))
        if wanted and first.size(begun) > _LOOKED_AT:
            for count in (few, _LOOKED_AT):
                likeliest = first.likeliest(begun, logits, count)
                allowed = self._allowed(self._with_ends(logits, likeliest))
                if len(allowed) >= enough:
                    self._is_open = True
                    return allowed
        if first.size(begun) <= _LOOKED_AT:
            tokens = first.all(begun)
        else:
            until = time.thread_time() + _LONGEST_STEP_S
            tokens = np.concatenate([*self._beginning(b"", self._handle, begun, until)])
        return self._allowed(self._with_ends(logits, tokens))

    def _beginning(
        self, prefix: bytes, handle: Any, begun: Bytes, until: float
    ) -> Iterator[Int32s]:
        """Of the tokens that begin with `prefix`, which `handle` has accepted, those that go on
        with a byte of `begun`; of many that go on alike, only those whose next bytes may come, too.
        After a space may come half of a vocabulary, of which a value in JSON allows little."""
        for byte in np.flatnonzero(begun).tolist():
            longer_prefix = prefix + bytes([byte])
            same, longer = self._first_bytes.beginning(longer_prefix)
            yield same
            token = self._first_bytes.byte.get(byte)
            if len(longer) <= _MANY or token is None or time.thread_time() > until:
                yield longer
                continue
            further = lib.llama_sampler_clone(handle)
            try:
                lib.llama_sampler_accept(further, token)
                after = self._first_bytes.begun(self._allowed(self._first_bytes.alone, further))
                if np.count_nonzero(after) > _MOST_BYTES:
                    yield longer
                else:
                    yield from self._beginning(longer_prefix, further, after, until)
            finally:
                lib.llama_sampler_free(further)

    def _with_ends(self, logits: Floats, tokens: Int32s) -> Int32s:
        """Those that are possible at all."""
        tokens = np.concatenate((self._ends, tokens))
        return tokens[logits[tokens] > -np.inf]

    def _allowed(self, tokens: Int32s, handle: Any = None) -> Int32s:
        """A few at a time, then more, to notice before it is too late that they take long: some
        grammars of thirty characters have millions of ways to go on. The time is this thread's own:
        that others keep the processor busy is not the grammar's fault."""
        candidates = np.zeros(len(tokens), CANDIDATE)
        candidates["id"] = tokens
        began = time.thread_time()
        at, size = 0, 1
        while at < len(tokens):
            apply(handle or self._handle, candidates[at : at + size])
            at = min(at + size, len(tokens))
            spent = time.thread_time() - began
            if spent > _LONGEST_STEP_S:
                raise InvalidRequest(
                    f"{self._param}: the grammar is too ambiguous: {at} tokens took {spent:.2f} s",
                    param=self._param,
                )
            # As many more as the time would do for at this speed.
            size = min(32 * size, 1 + int(at * _LONGEST_STEP_S / max(spent, 1e-6)))
        return candidates["id"][candidates["logit"] > -np.inf]

    def accept(self, token: int) -> None:
        # llama.cpp ends the process for a token that its grammar does not allow.
        if token not in self._kept and not len(self._allowed(np.array([token], np.int32))):
            raise InvalidRequest(
                f"{self._param}: token {token} does not follow from it", param=self._param
            )
        self._kept = _NONE
        lib.llama_sampler_accept(self._handle, token)

    def free(self) -> None:
        handle, self._handle = self._handle, None
        if handle:
            lib.llama_sampler_free(handle)


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
