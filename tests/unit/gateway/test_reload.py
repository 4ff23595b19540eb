"""What differs between two configurations, and what of it may take effect."""

from __future__ import annotations

from typing import Any

import pytest

from cortex_core.config.gateway import EvictionSection, GatewayConfig, GatewaySection, NeuronEntry
from cortex_core.config.models import ModelEntry, ModelsConfig
from cortex_core.errors import InvalidConfiguration
from cortex_gateway.reload import LIVE, changes

A, B = NeuronEntry("a", "http://a:1"), NeuronEntry("b", "http://b:1")
NONE = ModelsConfig()


def config(*neurons: NeuronEntry, strategy: Any = "lru", **gateway: Any) -> GatewayConfig:
    return GatewayConfig(GatewaySection(**gateway), EvictionSection(strategy), list(neurons))


def test_equal_configurations_differ_in_nothing() -> None:
    models = ModelsConfig([ModelEntry(id="m")], {"x": "m"})
    assert changes(config(A), config(A), models, models) == []


def test_each_difference_is_named() -> None:
    old, new = config(A, B, max_waiting=1), config(A, strategy="priority", max_waiting=2)
    old_models = ModelsConfig([ModelEntry(id="m"), ModelEntry(id="n")], {"x": "m"})
    new_models = ModelsConfig([ModelEntry(id="m", pinned=True), ModelEntry(id="o")], {"x": "o"})
    assert changes(old, new, old_models, new_models) == [
        "gateway.max_waiting",
        "eviction.strategy",
        "neurons.b",
        "models.m",
        "models.n",
        "models.o",
        "aliases.x",
    ]


@pytest.mark.parametrize("key", sorted(set(GatewaySection.__struct_fields__) - LIVE))
def test_what_is_read_once_is_refused_by_name(key: str) -> None:
    with pytest.raises(InvalidConfiguration, match=f"gateway.{key}: cannot change") as caught:
        changes(config(), config(**{key: object()}), NONE, NONE)
    assert caught.value.param == f"gateway.{key}"


def test_every_live_key_exists() -> None:
    assert set(GatewaySection.__struct_fields__) >= LIVE
