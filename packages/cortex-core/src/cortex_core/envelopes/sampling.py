"""The parameters that say how the next token is chosen, and when to stop; the same for every
route that generates text."""

from __future__ import annotations

import msgspec

from cortex_core.errors import InvalidRequest

__all__ = [
    "MOST_CHOICES",
    "MOST_LOGPROBS",
    "RANGES",
    "Samplers",
    "SamplingParameters",
    "StreamOptions",
    "check_range",
    "check_ranges",
    "is_in_range",
    "without_effect",
]


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool = False
    include_obfuscation: bool = False


class Samplers(msgspec.Struct, frozen=True, kw_only=True):
    """What decides how likely each token is. The meanings are those of
    `cortex_core.wire.ipc.Sampling`; None = whoever comes next decides."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    typical_p: float | None = None
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[str] | None = None


class SamplingParameters(Samplers, frozen=True, kw_only=True):
    """`None` means "not given": the model's or the fixed default applies."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    seed: int | None = None
    ignore_eos: bool = False
    min_tokens: int | None = None
    logit_bias: dict[str, float] | None = None
    stop: str | list[str] | None = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in stop if text)

    @property
    def token_biases(self) -> dict[int, float] | None:
        """`logit_bias` by token id."""
        if self.logit_bias is None:
            return None
        return {int(token): bias for token, bias in self.logit_bias.items()}

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk that tells the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


MOST_CHOICES = 128
MOST_LOGPROBS = 20

# Inclusive bounds; a NaN or an infinity cannot come in as JSON.
RANGES: dict[str, tuple[float, float]] = {
    "max_tokens": (1, 2**31 - 1),
    "max_completion_tokens": (1, 2**31 - 1),
    "max_thinking_tokens": (0, 2**31 - 1),
    "temperature": (0, 100),
    "top_p": (0, 1),
    "top_k": (0, 2**31 - 1),
    "min_p": (0, 1),
    "repeat_penalty": (0.01, 100),
    "repeat_last_n": (-1, 2**31 - 1),
    "presence_penalty": (-100, 100),
    "frequency_penalty": (-100, 100),
    "seed": (-(2**63), 2**63 - 1),
    "n": (1, MOST_CHOICES),
    "logprobs": (0, MOST_LOGPROBS),
    "top_logprobs": (0, MOST_LOGPROBS),
    "min_tokens": (0, 2**31 - 1),
    "typical_p": (0, 1),
    "top_n_sigma": (-1, 100),
    "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1),
    "dynatemp_range": (0, 100),
    "dynatemp_exponent": (0, 100),
    "mirostat": (0, 2),
    "mirostat_tau": (0, 100),
    "mirostat_eta": (0, 1),
    "dry_multiplier": (0, 100),
    "dry_base": (1, 100),
    "dry_allowed_length": (1, 2**31 - 1),
    "dry_penalty_last_n": (-1, 2**31 - 1),
}
_BIAS = 100.0
_MOST_STOPS = 64
_LONGEST_STOP = 1024  # bytes
_MOST_BREAKERS = 16
_LONGEST_BREAKER = 40  # bytes; llama.cpp would cut a longer one


def is_in_range(name: str, value: float) -> bool:
    low, high = RANGES[name]
    return low <= value <= high


def check_range(name: str, value: float | None, like: str | None = None) -> None:
    """`like`: whose bounds they are, where another dialect calls it `name`. Raises InvalidRequest
    that names the parameter and its bounds."""
    low, high = RANGES[like or name]
    if value is not None and not low <= value <= high:
        raise InvalidRequest(f"{name}: must be from {low} to {high}, got {value}", param=name)


def check_ranges(request: SamplingParameters) -> None:
    """Raises InvalidRequest that names the parameter and its bounds."""
    for name in RANGES:
        check_range(name, getattr(request, name, None))
    limit = request.token_limit
    if request.min_tokens and limit is not None and request.min_tokens > limit:
        raise InvalidRequest(
            f"min_tokens: must be at most {limit}, the most tokens the answer may have, "
            f"got {request.min_tokens}",
            param="min_tokens",
        )
    for token, bias in (request.logit_bias or {}).items():
        _check_bias(token, bias)
    _check_breakers(request.dry_sequence_breakers or [])
    _check_stops(request.stop or [])


def _check_bias(token: str, bias: float) -> None:
    if not (token.isascii() and token.isdecimal() and len(token) <= 10):
        raise InvalidRequest(
            f"logit_bias: {token!r} is no token id; its keys must be", param="logit_bias"
        )
    if not -_BIAS <= bias <= _BIAS:
        raise InvalidRequest(
            f"logit_bias.{token}: must be from {-_BIAS:g} to {_BIAS:g}, got {bias:g}",
            param=f"logit_bias.{token}",
        )


def _check_breakers(breakers: list[str]) -> None:
    name = "dry_sequence_breakers"
    if len(breakers) > _MOST_BREAKERS:
        raise InvalidRequest(
            f"{name}: at most {_MOST_BREAKERS} of them, got {len(breakers)}", param=name
        )
    for index, text in enumerate(breakers):
        if not 0 < len(text.encode()) <= _LONGEST_BREAKER or "\0" in text:
            raise InvalidRequest(
                f"{name}[{index}]: must be from 1 to {_LONGEST_BREAKER} bytes of text without a "
                "zero character",
                param=f"{name}[{index}]",
            )


def _check_stops(stop: str | list[str]) -> None:
    stops = [stop] if isinstance(stop, str) else stop
    if len(stops) > _MOST_STOPS:
        raise InvalidRequest(f"stop: at most {_MOST_STOPS} of them, got {len(stops)}", param="stop")
    for index, text in enumerate(stops):
        if (size := len(text.encode())) > _LONGEST_STOP:
            name = "stop" if isinstance(stop, str) else f"stop[{index}]"
            raise InvalidRequest(
                f"{name}: must be at most {_LONGEST_STOP} bytes, got {size}", param=name
            )


def without_effect(request: SamplingParameters) -> list[str]:
    """Parameters that this API knows but this request gives nothing to act on."""
    options = request.stream_options
    if options is None:
        return []
    if not request.stream:
        return ["stream_options"]
    return ["stream_options.include_obfuscation"] if options.include_obfuscation else []
