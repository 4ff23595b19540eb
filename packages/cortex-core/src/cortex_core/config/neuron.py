"""`neuron.toml`: a neuron's configuration. Environment prefix `NEURON_`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from cortex_core.config.loader import ConfigError, load_config, parse_address

__all__ = [
    "DefaultModel",
    "DevicesSection",
    "EngineSection",
    "ModelsSection",
    "NeuronConfig",
    "load_neuron_config",
]

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
CountOrAuto = Annotated[int, msgspec.Meta(ge=0)]
NodeNameOrAuto = Annotated[str, msgspec.Meta(pattern="^([A-Za-z0-9][A-Za-z0-9._-]{0,62})?$")]


class DevicesSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`cpu_workers`: how many CPU devices to offer; 0 = one where there is no GPU, else none."""

    cpu_workers: CountOrAuto = 0


class ModelsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`local`: folders whose GGUF files may be loaded, by path or by path below the folder."""

    local: list[str] = []


class EngineSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Defaults for every load. `context` is tokens per sequence, 0 = the model's own up to 8,192;
    `parallel` sequences decode at once; `threads` 0 = the cores shared among CPU workers."""

    context: CountOrAuto = 0
    parallel: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4
    batch: Annotated[int, msgspec.Meta(ge=32, le=16384)] = 2048
    threads: CountOrAuto = 0
    max_waiting: Count = 256
    step_timeout_s: Positive = 120.0


class DefaultModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model to load at start. None = the [engine] default, or the device with most room."""

    id: str
    device: str | None = None
    context: CountOrAuto | None = None
    parallel: Annotated[int, msgspec.Meta(ge=1, le=256)] | None = None


class NeuronConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`name` empty = the host's name. `token_file` holds the bearer token clients must send.
    `use_chat_template` false forces the built-in ChatML template on every model."""

    listen: str = "0.0.0.0:13131"
    name: NodeNameOrAuto = ""
    token_file: str | None = None
    use_chat_template: bool = True
    drain_s: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    max_body_mb: Count = 64
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    devices: DevicesSection = DevicesSection()
    models: ModelsSection = ModelsSection()
    engine: EngineSection = EngineSection()
    default_models: list[DefaultModel] = []


def load_neuron_config(
    path: Path | None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> NeuronConfig:
    """The neuron's effective configuration. Raises ConfigError."""
    environment = os.environ if environment is None else environment
    config = load_config(NeuronConfig, path, environment, "NEURON_", flags=flags)
    source = str(path or "configuration")
    try:
        parse_address(config.listen)
    except ValueError as error:
        raise ConfigError(source, "listen", str(error)) from None
    if config.token_file is not None and not Path(config.token_file).is_file():
        raise ConfigError(source, "token_file", f"no such file: {config.token_file}")
    for index, folder in enumerate(config.models.local):
        if not Path(folder).is_dir():
            raise ConfigError(source, f"models.local[{index}]", f"no such folder: {folder}")
    seen: set[str] = set()
    for index, model in enumerate(config.default_models):
        if model.id in seen:
            raise ConfigError(source, f"default_models[{index}].id", f"{model.id!r} is given twice")
        seen.add(model.id)
    return config
