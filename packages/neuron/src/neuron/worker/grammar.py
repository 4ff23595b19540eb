"""Constraints on what a model writes, token by token.

JSON schemas, regular expressions and tool calls are llguidance's; GBNF is llama.cpp's own, because
llguidance reads it differently (its words are as long as they can be). A token that is not text (an
end of turn, a reasoning marker) never stands for the letters it is written with.
"""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from cortex_core.errors import InvalidRequest
from cortex_core.wire.ipc import CallForm, CallPart, Calls, Constraint, Grammar
from neuron.worker import llama
from neuron.worker.channels import ChannelState, recipient
from neuron.worker.gbnf import FirstBytes, GbnfGuide, keep
from neuron.worker.reasoning import ReasoningState

__all__ = ["ContentGuide", "Grammars", "Guide", "MatcherGuide"]

lib = llama.lib  # pyright: ignore[reportPrivateImportUsage]

Floats = npt.NDArray[np.float32]

# Between JSON's marks. Without a bound a model may go on with blanks for ever, and small ones do.
_WHITE_SPACE = r"( |\r?\n[ \t]{0,40})"
_LONGEST_MESSAGE = 300
_ANYTHING = "/(.|\\n)*/"
_SLASH = re.compile(r"\\.|/", re.DOTALL)
_NOT_TEXT = 1 | 2 | 8  # llama_token_attr: unknown, unused, control

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_ADDENDS: Floats = np.where(_BITS == 1, np.float32(0), np.float32(-np.inf)).astype(np.float32)
"""For each byte of a mask what it adds to eight logits: five times as fast as looking for what is
forbidden."""


class Guide(Protocol):
    """What one answer may go on with. Free it."""

    @property
    def is_complete(self) -> bool:
        """Nothing more may come."""
        ...

    def restrict(self, logits: Floats, wanted: int) -> None:
        """Make tokens that may not come next impossible. Where `wanted` is not 0, it is enough to
        be right about so many of the likeliest that may. Raises InvalidRequest."""
        ...

    def accept(self, token: int) -> None:
        """It came. Raises InvalidRequest for one that may not."""
        ...

    def free(self) -> None: ...


class ContentGuide:
    """A constraint on the content alone. Reasoning is free but may not end the answer; once content
    has begun, no more of it comes."""

    def __init__(
        self,
        guide: Guide,
        reasoning: ReasoningState,
        *,
        barred: Iterable[int],
        opening: int | None,
    ) -> None:
        """`reasoning` is the answer's own; it hears of a token only after it was accepted here.
        `barred`: what may not come inside of reasoning. `opening`: the token with which the answer
        may open a block instead of beginning its content."""
        self._guide = guide
        self._reasoning = reasoning
        self._barred = np.array(sorted(barred), np.int32)
        self._opening = opening

    @property
    def is_complete(self) -> bool:
        return self._reasoning.is_in_content and self._guide.is_complete

    def restrict(self, logits: Floats, wanted: int) -> None:
        if expected := self._reasoning.expected:
            keep(logits, np.array(sorted(expected), np.int32))
        elif not self._reasoning.is_in_content:
            logits[self._barred] = -np.inf
        elif self._opening is None:
            self._guide.restrict(logits, wanted)
        else:
            logit = logits[self._opening]
            self._guide.restrict(logits, wanted)
            logits[self._opening] = logit

    def accept(self, token: int) -> None:
        if self._reasoning.is_in_content and token != self._opening:
            self._guide.accept(token)
        self._opening = None

    def free(self) -> None:
        self._guide.free()


class AddressedGuide:
    """Each message is held to what its recipient wants, and ends the answer."""

    def __init__(
        self,
        guides: Mapping[str, Guide],
        content: Guide | None,
        reasoning: ChannelState,
        *,
        barred: Iterable[int],
    ) -> None:
        """`guides`: by the function's name. `content`: of a message to nobody; None: it is free.
        `barred`: what may not come in one that is."""
        self._guides = guides
        self._content = content
        self._reasoning = reasoning
        self._barred = np.array(sorted(barred), np.int32)

    @property
    def _guide(self) -> Guide | None:
        return self._guides.get(self._reasoning.function, self._content)

    @property
    def is_complete(self) -> bool:
        guide = self._guide
        return guide is not None and guide.is_complete

    def restrict(self, logits: Floats, wanted: int) -> None:
        guide = self._guide
        if guide is None:
            logits[self._barred] = -np.inf
        else:
            guide.restrict(logits, wanted)

    def accept(self, token: int) -> None:
        guide = self._guide
        if guide is not None:
            guide.accept(token)

    def free(self) -> None:
        for guide in [*self._guides.values(), self._content]:
            if guide is not None:
                guide.free()


