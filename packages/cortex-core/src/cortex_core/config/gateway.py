"""`cortex.toml`: the gateway's configuration. Environment prefix `CORTEX_`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from cortex_core.config.files import (
    beside,
    check_certificate,
    check_file,
    check_folder,
    check_token,
)
from cortex_core.config.loader import ConfigError, load_config, parse_address
from cortex_core.config.models import load_models

__all__ = [
    "EvictionSection",
    "GatewayConfig",
    "GatewaySection",
    "NeuronEntry",
    "load_gateway_config",
]

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
NodeName = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9][A-Za-z0-9._-]*\\Z", max_length=63)]

# As a browser sends it: no path, no slash at the end, lower case.
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/\sA-Z]+")

_PATHS = ("models", "state_dir", "admin_token_file", "tls_cert", "tls_key")
_PORTS = {"http": 80, "https": 443}

RESERVED = frozenset({"CORTEX_URL", "CORTEX_ADMIN_TOKEN"})
"""Variables with the prefix that belong to the command-line client."""


class GatewaySection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Timeouts are for connecting, for the first byte, and between bytes; never for the whole.
    Relative paths are beside this file. `models` is the catalogue's. `max_waiting` requests wait
    for one model at most, each for `max_wait_s` at most. What was learned is kept in
    `state_dir`; None = for as long as the gateway runs. A load without progress for `load_stall_s`
    is given up. `/admin` is served where clients connect unless it has an `admin_listen`, and asks
    for the token in `admin_token_file` if there is one. With `tls_cert` and `tls_key` (PEM) clients
    and operators connect over TLS, and speak HTTP/2 if they like. Pages of `cors_origins` may read
    answers in a browser; `*` = all pages. Responses (`/v1/responses`) are kept for
    `responses_ttl_s`, the newest `responses_max_mb` of them. With `keep_attribution` the line that
    a coding agent puts into its system prompt, another one for each request, stays there."""

    listen: str = "0.0.0.0:31313"
    metrics_listen: str = "0.0.0.0:31314"
    connect_timeout_s: Positive = 3.0
    first_byte_timeout_s: Positive = 600.0
    idle_timeout_s: Positive = 120.0
    max_body_mb: Annotated[int, msgspec.Meta(ge=1)] = 64
    drain_s: Seconds = 30.0
    models: str | None = None
    max_waiting: Annotated[int, msgspec.Meta(ge=1)] = 256
    max_wait_s: Positive = 600.0
    state_dir: str | None = None
    load_stall_s: Positive = 300.0
    admin_listen: str | None = None
    admin_token_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    cors_origins: list[str] = []
    responses_ttl_s: Positive = 86400.0
    responses_max_mb: Annotated[int, msgspec.Meta(ge=1)] = 256
    keep_attribution: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class EvictionSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`strategy`: the longest unused model makes room first, or the one of the lowest class that
    is cheapest to load again. A model stays for `min_residency_s` after its load unless clearly
    more want another. Where all who could make room are busy for `drain_after_s`, one of them gets
    no new requests. After `defrag_after_cycles` loads and unloads an idle worker is restarted;
    0 = never."""

    strategy: Literal["lru", "priority"] = "lru"
    min_residency_s: Seconds = 30.0
    drain_after_s: Seconds = 30.0
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
    """The gateway's effective configuration; its catalogue is checked too. Raises ConfigError."""
    environment = os.environ if environment is None else environment
    config = load_config(
        GatewayConfig, path, environment, "CORTEX_", flags=flags, reserved=RESERVED
    )
    config = _beside(config, path)
    _check(config, str(path or "configuration"))
    return config


def _beside(config: GatewayConfig, file: Path | None) -> GatewayConfig:
    paths = {key: beside(file, getattr(config.gateway, key)) for key in _PATHS}
    neurons = [
        replace(entry, token_file=beside(file, entry.token_file)) for entry in config.neurons
    ]
    return replace(config, gateway=replace(config.gateway, **paths), neurons=neurons)


def _check(config: GatewayConfig, source: str) -> None:
    for index, origin in enumerate(config.gateway.cors_origins):
        if not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                source,
                f"gateway.cors_origins[{index}]",
                f"expected * or an origin like https://chat.example, got {origin!r}",
            )
    for key in ("listen", "metrics_listen", "admin_listen"):
        address = getattr(config.gateway, key)
        try:
            if address is not None:
                parse_address(address)
        except ValueError as error:
            raise ConfigError(source, f"gateway.{key}", str(error)) from None
    settings = config.gateway
    check_token(settings.admin_token_file, source, "gateway.admin_token_file")
    check_folder(settings.state_dir, source, "gateway.state_dir")
    for key, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        check_file(getattr(settings, key), source, f"gateway.{key}")
        if getattr(settings, key) is None and getattr(settings, other) is not None:
            raise ConfigError(source, f"gateway.{key}", f"required together with {other}")
    if settings.tls_cert is not None and settings.tls_key is not None:
        check_certificate(settings.tls_cert, settings.tls_key, source, "gateway.tls_cert")
    _check_neurons(config.neurons, source)
    if settings.models is not None:
        load_models(Path(settings.models), [neuron.name for neuron in config.neurons])


def _check_neurons(neurons: list[NeuronEntry], source: str) -> None:
    names: set[str] = set()
    places: dict[object, str] = {}
    for index, neuron in enumerate(neurons):
        key = f"neurons[{index}]"
        if neuron.name in names:
            problem = f"{neuron.name!r} is used twice; names are unique"
            raise ConfigError(source, f"{key}.name", problem)
        names.add(neuron.name)
        try:
            place = _place(neuron.endpoint)
        except ValueError:
            problem = f"expected http://host:port, got {neuron.endpoint!r}"
            raise ConfigError(source, f"{key}.endpoint", problem) from None
        other = places.setdefault(place, neuron.name)
        if other != neuron.name:
            problem = f"{neuron.endpoint} and {other!r} are one and the same neuron"
            raise ConfigError(source, f"{key}.endpoint", problem)
        check_token(neuron.token_file, source, f"{key}.token_file")


def _place(endpoint: str) -> object:
    """Equal for endpoints that are the same. Raises ValueError for what is none."""
    parts = urlsplit(endpoint)
    host = (parts.hostname or "").encode("idna")  # as it will be looked up; a UnicodeError is one
    port = parts.port if parts.port is not None else _PORTS.get(parts.scheme)
    is_plain = endpoint.isprintable() and not set(" @?#").intersection(endpoint)
    if not (parts.scheme in _PORTS and host and port and is_plain and parts.path.isascii()):
        raise ValueError(endpoint)
    return parts.scheme, host, port, parts.path.rstrip("/")
