"""`GET /v1/models`: what the fleet serves, and where."""

from __future__ import annotations

from typing import Literal

import msgspec

from cortex_core.fleet.discovery import ModelLimit, ModelPhase

__all__ = ["ModelEntry", "ModelLimit", "ModelList", "ModelLocation"]


class ModelLocation(msgspec.Struct, frozen=True):
    node: str
    device: str
    state: ModelPhase | Literal["unreachable"]
    memory_bytes: int


class ModelEntry(msgspec.Struct, frozen=True):
    id: str
    loaded: bool
    locations: list[ModelLocation]
    limit: ModelLimit
    created: int = 0
    owned_by: str = "cortex"
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct, frozen=True):
    data: list[ModelEntry]
    object: Literal["list"] = "list"
