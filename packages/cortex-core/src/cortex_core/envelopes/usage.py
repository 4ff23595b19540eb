"""What a request cost, as answers tell it."""

from __future__ import annotations

import msgspec

from cortex_core.outcome import Usage

__all__ = ["PromptUsage", "UsageReport"]


class _PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class _CompletionDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class UsageReport(msgspec.Struct, frozen=True):
    """Of a generation."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _PromptDetails
    completion_tokens_details: _CompletionDetails

    @classmethod
    def of(cls, usage: Usage) -> UsageReport:
        return cls(
            usage.prompt,
            usage.completion,
            usage.prompt + usage.completion,
            _PromptDetails(usage.cached),
            _CompletionDetails(usage.reasoning),
        )


class PromptUsage(msgspec.Struct, frozen=True):
    """Of a request whose answer is not text."""

    prompt_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> PromptUsage:
        return cls(usage.prompt, usage.prompt)
