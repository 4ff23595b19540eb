"""`POST /v1/completions`: raw text in, raw text out; several prompts are several choices."""

from __future__ import annotations

from typing import Literal

import msgspec

from cortex_core.envelopes.constraints import (
    ConstrainedParameters,
    check_constraints,
    constraints_without_effect,
)
from cortex_core.envelopes.inputs import Inputs, each_input
from cortex_core.envelopes.logprobs import CompletionLogprobs
from cortex_core.envelopes.parameters import decode_request
from cortex_core.envelopes.sampling import MOST_CHOICES, check_ranges, without_effect
from cortex_core.envelopes.usage import UsageReport
from cortex_core.errors import InvalidRequest, UnsupportedParameter

__all__ = [
    "DEFAULT_MAX_TOKENS",
    "IGNORED_PARAMETERS",
    "MOST_PROMPTS",
    "Completion",
    "CompletionChoice",
    "CompletionChunk",
    "CompletionRequest",
    "decode_completion_request",
]

DEFAULT_MAX_TOKENS = 16  # the API's own; whoever wants more has to say so
MOST_PROMPTS = 128
IGNORED_PARAMETERS = frozenset({"user"})
"""Defined by the vendor, without effect on what a local model answers."""


class CompletionRequest(ConstrainedParameters, frozen=True):
    """The honoured parameters. `prompts` has one entry per choice."""

    model: str
    prompt: Inputs
    suffix: str | None = None
    echo: bool = False
    n: int = 1
    best_of: int | None = None
    logprobs: int | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        return _prompts(self.prompt)

    @property
    def token_limit(self) -> int:
        return self.max_tokens or DEFAULT_MAX_TOKENS


def decode_completion_request(body: bytes) -> tuple[CompletionRequest, list[str]]:
    """The checked request and the names of the parameters that have no effect.

    Raises InvalidJson, InvalidRequest or UnsupportedParameter, each naming the parameter.
    """
    request, ignored = decode_request(body, CompletionRequest, IGNORED_PARAMETERS)
    if not request.model:
        raise InvalidRequest("model: must not be empty", param="model")
    _prompts(request.prompt)
    check_ranges(request)
    check_constraints(request)
    _check_choices(request)
    return request, ignored + constraints_without_effect(request) + without_effect(request)


def _check_choices(request: CompletionRequest) -> None:
    count = len(request.prompts) * request.n
    if count > MOST_CHOICES:
        raise InvalidRequest(
            f"n: at most {MOST_CHOICES} choices in one request, got {count}", param="n"
        )
    if request.best_of not in (None, request.n):
        raise UnsupportedParameter(
            f"best_of: only as many as `n` ({request.n}), got {request.best_of}", param="best_of"
        )
    if request.logprobs is not None and request.echo:
        raise UnsupportedParameter(
            "logprobs: those of the echoed prompt are not known", param="logprobs"
        )


def _prompts(prompt: Inputs) -> list[str | list[int]]:
    # An empty one is no mistake where there is a suffix, or a BOS.
    return each_input(prompt, "prompt", most=MOST_PROMPTS, may_be_empty=True)


# answers


class CompletionChoice(msgspec.Struct, frozen=True):
    text: str
    index: int
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: CompletionLogprobs | None = None


class Completion(msgspec.Struct, frozen=True):
    id: str
    created: int  # Unix seconds
    model: str
    choices: list[CompletionChoice]
    usage: UsageReport
    object: Literal["text_completion"] = "text_completion"


class CompletionChunk(msgspec.Struct, frozen=True):
    """One chunk. With `include_usage` the last chunk has no choices and the usage."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageReport | msgspec.UnsetType = msgspec.UNSET
    object: Literal["text_completion"] = "text_completion"
