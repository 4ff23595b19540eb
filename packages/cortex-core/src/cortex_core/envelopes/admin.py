"""`/admin/*`: what the gateway tells operators, and the command line that asks for them."""

from __future__ import annotations

from typing import Literal

import msgspec

from cortex_core.errors import Fault
from cortex_core.fleet.discovery import ModelState, NodeState
from cortex_core.outcome import Outcome

__all__ = [
    "FleetNode",
    "FleetView",
    "OperatorOrder",
    "PlacementExplained",
    "Reloaded",
    "RequestExplained",
    "ToldLine",
]


class FleetNode(msgspec.Struct, frozen=True):
    """One configured neuron. `in_flight`: requests of this gateway; `drained`: an operator told
    this gateway to send it nothing new; `state` may be stale."""

    name: str
    endpoint: str
    reachable: bool
    cause: str | None = None
    in_flight: int = 0
    drained: bool = False
    state: NodeState | None = None


class FleetView(msgspec.Struct, frozen=True):
    """`waiting`: requests by model; `pinned`: models that an operator keeps."""

    nodes: list[FleetNode]
    version: str = ""
    waiting: dict[str, int] = {}
    pinned: list[str] = []


class OperatorOrder(msgspec.Struct, frozen=True):
    """A load or unload that an operator wants, on `node` once one is chosen. `result`: the model as
    loaded."""

    id: str
    kind: Literal["load", "unload", "restart"]
    model: str
    phase: Literal["running", "done", "failed"]
    progress: float = 0.0
    node: str | None = None
    result: ModelState | None = None
    fault: Fault | None = None


class Reloaded(msgspec.Struct, frozen=True):
    """The keys of the configuration whose values are other ones now."""

    changed: list[str]


class ToldLine(msgspec.Struct, frozen=True):
    """`ago_s`: seconds before the answer was written."""

    ago_s: float
    text: str


class PlacementExplained(msgspec.Struct, frozen=True):
    """Where a request for `model` would go at this moment, decided without acting. `ready_on`: the
    nodes that have it. Otherwise it would be loaded on `device` of `node`, after `evict` have left;
    or nowhere, `node` being None. `why`: a line for each device and node that was considered."""

    model: str
    ready_on: list[str]
    node: str | None
    device: str | None
    evict: list[str]
    why: list[str]
    story: list[ToldLine] = []


class RequestExplained(msgspec.Struct, frozen=True):
    """What became of a request. `outcome` is None while it runs. Seconds: `prefill_s` from being
    sent to the first byte, `decode_s` from there to the end; None where that is not known."""

    id: str
    outcome: Outcome | None
    prefill_s: float | None
    decode_s: float | None
    prompt_computed: int | None
    story: list[ToldLine]