class Grammars:
    """Compiles the constraints of one model's requests; on one thread. `markers`: tokens around
    reasoning."""

    def __init__(self, model: llama.Model, markers: Iterable[int] = ()) -> None:
        self._model = model
        self._markers = frozenset(markers)
        self._special: frozenset[int] = frozenset()
        self._pieces: list[bytes] = []  # the model's own are its engine's thread's
        self._tokenizer: LLTokenizer | None = None
        self._first_bytes: FirstBytes | None = None

    def compile(self, constraint: Constraint) -> Guide:
        """Raises InvalidRequest that names the parameter and what is wrong with it."""
        tokenizer = self._tokens()
        if isinstance(constraint, Calls):
            return self._matcher(tokenizer, constraint)
        text, param = constraint.text, constraint.param
        if constraint.kind == "gbnf":
            if self._first_bytes is None:
                self._first_bytes = FirstBytes(self._pieces, self._special)
            return GbnfGuide(self._model, text, param, first_bytes=self._first_bytes)
        if constraint.kind == "regex":
            grammar = LLMatcher.grammar_from_regex(text)
        else:
            grammar = _of_schema(text, param)
        return MatcherGuide(tokenizer, grammar, param)

    def addressed(
        self, calls: Calls, reasoning: ChannelState, *, barred: Iterable[int]
    ) -> AddressedGuide:
        """Of calls that are messages. Raises as `compile`."""
        tokenizer = self._tokens()
        guides: dict[str, Guide] = {}
        for form in calls.forms:
            schema = _of_schema(form.schema, form.param)
            guides[recipient(form.before)] = MatcherGuide(tokenizer, schema, form.param)
        content = None if calls.content is None else self.compile(calls.content)
        return AddressedGuide(guides, content, reasoning, barred=barred)

    def _matcher(self, tokenizer: LLTokenizer, calls: Calls) -> Guide:
        for form in calls.forms:  # by itself, for the error to tell whose schema it is
            for schema in (form.schema, *(part.schema for part in form.parts)):
                if schema:
                    MatcherGuide(tokenizer, _of_schema(schema, form.param), form.param)
            if form.parts:
                alone = Calls((form,), "", "", "", is_required=True, is_single=True)
                MatcherGuide(tokenizer, self._lark(alone), form.param)
        if calls.content is not None:
            self.compile(calls.content)
        return MatcherGuide(tokenizer, self._lark(calls), "tools")

    def _lark(self, calls: Calls) -> str:
        forms = [f"form_{index}" for index in range(len(calls.forms))]
        opens, separator = self._literal(calls.opens), self._literal(calls.separator)
        one = f"({' | '.join(forms)})"
        several = f" ({separator} {one})*" if calls.is_grouped and not calls.is_single else ""
        rest = f"{one}{several} {self._literal(calls.closes)}"
        lines = ["%llguidance {}"]
        if calls.is_required or calls.content is not None:
            more = "" if calls.is_single or calls.is_grouped else f" ({separator} call)*"
            either = "" if calls.content is None else " | content"
            lines += [f"start: call{more}{either}", f"call: {opens} {rest}"]
            if calls.content is not None:
                lines.append(f"content: {_content(calls.content)}")
        else:
            start = "TEXT | call" if calls.is_single else "call* TEXT"
            lines += [f"start: {start}", f"call: head {rest}", f"TEXT: {_text(calls.barred)}"]
            is_lazy = "" if opens.startswith("<") else "[lazy]"
            lines.append(f"head{is_lazy}: TEXT {opens}")
        for name, form in zip(forms, calls.forms, strict=True):
            lines += self._form(name, form)
        return "\n".join(lines)

    def _form(self, name: str, form: CallForm) -> list[str]:
        """The rules of one form."""
        rules: list[str] = []
        sequence = [self._literal(form.before)]
        for index, part in enumerate(form.parts):
            sequence.append(f"{name}_{index}" + ("" if part.is_required else "?"))
            rules += self._part(f"{name}_{index}", part)
        if form.schema:
            sequence.append(_json(form.schema))
        sequence.append(self._literal(form.after))
        return [f"{name}: {' '.join(sequence)}", *rules]

    def _part(self, name: str, part: CallPart) -> list[str]:
        """A text ends with the first `after`: as one word with it, which ends as soon as it can;
        or, where `after` goes on with a token that is not text, with what is before that."""
        ways: list[str] = []
        rules: list[str] = []
        if part.schema:
            ways.append(f"{_json(part.schema)} {self._literal(part.after)}")
        if part.text:
            symbols = self._symbols(part.after)
            letters = next((n for n, it in enumerate(symbols) if it.startswith("<")), len(symbols))
            text, word = f"{name}_TEXT".upper(), f"{name}_word"
            unlike = f" & ~{_regex(part.barred)}" if part.barred else ""
            rules.append(f"{text}: {_regex(part.text)}{unlike}")
            if letters == len(symbols):
                head = f"{word}[lazy]"
            else:
                head = word = word.upper()
            rules.append(" ".join((f"{head}: {text}", *symbols[:letters])))
            ways.append(" ".join((word, *symbols[letters:])))
        return [f"{name}: {self._literal(part.before)} ({' | '.join(ways)})", *rules]

    def _literal(self, text: str) -> str:
        return " ".join(self._symbols(text))

    def _symbols(self, text: str) -> list[str]:
        """As Lark writes it: tokens that are not text by their ids, the rest quoted."""
        symbols: list[str] = []
        letters = b""
        for token in [*self._model.vocabulary.tokenize_bare(text).tolist(), None]:
            if token is not None and token not in self._special:
                letters += self._pieces[token]
                continue
            if letters:
                symbols.append(json.dumps(letters.decode(), ensure_ascii=False))
                letters = b""
            if token is not None:
                symbols.append(f"<[{token}]>")
        return symbols

    def _tokens(self) -> LLTokenizer:
        """Made when it is first needed: for a vocabulary of 150,000 it takes half a second."""
        if self._tokenizer is None:
            vocabulary = _Vocabulary(self._model, self._markers)
            self._special = frozenset(vocabulary.special_token_ids)
            self._pieces = vocabulary.tokens
            ends = sorted(self._model.vocabulary.end_ids) or [vocabulary.eos_token_id]
            self._tokenizer = LLTokenizer(
                vocabulary,  # pyright: ignore[reportArgumentType]
                n_vocab=len(vocabulary.tokens),
                eos_token=ends,
            )
        return self._tokenizer


