"""`neuron.toml`: a neuron's configuration. Environment prefix `NEURON_`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec.structs import replace

from cortex_core.config.files import beside, check_file, check_token
from cortex_core.config.loader import ConfigError, load_config, parse_address
from cortex_core.config.loading import (
    Batch,
    Cells,
    Context,
    GpuLayers,
    Kv,
    LoadOptions,
    MainGpu,
    Parallel,
    SamplingDefaults,
    Share,
    Threads,
)
from cortex_core.errors import InvalidRequest
from cortex_core.wire.ipc import KvType, SplitMode

__all__ = [
    "DefaultModel",
    "DevicesSection",
    "EngineSection",
    "HubSource",
    "ModelsSection",
    "NeuronConfig",
    "load_neuron_config",
]

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
CountOrAuto = Annotated[int, msgspec.Meta(ge=0)]
NodeName = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\\Z")]
NodeNameOrAuto = Annotated[str, msgspec.Meta(pattern="^([A-Za-z0-9][A-Za-z0-9._-]{0,62})?\\Z")]


class DevicesSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`cpu_workers`: how many CPU devices to offer; 0 = one where there is no GPU, else none.
    `memory_mb`: what each of them pretends to have, 0 = the host's memory, shared; several nodes of
    one machine can then be tried out as if each had its own."""

    cpu_workers: CountOrAuto = 0
    memory_mb: CountOrAuto = 0


class HubSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A hub of models. What is None is as huggingface_hub has it: the public hub, or HF_ENDPOINT;
    the cache shared with other programs, or HF_HUB_CACHE. `token_file` None: no token, but for the
    hub whose `endpoint` is None, which gets HF_TOKEN or that of a login."""

    name: NodeName
    endpoint: str | None = None
    token_file: str | None = None
    cache_dir: str | None = None


class ModelsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`local`: folders whose GGUF files may be loaded, by path or by path below the folder.
    `sources`: hubs to load `org/name[:QUANT]` from, the first where a load names none; none at all
    = only files. `offline`: only what is in their caches."""

    local: list[str] = []
    sources: list[HubSource] = msgspec.field(default_factory=lambda: [HubSource("hub")])
    offline: bool = False


class EngineSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Defaults for every load, and limits for every model. `context` is tokens per sequence, 0 =
    the model's own as far as it fits; `parallel` sequences decode at once; `threads` 0 = the cores
    shared among CPU workers; `cells` is the whole KV cache, 0 = parallel * context."""

    context: Context = 0
    parallel: Parallel = 4
    batch: Batch = 2048
    threads: Threads = 0
    gpu_layers: GpuLayers = -1
    kv: Kv = "auto"
    cells: Cells = 0
    kv_type: KvType = "f16"
    flash_attention: bool | None = None
    split_mode: SplitMode = "layer"
    tensor_split: list[Share] = []
    main_gpu: MainGpu = 0
    mmap: bool | None = None
    mlock: bool = False
    repack: bool | None = None
    host_cache_mb: CountOrAuto = 1024
    max_step_ms: Positive = 600.0
    max_waiting: Count = 256
    max_wait_s: Positive = 600.0
    step_timeout_s: Positive = 120.0


class DefaultModel(LoadOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model to load at start. None = the [engine] default, the device with most room, or the
    first of `models.sources`."""

    id: str
    device: str | None = None
    source: str | None = None
    sampling: SamplingDefaults | None = None


class NeuronConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Relative paths are beside this file. `name` empty = the host's name. `token_file` holds the
    bearer token clients must send. `use_chat_template` false forces the built-in ChatML template on
    every model; `chat_templates` are files with the templates of single models, by the model's
    id."""

    listen: str = "0.0.0.0:13131"
    name: NodeNameOrAuto = ""
    token_file: str | None = None
    use_chat_template: bool = True
    chat_templates: dict[str, str] = {}
    drain_s: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    max_body_mb: Count = 64
    reader_timeout_s: Positive = 300.0
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
    config = _beside(load_config(NeuronConfig, path, environment, "NEURON_", flags=flags), path)
    source = str(path or "configuration")
    try:
        parse_address(config.listen)
    except ValueError as error:
        raise ConfigError(source, "listen", str(error)) from None
    check_token(config.token_file, source, "token_file")
    for index, folder in enumerate(config.models.local):
        if not os.path.isdir(folder):
            raise ConfigError(source, f"models.local[{index}]", f"no such folder: {folder}")
    for model, file in config.chat_templates.items():
        check_file(file, source, f"chat_templates.{model}")
    _check_sources(source, config.models.sources)
    _check_cache(source, "engine", config.engine, config.engine)
    seen: set[str] = set()
    for index, model in enumerate(config.default_models):
        _check_cache(source, f"default_models[{index}]", model, config.engine)
        _check_sampling(source, f"default_models[{index}]", model.sampling)
        hubs = [hub.name for hub in config.models.sources]
        if model.source is not None and model.source not in hubs:
            problem = (
                f"there is no {model.source!r} in models.sources ({', '.join(hubs) or 'none'})"
            )
            raise ConfigError(source, f"default_models[{index}].source", problem)
        if model.id in seen:
            raise ConfigError(source, f"default_models[{index}].id", f"{model.id!r} is given twice")
        seen.add(model.id)
    return config


def _beside(config: NeuronConfig, file: Path | None) -> NeuronConfig:
    templates = {model: beside(file, path) for model, path in config.chat_templates.items()}
    local = [beside(file, folder) for folder in config.models.local]
    sources = [
        replace(
            hub,
            token_file=beside(file, hub.token_file),
            cache_dir=beside(file, hub.cache_dir),
        )
        for hub in config.models.sources
    ]
    return replace(
        config,
        token_file=beside(file, config.token_file),
        chat_templates=templates,
        models=replace(config.models, local=local, sources=sources),
    )


def _check_sources(source: str, hubs: list[HubSource]) -> None:
    """Raises ConfigError."""
    names: set[str] = set()
    for index, hub in enumerate(hubs):
        key = f"models.sources[{index}]"
        if hub.name in names:
            raise ConfigError(source, f"{key}.name", f"{hub.name!r} is given twice")
        names.add(hub.name)
        if hub.endpoint is not None and not re.match(r"https?://[^/\s]+", hub.endpoint):
            problem = f"expected http(s)://host, got {hub.endpoint!r}"
            raise ConfigError(source, f"{key}.endpoint", problem)
        check_token(hub.token_file, source, f"{key}.token_file")


def _check_cache(
    source: str, key: str, options: LoadOptions | EngineSection, engine: EngineSection
) -> None:
    """A quantised KV cache needs flash attention. Raises ConfigError."""
    flash = options.flash_attention
    flash = engine.flash_attention if flash is None else flash
    kv_type = options.kv_type or engine.kv_type
    if flash is False and kv_type != "f16":
        problem = f"is false, but a KV cache of type {kv_type} needs it"
        raise ConfigError(source, f"{key}.flash_attention", problem)


def _check_sampling(source: str, key: str, sampling: SamplingDefaults | None) -> None:
    """Raises ConfigError."""
    try:
        if sampling is not None:
            sampling.check()
    except InvalidRequest as error:
        problem = error.message.removeprefix(f"{error.param}: ")
        raise ConfigError(source, f"{key}.{error.param}", problem) from None
