"""The parameters that say how the next token is chosen, and when to stop; the same for every
route that generates text."""

from __future__ import annotations

import msgspec

from cortex_core.errors import InvalidRequest

__all__ = ["SamplingParameters", "StreamOptions", "check_ranges", "without_effect"]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool = False


class SamplingParameters(msgspec.Struct, frozen=True, kw_only=True):
    """`None` means "not given": the model's or the fixed default applies."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    ignore_eos: bool = False
    stop: str | list[str] | None = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in stop if text)

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk that tells the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


# Inclusive bounds; a NaN or an infinity cannot come in as JSON.
_RANGES: dict[str, tuple[float, float]] = {
    "max_tokens": (1, 2**31 - 1),
    "max_completion_tokens": (1, 2**31 - 1),
    "temperature": (0, 100),
    "top_p": (0, 1),
    "top_k": (0, 2**31 - 1),
    "min_p": (0, 1),
    "repeat_penalty": (0.01, 100),
    "repeat_last_n": (-1, 2**31 - 1),
    "presence_penalty": (-100, 100),
    "frequency_penalty": (-100, 100),
    "seed": (-(2**63), 2**63 - 1),
}


def check_ranges(request: SamplingParameters) -> None:
    """Raises InvalidRequest that names the parameter and its bounds."""
    for name, (low, high) in _RANGES.items():
        value = getattr(request, name, None)
        if value is not None and not low <= value <= high:
            raise InvalidRequest(f"{name}: must be from {low} to {high}, got {value}", param=name)


def without_effect(request: SamplingParameters) -> list[str]:
    """Parameters that this API knows but this request gives nothing to act on."""
    options = request.stream_options
    if options is None:
        return []
    if not request.stream:
        return ["stream_options"]
    return ["stream_options.include_obfuscation"] if options.include_obfuscation else []