class _Vocabulary:
    """As llguidance wants it: every token's bytes, and which tokens are not text."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, model: llama.Model, markers: frozenset[int]) -> None:
        handle = model.vocabulary.handle
        self._tokenize = model.vocabulary.tokenize_bare
        size, ends = model.vocabulary.size, model.vocabulary.end_ids
        self.eos_token_id = min(ends, default=max(model.vocabulary.eos, 0))
        self.tokens = [_bytes_of(handle, token) for token in range(size)]
        self.special_token_ids = [
            token
            for token in range(size)
            if token in ends
            or token in markers
            or lib.llama_vocab_get_attr(handle, token) & _NOT_TEXT
        ]
        self._special = frozenset(self.special_token_ids)

    def __call__(self, text: str | bytes) -> list[int]:
        """For text that a grammar demands: a token that is not text is spelled out."""
        text = text if isinstance(text, str) else text.decode("utf-8", "replace")
        tokens: list[int] = []
        for token in self._tokenize(text).tolist():
            letters = self.tokens[token].decode("utf-8", "replace")
            if token in self._special and len(letters) > 1:
                tokens += [*self(letters[:1]), *self(letters[1:])]
            else:
                tokens.append(token)
        return tokens


def _bytes_of(handle: Any, token: int) -> bytes:
    buffer = ctypes.create_string_buffer(64)
    size = lib.llama_token_to_piece(handle, token, buffer, len(buffer), 0, True)
    if size < 0:
        buffer = ctypes.create_string_buffer(-size)
        size = lib.llama_token_to_piece(handle, token, buffer, len(buffer), 0, True)
    return buffer.raw[:size]


def _of_schema(text: str, param: str) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(
            text, overrides={"whitespace_pattern": _WHITE_SPACE}
        )
    except ValueError as error:
        raise _refused(param, str(error)) from None


def _json(schema: str) -> str:
    """A JSON schema within Lark."""
    value = json.loads(schema)
    if isinstance(value, dict):
        options = {"whitespace_pattern": _WHITE_SPACE} | value.get("x-guidance", {})
        value = value | {"x-guidance": options}
    return f"%json {json.dumps(value)}"


def _content(grammar: Grammar) -> str:
    """Within Lark."""
    if grammar.kind == "json_schema":
        return _json(grammar.text)
    return _regex(grammar.text)


def _regex(text: str) -> str:
    """Within Lark."""
    return "/" + _SLASH.sub(_escaped_slash, text).replace("\n", r"\n") + "/"


def _escaped_slash(met: re.Match[str]) -> str:
    return met[0] if len(met[0]) > 1 else r"\/"


def _text(barred: tuple[str, ...]) -> str:
    """Within Lark: any that does not hold one of these."""
    if not barred:
        return _ANYTHING
    marks = " | ".join(json.dumps(mark, ensure_ascii=False) for mark in barred)
    return f"{_ANYTHING} & ~({_ANYTHING} ({marks}) {_ANYTHING})"


class MatcherGuide:
    """llguidance's. The mask of a step is computed outside of the GIL."""

    def __init__(self, tokenizer: LLTokenizer, grammar: str, param: str) -> None:
        """Raises InvalidRequest that says what in the grammar it is."""
        limits = LLParserLimits(verbose_errors=False)
        self._matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        self._param = param
        self._check()
        self._mask = np.zeros((tokenizer.vocab_size + 31) // 32 * 4, np.uint8)

    @property
    def is_complete(self) -> bool:
        return self._matcher.is_stopped()

    def restrict(self, logits: Floats, wanted: int) -> None:
        mask = self._mask
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._check()
        logits += _ADDENDS.take(mask, axis=0).reshape(-1)[: len(logits)]

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refused(self._param, self._matcher.get_error())

    def free(self) -> None:
        pass


def _refused(param: str, message: str) -> InvalidRequest:
    message = " ".join(message.split())
    if len(message) > _LONGEST_MESSAGE:
        message = message[:_LONGEST_MESSAGE] + "…"
    return InvalidRequest(f"{param}: {message}", param=param)
