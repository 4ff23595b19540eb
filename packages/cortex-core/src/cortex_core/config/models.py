"""`models.toml`: what the fleet may serve, and how each model is to be loaded and kept.

Read by the gateway alone. A node may hold models that are not listed here; they are served too,
with the defaults of `ModelEntry`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from cortex_core.config.loader import ConfigError, load_config
from cortex_core.config.loading import LoadOptions, SamplingDefaults
from cortex_core.errors import InvalidRequest

__all__ = [
    "Capability",
    "CostSection",
    "LimitSection",
    "ModelEntry",
    "ModelsConfig",
    "load_models",
]

ModelName = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Amount = Annotated[int, msgspec.Meta(ge=0)]
Price = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Capability = Literal["chat", "completions", "embeddings", "rerank", "tools", "reasoning", "vision"]


class LimitSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tokens, told to clients: of prompt and answer together, and of an answer. None = whatever
    the loaded model has."""

    context: Count | None = None
    output: Count | None = None


class CostSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Price per million tokens, in the operator's own unit; told to clients, and accounted."""

    input: Price = 0.0
    output: Price = 0.0
    cache_read: Price = 0.0


class ModelEntry(LoadOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of the catalogue.

    `source` names one of the neuron's hub sources. A node may hold the model when it has
    `min_devices` devices, GPUs of `min_device_vram_mb` MiB each if that is given. `pinned`: never
    evicted, wherever it is; `pinned_on`: loaded on these nodes when they appear, and never evicted
    there. A model makes room only for those of an equal or higher `residency_priority`. Nobody
    having asked for it for `ttl_s`, it is unloaded. `replicas` are loaded on as many nodes, once
    somebody asks."""

    id: ModelName
    source: str | None = None
    min_devices: Count = 1
    min_device_vram_mb: Amount = 0
    pinned: bool = False
    pinned_on: tuple[str, ...] = ()
    residency_priority: int = 0
    ttl_s: Positive | None = None
    replicas: Count = 1
    sampling: SamplingDefaults | None = None
    limit: LimitSection = LimitSection()
    cost: CostSection = CostSection()
    capabilities: tuple[Capability, ...] = ()

    def is_pinned_on(self, node: str) -> bool:
        """Whether it may never be evicted from `node`."""
        return self.pinned or node in self.pinned_on

    def load_options(self) -> dict[str, Any]:
        """What a neuron's load request says besides the model and its place."""
        options = self.estimate_options()
        if self.sampling is not None:
            options["sampling"] = self.sampling.given
        return options

    def estimate_options(self) -> dict[str, Any]:
        """Those of a load that decide what it takes; an estimate has no others."""
        names = ("source", *LoadOptions.__struct_fields__)
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}


class ModelsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`models.toml` as a whole. `aliases`: what else a model may be called → its id."""

    models: list[ModelEntry] = []
    aliases: dict[str, str] = {}


def load_models(path: Path, nodes: Collection[str] | None = None) -> ModelsConfig:
    """The catalogue's configuration. `nodes`: the configured neurons, which `pinned_on` must name;
    None = not checked. Raises ConfigError."""
    config = load_config(ModelsConfig, path, {}, "")
    source = str(path)
    ids: set[str] = set()
    for index, entry in enumerate(config.models):
        key = f"models[{index}]"
        if entry.id in ids:
            raise ConfigError(source, f"{key}.id", f"{entry.id!r} is given twice; ids are unique")
        ids.add(entry.id)
        _check_options(entry, source, key)
        if nodes is not None:
            _check_nodes(entry.pinned_on, nodes, source, f"{key}.pinned_on")
    for alias, model in config.aliases.items():
        _check_alias(alias, model, ids, config.aliases, source)
    return config


def _check_options(entry: ModelEntry, source: str, key: str) -> None:
    try:
        if entry.sampling is not None:
            entry.sampling.check()
    except InvalidRequest as error:
        problem = error.message.removeprefix(f"{error.param}: ")
        raise ConfigError(source, f"{key}.{error.param}", problem) from None
    if entry.flash_attention is False and entry.kv_type not in (None, "f16"):
        problem = f"is false, but a KV cache of type {entry.kv_type} needs it"
        raise ConfigError(source, f"{key}.flash_attention", problem)


def _check_nodes(pinned_on: Collection[str], nodes: Collection[str], source: str, key: str) -> None:
    for index, node in enumerate(pinned_on):
        if node not in nodes:
            known = ", ".join(nodes) or "none"
            raise ConfigError(
                source, f"{key}[{index}]", f"no neuron is called {node!r}; configured: {known}"
            )


def _check_alias(
    alias: str, model: str, ids: Collection[str], aliases: Collection[str], source: str
) -> None:
    key = f"aliases.{alias}"
    if not alias or not model:
        raise ConfigError(source, key, "expected a name and a model's id, got nothing")
    if alias in ids:
        raise ConfigError(source, key, f"{alias!r} is a model's id, which it would hide")
    if model in aliases:
        raise ConfigError(source, key, f"{model!r} is an alias itself; expected a model's id")
