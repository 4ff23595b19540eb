"""A configuration read again while the gateway serves: only what is different moves.

What cannot move is refused by name, and then nothing has moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from cortex_core.config.gateway import GatewayConfig
from cortex_core.config.models import ModelsConfig
from cortex_core.errors import InvalidConfiguration

__all__ = ["changes"]

LIVE = frozenset(
    {
        "drain_s",
        "first_byte_timeout_s",
        "idle_timeout_s",
        "load_stall_s",
        "max_wait_s",
        "max_waiting",
        "models",
    }
)
"""Keys of [gateway] that take effect without a restart; all of [eviction] and [[neurons]] do."""


def changes(
    old: GatewayConfig, new: GatewayConfig, old_models: ModelsConfig, new_models: ModelsConfig
) -> list[str]:
    """What differs, as dotted keys. Raises InvalidConfiguration, naming what cannot change."""
    gateway = _differing(_fields(old.gateway), _fields(new.gateway))
    if stuck := [f"gateway.{key}" for key in gateway if key not in LIVE]:
        raise InvalidConfiguration(
            f"{', '.join(stuck)}: cannot change while the gateway runs; restart it", param=stuck[0]
        )
    found = {
        "gateway": gateway,
        "eviction": _differing(_fields(old.eviction), _fields(new.eviction)),
        "neurons": _differing(
            {entry.name: entry for entry in old.neurons},
            {entry.name: entry for entry in new.neurons},
        ),
        "models": _differing(
            {entry.id: entry for entry in old_models.models},
            {entry.id: entry for entry in new_models.models},
        ),
        "aliases": _differing(old_models.aliases, new_models.aliases),
    }
    return [f"{section}.{key}" for section, keys in found.items() for key in keys]


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]


def _fields(struct: msgspec.Struct) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}
