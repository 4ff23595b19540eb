"""What happens to the fleet, and what is to be done about it: the values that go into the
conductor and come out of it.

A stimulus is a fact that somebody else observed; an instruction is something for somebody else to
carry out. Neither holds a decision of its own. `order` numbers the instructions whose end is a
stimulus again: `OrderEnded` names it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from cortex_core.errors import Fault
from cortex_core.fleet.discovery import ModelState, NodeState
from cortex_core.fleet.topology import Replica

__all__ = [
    "AnswerBegan",
    "Done",
    "DrainWanted",
    "Estimate",
    "EstimateCame",
    "Instruction",
    "Interest",
    "Load",
    "LoadWanted",
    "NodeLost",
    "NodeObserved",
    "OrderEnded",
    "PinWanted",
    "ReadState",
    "Refuse",
    "RequestCame",
    "RequestEnded",
    "RequestFailed",
    "Restart",
    "Send",
    "Stimulus",
    "Tick",
    "Unload",
    "UnloadWanted",
    "WakeAt",
]


class Interest(msgspec.Struct, frozen=True):
    """One request that wants a model. `request` is unique within the gateway. `model` is what the
    client asked for, perhaps an alias. `prefix`: see `cortex_core.fleet.affinity.prefix_keys`."""

    request: str
    model: str
    caller: str = ""
    prefix: tuple[int, ...] = ()


# Stimuli


class NodeObserved(msgspec.Struct, frozen=True, tag=True):
    """A node said how it is. Older states than the last known one of the same boot are ignored."""

    node: str
    state: NodeState


class NodeLost(msgspec.Struct, frozen=True, tag=True):
    """Its event stream ended, or fell silent for longer than its promise."""

    node: str
    cause: str


class RequestCame(msgspec.Struct, frozen=True, tag=True):
    interest: Interest


class AnswerBegan(msgspec.Struct, frozen=True, tag=True):
    """The first byte of its replica's answer has come."""

    request: str


class RequestEnded(msgspec.Struct, frozen=True, tag=True):
    """It is over, however: answered, refused by its replica, or its client left, perhaps while it
    still waited. `has_answer`: something came from its replica, which therefore is alive. `fault`:
    how its replica failed it all the same, when it was too late to try another."""

    request: str
    has_answer: bool = True
    fault: Fault | None = None


class RequestFailed(msgspec.Struct, frozen=True, tag=True):
    """Its replica failed it before the first byte of an answer."""

    request: str
    fault: Fault


class EstimateCame(msgspec.Struct, frozen=True, tag=True):
    """What a node says that a load would take there, in bytes by device; or why it cannot be
    loaded there at all."""

    model: str
    node: str
    needs: dict[str, int] = {}
    fault: Fault | None = None


class OrderEnded(msgspec.Struct, frozen=True, tag=True):
    """A Load (with the `state` that came of it), Unload, ReadState or Restart is over. What a
    ReadState read has been observed before this."""

    order: int
    fault: Fault | None = None
    state: ModelState | None = None
    took_s: float = 0.0


class LoadWanted(msgspec.Struct, frozen=True, tag=True):
    """An operator wants a model loaded, on `node` or wherever placement says. It is answered as a
    request that waits for the model is: by a Send as soon as the model is ready there, or by a
    Refuse; and it ends with RequestEnded. `options` go before those of the catalogue."""

    request: str
    model: str
    node: str | None = None
    options: dict[str, Any] = {}


class UnloadWanted(msgspec.Struct, frozen=True, tag=True):
    """An operator wants a model unloaded, from `node` or from every node that holds it, once what
    it is doing is done. Answered by a Done or a Refuse."""

    request: str
    model: str
    node: str | None = None


class DrainWanted(msgspec.Struct, frozen=True, tag=True):
    """Send a node nothing new (`is_draining`), or again."""

    node: str
    is_draining: bool


class PinWanted(msgspec.Struct, frozen=True, tag=True):
    """Never evict this model (`is_pinned`), or again."""

    model: str
    is_pinned: bool


class Tick(msgspec.Struct, frozen=True, tag=True):
    """Time has passed: queue limits, back-offs and idle times may have run out."""


Stimulus = (
    NodeObserved
    | NodeLost
    | RequestCame
    | AnswerBegan
    | RequestEnded
    | RequestFailed
    | EstimateCame
    | OrderEnded
    | LoadWanted
    | UnloadWanted
    | DrainWanted
    | PinWanted
    | Tick
)


# Instructions


class Send(msgspec.Struct, frozen=True, tag=True):
    """The request goes to this replica now, and counts as in flight there until it ends. `load_s`:
    how much of its wait was for a load; None where it waited for none."""

    request: str
    replica: Replica
    load_s: float | None = None


class Refuse(msgspec.Struct, frozen=True, tag=True):
    """The request gets this error; the conductor has forgotten it."""

    request: str
    fault: Fault


class Done(msgspec.Struct, frozen=True, tag=True):
    """What UnloadWanted wanted has come about."""

    request: str


class Estimate(msgspec.Struct, frozen=True, tag=True):
    """Ask a node what a load would take; `options` go with it. Ends in `EstimateCame`."""

    model: str
    node: str
    options: dict[str, Any] = {}


class Load(msgspec.Struct, frozen=True, tag=True):
    """Load, provided that the node's `holdings` are still these."""

    order: int
    model: str
    node: str
    device: str | None
    holdings: int
    options: dict[str, Any] = {}


class Unload(msgspec.Struct, frozen=True, tag=True):
    """Unload, provided that the node's `holdings` are still these and, with `if_idle`, that nobody
    is using the model. `reason`: to make room, because its time is up, or because an operator
    wants it."""

    order: int
    model: str
    node: str
    holdings: int
    if_idle: bool = True
    reason: Literal["room", "ttl", "operator"] = "room"


class ReadState(msgspec.Struct, frozen=True, tag=True):
    """Read a node's state afresh, its free memory above all."""

    order: int
    node: str


class Restart(msgspec.Struct, frozen=True, tag=True):
    """Restart a device's worker process, which holds nothing that anybody uses."""

    order: int
    node: str
    device: str


class WakeAt(msgspec.Struct, frozen=True, tag=True):
    """Send a Tick at this moment; an earlier wish for a Tick stands beside it."""

    at: float


Instruction = Send | Refuse | Done | Estimate | Load | Unload | ReadState | Restart | WakeAt
