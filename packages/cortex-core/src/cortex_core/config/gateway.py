"""`cortex.toml`: the gateway's configuration. Environment prefix `CORTEX_`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from cortex_core.config.loader import ConfigError, load_config, parse_address

__all__ = [
    "EvictionSection",
    "GatewayConfig",
    "GatewaySection",
    "NeuronEntry",
    "load_gateway_config",
]

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
NodeName = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=63)]

RESERVED = frozenset({"CORTEX_URL"})
"""Variables with the prefix that belong to the command-line client."""


class GatewaySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Timeouts are for connecting, for the first byte, and between bytes; never for the whole."""

    listen: str = "0.0.0.0:31313"
    metrics_listen: str = "0.0.0.0:31314"
    connect_timeout_s: Positive = 3.0
    first_byte_timeout_s: Positive = 600.0
    idle_timeout_s: Positive = 120.0
    max_body_mb: Annotated[int, msgspec.Meta(ge=1)] = 64
    drain_s: Seconds = 30.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class EvictionSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    strategy: Literal["lru", "priority"] = "lru"
    defrag_after_cycles: Annotated[int, msgspec.Meta(ge=0)] = 50


class NeuronEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One box. `endpoint` is http://host:port; `token_file` holds the neuron's bearer token."""

    name: NodeName
    endpoint: str
    token_file: str | None = None


class GatewayConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    gateway: GatewaySection = GatewaySection()
    eviction: EvictionSection = EvictionSection()
    neurons: list[NeuronEntry] = []


def load_gateway_config(
    path: Path | None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> GatewayConfig:
    """The gateway's effective configuration. Raises ConfigError."""
    environment = os.environ if environment is None else environment
    config = load_config(
        GatewayConfig, path, environment, "CORTEX_", flags=flags, reserved=RESERVED
    )
    _check(config, str(path or "configuration"))
    return config


def _check(config: GatewayConfig, source: str) -> None:
    for key in ("listen", "metrics_listen"):
        try:
            parse_address(getattr(config.gateway, key))
        except ValueError as error:
            raise ConfigError(source, f"gateway.{key}", str(error)) from None
    seen: set[str] = set()
    for index, neuron in enumerate(config.neurons):
        if neuron.name in seen:
            raise ConfigError(
                source, f"neurons[{index}].name", f"{neuron.name!r} is used twice; names are unique"
            )
        seen.add(neuron.name)
        scheme, _, rest = neuron.endpoint.partition("://")
        if scheme not in ("http", "https") or not rest.strip("/"):
            raise ConfigError(
                source,
                f"neurons[{index}].endpoint",
                f"expected http://host:port, got {neuron.endpoint!r}",
            )
        if neuron.token_file is not None and not Path(neuron.token_file).is_file():
            raise ConfigError(
                source, f"neurons[{index}].token_file", f"no such file: {neuron.token_file}"
            )
