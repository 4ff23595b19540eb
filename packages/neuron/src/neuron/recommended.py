"""Which sampling a request gets, and what a model's makers recommend for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cortex_core.envelopes.sampling import SamplingParameters, is_in_range
from cortex_core.wire.ipc import ModelInfo, Sampling
from neuron import logs
from neuron.beside import read_beside

__all__ = ["recommended", "resolve_sampling"]

_log = logs.get(__name__)

# The names that the GGUF format has for them, and those of a generation_config.json.
_IN_METADATA = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repeat_penalty": "general.sampling.penalty_repeat",
    "repeat_last_n": "general.sampling.penalty_last_n",
    "xtc_probability": "general.sampling.xtc_probability",
    "xtc_threshold": "general.sampling.xtc_threshold",
    "mirostat": "general.sampling.mirostat",
    "mirostat_tau": "general.sampling.mirostat_tau",
    "mirostat_eta": "general.sampling.mirostat_eta",
}
_IN_CONFIG = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repeat_penalty": "repetition_penalty",
}
_WHOLE = ("top_k", "repeat_last_n", "mirostat")


def resolve_sampling(
    request: SamplingParameters, defaults: Mapping[str, Any], recommended: Mapping[str, Any]
) -> Sampling:
    """Each value from the request, else from the load's `defaults`, else from what is recommended,
    else fixed."""
    values: dict[str, Any] = {}
    for name in Sampling.__struct_fields__:
        value = request.token_biases if name == "logit_bias" else getattr(request, name)
        if value is None:
            value = defaults.get(name, recommended.get(name))
        if value is not None:
            values[name] = tuple(value) if isinstance(value, list) else value
    return Sampling(**values)


def recommended(info: ModelInfo) -> dict[str, Any]:
    """From `generation_config.json` beside the GGUF, else from its metadata, value by value. Both
    are untrusted: what a request may not ask for is no recommendation."""
    config = _config(Path(info.path)) if info.path else {}
    values: dict[str, Any] = {}
    for name in Sampling.__struct_fields__:
        value = _number(name, config.get(_IN_CONFIG.get(name, "")))
        if value is None:
            value = _number(name, info.metadata.get(_IN_METADATA.get(name, "")))
        if value is not None:
            values[name] = value
    return values


def _config(model: Path) -> dict[str, Any]:
    text = read_beside(model, "generation_config.json")
    try:
        given = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        _log.warning("no usable generation_config.json", model=model, cause=error)
        return {}
    return given if isinstance(given, dict) else {}


def _number(name: str, given: object) -> float | int | None:
    """Metadata comes as text, JSON as numbers."""
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        return None
    try:
        value = float(given)
        value = int(value) if name in _WHOLE else value
    except (ValueError, OverflowError):
        return None
    return value if value >= 0 and is_in_range(name, value) else None
