"""How a worker is to choose an answer's tokens; a part of the frames in `ipc`."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["CallForm", "CallPart", "Calls", "Constraint", "Grammar", "Sampling"]


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """Every value resolved; nothing is left to a library's default. Temperature 0 is greedy.
    `dry_penalty_last_n` -1 looks at all. `logit_bias` is added to tokens' logits. No answer ends
    by a token before its `min_tokens`; by a stop string it may."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    ignore_eos: bool = False
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    logit_bias: dict[int, float] = {}
    min_tokens: int = 0


class _Constraint(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


class Grammar(_Constraint, frozen=True):
    """All of the content is to match: a JSON schema (as JSON text), a regular expression, or a
    grammar in llama.cpp's GBNF. `param` is what the client calls it."""

    kind: Literal["json_schema", "regex", "gbnf"]
    text: str
    param: str


class CallPart(msgspec.Struct, frozen=True, array_like=True):
    """A part of a call between `before` and `after`: a text of which all matches the regular
    expression `text` and not `barred`, or a value in JSON by `schema` (as JSON text). Each is ""
    where there is no such way; `after` is not."""

    before: str
    after: str
    text: str = ""
    barred: str = ""
    schema: str = ""
    is_required: bool = True


class CallForm(msgspec.Struct, frozen=True, array_like=True):
    """One offered tool: what is written before and after a call's arguments, and their JSON schema
    (as JSON text), which the client calls `param`. `parts` come before the arguments; where those
    are parts themselves, there is no `schema`."""

    before: str
    schema: str
    after: str
    param: str
    parts: tuple[CallPart, ...] = ()


class Calls(_Constraint, frozen=True):
    """Whatever is between `opens` and `closes` is a call in one of these forms. `separator` stands
    between two calls. `is_required`: the content is calls and nothing else; else there may be text
    and no call. `is_single`: one call at most. `content`: without a call, the content is that; with
    one, there is no text. `is_addressed`: a call is a message by itself, which ends the answer, and
    `before` its header, in place of that which says the content is final. `is_grouped`: between
    `opens` and `closes` there may be several calls. `barred`: no text holds any of these."""

    forms: tuple[CallForm, ...]
    opens: str
    closes: str
    separator: str
    is_required: bool = False
    is_single: bool = False
    content: Grammar | None = None
    is_addressed: bool = False
    is_grouped: bool = False
    barred: tuple[str, ...] = ()


Constraint = Grammar | Calls
