"""`GET /v1/models`: what the fleet serves or could serve, and where."""

from __future__ import annotations

from typing import Literal

import msgspec

from cortex_core.config.models import CostSection
from cortex_core.fleet.discovery import ModelPhase

__all__ = ["ListedLimit", "ListedModel", "ModelList", "ModelLocation"]


class ModelLocation(msgspec.Struct, frozen=True):
    node: str
    device: str
    state: ModelPhase | Literal["unreachable"]
    memory_bytes: int


class ListedLimit(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens, of prompt and answer together and of an answer; a context of 0 is not known."""

    context: int
    output: int | None = None


class ListedModel(msgspec.Struct, frozen=True):
    """One name that a client may ask for. `loaded`: ready on a node in reach. `feasible_on`: nodes
    that could hold it, as far as is known. `cost` is None where the operator gave none, and so is
    `load_estimate_s` where nothing is known. An alias is listed too, as what it stands for, with
    `alias_of`; `aliases` are a model's other names."""

    id: str
    loaded: bool
    locations: list[ModelLocation]
    limit: ListedLimit
    feasible_on: list[str] = []
    capabilities: list[str] = []
    cost: CostSection | None = None
    load_estimate_s: float | None = None
    aliases: list[str] = []
    alias_of: str | None = None
    created: int = 0
    owned_by: str = "cortex"
    object: Literal["model"] = "model"


class ModelList(msgspec.Struct, frozen=True):
    data: list[ListedModel]
    object: Literal["list"] = "list"
